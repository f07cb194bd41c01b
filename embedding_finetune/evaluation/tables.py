"""Tables and sentences computed from the rows of a comparison."""

from itertools import combinations

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from embedding_finetune.data.collection import read_data
from embedding_finetune.evaluation.conclusion import METRIC, format_difference, recommendation, required_queries
from embedding_finetune.evaluation.metrics import first_positive_rank
from embedding_finetune.evaluation.plots import plot
from embedding_finetune.evaluation.results import caveats, compare, is_fine_tuned
from embedding_finetune.evaluation.significance import excludes_zero, outcome
from embedding_finetune.files import CommandLine, atomic_write, write_json
from embedding_finetune.settings import Settings


def write_comparison(settings, rows):
    """Write results/comparison.json, .md and .png from the rows of results.compare."""
    folder = settings.paths.results
    write_json(folder / "comparison.json", rows)
    parts, rest = [comparison_table(rows).to_markdown(disable_numparse=True)], pairs_table(rows, planned=False)
    for title, table in (("Planned comparisons", planned_table(rows)), ("Exploration: all other pairs", rest),
                         ("Test queries with passages seen in training, and the others", seen_table(rows))):
        parts += [f"**{title}**", table.to_markdown(index=False, disable_numparse=True)] if len(table) else []
    with atomic_write(folder / "comparison.md") as file:
        file.write("\n\n".join([*parts, conclusion(rows), recommendation(rows)]) + "\n")
    figure = plot(rows)
    with atomic_write(folder / "comparison.png", "wb") as file:
        figure.savefig(file, dpi=120)
    plt.close(figure)


def as_table(results, labels=None):
    """Table with one row per model and one column per metric."""
    table = pd.DataFrame({result["label"]: result["metrics"] for result in results}).T.rename_axis("model")
    return table if labels is None else table.loc[labels]


def comparison_table(rows, metrics=(METRIC, "recall@10", "mrr@10"), digits=3):
    """Table of means with 95 % intervals from rows of results.compare, sorted by the first metric, best first."""
    def cell(row, metric):
        low, high = row["ci95"][metric]
        return f"{row['metrics'][metric]:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"

    ranked = sorted(rows, key=lambda row: -row["metrics"][metrics[0]])
    return pd.DataFrame({metric: [cell(row, metric) for row in ranked] for metric in metrics},
                        index=[row["label"] for row in ranked])


def planned_table(rows, metric=METRIC):
    """Table with one row per planned comparison."""
    return pairs_table(rows, metric, planned=True)


