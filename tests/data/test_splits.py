import dataclasses
import random
from collections import Counter

import pytest
from tiny import tiny_pairs

from embedding_finetune.data.collection import Collection
from embedding_finetune.data.deduplication import clean
from embedding_finetune.data.near_duplicates import near_duplicates
from embedding_finetune.data.normalize import PSEUDO_QUERY_PREFIX
from embedding_finetune.data.readers import Row
from embedding_finetune.data.splits import assign_splits
from embedding_finetune.files import UserError


def collection_of(*positives):
    """Query number n has the positives at place n: a list of texts."""
    return clean(Row(f"query {number}", texts, number) for number, texts in enumerate(positives))[0]


def parts_of(collection, **options):
    return list(assign_splits(collection, **options).splits.values())


def test_no_query_and_no_positive_is_in_two_parts():
    pairs, _ = clean(Row(row["query"], row["pos"], row["id"]) for row in tiny_pairs(1000))
    collection = assign_splits(pairs, test_fraction=0.2, dev_fraction=0.1, seed=3)
    where = {}
    for query, part in collection.splits.items():
        for passage in collection.positives(query):
            where.setdefault(passage, []).append(part)
    assert all(len(set(found)) == 1 for found in where.values())
    assert any(len(found) > 1 for found in where.values()), "the pairs must share passages to show anything"
    sizes = Counter(collection.splits.values())
    assert sizes["test"] == round(0.2 * len(pairs.queries))
    assert sizes["dev"] == round(0.1 * (len(pairs.queries) - sizes["test"]))
    assert list(collection.splits) == list(pairs.queries) and dataclasses.replace(collection, splits={}) == pairs


def test_queries_that_share_passages_over_others_stay_together():
    collection = collection_of(["a", "b"], ["b", "c"], ["c"], *([f"passage {number}"] for number in range(3, 30)))
    for seed in range(20):
        assert len(set(parts_of(collection, test_fraction=0.3, dev_fraction=0.3, seed=seed)[:3])) == 1


def test_a_passage_judged_0_holds_nothing_together():
    """It answers neither query, so it tells nothing of one to the other."""
    queries = {f"q{number}": f"query {number}" for number in range(60)}
    qrels = {query: {f"p{number}": 1, "nothing": 0} for number, query in enumerate(queries)}
    corpus = {f"p{number}": f"passage {number}" for number in range(60)} | {"nothing": "answers nothing"}
    assert set(parts_of(Collection(queries, corpus, qrels), test_fraction=0.2, dev_fraction=0.1, seed=1)) == {
        "train", "dev", "test"}


def with_near_duplicates():
    """300 passages of 20 words; behind every third follows its twin with a word more, which answers another query."""
    generator, vocabulary, positives = random.Random(1), [f"word{number}" for number in range(500)], []
    for number in range(300):
        text = " ".join(generator.choices(vocabulary, k=20))
        positives += [[text]] + [[f"{text} besides"]] * (number % 3 == 0)
    return collection_of(*positives)


def separated(collection):
    """How many pairs of near-duplicate positives lie in different parts."""
    texts, part = list(collection.corpus.values()), {}
    for query, name in collection.splits.items():
        part |= dict.fromkeys(collection.positives(query), name)
    parts = [part[passage] for passage in collection.corpus]
    return sum(parts[one] != parts[other] for one, other in near_duplicates(texts))


@pytest.mark.parametrize("seed", range(5))
def test_near_duplicates_are_kept_together(seed):
    collection = with_near_duplicates()
    assert len(near_duplicates(collection.corpus.values())) == 100
    options = {"test_fraction": 0.2, "dev_fraction": 0.1, "seed": seed}
    assert separated(assign_splits(collection, **options)) == 0
    assert separated(assign_splits(collection, **options, together=False)) > 10
    sizes = Counter(parts_of(collection, **options))
    assert sizes["test"] == 80 and sizes["dev"] == 32  # of 400, and of the 320 left


def test_near_duplicates_stay_together_over_others():
    """The first and the last have too little in common for themselves."""
    sentence = [f"word{number}" for number in range(16)]
    chain = [[" ".join(sentence[start:start + 12])] for start in range(4)]
    others = [[f"passage {number} stands alone"] for number in range(40)]
    assert near_duplicates([text for text, in chain]).tolist() == [[0, 1], [1, 2], [2, 3]]
    for seed in range(10):
        parts = parts_of(collection_of(*chain, *others), test_fraction=0.3, dev_fraction=0.3, seed=seed)
        assert len(set(parts[:4])) == 1


def test_the_seed_decides():
    collection = collection_of(*([f"passage {number}"] for number in range(100)))
    first = assign_splits(collection, test_fraction=0.2, dev_fraction=0.1, seed=1)
    assert first == assign_splits(collection, test_fraction=0.2, dev_fraction=0.1, seed=1)
    assert first != assign_splits(collection, test_fraction=0.2, dev_fraction=0.1, seed=2)


def test_pairs_that_cannot_be_split_are_refused():
    options = {"test_fraction": 0.2, "dev_fraction": 0.1, "seed": 1}
    with pytest.raises(UserError, match="5 queries are too few, or share too many passages, for a dev split"):
        assign_splits(collection_of(*([f"passage {number}"] for number in range(5))), **options)
    with pytest.raises(UserError, match="for a dev split|for a test split"):
        assign_splits(collection_of(*([["the one passage"]] * 50)), **options)
    with pytest.raises(UserError, match="0 queries are too few"):
        assign_splits(collection_of(), **options)


def test_what_people_wrote_is_dev_and_test_and_pseudo_queries_that_share_with_it_are_left_out():
    rows = [Row(f"span {number}", [f"passage {number}", f"passage {number + 1}"][:1 + (number < 3)],
                f"{PSEUDO_QUERY_PREFIX}span-{number}") for number in range(30)]
    rows += [Row("a question", ["passage 2"], "q1"), Row("another one", ["passage 20"], "q2")]
    collection, _ = clean(rows)
    connected = (0, 1, 2, 3, 20)  # 0 to 3 share passages
    left_out = {f"{PSEUDO_QUERY_PREFIX}span-{number}" for number in connected}
    for seed in range(5):
        parts = assign_splits(collection, test_fraction=0.2, dev_fraction=0.2, seed=seed).splits
        assert {parts.pop("q1"), parts.pop("q2")} == {"test", "dev"} and set(parts.values()) == {"train"}
        assert set(parts) == {f"{PSEUDO_QUERY_PREFIX}span-{number}" for number in range(30)} - left_out
    one = collection.select_queries([query for query in collection.queries if query != "q2"])
    parts = assign_splits(one, test_fraction=0.2, dev_fraction=0.2, seed=1).splits
    assert parts["q1"] == "test" and Counter(parts.values())["dev"] == 5  # of the 26 pseudo-queries left
    pseudo = collection.select_queries([query for query in collection.queries if query.startswith(PSEUDO_QUERY_PREFIX)])
    assert Counter(parts_of(pseudo, test_fraction=0.2, dev_fraction=0.2, seed=1))["test"] == 6
