"""The first input of an artifact that differs is named in plain words."""

import pytest

from embedding_finetune.artifacts.provenance import stale_reason
from embedding_finetune.files import content_hash

MODEL = {"config": {"pooling": "cls", "normalize": True}, "revision": {"model.safetensors": content_hash(1)}}
INPUTS = {"data": content_hash("data"), "base model": MODEL, "settings": {"EPOCHS": 1.0, "SEED": 42},
          "recipe": {"negatives": "random", "num_negatives": 10}, "files": ["a", ("b", 1)]}


def changed(*path, value):
    """INPUTS with another value at a path; None removes it."""
    def put(inputs, name, *rest):
        new = put(inputs[name], *rest) if rest else value
        return {key: other for key, other in inputs.items() if key != name} | ({} if new is None else {name: new})

    return put(INPUTS, *path)


@pytest.mark.parametrize("path, value, reason", [
    (["data"], content_hash("other"), "data"),
    (["settings", "EPOCHS"], 3, "EPOCHS: 1.0, now 3"),
    (["recipe", "num_negatives"], 50, "num_negatives: 10, now 50"),
    (["recipe", "teacher"], "reference", "teacher: not set, now reference"),
    (["recipe", "num_negatives"], None, "num_negatives: 10, now not set"),
    (["base model", "config", "pooling"], "mean", "pooling of base model: cls, now mean"),
    (["base model", "revision", "model.safetensors"], content_hash(2), "model.safetensors of base model"),
    (["base model", "revision"], "1f" * 20, "base model"),
    (["files"], ["a"], "files"),
    (["files"], "1f" * 20, "files"),
    (["data"], None, "data"),
])
def test_the_first_difference_is_named(path, value, reason):
    assert stale_reason(INPUTS, changed(*path, value=value)) == reason


def test_commits_are_shown():
    old, new = ({"base model": {"config": {}, "revision": commit * 40}} for commit in "ab")
    assert stale_reason(old, new) == f"base model: {'a' * 40}, now {'b' * 40}"


def test_several_differences_give_the_first():
    current = changed("settings", "SEED", value=1) | {"data": content_hash("other")}
    assert stale_reason(INPUTS, current) == "data"
    assert stale_reason(INPUTS, current | {"data": INPUTS["data"]}) == "SEED: 42, now 1"


def test_equal_inputs_are_current_also_as_read_back():
    assert stale_reason(INPUTS, INPUTS) is None
    assert stale_reason(INPUTS, INPUTS | {"files": ("a", ["b", 1])}) is None
    assert stale_reason({"settings": {1: 2}}, {"settings": {"1": 2}}) is None


def test_what_an_earlier_version_did_not_record_counts_as_equal():
    for path in (["data"], ["settings"], ["base model"], ["base model", "config", "normalize"],
                 ["base model", "revision"]):
        assert stale_reason(changed(*path, value=None), INPUTS) is None
    for path in (["settings", "SEED"], ["recipe", "negatives"], ["base model", "revision", "model.safetensors"]):
        assert stale_reason(changed(*path, value=None), INPUTS) is not None


def test_without_a_record_nothing_is_current():
    assert stale_reason(None, INPUTS) == stale_reason([], INPUTS) == "no record" and stale_reason({}, INPUTS) is None
