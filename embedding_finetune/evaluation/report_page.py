"""A page to look at: where one model beats another, and the queries behind it.

`write_page` turns the runs, the judgements and the comparison into OUTPUT_DIR/report.html, one file that needs no
network; `exemplary_cases` gives a notebook a few of the queries that one model answers and another does not.
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

DEPTH = 100  # ranks that are looked at; runs are at least this deep (or as deep as the corpus)
SHOWN = 5  # passages of each model on the page
PASSAGE_CHARACTERS = 1000  # longer passages are cut on the page, and say so
CURVE_POINTS = 300  # a longer training curve is averaged down to about as many points
ROW_FIELDS = ("label", "model", "dataset", "metrics", "ci95", "against", "note", "chosen", "ms_per_query",
              "bytes_per_passage")  # of comparison.json
TEMPLATE = Path(__file__).with_name("report_page.html")


@dataclass
class ReportData:
    """Runs and judgements as arrays; queries and passages are numbered in the order of the test set."""

    rows: list  # of comparison.json, one a model
    query_ids: list
    queries: list
    passages: list
    judged: np.ndarray  # (judgements, 2): number of a query and of a passage that answers it
    rankings: dict  # label -> (queries, DEPTH) numbers of passages, -1 past the end of a short run

    @property
    def labels(self):
        return [row["label"] for row in self.rows]

    def positives(self):
        """For each query the numbers of its positives."""
        found = [[] for _ in self.queries]
        for query, passage in self.judged.tolist():
            found[query].append(passage)
        return found

    def judged_ranks(self, label):
        """Rank of each judged passage in a run, DEPTH + 1 when it is not among the first DEPTH."""
        hits = self.rankings[label][self.judged[:, 0]] == self.judged[:, 1:]
        return np.where(hits.any(axis=1), hits.argmax(axis=1) + 1, DEPTH + 1)

    def first_ranks(self):
        """Frame (queries x labels) with the rank of the first positive, DEPTH + 1 when it is deeper or absent."""
        ranks = pd.DataFrame({label: self.judged_ranks(label) for label in self.labels})
        return ranks.groupby(self.judged[:, 0]).min()

    def recall_curve(self, label):
        """Recall@k for k = 1 .. DEPTH: the found share of each query's positives, averaged over queries."""
        share = 1 / np.bincount(self.judged[:, 0])[self.judged[:, 0]]
        found = np.bincount(self.judged_ranks(label), weights=share, minlength=DEPTH + 2)[1:DEPTH + 1]
        return found.cumsum() / len(self.queries)


