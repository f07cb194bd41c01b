"""A second look: what takes part, what comes after it, and what refuses."""

from types import SimpleNamespace

import numpy as np
import pytest

from embedding_finetune.files import UserError
from embedding_finetune.retrieval.second_stage import SecondStage, add_second, parts_of, union
from embedding_finetune.retrieval.stages import keeps_tokens


class Lengths(SecondStage):
    """The longer a passage, the better."""

    def build(self, texts):
        self.lengths = np.array([len(text) for text in texts], np.float32)

    def scores(self, texts, places):
        for own in places:
            yield self.lengths[own]


def test_a_stage_is_named_by_its_kind_its_model_and_what_it_reorders():
    assert parts_of("late_reference") == ("late", "reference", "reference")
    assert parts_of("late_hard_kd_on_neg10") == ("late", "hard_kd", "neg10")
    with pytest.raises(UserError, match="'early_neg10' is no second stage: it must be KIND_MODEL"):
        parts_of("early_neg10")


def test_tokens_are_kept_of_the_models_that_late_stages_look_with():
    settings = SimpleNamespace(second_stages="late_reference_on_neg10 rerank_hard late_tokens")
    kept = [label for label in ("reference", "neg10", "hard", "tokens", "late") if keeps_tokens(settings, label)]
    assert kept == ["reference", "tokens"]


def test_candidates_are_scored_best_first_and_equal_ones_by_id():
    stage = Lengths().index({"a": "four", "b": "a longer one", "c": "five"})
    run = stage.score({"q": "?"}, {"q": ["c", "b", "a"]})
    assert list(run["q"]) == ["b", "a", "c"] and run["q"]["a"] > run["q"]["c"] and stage.ms_per_query > 0
    with pytest.raises(UserError, match="'x' is not in this corpus"):
        stage.score({"q": "?"}, {"q": ["x"]})


def test_the_union_is_of_what_was_found():
    dense, bm25 = {"q": {"a": 0.9, "b": -0.1, "c": -0.2}}, {"q": {"c": 2.0, "d": 1.0, "e": -1.0}}
    assert union(dense, bm25, depth=2) == {"q": ["a", "b", "c", "d"]}
    assert union(dense, bm25, depth=3) == {"q": ["a", "b", "c", "d"]}  # e shares no word: it fills the file up


def test_what_was_not_looked_at_again_comes_after_what_was():
    first = {"q": {"a": 0.9, "b": 0.8, "c": 0.7, "d": 0.6}}
    second = {"q": {"c": 0.5, "b": 0.1, "x": 0.45}}
    assert list(add_second(first, second, 1.0)["q"].items())[:3] == [
        ("c", pytest.approx(1.2)), ("x", pytest.approx(0.6 + 0.45)), ("b", pytest.approx(0.9))]
    assert list(add_second(first, second, 1.0)["q"]) == ["c", "x", "b", "a", "d"]
    assert list(add_second(first, second, None)["q"]) == ["c", "x", "b", "a", "d"]
    assert list(add_second(first, second, 1.0, {"q": ["b"]}, depth=3)["q"]) == ["b", "a", "c"]
