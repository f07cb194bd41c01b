"""Hits on disk: the same as without, found once, and again where a file is missing or damaged."""

import numpy as np
import pytest

from embedding_finetune.retrieval import resumable_search as module
from embedding_finetune.retrieval.resumable_search import resumable_search

QUERIES = [f"{number}" for number in range(10)]


class Counting:
    """A retriever that finds for each query the passages after its number, and says what it was asked."""

    def __init__(self):
        self.asked = []

    def search_batch(self, queries, depth):
        self.asked += queries
        return None, np.array([[int(query) + place for place in range(depth)] for query in queries], np.int32)


@pytest.fixture
def found(tmp_path, monkeypatch):
    """A function that searches in blocks of 4: the queries that were asked for it, once what is found was checked."""
    monkeypatch.setattr(module, "BLOCK", 4)

    def search(queries=QUERIES, depth=3, identity="a"):
        retriever = Counting()
        positions = resumable_search(retriever, queries, depth, tmp_path, identity)
        assert positions.tolist() == Counting().search_batch(queries, depth)[1].tolist()
        return retriever.asked
    return search


def test_what_is_found_is_not_searched_for_again(found, tmp_path):
    assert found() == QUERIES and len(list(tmp_path.iterdir())) == 3
    assert found() == []
    assert found(QUERIES + ["12"]) == ["8", "9", "12"]
    assert found(identity="b") == found(depth=2) == QUERIES


def test_few_queries_leave_nothing_on_the_disk(found, tmp_path):
    assert found(QUERIES[:4]) == found(QUERIES[:4]) == QUERIES[:4] and not list(tmp_path.iterdir())


@pytest.mark.parametrize("damage", [lambda content: content[:-1] + bytes([content[-1] ^ 1]), lambda content: b"",
                                    lambda content: content[:40], lambda content: content + b"\0"])
def test_a_stopped_or_damaged_search_goes_on(found, tmp_path, damage, capsys):
    found(QUERIES[:8])
    one = sorted(tmp_path.iterdir())[0]
    one.write_bytes(damage(one.read_bytes()))
    lost = found(QUERIES[:8])
    assert lost in (QUERIES[:4], QUERIES[4:8]) and f"{one} is damaged" in capsys.readouterr().err
    assert found() == QUERIES[8:]
