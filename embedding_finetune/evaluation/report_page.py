"""HTML report: where one model beats another, and the queries behind the difference.

`write_page` writes runs, judgements and comparison to OUTPUT_DIR/report.html, a single file that works offline.
`example_queries` returns a few queries that one model answers and another does not, for a notebook.
"""

import json
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import pandas as pd

from embedding_finetune.data.near_duplicates import near_duplicates
from embedding_finetune.data.normalize import clean_text
from embedding_finetune.evaluation.conclusion import recommendation
from embedding_finetune.evaluation.results import read_measured_run
from embedding_finetune.evaluation.significance import outcome
from embedding_finetune.evaluation.tables import verdict
from embedding_finetune.files import UserError, atomic_write
from embedding_finetune.training.log import read_log

DEPTH = 100  # ranks considered; runs are at least this deep, or as deep as the corpus
SHOWN = 5  # passages shown per model
PASSAGE_CHARACTERS = 1000  # longer passages are truncated on the page, with a note
CURVE_POINTS = 300  # longer training curves are averaged down to about this many points
ROW_FIELDS = ("label", "model", "dataset", "metrics", "ci95", "against", "note", "chosen", "ms_per_query",
              "bytes_per_passage")  # of comparison.json
TEMPLATE = Path(__file__).with_name("report_page.html")


@dataclass
class ReportData:
    """Runs and judgements as arrays; query and passage numbers are positions in the test set."""

    rows: list  # of comparison.json, one per model
    query_ids: list
    queries: list
    passages: list
    judged: np.ndarray  # (judgements, 2): query number, number of a passage that answers it
    rankings: dict  # label -> (queries, DEPTH) passage numbers, -1 past the end of a short run

    @property
    def labels(self):
        return [row["label"] for row in self.rows]

    def positives(self):
        """Passage numbers of the positives, a list per query."""
        found = [[] for _ in self.queries]
        for query, passage in self.judged.tolist():
            found[query].append(passage)
        return found

    def judged_ranks(self, label):
        """Rank of each judged passage in a run, DEPTH + 1 if it is not in the top DEPTH."""
        hits = self.rankings[label][self.judged[:, 0]] == self.judged[:, 1:]
        return np.where(hits.any(axis=1), hits.argmax(axis=1) + 1, DEPTH + 1)

    def first_ranks(self):
        """DataFrame (queries x labels) of the rank of the first positive, DEPTH + 1 if it is not in the top DEPTH."""
        ranks = pd.DataFrame({label: self.judged_ranks(label) for label in self.labels})
        return ranks.groupby(self.judged[:, 0]).min()

    def recall_curve(self, label):
        """Recall@k for k = 1 .. DEPTH, averaged over queries."""
        share = 1 / np.bincount(self.judged[:, 0])[self.judged[:, 0]]
        found = np.bincount(self.judged_ranks(label), weights=share, minlength=DEPTH + 2)[1:DEPTH + 1]
        return found.cumsum() / len(self.queries)


def load(settings, collection, rows):
    """Load the ReportData of the test split of a collection: the runs of the `rows` of results.compare.

    Raises UserError when a run is missing or does not belong to this test set.
    """
    test = collection.split("test")
    number = {passage: index for index, passage in enumerate(test.corpus)}
    judged = np.array([(index, number[passage]) for index, query in enumerate(test.queries)
                       for passage in test.positives(query)])
    rankings = {}
    for label in (row["label"] for row in rows):
        run = read_measured_run(settings, collection, label)
        try:
            tops = [[number[passage] for passage in islice(run[query], DEPTH)] for query in test.queries]
        except KeyError as error:
            raise UserError(f"the run of {label} ranks the passage {error}, which is not in the corpus: evaluate "
                            "it again") from None
        rankings[label] = np.array([top + [-1] * (DEPTH - len(top)) for top in tops], np.int32)
    return ReportData(rows, list(test.queries), list(map(clean_text, test.queries.values())),
                      list(map(clean_text, test.corpus.values())), judged, rankings)


def suspected_false_negatives(evidence):
    """Shown passages per query that are not positives but near-duplicates of one, and so may be missing labels."""
    shown = np.concatenate([ranking[:, :SHOWN] for ranking in evidence.rankings.values()], axis=1)
    used = np.union1d(shown[shown >= 0], evidence.judged[:, 1])
    near = {passage: set() for passage in used.tolist()}
    for one, other in used[near_duplicates([evidence.passages[passage] for passage in used])].tolist():
        near[one].add(other)
        near[other].add(one)
    return [[passage for passage in np.unique(row[row >= 0]).tolist()
             if passage not in positives and near[passage] & set(positives)]
            for row, positives in zip(shown, evidence.positives())]


def hub_passages(evidence):
    """Passage per query that more than half of the models (and at least two) rank first, or -1."""
    first = np.stack([ranking[:, 0] for ranking in evidence.rankings.values()], axis=1)
    votes = (first[:, :, None] == first[:, None, :]).sum(axis=2)
    best = np.take_along_axis(first, votes.argmax(axis=1)[:, None], axis=1)[:, 0]
    return np.where(votes.max(axis=1) * 2 > max(2, first.shape[1]), best, -1)


