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
    compare,
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


def reciprocal_ranks(rng, queries, hits=0.6):
    return np.where(rng.random(queries) < hits, 1 / rng.integers(1, 11, queries), 0)


def test_interval_agrees_with_scipy_bootstrap():
    a, b = reciprocal_ranks(np.random.default_rng(1), 300), reciprocal_ranks(np.random.default_rng(2), 300, hits=0.7)
    models, pairs = compare({"a": frame(a), "b": frame(b)})
    options = dict(n_resamples=10_000, method="percentile", rng=np.random.default_rng(3))
    one = stats.bootstrap((a,), np.mean, **options).confidence_interval
    difference = stats.bootstrap((a - b,), np.mean, **options).confidence_interval
    assert models.loc[0, ["low", "high"]].tolist() == pytest.approx([one.low, one.high], abs=0.003)
    assert pairs.loc[0, ["low", "high"]].tolist() == pytest.approx([difference.low, difference.high], abs=0.003)
    assert models["mean"][0] == pytest.approx(a.mean()) and pairs["difference"][0] == pytest.approx((a - b).mean())


@pytest.mark.parametrize("shift", [0.0, 0.1, 0.2, 0.35])
def test_p_value_agrees_with_scipy_permutation_test(shift):
    rng = np.random.default_rng(4)
    a, b = rng.random(14) + shift, rng.random(14)
    exact = stats.permutation_test((a, b), lambda x, y, axis: (x - y).mean(axis), permutation_type="samples",
                                   n_resamples=2 ** 14).pvalue  # all sign flips, no sampling
    ours = compare({"a": frame(a), "b": frame(b)})[1]["p_raw"][0]
    assert ours == pytest.approx(exact, abs=4 * np.sqrt(exact * (1 - exact) / 10_000) + 2e-4)


def test_interval_covers_a_known_truth_at_its_nominal_rate():
    truth, rng, experiments = 0.3, np.random.default_rng(5), 1500
    columns = (rng.random((250, experiments)) < truth).astype(float)  # each column: one experiment of 250 queries
    low, high = interval(bootstrap_means(columns, resamples=2000))
    covered = np.mean((low <= truth) & (truth <= high))
    assert 0.93 <= covered <= 0.965  # 0.95, less what 250 queries and 1500 experiments (standard error 0.006) allow


def test_shuffled_systems_are_found_different_only_at_the_nominal_rate():
    rng, experiments = np.random.default_rng(6), 1000
    a, b = (np.stack([reciprocal_ranks(rng, 200, hits) for _ in range(experiments)], axis=1) for hits in (0.9, 0.3))
    swap = rng.random(a.shape) < 0.5  # which system gave which answer is random: no real difference by construction
    gaps = np.where(swap, b - a, a - b)
    p_values = p_value(sign_flip_sums(gaps, resamples=1000), gaps.sum(axis=0))
    assert 0.03 <= np.mean(p_values < 0.05) <= 0.07
    assert stats.kstest(p_values, "uniform").pvalue > 0.001
    one, other = np.where(swap, b, a)[:, 0], np.where(swap, a, b)[:, 0]
    assert compare({"one": frame(one), "other": frame(other)})[1]["p_value"].gt(0.05).all()


def test_identical_runs_give_p_of_exactly_one_and_an_empty_interval():
    values = np.random.default_rng(7).random((997, 2))
    _, pairs = compare({"a": frame(values), "b": frame(values), "c": frame(values)}, resamples=500)
    assert (pairs["p_raw"] == 1).all() and (pairs["p_value"] == 1).all()
    assert (pairs[["difference", "low", "high", "wins", "losses"]] == 0).all(axis=None) and (pairs["ties"] == 997).all()


def test_planted_difference_is_found_among_many_pairs():
    rng = np.random.default_rng(8)
    base = (rng.random(2000) < 0.6).astype(float)
    better = np.where(rng.random(2000) < 0.05, 1, base)  # about 2 points up
    noise = [np.where(rng.random(2000) < 0.03, 1 - base, base) for _ in range(3)]
    frames = {"base": frame(base), "better": frame(better)} | {f"n{i}": frame(n) for i, n in enumerate(noise)}
    _, pairs = compare(frames)
    row = pairs[(pairs["a"] == "base") & (pairs["b"] == "better")].iloc[0]
    assert row["p_value"] < 0.01 and row["high"] < 0 and row["wins"] == 0
    assert row["losses"] == (better > base).sum() and row["ties"] + row["losses"] == 2000


def test_holm_by_hand():
    # sorted 0.01 0.02 0.03 0.04 -> 4*0.01, 3*0.02, max(0.06, 2*0.03), max(0.06, 0.04)
    assert holm([0.03, 0.01, 0.04, 0.02]).tolist() == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert holm([0.9, 0.6]).tolist() == [1, 1]


