"""The evaluation of a system against the same steps by hand, and what it refuses."""

from dataclasses import replace

import pytest
from finished import evaluate, finish

from embedding_finetune.data.collection import read_data, write_data
from embedding_finetune.evaluation import results
from embedding_finetune.evaluation.metrics import measure
from embedding_finetune.evaluation.selection import selection_queries
from embedding_finetune.evaluation.tuning import WEIGHTS, choose_weight, rerank_run, tune_reranking
from embedding_finetune.files import UserError
from embedding_finetune.models import encoder_config
from embedding_finetune.models.encoder import Encoder
from embedding_finetune.models.encoder_config import load_encoder_config
from embedding_finetune.retrieval.bm25 import BM25
from embedding_finetune.retrieval.dense import Dense
from embedding_finetune.retrieval.fusion import weighted_sum_fusion
from embedding_finetune.retrieval.late_interaction import LateInteraction
from embedding_finetune.retrieval.rerank import candidate_union

PARTS = "dev", "test"


def by_hand(settings, collection):
    """Label -> (runs, parameters) of BM25, the reference, their fusion, and both reranked by token embeddings."""
    parts = {"dev": selection_queries(collection, trained=False), "test": collection.split("test")}
    encoder = Encoder(load_encoder_config(settings, "reference"))
    bm25, dense = ({part: retriever.index(collection.corpus).search(of.queries) for part, of in parts.items()}
                   for retriever in (BM25(), Dense(encoder)))
    weight = choose_weight(parts["dev"], bm25["dev"], dense["dev"])
    fused = {part: weighted_sum_fusion(bm25[part], dense[part], weight) for part in PARTS}
    stage = LateInteraction(encoder).index(collection.corpus)
    scores = {part: stage.score(of.queries, candidate_union(dense[part], bm25[part], depth=50))
              for part, of in parts.items()}
    tuned = tune_reranking(parts["dev"], bm25["dev"], dense["dev"], scores["dev"])
    alone = tuned | {"bm25_weight": 0.0, "rerank_weight": None}
    late, both = ({part: rerank_run(bm25[part], dense[part], scores[part], **how) for part in PARTS}
                  for how in (alone, tuned))
    return {"bm25": (bm25, BM25().index(collection.corpus).config), "reference": (dense, {}),
            "hybrid_reference": (fused, {"bm25_weight": weight}), "late_reference": (late, alone),
            "hybrid_late_reference": (both, tuned)}


def test_results_are_those_of_the_steps_by_hand(built):
    collection, found = read_data(built), evaluate(built, "bm25", "reference", "late_reference")
    expected = by_hand(built, collection)
    assert list(found) == list(expected)
    for label, (runs, parameters) in expected.items():
        assert found[label]["parameters"] == parameters, label
        for part, key in zip(PARTS, ("dev", "metrics")):
            of = selection_queries(collection, trained=False) if part == "dev" else collection.split(part)
            assert found[label][key] == pytest.approx(measure(of, runs[part])), (label, part)
            run = results.read_measured_run(built, collection, label, part)
            assert {query: list(ranking)[:5] for query, ranking in run.items()} == {
                query: list(ranking)[:5] for query, ranking in runs[part].items()}
    fused, alone = found["hybrid_late_reference"], found["late_reference"]
    assert fused["parameters"]["rerank_weight"] in WEIGHTS and alone["ms_per_query"] > 0
    assert fused["bytes_per_passage"] > 100 and "recipe" not in fused
    rows, left_out = results.compare(built, collection)
    assert {row["label"] for row in rows} == {*found} and not left_out
    other = replace(built, reference_prompt="otherwise: ")
    assert len(results.load_results(other)[1]) == 4  # all but BM25


def test_test_queries_have_no_part_in_the_tuning(built, monkeypatch):
    """Other test queries with other answers: parameters and dev metrics stay."""
    monkeypatch.setenv("OVERWRITE", "1")
    collection, labels = read_data(built), ("bm25", "reference", "late_reference")
    first = evaluate(built, *labels)
    test, passages = list(collection.split("test").queries), list(collection.corpus)
    queries = collection.queries | {query: f"something else {number}" for number, query in enumerate(test)}
    qrels = collection.qrels | {query: {passages[number]: 1} for number, query in enumerate(test)}
    write_data(built, replace(collection, queries=queries, qrels=qrels), {"source": "other test queries"})
    for label, result in evaluate(built, *labels).items():
        assert result["metrics"] != first[label]["metrics"]
        assert (result["parameters"], result["dev"]) == (first[label]["parameters"], first[label]["dev"])


def test_the_content_of_a_model_is_not_hashed_beyond_what_its_encoder_does(built, monkeypatch):
    evaluate(built, "bm25")
    hashed, original = [], encoder_config.model_content
    monkeypatch.setattr(encoder_config, "model_content", lambda name: hashed.append(name) or original(name))
    evaluate(built, "reference")  # alone and fused
    assert not hashed
    evaluate(built, "late_reference")  # alone and fused, on its own hits
    assert len(hashed) == 1  # of the model whose run is read, before the reranker is made


def test_missing_and_outdated_parts_are_one_line(built):
    for label, message in (
            ("late_reference", "the result of bm25, .*bm25.json, does not exist: evaluate bm25"),
            ("neg10", "neg10 holds no finished model"), ("nothing", "there is no system 'nothing'")):
        with pytest.raises(UserError, match=message) as caught:
            evaluate(built, label)
        assert "\n" not in str(caught.value)
    evaluate(built, "bm25")
    with pytest.raises(UserError, match="the result of raw, .*raw.json, does not exist: evaluate raw"):
        evaluate(built, "late_reference_on_raw")
    with pytest.raises(UserError, match="neg10 holds no finished model"):
        evaluate(built, "late_neg10_on_reference")
    with pytest.raises(UserError, match="bm25: it was measured with other inputs .BM25_LANGUAGE: auto, now de.; eval"):
        evaluate(replace(built, bm25_language="de"), "raw")


def test_a_fine_tuned_model_has_its_recipe_in_its_results(built, unchecked):
    finish(built)
    found = evaluate(built, "bm25", "hybrid_neg10")  # as neg10: alone and fused
    assert list(found) == ["bm25", "neg10", "hybrid_neg10"]
    assert (found["neg10"]["recipe"], found["neg10"]["train_fraction"]) == ("neg10", 1)
    assert "recipe" not in found["hybrid_neg10"] and found["hybrid_neg10"]["model"].startswith("BM25 + ")
    assert results.system_of(found["hybrid_neg10"]).fused
