"""The chooser of an index: what it estimates, by hand, what it recommends, and its command."""

import math
import sys

import numpy as np
import pandas as pd
import pytest

from embedding_finetune.contrib import index_advisor
from embedding_finetune.contrib.index_advisor import candidates, choose, extrapolate, measure, recommended
from embedding_finetune.files import UserError


def test_what_grows_with_the_vectors_and_what_with_their_logarithm():
    few = {"INDEX": "x", "GB": 1.0, "minutes": 1.0, "ms": 3.0, "p99_ms": 4.0, "exact_ms": 5.0, "recall": 1.0}
    more = few | {"GB": 2.0, "minutes": 3.0, "ms": 4.0, "exact_ms": 4.0, "recall": 0.9}
    rows = {100: few, 1000: more}
    lists = extrapolate("IVF", rows, 10_000)
    assert lists == pytest.approx(few | {"GB": 12, "minutes": 23, "ms": 14, "exact_ms": 4, "recall": 0.9})
    graph = extrapolate("HNSW, scalar-quantised", rows, 10_000)
    work = [size * math.log(size) for size in (100, 1000, 10_000)]
    assert graph["minutes"] == pytest.approx(3 + 2 * (work[2] - work[1]) / (work[1] - work[0]))
    assert (graph["ms"], graph["GB"], graph["recall"]) == (pytest.approx(5), pytest.approx(12), 0.9)


@pytest.mark.parametrize("flat_ms, memory, expected", [
    (19, 4, "flat"),     # exact is quick enough
    (100, 4, "graph"),   # the quickest that finds enough
    (100, 2, "lists"),   # .. and fits
    (100, 0.5, None)])
def test_the_quickest_that_finds_enough_in_the_memory_there_is(flat_ms, memory, expected):
    table = pd.DataFrame({"GB": [3.9, 3.0, 1.0, 0.1], "ms": [flat_ms, 1, 5, 0.1], "recall": [1, 0.98, 0.95, 0.94]},
                         index=["flat", "graph", "lists", "codes"])
    assert recommended(table, memory) == expected


def test_candidates_are_indexes_and_what_they_find_is_measured():
    rng = np.random.default_rng(1)
    vectors = rng.normal(size=(3000, 32)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    queries = vectors[:30]
    exact = measure("flat", vectors, queries)
    assert exact["recall"] == 1 and exact["GB"] == pytest.approx(3000 * 32 * 4 / 1e9)
    codes = measure("SQ8", vectors, queries)
    assert codes["GB"] == pytest.approx(3000 * 32 / 1e9, rel=0.05) and codes["recall"] > 0.95
    table = choose(vectors, queries, 1_000_000)
    assert table["INDEX"].to_dict() == candidates(1_000_000, 32)
    assert table.loc["IVF, scalar-quantised", "INDEX"] == "IVF4096,SQ8 nprobe=256"
    assert table.loc["flat", "GB"] == pytest.approx(1_000_000 * 32 * 4 / 1e9)
    assert (table["recall"] > 0.3).all() and (table[["ms", "minutes", "exact_ms"]] > 0).all(axis=None)


def test_what_a_graph_finds_in_a_larger_corpus_is_estimated_from_a_sample():
    """The more passages are nearly as near as those wanted, the fewer of these a graph finds; a sample has fewer."""
    rng = np.random.default_rng(2)
    origins = rng.normal(size=(20, 24)).astype(np.float32)
    vectors = origins[rng.integers(0, 20, 20_000)] + rng.normal(size=(20_000, 24)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    where, queries = "HNSW4,SQ8 efSearch=200", rng.normal(size=(100, 24)).astype(np.float32)
    real, sample = measure(where, vectors, queries)["recall"], vectors[:2000]
    taken_as_it_is, estimated = (measure(where, sample, queries, share)["recall"] for share in (1, 0.1))
    assert taken_as_it_is > real + 0.2 and estimated == pytest.approx(real, abs=0.15)


def test_the_command_says_what_to_take(built, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["choose_index", "--passages", "2000000"])
    index_advisor.main()
    said = capsys.readouterr().out
    assert "reference, estimated for 2,000,000 passages from" in said and 'use INDEX="' in said
    monkeypatch.setattr(sys, "argv", ["choose_index", "--passages", "2000000", "--memory", "0.0001"])
    index_advisor.main()
    assert "no index finds 95% of the exact top 10 within 0.0001 GB: raise --memory" in capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", ["choose_index", "nobody"])
    with pytest.raises(UserError):
        index_advisor.main()
