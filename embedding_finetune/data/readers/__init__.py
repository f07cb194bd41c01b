"""Rows, and the registry of readers.

A reader is a function that takes the settings and yields `Row`s; `@reader` registers it for a value of DATASET or for a
file extension. A new format needs one such function and nothing else.
"""

from dataclasses import dataclass, field

READERS = {}  # value of DATASET, or file extension -> function


@dataclass(slots=True)
class Row:
    """A query with its relevant and irrelevant texts.

    A row whose query is None adds passages to the corpus. `problem` says why a row is broken; broken rows are counted
    and skipped.
    """

    query: str | None
    positives: list
    id: str | None = None  # of the query, if the source has ids; without a query, of the one passage
    negatives: list = field(default_factory=list)
    source: str | None = None  # origin of the positives, shown with a hit: a link, or a file with lines
    where: str = ""  # file and line
    problem: str = ""


def reader(*names):
    """Register the decorated function for these values of DATASET or extensions such as ".jsonl".

    `documents` reads folders that are not in BEIR layout.
    """
    def register(function):
        READERS.update(dict.fromkeys(names, function))
        return function
    return register