def test_holm_is_applied_within_each_metric():
    rng = np.random.default_rng(9)
    frames = {label: frame(rng.random((60, 2)) + shift) for label, shift in (("a", 0), ("b", 0.1), ("c", 0.15))}
    _, pairs = compare(frames, resamples=999)
    for _, group in pairs.groupby("metric"):
        assert group["p_value"].tolist() == pytest.approx(stats_holm(group["p_raw"].tolist()))


def stats_holm(p_values):
    """Holm written as its definition: reject while p(k) <= alpha / (m + 1 - k); the smallest alpha that rejects."""
    m, ranked = len(p_values), sorted(p_values)
    return [min(1, max((m - k) * ranked[k] for k in range(ranked.index(p) + 1))) for p in p_values]


def test_rows_follow_the_contract_and_mirror_each_other():
    rng = np.random.default_rng(10)
    frames = {"weak": frame(rng.random((400, 2)) < 0.3), "strong": frame(rng.random((400, 2)) < 0.6)}
    frames["twin"] = frames["strong"]
    rows = [{"label": label, "metrics": f.mean().to_dict()} for label, f in frames.items()]
    rows = json.loads(json.dumps(add_significance(rows, frames, resamples=2000)))  # plain numbers: JSON takes them
    weak, strong, twin = rows
    there, back = weak["against"]["strong"]["recall@1"], strong["against"]["weak"]["recall@1"]
    assert there["difference"] == -back["difference"] < 0 and there["ci95"] == [-end for end in back["ci95"][::-1]]
    assert there["p_value"] == back["p_value"] < 0.01
    assert (there["wins"], there["ties"], there["losses"]) == (back["losses"], back["ties"], back["wins"])
    assert strong["against"]["twin"]["mrr@10"] == {
        "difference": 0, "ci95": [0, 0], "p_value": 1, "planned": True, "wins": 0, "ties": 400, "losses": 0}
    low, high = strong["ci95"]["recall@1"]
    assert low < strong["metrics"]["recall@1"] < high
    assert low != add_significance(rows, frames, resamples=2000, seed=1)[1]["ci95"]["recall@1"][0]


def test_only_planned_pairs_are_corrected():
    rng = np.random.default_rng(13)
    frames = {label: frame(rng.random((80, 2)) + shift) for label, shift in zip("abcd", (0, 0.03, 0.06, 0.09))}
    planned = [("b", "a"), ("a", "c"), ("a", "never measured")]  # in either order; a pair that is not there is none
    _, pairs = compare(frames, planned, resamples=999)
    for _, group in pairs.groupby("metric"):
        inside = group[group["planned"]]
        assert list(inside["a"] + inside["b"]) == ["ab", "ac"]
        assert inside["p_value"].tolist() == pytest.approx(stats_holm(inside["p_raw"].tolist()))
        assert (inside["p_value"] > inside["p_raw"]).any()
        others = group[~group["planned"]]
        assert len(others) == 4 and (others["p_value"] == others["p_raw"]).all() and others["needed"].isna().all()
    rows = add_significance([{"label": label} for label in frames], frames, planned, resamples=999)
    said = [(row["label"], other) for row in rows for other, seen in row["against"].items()
            if seen["recall@1"]["planned"]]
    assert said == [("a", "b"), ("a", "c"), ("b", "a"), ("c", "a")]


def test_without_a_plan_nothing_is_corrected():
    frames = {label: frame(np.random.default_rng(seed).random(30)) for seed, label in enumerate("abc")}
    pairs = compare(frames, [], resamples=200)[1]
    assert not pairs["planned"].any() and (pairs["p_value"] == pairs["p_raw"]).all()


