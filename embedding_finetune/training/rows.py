"""Training files: rows that FlagEmbedding trains on, one file a recipe, made anew only when something changed.

In DATA_DIR, for a recipe:

    training_LABEL.json       JSON lines of query, pos, neg, id and prompt; with a teacher pos_scores and neg_scores
    training_LABEL.made.json  what it was made of, where mined negatives came from, and a hash of its content
"""

import numpy as np

from embedding_finetune.data.collection import data_identity
from embedding_finetune.data.negatives import sample_random, training_pool, with_given
from embedding_finetune.files import UserError, content_hash, read_json, read_jsonl, sha256, write_json, write_jsonl
from embedding_finetune.retrieval.model_use import base_use
from embedding_finetune.training.audit import audit


def training_path(settings, recipe):
    """The training file of a recipe."""
    return settings.data_dir / recipe.file


def make_training_file(settings, recipe, collection, miner=None):
    """Write the training file of a recipe, unless today's data, recipe and models have made the one that is there.

    `collection` is the experiment's, of which only the train part is used. Mined negatives and a teacher's scores come
    from `miner` (see mining.Miner), which is needed only for them. A recipe's `share` keeps that
    part of the rows as they are: negatives still come from all training passages, since a corpus costs no judgements.
    Returns the share of the negatives by where they came from.
    Raises UserError when the training part is too small, or when something leaked.
    """
    path = training_path(settings, recipe)
    record_path = path.with_suffix(".made.json")
    made_of = {"data": data_identity(settings), "recipe": recipe.data, "seed": settings.seed}
    made_of |= {"models": miner.content()} if miner else {}
    record = read_json(record_path) or {}
    if record.get("made_of") == made_of and path.exists() and record["sha256"] == sha256(path):
        return record["sources"]
    sources = _write(settings, recipe, path, training_pool(collection, settings.near_duplicates_together), miner)
    audit(settings, collection, [recipe.file])
    write_json(record_path, {"made_of": made_of, "sources": sources, "sha256": sha256(path)})
    return sources


def _write(settings, recipe, path, pool, miner):
    """Choose the negatives and write the file; returns the share of each source."""
    if recipe.negatives == "mined":
        chosen, by = miner.mine(pool)
    else:
        taken = [answers + others if others else answers for answers, others in zip(pool.positives, pool.negatives)]
        # A list, so that neg10 and neg50 differ by more than their length.
        chosen = sample_random(taken, pool.drawn, recipe.number, seed=[settings.seed, recipe.number])
        by = {"random": np.ones(chosen.shape, dtype=bool)}
    chosen, given = with_given(pool, chosen)
    drawn = ~np.sort(given, axis=1)  # what was chosen for a place
    by = ({"with the data": given} if given.any() else {}) | {name: where & drawn for name, where in by.items()}
    scores = miner.scores(pool, chosen) if recipe.teacher else None
    kept = pool.train.queries if recipe.share == 1 else sample_share(pool.train.queries, recipe.share, settings.seed)
    rows = training_rows(pool, chosen, scores, base_use(settings).query_prompt)
    write_jsonl(path, (row for row in rows if row["id"] in kept))
    return {name: float(where.mean()) for name, where in by.items()}


def sample_share(queries, share, seed):
    """A seeded sample of ids, a set: the first of one random order, so that a larger share has all of a smaller one."""
    ids = list(queries)
    order = np.random.default_rng(seed).permutation(len(ids))
    return {ids[place] for place in order[:max(1, round(share * len(ids)))]}


def training_rows(pool, chosen, scores, prompt):
    """Yield the row of each query of a Pool, its negatives being the passages at the positions in its row of `chosen`.

    `scores` yields for each query those of its positives and its negatives, or is None. `prompt` is for whoever trains
    on the file with FlagEmbedding; here the model's counts.
    """
    texts = np.array(pool.texts(), dtype=object)
    for (query, text), positives, negatives in zip(pool.train.queries.items(), pool.positives, chosen, strict=True):
        row = {"query": text, "pos": texts[positives].tolist(), "neg": texts[negatives].tolist(), "id": query,
               "prompt": prompt}
        if scores is not None:
            given = next(scores)
            row |= {"pos_scores": given[:len(positives)], "neg_scores": given[len(positives):]}
        yield row


def read_training_file(path, teacher=False):
    """The rows of a training file; with `teacher`, each text of `pos` and `neg` must have its score.

    Raises UserError naming file and row when it cannot be trained on.
    """
    rows = read_jsonl(path, required=("query", "pos", "neg"), made_by="build_train_dataset.ipynb or finetune_hard.sh")
    for number, row in enumerate(rows, start=1):
        if not isinstance(row["query"], str):
            raise UserError(f"{path}, row {number}: 'query' must be a text; build the file again")
        for side in ("pos", "neg"):
            texts, scores = row[side], row.get(f"{side}_scores")
            if not isinstance(texts, list) or not texts or not all(isinstance(text, str) for text in texts):
                raise UserError(f"{path}, row {number}: {side!r} must be a list of at least one text; "
                                "build the file again")
            if teacher and not (isinstance(scores, list) and len(scores) == len(texts)
                                and all(isinstance(score, int | float) for score in scores)):
                raise UserError(f"{path}, row {number}: a teacher needs '{side}_scores', one number a text of {side!r}")
    return rows


def write_with_prompt(path, rows, prompt):
    """Write rows for FlagEmbedding's own trainer, which prefers a row's prompt to its flag: the file may be older."""
    write_jsonl(path, ({**row, "prompt": prompt} for row in rows))


def rows_identity(rows):
    """What tells one training file from another: a hash of all that is trained on, so of all but ids."""
    trained_on = ("query", "pos", "neg", "pos_scores", "neg_scores")
    return content_hash(*([row.get(name) for name in trained_on] for row in rows))
