"""Checks of settings: pairs of a predicate on the value and the demand that an error message states."""

import re
import shlex
from collections.abc import Callable
from typing import Any

from embedding_finetune.files import UserError
from embedding_finetune.labels import LABEL_RULE, is_valid_label

AUTO = "auto"  # the value of a setting that follows from the data or from the model's files
Check = tuple[Callable[[Any], Any], str]  # predicate, demand


def at_least(low: float) -> Check:
    """The value is `low` or more."""
    return lambda value: value >= low, f"must be {low} or more"


def within(low: float, high: float) -> Check:
    """The value lies between `low` and `high`, both excluded."""
    return lambda value: low < value < high, f"must lie between {low} and {high}"


def one_of(*values: str) -> Check:
    """The value is one of `values`."""
    return lambda value: value in values, f"must be one of {', '.join(values)}"


LANGUAGE = lambda code: re.fullmatch(r"[a-z]{2,4}", code), "must be auto, none or a code such as en or zh"
LENGTH = lambda value: value == AUTO or value >= 8, "must be auto, or 8 or more"
POSITIVE = lambda value: value > 0, "must be more than 0"
EXTRA_MODEL_LIST = (lambda text: all(re.fullmatch(r"[^,]+(,(cls|mean|last_token))?", model.partition("=")[2])
                                  and is_valid_label(model.partition("=")[0]) for model in text.split()),
                    f"must list label=model or label=model,pooling, with unused labels: {LABEL_RULE}")
RETRIEVERS = (lambda text: "bm25" in text.split() and all(map(is_valid_label, {*text.split()} - {"bm25"})),
              f"must list bm25 and optionally other retrievers, with unused labels: {LABEL_RULE}")
RERANKER_LABELS = (lambda text: re.fullmatch(r"\s*([a-z0-9]+_[\w-]+\s*)*", text, re.ASCII),
                   "must list rerankers such as late_reference or late_reference_on_neg10")
DIMENSION_LIST = (lambda text: all(re.fullmatch(r"[1-9]\d*", dim) for dim in text.split()),
                  "must list whole numbers above 0")


def names_in(text: str, setting: str) -> list[str]:
    """The names that a setting lists, separated by spaces; a name with spaces is quoted. Raises UserError."""
    try:
        return shlex.split(text)
    except ValueError as error:
        raise UserError(f"{setting}={text} cannot be read ({error}): quote a name that has spaces or quotes") from None
