"""Training files, one a recipe, made anew only when something changed.

In DATA_DIR, beside the passages that all recipes share (see store):

    training_LABEL.arrow      the rows that our trainer reads
    training_LABEL.json       the same for FlagEmbedding, with all texts; TRAINING_EXPORT=no leaves it out
    training_LABEL.made.json  what they were made of, where mined negatives came from, and a hash of each file's content
"""

import numpy as np

from embedding_finetune.artifacts.manifest import read_checksummed, write_checksummed
from embedding_finetune.data.collection import data_identity
from embedding_finetune.data.leakage import check_leakage
from embedding_finetune.data.negatives import add_predefined, negative_candidates, sample_random
from embedding_finetune.data.row_store import PASSAGES, read_rows, write_for_flagembedding, write_passages, write_rows
from embedding_finetune.deprecation import rename_recipe
from embedding_finetune.files import sha256
from embedding_finetune.models.encoder_config import base_encoder_config, identity_of


def training_path(settings, recipe):
    """The training file of a recipe."""
    return export_path(settings, recipe).with_suffix(".arrow")


def export_path(settings, recipe):
    """The same in FlagEmbedding's format."""
    return settings.data_dir / recipe.file


def make_training_file(settings, recipe, collection, miner=None):
    """Write the training file of a recipe, unless today's data, recipe and models have made the one that is there; and
    with TRAINING_EXPORT the same for FlagEmbedding.

    `collection` is the experiment's, of which only the train part is used. Mined negatives and a teacher's scores come
    from `miner` (see mining.Miner), which is needed only for them. A recipe's `share` keeps that
    part of the rows as they are: negatives still come from all training passages, since a corpus costs no judgements.
    Returns the share of the negatives by where they came from.
    Raises UserError when the training part is too small, or when something leaked.
    """
    path, export = training_path(settings, recipe), export_path(settings, recipe)
    record_path = path.with_suffix(".made.json")
    made_of = {"data": data_identity(settings), "near_duplicates_together": settings.group_near_duplicates,
               "recipe": recipe.data, "seed": settings.seed}
    made_of |= {"models": miner.revision()} if miner else {}
    record, written = read_checksummed(record_path, having={"sources": dict}) or {}, []
    if _identity(record.get("made_of", {})) != made_of or record.get("files") != _hashes(path):
        sources = _write(settings, recipe, path, negative_candidates(collection, settings.group_near_duplicates), miner)
        record, written = {"made_of": made_of, "sources": sources, "files": _hashes(path)}, [path.name]
    if settings.training_export and (not export.exists() or record.get("export") != sha256(export)):
        write_for_flagembedding(export, read_rows([path], bool(recipe.teacher)), base_encoder_config(settings).query_prompt)
        record, written = record | {"export": sha256(export)}, [*written, export.name]
    if written:
        check_leakage(settings, collection, written)
        write_checksummed(record_path, record)
    if "export" not in record and export.exists():  # it has other rows
        export.unlink()
    return record["sources"]


def _identity(made_of):
    """What a file was made of, without what is only said of the models (see mining.Miner.content), which earlier
    versions recorded, too."""
    if "recipe" in made_of:
        made_of = made_of | {"recipe": rename_recipe(made_of["recipe"])}
    if "models" not in made_of:
        return made_of
    how, *contents = made_of["models"]
    return made_of | {"models": [[*map(identity_of, how)], *contents]}


def _hashes(path):
    return {file.name: sha256(file) for file in (path, path.with_name(PASSAGES)) if file.exists()}


def _write(settings, recipe, path, pool, miner):
    """Choose the negatives and write the file and the passages; returns the share of each source."""
    if recipe.negatives == "mined":
        chosen, by = miner.mine(pool)
    else:
        taken = [answers + others if others else answers for answers, others in zip(pool.positives, pool.negatives)]
        # A list, so that neg10 and neg50 differ by more than their length.
        chosen = sample_random(taken, pool.num_eligible, recipe.num_negatives, seed=[settings.seed, recipe.num_negatives])
        by = {"random": np.ones(chosen.shape, dtype=bool)}
    chosen, given = add_predefined(pool, chosen)
    drawn = ~np.sort(given, axis=1)  # what was chosen for a place
    by = ({"with the data": given} if given.any() else {}) | {name: where & drawn for name, where in by.items()}
    scores = miner.scores(pool, chosen) if recipe.teacher else None
    kept = pool.train.queries if recipe.train_fraction == 1 else sample_fraction(pool.train.queries, recipe.train_fraction, settings.seed)
    rows = (row for row in training_rows(pool, chosen, scores) if row["id"] in kept)
    write_rows(path, rows, write_passages(path.with_name(PASSAGES), pool.texts()), bool(recipe.teacher))
    return {name: float(where.mean()) for name, where in by.items()}


def sample_fraction(queries, share, seed):
    """A seeded sample of ids, a set: the first of one random order, so that a larger share has all of a smaller one."""
    ids = list(queries)
    order = np.random.default_rng(seed).permutation(len(ids))
    return {ids[place] for place in order[:max(1, round(share * len(ids)))]}


def training_rows(pool, chosen, scores):
    """Yield the row of each query of a Pool as write_rows takes it, its negatives being its row of `chosen`.

    `scores` yields for each query those of its positives and its negatives, or is None.
    """
    for (query, text), positives, negatives in zip(pool.train.queries.items(), pool.positives, chosen, strict=True):
        row = {"id": query, "query": text, "pos": positives, "neg": negatives}
        if scores is not None:
            given = next(scores)
            row |= {"pos_scores": given[:len(positives)], "neg_scores": given[len(positives):]}
        yield row
