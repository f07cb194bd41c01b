"""Plots of results, training logs, cosines and text lengths."""

from collections.abc import Iterable, Sequence
from itertools import cycle

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from cycler import cycler
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from embedding_finetune.data.collection import Collection
from embedding_finetune.evaluation.conclusion import METRIC
from embedding_finetune.evaluation.names import name_of
from embedding_finetune.settings import Settings, display_value
from embedding_finetune.training.log import damaged_log, read_log

ORANGE, GREY = "#d1662b", "#5b6b7a"  # fine-tuned models, all others
COLOURS = (ORANGE, GREY, "#2a6fdb", "#17876a", "#b83280", "#84681a", "#7a56e8", "#cf3f3f")
LINES = cycler(linestyle=["-", "--", ":", "-."]) * cycler(color=COLOURS)  # 32 distinct line styles


def plot(rows: list[dict], names: Sequence[str] = (METRIC, "mrr@10", "recall@10")) -> Figure:
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
                 yticklabels=[name_of(row).replace(" (", "\n(") for row in rows])
        axis.set_ylim(-0.6, len(rows) - 0.4)
        tidy(axis, "left")
        axis.grid(axis="x", color="#e6e9ec")
        axis.set_axisbelow(True)
        axis.tick_params(left=False)
    figure.supxlabel("dot: mean over the test queries; bar: 95 % bootstrap interval", fontsize=8)
    return figure


def plot_by_corpus_size(rows: list[dict], metric: str = METRIC) -> Figure:
    """Plot the metric against the corpus size, for all models with `by_corpus_size`."""
    figure, axis = plt.subplots(figsize=(7, 3.2), layout="constrained")
    axis.set_prop_cycle(LINES)
    for row in rows:
        if "by_corpus_size" in row:
            table = pd.DataFrame(row["by_corpus_size"])
            axis.plot(table["passages"], table[metric], marker="o", markersize=3, label=name_of(row))
    axis.set(xlabel="passages in the corpus", ylabel=metric)
    _legend(figure, axis)
    tidy(axis)
    return figure


def training_logs(settings: Settings, labels: Iterable[str]) -> tuple[dict[str, pd.DataFrame], list[str]]:
    """The training logs of the labels that have one: label -> DataFrame by step; and a line per damaged log."""
    folders = {label: settings.paths.model(label) for label in labels}
    logs = {label: pd.DataFrame(rows).set_index("step") for label, folder in folders.items()
            if (rows := read_log(folder))}
    damaged = [display_value(path) for path in map(damaged_log, folders.values()) if path]
    return logs, [f"{path} is missing or damaged, so the curves of this training may be wrong" for path in damaged]


def plot_training(settings: Settings, labels: Iterable[str]) -> Figure:
    """Plot loss and dev metrics by step, from the training logs of the labels that have one.

    Prints a line per damaged log.
    """
    logs, damaged = training_logs(settings, labels)
    print(*damaged, sep="\n", end="\n" if damaged else "")
    figure, axes = plt.subplots(1, 3, figsize=(10, 2.6), layout="constrained")
    for axis, name in zip(axes, ("loss", "recall@10", "mrr@10")):
        for (label, log), line in zip(logs.items(), cycle(LINES)):  # the same line style for a label on all axes
            if name in log:
                points = log[name].dropna()
                axis.plot(points.index, points, **line, marker="o", markersize=3, label=label)
        axis.set(title=name if name == "loss" else f"{name} on dev", xlabel="step")
        tidy(axis)
    _legend(figure, axes[0])
    return figure


def plot_cosines(test: Collection, query_vectors: np.ndarray, passage_vectors: np.ndarray, seed: int,
                 number: int = 2000) -> Figure:
    """Plot histograms of the cosines of queries with their positives, and of pairs of random passages."""
    position = {passage: index for index, passage in enumerate(test.corpus)}
    positives = [position[test.positives(query)[0]] for query in test.queries]
    first = np.random.default_rng(seed).permutation(len(passage_vectors))[:number]
    kinds = {"query and positive": (query_vectors * passage_vectors[positives]).sum(axis=1),
             "two random passages": (passage_vectors[first] * passage_vectors[np.roll(first, 1)]).sum(axis=1)}
    figure, axis = plt.subplots(figsize=(7, 2.6), layout="constrained")
    for (kind, cosines), colour in zip(kinds.items(), COLOURS):
        axis.hist(cosines, bins=np.linspace(-0.3, 1, 66).tolist(), density=True, alpha=0.7, color=colour, label=kind)
    axis.set(xlabel="cosine", ylabel="density")
    axis.legend(frameon=False)
    tidy(axis)
    return figure


def plot_lengths(tokens: dict) -> Figure:
    """Plot histograms of query and passage lengths, from `tokens` of a data report, with the truncation limit."""
    figure, axes = plt.subplots(1, 2, figsize=(10, 2.4), layout="constrained")
    for axis, side in zip(axes, ("queries", "passages")):
        lengths = tokens[side]
        axis.stairs(lengths["histogram"], lengths["edges"], fill=True, color=GREY)
        if lengths["limit"] <= lengths["edges"][-1]:
            axis.axvline(lengths["limit"], color=ORANGE)
        axis.set(title=f"{side}, {lengths['cut']:.1%} truncated at {lengths['limit']}",
                 xlabel=f"tokens of {tokens['model']}")
        tidy(axis)
    return figure


def tidy(axis: Axes, *more: str) -> None:
    """Hide the top and right spines of an axis, and those in `more`."""
    axis.spines[["top", "right", *more]].set_visible(False)


def _legend(figure: Figure, axis: Axes) -> None:
    handles, labels = axis.get_legend_handles_labels()
    figure.legend(handles, labels, frameon=False, loc="outside right center", ncols=1 + len(labels) // 14)
