"""What a reader of pairs yields, and the register of readers.

A reader takes the settings and yields `Row`s; `@reader` says for which value of DATASET, or for which ending of a
file's name. A new form is one such function, and nothing else changes.
"""

from dataclasses import dataclass, field

READERS = {}  # value of DATASET, or ending of a file's name -> function


@dataclass(slots=True)
class Row:
    """A query, the texts that answer it, and texts that do not.

    A row whose query is None has passages for the corpus and nothing else. `problem` says why a row cannot be used;
    the reader goes on with the next one, and the rows are counted.
    """

    query: str | None
    positives: list
    id: str | None = None  # the query's, where the source has one; without a query that of the one passage
    negatives: list = field(default_factory=list)
    source: str | None = None  # where the positives come from, for whoever reads a hit: a link, a file and its lines
    where: str = ""  # file and line
    problem: str = ""


def reader(*names):
    """Register the decorated function for these values of DATASET or endings such as ".jsonl"; `documents` reads
    folders that are not in BEIR's layout.
    """
    def register(function):
        READERS.update(dict.fromkeys(names, function))
        return function
    return register
