"""Selection on few queries: at its boundaries, against values computed by hand."""

import numpy as np
import pytest

from embedding_finetune.data.collection import Collection
from embedding_finetune.data.normalize import PSEUDO_QUERY_PREFIX
from embedding_finetune.evaluation.selection import Selection, select, selection_queries


def values(queries, **wins):
    """Arrays of zeros with ones where a system has its `wins`."""
    return {label: np.isin(np.arange(queries), own).astype(float) for label, own in wins.items()}


@pytest.mark.parametrize("queries, expected", [(1, "default"), (49, "default"), (50, "best"), (1000, "best")])
def test_nothing_is_selected_on_fewer_than_fifty_queries(queries, expected):
    """The best one is right everywhere, so that every resampling selects it."""
    found = select(values(queries, default=[], best=range(queries)), "default")
    assert found == Selection(expected, queries, 1.0, expected == "default")


def test_stability_is_the_share_of_resamplings_that_select_the_same():
    """A system that is ahead on one of 50 queries is ahead in 1 - 0.98 ** 50 = 0.636 of the resamplings."""
    found = select(values(50, default=[], best=[7]), "default")
    assert found.label == "best" and found.stability == pytest.approx(0.636, abs=0.03)
    behind = select(values(50, best=[7], default=[]), "default")  # equals go to the first one, which is the best then
    assert behind.label == "best" and behind.stability == 1


def test_the_default_takes_the_place_of_a_coin_toss():
    """Each of five systems is the only right one on a fifth of the queries, so each wins about every fifth time."""
    five = {label: range(place, 100, 5) for place, label in enumerate("abcde")}
    found = select(values(100, **five), "c")
    assert (found.label, found.queries, found.is_default) == ("c", 100, True)
    assert found.stability == pytest.approx(0.26, abs=0.06)  # of a, which ties go to
    assert select(values(100, c=[], a=range(60), b=range(50)), "c").label == "a"


def collection_of(train, dev, test=5, prefix=""):
    parts = ["train"] * train + ["dev"] * dev + ["test"] * test
    queries = {f"{prefix}{part}{number}": "?" for number, part in enumerate(parts)}
    return Collection(queries, {"p": "."}, {query: {"p": 1} for query in queries}, dict(zip(queries, parts)))


@pytest.mark.parametrize("train, dev, trained, expected", [
    (100, 49, False, {"dev": 49, "train": 100}), (100, 50, False, {"dev": 50}), (100, 49, True, {"dev": 49}),
    (5000, 49, False, {"dev": 49, "train": 951}), (20, 4, False, {"dev": 4, "train": 20})])
def test_a_small_dev_split_gets_the_training_queries_for_systems_without_training(train, dev, trained, expected):
    collection = collection_of(train, dev)
    part = selection_queries(collection, trained)
    assert len(part.queries) == sum(expected.values()) and part.corpus == collection.corpus
    assert {name: sum(query.startswith(name) for query in part.queries) for name in expected} == expected
    assert part == selection_queries(collection, trained) and part.qrels.keys() == part.queries.keys()


def test_pseudo_queries_do_not_join_those_that_people_wrote():
    written, pseudo = collection_of(0, 10), collection_of(100, 10, prefix=PSEUDO_QUERY_PREFIX)
    assert selection_queries(pseudo, trained=False).queries == pseudo.split("dev").queries
    both = Collection(written.queries | pseudo.split("train").queries, {"p": "."}, written.qrels | pseudo.qrels,
                      written.splits | pseudo.split("train").splits)
    assert selection_queries(both, trained=False).queries == written.split("dev").queries

