"""Export of a finished model for sentence-transformers, transformers and, where possible, FlagEmbedding.

The encoder configuration (pooling, prompts, lengths) is stored in the sentence-transformers files, which is also where
the rest of this package reads it (see models.encoder_config). Multi-vector models have a folder for
sentence-transformers' MultiVectorEncoder as well.
"""

import contextlib
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from embedding_finetune.artifacts.staging import staged_dir
from embedding_finetune.files import UserError, write_json
from embedding_finetune.hub import load
from embedding_finetune.models.encoder import Encoder, pooled_embeddings
from embedding_finetune.models.encoder_config import EncoderConfig
from embedding_finetune.models.flagembedding import flag_embedder
from embedding_finetune.models.modeling import DenseLayers, load_encoder
from embedding_finetune.models.multi_vector import MULTI_VECTOR_FOLDER, special_token_ids
from embedding_finetune.training.model_card import model_card

SAMPLES = ("how far is the moon", "what is a dot product?", "The Moon circles the Earth at a distance of 384,400 km.")


def export(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path, config: EncoderConfig, *,
           dense: Iterable[torch.nn.Module] = (), projection: DenseLayers | None = None, expansion: int = 0,
           card: Mapping | None = None, curve: Sequence[Mapping] = ()) -> float:
    """Write model (a transformers PreTrainedModel) and tokenizer as a finished folder, after a parity check.

    `dense` are the modeling.DenseLayers of the model. `card` (name -> value) and `curve` (rows with step, recall@10,
    mrr@10) go into the model card. `projection` (DenseLayers, possibly empty) is given for multi-vector models: their
    MULTI_VECTOR_FOLDER is then written as well, with query `expansion` (see multi_vector.expand_queries). The weights
    are moved into `folder` last, so a folder without weights is incomplete. Returns the lowest cosine of the parity
    check; raises UserError if the libraries disagree.
    """
    folder, dense = Path(folder), DenseLayers(dense)
    config = replace(config, dense=dense.folders)
    with staged_dir(folder) as partial:
        model.save_pretrained(partial)
        tokenizer.padding_side = "right"  # as in training: left padding would shift the position ids
        tokenizer.save_pretrained(partial)
        dense.save(partial)
        write_encoder_config(partial, model.config.hidden_size, config)
        if projection is not None:
            write_multi_vector(partial, config, projection, expansion)
        text = model_card(folder.name.split(".")[0], config, model.config.model_type, card or {}, curve)
        (partial / "README.md").write_text(text, encoding="utf-8")
        return check_parity(partial, config)


def complete(folder: Path, config: EncoderConfig) -> float:
    """Turn the output of FlagEmbedding's trainer, which lacks the encoder configuration, into a finished folder."""
    model, _ = load_encoder(folder, trusted=config.trusted)
    return export(model, load("AutoTokenizer", folder, config.trusted), folder, config)


