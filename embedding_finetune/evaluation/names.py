"""How systems are called in tables, plots and sentences, and the baseline that a fine-tuned model is compared with."""

from collections.abc import Sequence


def with_names(results: Sequence[dict]) -> list[dict]:
    """The results with `name`: the label and, for a model that is not used as it was published, how it is used.

    Such as "hybrid_raw (CLS pooling, 96 tokens, not as published)". A fusion or a reranked system is called after each
    of its models.
    """
    uses = {result["label"]: result.get("unpublished") for result in results}
    named = []
    for result in results:
        system = result["system"]
        parts = dict.fromkeys(uses.get(system[role]) for role in ("retriever", "reranker_model") if system.get(role))
        note = "; ".join(filter(None, parts))
        named.append(result | {"name": f"{result['label']} ({note}, not as published)" if note else result["label"]})
    return named


def name_of(row: dict) -> str:
    """The name of a row of the comparison (see with_names)."""
    return row.get("name", row["label"])


def baseline(rows: Sequence[dict]) -> dict | None:
    """The row of BASE_MODEL before fine-tuning, as published if it was evaluated like that; None without `raw`.

    As published, it may be `raw`, `reference` or one of EXTRA_MODELS: it has the same weights.
    """
    by_label = {row["label"]: row for row in rows}
    raw = by_label.get("raw")
    if raw is None or not raw.get("unpublished"):
        return raw
    weights = _weights(raw)
    same = (row for row in rows if weights and _weights(row) == weights and "unpublished" in row)
    return next((row for row in same if not row["unpublished"] and "recipe" not in row), raw)


def _weights(row):
    """What identifies the weights of a result of a model alone; None for other systems."""
    return row.get("inputs", {}).get("models", {}).get(row["label"], {}).get("revision")