def suspected_label_errors(evidence, near=None, liked=None):
    """Count, per label, top-ranked passages that are not positives, and those of them that may be missing labels.

    Returns a DataFrame (label; errors, near_duplicate, favourite). A missing label is suspected for a near-duplicate of
    a positive, and for the passage that most models rank first. The second sign is weak, since models that share
    training data share mistakes. Both only suggest what to inspect. `near` and `liked` are the results of
    suspected_false_negatives and hub_passages, if already computed.
    """
    near = suspected_false_negatives(evidence) if near is None else near
    liked = hub_passages(evidence) if liked is None else liked
    positives, table = evidence.positives(), {}
    for label, ranking in evidence.rankings.items():
        errors = [(query, first) for query, first in enumerate(ranking[:, 0].tolist()) if first not in positives[query]]
        table[label] = {"errors": len(errors), "near_duplicate": sum(first in near[query] for query, first in errors),
                        "favourite": sum(first == liked[query] for query, first in errors)}
    return pd.DataFrame(table).T


def example_queries(evidence, right, wrong, count=5):
    """DataFrame of queries whose positive `right` ranks first and `wrong` ranks lowest."""
    ranks = evidence.first_ranks()
    cases = ranks[(ranks[right] == 1) & (ranks[wrong] > 1)]
    cases = cases.sort_values(wrong, ascending=False, kind="stable").head(count)
    return pd.DataFrame([{
        "query": evidence.queries[query],
        f"first of {right} (a positive)": evidence.passages[evidence.rankings[right][query, 0]],
        f"first of {wrong}": evidence.passages[evidence.rankings[wrong][query, 0]],
        f"positive under {wrong}": f"rank {rank}" if rank <= DEPTH else f"not among the first {DEPTH}",
    } for query, rank in cases[wrong].items()])


def training_curves(output_dir, labels):
    """Loss and dev metrics by step of the labels with a training log: label -> {"loss": [[step, value], ..], ..}."""
    curves = {}
    for label in labels:
        table = pd.DataFrame(read_log(Path(output_dir) / label))
        for name in filter(table.__contains__, ("loss", "recall@10", "mrr@10")):
            points = table[["step", name]].dropna()
            points = points.groupby(np.arange(len(points)) // -(-len(points) // CURVE_POINTS)).mean()
            curves.setdefault(label, {})[name] = points.round(5).to_numpy().tolist()
    return curves


def page_data(evidence, curves):
    """All data of the page as a JSON-serializable dict, without the passages that are never shown."""
    near, liked, positives = suspected_false_negatives(evidence), hub_passages(evidence), evidence.positives()
    ranks, tops = evidence.first_ranks(), {label: ranking[:, :SHOWN] for label, ranking in evidence.rankings.items()}
    used = np.unique(np.concatenate([evidence.judged[:, 1], *(top[top >= 0] for top in tops.values())]))
    number = np.full(len(evidence.passages) + 1, -1)  # index -1, the end of a short run, maps to the last entry: -1
    number[used] = np.arange(len(used))
    return {
        "rows": [{name: row[name] for name in ROW_FIELDS if name in row} for row in evidence.rows],
        "verdicts": verdicts(evidence.rows), "significant": significant(evidence.rows),
        "recommendation": recommendation(evidence.rows),
        "labels": evidence.labels, "depth": DEPTH, "shown": SHOWN, "corpus": len(evidence.passages),
        "ids": evidence.query_ids, "queries": evidence.queries,
        "passages": [text if len(text) <= PASSAGE_CHARACTERS else text[:PASSAGE_CHARACTERS] + " … (truncated)"
                     for text in (evidence.passages[passage] for passage in used)],
        "positives": [number[row].tolist() for row in positives], "near": [number[row].tolist() for row in near],
        "favourites": number[liked].tolist(),
        "ranks": {label: ranks[label].tolist() for label in ranks},
        "top": {label: number[top].ravel().tolist() for label, top in tops.items()},
        "recall": {label: evidence.recall_curve(label).round(5).tolist() for label in evidence.labels},
        "doubts": suspected_label_errors(evidence, near, liked).to_dict("index"), "training": curves,
    }


def verdicts(rows):
    """Label -> other label -> metric -> verdict on the pair, as in the notebooks."""
    return _of_pairs(rows, lambda label, other, pair: verdict(label if pair["difference"] >= 0 else other, pair))


def significant(rows):
    """Label -> other label -> metric -> whether a planned comparison found a significant difference."""
    return _of_pairs(rows, lambda label, other, pair: pair["planned"] and outcome(pair).significant)


def _of_pairs(rows, function):
    return {row["label"]: {other: {metric: function(row["label"], other, pair) for metric, pair in by_metric.items()}
                           for other, by_metric in row["against"].items()} for row in rows}


def render(data):
    """Render the page for the result of `page_data`; returns UTF-8 bytes."""
    data = json.dumps(data, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    data = data.replace("<", "\\u003c")  # so that no text can close the script element
    page = TEMPLATE.read_text(encoding="utf-8").replace("__DATA__", data)
    return page.encode("utf-8")


def write_page(settings, evidence):
    """Write OUTPUT_DIR/report.html; returns its path."""
    path = settings.paths.report
    page = render(page_data(evidence, training_curves(settings.paths.output, evidence.labels)))
    with atomic_write(path, "wb") as file:
        file.write(page)
    return path
