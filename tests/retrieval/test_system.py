"""Systems and their labels: every label leads back to its system, and what leads to none or to two is one line."""

import dataclasses
from collections import Counter

import pytest

from embedding_finetune.artifacts.manifest import COMPILED_RECORD
from embedding_finetune.files import UserError, write_json
from embedding_finetune.retrieval.known_systems import (
    all_systems,
    find_system,
    make_reranker,
    needs_token_embeddings,
    rerankers,
)
from embedding_finetune.retrieval.system import System
from embedding_finetune.settings import RERANKER_LABELS, Settings

RECIPES = "neg10 neg10-2 neg50 hard_kd trained trained_on_faq faq_on_x x a a_on_b b_on_c c".split()


@pytest.fixture
def named(tmp_path):
    """The demo's, with labels that have `_on_` and `-` in them, a cross-encoder, and two compiled models."""
    (tmp_path / "own.toml").write_text("".join(f"[{label}]\n" for label in RECIPES)
                                       + '[judge]\nkind = "cross_encoder"\n')
    for label in ("neg10-onnx-int8", "reference-openvino", "neg50-onnx.partial", "of_another_kind"):
        write_json(tmp_path / "output" / label / COMPILED_RECORD, {})  # damaged, but its name says what it is
    return dataclasses.replace(Settings.load("demo"), recipe_file=tmp_path / "own.toml", seeds=2,
                               output_dir=tmp_path / "output")


def late(model, *first, kind="late", **more):
    return System(*first, reranker=kind, reranker_model=model, **more)


@pytest.mark.parametrize("label, system", [
    ("bm25", System("bm25")), ("neg10", System("neg10")), ("hybrid_raw", System("raw", fused=True)),
    ("neg10-onnx-int8", System("neg10", "onnx", "int8")), ("reference-openvino", System("reference", "openvino")),
    ("hybrid_neg10-onnx-int8", System("neg10", "onnx", "int8", fused=True)),
    ("late_reference", late("reference", "reference")), ("late_hard_kd_on_neg10", late("hard_kd", "neg10")),
    ("hybrid_late_reference", late("reference", "reference", fused=True)),
    ("late_trained_on_faq", late("trained_on_faq", "trained_on_faq")),
    ("late_neg10_on_trained_on_faq", late("neg10", "trained_on_faq")),
    ("m3_trained_on_faq_on_neg10_seed43", late("trained_on_faq", "neg10_seed43", kind="m3")),
    ("rerank_judge_on_neg10-onnx-int8", late("judge", "neg10", "onnx", "int8", kind="rerank")),
    ("hybrid_late_neg10-onnx-int8_on_neg10-2", late("neg10-onnx-int8", "neg10-2", fused=True)),
    ("late_neg10-onnx-int8", late("neg10-onnx-int8", "neg10", "onnx", "int8"))])
def test_a_label_and_its_system(named, label, system):
    assert find_system(named, label) == system and system.label == label
    assert System(**dataclasses.asdict(system)) == system  # as results and indexes store it
    assert system.first_stage.label == system.encoder
    assert system.is_single == (label == system.encoder) and system.has_model == (label != "bm25")
    assert RERANKER_LABELS[0](label.removeprefix("hybrid_")) or not system.reranker


@pytest.mark.parametrize("label, message", [
    ("early_neg10", "there is no system 'early_neg10': it must be LABEL, hybrid_LABEL"), ("late_", "no system 'late_'"),
    ("", "no system ''"), ("late_a/b", "no system"), ("late_模型", "no system"), ("late_nobody", "no system"),
    ("late_neg10_on_nobody", "no system"), ("rerank_neg10_on_raw", "no system"), ("hybrid_bm25", "no system"),
    ("late_neg10_on_bm25", "no system"), ("judge", "no system"), ("hybrid_hybrid_raw", "no system"),
    ("neg50-onnx", "no system"), ("of_another_kind", "no system"), ("x" * 1000, f"no system '{'x' * 100}'"),
    ("late_trained_on_faq_on_x", "can be read as trained on faq_on_x or trained_on_faq on x: rename one"),
    ("late_a_on_b_on_c", "can be read as (a on b_on_c or a_on_b on c|a_on_b on c or a on b_on_c): rename one")])
def test_a_label_of_no_system_or_of_two(named, label, message):
    with pytest.raises(UserError, match=message) as caught:
        find_system(named, label)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 700


def test_all_systems_have_labels_of_their_own_unless_they_are_ambiguous(named):
    labels = Counter(system.label for system in all_systems(named))
    repeated = [label for label in labels if labels[label] > 1]
    assert all("_on_" in label for label in repeated) and "hybrid_late_a_on_b_on_c" in repeated
    stages = rerankers(named)
    assert stages["rerank_judge"] == stages["rerank_judge_on_raw"] == ("rerank", "judge")
    assert stages["m3_neg10-onnx-int8"] == ("m3", "neg10-onnx-int8")
    assert not any(map(labels.get, ("late_bm25", "judge")))
    assert stages.keys().isdisjoint(("rerank_neg10", "late_bm25", "judge", "raw", "hybrid_raw", "hybrid_late_raw"))


def test_rerankers_are_made_by_kind_and_model(built):
    assert make_reranker(built, "late", "reference").description.startswith("late interaction of ")
    for kind, model, message in (("late", "neg10", "holds no finished model"), ("m3", "reference", "is no BGE-M3"),
                                 ("rerank", "reranker", "reranker holds no finished")):
        with pytest.raises(UserError, match=message):
            make_reranker(built, kind, model)


def test_token_embeddings_are_stored_of_the_models_of_late_rerankers():
    settings = dataclasses.replace(Settings.load("demo"),
                                   rerankers="late_reference_on_neg10 rerank_reranker_on_neg10 late_tokens")
    labels = ("reference", "neg10", "reranker", "tokens")
    assert [label for label in labels if needs_token_embeddings(settings, label)] == ["reference", "tokens"]
    with pytest.raises(UserError, match="there is no system 'late_typo'"):
        needs_token_embeddings(dataclasses.replace(settings, rerankers="late_typo"), "reference")
