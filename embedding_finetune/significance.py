"""Which differences between models are real: intervals and paired tests over the test queries.

Every model answered the same queries, so differences are taken query by query. All randomness is shared: one resample
of the queries (or one set of sign flips) serves every model and metric, which keeps differences paired and turns the
work into one matrix product per chunk.

Interval: percentile bootstrap over queries, 95 %.  It speaks of other queries of the same kind on the same corpus; it
does not cover training seeds, nor other data sets.
Test: two-sided paired randomisation test (random sign flips of the per-query differences) on the mean, the test
recommended by Smucker, Allan and Carterette, "A Comparison of Statistical Significance Tests for Information Retrieval
Evaluation", CIKM 2007.  Ihemelandu and Ekstrand, "Inference at Scale: Significance Testing for Large Search and
Recommendation Experiments", SIGIR 2023, find it and the bootstrap well behaved for thousands of queries (unlike the
Wilcoxon and sign tests), and remind that with so many queries tiny differences become significant: read the size of a
difference and its interval first.
Correction: Holm, "A Simple Sequentially Rejective Multiple Test Procedure", Scandinavian Journal of Statistics 1979,
over all pairs of models within one metric.
"""

from itertools import combinations

import numpy as np
import pandas as pd

from embedding_finetune.files import ExperimentError

RESAMPLES = 10_000
ALPHA = 0.05  # 95 % intervals; a pair is called distinguishable when its Holm-corrected p-value is below this
CHUNK_BYTES = 64_000_000  # size of one chunk of resampling weights
ROUNDING = 1e-9  # sums this close are the same value added up in another order


def stack(frames):
    """Align per-query values of several models.

    `frames`: label -> DataFrame (index: query id, columns: metrics), as `metrics.per_query` returns it.
    Returns (metrics, array of shape (queries, models, metrics)); raises ExperimentError when the models did not answer
    the same queries, since differences would then not be paired.
    """
    first_label, first = next(iter(frames.items()))
    for label, frame in frames.items():
        if not frame.index.is_unique or set(frame.index) != set(first.index) or list(frame) != list(first):
            raise ExperimentError(f"models {first_label!r} and {label!r} were not measured on the same queries and "
                                  "metrics; run the evaluation notebooks again on the same data")
        if frame.empty or frame.isna().any(axis=None):
            raise ExperimentError(f"model {label!r} has no value for some query; run its evaluation notebook again")
    return list(first), np.stack([frame.loc[first.index].to_numpy(float) for frame in frames.values()], axis=1)


