"""Learning curve: a recipe trained on fractions of the queries, extrapolated to twice as many.

All fractions are trained for the same number of epochs on nested samples, and evaluated on the same test queries. Fewer
pairs therefore also mean fewer steps. A recipe with a fraction of the pairs and `same_steps` separates the two effects.

The curve is a line in the logarithm of n. Sun et al., "Revisiting Unreasonable Effectiveness of Data", ICCV 2017, found
this shape for fine-tuned models; Viering and Loog, "The Shape of Learning Curves: a Review", TPAMI 2023, recommend it
among other two-parameter shapes for few points. Real curves flatten, so the extrapolation tends to be too high.
Uncertainty: bootstrap over the test queries, with the same resamples for all points, and over seeds.
"""

from collections.abc import Iterable

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from embedding_finetune.data.collection import Collection
from embedding_finetune.evaluation.conclusion import METRIC, format_difference
from embedding_finetune.evaluation.metrics import per_query
from embedding_finetune.evaluation.names import name_of
from embedding_finetune.evaluation.plots import GREY, ORANGE, tidy
from embedding_finetune.evaluation.results import load_results, read_measured_run
from embedding_finetune.evaluation.significance import bootstrap_means, interval, outcome
from embedding_finetune.files import UserError
from embedding_finetune.recipes import all_recipes, find_recipe
from embedding_finetune.settings import Settings
from embedding_finetune.training.training_data import sample_fraction


def learning_curve(settings: Settings, collection: Collection, label: str = "neg10",
                   metric: str = METRIC) -> pd.DataFrame:
    """Evaluated points of a recipe's learning curve: a DataFrame by label, fewest training queries first.

    Columns: `queries` (number of training queries), `same_steps` (trained for as many steps as the full set), `seeds`,
    `value` (mean of `metric`), `low`, `high`, and `samples` (array: the value, then its bootstrap resamples). Raises
    UserError when fewer than two fractions have a current result.
    """
    whole, test, train = find_recipe(settings, label), collection.split("test"), collection.split("train")
    results, rng, points = load_results(settings)[0], settings.rng(), []
    for recipe in all_recipes(settings).values():
        runs = [result["label"] for result in results if result.get("recipe") == recipe.label]
        ignored = {"train_fraction": 1} | ({"EPOCHS": 0} if recipe.same_steps else {})
        first, second = (each.data | each.settings | ignored for each in (recipe, whole))
        if not runs or first != second:
            continue
        frames = [per_query(test.qrels, read_measured_run(settings, collection, run))[metric] for run in runs]
        values = np.stack(frames, axis=1)
        means = bootstrap_means(values)  # the same resamples at every point
        means = np.take_along_axis(means, rng.integers(len(runs), size=means.shape), axis=1).mean(axis=1)
        low, high = interval(means)
        queries = sample_fraction(train.queries, recipe.train_fraction, settings.rng())
        points.append({"label": recipe.label, "queries": len(queries), "same_steps": recipe.same_steps,
                       "seeds": len(runs), "value": values.mean(), "low": low, "high": high,
                       "samples": np.append(values.mean(), means)})
    if len({point["queries"] for point in points if not point["same_steps"]}) < 2:
        raise UserError(f"the learning curve of {label} needs results for at least two fractions of its queries: run "
                        "`make curve`, or add recipes that differ from it only in `train_fraction`")
    return pd.DataFrame(points).set_index("label").sort_values("queries", kind="stable")


def follow(points: pd.DataFrame, queries: float) -> tuple[np.ndarray, np.ndarray]:
    """Value at `queries` training queries on the line fitted to `points`, and its gain per doubling.

    Returns two arrays like `samples`.
    """
    gain, start = np.polyfit(np.log2(points["queries"].to_numpy(float)), np.stack(list(points["samples"])), 1)
    return start + gain * np.log2(queries), gain


def summary(curve: pd.DataFrame, metric: str = METRIC) -> str:
    """Sentences computed from a curve: the gain per doubling, its extrapolation, and how reliable that is."""
    points = curve.query("not same_steps")
    last, (predicted, gain) = points.iloc[-1], follow(points, 2 * points["queries"].iloc[-1])
    expected = {"difference": predicted[0], "ci95": interval(predicted[1:])}
    sentences = [f"Each doubling of the training queries gained {_shown(gain)} in {metric} (line fitted to "
                 f"{len(points)} points from {points['queries'].iloc[0]:,} to {last['queries']:,} queries).",
                 {"worse": "More queries made it worse, so their number is not the problem.",
                  "not distinguishable": "The curve is too noisy to predict the effect of twice as many queries.",
                  "better": f"Twice as many, {2 * last['queries']:,}, are expected to reach "
                            f"{format_difference(expected).replace('+', '')} in the same number of epochs; the current "
                            f"value is {last['value']:.3f}."}[_word(gain)]]
    if len(points) > 2:
        missed = last["samples"] - follow(points.iloc[:-1], last["queries"])[0]
        advice = "the curve flattens, expect less" if _word(missed) == "worse" else "no evidence against the line"
        sentences.append(f"The last point differs from the line through the others by {_shown(missed)}: {advice}.")
    for label, point in curve.query("same_steps").iterrows():
        missing = last["samples"] - point["samples"]
        advice = ("more pairs help" if _word(missing) == "better" else
                  "no significant gain; train longer before you collect more pairs")
        sentences.append(f"With as many steps as the full set, {point['queries']:,} queries reach {point['value']:.3f} "
                         f"({label}); the remaining queries add {_shown(missing)}: {advice}.")
    return " ".join(sentences)


def _difference(samples: np.ndarray) -> dict:
    return {"difference": samples[0].round(9) + 0.0, "ci95": interval(samples[1:])}  # adding 0.0 turns -0.0 into 0.0


def _shown(samples: np.ndarray) -> str:
    return format_difference(_difference(samples))


def _word(samples: np.ndarray) -> str:
    return outcome(_difference(samples)).word


def plot_curve(curve: pd.DataFrame, rows: Iterable[dict] = (), metric: str = METRIC) -> Figure:
    """Plot the points with 95 % intervals, and the fitted line with its band up to twice the queries.

    Hollow points were trained for as many steps as the full set. `rows` (of results.compare) are drawn as horizontal
    lines.
    """
    figure, axis = plt.subplots(figsize=(7, 3.6), layout="constrained")
    points = curve.query("not same_steps")
    ticks = sorted({*points["queries"], 2 * points["queries"].iloc[-1]})
    reach = np.geomspace(ticks[0], ticks[-1], 50)
    lines = np.array([follow(points, queries)[0] for queries in reach])
    axis.plot(reach, lines[:, 0], color=ORANGE, linewidth=1)
    axis.fill_between(reach, *interval(lines[:, 1:].T), color=ORANGE, alpha=0.15, linewidth=0)
    for same_steps, group in curve.groupby("same_steps"):
        errors = [group["value"] - group["low"], group["high"] - group["value"]]
        axis.errorbar(group["queries"], group["value"], errors, fmt="o", color=ORANGE, capsize=3,
                      markerfacecolor="white" if same_steps else ORANGE)
    for row in rows:
        axis.axhline(row["metrics"][metric], color=GREY, linestyle=":")
        axis.annotate(name_of(row), (reach[0], row["metrics"][metric]), color=GREY, fontsize=8, va="bottom")
    axis.set(xscale="log", xlabel="training queries", ylabel=metric, xticks=ticks,
             xticklabels=[f"{tick:,}" for tick in ticks])
    axis.minorticks_off()
    tidy(axis)
    return figure
