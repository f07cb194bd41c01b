"""Whether an artifact is current: what it was made from, compared with what it would be made from now.

The inputs of an artifact are a dict, name -> JSON value, such as

    {"data": "5f3c..", "base model": {"config": {"pooling": "cls"}, "revision": {"model.safetensors": "9a1e.."}},
     "settings": {"EPOCHS": 1.0}, "recipe": {"num_negatives": 10}}

They hold everything that changes the artifact, and nothing else: no titles, notes or names of folders.
"""

import json
import re
from typing import Any

MODEL = {"config", "revision"}  # a model, see encoder_config.model_identity
GROUPS = ("config", "models", "recipe", "revision", "settings", "source")  # not part of a reason
DIGEST = re.compile("[0-9a-f]{32}|[0-9a-f]{64}")  # not shown, unlike commits


def stale_reason(recorded: Any, current: dict) -> str | None:
    """The first input that differs, such as "data" or "num_negatives: 10, now 50"; None if the artifact is current.

    `recorded` are the inputs in an artifact's record (None without one), `current` those that it would have now. A name
    that the record lacks counts as equal at the top level, in a model and in its `config`, since earlier versions
    recorded fewer of them; in other dicts it was not set. A name that only the record has is a difference everywhere.
    """
    if not isinstance(recorded, dict):
        return "no record"
    return _difference((), _as_read(recorded), _as_read(current))


def _as_read(value):
    return json.loads(json.dumps(value))  # keys are strings, tuples are lists


def _difference(path, then, now):
    if then == now:
        return None
    if not (isinstance(then, dict) and isinstance(now, dict)):
        return _reason(path, then, now)
    may_lack = not path or path[-1] == "config" or now.keys() == MODEL
    names = (name for name in {**now, **then} if name in then or not may_lack)
    return next(filter(None, (_difference((*path, name), then.get(name), now.get(name)) for name in names)), None)


def _reason(path, then, now):
    name = " of ".join(name for name in reversed(path) if name not in GROUPS) or path[-1]
    if any(isinstance(value, dict | list) or DIGEST.fullmatch(str(value)) for value in (then, now)):
        return name
    return "{}: {}, now {}".format(name, *("not set" if value is None else value for value in (then, now)))
