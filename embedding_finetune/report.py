"""What the reader sees: results as files, as tables, as a plot, and as sentences computed from the numbers."""

import json
import time

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from embedding_finetune import metrics, trec
from embedding_finetune.experiment import RECIPES
from embedding_finetune.export import write_metrics
from embedding_finetune.files import ExperimentError, atomic_write, read_jsonl, write_json
from embedding_finetune.significance import ALPHA, add_significance, comparison_table, pairs_table
from embedding_finetune.training_files import FINE_TUNED

TRAINED = (*FINE_TUNED, *RECIPES)
ORDER = ("bm25", "raw", *TRAINED, "reference")


def save_result(experiment, test_set, label, run, *, model, used, **more):
    """Write runs/LABEL.trec and results/LABEL.json, and the metrics into a fine-tuned model's card; returns the metrics per query.

    `model` names what ranked; `used` (dict) says how: pooling, instruction, lengths. `more` enters the result as it is:
    `by_corpus_size` (see metrics), `eval_sets` (name -> metrics).
    """
    table = metrics.per_query(test_set.qrels, run)
    if (experiment.output_dir / label / "README.md").exists():
        write_metrics(experiment.output_dir / label, metrics.mean(table))
    trec.write_run(experiment.output_dir / "runs" / f"{label}.trec", run, label)
    write_json(experiment.output_dir / "results" / f"{label}.json", {
        "label": label, "model": model, "dataset": experiment.dataset, "queries": len(test_set.queries),
        "corpus": len(test_set.corpus), "metrics": metrics.mean(table), "used": used, **more, "note": used.get("seen", ""),
        "settings": experiment.as_dict(),
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
    return sorted(results, key=lambda result: (place.get(result["label"], len(ORDER)), result["label"]))


def compare(experiment, test_set):
    """Compare everything measured so far: write results/comparison.json, .md and .png, and return the comparison's rows.

    A row is a result with `ci95` and `against` (see significance.add_significance), computed from the run files.
    """
    results = load_results(experiment, test_set)
    frames = {result["label"]: metrics.per_query(test_set.qrels, _read_run(experiment, test_set, result["label"])) for result in results}
    rows = add_significance(results, frames, seed=experiment.seed)
    folder = experiment.output_dir / "results"
    write_json(folder / "comparison.json", rows)
    with atomic_write(folder / "comparison.md") as file:
        tables = comparison_table(rows).to_markdown(disable_numparse=True), pairs_table(rows).to_markdown(index=False, disable_numparse=True)
        file.write("\n\n".join([*tables, conclusion(rows)]) + "\n")
    figure = plot(rows)
    with atomic_write(folder / "comparison.png", "wb") as file:
        figure.savefig(file, dpi=120)
    plt.close(figure)
    return rows


def _read_run(experiment, test_set, label):
    path = experiment.output_dir / "runs" / f"{label}.trec"
    run = trec.read_run(path)
    if set(run) != set(test_set.queries):
        raise ExperimentError(f"{path} ranks other queries than {experiment.data_dir} has: evaluate {label} again, or delete "
                              f"its result in {experiment.output_dir / 'results'}")
    return run


def as_table(results):
    """One row a model, one column a metric."""
    return pd.DataFrame({result["label"]: result["metrics"] for result in results}).T.rename_axis("model")


def plot(rows):
    """Recall@1, MRR@10 and recall@10 of every model with their 95 % intervals; fine-tuned models in orange, the best in bold."""
    names = ("recall@1", "mrr@10", "recall@10")
    figure, axes = plt.subplots(1, len(names), figsize=(10, 0.45 * len(rows) + 1.2), sharey=True, layout="constrained")
    heights = np.arange(len(rows))[::-1]
    for axis, name in zip(axes, names):
        values = np.array([row["metrics"][name] for row in rows])
        for row, value, height in zip(rows, values, heights):
            colour = "#d1662b" if row["label"] in TRAINED else "#5b6b7a"
            axis.plot(row["ci95"][name], [height, height], color=colour, linewidth=3, alpha=0.35, solid_capstyle="butt")
            axis.scatter(value, height, color=colour, s=40, zorder=2)
            axis.annotate(f"{value:.3f}", (row["ci95"][name][1], height), xytext=(6, 0), textcoords="offset points", va="center",
                          fontsize=9, fontweight="bold" if value == values.max() else "normal")
        low, high = (end([row["ci95"][name][side] for row in rows]) for side, end in ((0, min), (1, max)))
        margin = 0.05 * (high - low) + 0.005
        axis.set(title=name, xlim=(low - margin, high + 5 * margin), yticks=heights, yticklabels=[row["label"] for row in rows])
        axis.set_ylim(-0.6, len(rows) - 0.4)
        axis.spines[["top", "right", "left"]].set_visible(False)
        axis.grid(axis="x", color="#e6e9ec")
        axis.set_axisbelow(True)
        axis.tick_params(left=False)
    figure.supxlabel("dot: mean over the test queries; bar: 95 % bootstrap interval", fontsize=8)
    return figure


def plot_by_corpus_size(rows):
    """Recall@1 against the number of passages, for every model that was measured so."""
    figure, axis = plt.subplots(figsize=(7, 3.2), layout="constrained")
    for row in rows:
        if "by_corpus_size" in row:
            table = pd.DataFrame(row["by_corpus_size"])
            axis.plot(table["passages"], table["recall@1"], marker="o", markersize=3, label=row["label"])
    axis.set(xlabel="passages in the corpus", ylabel="recall@1")
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def seeds_table(rows, metric="recall@1"):
    """Mean and spread (standard deviation) over the seeds of each fine-tuned model, beside the 95 % interval of its first seed.

    The interval speaks of other queries, the spread of other seeds: a difference should outlast both.
    """
    table = {}
    for row in rows:
        label = row["label"]
        values = [other["metrics"][metric] for other in rows if other["label"].partition("_seed")[0] == label]
        if len(values) > 1:
            table[label] = {"seeds": len(values), "mean": np.mean(values), "spread": np.std(values, ddof=1),
                            "interval of one": "[{:.3f}, {:.3f}]".format(*row["ci95"][metric])}
    return pd.DataFrame.from_dict(table, orient="index", columns=["seeds", "mean", "spread", "interval of one"]).rename_axis(metric)


def eval_sets_table(rows, metric="recall@1"):
    """One row a model, one column a test set: the experiment's own first, then those of EVAL_SETS."""
    return pd.DataFrame({row["label"]: {"own": row["metrics"][metric], **{name: metrics[metric] for name, metrics in row["eval_sets"].items()}}
                         for row in rows if "eval_sets" in row}).T.rename_axis(metric)


def plot_training(experiment, label):
    """Loss, learning rate and dev metrics by step, from training_log.jsonl; a line of text for a model that was not trained here."""
    path = experiment.output_dir / label / "training_log.jsonl"
    if not path.exists():
        print(f"{label} was not trained here: no curve")
        return
    log = pd.DataFrame(read_jsonl(path)).set_index("step")
    figure, axes = plt.subplots(1, 3, figsize=(10, 2.6), layout="constrained")
    for axis, names in zip(axes, (["loss"], ["learning_rate"], ["recall@10", "mrr@10"])):
        for name, colour in zip([name for name in names if name in log], ("#d1662b", "#5b6b7a")):
            log[name].dropna().plot(ax=axis, color=colour, marker="o", markersize=3, label=name)
        axis.set(title=" and ".join(names) + (" on dev" if "mrr@10" in names else ""), xlabel="step")
        axis.spines[["top", "right"]].set_visible(False)
    if "mrr@10" in log:
        axes[2].legend(frameon=False)
    plt.show()


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


def conclusion(rows):
    """Two sentences, computed from recall@1: what fine-tuning bought, and how that stands against BM25 and the reference."""
    by_label = {row["label"]: row for row in rows}
    tuned = [by_label[label] for label in TRAINED if label in by_label]
    if "raw" not in by_label or not tuned:
        return "The raw model and a fine-tuned one have to be evaluated before there is anything to conclude."
    best = max(tuned, key=_recall)

    def against(label):
        pair = best["against"][label]["recall@1"]
        low, high = pair["ci95"]
        seen = f"({_recall(by_label[label]):.3f}; difference {pair['difference']:+.3f}, 95 % interval [{low:+.3f}, {high:+.3f}])"
        if pair["p_value"] >= ALPHA:
            return f"not distinguishable from {label} {seen}"
        return f"{'better' if pair['difference'] > 0 else 'worse'} than {label} {seen}"

    rivals = [label for label in ("bm25", "reference") if label in by_label]
    first = (f"Fine-tuning took recall@1 from {_recall(by_label['raw']):.3f} (raw) to "
             + " and ".join(f"{_recall(row):.3f} ({row['label']})" for row in tuned) + f": {best['label']} is {against('raw')}.")
    second = f"It is {' and '.join(map(against, rivals))}." if rivals else "No rival is measured yet."
    return f"{first} {second}"


def _recall(row):
    return row["metrics"]["recall@1"]


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