def pairs_table(rows, metric=METRIC, of=None, against=None, planned=None, digits=3):
    """Table with one row per pair, better model first: difference, interval, p-value, wins / ties / losses, verdict.

    `of` keeps the pairs with that model; `against` restricts the other model to these labels; `planned` keeps only
    planned pairs (True) or only exploratory ones (False).
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
    """Verdict on a pair of models, of which `better` has the higher mean."""
    if not pair["planned"]:
        return f"exploration: interval {'excludes' if excludes_zero(pair['ci95']) else 'includes'} 0"
    found = outcome(pair)
    text = found.word if found.word == "not distinguishable" else f"{better} is better{found.note}"
    return text if found.significant else f"{text}; {required_queries(pair) or 'difference too small to plan for'}"


def conclusion(rows, metric=METRIC):
    """Sentences on the effect of fine-tuning, and how the best model compares with BM25 and the off-the-shelf model."""
    by_label, tuned = {row["label"]: row for row in rows}, list(filter(is_fine_tuned, rows))
    best = next((row for row in rows if row.get("chosen")), None)
    caveat = f" {caveats(rows[0])}" if rows and caveats(rows[0]) else ""
    if "raw" not in by_label or best is None:
        return "Nothing to conclude yet: evaluate the raw model and a fine-tuned one." + caveat

    def against(label):
        pair = best["against"][label][metric]
        (low, high), found = pair["ci95"], outcome(pair)
        text = f"{found.word} {'from' if found.word == 'not distinguishable' else 'than'} {label}{found.note}"
        numbers = [f"{by_label[label]['metrics'][metric]:.3f}",
                   f"difference {pair['difference']:+.3f}, 95 % interval [{low:+.3f}, {high:+.3f}]"]
        return f"{text} ({'; '.join([*numbers, *filter(None, [required_queries(pair, 'test ')])])})"

    baselines = [label for label in ("bm25", "reference") if label in by_label]
    first = (f"Fine-tuning changed {metric} from {by_label['raw']['metrics'][metric]:.3f} (raw) to "
             + " and ".join(f"{row['metrics'][metric]:.3f} ({row['label']})" for row in tuned)
             + f": {best['label']}, the best on dev queries, is {against('raw')}.")
    second = (f"It is {' and '.join(map(against, baselines))}." if baselines else
              "No other baseline has been evaluated yet.")
    return f"{first} {second}{caveat}"


def seeds_table(rows, metric=METRIC):
    """Table of mean and standard deviation over the seeds of each recipe, and the 95 % interval of its first seed.

    The interval covers other queries, the standard deviation other seeds; a difference should exceed both. Empty when
    there is only one seed.
    """
    table = {}
    for row in rows:
        values = [other["metrics"][metric] for other in rows if other.get("recipe") == row["label"]]
        if len(values) > 1:
            table[row["label"]] = {"seeds": len(values), "mean": np.mean(values), "std": np.std(values, ddof=1),
                                   "interval of first seed": "[{:.3f}, {:.3f}]".format(*row["ci95"][metric])}
    return pd.DataFrame.from_dict(table, orient="index").rename_axis(metric)


def out_of_domain_table(rows, metric=METRIC):
    """Table of the metric on the experiment's test set and on each of OUT_OF_DOMAIN_SETS, one row per model.

    Each out-of-domain value has the paired differences to raw and reference with 95 % intervals. Empty without sets.
    """
    table = {}
    for row in rows:
        if row.get("eval_sets"):
            line = table[row["label"]] = {"in-domain": f"{row['metrics'][metric]:.3f}"}
            for name, measured in row["eval_sets"].items():
                line[name] = f"{measured[metric]:.3f}"
                for other, pairs in measured.get("against", {}).items():
                    line[f"{name}, difference to {other}"] = format_difference(pairs[metric])
    return pd.DataFrame.from_dict(table, orient="index").fillna("").rename_axis(metric)


def seen_table(rows: list[dict], metric: str = METRIC) -> pd.DataFrame:
    """Table of the metric on test queries with a passage that was seen in training and on the others, one row per
    model; empty unless leaking training pairs were kept.
    """
    return pd.DataFrame([{"model": row["label"]} | {
        f"{metric} of {part['queries']} {name} queries": f"{part[metric]:.3f}"
        for name, part in row["by_training"].items()} for row in rows if row.get("by_training")])


def examples(test, run, *, right, number=3):
    """Table of a few queries whose first passage is a positive (`right=True`) or is not (`right=False`)."""
    rank = first_positive_rank(test, run)
    chosen = rank.index[(rank == 1) == right][:number]
    return pd.DataFrame([{
        "query": test.queries[query],
        "first hit": _short(test.corpus[next(iter(run[query]))]) if run[query] else "none",
        "positive": _short(test.corpus[test.positives(query)[0]]),
        "rank of positive": f"{rank[query]:.0f}" if np.isfinite(rank[query]) else f"beyond {len(run[query])}",
    } for query in chosen])


def changed_queries(test, wrong, right, number=3):
    """Table of a few queries whose first passage is a positive in the run `right` but not in the run `wrong`."""
    before, after = (first_positive_rank(test, run) for run in (wrong, right))
    return pd.DataFrame([{
        "query": test.queries[query], "wrong": _short(test.corpus[next(iter(wrong[query]))]),
        "right": _short(test.corpus[next(iter(right[query]))]),
    } for query in before.index[(before != 1) & (after == 1)][:number] if wrong[query]])


def _short(text, length=140):
    return text if len(text) <= length else text[:length].rsplit(" ", 1)[0] + " …"


def main():
    CommandLine("compare", "Compare all evaluated systems and recommend one.").parse_args()
    settings = Settings.load()
    rows, left_out = compare(settings, read_data(settings))
    write_comparison(settings, rows)
    print(*left_out, comparison_table(rows).to_string(), recommendation(rows), sep="\n")
