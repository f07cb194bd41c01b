"""The model card of a finished model: usage with three libraries, metrics, and training settings."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

from embedding_finetune.files import atomic_write, reading
from embedding_finetune.hub import ENCODER_HALF
from embedding_finetune.models.encoder_config import EncoderConfig
from embedding_finetune.models.flagembedding import unread_by_flagembedding

METRICS_HEADING = "## Metrics"  # the section below it is replaced by the evaluation
CARD = """---
library_name: sentence-transformers
pipeline_tag: sentence-similarity
tags: [sentence-transformers, feature-extraction, dense-retrieval, FlagEmbedding]
---

# {name}

An embedding model for retrieval: {pooling} pooling, {vectors}. {prompts}. Queries are truncated to
{query_max_len} tokens, passages to {passage_max_len} tokens. {libraries} give the same embeddings
(cosine at least 0.9999, checked at export).

```python
from sentence_transformers import SentenceTransformer
model = SentenceTransformer(PATH{trust})                       # reads pooling, normalization, prompts and lengths
scores = model.encode_query(["a query"]) @ model.encode_document(["a passage"]).T
```

{truncated}{flagembedding}

```python
from transformers import {auto}, AutoTokenizer
tokenizer, model = AutoTokenizer.from_pretrained(PATH{trust}), {auto}.from_pretrained(PATH{trust})
inputs = tokenizer([{query_prompt!r} + "a query"], padding=True, truncation=True, max_length={query_max_len},
                   return_tensors="pt")
hidden = model(**inputs).last_hidden_state              # then {pooling} pooling{layers}, and L2 normalization if set
```

{metrics_heading}

Not evaluated yet.

## Dev curve

{curve}

## Training

{settings}
"""
TRUNCATED = """Trained with Matryoshka representation learning (arXiv 2205.13147): embeddings can be truncated to their
first {sizes} dimensions and normalized again, with `SentenceTransformer(PATH{trust}, truncate_dim={first})` and
`normalize_embeddings=True` in `encode`.

"""
FLAGEMBEDDING = """```python
from FlagEmbedding import FlagModel
model = FlagModel(PATH, pooling_method={pooling!r}, normalize_embeddings={normalize},
                  query_instruction_for_retrieval={query_prompt!r},
                  query_max_length={query_max_len}, passage_max_length={passage_max_len}{trust})
scores = model.encode_queries(["a query"]) @ model.encode_corpus([{passage_prompt!r} + "a passage"]).T
```"""


def model_card(name: str, config: EncoderConfig, model_type: str, card: Mapping, curve: Sequence[Mapping]) -> str:
    """README.md of a model. `card` (name -> value) are the training settings, `curve` (rows with step, recall@10,
    mrr@10) the dev metrics during training.
    """
    unread, layers = unread_by_flagembedding(config, model_type), " and ".join(config.dense.split())
    sizes = str(card.get("MATRYOSHKA_DIMS", "")).split()
    words = dataclasses.asdict(config) | {"name": name, "trust": ", trust_remote_code=True" if config.trusted else ""}
    prompts = "; ".join(f"the {kind} prompt is {prompt!r}" if prompt else f"{kind} texts have no prompt"
                        for kind, prompt in (("query", config.query_prompt), ("passage", config.passage_prompt)))
    rows = [(row["step"], f"{row['recall@10']:.4f}", f"{row['mrr@10']:.4f}") for row in curve]
    return CARD.format(
        **words, auto="AutoModelForTextEncoding" if model_type in ENCODER_HALF else "AutoModel",
        libraries=f"{'' if unread else 'FlagEmbedding, '}sentence-transformers and plain transformers",
        flagembedding=f"FlagEmbedding's FlagModel does not support this model: {unread}." if unread
        else FLAGEMBEDDING.format(**words),
        truncated=TRUNCATED.format(**words, sizes=" or ".join(sizes), first=sizes[0]) if sizes else "",
        layers=f", the layers in {layers} (sentence-transformers' Dense)" if layers else "",
        prompts=prompts[0].upper() + prompts[1:],
        metrics_heading=METRICS_HEADING,
        vectors="vectors of length 1, compared by cosine" if config.normalize else "vectors compared by dot product",
        curve=_table("step", "recall@10", "mrr@10", rows) if curve else "No dev set was given.",
        settings=_table("setting", "value", list(card.items())))


def write_metrics(folder: str | Path, metrics: Mapping[str, float], note: str = "") -> None:
    """Write metrics (name -> value) and a note into the model card of a finished folder, replacing earlier ones."""
    card = Path(folder) / "README.md"
    with reading(card):
        before, _, after = card.read_text(encoding="utf-8").partition(METRICS_HEADING)
    _, heading, rest = after.partition("\n## ")  # empty if the card was shortened by hand
    table = _table("metric", "value", [(name, f"{value:.4f}") for name, value in metrics.items()])
    table += f"\n\n{note}" if note else ""
    with atomic_write(card) as file:
        file.write(f"{before}{METRICS_HEADING}\n\n{table}\n{heading}{rest}")


def _table(*columns_and_rows):
    *columns, rows = columns_and_rows
    return "\n".join("| " + " | ".join(map(str, row)) + " |" for row in [columns, ["---"] * len(columns), *rows])
