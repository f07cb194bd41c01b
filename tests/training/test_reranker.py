"""A reranker's training: FlagEmbedding's loss, resume, the starting point that is kept, export."""

import shutil
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from FlagEmbedding.finetune.reranker.encoder_only.base.modeling import CrossEncoderModel
from safetensors.torch import load_file
from tiny_training import dev, prepared, rows_of, train_until, use
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from embedding_finetune.data.collection import Collection, read_collection, write_collection
from embedding_finetune.retrieval.cross_encoder import CrossEncoder
from embedding_finetune.training import worker as training
from embedding_finetune.training.batches import TrainingSet
from embedding_finetune.training.log import read_log
from embedding_finetune.training.reranker import (
    PairCollator,
    RerankerDevEvaluator,
    RerankerModel,
    training_warnings,
)


def prepared_reranker(tiny, output, **changes):
    """Dev passages have ids of their own here: one that has the query's id would be the query itself."""
    data = read_collection(tiny / "data")
    write_collection(tiny / "pairs", replace(
        data, corpus={f"p{place}": text for place, text in data.corpus.items()},
        qrels={query: {f"p{place}": 1 for place in judged} for query, judged in data.qrels.items()}))
    return prepared(tiny, output, **{"kind": "cross_encoder", "new_head": True, "query_prompt": "",
                                     "learning_rate": 1e-3, **dev(tiny), "data": tiny / "pairs"} | changes)


@pytest.fixture(scope="module")
def trained(tiny, tmp_path_factory):
    """A finished reranker, begun with a new head."""
    folder = tmp_path_factory.mktemp("reranker") / "model"
    training.train(prepared_reranker(tiny, folder))
    return folder


def test_the_loss_is_flagembeddings(tiny):
    tokenizer = AutoTokenizer.from_pretrained(tiny / "bert")
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_pretrained(tiny / "bert", num_labels=1).eval()
    dataset = TrainingSet(rows_of(tiny), use(), group=4, seed=5)
    items = [dataset[0, number] for number in range(6)]
    batch = PairCollator(tokenizer, use(), call_cost=10)(items)
    assert len(batch["texts"]) > 1
    loss = RerankerModel(model)(**batch)["loss"]
    pairs = [(item["query"], text) for item in items for text in item["passages"]]
    theirs = CrossEncoderModel(model, tokenizer, train_batch_size=6)
    theirs.training = True  # without dropout
    features = tokenizer(*map(list, zip(*pairs)), truncation="only_second", max_length=64, padding=True,
                         return_tensors="pt")
    assert loss.item() == pytest.approx(theirs(dict(features)).loss.item(), abs=1e-5)


def test_it_learns_and_is_read_alike(trained):
    """The export has compared three libraries."""
    curve = [row for row in read_log(trained) if "mrr@10" in row]
    assert max(row["mrr@10"] for row in curve) > curve[0]["mrr@10"] + 0.05
    assert (trained / "model.safetensors").exists() and not list(trained.glob("checkpoint-*"))
    assert len(CrossEncoder(str(trained)).pairs("river", ["moon", "copper"])) == 2


def test_interrupted_it_continues_to_the_same_weights(tiny, trained, tmp_path):
    train_until(prepared_reranker(tiny, tmp_path / "model"), 17)
    training.train(prepared_reranker(tiny, tmp_path / "model"))
    one, other = (load_file(folder / "model.safetensors") for folder in (trained, tmp_path / "model"))
    torch.testing.assert_close(one, other, atol=1e-5, rtol=0)


def test_a_given_reranker_is_kept_where_training_harms_it(tiny, trained, tmp_path, capsys):
    base = shutil.copytree(trained, tmp_path / "given")
    training.train(prepared_reranker(tiny, tmp_path / "model", base=str(base), new_head=False, learning_rate=0.5,
                                     epochs=1.0))
    said = capsys.readouterr().out
    assert "training did not improve the reranker on dev" in said and "is kept" in said and "kept step 0" in said
    one, other = (load_file(folder / "model.safetensors") for folder in (base, tmp_path / "model"))
    torch.testing.assert_close(one, other, atol=0, rtol=0)


