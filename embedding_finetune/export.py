"""A finished model folder that FlagEmbedding, sentence-transformers and plain transformers read alike.

    python -m embedding_finetune.export FOLDER --pooling cls --query_instruction "..."

completes, in place, a folder that FlagEmbedding's own trainer left (it lacks the files sentence-transformers needs).
"""

import argparse
import os
import shutil
from pathlib import Path

import torch
import transformers

from embedding_finetune.files import ExperimentError, atomic_write, run_command_line, write_json

METRICS_HEADING = "## Metrics"  # what stands below it is the evaluation's to replace
SAMPLES = ("how far is the moon", "what is a dot product?", "The Moon circles the Earth at a mean distance of 384,400 kilometres.",
           "The dot product of two vectors is the sum of the products of their entries. " * 8)


def export(model, tokenizer, folder, *, pooling="cls", normalize=True, query_instruction=None, query_format="{}{}",
           passage_instruction=None, passage_format="{}{}", query_max_length=512, passage_max_length=512, card=None, curve=()):
    """Write model (transformers' PreTrainedModel) and tokenizer as a finished folder, once it has passed the parity check.

    `card` (name -> value) and `curve` (rows with step, recall@10, mrr@10) go into the model card. The weights are moved
    into `folder` last: a folder without them was never finished. Raises ExperimentError when the three libraries disagree.
    """
    folder = Path(folder)
    partial = folder / ".export.partial"
    try:
        shutil.rmtree(partial, ignore_errors=True)
        model.save_pretrained(partial)
        tokenizer.save_pretrained(partial)
        prompts = {"query": _prefix(query_instruction, query_format), "document": _prefix(passage_instruction, passage_format)}
        _write_sentence_transformers_files(partial, model.config.hidden_size, pooling, normalize, passage_max_length, prompts)
        (partial / "README.md").write_text(_model_card(folder.name.split(".")[0], pooling, normalize, prompts["query"], query_max_length,
                                                       passage_max_length, card or {}, curve), encoding="utf-8")
        worst = check_parity(partial, pooling=pooling, normalize=normalize, query_instruction=query_instruction,
                             query_format=query_format, max_length=passage_max_length)
        for file in sorted(partial.iterdir(), key=lambda file: file.suffix == ".safetensors"):
            if (folder / file.name).is_dir():
                shutil.rmtree(folder / file.name)
            os.replace(file, folder / file.name)
    except OSError as error:
        raise ExperimentError(f"cannot write the model to {folder}: {error}; free some space and run the same command again") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return worst


def write_metrics(folder, metrics):
    """Put measured metrics (name -> value) into the model card of a finished folder, in the place of earlier ones."""
    card = Path(folder) / "README.md"
    table = "\n".join(["| metric | value |", "|---|---|", *(f"| {name} | {value:.4f} |" for name, value in metrics.items())])
    before, _, after = card.read_text(encoding="utf-8").partition(METRICS_HEADING)
    with atomic_write(card) as file:
        file.write(f"{before}{METRICS_HEADING}\n\n{table}\n\n{after[after.index('## '):]}")


def _prefix(instruction, template):
    """What sentence-transformers has to put before a text; raises ExperimentError if the template is no prefix."""
    if not instruction:
        return ""
    text = template.format(instruction, "\0")
    if not text.endswith("\0"):
        raise ExperimentError(f"the format {template!r} does not end with the text: sentence-transformers knows prefixes only")
    return text[:-1]


def _write_sentence_transformers_files(folder, dim, pooling, normalize, max_length, prompts):
    # In the layout that every version since 2.2 reads; the present version would write class paths only it knows.
    modules = [("", "Transformer"), ("1_Pooling", "Pooling")] + [("2_Normalize", "Normalize")] * normalize
    write_json(folder / "modules.json", [{"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{name}"}
                                         for i, (path, name) in enumerate(modules)])
    write_json(folder / "sentence_bert_config.json", {"max_seq_length": max_length, "do_lower_case": False})
    modes = {"cls": "pooling_mode_cls_token", "mean": "pooling_mode_mean_tokens", "last_token": "pooling_mode_lasttoken"}
    write_json(folder / "1_Pooling" / "config.json",
               {"word_embedding_dimension": dim, **{name: mode == pooling for mode, name in modes.items()}, "include_prompt": True})
    if normalize:
        (folder / "2_Normalize").mkdir()
    write_json(folder / "config_sentence_transformers.json",
               {"prompts": prompts, "default_prompt_name": None, "similarity_fn_name": "cosine" if normalize else "dot"})


