"""Reranking: labels, candidates, interpolation of scores, and errors."""

import dataclasses

import numpy as np
import pytest

from embedding_finetune.artifacts.manifest import COMPILED_RECORD
from embedding_finetune.files import UserError, write_json
from embedding_finetune.retrieval.rerank import Reranker, candidate_union, interpolate_scores, parse_reranker_label
from embedding_finetune.retrieval.rerankers import needs_token_embeddings
from embedding_finetune.settings import RERANKER_LABELS, Settings


class Lengths(Reranker):
    """The longer a passage, the better."""

    def build(self, texts):
        self.lengths = np.array([len(text) for text in texts], np.float32)

    def scores(self, texts, places):
        for own in places:
            yield self.lengths[own]


@pytest.fixture
def settings(tmp_path):
    """The demo's, with labels that have `_on_` and `-` in them, and a compiled model."""
    (tmp_path / "own.toml").write_text("".join(f"[{label}]\n" for label in (
        "neg10", "neg50", "hard_kd", "trained", "trained_on_faq", "faq_on_x", "x", "neg10-2")))
    write_json(tmp_path / "output" / "neg10-onnx-int8" / COMPILED_RECORD, {"format": "onnx"})
    return dataclasses.replace(Settings.load("demo"), recipe_file=tmp_path / "own.toml", seeds=2,
                               output_dir=tmp_path / "output")


@pytest.mark.parametrize("label, parts", [
    ("late_reference", ("late", "reference", "reference")), ("late_hard_kd_on_neg10", ("late", "hard_kd", "neg10")),
    ("late_trained_on_faq", ("late", "trained_on_faq", "trained_on_faq")),
    ("late_neg10_on_trained_on_faq", ("late", "neg10", "trained_on_faq")),
    ("m3_trained_on_faq_on_neg10_seed43", ("m3", "trained_on_faq", "neg10_seed43")),
    ("rerank_neg10-2_on_neg10-onnx-int8", ("rerank", "neg10-2", "neg10-onnx-int8")),
    ("late_nobody", ("late", "nobody", "nobody")), ("late_nobody_on_neg10", ("late", "nobody", "neg10"))])
def test_a_stage_is_named_by_its_kind_its_model_and_what_it_reorders(settings, label, parts):
    assert parse_reranker_label(settings, label) == parts and RERANKER_LABELS[0](label)


@pytest.mark.parametrize("label, message", [
    ("early_neg10", "'early_neg10' is no reranker: it must be KIND_MODEL"), ("late_", "is no reranker"),
    ("late", "is no reranker"), ("late_a/b", "is no reranker"), ("late_模型", "is no reranker"),
    ("late_trained_on_faq_on_x", "can be read as trained on faq_on_x or trained_on_faq on x: rename one"),
    ("late_a_on_b_on_c", "can be read as a on b_on_c or a_on_b on c")])
def test_what_is_no_stage_or_more_than_one_is_one_line(settings, label, message):
    with pytest.raises(UserError, match=message) as caught:
        parse_reranker_label(settings, label)
    assert "\n" not in str(caught.value)


def test_tokens_are_kept_of_the_models_that_late_stages_look_with():
    settings = dataclasses.replace(Settings.load("demo"),
                                   rerankers="late_reference_on_neg10 rerank_hard late_tokens")
    labels = ("reference", "neg10", "hard", "tokens", "late")
    kept = [label for label in labels if needs_token_embeddings(settings, label)]
    assert kept == ["reference", "tokens"]


def test_candidates_are_scored_best_first_and_equal_ones_by_id():
    stage = Lengths().index({"a": "four", "b": "a longer one", "c": "five"})
    run = stage.score({"q": "?"}, {"q": ["c", "b", "a"]})
    assert list(run["q"]) == ["b", "a", "c"] and run["q"]["a"] > run["q"]["c"] and stage.ms_per_query > 0
    with pytest.raises(UserError, match="'x' is not in this corpus"):
        stage.score({"q": "?"}, {"q": ["x"]})


def test_the_union_is_of_what_was_found():
    dense, bm25 = {"q": {"a": 0.9, "b": -0.1, "c": -0.2}}, {"q": {"c": 2.0, "d": 1.0, "e": -1.0}}
    assert candidate_union(dense, bm25, depth=2) == {"q": ["a", "b", "c", "d"]}
    assert candidate_union(dense, bm25, depth=3) == {"q": ["a", "b", "c", "d"]}  # e is padding


def test_what_was_not_looked_at_again_comes_after_what_was():
    first = {"q": {"a": 0.9, "b": 0.8, "c": 0.7, "d": 0.6}}
    second = {"q": {"c": 0.5, "b": 0.1, "x": 0.45}}
    assert list(interpolate_scores(first, second, 1.0)["q"].items())[:3] == [
        ("c", pytest.approx(1.2)), ("x", pytest.approx(0.6 + 0.45)), ("b", pytest.approx(0.9))]
    assert list(interpolate_scores(first, second, 1.0)["q"]) == ["c", "x", "b", "a", "d"]
    assert list(interpolate_scores(first, second, None)["q"]) == ["c", "x", "b", "a", "d"]
    assert list(interpolate_scores(first, second, 1.0, {"q": ["b"]}, depth=3)["q"]) == ["b", "a", "c"]
