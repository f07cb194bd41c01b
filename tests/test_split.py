import pytest
from tiny import tiny_pairs

from embedding_finetune.files import ExperimentError
from embedding_finetune.pairs import clean
from embedding_finetune.split import split


def pair(number, *positives):
    return {"id": str(number), "query": f"query {number}", "pos": list(positives)}


def test_no_query_and_no_positive_is_in_two_parts():
    pairs, _ = clean((row["query"], row["pos"], row["id"]) for row in tiny_pairs(1000))
    parts = split(pairs, test_fraction=0.2, dev_fraction=0.1, seed=3)
    where = {}
    for each, part in zip(pairs, parts):
        for text in each["pos"]:
            where.setdefault(text, set()).add(part)
    assert all(len(found) == 1 for found in where.values())
    assert any(sum(text in each["pos"] for each in pairs) > 1 for text in where), "the pairs must share passages to show anything"
    assert parts.count("test") == round(0.2 * len(pairs)) and parts.count("dev") == round(0.1 * (len(pairs) - parts.count("test")))


def test_queries_that_share_passages_over_others_stay_together():
    chain = [pair(0, "a", "b"), pair(1, "b", "c"), pair(2, "c")]
    pairs = chain + [pair(number, f"passage {number}") for number in range(3, 30)]
    for seed in range(20):
        assert len(set(split(pairs, test_fraction=0.3, dev_fraction=0.3, seed=seed)[:3])) == 1


def test_the_seed_decides():
    pairs = [pair(number, f"passage {number}") for number in range(100)]
    first = split(pairs, test_fraction=0.2, dev_fraction=0.1, seed=1)
    assert first == split(pairs, test_fraction=0.2, dev_fraction=0.1, seed=1) != split(pairs, test_fraction=0.2, dev_fraction=0.1, seed=2)


def test_pairs_that_cannot_be_split_are_refused():
    with pytest.raises(ExperimentError, match="too few, or too entangled by shared passages, for a dev part"):
        split([pair(number, f"passage {number}") for number in range(5)], test_fraction=0.2, dev_fraction=0.1, seed=1)
    with pytest.raises(ExperimentError, match="for a train part|for a dev part|for a test part"):
        split([pair(number, "the one passage") for number in range(50)], test_fraction=0.2, dev_fraction=0.1, seed=1)