def check_parity(folder, *, pooling, normalize, query_instruction, query_format, max_length, texts=SAMPLES):
    """Lowest cosine between the three libraries' vectors of queries and passages; raises ExperimentError below 0.9999."""
    from FlagEmbedding.inference.embedder.encoder_only.base import BaseEmbedder
    from sentence_transformers import SentenceTransformer

    texts = list(texts)
    flag = BaseEmbedder(str(folder), pooling_method=pooling, normalize_embeddings=normalize, use_fp16=False, devices=["cpu"],
                        query_instruction_for_retrieval=query_instruction, query_instruction_format=query_format,
                        query_max_length=max_length, passage_max_length=max_length)
    sentence = SentenceTransformer(str(folder), device="cpu")
    tokenizer, encoder = transformers.AutoTokenizer.from_pretrained(folder), transformers.AutoModel.from_pretrained(folder).eval()

    @torch.inference_mode()
    def plain(texts):
        inputs = tokenizer(texts, padding=True, truncation=True, max_length=max_length, return_tensors="pt")
        hidden, mask = encoder(**inputs).last_hidden_state.float(), inputs["attention_mask"].unsqueeze(-1)
        if pooling == "cls":
            return hidden[:, 0]
        if pooling == "mean":
            return (hidden * mask).sum(1) / mask.sum(1)
        return hidden[torch.arange(len(texts)), mask.squeeze(-1).cumsum(1).argmax(1)]

    instructed = [query_format.format(query_instruction, text) if query_instruction else text for text in texts]
    options = {"show_progress_bar": False}
    worst = 1.0
    for kind, vectors in {
        "query": (flag.encode_queries(texts), sentence.encode_query(texts, **options), plain(instructed)),
        "passage": (flag.encode_corpus(texts), sentence.encode(texts, **options), plain(texts)),
    }.items():
        vectors = [torch.nn.functional.normalize(torch.as_tensor(v).float(), dim=-1) for v in vectors]
        for library, other in zip(("sentence-transformers", "transformers"), vectors[1:], strict=True):
            cosine = (vectors[0] * other).sum(-1).min().item()
            if not cosine >= 0.9999:
                raise ExperimentError(f"parity check of {folder}: {kind} vectors of FlagEmbedding and {library} agree only to a cosine "
                                      f"of {cosine:.4f}; the model was not exported")
            worst = min(worst, cosine)
    return worst


def _model_card(name, pooling, normalize, prompt, query_max_length, passage_max_length, card, curve):
    table = "\n".join(f"| {row['step']} | {row['recall@10']:.4f} | {row['mrr@10']:.4f} |" for row in curve)
    settings = "\n".join(f"| {key} | {value if isinstance(value, str | int | float) else repr(value)} |" for key, value in card.items())
    return f"""---
library_name: sentence-transformers
pipeline_tag: sentence-similarity
tags: [sentence-transformers, feature-extraction, dense-retrieval, FlagEmbedding]
---

# {name}

An embedding model for retrieval: {pooling} pooling{", normalised vectors" if normalize else ""}. Queries carry the instruction
`{prompt}`; passages carry none. Trained with queries of up to {query_max_length} and passages of up to {passage_max_length} tokens.

## How to use

```python
from FlagEmbedding.inference.embedder.encoder_only.base import BaseEmbedder
model = BaseEmbedder(PATH, pooling_method={pooling!r}, normalize_embeddings={normalize}, query_instruction_for_retrieval={prompt!r},
                     query_max_length={query_max_length}, passage_max_length={passage_max_length})
scores = model.encode_queries(["a query"]) @ model.encode_corpus(["a passage"]).T
```

```python
from sentence_transformers import SentenceTransformer
model = SentenceTransformer(PATH)                       # knows pooling, normalisation and the instruction
scores = model.encode_query(["a query"]) @ model.encode(["a passage"]).T
```

```python
from transformers import AutoModel, AutoTokenizer
tokenizer, model = AutoTokenizer.from_pretrained(PATH), AutoModel.from_pretrained(PATH)
inputs = tokenizer([{prompt!r} + "a query"], padding=True, truncation=True, max_length={query_max_length}, return_tensors="pt")
hidden = model(**inputs).last_hidden_state              # then {pooling} pooling{" and normalisation to length 1" if normalize else ""}
```

The three give the same vectors (cosine at least 0.9999), checked when the model was written.

{METRICS_HEADING}

Not evaluated yet.

## Dev curve

{"| step | recall@10 | mrr@10 |" + chr(10) + "|---|---|---|" + chr(10) + table if curve else "No dev set was given."}

## Training

| setting | value |
|---|---|
{settings}
"""


def _main():
    parser = argparse.ArgumentParser(description="Complete a folder that FlagEmbedding's trainer left, in place.")
    parser.add_argument("folder")
    parser.add_argument("--pooling", default="cls", choices=["cls", "mean", "last_token"])
    parser.add_argument("--no_normalize", action="store_true")
    parser.add_argument("--query_instruction")
    parser.add_argument("--query_format", default="{}{}")
    parser.add_argument("--query_max_length", type=int, default=512)
    parser.add_argument("--passage_max_length", type=int, default=512)
    options = vars(parser.parse_args())
    folder = options.pop("folder")
    try:
        model, tokenizer = transformers.AutoModel.from_pretrained(folder), transformers.AutoTokenizer.from_pretrained(folder)
    except (OSError, ValueError) as error:
        raise ExperimentError(f"cannot load a model from {folder}: {str(error).splitlines()[0]}") from None
    worst = export(model, tokenizer, folder, normalize=not options.pop("no_normalize"), **options)
    print(f"{folder} reads alike in FlagEmbedding, sentence-transformers and transformers (lowest cosine {worst:.6f})")


if __name__ == "__main__":
    run_command_line(_main)
