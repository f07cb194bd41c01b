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

from collections.abc import Iterator, Sequence
from itertools import combinations
from statistics import NormalDist
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from embedding_finetune.files import UserError

RESAMPLES = 10_000
SEED = 42  # of the resamples and sign flips, the same in every experiment
ALPHA = 0.05  # 95 % intervals; a planned pair is called distinguishable when its Holm-corrected p-value is below this
POWER = 0.8  # probability of detecting a difference, in `queries_needed`
MOST_QUERIES = 1_000_000  # larger results of `queries_needed` are not reported
CHUNK_BYTES = 64_000_000  # size of one chunk of resampling weights
ROUNDING = 1e-9  # sums this close differ only in the order of addition


def stack(frames: dict[str, pd.DataFrame]) -> tuple[list[str], np.ndarray]:
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


def _chunks(resamples: int, queries: int) -> Iterator[int]:
    size = max(1, CHUNK_BYTES // (8 * queries))
    return (min(size, resamples - start) for start in range(0, resamples, size))


def bootstrap_means(values: np.ndarray, *, resamples: int = RESAMPLES, seed: int = SEED) -> np.ndarray:
    """Column means of `values` (queries, columns) over resampled queries; shape (resamples, columns)."""
    rng, queries = np.random.default_rng(seed), len(values)
    means = []
    for size in _chunks(resamples, queries):  # counts: how often each query was drawn in each resample
        drawn = rng.integers(queries, size=(size, queries), dtype=np.int32) + np.arange(size)[:, None] * queries
        counts = np.bincount(drawn.ravel(), minlength=size * queries).reshape(size, queries)
        means.append(counts.astype(float) @ values / queries)
    return np.concatenate(means)


def sign_flip_sums(values: np.ndarray, *, resamples: int = RESAMPLES, seed: int = SEED) -> np.ndarray:
    """Column sums of `values` (queries, columns) under random signs per query; shape (resamples, columns).

    The difference of two columns of the result is the sum of their per-query differences under the same signs.
    """
    rng, queries = np.random.default_rng(seed), len(values)
    sums = []
    for size in _chunks(resamples, queries):
        bits = np.unpackbits(np.frombuffer(rng.bytes(size * -(-queries // 8)), np.uint8).reshape(size, -1), axis=1)
        sums.append(values.sum(axis=0) - 2 * bits[:, :queries].astype(float) @ values)
    return np.concatenate(sums)


def interval(samples: np.ndarray) -> np.ndarray:
    """Percentile interval of bootstrap samples (resamples, columns): lower and upper end, each of shape (columns,)."""
    return np.quantile(samples, [ALPHA / 2, 1 - ALPHA / 2], axis=0).round(12) + 0.0  # removes rounding noise and -0.0


def p_value(flipped: np.ndarray, observed: ArrayLike) -> Any:
    """Two-sided p-value of an observed sum among sums under random signs, (count + 1) / (resamples + 1).

    The observed signs are one of the possible outcomes, so p is never 0 (Phipson and Smyth 2010). For two identical
    runs, every outcome is as extreme as the observed one and p is exactly 1.
    """
    extreme = np.abs(flipped) >= np.abs(observed) - ROUNDING
    return (extreme.sum(axis=0) + 1) / (len(flipped) + 1)


def holm(p_values: ArrayLike) -> np.ndarray:
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


def excludes_zero(ci95: Sequence[float]) -> bool:
    """Whether an interval [low, high] lies entirely above or below 0."""
    return bool(ci95[0] > ROUNDING or ci95[1] < -ROUNDING)


def outcome(pair: dict) -> Outcome:
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


def queries_needed(gaps: ArrayLike, comparisons: int = 1, *, power: float = POWER) -> int | None:
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


def add_significance(rows: Sequence[dict], frames: dict[str, pd.DataFrame], planned: Sequence[tuple] | None = None, *,
                     resamples: int = RESAMPLES, seed: int = SEED) -> list[dict]:
    """Add `ci95` and `against` to rows (dicts with `label`); `frames` has a DataFrame per label, see `stack`.

    ci95      metric -> [low, high]
    against   other label -> metric -> {difference (row minus other), ci95, p_value, planned, wins, ties, losses
              (queries on which the row is better, equal, worse), and queries_needed (see the function; only of planned
              pairs that are not significant)}

    `planned` is a list of pairs of labels, None for all. p-values are Holm-corrected over the planned pairs of each
    metric; those of other pairs are uncorrected.
    """
    labels = [row["label"] for row in rows]
    metrics, values = stack({label: frames[label] for label in labels})
    flat = values.reshape(len(values), -1)
    means = bootstrap_means(flat, resamples=resamples, seed=seed).reshape(resamples, *values.shape[1:])
    flipped = sign_flip_sums(flat, resamples=resamples, seed=seed + 1).reshape(means.shape)
    found = [row | {"ci95": dict(zip(metrics, np.transpose(interval(means[:, place])).tolist())), "against": {}}
             for place, row in enumerate(rows)]
    pairs = list(combinations(range(len(labels)), 2))
    family = {frozenset(pair) for pair in planned} if planned is not None else None
    in_family = np.array([family is None or frozenset((labels[a], labels[b])) in family for a, b in pairs], bool)
    p_values = np.array([p_value(flipped[:, a] - flipped[:, b], (values[:, a] - values[:, b]).sum(axis=0))
                         for a, b in pairs]).reshape(len(pairs), len(metrics))
    if in_family.any():
        p_values[in_family] = np.apply_along_axis(holm, 0, p_values[in_family])
    for (a, b), is_planned, p_of_metric in zip(pairs, in_family.tolist(), p_values.tolist()):
        ends = interval(means[:, a] - means[:, b])
        for place, (metric, p) in enumerate(zip(metrics, p_of_metric)):
            pair = _pair(values[:, a, place] - values[:, b, place], ends[:, place].tolist(), p, is_planned)
            if is_planned and p >= ALPHA:
                needed = queries_needed(values[:, a, place] - values[:, b, place], int(in_family.sum()))
                pair |= {"queries_needed": needed} if needed else {}
            found[a]["against"].setdefault(labels[b], {})[metric] = pair
            found[b]["against"].setdefault(labels[a], {})[metric] = _reversed(pair)
    return found


def _pair(gaps: np.ndarray, ci95: list[float], p: float, is_planned: bool) -> dict:
    wins, losses = int((gaps > ROUNDING).sum()), int((gaps < -ROUNDING).sum())
    return {"difference": float(gaps.mean()), "ci95": ci95, "p_value": p, "planned": is_planned, "wins": wins,
            "ties": len(gaps) - wins - losses, "losses": losses}


def _reversed(pair: dict) -> dict:
    """The same pair seen from the other row; adding 0.0 turns -0.0 into 0.0."""
    return pair | {"difference": 0.0 - pair["difference"], "ci95": [0.0 - end for end in pair["ci95"][::-1]],
                   "wins": pair["losses"], "losses": pair["wins"]}
