"""The model card of a finished model: usage with three libraries, metrics, and training settings."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

from embedding_finetune.files import atomic_write, reading
from embedding_finetune.hub import ENCODER_HALF
from embedding_finetune.models.encoder_config import EncoderConfig
from embedding_finetune.models.flagembedding import unread_by_flagembedding

METRICS_HEADING = "## Metrics"  # the section below it is replaced by the evaluation
# The card, and two of its sections, which depend on the model.
CARD, TRUNCATED, FLAGEMBEDDING = Path(__file__).with_suffix(".md").read_text(encoding="utf-8").split("%%\n")


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
        else FLAGEMBEDDING.format(**words).rstrip(),
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
