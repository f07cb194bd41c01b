import numpy as np
import pytest

from embedding_finetune.files import UserError
from embedding_finetune.retrieval import base as module
from embedding_finetune.retrieval.base import Retriever, break_ties, make_retriever, retriever
from embedding_finetune.retrieval.bm25 import BM25


def test_scores_are_moved_apart_by_the_smallest_steps():
    step = np.nextafter(np.float32(1), np.float32(0))
    apart = break_ties([[2.0, 1.0, 1.0, 0.5], [1.0, 1.0, step, 0.0]])
    assert apart.dtype == np.float32 and (np.diff(apart, axis=1) < 0).all()
    assert apart[0].tolist() == [2.0, 1.0, step, 0.5]
    assert apart[1].tolist() == [1.0, step, np.nextafter(step, np.float32(0)), 0.0]


def test_a_registered_class_is_found_by_its_label(monkeypatch):
    """Only `build` and `search_batch` must be defined."""
    monkeypatch.setattr(module, "RETRIEVERS", dict(module.RETRIEVERS))

    @retriever("shortest")
    class Shortest(Retriever):
        description = "the shortest passages"

        def build(self, texts):
            self.lengths = np.array(list(map(len, texts)))

        def search_batch(self, texts, depth):
            order = np.argsort(self.lengths, kind="stable")[:depth]
            return np.tile(-self.lengths[order].astype(np.float32), (len(texts), 1)), np.tile(order, (len(texts), 1))

    found = make_retriever("shortest")
    assert isinstance(found, Shortest) and isinstance(make_retriever("bm25"), BM25)
    run = found.index({"c": "xx", "b": "x", "a": "xx", "d": "xxx"}).search({"q": "?", "b": "?"}, depth=3)
    assert list(run["q"]) == list(run["b"]) == ["b", "a", "c"]  # an id says nothing
    copies = {"q": ["b"], "r": ["a", "d"], "of another": "abc"}
    run = found.search({"q": "?", "b": "?", "r": "?"}, depth=3, copies=copies)
    assert [list(ranking) for ranking in run.values()] == [["a", "c", "d"], ["b", "a", "c"], ["b", "c"]]
    with pytest.raises(UserError, match="RETRIEVERS=longest is unknown: it must list some of bm25, shortest"):
        make_retriever("longest")
