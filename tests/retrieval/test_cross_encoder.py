"""Scores of pairs against sentence-transformers and a plain loop; what is no reranker is refused."""

import numpy as np
import pytest
import sentence_transformers
import torch
from tiny_training import passages, trainable_bert
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from embedding_finetune.files import UserError
from embedding_finetune.retrieval.cross_encoder import CrossEncoder

TEXTS = passages(20)
CORPUS = {f"p{number}": text for number, text in enumerate(TEXTS)}
QUERIES = {"q1": "river moon", "q2": "copper"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A reranker with random weights."""
    folder = tmp_path_factory.mktemp("reranker")
    trainable_bert(folder)
    torch.manual_seed(4)
    AutoModelForSequenceClassification.from_pretrained(folder, num_labels=1).save_pretrained(folder)
    return folder


def test_scores_are_those_of_sentence_transformers_and_of_pairs_one_by_one(folder):
    stage = CrossEncoder(str(folder), max_length=40).index(CORPUS)
    run = stage.score(QUERIES, {query: list(CORPUS) for query in QUERIES})
    other = sentence_transformers.CrossEncoder(str(folder), device="cpu", max_length=40)
    pairs = [(text, passage) for text in QUERIES.values() for passage in TEXTS]
    theirs = other.predict(pairs, activation_fn=torch.nn.Identity(), show_progress_bar=False).reshape(2, -1)
    tokenizer, model = (kind.from_pretrained(folder) for kind in (AutoTokenizer, AutoModelForSequenceClassification))
    for row, (query, text) in zip(theirs, QUERIES.items()):
        found = [run[query][passage] for passage in CORPUS]
        assert found == pytest.approx(row.tolist(), abs=1e-4)
        batch = tokenizer(text, TEXTS[3], truncation="only_second", max_length=40, return_tensors="pt")
        assert found[3] == pytest.approx(model(**batch).logits.item(), abs=1e-5)
    assert stage.ms_per_query > 0 and stage.bytes_per_passage == 0 and np.std(list(run["q1"].values())) > 0


def test_bfloat16_changes_scores_little(folder):
    exact, quick = (CrossEncoder(str(folder), precision=precision).pairs("river moon", TEXTS)
                    for precision in ("fp32", "bf16"))
    assert CrossEncoder(str(folder), "mine", precision="bf16").description == "reranker mine in bfloat16"
    assert quick.dtype == np.float32 and (quick != exact).any()
    assert np.corrcoef(exact, quick)[0, 1] > 0.99 and abs(exact - quick).max() < exact.std()


def test_what_was_cut_is_said(folder, capsys):
    CrossEncoder(str(folder), "mine", max_length=20).index(CORPUS).score({"q": "moon"}, {"q": list(CORPUS)})
    tokenizer = AutoTokenizer.from_pretrained(folder)
    long = sum(len(tokenizer("moon", text)["input_ids"]) > 20 for text in TEXTS)
    assert 0 < long < 20 and f"reranker mine: {long} of 20 passages were truncated" in capsys.readouterr().out


def test_what_is_no_reranker_is_refused(folder, tmp_path):
    with pytest.raises(UserError, match="is no reranker that gives one score per pair"):
        CrossEncoder(str(trainable_bert(tmp_path / "bert") or tmp_path / "bert")).pairs("q", ["p"])
    AutoTokenizer.from_pretrained(folder).save_pretrained(tmp_path / "two")
    AutoModelForSequenceClassification.from_pretrained(
        folder, num_labels=2, ignore_mismatched_sizes=True).save_pretrained(tmp_path / "two")
    with pytest.raises(UserError, match=r"2 outputs"):
        CrossEncoder(str(tmp_path / "two")).pairs("q", ["p"])
    broken = CrossEncoder(str(folder))
    broken.pairs("river", ["moon"])
    broken.model.classifier.weight.data[:] = float("nan")
    with pytest.raises(UserError, match="not finite"):
        broken.pairs("river", ["moon"])
