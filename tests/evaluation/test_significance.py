"""Intervals and tests against scipy, against simulation, and by hand."""

import json
import time

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from embedding_finetune.evaluation.significance import (
    ALPHA,
    MOST_QUERIES,
    add_significance,
    bootstrap_means,
    holm,
    interval,
    outcome,
    p_value,
    queries_needed,
    sign_flip_sums,
)
from embedding_finetune.files import UserError

METRICS = ["recall@1", "mrr@10"]


def frame(values, metrics=METRICS):
    values = np.asarray(values, float)
    values = values if values.ndim == 2 else np.stack([values] * len(metrics), axis=1)
    return pd.DataFrame(values, index=[f"q{i}" for i in range(len(values))], columns=metrics)


def compared(planned=None, resamples=10_000, seed=0, **frames):
    """Rows with significance, by label."""
    rows = add_significance([{"label": label} for label in frames], frames, planned, resamples=resamples, seed=seed)
    return {row["label"]: row for row in rows}


def p_values(rows, metric="recall@1"):
    """(label, label) -> p-value, each pair once."""
    labels = list(rows)
    return {(one, other): rows[one]["against"][other][metric]["p_value"]
            for place, one in enumerate(labels) for other in labels[place + 1:]}


def reciprocal_ranks(rng, queries, hits=0.6):
    return np.where(rng.random(queries) < hits, 1 / rng.integers(1, 11, queries), 0)


def test_interval_agrees_with_scipy_bootstrap():
    a, b = reciprocal_ranks(np.random.default_rng(1), 300), reciprocal_ranks(np.random.default_rng(2), 300, hits=0.7)
    row = compared(a=frame(a), b=frame(b))["a"]
    options = {"n_resamples": 10_000, "method": "percentile", "rng": np.random.default_rng(3)}
    for values, found in ((a, row["ci95"]["mrr@10"]), (a - b, row["against"]["b"]["mrr@10"]["ci95"])):
        expected = stats.bootstrap((values,), np.mean, **options).confidence_interval
        assert found == pytest.approx([expected.low, expected.high], abs=0.003)
    assert row["against"]["b"]["mrr@10"]["difference"] == pytest.approx((a - b).mean())


@pytest.mark.parametrize("shift", [0.0, 0.1, 0.2, 0.35])
def test_p_value_agrees_with_scipy_permutation_test(shift):
    rng = np.random.default_rng(4)
    a, b = rng.random(14) + shift, rng.random(14)
    exact = stats.permutation_test((a, b), lambda x, y, axis: (x - y).mean(axis), permutation_type="samples",
                                   n_resamples=2 ** 14).pvalue  # all sign flips, no sampling
    ours = compared(a=frame(a), b=frame(b))["a"]["against"]["b"]["recall@1"]["p_value"]
    assert ours == pytest.approx(exact, abs=4 * np.sqrt(exact * (1 - exact) / 10_000) + 2e-4)


def test_p_value_by_hand_counts_the_observed_signs():
    sums = np.array([[1.0], [-2.0], [4.0]])
    assert p_value(sums, 2) == (2 + 1) / (3 + 1) and p_value(sums, -5) == 1 / (3 + 1)


def test_interval_covers_a_known_truth_at_its_nominal_rate():
    truth, rng, experiments = 0.3, np.random.default_rng(5), 1500
    columns = (rng.random((250, experiments)) < truth).astype(float)  # each column: one experiment of 250 queries
    low, high = interval(bootstrap_means(columns, resamples=2000))
    covered = np.mean((low <= truth) & (truth <= high))
    assert 0.93 <= covered <= 0.965  # 0.95, less what 250 queries and 1500 experiments (standard error 0.006) allow


def test_shuffled_systems_are_found_different_only_at_the_nominal_rate():
    rng, experiments = np.random.default_rng(6), 1000
    a, b = (np.stack([reciprocal_ranks(rng, 200, hits) for _ in range(experiments)], axis=1) for hits in (0.9, 0.3))
    gaps = np.where(rng.random(a.shape) < 0.5, b - a, a - b)  # no real difference by construction
    found = p_value(sign_flip_sums(gaps, resamples=1000), gaps.sum(axis=0))
    assert 0.03 <= np.mean(found < 0.05) <= 0.07
    assert stats.kstest(found, "uniform").pvalue > 0.001


