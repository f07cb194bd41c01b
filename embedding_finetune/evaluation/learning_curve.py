"""The learning curve: a recipe trained on shares of the queries, and what twice as many pairs would bring.

All shares are trained in the same number of epochs, on nested samples, and measured on the same test queries. That is
what somebody with fewer pairs gets from the same command, so the line may be followed to somebody with more; but fewer
pairs are fewer steps, too. A recipe of half the pairs with `same_steps` tells the two apart.

A line in the logarithm of n: what Sun et al., "Revisiting Unreasonable Effectiveness of Data", ICCV 2017, found for
fine-tuned models, and one of the two-parameter shapes that Viering and Loog, "The Shape of Learning Curves: a Review",
TPAMI 2023, recommend where points are few. Every curve bends in the end, so that it is more likely to promise too much.
Uncertainty: bootstrap over the test queries, the same for all shares, and over seeds where there are several.
"""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from embedding_finetune.evaluation.conclusion import METRIC, format_difference
from embedding_finetune.evaluation.metrics import per_query
from embedding_finetune.evaluation.plots import GREY, ORANGE
from embedding_finetune.evaluation.results import load_results, read_measured_run
from embedding_finetune.evaluation.significance import bootstrap_means, interval, outcome
from embedding_finetune.files import UserError
from embedding_finetune.recipes import all_recipes, find_recipe
from embedding_finetune.training.training_data import sample_fraction


def learning_curve(settings, collection, label="neg10", metric=METRIC):
    """The measured points of a recipe's curve, a frame by label, fewest training queries first.

    Columns: `queries` (of the training), `same_steps` (in as many as the whole), `seeds`, `value` (mean of `metric`),
    `low`, `high`, and `samples`, an array: the value and its resampled ones. Raises UserError when fewer than two
    shares have a result that still fits.
    """
    whole, test, train = find_recipe(settings, label), collection.split("test"), collection.split("train")
    results, rng, points = load_results(settings)[0], np.random.default_rng(settings.seed), []
    for recipe in all_recipes(settings).values():
        runs = [result["label"] for result in results if result.get("recipe") == recipe.label]
        one, other = (made.data | made.settings | {"train_fraction": 1} | ({"EPOCHS": 0} if recipe.same_steps else {})
                      for made in (recipe, whole))
        if not runs or one != other:
            continue
        frames = [per_query(test.qrels, read_measured_run(settings, collection, run))[metric] for run in runs]
        values = np.stack(frames, axis=1)
        means = bootstrap_means(values, seed=settings.seed)  # of the same queries at every point
        means = np.take_along_axis(means, rng.integers(len(runs), size=means.shape), axis=1).mean(axis=1)
        low, high = interval(means)
        points.append({"label": recipe.label, "queries": len(sample_fraction(train.queries, recipe.train_fraction, settings.seed)),
                       "same_steps": recipe.same_steps, "seeds": len(runs), "value": values.mean(), "low": low,
                       "high": high, "samples": np.append(values.mean(), means)})
    if len({point["queries"] for point in points if not point["same_steps"]}) < 2:
        raise UserError(f"the learning curve of {label} needs results of two shares of its queries or more: "
                        "`make curve` makes them, or recipes that differ from it in `train_fraction` alone")
    return pd.DataFrame(points).set_index("label").sort_values("queries", kind="stable")


def follow(points, queries):
    """Where the line through `points` of a curve is at so many training queries, and its gain a doubling: two arrays
    like `samples`."""
    gain, start = np.polyfit(np.log2(points["queries"].to_numpy(float)), np.stack(list(points["samples"])), 1)
    return start + gain * np.log2(queries), gain


def summary(curve, metric=METRIC):
    """Sentences computed from a curve: what a doubling brought, what another one would bring, and how far to believe
    that."""
    points = curve[~curve["same_steps"]]
    last, (there, gain) = points.iloc[-1], follow(points, 2 * points["queries"].iloc[-1])
    (low, high), doubling = interval(there[1:]), outcome(_difference(gain)).word
    words = [f"Each doubling of the training queries has brought {_shown(gain)} in {metric}, by the line through "
             f"{len(points)} points from {points['queries'].iloc[0]:,} to {last['queries']:,} queries."]
    words.append({"worse": "More of them have made it worse: something else is wrong than their number.",
                  "not distinguishable": "The curve is too noisy to tell what twice as many would bring: the interval "
                                         "includes 0.",
                  "better": f"Twice as many, {2 * last['queries']:,}, would be expected at {there[0]:.3f} [{low:.3f}, "
                            f"{high:.3f}] in the same number of epochs; today it is {last['value']:.3f}."}[doubling])
    if len(points) > 2:
        missed = last["samples"] - follow(points.iloc[:-1], last["queries"])[0]
        words.append(f"From the line through the others the last point differs by {_shown(missed)}: "
                     + ("the curve bends, expect less." if outcome(_difference(missed)).word == "worse" else
                        "nothing that speaks against the line."))
    for label, point in curve[curve["same_steps"]].iterrows():
        missing = last["samples"] - point["samples"]
        words.append(f"In as many steps as with all, {point['queries']:,} queries reach {point['value']:.3f} "
                     f"({label}); the others bring {_shown(missing)}: "
                     + ("it is pairs that are missing." if outcome(_difference(missing)).word == "better" else
                        "not more than chance may; train longer before you look for more pairs."))
    return " ".join(words)


def _difference(samples):
    return {"difference": samples[0].round(9) + 0.0, "ci95": interval(samples[1:])}  # no -0.000


def _shown(samples):
    return format_difference(_difference(samples))


def plot_curve(curve, rows=(), metric=METRIC):
    """The points with their 95 % intervals, the line and its band to twice the queries; hollow: in as many steps as the
    whole. `rows` (of results.compare) are drawn as levels."""
    figure, axis = plt.subplots(figsize=(7, 3.6), layout="constrained")
    points = curve[~curve["same_steps"]]
    ticks = sorted({*points["queries"], 2 * points["queries"].iloc[-1]})
    reach = np.geomspace(ticks[0], ticks[-1], 50)
    lines = np.array([follow(points, queries)[0] for queries in reach])
    axis.plot(reach, lines[:, 0], color=ORANGE, linewidth=1)
    axis.fill_between(reach, *interval(lines[:, 1:].T), color=ORANGE, alpha=0.15, linewidth=0)
    for same_steps, some in curve.groupby("same_steps"):
        axis.errorbar(some["queries"], some["value"], [some["value"] - some["low"], some["high"] - some["value"]],
                      fmt="o", color=ORANGE, capsize=3, markerfacecolor="white" if same_steps else ORANGE)
    for row in rows:
        axis.axhline(row["metrics"][metric], color=GREY, linestyle=":")
        axis.annotate(row["label"], (reach[0], row["metrics"][metric]), color=GREY, fontsize=8, va="bottom")
    axis.set(xscale="log", xlabel="training queries", ylabel=metric, xticks=ticks,
             xticklabels=[f"{tick:,}" for tick in ticks])
    axis.minorticks_off()
    axis.spines[["top", "right"]].set_visible(False)
    return figure
