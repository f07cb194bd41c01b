"""What the reader sees: tables, plots, and sentences computed from the numbers."""

from itertools import combinations, cycle

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from cycler import cycler

from embedding_finetune.evaluation.metrics import first_positive_rank
from embedding_finetune.evaluation.recommend import METRIC, difference, queries_to_tell, recommendation
from embedding_finetune.evaluation.results import NO_PROOF, is_fine_tuned
from embedding_finetune.evaluation.significance import excludes_zero, outcome
from embedding_finetune.files import atomic_write, write_json
from embedding_finetune.training.log import read_log

ORANGE, GREY = "#d1662b", "#5b6b7a"  # fine-tuned here, and everything else
COLOURS = (ORANGE, GREY, "#2a6fdb", "#17876a", "#b83280", "#84681a", "#7a56e8", "#cf3f3f")
LINES = cycler(linestyle=["-", "--", ":", "-."]) * cycler(color=COLOURS)  # one kind for each of 32 models


def write_comparison(settings, rows):
    """Write results/comparison.json, .md and .png from the rows of results.compare."""
    folder = settings.output_dir / "results"
    write_json(folder / "comparison.json", rows)
    parts, rest = [comparison_table(rows).to_markdown(disable_numparse=True)], pairs_table(rows, planned=False)
    for title, table in (("Planned comparisons", planned_table(rows)), ("Exploration: all other pairs", rest)):
        parts += [f"**{title}**", table.to_markdown(index=False, disable_numparse=True)] if len(table) else []
    with atomic_write(folder / "comparison.md") as file:
        file.write("\n\n".join([*parts, conclusion(rows), recommendation(rows)]) + "\n")
    figure = plot(rows)
    with atomic_write(folder / "comparison.png", "wb") as file:
        figure.savefig(file, dpi=120)
    plt.close(figure)


def as_table(results, labels=None):
    """One row a model, one column a metric."""
    table = pd.DataFrame({result["label"]: result["metrics"] for result in results}).T.rename_axis("model")
    return table if labels is None else table.loc[labels]


def comparison_table(rows, metrics=(METRIC, "recall@10", "mrr@10"), digits=3):
    """Rows of results.compare as a frame of text, best model of the first metric first: mean and 95 % interval."""
    def cell(row, metric):
        low, high = row["ci95"][metric]
        return f"{row['metrics'][metric]:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"

    ranked = sorted(rows, key=lambda row: -row["metrics"][metrics[0]])
    return pd.DataFrame({metric: [cell(row, metric) for row in ranked] for metric in metrics},
                        index=[row["label"] for row in ranked])


def planned_table(rows, metric=METRIC):
    """One line a planned comparison."""
    return pairs_table(rows, metric, planned=True)


def pairs_table(rows, metric=METRIC, of=None, against=None, planned=None, digits=3):
    """One line a pair, the better model first: difference, interval, p-value, wins / ties / losses, verdict.

    `of` keeps the pairs with that model, `against` those of them with one of these; `planned` keeps only the planned
    pairs (True) or only the others (False).
    """
    lines = []
    for one, other in combinations(rows, 2):
        labels = {one["label"], other["label"]}
        pair = one["against"][other["label"]][metric]
        if of and not (of in labels and (labels - {of}) & set(against or labels)):
            continue
        if planned is not None and pair["planned"] != planned:
            continue
        if pair["difference"] < 0:
            one, other = other, one
        pair = one["against"][other["label"]][metric]
        low, high = pair["ci95"]
        lines.append({
            "pair": f"{one['label']} - {other['label']}", "difference": f"{pair['difference']:+.{digits}f}",
            "95 % interval": f"[{low:+.{digits}f}, {high:+.{digits}f}]",
            "p": f"{pair['p_value']:.4f} ({'Holm' if pair['planned'] else 'uncorrected'})",
            "wins / ties / losses": f"{pair['wins']} / {pair['ties']} / {pair['losses']}",
            "verdict": verdict(one["label"], pair)})
    return pd.DataFrame(lines)


def verdict(better, pair):
    """What may be said of a pair of models of which `better` has the higher mean."""
    if not pair["planned"]:
        return f"exploration: interval {'excludes' if excludes_zero(pair['ci95']) else 'includes'} 0"
    found = outcome(pair)
    said = found.word if found.word == "not distinguishable" else f"{better} is better{found.note}"
    return said if found.significant else f"{said}; {queries_to_tell(pair) or 'too small a difference to plan for'}"


def conclusion(rows, metric=METRIC):
    """Sentences computed from recall@1: what fine-tuning bought, and how that stands against BM25 and the reference."""
    by_label, tuned = {row["label"]: row for row in rows}, list(filter(is_fine_tuned, rows))
    best = next((row for row in rows if row.get("chosen")), None)
    caveat = f" {NO_PROOF}" if any(row.get("pseudo_queries") for row in rows) else ""
    if "raw" not in by_label or best is None:
        return "The raw model and a fine-tuned one have to be evaluated before there is anything to conclude." + caveat

    def against(label):
        pair = best["against"][label][metric]
        (low, high), found = pair["ci95"], outcome(pair)
        said = f"{found.word} {'from' if found.word == 'not distinguishable' else 'than'} {label}{found.note}"
        seen = [f"{by_label[label]['metrics'][metric]:.3f}",
                f"difference {pair['difference']:+.3f}, 95 % interval [{low:+.3f}, {high:+.3f}]"]
        return f"{said} ({'; '.join([*seen, *filter(None, [queries_to_tell(pair, 'test ')])])})"

    rivals = [label for label in ("bm25", "reference") if label in by_label]
    first = (f"Fine-tuning took {metric} from {by_label['raw']['metrics'][metric]:.3f} (raw) to "
             + " and ".join(f"{row['metrics'][metric]:.3f} ({row['label']})" for row in tuned)
             + f": {best['label']}, the best on dev queries, is {against('raw')}.")
    second = f"It is {' and '.join(map(against, rivals))}." if rivals else "No rival is measured yet."
    return f"{first} {second}{caveat}"