def test_rows_follow_the_contract_and_mirror_each_other():
    rng = np.random.default_rng(10)
    frames = {"weak": frame(rng.random((400, 2)) < 0.3), "strong": frame(rng.random((400, 2)) < 0.6)}
    frames["twin"] = frames["strong"]
    rows = compared(resamples=2000, **frames)
    assert json.loads(json.dumps(rows)) == rows and rows["weak"]["label"] == "weak"  # plain numbers
    there, back = (rows[one]["against"][other]["recall@1"] for one, other in (("weak", "strong"), ("strong", "weak")))
    assert there["difference"] == -back["difference"] < 0 and there["ci95"] == [-end for end in back["ci95"][::-1]]
    assert there["p_value"] == back["p_value"] < 0.01
    gaps = frames["weak"]["recall@1"] - frames["strong"]["recall@1"]
    assert [there[name] for name in ("wins", "ties", "losses")] == [(gaps > 0).sum(), (gaps == 0).sum(),
                                                                   (gaps < 0).sum()]
    assert [back[name] for name in ("wins", "ties", "losses")] == [there["losses"], there["ties"], there["wins"]]
    for one, other in (("strong", "twin"), ("twin", "strong")):  # identical runs
        assert json.dumps(rows[one]["against"][other]["mrr@10"]) == json.dumps({
            "difference": 0.0, "ci95": [0.0, 0.0], "p_value": 1.0, "planned": True, "wins": 0, "ties": 400,
            "losses": 0})
    low, high = rows["strong"]["ci95"]["recall@1"]
    assert low < frames["strong"]["recall@1"].mean() < high
    assert low != compared(resamples=2000, seed=1, **frames)["strong"]["ci95"]["recall@1"][0]
    alone = compared(resamples=100, a=frame([0, 1, 1]))["a"]
    assert alone["against"] == {} and set(alone["ci95"]) == set(METRICS)


def test_query_order_of_frames_does_not_matter():
    a, b = (frame(np.random.default_rng(seed).random(50)) for seed in (11, 12))
    assert compared(resamples=200, a=a, b=b) == compared(resamples=200, a=a, b=b[::-1])


def test_holm_by_hand():
    # sorted 0.01 0.02 0.03 0.04 -> 4*0.01, 3*0.02, max(0.06, 2*0.03), max(0.06, 0.04)
    assert holm([0.03, 0.01, 0.04, 0.02]).tolist() == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert holm([0.9, 0.6]).tolist() == [1, 1]


def by_definition(p_values):
    """Holm written as its definition: reject while p(k) <= alpha / (m + 1 - k); the smallest alpha that rejects."""
    m, ranked = len(p_values), sorted(p_values)
    return [min(1, max((m - k) * ranked[k] for k in range(ranked.index(p) + 1))) for p in p_values]


@pytest.mark.parametrize("planned, corrected", [
    (None, "ab ac ad bc bd cd"), ([], ""),
    ([("b", "a"), ("a", "c"), ("a", "never measured")], "ab ac")])  # in either order; of those that are there
def test_only_planned_pairs_are_corrected_within_each_metric(planned, corrected):
    rng = np.random.default_rng(13)
    frames = {label: frame(rng.random((80, 2)) + shift) for label, shift in zip("abcd", (0, 0.03, 0.06, 0.09))}
    rows, raw = (compared(which, resamples=999, **frames) for which in (planned, []))
    family = [tuple(pair) for pair in corrected.split()]
    for metric in METRICS:
        before, after = p_values(raw, metric), p_values(rows, metric)
        assert [after[pair] for pair in family] == pytest.approx(by_definition([before[pair] for pair in family]))
        assert all(after[pair] == before[pair] for pair in after if pair not in family)
    seen = [(row["label"], other) for row in rows.values() for other, pair in row["against"].items()
            if pair["recall@1"]["planned"]]
    assert sorted(seen) == sorted([*family, *(pair[::-1] for pair in family)])


RNG = np.random.default_rng(14)
GAPS = {  # per-query differences of kinds that occur
    "recall, many changes": RNG.choice([1.0, 0, -1], 400, p=[0.16, 0.73, 0.11]),
    "recall, few changes": np.repeat([1.0, -1, 0], [9, 2, 389]),
    "recall, two positives": np.repeat([0.5, -1, 0], [30, 5, 200]),
    "reciprocal rank": reciprocal_ranks(RNG, 400, 0.75) - reciprocal_ranks(RNG, 400, 0.6),
    "skewed": np.repeat([0.05, -0.5, 0], [60, 3, 300])}


