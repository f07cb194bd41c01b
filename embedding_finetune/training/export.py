"""Export of a finished model for sentence-transformers, transformers and, where possible, FlagEmbedding.

The encoder configuration (pooling, prompts, lengths) is stored in the sentence-transformers files, which is also where
the rest of this package reads it (see models.encoder_config).
"""

import dataclasses
from pathlib import Path

import torch

from embedding_finetune.artifacts.staging import staged_dir
from embedding_finetune.files import UserError, write_json
from embedding_finetune.hub import load
from embedding_finetune.models.encoder import pool
from embedding_finetune.models.flagembedding import flag_embedder
from embedding_finetune.models.modeling import DenseLayers, load_encoder
from embedding_finetune.training.export_multi_vector import SAMPLES, export_multi_vector
from embedding_finetune.training.model_card import model_card


def export(model, tokenizer, folder, config, *, dense=(), projection=None, expansion=0, card=None, curve=()):
    """Write model (a transformers PreTrainedModel) and tokenizer as a finished folder, after a parity check.

    `config` is an EncoderConfig, `dense` the modeling.DenseLayers of the model. `card` (name -> value) and `curve`
    (rows with step, recall@10, mrr@10) go into the model card. `projection` (DenseLayers, possibly empty) is given for
    multi-vector models: their MULTI_VECTOR_FOLDER is then written as well, with query `expansion` (see
    multi_vector.expand_queries). The weights are moved into `folder` last, so a folder without weights is incomplete.
    Returns the lowest cosine of the parity check; raises UserError if the libraries disagree.
    """
    folder, dense = Path(folder), DenseLayers(dense)
    config = dataclasses.replace(config, dense=dense.folders)
    with staged_dir(folder) as partial:
        model.save_pretrained(partial)
        tokenizer.padding_side = "right"  # as in training: left padding would shift the position ids
        tokenizer.save_pretrained(partial)
        dense.save(partial)
        write_encoder_config(partial, model.config.hidden_size, config)
        text = model_card(folder.name.split(".")[0], config, model.config.model_type, card or {}, curve)
        (partial / "README.md").write_text(text, encoding="utf-8")
        worst = check_parity(partial, config)
        if projection is not None:
            export_multi_vector(partial, config, projection, expansion)
    return worst


def complete(folder, config):
    """Turn the output of FlagEmbedding's trainer, which lacks the encoder configuration, into a finished folder."""
    model, _ = load_encoder(folder, trusted=config.trusted)
    return export(model, load("AutoTokenizer", folder, config.trusted), folder, config)


def write_encoder_config(folder, dim, config):
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


def check_parity(folder, config, texts=None):
    """Lowest cosine between the libraries' embeddings of queries and passages; raises UserError below 0.9999.

    FlagEmbedding is included if it supports the model (see models.flagembedding). The default texts include some
    that exceed both maximum lengths, so that truncation is compared as well.
    """
    from sentence_transformers import SentenceTransformer

    long = f"{SAMPLES[2]} " * (config.query_max_len // 8 + 1), f"{SAMPLES[1]} " * config.passage_max_len
    texts = list(texts or SAMPLES + long)
    sentence = SentenceTransformer(str(folder), device="cpu", trust_remote_code=config.trusted)
    tokenizer = load("AutoTokenizer", folder, config.trusted)
    encoder, dense = (part.eval() for part in load_encoder(folder, config.dense, config.trusted))
    flag = flag_embedder(dataclasses.replace(config, name=str(folder)))

    @torch.inference_mode()
    def plain(texts, length):
        inputs = tokenizer(texts, padding=True, truncation=True, max_length=length, return_tensors="pt")
        return dense(pool(encoder(**inputs).last_hidden_state, inputs["attention_mask"], config.pooling))

    passages, silent, worst = [config.passage_prompt + text for text in texts], {"show_progress_bar": False}, 1.0
    for kind, first, others in (
            ("query", plain([config.query_prompt + text for text in texts], config.query_max_len),
             {"sentence-transformers": sentence.encode_query(texts, **silent),
              "FlagEmbedding": flag and flag.encode_queries(texts)}),
            ("passage", plain(passages, config.passage_max_len),
             {"sentence-transformers": sentence.encode_document(texts, **silent),
              "FlagEmbedding": flag and flag.encode_corpus(passages)})):
        for name, vectors in others.items():
            if vectors is None:
                continue
            cosine = torch.cosine_similarity(first, torch.as_tensor(vectors).float(), dim=-1).min().item()
            if not cosine >= 0.9999:
                raise UserError(f"parity check of {folder}: {kind} embeddings of transformers and {name} have a "
                                f"cosine of only {cosine:.4f}; the model was not exported")
            worst = min(worst, cosine)
    return worst
