"""Significance of differences between models: confidence intervals and paired tests over the test queries.

All models are evaluated on the same queries, so differences are computed per query. All models and metrics share the
random resamples of the queries and the random sign flips. This keeps differences paired and reduces the computation to
one matrix product per chunk.

Interval: percentile bootstrap over queries, 95 %. It covers other queries of the same kind on the same corpus. It does
not cover training seeds or other datasets.

Test: two-sided paired randomisation test (random sign flips of the per-query differences) on the mean, the test
recommended by Smucker, Allan and Carterette, "A Comparison of Statistical Significance Tests for Information Retrieval
Evaluation", CIKM 2007. Ihemelandu and Ekstrand, "Inference at Scale: Significance Testing for Large Search and
Recommendation Experiments", SIGIR 2023, find it and the bootstrap reliable for thousands of queries (unlike the
Wilcoxon and sign tests). They note that with so many queries tiny differences become significant, so the size of a
difference and its interval matter first.

Correction: Holm, "A Simple Sequentially Rejective Multiple Test Procedure", Scandinavian Journal of Statistics 1979,
over the planned comparisons within one metric. All other pairs are exploratory: their p-values are uncorrected, and
only suggest hypotheses.
"""

from itertools import combinations
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
import pandas as pd

from embedding_finetune.files import UserError

RESAMPLES = 10_000
SEED = 42  # of the resamples and sign flips, the same in every experiment
ALPHA = 0.05  # 95 % intervals; a planned pair is called distinguishable when its Holm-corrected p-value is below this
POWER = 0.8  # probability of detecting a difference, in `queries_needed`
MOST_QUERIES = 1_000_000  # larger results of `queries_needed` are not reported
CHUNK_BYTES = 64_000_000  # size of one chunk of resampling weights
ROUNDING = 1e-9  # sums this close differ only in the order of addition


def stack(frames):
    """Align the per-query values of several models.

    `frames`: label -> DataFrame (index: query id, columns: metrics), as returned by `metrics.per_query`. Returns
    (metrics, array of shape (queries, models, metrics)). Raises UserError when the queries of the models differ, since
    differences could not be paired.
    """
    first_label, first = next(iter(frames.items()))
    for label, frame in frames.items():
        if not frame.index.is_unique or set(frame.index) != set(first.index) or list(frame) != list(first):
            raise UserError(f"models {first_label!r} and {label!r} were not measured on the same queries and "
                            "metrics; run the evaluation notebooks again on the same data")
        if frame.empty or frame.isna().any(axis=None):
            raise UserError(f"model {label!r} has no value for some query; run its evaluation notebook again")
    return list(first), np.stack([frame.loc[first.index].to_numpy(float) for frame in frames.values()], axis=1)


