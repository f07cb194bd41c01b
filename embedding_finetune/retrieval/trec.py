"""Reading and writing of runs in TREC's format.

run: dict of query id -> dict of passage id -> score, best first.
"""

from itertools import islice
from pathlib import Path

from embedding_finetune.files import UserError, atomic_write, read_lines
from embedding_finetune.retrieval.base import Run


def write_run(path: Path, run: Run, label: str) -> None:
    """Write lines `qid Q0 docid rank score label` atomically; nine digits reproduce float32 scores exactly."""
    with atomic_write(path) as file:
        for query, ranking in run.items():
            for rank, (passage, score) in enumerate(ranking.items(), start=1):
                file.write(f"{query} Q0 {passage} {rank} {score:.9g} {label}\n")


def read_run(path: Path, made_by: str = "the evaluation notebooks") -> Run:
    """Read a file of write_run. Raises UserError naming file and line when it is missing or broken."""
    run = {}
    for number, line in read_lines(path, made_by):
        fields = line.split()
        if len(fields) != 6:
            raise UserError(f"{path}, line {number}: expected 6 fields, found {len(fields)}")
        try:
            run.setdefault(fields[0], {})[fields[2]] = float(fields[4])
        except ValueError:
            raise UserError(f"{path}, line {number}: {fields[4]!r} is not a number") from None
    return run


def pad_run(run: dict, corpus: dict, depth: int, copies: dict | None = None) -> dict:
    """Pad a run to at least `depth` passages per query (or the whole corpus), as some readers of run files expect.

    Passages that do not match follow in the order of their ids with scores of -1, -2 .. (or below the lowest score, if
    that is negative). The `copies` of a query are left out, as in `Retriever.search`.
    """
    ids, copies = sorted(corpus), copies or {}
    return {query: ranking | _missing(ranking, copies.get(query, ()), ids, depth) for query, ranking in run.items()}


def _missing(ranking, copies, ids, depth):
    others = (passage for passage in ids if passage not in ranking and passage not in copies)
    lowest = min([0.0, *ranking.values()])
    return {passage: lowest - place for place, passage in
            enumerate(islice(others, max(0, depth - len(ranking))), start=1)}