def load(settings, collection, rows):
    """The evidence about the test part of a collection: the runs of the `rows` of results.compare.

    Raises UserError when a run is missing, or does not belong to this test set.
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
            raise UserError(f"the run of {label} ranks the passage {error}, which the corpus lacks: evaluate it "
                            "again") from None
        rankings[label] = np.array([top + [-1] * (DEPTH - len(top)) for top in tops], np.int32)
    return ReportData(rows, list(test.queries), list(map(clean_text, test.queries.values())),
                    list(map(clean_text, test.corpus.values())), judged, rankings)


def suspected_false_negatives(evidence):
    """For each query the shown passages that are no positives but near-duplicates of one (so perhaps unlabelled)."""
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
    """For each query the passage that more than half of the models (of at least two) put first, or -1."""
    first = np.stack([ranking[:, 0] for ranking in evidence.rankings.values()], axis=1)
    votes = (first[:, :, None] == first[:, None, :]).sum(axis=2)
    best = np.take_along_axis(first, votes.argmax(axis=1)[:, None], axis=1)[:, 0]
    return np.where(votes.max(axis=1) * 2 > max(2, first.shape[1]), best, -1)


def suspected_label_errors(evidence, near=None, liked=None):
    """Frame (label; errors, near_duplicate, favourite): first places that hold no positive, and how many of these look
    like a passage that nobody labelled: a near-duplicate of a positive, or the first choice of most models.

    The second sign is weak: models that share training data or words share mistakes. Both only say where to look.
    `near` and `liked` are what unlabelled and favourites return, if they are at hand.
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
    """The queries whose positive `right` puts first and `wrong` ranks deepest, as a frame for a notebook."""
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
    """Loss and dev metrics by step, of the models with a training log: label -> {"loss": [[step, value], ..], ..}."""
    curves = {}
    for label in labels:
        table = pd.DataFrame(read_log(Path(output_dir) / label))
        for name in filter(table.__contains__, ("loss", "recall@10", "mrr@10")):
            points = table[["step", name]].dropna()
            points = points.groupby(np.arange(len(points)) // -(-len(points) // CURVE_POINTS)).mean()
            curves.setdefault(label, {})[name] = points.round(5).to_numpy().tolist()
    return curves


def page_data(evidence, curves):
    """Everything the page shows, as one JSON-able dict; passages that no list shows are left out."""
    near, liked, positives = suspected_false_negatives(evidence), hub_passages(evidence), evidence.positives()
    ranks, tops = evidence.first_ranks(), {label: ranking[:, :SHOWN] for label, ranking in evidence.rankings.items()}
    used = np.unique(np.concatenate([evidence.judged[:, 1], *(top[top >= 0] for top in tops.values())]))
    number = np.full(len(evidence.passages) + 1, -1)  # the last entry serves the -1 of a short run
    number[used] = np.arange(len(used))
    return {
        "rows": [{name: row[name] for name in ROW_FIELDS if name in row} for row in evidence.rows],
        "verdicts": verdicts(evidence.rows), "significant": significant(evidence.rows),
        "recommendation": recommendation(evidence.rows),
        "labels": evidence.labels, "depth": DEPTH, "shown": SHOWN, "corpus": len(evidence.passages),
        "ids": evidence.query_ids, "queries": evidence.queries,
        "passages": [text if len(text) <= PASSAGE_CHARACTERS else text[:PASSAGE_CHARACTERS] + " … (cut)"
                     for text in (evidence.passages[passage] for passage in used)],
        "positives": [number[row].tolist() for row in positives], "near": [number[row].tolist() for row in near],
        "favourites": number[liked].tolist(),
        "ranks": {label: ranks[label].tolist() for label in ranks},
        "top": {label: number[top].ravel().tolist() for label, top in tops.items()},
        "recall": {label: evidence.recall_curve(label).round(5).tolist() for label in evidence.labels},
        "doubts": suspected_label_errors(evidence, near, liked).to_dict("index"), "training": curves,
    }


def verdicts(rows):
    """label -> other label -> metric -> what may be said of the two, as in the notebooks."""
    return _of_pairs(rows, lambda label, other, pair: verdict(label if pair["difference"] >= 0 else other, pair))


def significant(rows):
    """The same for whether a planned comparison found a difference."""
    return _of_pairs(rows, lambda label, other, pair: pair["planned"] and outcome(pair).significant)


def _of_pairs(rows, function):
    return {row["label"]: {other: {metric: function(row["label"], other, pair) for metric, pair in by_metric.items()}
                           for other, by_metric in row["against"].items()} for row in rows}


def render(data):
    """The page, in UTF-8 bytes, for what `page_data` returned."""
    data = json.dumps(data, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    data = data.replace("<", "\\u003c")  # no text can close the script element it is stored in
    page = TEMPLATE.read_text(encoding="utf-8").replace("__DATA__", data)
    return page.encode("utf-8")


def write_page(settings, evidence):
    """Write OUTPUT_DIR/report.html; returns its path."""
    path = settings.output_dir / "report.html"
    page = render(page_data(evidence, training_curves(settings.output_dir, evidence.labels)))
    with atomic_write(path, "wb") as file:
        file.write(page)
    return path