RNG = np.random.default_rng(14)
GAPS = {  # per-query differences of kinds that occur
    "recall, many changes": RNG.choice([1.0, 0, -1], 400, p=[0.16, 0.73, 0.11]),
    "recall, few changes": np.repeat([1.0, -1, 0], [9, 2, 389]),
    "recall, large": np.repeat([1.0, -1, 0], [68, 16, 316]),
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


def test_queries_needed_is_also_told_where_it_is_a_matter_of_few_or_of_none():
    assert queries_needed(np.zeros(50)) is None and queries_needed(np.repeat([1.0, -1], 50)) is None
    noise = stats.zscore(np.random.default_rng(16).normal(size=5000))
    z = stats.norm.ppf(0.975) + stats.norm.ppf(0.8)
    assert queries_needed(noise + 0.005) == pytest.approx((z / 0.005) ** 2, rel=1e-4)  # 314,000
    assert (z / 0.0025) ** 2 > MOST_QUERIES and queries_needed(noise + 0.0025) is None
    ones = queries_needed(np.ones(3))  # what ever they say, 5 queries have signs that all agree in 2 of 32 cases
    assert ones == 6 and p_value(sign_flip_sums(np.ones((ones, 1))), ones) < ALPHA
    gaps = np.random.default_rng(17).normal(0.01, 0.3, 7000)
    start = time.perf_counter()
    assert queries_needed(gaps) == queries_needed(-gaps) == queries_needed(np.random.default_rng(18).permutation(gaps))
    assert queries_needed(gaps) < queries_needed(gaps, 2) < queries_needed(gaps, 2, power=0.9)
    assert time.perf_counter() - start < 1


def test_queries_needed_stands_beside_planned_pairs_that_cannot_be_told_apart():
    base, near = np.repeat([1.0, 0], 150), np.repeat([0.0, 1, 0, 1], [6, 144, 138, 12])  # 12 wins, 6 losses
    frames = {"base": frame(base), "same": frame(base), "near": frame(near), "far": frame(np.ones(300))}
    planned = [("near", "base"), ("same", "base"), ("far", "base"), ("same", "near")]
    rows = add_significance([{"label": label} for label in frames], frames, planned, resamples=2000)
    against = {other: pair["mrr@10"] for other, pair in rows[0]["against"].items()}
    assert against["near"]["p_value"] > ALPHA and against["far"]["p_value"] < ALPHA
    assert against["near"]["queries_needed"] == queries_needed(base - near, comparisons=4) > 300
    assert "queries_needed" not in against["far"] and "queries_needed" not in against["same"]  # found; nothing to find
    assert "queries_needed" not in rows[3]["against"]["near"]["mrr@10"]  # not planned


ALONE, THOUGH = " by its interval alone, not after correction", ", though the interval includes 0"
NO_DIFFERENCE = "not distinguishable", False, ""


@pytest.mark.parametrize("difference, low, high, p, expected", [
    (0.03, 0.003, 0.06, 0.049, ("better", True, "")), (0.03, 0.003, 0.06, 0.05, ("better", False, ALONE)),
    (0.03, -0.003, 0.06, 0.05, NO_DIFFERENCE), (0.03, 0.0, 0.06, 0.04, ("better", True, THOUGH)),
    (-0.03, -0.06, -0.003, 0.049, ("worse", True, "")), (-0.03, -0.06, -0.003, 0.05, ("worse", False, ALONE)),
    (-0.03, -0.06, 0.003, 0.05, NO_DIFFERENCE), (-0.03, -0.06, 0.0, 0.04, ("worse", True, THOUGH)),
    (0.0, -0.01, 0.01, 1.0, NO_DIFFERENCE), (0.0, 0.0, 0.0, 1.0, NO_DIFFERENCE),
    (0.0, 0.001, 0.01, 0.01, NO_DIFFERENCE),
    (0.03, 0.003, 0.06, None, ("better", True, "")), (-0.03, -0.06, -0.003, None, ("worse", True, "")),
    (0.03, 0.0, 0.06, None, NO_DIFFERENCE), (-0.03, -0.06, 0.0, None, NO_DIFFERENCE)])
def test_the_outcome_of_a_comparison_follows_its_interval_and_its_test(difference, low, high, p, expected):
    pair = {"difference": difference, "ci95": [low, high]} | ({} if p is None else {"p_value": p})
    assert outcome(pair) == expected


def test_thirty_one_models():
    rng = np.random.default_rng(20)
    frames = {f"m{number}": frame(rng.random((200, 2)) < 0.4 + number / 100) for number in range(31)}
    planned = [("m30", "m0"), ("m5", "m4")]
    rows = add_significance([{"label": label} for label in frames], frames, planned, resamples=500)
    assert all(len(row["against"]) == 30 for row in rows)
    seen = [pair["recall@1"]["planned"] for row in rows for pair in row["against"].values()]
    assert sum(seen) == 4 and json.dumps(rows)  # each seen from both sides


def test_same_seed_same_numbers_and_query_order_of_frames_does_not_matter():
    rng = np.random.default_rng(11)
    a, b = frame(rng.random(50)), frame(rng.random(50))
    first, again = compare({"a": a, "b": b}, resamples=200), compare({"a": a, "b": b[::-1]}, resamples=200)
    for one, other in zip(first, again):
        pd.testing.assert_frame_equal(one, other)
    assert not compare({"a": a, "b": b}, resamples=200, seed=1)[0].equals(first[0])


def test_a_single_model_has_an_interval_and_nobody_to_compare_with():
    rows = add_significance([{"label": "a", "metrics": {}}], {"a": frame([0, 1, 1])}, resamples=100)
    assert rows[0]["against"] == {} and set(rows[0]["ci95"]) == set(METRICS)


def test_models_measured_on_different_queries_are_refused():
    with pytest.raises(UserError, match="'a' and 'b' were not measured on the same queries"):
        compare({"a": frame([0, 1]), "b": frame([0, 1, 1])})
    with pytest.raises(UserError, match="no value"):
        compare({"a": frame([0, np.nan])})


def test_ten_models_on_seven_thousand_queries_take_seconds():
    rng = np.random.default_rng(12)
    metrics = ["recall@1", "recall@10", "recall@100", "mrr@10", "ndcg@10"]
    frames = {f"m{i}": frame(rng.random((7000, 5)), metrics) for i in range(10)}
    start = time.perf_counter()
    _, pairs = compare(frames)
    assert len(pairs) == 45 * 5 and time.perf_counter() - start < 20  # about 2 s on two idle cores
