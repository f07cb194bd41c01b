"""The card of a finished model: how three libraries read it, what was measured, and how it was trained."""

import dataclasses
from pathlib import Path

from embedding_finetune.files import atomic_write, reading
from embedding_finetune.hub import ENCODER_HALF

METRICS_HEADING = "## Metrics"  # what stands below it is the evaluation's to replace
CARD = """---
library_name: sentence-transformers
pipeline_tag: sentence-similarity
tags: [sentence-transformers, feature-extraction, dense-retrieval, FlagEmbedding]
---

# {name}

An embedding model for retrieval: {pooling} pooling, {vectors}. {prompts}. Queries are cut at {query_max_len} tokens,
passages at {passage_max_len}. {libraries} give the same vectors (cosine at least 0.9999), checked when the model was
written.

```python
from sentence_transformers import SentenceTransformer
model = SentenceTransformer(PATH{trust})                       # knows pooling, normalisation, prompts and lengths
scores = model.encode_query(["a query"]) @ model.encode_document(["a passage"]).T
```

{truncated}{flagembedding}

```python
from transformers import {auto}, AutoTokenizer
tokenizer, model = AutoTokenizer.from_pretrained(PATH{trust}), {auto}.from_pretrained(PATH{trust})
inputs = tokenizer([{query_prompt!r} + "a query"], padding=True, truncation=True, max_length={query_max_len},
                   return_tensors="pt")
hidden = model(**inputs).last_hidden_state              # then {pooling} pooling{layers}, and length 1 if normalised
```

{metrics_heading}

Not evaluated yet.

## Dev curve

{curve}

## Training

{settings}
"""
TRUNCATED = """Its first {sizes} numbers alone, scaled to length 1 again, were trained as vectors, too (Matryoshka,
arXiv 2205.13147): `SentenceTransformer(PATH{trust}, truncate_dim={first})`, and `normalize_embeddings=True` where it
encodes.

"""
FLAGEMBEDDING = """```python
from FlagEmbedding import FlagModel
model = FlagModel(PATH, pooling_method={pooling!r}, normalize_embeddings={normalize},
                  query_instruction_for_retrieval={query_prompt!r},
                  query_max_length={query_max_len}, passage_max_length={passage_max_len}{trust})
scores = model.encode_queries(["a query"]) @ model.encode_corpus([{passage_prompt!r} + "a passage"]).T
```"""


def unread_by_flagembedding(config, model_type):
    """Why FlagEmbedding's FlagModel cannot give the vectors of a model of this use and type; "" where it can."""
    reasons = {"it pools by cls or mean alone": config.pooling == "last_token", "it knows no Dense layers": config.dense,
               "it takes the encoder with its decoder": model_type in ENCODER_HALF}
    return " and ".join(reason for reason, holds in reasons.items() if holds)


def model_card(name, config, model_type, card, curve):
    """README.md of a model of this name, ModelUse and type; `card` (name -> value) says how it was trained, and `curve`
    (rows with step, recall@10, mrr@10) how that went on dev."""
    unread, layers = unread_by_flagembedding(config, model_type), " and ".join(config.dense.split())
    sizes = str(card.get("MATRYOSHKA_DIMS", "")).split()
    words = dataclasses.asdict(config) | {"name": name, "trust": ", trust_remote_code=True" * config.trusted}
    prompts = "; ".join(f"before each {kind} stands {prompt!r}" if prompt else f"{kind} texts carry no prompt"
                        for kind, prompt in (("query", config.query_prompt), ("passage", config.passage_prompt)))
    rows = [(row["step"], f"{row['recall@10']:.4f}", f"{row['mrr@10']:.4f}") for row in curve]
    return CARD.format(
        **words, auto="AutoModelForTextEncoding" if model_type in ENCODER_HALF else "AutoModel",
        libraries=f"{'' if unread else 'FlagEmbedding, '}sentence-transformers and plain transformers",
        flagembedding=f"FlagEmbedding's FlagModel cannot: {unread}." if unread else FLAGEMBEDDING.format(**words),
        truncated=TRUNCATED.format(**words, sizes=" or ".join(sizes), first=sizes[0]) if sizes else "",
        layers=f", the layers in {layers} (sentence-transformers' Dense)" * bool(layers),
        prompts=prompts[0].upper() + prompts[1:],
        metrics_heading=METRICS_HEADING,
        vectors="vectors of length 1, compared by cosine" if config.normalize else "vectors compared by dot product",
        curve=_table("step", "recall@10", "mrr@10", rows) if curve else "No dev set was given.",
        settings=_table("setting", "value", list(card.items())))


def write_metrics(folder, metrics, note=""):
    """Put measured metrics (name -> value) and a note on them into the model card of a finished folder, in the place of
    earlier ones."""
    card = Path(folder) / "README.md"
    with reading(card):
        before, _, after = card.read_text(encoding="utf-8").partition(METRICS_HEADING)
    _, heading, rest = after.partition("\n## ")  # nothing follows in a card that somebody has shortened
    table = _table("metric", "value", [(name, f"{value:.4f}") for name, value in metrics.items()])
    table += f"\n\n{note}" if note else ""
    with atomic_write(card) as file:
        file.write(f"{before}{METRICS_HEADING}\n\n{table}\n{heading}{rest}")


def _table(*columns_and_rows):
    *columns, rows = columns_and_rows
    return "\n".join("| " + " | ".join(map(str, row)) + " |" for row in [columns, ["---"] * len(columns), *rows])