@pytest.mark.parametrize("comparisons", [1, 4])
@pytest.mark.parametrize("kind", GAPS)
def test_so_many_queries_find_the_difference_in_four_of_five_tries(kind, comparisons):
    """Tries with the real test, on queries drawn from the differences at hand."""
    needed = queries_needed(GAPS[kind], comparisons)

    def power(queries, tries=400):
        drawn = np.random.default_rng(15).choice(GAPS[kind], (queries, tries))
        return (p_value(sign_flip_sums(drawn, resamples=2000), drawn.sum(axis=0)) < ALPHA / comparisons).mean()

    assert 0.72 < power(needed) < 0.88  # the standard error of 400 tries is 0.02
    assert 0.25 < power(needed // 2) < 0.6


def test_queries_needed_at_its_limits():
    assert queries_needed(np.zeros(50)) is None and queries_needed(np.repeat([1.0, -1], 50)) is None
    noise = stats.zscore(np.random.default_rng(16).normal(size=5000))
    z = stats.norm.ppf(0.975) + stats.norm.ppf(0.8)
    assert queries_needed(noise + 0.005) == pytest.approx((z / 0.005) ** 2, rel=1e-4)  # 314,000
    assert (z / 0.0025) ** 2 > MOST_QUERIES and queries_needed(noise + 0.0025) is None
    ones = queries_needed(np.ones(3))  # the signs of 5 queries all agree in 2 of 32 cases
    assert ones == 6 and p_value(sign_flip_sums(np.ones((ones, 1))), ones) < ALPHA
    gaps = np.random.default_rng(17).normal(0.01, 0.3, 7000)
    assert queries_needed(gaps) == queries_needed(-gaps) < queries_needed(gaps, 2) < queries_needed(gaps, 2, power=0.9)


def test_planned_pairs_that_are_not_significant_have_the_queries_needed():
    base, near = np.repeat([1.0, 0], 150), np.repeat([0.0, 1, 0, 1], [6, 144, 138, 12])  # 12 wins, 6 losses
    planned = [("near", "base"), ("same", "base"), ("far", "base"), ("same", "near")]
    rows = compared(planned, 2000, base=frame(base), same=frame(base), near=frame(near), far=frame(np.ones(300)))
    against = {other: pair["mrr@10"] for other, pair in rows["base"]["against"].items()}
    assert against["near"]["p_value"] > ALPHA and against["far"]["p_value"] < ALPHA
    assert against["near"]["queries_needed"] == queries_needed(base - near, comparisons=4) > 300
    assert "queries_needed" not in against["far"] and "queries_needed" not in against["same"]  # found; nothing to find
    assert "queries_needed" not in rows["far"]["against"]["near"]["mrr@10"]  # not planned


ALONE, THOUGH = " by its interval alone, not after correction", ", though the interval includes 0"
NO_DIFFERENCE = "not distinguishable", False, ""


@pytest.mark.parametrize("difference, low, high, p, expected", [
    (0.03, 0.003, 0.06, 0.049, ("better", True, "")), (0.03, 0.003, 0.06, 0.05, ("better", False, ALONE)),
    (0.03, -0.003, 0.06, 0.05, NO_DIFFERENCE), (0.03, 0.0, 0.06, 0.04, ("better", True, THOUGH)),
    (-0.03, -0.06, -0.003, 0.049, ("worse", True, "")), (-0.03, -0.06, -0.003, 0.05, ("worse", False, ALONE)),
    (-0.03, -0.06, 0.0, 0.04, ("worse", True, THOUGH)), (0.0, 0.001, 0.01, 0.01, NO_DIFFERENCE),
    (0.03, 0.003, 0.06, None, ("better", True, "")), (-0.03, -0.06, -0.003, None, ("worse", True, "")),
    (0.03, 0.0, 0.06, None, NO_DIFFERENCE), (-0.03, -0.06, 0.0, None, NO_DIFFERENCE)])
def test_the_outcome_of_a_comparison_follows_its_interval_and_its_test(difference, low, high, p, expected):
    pair = {"difference": difference, "ci95": [low, high]} | ({} if p is None else {"p_value": p})
    assert outcome(pair) == expected


def test_models_measured_on_different_queries_are_refused():
    with pytest.raises(UserError, match="'a' and 'b' were not measured on the same queries"):
        compared(a=frame([0, 1]), b=frame([0, 1, 1]))
    with pytest.raises(UserError, match="no value"):
        compared(a=frame([0, np.nan]))


def test_ten_models_on_seven_thousand_queries_take_seconds():
    rng, metrics = np.random.default_rng(12), ["recall@1", "recall@10", "recall@100", "mrr@10", "ndcg@10"]
    frames = {f"m{i}": frame(rng.random((7000, 5)), metrics) for i in range(10)}
    start = time.perf_counter()
    assert len(p_values(compared(**frames))) == 45 and time.perf_counter() - start < 20  # about 2 s on two idle cores