def _chunks(resamples, queries):
    size = max(1, CHUNK_BYTES // (8 * queries))
    return (min(size, resamples - start) for start in range(0, resamples, size))


def bootstrap_means(values, *, resamples=RESAMPLES, seed=0):
    """Means of the columns of `values` (queries, columns) over resampled queries; shape (resamples, columns)."""
    rng, queries = np.random.default_rng(seed), len(values)
    means = []
    for size in _chunks(resamples, queries):  # counts of how often each query was drawn: one multinomial a resample
        drawn = rng.integers(queries, size=(size, queries), dtype=np.int32) + np.arange(size)[:, None] * queries
        counts = np.bincount(drawn.ravel(), minlength=size * queries).reshape(size, queries)
        means.append(counts.astype(float) @ values / queries)
    return np.concatenate(means)


def flipped_sums(values, *, resamples=RESAMPLES, seed=0):
    """Sums of the columns of `values` (queries, columns) under random signs per query; shape (resamples, columns).

    Subtracting two columns of the result gives what flipping the signs of their per-query difference would give.
    """
    rng, queries = np.random.default_rng(seed), len(values)
    sums = []
    for size in _chunks(resamples, queries):
        bits = np.unpackbits(np.frombuffer(rng.bytes(size * -(-queries // 8)), np.uint8).reshape(size, -1), axis=1)
        sums.append(values.sum(axis=0) - 2 * bits[:, :queries].astype(float) @ values)
    return np.concatenate(sums)


def interval(samples):
    """Percentile interval of bootstrap samples (resamples, columns): low and high end, each of shape (columns,)."""
    return np.quantile(samples, [ALPHA / 2, 1 - ALPHA / 2], axis=0).round(12) + 0.0  # rounding noise and -0.0 away


def p_value(flipped, observed):
    """Two-sided p-value of an observed sum among sums under random signs, (count + 1) / (resamples + 1).

    The observed signs are one of the possible outcomes, so p is never 0 (Phipson and Smyth 2010); for two identical
    runs every outcome is as extreme as the observed one and p is exactly 1.
    """
    extreme = np.abs(flipped) >= np.abs(observed) - ROUNDING
    return (extreme.sum(axis=0) + 1) / (len(flipped) + 1)


def holm(p_values):
    """Holm's step-down correction of a 1-d array of p-values, in the order given."""
    p_values = np.asarray(p_values, float)
    order = np.argsort(p_values, kind="stable")
    stepped = np.maximum.accumulate(p_values[order] * np.arange(len(p_values), 0, -1))
    corrected = np.empty_like(p_values)
    corrected[order] = np.minimum(stepped, 1)
    return corrected


def compare(frames, *, resamples=RESAMPLES, seed=0):
    """Intervals of every model and comparison of every pair; `frames` as in `stack`.

    Returns two tidy frames:
    models  label, metric, mean, low, high
    pairs   a, b, metric, difference (mean of a minus mean of b), low, high, p_raw, p_value (Holm-corrected over the
            pairs within the metric), wins, ties, losses (queries on which a is better, equal, worse)
    """
    labels = list(frames)
    metrics, values = stack(frames)
    flat = values.reshape(len(values), -1)
    means = bootstrap_means(flat, resamples=resamples, seed=seed).reshape(resamples, len(labels), -1)
    flipped = flipped_sums(flat, resamples=resamples, seed=seed + 1).reshape(means.shape)
    models, pairs = [], []
    for number, label in enumerate(labels):
        models.append(pd.DataFrame({"label": label, "metric": metrics, "mean": values[:, number].mean(axis=0)}))
        models[-1]["low"], models[-1]["high"] = interval(means[:, number])
    for a, b in combinations(range(len(labels)), 2):
        gap = values[:, a] - values[:, b]
        low, high = interval(means[:, a] - means[:, b])
        pairs.append(pd.DataFrame({
            "a": labels[a], "b": labels[b], "metric": metrics, "difference": gap.mean(axis=0), "low": low, "high": high,
            "p_raw": p_value(flipped[:, a] - flipped[:, b], gap.sum(axis=0)), "wins": (gap > ROUNDING).sum(axis=0),
            "ties": (np.abs(gap) <= ROUNDING).sum(axis=0), "losses": (gap < -ROUNDING).sum(axis=0)}))
    pairs = pd.concat(pairs, ignore_index=True) if pairs else pd.DataFrame(columns=["a", "b", "metric", "p_raw"])
    pairs["p_value"] = pairs.groupby("metric")["p_raw"].transform(holm)
    return pd.concat(models, ignore_index=True), pairs


def add_significance(rows, frames, *, resamples=RESAMPLES, seed=0):
    """Comparison rows (dicts with `label`) with `ci95` and `against` added; `frames` has one frame per row's label.

    ci95      metric -> [low, high]
    against   other label -> metric -> {difference, ci95, p_value, wins, ties, losses}, seen from the row's model;
              p_value is the Holm-corrected one
    """
    labels = [row["label"] for row in rows]
    models, pairs = compare({label: frames[label] for label in labels}, resamples=resamples, seed=seed)
    ci95, against = ({label: {} for label in labels} for _ in range(2))
    for model in models.itertuples():
        ci95[model.label][model.metric] = [model.low, model.high]
    for pair in pairs.itertuples():
        for one, other, sign in (pair.a, pair.b, 1), (pair.b, pair.a, -1):  # adding 0.0 turns -0.0 into 0.0
            low, high = (sign * end + 0.0 for end in (pair.low, pair.high)[::sign])
            wins, losses = (pair.wins, pair.losses)[::sign]
            against[one].setdefault(other, {})[pair.metric] = {
                "difference": sign * pair.difference + 0.0, "ci95": [low, high], "p_value": pair.p_value,
                "wins": wins, "ties": pair.ties, "losses": losses}
    return [row | {"ci95": ci95[row["label"]], "against": against[row["label"]]} for row in rows]


def comparison_table(rows, metrics=("recall@1", "recall@10", "mrr@10"), digits=3):
    """Rows of `add_significance` as a frame of text, best model of the first metric first.

    Each model gets a letter; a cell reads `0.842 [0.833, 0.851] > b, c`: mean, 95 % interval, and the models it beats
    distinguishably (Holm-corrected p below 0.05). A letter absent from both models' cells is a pair that these queries
    cannot tell apart.
    """
    ranked = sorted(rows, key=lambda row: -row["metrics"][metrics[0]])
    letter = {row["label"]: chr(ord("a") + number) for number, row in enumerate(ranked)}

    def cell(row, metric):
        low, high = row["ci95"][metric]
        beaten = sorted(letter[other] for other, by_metric in row["against"].items()
                        if by_metric[metric]["difference"] > 0 and by_metric[metric]["p_value"] < ALPHA)
        text = f"{row['metrics'][metric]:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"
        return text + (" > " + ", ".join(beaten) if beaten else "")

    return pd.DataFrame({metric: [cell(row, metric) for row in ranked] for metric in metrics},
                        index=[f"{letter[row['label']]}  {row['label']}" for row in ranked])


def pairs_table(rows, metric="recall@1", digits=3, of=None):
    """One line per pair of models (of the pairs with the model `of`), the better one first: difference, interval, p-value,
    wins/ties/losses, verdict."""
    lines = []
    for one, other in combinations(rows, 2):
        if of not in (None, one["label"], other["label"]):
            continue
        if one["metrics"][metric] < other["metrics"][metric]:
            one, other = other, one
        pair = one["against"][other["label"]][metric]
        low, high = pair["ci95"]
        lines.append({
            "pair": f"{one['label']} - {other['label']}", "difference": f"{pair['difference']:+.{digits}f}",
            "95 % interval": f"[{low:+.{digits}f}, {high:+.{digits}f}]", "p (Holm)": f"{pair['p_value']:.4f}",
            "wins / ties / losses": f"{pair['wins']} / {pair['ties']} / {pair['losses']}",
            "verdict": f"{one['label']} is better" if pair["p_value"] < ALPHA else "not distinguishable"})
    return pd.DataFrame(lines)
