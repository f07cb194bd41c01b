"""Values of tables: texts, lists written as text, ids and labels."""

import ast
import functools
import io
import json
import tokenize
from itertools import pairwise

KINDS = {"text": "a plain text", "list": "a list written as text", "dict": "a dictionary written as text"}
MISSING = {"nan", "NaN", "None", "null", "NULL", "<NA>", "NaT"}  # how programs write a missing value as text


@functools.lru_cache(maxsize=1000)
def number_of(text: str) -> float | None:
    """The number that a label stands for, None if it is none."""
    try:
        return {"true": 1.0, "false": 0.0}.get(text.strip().lower()) or float(text)
    except ValueError:
        return 0.0 if text.strip().lower() == "false" else None


class Texts:
    """The texts in the columns of a row; a value is a text, a list of texts, a list written as text, or None.

    The first text of a column decides whether its texts are lists written as text. Raises ValueError for a row that
    differs, for dictionaries, and for what programs write for a missing value.
    """

    def __init__(self, source):
        self.kinds, self.told = {}, source  # column -> kind of its texts

    def __call__(self, values, columns):
        if not columns:
            return []
        found = []
        for column in columns:
            value = values.get(column)
            if isinstance(value, str):
                found += self._of_text(column, value)
            elif isinstance(value, list):
                if not all(text is None or isinstance(text, str) for text in value):
                    raise ValueError(f"{column!r} must be a text or a list of texts")
                found += [text for text in value if text is not None]
            elif value is not None:
                raise ValueError(f"{column!r} must be a text or a list of texts")
        if not MISSING.isdisjoint(found):
            raise ValueError(f"{' or '.join(map(repr, columns))} is a missing value written as text")
        return found

    def source(self, values, columns):
        """The origin of a row's passages: several are joined by a comma."""
        return ", ".join(self(values, columns["source"])) or None if columns["source"] else None

    def _of_text(self, column, text):
        if not text:
            return [text]
        kind, texts = _literal(text) if text[0] in "[{" else ("text", [text])
        known = self.kinds.setdefault(column, kind)
        if kind == "dict" and known == "text":  # code, for instance
            return [text]
        if kind != known or kind == "dict":
            raise ValueError(f"{column!r} is {KINDS[kind]}" + (f", but {KINDS[known]} in the first row"
                                                               if kind != known else ""))
        if kind == "list":
            self.told.how[f"lists written as text in {column!r}"] = "read as several texts"
        return texts


def _literal(text):
    """("list", its texts), ("dict", []) or ("text", [text]) for a text that begins like a list or a dictionary.

    Raises ValueError for a list without commas, as NumPy writes it.
    """
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        try:
            value = ast.literal_eval(text.strip())
        except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
            return "text", [text]
        kinds = [token.type for token in tokenize.generate_tokens(io.StringIO(text.strip()).readline)
                 if token.type != tokenize.NL]
        if (tokenize.STRING, tokenize.STRING) in pairwise(kinds):
            raise ValueError("a list without commas, as NumPy writes it: write lists as JSON") from None
    if isinstance(value, dict):
        return "dict", []
    if isinstance(value, list) and all(one is None or isinstance(one, str) for one in value):
        return "list", [one for one in value if one is not None]
    return "text", [text]


def id_of(values: dict, columns: list) -> str | None:
    """The id in the first of `columns`, None if it is empty; raises ValueError when it is no id."""
    value = values.get(columns[0]) if columns else None
    if isinstance(value, bool) or not isinstance(value, int | str | None) or value in MISSING:
        raise ValueError(f"{columns[0]!r} must be an id: a word or a whole number")
    return str(value) if value not in (None, "") else None