def write_encoder_config(folder: Path, dim: int, config: EncoderConfig) -> None:
    """Write the sentence-transformers configuration files, in the layout that every version since 2.2 can read.

    The installed version would write class paths that older versions do not have.
    """
    kinds = {"": "Transformer", "1_Pooling": "Pooling"} | dict.fromkeys(config.dense.split(), "Dense")
    normalize = f"{len(kinds)}_Normalize"
    kinds |= {normalize: "Normalize"} if config.normalize else {}
    write_json(folder / "modules.json", [
        {"idx": number, "name": str(number), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for number, (path, kind) in enumerate(kinds.items())])
    lengths = {"max_seq_length": config.passage_max_len, "do_lower_case": False}
    if config.query_max_len != config.passage_max_len:  # read by sentence-transformers 6 and later
        lengths["query_length"] = config.query_max_len
    write_json(folder / "sentence_bert_config.json", lengths)
    modes = {"cls": "cls_token", "mean": "mean_tokens", "last_token": "lasttoken"}
    write_json(folder / "1_Pooling" / "config.json", {
        "word_embedding_dimension": dim, "include_prompt": True,
        **{f"pooling_mode_{mode}": method == config.pooling for method, mode in modes.items()}})
    if config.normalize:
        (folder / normalize).mkdir()
    write_json(folder / "config_sentence_transformers.json", {
        "prompts": {"query": config.query_prompt, "document": config.passage_prompt}, "default_prompt_name": None,
        "similarity_fn_name": "cosine" if config.normalize else "dot"})


def write_multi_vector(folder: Path, config: EncoderConfig, projection: DenseLayers, expansion: int = 0) -> None:
    """Write MULTI_VECTOR_FOLDER into the folder of an exported model; the weights are hard-linked where possible.

    `projection` are the DenseLayers of the token vectors, if any, and `expansion` is the number of tokens that queries
    are padded to (see multi_vector.expand_queries).
    """
    from sentence_transformers import MultiVectorEncoder
    from sentence_transformers.base.modules import Normalize, Transformer
    from sentence_transformers.multi_vector_encoder.modules import MultiVectorMask

    late, tokenizer = folder / MULTI_VECTOR_FOLDER, load("AutoTokenizer", folder, config.trusted)
    added = tokenizer.convert_ids_to_tokens(special_token_ids(tokenizer))
    kinds = "model_kwargs", "processor_kwargs", "config_kwargs"
    trust: dict[str, Any] = {kind: {"trust_remote_code": config.trusted} for kind in kinds}
    encoder = Transformer(str(folder), **trust, max_seq_length=config.passage_max_len,
                          query_length=config.query_max_len, document_length=config.passage_max_len, query_expansion={
                              "strategy": "min", "attend": True, "length": expansion} if expansion else None)
    MultiVectorEncoder(
        modules=[encoder, *projection, MultiVectorMask(added, skiplist_tasks=["query", "document"]),
                 Normalize(module_input_name="token_embeddings")],
        prompts={"query": config.query_prompt, "document": config.passage_prompt}, similarity_fn_name="meanmaxsim",
    ).save(str(late), create_model_card=False)
    for path in late.glob("*.safetensors"):  # the same weights as in the folder above
        link = path.with_suffix(".partial")
        with contextlib.suppress(OSError):  # some file systems have no hard links
            os.link(folder / path.name, link)
            os.replace(link, path)


def check_parity(folder: Path, config: EncoderConfig) -> float:
    """Lowest cosine between the libraries' embeddings of sample texts; raises UserError below 0.9999.

    FlagEmbedding is included if it supports the model (see models.flagembedding), and token vectors if the folder has
    them. Some texts exceed both maximum lengths, so that truncation is compared as well.
    """
    worst = 1.0
    for kind, library, ours, theirs in _embeddings(Path(folder), config):
        one, other = (torch.as_tensor(np.asarray(vectors), dtype=torch.float32) for vectors in (ours, theirs))
        cosine = torch.cosine_similarity(one, other, dim=-1).min().item() if one.shape == other.shape else -1.0
        if not cosine >= 0.9999:
            raise UserError(f"parity check of {folder}: {kind} embeddings of transformers and {library} have a cosine "
                            f"of only {cosine:.4f}; the model was not exported")
        worst = min(worst, cosine)
    return worst


@torch.inference_mode()
def _embeddings(folder, config):
    """Yield (kind of text, library, embeddings with transformers, embeddings with the library) of sample texts."""
    from sentence_transformers import MultiVectorEncoder, SentenceTransformer

    config, tokenizer = replace(config, name=str(folder)), load("AutoTokenizer", folder, config.trusted)
    encoder, dense = (part.eval() for part in load_encoder(folder, config.dense, config.trusted))
    sentence = SentenceTransformer(str(folder), device="cpu", trust_remote_code=config.trusted)
    flag = flag_embedder(config)
    texts = [*SAMPLES, f"{SAMPLES[2]} " * (config.query_max_len // 8 + 1), f"{SAMPLES[1]} " * config.passage_max_len]

    def plain(texts, length):
        inputs = tokenizer(texts, padding=True, truncation=True, max_length=length, return_tensors="pt")
        return pooled_embeddings(encoder(**inputs).last_hidden_state, dense, inputs["attention_mask"], config)

    queries = plain([config.query_prompt + text for text in texts], config.query_max_len)
    prompted = [config.passage_prompt + text for text in texts]
    passages = plain(prompted, config.passage_max_len)
    yield "query", "sentence-transformers", queries, sentence.encode_query(texts)
    yield "passage", "sentence-transformers", passages, sentence.encode_document(texts)
    if flag:
        yield "query", "FlagEmbedding", queries, flag.encode_queries(texts)
        yield "passage", "FlagEmbedding", passages, flag.encode_corpus(prompted)
    if (folder / MULTI_VECTOR_FOLDER).is_dir():
        ours, late = Encoder(config), str(folder / MULTI_VECTOR_FOLDER)
        late = MultiVectorEncoder(late, device="cpu", trust_remote_code=config.trusted)
        for kind, tokens, theirs in (
                ("query token", np.concatenate(ours.encode_query_tokens(texts)), late.encode_query(texts)),
                ("passage token", ours.encode_passage_tokens(texts)[0], late.encode_document(texts))):
            yield kind, "sentence-transformers", tokens, torch.cat(list(theirs))