def seeds_table(rows, metric=METRIC):
    """Mean and spread (standard deviation) over the seeds of each recipe, beside the 95 % interval of its first seed.

    The interval speaks of other queries, the spread of other seeds: a difference should outlast both. Empty with one
    seed.
    """
    table = {}
    for row in rows:
        values = [other["metrics"][metric] for other in rows if other.get("recipe") == row["label"]]
        if len(values) > 1:
            table[row["label"]] = {"seeds": len(values), "mean": np.mean(values), "spread": np.std(values, ddof=1),
                                   "interval of one": "[{:.3f}, {:.3f}]".format(*row["ci95"][metric])}
    return pd.DataFrame.from_dict(table, orient="index").rename_axis(metric)


def eval_sets_table(rows, metric=METRIC):
    """One row a model: the metric on the experiment's own test set, then on those of EVAL_SETS, each with the paired
    difference to raw and to the reference (95 % interval); empty without any set."""
    table = {}
    for row in rows:
        if row.get("eval_sets"):
            line = table[row["label"]] = {"own": f"{row['metrics'][metric]:.3f}"}
            for name, measured in row["eval_sets"].items():
                line[name] = f"{measured[metric]:.3f}"
                for other, pairs in measured.get("against", {}).items():
                    line[f"{name}, beside {other}"] = difference(pairs[metric])
    return pd.DataFrame.from_dict(table, orient="index").fillna("").rename_axis(metric)


def plot(rows, names=(METRIC, "mrr@10", "recall@10")):
    """Every model's metrics with their 95 % intervals; fine-tuned models in orange, the best in bold."""
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
    """The metric against the number of passages, for every model that was measured so."""
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
    """Loss and dev metrics by step, from the training logs of these labels (those that have one)."""
    logs = {label: pd.DataFrame(log).set_index("step") for label in labels
            if (log := read_log(settings.output_dir / label))}
    figure, axes = plt.subplots(1, 3, figsize=(10, 2.6), layout="constrained")
    for axis, name in zip(axes, ("loss", "recall@10", "mrr@10")):
        for (label, log), line in zip(logs.items(), cycle(LINES)):  # a label has the same line on each axis
            if name in log:
                points = log[name].dropna()
                axis.plot(points.index, points, **line, marker="o", markersize=3, label=label)
        axis.set(title=name + " on dev" * (name != "loss"), xlabel="step")
        _tidy(axis)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, frameon=False, loc="outside right center", ncols=1 + len(labels) // 14)
    return figure


def plot_cosines(test, query_vectors, passage_vectors, seed, number=2000):
    """Histograms of two kinds of cosine: a query and its positive, and two random passages."""
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
    """Histograms of the lengths of queries and passages, from a data report's `tokens`; what lies beyond the line is
    cut.
    """
    figure, axes = plt.subplots(1, 2, figsize=(10, 2.4), layout="constrained")
    for axis, side in zip(axes, ("queries", "passages")):
        own = tokens[side]
        axis.stairs(own["histogram"], own["edges"], fill=True, color=GREY)
        if own["limit"] <= own["edges"][-1]:
            axis.axvline(own["limit"], color=ORANGE)
        axis.set(title=f"{side}, {own['cut']:.1%} cut at {own['limit']}", xlabel=f"tokens of {tokens['model']}")
        _tidy(axis)
    return figure


def _tidy(axis, *more):
    axis.spines[["top", "right", *more]].set_visible(False)


def examples(test, run, *, right, number=3):
    """A few queries whose first passage is a positive (`right=True`) or is not, with both texts, as a table."""
    rank = first_positive_rank(test, run)
    chosen = rank.index[(rank == 1) == right][:number]
    return pd.DataFrame([{
        "query": test.queries[query],
        "first hit": _short(test.corpus[next(iter(run[query]))]) if run[query] else "none",
        "positive": _short(test.corpus[test.positives(query)[0]]),
        "rank of positive": f"{rank[query]:.0f}" if np.isfinite(rank[query]) else f"beyond {len(run[query])}",
    } for query in chosen])


def flips(test, wrong, right, number=3):
    """A few queries whose first passage is no positive in the run `wrong`, but is one in the run `right`: a table."""
    before, after = (first_positive_rank(test, run) for run in (wrong, right))
    return pd.DataFrame([{
        "query": test.queries[query], "wrong": _short(test.corpus[next(iter(wrong[query]))]),
        "right": _short(test.corpus[next(iter(right[query]))]),
    } for query in before.index[(before != 1) & (after == 1)][:number] if wrong[query]])


def _short(text, length=140):
    return text if len(text) <= length else text[:length].rsplit(" ", 1)[0] + " …"