def _chunks(resamples, queries):
    size = max(1, CHUNK_BYTES // (8 * queries))
    return (min(size, resamples - start) for start in range(0, resamples, size))


def bootstrap_means(values, *, resamples=RESAMPLES, seed=SEED):
    """Column means of `values` (queries, columns) over resampled queries; shape (resamples, columns)."""
    rng, queries = np.random.default_rng(seed), len(values)
    means = []
    for size in _chunks(resamples, queries):  # counts: how often each query was drawn in each resample
        drawn = rng.integers(queries, size=(size, queries), dtype=np.int32) + np.arange(size)[:, None] * queries
        counts = np.bincount(drawn.ravel(), minlength=size * queries).reshape(size, queries)
        means.append(counts.astype(float) @ values / queries)
    return np.concatenate(means)


def sign_flip_sums(values, *, resamples=RESAMPLES, seed=SEED):
    """Column sums of `values` (queries, columns) under random signs per query; shape (resamples, columns).

    The difference of two columns of the result is the sum of their per-query differences under the same signs.
    """
    rng, queries = np.random.default_rng(seed), len(values)
    sums = []
    for size in _chunks(resamples, queries):
        bits = np.unpackbits(np.frombuffer(rng.bytes(size * -(-queries // 8)), np.uint8).reshape(size, -1), axis=1)
        sums.append(values.sum(axis=0) - 2 * bits[:, :queries].astype(float) @ values)
    return np.concatenate(sums)


def interval(samples):
    """Percentile interval of bootstrap samples (resamples, columns): lower and upper end, each of shape (columns,)."""
    return np.quantile(samples, [ALPHA / 2, 1 - ALPHA / 2], axis=0).round(12) + 0.0  # removes rounding noise and -0.0


def p_value(flipped, observed):
    """Two-sided p-value of an observed sum among sums under random signs, (count + 1) / (resamples + 1).

    The observed signs are one of the possible outcomes, so p is never 0 (Phipson and Smyth 2010). For two identical
    runs, every outcome is as extreme as the observed one and p is exactly 1.
    """
    extreme = np.abs(flipped) >= np.abs(observed) - ROUNDING
    return (extreme.sum(axis=0) + 1) / (len(flipped) + 1)


def holm(p_values):
    """Apply Holm's step-down correction to a 1-d array of p-values; keeps their order."""
    p_values = np.asarray(p_values, float)
    order = np.argsort(p_values, kind="stable")
    stepped = np.maximum.accumulate(p_values[order] * np.arange(len(p_values), 0, -1))
    corrected = np.empty_like(p_values)
    corrected[order] = np.minimum(stepped, 1)
    return corrected


class Outcome(NamedTuple):
    """Result of comparing the first of two models with the second; see `outcome`."""

    word: str  # "better", "worse" or "not distinguishable"
    significant: bool
    note: str  # follows `word` where interval and test disagree, else ""


def excludes_zero(ci95):
    """Whether an interval [low, high] lies entirely above or below 0."""
    return bool(ci95[0] > ROUNDING or ci95[1] < -ROUNDING)


def outcome(pair):
    """Outcome of a comparison with `difference`, `ci95` and corrected `p_value`.

    Without a p-value (as in the learning curve), the interval alone decides.
    """
    apart = excludes_zero(pair["ci95"])
    significant = bool(pair["p_value"] < ALPHA) if "p_value" in pair else apart
    if abs(pair["difference"]) < ROUNDING or not (significant or apart):
        return Outcome("not distinguishable", False, "")
    note = "" if significant == apart else (", though the interval includes 0" if significant else
                                            " by its interval alone, not after correction")
    return Outcome("better" if pair["difference"] > 0 else "worse", significant, note)


def queries_needed(gaps, comparisons=1, *, power=POWER):
    """Number of queries needed to detect a difference as large as the observed one with probability `power`.

    `gaps` are the observed per-query differences; future queries are assumed to have the same distribution. Under
    random signs, the sum over n queries has standard deviation sqrt(n E[gap^2]); the actual sum has mean n E[gap] and
    standard deviation sqrt(n) std(gap). Both are approximated as normal, at level ALPHA / `comparisons` (Holm's first
    and strictest step). The calculation follows Webber, Moffat and Zobel, "Statistical Power in Retrieval
    Experimentation", CIKM 2008, adapted to this test. Returns None above MOST_QUERIES, or without a difference.
    """
    gaps, quantile = np.asarray(gaps, float), NormalDist().inv_cdf
    if abs(gaps.mean()) < ROUNDING:
        return None
    reach = quantile(1 - ALPHA / comparisons / 2) * np.sqrt((gaps**2).mean()) + quantile(power) * gaps.std()
    fewest = 1 + np.log2(comparisons / ALPHA)  # below this, p stays above the level even if all signs agree
    needed = np.ceil(max((reach / gaps.mean()) ** 2, fewest))
    return int(needed) if needed <= MOST_QUERIES else None


def compare(frames, planned=None, *, resamples=RESAMPLES, seed=SEED):
    """Compute intervals of all models and compare all pairs.

    `frames` is as in `stack`; `planned` is a list of pairs of labels. Returns two DataFrames in long format:
    models  label, metric, mean, low, high
    pairs   a, b, metric, difference (mean of a minus mean of b), low, high, p_raw, p_value, planned, wins, ties, losses
            (queries on which a is better, equal, worse), needed. p_value is Holm-corrected over the planned pairs of
            the metric (all pairs, if `planned` is None) and equals p_raw for the others. needed is queries_needed for
            planned pairs that are not significant, else NaN
    """
    labels = list(frames)
    metrics, values = stack(frames)
    flat = values.reshape(len(values), -1)
    means = bootstrap_means(flat, resamples=resamples, seed=seed).reshape(resamples, len(labels), -1)
    flipped = sign_flip_sums(flat, resamples=resamples, seed=seed + 1).reshape(means.shape)
    models, pairs = [], []
    for number, label in enumerate(labels):
        models.append(pd.DataFrame({"label": label, "metric": metrics, "mean": values[:, number].mean(axis=0)}))
        models[-1]["low"], models[-1]["high"] = interval(means[:, number])
    family = [set(pair) for pair in planned] if planned is not None else None
    for a, b in combinations(range(len(labels)), 2):
        gap = values[:, a] - values[:, b]
        low, high = interval(means[:, a] - means[:, b])
        pairs.append(pd.DataFrame({
            "a": labels[a], "b": labels[b], "metric": metrics, "difference": gap.mean(axis=0), "low": low, "high": high,
            "p_raw": p_value(flipped[:, a] - flipped[:, b], gap.sum(axis=0)),
            "planned": family is None or {labels[a], labels[b]} in family, "wins": (gap > ROUNDING).sum(axis=0),
            "ties": (np.abs(gap) <= ROUNDING).sum(axis=0), "losses": (gap < -ROUNDING).sum(axis=0)}))
    columns = ["a", "b", "metric", "p_raw", "planned"]
    pairs = pd.concat(pairs, ignore_index=True) if pairs else pd.DataFrame(columns=columns)
    chosen = pairs["planned"].astype(bool)
    pairs["p_value"] = pairs["p_raw"]
    pairs.loc[chosen, "p_value"] = pairs[chosen].groupby("metric")["p_raw"].transform(holm)
    pairs["needed"] = np.nan
    for pair in pairs[chosen & (pairs["p_value"] >= ALPHA)].itertuples():
        gaps = frames[pair.a][pair.metric] - frames[pair.b][pair.metric]
        needed = queries_needed(gaps, (chosen & (pairs["metric"] == pair.metric)).sum())
        pairs.loc[pair.Index, "needed"] = np.nan if needed is None else needed
    return pd.concat(models, ignore_index=True), pairs


def add_significance(rows, frames, planned=None, *, resamples=RESAMPLES, seed=SEED):
    """Add `ci95` and `against` to rows (dicts with `label`); `frames` has a DataFrame per label.

    ci95      metric -> [low, high]
    against   other label -> metric -> {difference (row minus other), ci95, p_value, planned, wins, ties, losses, and
              queries_needed where `compare` returns it}
    """
    labels = [row["label"] for row in rows]
    models, pairs = compare({label: frames[label] for label in labels}, planned, resamples=resamples, seed=seed)
    ci95, against = ({label: {} for label in labels} for _ in range(2))
    for model in models.itertuples():
        ci95[model.label][model.metric] = [model.low, model.high]
    for pair in pairs.itertuples():
        for one, other, sign in (pair.a, pair.b, 1), (pair.b, pair.a, -1):  # adding 0.0 turns -0.0 into 0.0
            low, high = (sign * end + 0.0 for end in (pair.low, pair.high)[::sign])
            wins, losses = (pair.wins, pair.losses)[::sign]
            against[one].setdefault(other, {})[pair.metric] = {
                "difference": sign * pair.difference + 0.0, "ci95": [low, high], "p_value": pair.p_value,
                "planned": bool(pair.planned), "wins": wins, "ties": pair.ties, "losses": losses,
                **({} if np.isnan(pair.needed) else {"queries_needed": int(pair.needed)})}
    return [row | {"ci95": ci95[row["label"]], "against": against[row["label"]]} for row in rows]
