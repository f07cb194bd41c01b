"""Training files, one per recipe, made again only when their inputs have changed.

In DATA_DIR, next to the passages that all recipes share (see data.row_store):

    training_LABEL.arrow      the rows that this package's trainer reads
    training_LABEL.json       the same for FlagEmbedding, with all texts; not written with TRAINING_EXPORT=no
    training_LABEL.made.json  their record: inputs, hashes of the files, and the sources of the negatives
"""

from collections.abc import Iterable, Iterator
from itertools import takewhile
from pathlib import Path
from typing import Any

import numpy as np

from embedding_finetune.artifacts.manifest import file_hashes, read_record, write_record
from embedding_finetune.artifacts.provenance import stale_reason
from embedding_finetune.data.collection import Collection, data_identity
from embedding_finetune.data.leakage import check_leakage
from embedding_finetune.data.negatives import (
    NegativeCandidates,
    Seed,
    add_predefined,
    most_negatives,
    negative_candidates,
    sample_random,
)
from embedding_finetune.data.row_store import PASSAGES, read_rows, write_for_flagembedding, write_passages, write_rows
from embedding_finetune.files import sha256
from embedding_finetune.models.encoder_config import base_encoder_config
from embedding_finetune.recipes import Recipe, find_recipe, trained_labels
from embedding_finetune.settings import Settings


def training_path(settings: Settings, recipe: Recipe) -> Path:
    """Path of the training file of a recipe."""
    return export_path(settings, recipe).with_suffix(".arrow")


def export_path(settings: Settings, recipe: Recipe) -> Path:
    """Path of the training file in FlagEmbedding's format."""
    return settings.paths.data / recipe.file


def make_training_file(settings: Settings, recipe: Recipe, collection: Collection,
                       miner: Any = None) -> dict[str, float]:
    """Write the training file of a recipe, unless it is current; with TRAINING_EXPORT also in FlagEmbedding's format.

    Only the train split of `collection` is used. `miner` (see mining.Miner) is needed only for mined negatives and
    teacher scores. `train_fraction` of a recipe keeps that fraction of the rows unchanged. Negatives still come from
    all training passages, since a corpus needs no relevance judgements. Returns {source: fraction of the negatives}.
    Raises UserError if the train split is too small or the leakage check fails.
    """
    path, export = training_path(settings, recipe), export_path(settings, recipe)
    record_path, files = path.with_suffix(".made.json"), (path.name, PASSAGES)
    inputs = {"data": data_identity(settings), "near_duplicates_together": settings.group_near_duplicates,
              "recipe": recipe.data, "seed": settings.seed} | (miner.inputs() if miner else {})
    record, changed = read_record(record_path), False
    if record and not stale_reason(record["inputs"], inputs) and record["files"] == file_hashes(path.parent, files):
        found: dict[str, Any] = {name: record[name] for name in ("sources", "export") if name in record}
    else:
        pool = negative_candidates(collection, settings.group_near_duplicates)
        found, changed = {"sources": _write(settings, recipe, path, pool, miner)}, True
        check_leakage(settings, collection, [path.name])
    if settings.training_export and (not export.exists() or found.get("export") != sha256(export)):
        write_for_flagembedding(export, read_rows(path, bool(recipe.teacher)),
                                base_encoder_config(settings).query_prompt)
        found["export"], changed = sha256(export), True
    if changed:
        write_record(record_path, inputs, files, **found)
    if "export" not in found:  # an existing one was made from other rows
        export.unlink(missing_ok=True)
    return found["sources"]


def same_as_earlier(settings: Settings, label: str) -> str | None:
    """The recipe of `make run` that has as many random negatives per query as a later one, `label`, which asks for more
    than there are, and that differs from it in nothing else; None if there is none.
    """
    recipe = find_recipe(settings, label)
    if recipe.negatives != "random" or recipe.merge:
        return None
    for earlier in (find_recipe(settings, other) for other in takewhile(label.__ne__, trained_labels(settings))):
        counts = [len(read_rows(path).value("neg", 0)) for one in (earlier, recipe)
                  if (path := training_path(settings, one)).is_file()]
        if (len(counts) == 2 and counts[0] == counts[1] and recipe.num_negatives > earlier.num_negatives
                and recipe.data == earlier.data | {"num_negatives": recipe.num_negatives}
                and (recipe.settings, recipe.kind) == (earlier.settings, earlier.kind)):
            return earlier.label
    return None


def _write(settings, recipe, path, pool, miner):
    """Select the negatives and write the rows and passages; returns {source: fraction of the negatives}."""
    if recipe.negatives == "mined":
        chosen, by = miner.mine(pool)
    else:
        excluded = pool.excluded()
        number = min(recipe.num_negatives, most_negatives(excluded, pool.num_eligible))
        if 0 < number < recipe.num_negatives:
            print(f"{path.name}: {number} negatives per query, not {recipe.num_negatives}: the training split has no "
                  "more passages for every query")
        # num_negatives is part of the seed, so that the negatives of neg10 are not a prefix of those of neg50.
        chosen = sample_random(excluded, pool.num_eligible, max(1, number), seed=settings.rng(recipe.num_negatives))
        by = {"random": np.ones(chosen.shape, dtype=bool)}
    chosen, given = add_predefined(pool, chosen)
    drawn = ~np.sort(given, axis=1)  # places that were not filled by predefined negatives
    by = ({"with the data": given} if given.any() else {}) | {name: where & drawn for name, where in by.items()}
    scores = miner.scores(pool, chosen) if recipe.teacher else None
    kept = pool.train.queries
    if recipe.train_fraction != 1:
        kept = sample_fraction(pool.train.queries, recipe.train_fraction, settings.rng())
    rows = (row for row in training_rows(pool, chosen, scores) if row["id"] in kept)
    write_rows(path, rows, write_passages(path.with_name(PASSAGES), pool.texts()), bool(recipe.teacher))
    return {name: float(where.mean()) for name, where in by.items()}


def sample_fraction(queries: Iterable[str], fraction: float, seed: Seed) -> set[str]:
    """Seeded sample of query ids. Samples are nested: a larger fraction contains a smaller one."""
    ids = list(queries)
    order = np.random.default_rng(seed).permutation(len(ids))
    return {ids[place] for place in order[:max(1, round(fraction * len(ids)))]}


def training_rows(pool: NegativeCandidates, chosen: np.ndarray,
                  scores: Iterator[list[float]] | None) -> Iterator[dict[str, Any]]:
    """Yield a row per training query of a NegativeCandidates `pool` for write_rows; `chosen` holds its negatives.

    `scores` is None or yields, per query, the teacher's scores of its positives and then of its negatives.
    """
    for (query, text), positives, negatives in zip(pool.train.queries.items(), pool.positives, chosen, strict=True):
        row = {"id": query, "query": text, "pos": positives, "neg": negatives}
        if scores is not None:
            given = next(scores)
            row |= {"pos_scores": given[:len(positives)], "neg_scores": given[len(positives):]}
        yield row
