"""Makers of small inputs: pairs that can be retrieved, and random models and data sets laid out like the real ones.

Everything follows from fixed seeds: two makings give the same bytes. That is why the vocabularies are counted rather
than trained; the trainers of `tokenizers` break ties by the order of a hash table, differently in every process.
"""

import collections
import itertools
import math
import random
import re
import string
from pathlib import Path

import pyarrow
import pyarrow.parquet
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import (
    BertConfig,
    BertModel,
    BertTokenizer,
    ModernBertConfig,
    ModernBertModel,
    MPNetConfig,
    MPNetModel,
    MPNetTokenizer,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3Model,
    T5Config,
    T5EncoderModel,
    XLMRobertaConfig,
    XLMRobertaModel,
    XLMRobertaTokenizer,
)

from embedding_finetune.data.cleaning import read_pairs, source_of
from embedding_finetune.data.collection import write_data, write_test_files
from embedding_finetune.data.splits import assign_splits
from embedding_finetune.models.encoder_config import base_encoder_config
from embedding_finetune.recipes import find_recipe
from embedding_finetune.training.training_data import make_training_file

SYLLABLES = "ba den fo gul har ik ju ka lom mi nor pel qua rus sa tev ul vin wo zan".split()
ANIMALS = "otter heron badger lynx falcon beaver marten crane".split()
HABITS = {
    "sleep": "rests {time} among the {plant} and wakes when the light changes",
    "hunt": "catches its food {time} and hides what is left under the {plant}",
    "nest": "builds with twigs of {plant}, a work that goes on {time}",
    "drink": "comes {time} to the water that runs behind the {plant}",
    "travel": "leaves {time} and follows the line of {plant} to the south",
}
TIMES = ["at night", "at dawn", "in the heat of noon", "after the first frost", "during the long rains"]
PLANTS = "willow juniper bracken heather alder reeds".split()


def tiny_pairs(n, seed=7):
    """`n` rows `{"query": str, "pos": [str, ...], "id": str}` with the irregularities of real pairs; at most 8,000.

    A query names an animal, an invented place and a habit; its passage tells the same in other words, so that BM25
    finds it by the place's name. Of every ten rows, counted from 0, number 3 has two positives, 5 asks another
    question about the passage of row 4, 7 gives the query of row 6 a second positive, and 9 repeats row 8. No other
    rows share a query or a passage. Ids are unique.
    """
    rng = random.Random(seed)
    places = rng.sample(["".join(name).capitalize() for name in itertools.product(SYLLABLES, repeat=3)], n)

    def passage(animal, place, habit, opening):
        sentence = HABITS[habit].format(time=rng.choice(TIMES), plant=rng.choice(PLANTS))
        return f"{opening} {place} the {animal} {sentence}. Few who come to {place} ever see it {habit}."

    rows, subject = [], None
    for number, place in enumerate(places):
        last, last_subject = rows[-1] if rows else None, subject
        subject = rng.choice(ANIMALS), place, rng.choice(list(HABITS))
        query = "when does the {} of {} {}".format(*subject)
        pos = [passage(*subject, "In the valley of")]
        match number % 10:
            case 3:
                pos.append(passage(*subject, "Old books tell that near"))
            case 5:
                query, pos = "where does the {} of {} live".format(*last_subject), last["pos"]
            case 7:
                query, pos = last["query"], [passage(*last_subject, "Old books tell that near")]
            case 9:
                query, pos = last["query"], last["pos"]
        rows.append({"query": query, "pos": list(pos), "id": f"q{number}"})
    return rows


def tiny_texts(pairs):
    """All queries and positives of `pairs`: what a vocabulary is counted on."""
    return [text for pair in pairs for text in (pair["query"], *pair["pos"])]


def _count_words(texts, size=1000):
    """The `size` most frequent words that occur more than once, with their counts; all characters, sorted."""
    counts = collections.Counter(word for text in texts for word in re.findall(r"\w+", text))
    frequent = sorted((word for word in counts if counts[word] > 1), key=lambda word: (-counts[word], word))[:size]
    characters = set(string.printable).union(*texts) - set(string.whitespace)
    return {word: counts[word] for word in frequent}, sorted(characters)


SIZES = dict(hidden_size=64, num_hidden_layers=2, num_attention_heads=2, intermediate_size=128)


def tiny_bert(folder, texts, seed=1, **changes):
    """Save a BertModel of random weights (hidden 64, 2 layers, texts of up to 512 tokens) with a WordPiece tokenizer.

    `changes` go to its BertConfig. Laid out like `bert-base-uncased`: lower case, [PAD] is token 0, the weights are in
    `model.safetensors`. Words that occur twice in `texts` are one token, the others are spelt.
    """
    words, characters = _count_words([text.lower() for text in texts])
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *characters, *("##" + c for c in characters), *words]
    vocabulary = {piece: number for number, piece in enumerate(dict.fromkeys(pieces))}
    tokenizer = BertTokenizer(vocab=vocabulary, do_lower_case=True, model_max_length=512)
    torch.manual_seed(seed)
    model = BertModel(BertConfig(**{"vocab_size": len(tokenizer), "max_position_embeddings": 512, **SIZES, **changes}))
    tokenizer.save_pretrained(folder)
    model.save_pretrained(folder)
    return Path(folder)


