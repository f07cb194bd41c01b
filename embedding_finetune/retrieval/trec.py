"""Runs and judgements in TREC's formats, which every evaluation tool of the field reads.

qrels: dict of query id -> dict of passage id -> grade (above 0: an answer).
run: dict of query id -> dict of passage id -> score, best first.
"""

from itertools import islice

from embedding_finetune.files import UserError, atomic_write, read_lines


def read_qrels(path, made_by="build_eval_dataset.ipynb"):
    """Read lines `qid 0 docid grade`. Raises UserError naming file and line when the file is missing or broken."""
    qrels = {}
    for number, (query, _, passage, grade) in _fields(path, 4, made_by):
        qrels.setdefault(query, {})[passage] = _number(path, number, grade, int)
    return qrels


def write_run(path, run, label):
    """Write lines `qid Q0 docid rank score label`, atomically; nine digits give back each 32-bit score exactly."""
    with atomic_write(path) as file:
        for query, ranking in run.items():
            for rank, (passage, score) in enumerate(ranking.items(), start=1):
                file.write(f"{query} Q0 {passage} {rank} {score:.9g} {label}\n")


def read_run(path, made_by="the evaluation notebooks"):
    """Read what write_run wrote. Raises UserError naming file and line when the file is missing or broken."""
    run = {}
    for number, (query, _, passage, _, score, _) in _fields(path, 6, made_by):
        run.setdefault(query, {})[passage] = _number(path, number, score, float)
    return run


def pad_run(run, corpus, depth):
    """The run with at least `depth` passages a query (or the whole corpus), which readers of run files may rely on.

    A retriever returns nothing that does not match at all; what is missing follows here in the order of the ids, with
    scores of -1, -2 .. that say so (below a ranking's own, where these are lower). A passage with the id of the query
    stays away, as in the search.
    """
    ids = sorted(corpus)
    return {query: ranking | _missing(query, ranking, ids, depth) for query, ranking in run.items()}


def _missing(query, ranking, ids, depth):
    others = (passage for passage in ids if passage not in ranking and passage != query)
    lowest = min([0.0, *ranking.values()])
    return {passage: lowest - place for place, passage in
            enumerate(islice(others, max(0, depth - len(ranking))), start=1)}


def _fields(path, number_of_fields, made_by):
    for number, line in read_lines(path, made_by):
        fields = line.split()
        if len(fields) != number_of_fields:
            raise UserError(f"{path}, line {number}: expected {number_of_fields} fields, found {len(fields)}")
        yield number, fields


def _number(path, line, text, kind):
    try:
        return kind(text)
    except ValueError:
        raise UserError(f"{path}, line {line}: {text!r} is not a number") from None
