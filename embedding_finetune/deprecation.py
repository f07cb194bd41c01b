"""Old names of settings, recipe keys and commands: they work until 2.0 and print one line with the new name."""

import argparse
import functools
import importlib
import sys
from collections.abc import Iterator, Mapping
from typing import Any

from embedding_finetune.files import UserError

REMOVED_IN = "2.0"
SETTINGS = {
    "EVAL_SETS": "OUT_OF_DOMAIN_SETS", "INTERACTION": "ARCHITECTURE", "MAX_PAIRS": "MAX_QUERIES",
    "NEAR_DUPLICATES_TOGETHER": "GROUP_NEAR_DUPLICATES", "NO_ANSWER_PRECISION": "ABSTENTION_PRECISION",
    "PASSAGE_INSTRUCTION": "PASSAGE_PROMPT", "QUERIES": "DOCUMENT_QUERIES", "QUERY_INSTRUCTION": "QUERY_PROMPT",
    "REFERENCE_INSTRUCTION": "REFERENCE_PROMPT", "RERANKER": "RERANKER_MODEL", "SECOND_STAGES": "RERANKERS",
    "TEACHER_LOSS": "DISTILLATION_LOSS", "TOKEN_MERGE": "TOKEN_POOL_FACTOR", "TOKEN_STORE": "TOKEN_DTYPE"}
SETTING_VALUES = {("ARCHITECTURE", "dense"): "single_vector", ("ARCHITECTURE", "late"): "multi_vector"}
RECIPE_KEYS = {"about": "description", "depth": "mining_top_k", "like": "extends", "merge_share": "merge_weight",
               "number": "num_negatives", "share": "train_fraction"}
RECIPE_VALUES = {("kind", "model"): "bi_encoder", ("kind", "reranker"): "cross_encoder"}
FILTERS = {"share": "relative_margin", "margin": "absolute_margin", "ranks": "rank_range"}


def rename_settings(given: Mapping[str, Any], source: str) -> dict[str, Any]:
    """Settings (NAME -> value) under their current names and values.

    `source` is where they were given, for the notice. Raises UserError when both names of a setting are given.
    """
    renamed = {}
    for name, value in _renamed_keys(given, SETTINGS, source):
        renamed[name] = SETTING_VALUES.get((name, str(value)), value)
        _notice(source, f"{name}={value}", f"{name}={renamed[name]}")
    return renamed


def rename_recipe(entry: Mapping[str, Any], source: str) -> dict[str, Any]:
    """A recipe's keys and values under their current names; `source` and errors as in rename_settings."""
    renamed = {}
    for name, value in _renamed_keys(entry, RECIPE_KEYS, source):
        changed = value
        if name in ("settings", "new_head") and isinstance(value, dict):
            changed = rename_settings(value, source)
        elif name == "filter" and isinstance(value, str) and value:
            kind, *values = value.split()
            changed = " ".join([FILTERS.get(kind, kind), *values])
        elif isinstance(value, str):
            changed = RECIPE_VALUES.get((name, value), value)
        renamed[name] = changed
        if isinstance(value, str):
            _notice(source, f"{name} = {value!r}", f"{name} = {changed!r}")
    return renamed


def _renamed_keys(given: Mapping[str, Any], names: dict[str, str], source: str) -> Iterator[tuple[str, Any]]:
    """Yield (current name, value) of `given`; `names` has old name -> current name. Raises UserError for both."""
    for name, value in given.items():
        new = names.get(name, name)
        if new != name and new in given:
            raise UserError(f"{source} gives {new} and {name}, its old name: remove {name}")
        _notice(source, name, new)
        yield new, value


class RenamedOption(argparse.Action):
    """The old name of a command-line option, which prints a notice with the current name (`dest`)."""

    def __call__(self, parser, namespace, value, option_string=None):
        _notice("command", option_string, f"--{self.dest}")
        setattr(namespace, self.dest, value)


def run_renamed(old: str, command: str) -> None:
    """Run a command that was started under its old module name."""
    _notice("command", f"python -m embedding_finetune.{old}", f"python -m embedding_finetune {command}")
    importlib.import_module("embedding_finetune.cli").run([command, *sys.argv[1:]])


@functools.cache  # one line per name, however often the settings are loaded
def _notice(source, old, new):
    if old != new:
        print(f"note: {source}: {old} is now {new}; the old name works until {REMOVED_IN}", file=sys.stderr)
