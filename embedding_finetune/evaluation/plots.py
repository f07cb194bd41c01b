"""Plots of results, training logs, cosines and text lengths."""

from itertools import cycle

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from cycler import cycler

from embedding_finetune.evaluation.conclusion import METRIC
from embedding_finetune.training.log import read_log

ORANGE, GREY = "#d1662b", "#5b6b7a"  # fine-tuned models, all others
COLOURS = (ORANGE, GREY, "#2a6fdb", "#17876a", "#b83280", "#84681a", "#7a56e8", "#cf3f3f")
LINES = cycler(linestyle=["-", "--", ":", "-."]) * cycler(color=COLOURS)  # 32 distinct line styles


def plot(rows, names=(METRIC, "mrr@10", "recall@10")):
    """Plot the metrics of all models with 95 % intervals; fine-tuned models in orange, the best value in bold."""
    figure, axes = plt.subplots(1, len(names), figsize=(10, 0.4 * len(rows) + 1.2), sharey=True, layout="constrained")
    heights = np.arange(len(rows))[::-1]
    for axis, name in zip(axes, names):
        values = np.array([row["metrics"][name] for row in rows])
        for row, value, height in zip(rows, values, heights):
            colour = ORANGE if row.get("recipe") else GREY
            axis.plot(row["ci95"][name], [height, height], color=colour, linewidth=3, alpha=0.35, solid_capstyle="butt")
            axis.scatter(value, height, color=colour, s=40, zorder=2)
            axis.annotate(f"{value:.3f}", (row["ci95"][name][1], height), xytext=(6, 0), textcoords="offset points",
                          va="center", fontsize=9, fontweight="bold" if value == values.max() else "normal")
        low, high = (end([row["ci95"][name][side] for row in rows]) for side, end in ((0, min), (1, max)))
        margin = 0.05 * (high - low) + 0.005
        axis.set(title=name, xlim=(low - margin, high + 5 * margin), yticks=heights,
                 yticklabels=[row["label"] for row in rows])
        axis.set_ylim(-0.6, len(rows) - 0.4)
        _tidy(axis, "left")
        axis.grid(axis="x", color="#e6e9ec")
        axis.set_axisbelow(True)
        axis.tick_params(left=False)
    figure.supxlabel("dot: mean over the test queries; bar: 95 % bootstrap interval", fontsize=8)
    return figure


def plot_by_corpus_size(rows, metric=METRIC):
    """Plot the metric against the corpus size, for all models with `by_corpus_size`."""
    figure, axis = plt.subplots(figsize=(7, 3.2), layout="constrained")
    axis.set_prop_cycle(LINES)
    for row in rows:
        if "by_corpus_size" in row:
            table = pd.DataFrame(row["by_corpus_size"])
            axis.plot(table["passages"], table[metric], marker="o", markersize=3, label=row["label"])
    axis.set(xlabel="passages in the corpus", ylabel=metric)
    handles, labels = axis.get_legend_handles_labels()
    figure.legend(handles, labels, frameon=False, loc="outside right center", ncols=1 + len(labels) // 14)
    _tidy(axis)
    return figure


def plot_training(settings, labels):
    """Plot loss and dev metrics by step, from the training logs of the labels that have one."""
    logs = {label: pd.DataFrame(log).set_index("step") for label in labels
            if (log := read_log(settings.paths.model(label)))}
    figure, axes = plt.subplots(1, 3, figsize=(10, 2.6), layout="constrained")
    for axis, name in zip(axes, ("loss", "recall@10", "mrr@10")):
        for (label, log), line in zip(logs.items(), cycle(LINES)):  # the same line style for a label on all axes
            if name in log:
                points = log[name].dropna()
                axis.plot(points.index, points, **line, marker="o", markersize=3, label=label)
        axis.set(title=name if name == "loss" else f"{name} on dev", xlabel="step")
        _tidy(axis)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, frameon=False, loc="outside right center", ncols=1 + len(labels) // 14)
    return figure


def plot_cosines(test, query_vectors, passage_vectors, seed, number=2000):
    """Plot histograms of the cosines of queries with their positives, and of pairs of random passages."""
    position = {passage: index for index, passage in enumerate(test.corpus)}
    positives = [position[test.positives(query)[0]] for query in test.queries]
    first = np.random.default_rng(seed).permutation(len(passage_vectors))[:number]
    kinds = {"query and positive": (query_vectors * passage_vectors[positives]).sum(axis=1),
             "two random passages": (passage_vectors[first] * passage_vectors[np.roll(first, 1)]).sum(axis=1)}
    figure, axis = plt.subplots(figsize=(7, 2.6), layout="constrained")
    for (kind, cosines), colour in zip(kinds.items(), COLOURS):
        axis.hist(cosines, bins=np.linspace(-0.3, 1, 66), density=True, alpha=0.7, color=colour, label=kind)
    axis.set(xlabel="cosine", ylabel="density")
    axis.legend(frameon=False)
    _tidy(axis)
    return figure


def plot_lengths(tokens):
    """Plot histograms of query and passage lengths, from `tokens` of a data report, with the truncation limit."""
    figure, axes = plt.subplots(1, 2, figsize=(10, 2.4), layout="constrained")
    for axis, side in zip(axes, ("queries", "passages")):
        lengths = tokens[side]
        axis.stairs(lengths["histogram"], lengths["edges"], fill=True, color=GREY)
        if lengths["limit"] <= lengths["edges"][-1]:
            axis.axvline(lengths["limit"], color=ORANGE)
        axis.set(title=f"{side}, {lengths['cut']:.1%} truncated at {lengths['limit']}",
                 xlabel=f"tokens of {tokens['model']}")
        _tidy(axis)
    return figure


def _tidy(axis, *more):
    axis.spines[["top", "right", *more]].set_visible(False)