def test_what_went_wrong_is_said():
    before, flat, words = {"mrr@10": 0.5, "spread": 1.0}, {"mrr@10": 0.6, "spread": 0.001}, {"mrr@10": 0.3}
    assert [text.split(":")[0] for text in training_warnings(None, flat, words)] == [
        "the scores have collapsed (spread 0.0010 on dev)"]
    assert [text.split("(")[0].strip() for text in training_warnings(before, before | {"mrr@10": 0.5}, words)] == [
        "training did not improve the reranker on dev"]
    assert not list(training_warnings(before, before | {"mrr@10": 0.51}, words))
    assert [text.split("(")[0].strip() for text in training_warnings(None, before, {"mrr@10": 0.51})] == [
        "the reranker ranks BM25's hits worse than BM25 itself"]
    assert not list(training_warnings(None, before, {"mrr@10": 0.5}))


def evaluator(tiny, collection):
    collator = PairCollator(AutoTokenizer.from_pretrained(tiny / "bert"), use(), 10)
    training = SimpleNamespace(encoder=use(), dev_corpus_size=100, seed=1)
    return RerankerDevEvaluator(collection, training, collator, torch.device("cpu"))


def test_dev_measures_the_order_of_bm25s_candidates(tiny):
    """By hand: the score of a pair is its number; BM25 finds two passages of four, and nothing for the third query."""
    corpus = {"a": "moon one", "b": "moon two", "c": "copper", "d": "glacier"}
    queries = {"q1": "moon", "q2": "copper", "q3": "violin"}
    collection = Collection(queries, corpus, {"q1": {"a": 1}, "q2": {"c": 1}, "q3": {"d": 1}},
                            dict.fromkeys(queries, "dev"))
    measured = evaluator(tiny, collection)
    first = measured.pairs[0][1] == "moon one"
    assert [len(hits) for hits in measured.candidates.values()] == [2, 1, 0]
    assert measured.of_bm25["mrr@10"] == pytest.approx((1 + 1 + 0) / 3)  # of two equals the corpus's first

    class Numbers(torch.nn.Module):
        def scores(self, texts, rows):
            return torch.arange(3.0)

    found = measured.evaluate(Numbers())
    assert found["mrr@10"] == pytest.approx(((0.5 if first else 1) + 1 + 0) / 3)
    assert found["recall@10"] == pytest.approx(2 / 3)
    assert found["spread"] == pytest.approx((0.5 + 0) / 2)


def test_recall_on_dev_is_the_share_of_the_positives_found_and_counts_those_that_bm25_missed(tiny):
    """12 candidates, scored by their number: q1 has a positive among the first ten, one behind them, one that shares no
    word with it; q2 has a candidate that is judged, and wrong."""
    corpus = {f"m{number}": f"moon {number}" for number in range(12)} | {"c": "copper", "d": "glacier"}
    queries = {"q1": "moon", "q2": "copper"}

    class Numbers(torch.nn.Module):
        def scores(self, texts, rows):
            return torch.arange(13.0)

    def dev_of(positives):
        qrels = {"q1": dict.fromkeys(positives, 1), "q2": {"c": 0}}
        collection = Collection(queries, corpus, qrels, dict.fromkeys(queries, "dev"))
        return evaluator(tiny, collection)

    *shuffled, _ = [text.split()[-1] for _, text in dev_of(["m0"]).pairs]  # the last scores highest
    measured = dev_of([f"m{shuffled[-1]}", f"m{shuffled[0]}", "d"])
    found = measured.evaluate(Numbers())
    assert found["recall@10"] == pytest.approx((1 / 3 + 0) / 2)
    assert found["mrr@10"] == pytest.approx((1 + 0) / 2)