def tiny_xlmr(folder, texts, seed=2):
    """Save an XLMRobertaModel of random weights with a Unigram tokenizer: the architecture of `BAAI/bge-m3`.

    Tokens 0 to 3 are <s>, <pad>, </s>, <unk>; positions count from 2, hence 514 of them for texts of 512 tokens.
    Like that model on the Hugging Face Hub the folder has its weights as `pytorch_model.bin` and not as safetensors.
    """
    words, characters = _count_words(texts)
    total = sum(words.values())
    scores = {"<s>": 0.0, "<pad>": 0.0, "</s>": 0.0, "<unk>": 0.0}
    scores |= {"▁" + word: math.log(count / total) for word, count in words.items()}
    scores |= {piece: -20.0 for piece in ["▁", *characters]}
    scores["<mask>"] = 0.0
    tokenizer = XLMRobertaTokenizer(vocab=list(scores.items()), model_max_length=512)
    torch.manual_seed(seed)
    config = XLMRobertaConfig(vocab_size=len(tokenizer), max_position_embeddings=514, type_vocab_size=1,
                              architectures=["XLMRobertaModel"], **SIZES)
    tokenizer.save_pretrained(folder)
    config.save_pretrained(folder)
    torch.save(XLMRobertaModel(config).state_dict(), Path(folder) / "pytorch_model.bin")
    return Path(folder)


def tiny_mpnet(folder, texts, seed=3):
    """Save an MPNetModel of random weights: the architecture of all-mpnet-base-v2, with positions counted from 2."""
    words, characters = _count_words([text.lower() for text in texts])
    pieces = ["<s>", "<pad>", "</s>", "[UNK]", "<mask>", *characters, *("##" + c for c in characters), *words]
    vocabulary = {piece: number for number, piece in enumerate(dict.fromkeys(pieces))}
    tokenizer = MPNetTokenizer(vocab=vocabulary, do_lower_case=True, model_max_length=512)
    config = MPNetConfig(vocab_size=len(tokenizer), max_position_embeddings=514, **SIZES)
    return _saved(folder, MPNetModel, config, tokenizer, seed)


def tiny_modernbert(folder, texts, seed=4):
    """Save a ModernBertModel of random weights, whose second layer looks at 8 tokens around; tokens as in tiny_bert."""
    tokenizer = BertTokenizer.from_pretrained(tiny_bert(folder, texts))
    special = {"pad_token_id": 0, "cls_token_id": 2, "sep_token_id": 3, "bos_token_id": None, "eos_token_id": None}
    config = ModernBertConfig(vocab_size=len(tokenizer), max_position_embeddings=512, local_attention=8,
                              global_attn_every_n_layers=2, **SIZES, **special)
    return _saved(folder, ModernBertModel, config, tokenizer, seed)


def tiny_t5(folder, texts, seed=5):
    """Save a T5EncoderModel of random weights: the encoder of sentence-t5 and gtr-t5; tokens as in tiny_bert."""
    tokenizer = BertTokenizer.from_pretrained(tiny_bert(folder, texts))
    config = T5Config(vocab_size=len(tokenizer), d_model=64, d_kv=32, num_heads=2, num_layers=2, d_ff=128)
    return _saved(folder, T5EncoderModel, config, tokenizer, seed)


def tiny_qwen(folder, texts, seed=6):
    """Save a Qwen3Model of random weights: a decoder whose tokenizer works on bytes, ends each text with a token, and
    pads on the left, as that of Qwen3-Embedding does; two heads share their keys."""
    pieces = ["<|endoftext|>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    tokenizer = Tokenizer(models.BPE({piece: number for number, piece in enumerate(pieces)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A <|endoftext|>", pair=None,
                                                             special_tokens=[("<|endoftext|>", 0)])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<|endoftext|>", padding_side="left",
                                        eos_token="<|endoftext|>", model_max_length=512)
    config = Qwen3Config(vocab_size=len(tokenizer), max_position_embeddings=512, num_key_value_heads=1, head_dim=32,
                         attention_dropout=0.1, pad_token_id=0, **SIZES)
    return _saved(folder, Qwen3Model, config, tokenizer, seed)


def _saved(folder, kind, config, tokenizer, seed):
    torch.manual_seed(seed)
    kind(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return Path(folder)


def build_collection(settings):
    """Read the pairs, split them and write the collection; returns it."""
    pairs, _ = read_pairs(settings)
    collection = assign_splits(pairs, test_fraction=settings.test_fraction, dev_fraction=settings.dev_fraction,
                               seed=settings.seed, together=settings.group_near_duplicates)
    write_data(settings, collection, source_of(settings))
    return collection


def build(settings, labels=("neg10", "neg50")):
    """What the build notebooks write: the collection, the test files, the training files; returns the collection."""
    collection = build_collection(settings)
    write_test_files(settings, collection, base_encoder_config(settings).query_prompt)
    for label in labels:
        make_training_file(settings, find_recipe(settings, label), collection)
    return collection


def tiny_msmarco(folder, pairs):
    """Save `pairs` laid out like the data set `namespace-Pt/msmarco`: split `dev`, columns `query` and `positive`."""
    table = {"query": [pair["query"] for pair in pairs], "positive": [pair["pos"] for pair in pairs]}
    return _hub_data_set(folder, "dev", table)


def tiny_msmarco_corpus(folder, pairs):
    """Save all positives laid out like `namespace-Pt/msmarco-corpus`: split `train`, one column `content`."""
    return _hub_data_set(folder, "train", {"content": sorted({text for pair in pairs for text in pair["pos"]})})


def _hub_data_set(folder, split, table):
    """One Parquet file, and a README whose head says which split it holds."""
    data = Path(folder) / "data"
    data.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(pyarrow.table(table), data / f"{split}-00000-of-00001.parquet")
    head = f"configs:\n- config_name: default\n  data_files:\n  - split: {split}\n    path: data/{split}-*\n"
    (Path(folder) / "README.md").write_text(f"---\n{head}---\n")
    return Path(folder)
