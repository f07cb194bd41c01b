"""Judgements and rankings in TREC's formats, which every evaluation tool of the field reads.

qrels: dict of query id -> dict of passage id -> relevance (1).
run: dict of query id -> dict of passage id -> score, best first.
"""

from embedding_finetune.files import ExperimentError, atomic_write


def write_qrels(path, qrels):
    """Write lines `qid 0 docid relevance`, atomically."""
    with atomic_write(path) as file:
        for query, judged in qrels.items():
            for passage, relevance in judged.items():
                file.write(f"{query} 0 {passage} {relevance}\n")


def read_qrels(path, made_by="build_eval_dataset.ipynb"):
    """Read what write_qrels wrote. Raises ExperimentError naming file and line when it is missing or broken."""
    qrels = {}
    for query, _, passage, relevance in _fields(path, 4, made_by):
        qrels.setdefault(query, {})[passage] = int(relevance)
    return qrels


def write_run(path, run, label):
    """Write lines `qid Q0 docid rank score label`, atomically; nine digits give back each 32-bit score exactly."""
    with atomic_write(path) as file:
        for query, ranking in run.items():
            for rank, (passage, score) in enumerate(ranking.items(), start=1):
                file.write(f"{query} Q0 {passage} {rank} {score:.9g} {label}\n")


def read_run(path, made_by="the evaluation notebooks"):
    """Read what write_run wrote. Raises ExperimentError naming file and line when it is missing or broken."""
    run = {}
    for query, _, passage, _, score, _ in _fields(path, 6, made_by):
        run.setdefault(query, {})[passage] = float(score)
    return run


def _fields(path, number_of_fields, made_by):
    try:
        with open(path, encoding="utf-8") as file:
            for number, line in enumerate(file, start=1):
                fields = line.split()
                if len(fields) != number_of_fields:
                    raise ExperimentError(f"{path}, line {number}: expected {number_of_fields} fields, found {len(fields)}")
                yield fields
    except FileNotFoundError:
        raise ExperimentError(f"{path} does not exist: it is made by {made_by}") from None
