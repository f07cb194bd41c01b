"""What the reader sees: results as files, as tables, as a plot, and as sentences computed from the numbers."""

import json
import time

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from embedding_finetune import metrics, trec
from embedding_finetune.files import ExperimentError, atomic_write, write_json

ORDER = ("bm25", "raw", "neg10", "neg50", "reference")
FINE_TUNED = ("neg10", "neg50")


def save_result(experiment, test_set, label, run, *, model, used):
    """Write runs/LABEL.trec and results/LABEL.json; returns the metrics per query.

    `model` names what ranked; `used` (dict) says how: pooling, instruction, lengths.
    """
    table = metrics.per_query(test_set.qrels, run)
    trec.write_run(experiment.output_dir / "runs" / f"{label}.trec", run, label)
    write_json(experiment.output_dir / "results" / f"{label}.json", {
        "label": label, "model": model, "dataset": experiment.dataset, "queries": len(test_set.queries),
        "corpus": len(test_set.corpus), "metrics": metrics.mean(table), "used": used, "settings": experiment.as_dict(),
        "finished": time.strftime("%Y-%m-%d %H:%M:%S")})
    return table


def load_results(experiment, test_set):
    """The results measured so far on this very test set, in the order of the story."""
    results = []
    for path in (experiment.output_dir / "results").glob("*.json"):
        if path.stem == "comparison":
            continue
        result = json.loads(path.read_text(encoding="utf-8"))
        if (result["queries"], result["corpus"], result["dataset"]) != (len(test_set.queries), len(test_set.corpus), experiment.dataset):
            raise ExperimentError(f"{path} was measured on another test set ({result['queries']} queries of {result['dataset']}): "
                                  "evaluate that model again, or delete the file")
        results.append(result)
    place = {label: index for index, label in enumerate(ORDER)}
    return sorted(results, key=lambda result: (place.get(result["label"], len(ORDER) - 1.5), result["label"]))


def compare(experiment, results):
    """Write results/comparison.json, .md and .png; returns the comparison as a table."""
    folder = experiment.output_dir / "results"
    table = as_table(results)
    write_json(folder / "comparison.json", results)
    with atomic_write(folder / "comparison.md") as file:
        file.write(f"{table.to_markdown(floatfmt='.3f')}\n\n{conclusion(results)}\n")
    figure = plot(results)
    with atomic_write(folder / "comparison.png", "wb") as file:
        figure.savefig(file, dpi=120)
    plt.close(figure)
    return table


def as_table(results):
    """One row a model, one column a metric."""
    return pd.DataFrame({result["label"]: result["metrics"] for result in results}).T.rename_axis("model")


def plot(results):
    """Recall@1, MRR@10 and recall@10 of every model, as dots on one scale; the best of each is filled."""
    table = as_table(results)[["recall@1", "mrr@10", "recall@10"]]
    figure, axes = plt.subplots(1, 3, figsize=(10, 0.45 * len(table) + 1.2), sharey=True, layout="constrained")
    rows = np.arange(len(table))[::-1]
    for axis, name in zip(axes, table):
        values = table[name].to_numpy()
        colours = ["#d1662b" if label in FINE_TUNED else "#5b6b7a" for label in table.index]
        axis.hlines(rows, 0, values, color="#d5dade", linewidth=2, zorder=1)
        axis.scatter(values, rows, color=colours, s=45, zorder=2)
        for row, value in zip(rows, values):
            axis.annotate(f"{value:.3f}", (value, row), xytext=(7, 0), textcoords="offset points", va="center", fontsize=9,
                          fontweight="bold" if value == values.max() else "normal")
        axis.set(title=name, xlim=(0, 1.15), xticks=[0, 0.5, 1], yticks=rows, yticklabels=table.index, ylim=(-0.6, len(table) - 0.4))
        axis.spines[["top", "right", "left"]].set_visible(False)
        axis.tick_params(left=False)
    return figure


def plot_cosines(test_set, query_vectors, passage_vectors, seed, number=2000):
    """Histograms of two kinds of cosine: a query and its positive, and two random passages."""
    position = {passage: index for index, passage in enumerate(test_set.corpus)}
    positives = [position[next(iter(judged))] for judged in (test_set.qrels[query] for query in test_set.queries)]
    first = np.random.default_rng(seed).permutation(len(passage_vectors))[:number]
    second = np.roll(first, 1)
    kinds = {"query and positive": (query_vectors * passage_vectors[positives]).sum(axis=1),
             "two random passages": (passage_vectors[first] * passage_vectors[second]).sum(axis=1)}
    figure, axis = plt.subplots(figsize=(7, 2.6), layout="constrained")
    for (kind, cosines), colour in zip(kinds.items(), ("#d1662b", "#5b6b7a")):
        axis.hist(cosines, bins=np.linspace(-0.3, 1, 66), density=True, alpha=0.7, color=colour, label=kind)
    axis.set(xlabel="cosine", ylabel="density")
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(frameon=False)
    plt.show()


def conclusion(results):
    """Two sentences: what fine-tuning bought, and how that stands against BM25 and the reference.

    Computed from recall@1. A difference below two standard errors of a share among so many queries is called noise.
    """
    recall = {result["label"]: result["metrics"]["recall@1"] for result in results}
    tuned = {label: recall[label] for label in FINE_TUNED if label in recall}
    if "raw" not in recall or not tuned:
        return "The raw model and a fine-tuned one have to be evaluated before there is anything to conclude."
    best = max(tuned, key=tuned.get)
    noise = 2 * np.sqrt(2 * tuned[best] * (1 - tuned[best]) / results[0]["queries"])

    def against(label):
        difference = tuned[best] - recall[label]
        if abs(difference) < noise:
            return f"level with {label} ({recall[label]:.3f}, a difference within the noise of {noise:.3f})"
        return f"{abs(difference):.3f} {'above' if difference > 0 else 'below'} {label} ({recall[label]:.3f})"

    change = tuned[best] - recall["raw"]
    first = (f"Fine-tuning {'raised' if change > 0 else 'lowered'} recall@1 from {recall['raw']:.3f} (raw) to "
             + " and ".join(f"{value:.3f} ({label})" for label, value in tuned.items()) + ".")
    rivals = [label for label in ("bm25", "reference") if label in recall]
    second = f"The better one, {best}, is " + " and ".join(map(against, rivals)) + "." if rivals else "No rival is measured yet."
    return f"{first} {second}"


def examples(test_set, run, *, right, number=3):
    """A few queries whose first passage is a positive (`right=True`) or is not, with both texts, as a table."""
    rank = metrics.first_positive_rank(test_set.qrels, run)
    chosen = rank.index[(rank == 1) == right][:number]
    return pd.DataFrame([{
        "query": test_set.queries[query],
        "first hit": _short(test_set.corpus[next(iter(run[query]))]),
        "positive": _short(test_set.corpus[next(iter(test_set.qrels[query]))]),
        "rank of positive": f"{rank[query]:.0f}" if np.isfinite(rank[query]) else f"beyond {len(run[query])}",
    } for query in chosen])


def _short(text, length=140):
    return text if len(text) <= length else text[:length].rsplit(" ", 1)[0] + " …"
