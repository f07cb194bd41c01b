"""Tables computed from the rows of a comparison, and a few queries to look at."""

from collections.abc import Iterable, Sequence
from itertools import combinations

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from embedding_finetune.data.collection import Collection, read_data
from embedding_finetune.evaluation.conclusion import METRIC, format_difference, recommendation, verdict
from embedding_finetune.evaluation.metrics import first_positive_rank
from embedding_finetune.evaluation.names import name_of
from embedding_finetune.evaluation.plots import plot
from embedding_finetune.evaluation.results import compare
from embedding_finetune.files import CommandLine, atomic_write, write_json
from embedding_finetune.retrieval.base import Run
from embedding_finetune.settings import Settings


def write_comparison(settings: Settings, collection: Collection, rows: list[dict]) -> dict:
    """Write results/comparison.json, .md and .png from the rows of results.compare, and recommendation.json.

    Returns the recommendation.
    """
    folder, found = settings.paths.results, recommendation(collection, rows)
    write_json(folder / "comparison.json", rows)
    parts = [comparison_table(rows).to_markdown(disable_numparse=True)]
    for title, table in (("Planned comparisons", pairs_table(rows, planned=True)),
                         ("Exploration: all other pairs", pairs_table(rows, planned=False)),
                         ("Test queries with passages seen in training, and the others", seen_table(rows))):
        parts += [f"**{title}**", table.to_markdown(index=False, disable_numparse=True)] if len(table) else []
    with atomic_write(folder / "comparison.md") as file:
        file.write("\n\n".join([*parts, found["sentence"]]) + "\n")
    figure = plot(rows)
    with atomic_write(folder / "comparison.png", "wb") as file:
        figure.savefig(file, dpi=120)
    plt.close(figure)
    write_json(folder / "recommendation.json", found)
    return found


def as_table(results: Iterable[dict]) -> pd.DataFrame:
    """Table with one row per system, by label, one column per metric, and what the system is in words."""
    rows = {result["label"]: result["metrics"] | {"system": result["model"]} for result in results}
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("label")


def comparison_table(rows: list[dict], metrics: Sequence[str] = (METRIC, "recall@10", "mrr@10"),
                     digits: int = 3) -> pd.DataFrame:
    """Table of means with 95 % intervals from rows of results.compare, sorted by the first metric, best first."""
    def cell(row: dict, metric: str) -> str:
        low, high = row["ci95"][metric]
        return f"{row['metrics'][metric]:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"

    ranked = sorted(rows, key=lambda row: -row["metrics"][metrics[0]])
    return pd.DataFrame({name_of(row): {metric: cell(row, metric) for metric in metrics} for row in ranked}).T


def planned_table(rows: list[dict], metric: str = METRIC) -> pd.DataFrame:
    """Table with one row per planned comparison."""
    return pairs_table(rows, metric, planned=True)


def pairs_table(rows: list[dict], metric: str = METRIC, of: str | None = None, against: Iterable[str] | None = None,
                planned: bool | None = None, digits: int = 3) -> pd.DataFrame:
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
        difference, _, ci95 = format_difference(pair, digits).partition(" ")
        lines.append({
            "pair": f"{name_of(one)} - {name_of(other)}", "difference": difference, "95 % interval": ci95,
            "p": f"{pair['p_value']:.4f} ({'Holm' if pair['planned'] else 'uncorrected'})",
            "wins / ties / losses": f"{pair['wins']} / {pair['ties']} / {pair['losses']}",
            "verdict": verdict(name_of(one), pair)})
    return pd.DataFrame(lines)


def seeds_table(rows: list[dict], metric: str = METRIC) -> pd.DataFrame:
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


def out_of_domain_table(rows: list[dict], metric: str = METRIC) -> pd.DataFrame:
    """Table of the metric on the experiment's test set and on each of OUT_OF_DOMAIN_SETS, one row per model.

    Each out-of-domain value has the paired differences to raw and reference with 95 % intervals. Empty without sets.
    """
    table, names = {}, {row["label"]: name_of(row) for row in rows}
    for row in rows:
        if row.get("eval_sets"):
            line = table[name_of(row)] = {"in-domain": f"{row['metrics'][metric]:.3f}"}
            for name, measured in row["eval_sets"].items():
                line[name] = f"{measured[metric]:.3f}"
                for other, pairs in measured.get("against", {}).items():
                    line[f"{name}, difference to {names[other]}"] = format_difference(pairs[metric])
    return pd.DataFrame.from_dict(table, orient="index").fillna("").rename_axis(metric)


def seen_table(rows: list[dict], metric: str = METRIC) -> pd.DataFrame:
    """Table of the metric on test queries with a passage that was seen in training and on the others, one row per
    model; empty unless leaking training pairs were kept.
    """
    return pd.DataFrame([{"model": name_of(row)} | {
        f"{metric} of {part['queries']} {name} queries": f"{part[metric]:.3f}"
        for name, part in row["by_training"].items()} for row in rows if row.get("by_training")])


def examples(test: Collection, run: Run, *, right: bool, number: int = 3) -> pd.DataFrame:
    """Table of a few queries whose first passage is a positive (`right=True`) or is not (`right=False`)."""
    ranks = first_positive_rank(test, run)
    chosen = [query for query, rank in ranks.items() if (rank == 1) == right][:number]
    return pd.DataFrame([{
        "query": test.queries[query], "first hit": _first_hit(test, run[query]),
        "positive": _short(test.corpus[test.positives(query)[0]]),
        "rank of positive": f"{ranks[query] or f'beyond {len(run[query])}'}"} for query in chosen])


def changed_queries(test: Collection, wrong: Run, right: Run, number: int = 3) -> pd.DataFrame:
    """Table of a few queries whose first passage is a positive in the run `right` but not in the run `wrong`.

    Those whose positive ranks lowest in `wrong` come first.
    """
    before, after = (first_positive_rank(test, run) for run in (wrong, right))
    changed = [query for query, rank in after.items() if rank == 1 != before[query]]
    changed.sort(key=lambda query: -(before[query] or np.inf))
    return pd.DataFrame([{
        "query": test.queries[query], "right": _first_hit(test, right[query]), "wrong": _first_hit(test, wrong[query]),
        "rank of positive": f"{before[query] or f'beyond {len(wrong[query])}'}"} for query in changed[:number]])


def _first_hit(test: Collection, ranking: dict[str, float]) -> str:
    return _short(test.corpus[next(iter(ranking))]) if ranking else "none"


def _short(text: str, length: int = 140) -> str:
    return text if len(text) <= length else text[:length].rsplit(" ", 1)[0] + " …"


def main() -> None:
    """Write the comparison and print it with its conclusion (`embedding-finetune compare`)."""
    CommandLine("compare", "Compare all evaluated systems and recommend one.").parse_args()
    settings = Settings.load()
    collection = read_data(settings)
    rows, left_out = compare(settings, collection)
    found = write_comparison(settings, collection, rows)
    print(*left_out, comparison_table(rows).to_string(), found["sentence"], sep="\n")
