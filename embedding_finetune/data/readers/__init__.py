"""Rows, and the registry of readers.

A reader is a function that takes a name (the value of DATASET or CORPUS) and the settings and yields `Row`s;
`@reader` registers it for a value of DATASET or for a file extension. A new format needs one such function and nothing
else.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from embedding_finetune.files import UserError

SHOWN = 5  # skipped rows that a message lists
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
    grade: int = 1  # of the positives
    split: str = ""  # train, dev or test, if the source assigns the query to a split


@dataclass
class Source:
    """How a file or a dataset was read; a reader may yield it before the rows, and complete it while it reads."""

    name: str
    how: dict = field(default_factory=dict)  # format, encoding, delimiter ..: value
    columns: dict = field(default_factory=dict)  # column -> the setting that names its role; "" if it is not used
    rows: int = 0
    skipped: dict = field(default_factory=dict)  # problem -> {"rows": number, "first": the first files and lines}

    def sound(self, rows: Iterable[tuple[str, Any, str]], max_bad_rows: float) -> Iterator[Any]:
        """Yield the values of rows (where, value, problem) that have no problem.

        The others are counted by problem, up to its first colon, with the places of the first ones. At the end prints
        how many there are; raises UserError if they are more than a fraction of `max_bad_rows`.
        """
        shown, broken = [], 0
        for where, value, problem in rows:
            self.rows += 1
            if not problem:
                yield value
                continue
            found, broken = self.skipped.setdefault(problem.partition(": ")[0], {"rows": 0, "first": []}), broken + 1
            found["rows"] += 1
            found["first"] += [where] if len(found["first"]) < SHOWN else []
            shown += [f"{where}: {problem}"] if len(shown) < SHOWN else []
        message = f"{broken} of {self.rows} rows are broken ({'; '.join(shown)}{'; ...' if broken > SHOWN else ''})"
        if broken > max_bad_rows * self.rows:
            raise UserError(f"{self.name}: {message}, and MAX_BAD_ROWS allows a fraction of {max_bad_rows}: fix them "
                            "or raise it")
        if broken:
            print(f"{self.name}: {message}: left out")

    def __str__(self):
        used = [f"{column} ({role})" for column, role in self.columns.items() if role]
        unused = [column for column, role in self.columns.items() if not role]
        parts = [f"{key} {value}" for key, value in self.how.items()]
        parts += [f"columns used: {', '.join(used)}"] if used else []
        parts += [f"not used: {', '.join(map(repr, unused))}"] if unused else []
        return f"{self.name}: {'; '.join(parts)}"


@dataclass
class Table:
    """A table, read lazily.

    `records(columns)` yields (line or row number, column -> value), or (number, problem) with a str for a broken row,
    or (number, Row) for layouts whose roles are fixed. JSON rows may bring columns that `columns` lacks.
    """

    name: str
    columns: list
    records: Callable
    unit: str = "line"
    how: dict = field(default_factory=dict)  # how it is read, see Source
    roles: dict | None = None  # column -> role, if the layout fixes them


def reader(*names: str) -> Callable:
    """Register the decorated function for these values of DATASET or extensions such as ".jsonl".

    `documents` reads folders that are not in BEIR layout.
    """
    def register(function):
        READERS.update(dict.fromkeys(names, function))
        return function
    return register
