"""HTML report: where one model beats another, and the queries behind the difference.

`write_page` writes runs, judgements and comparison to OUTPUT_DIR/report.html, a single file that works offline.
"""

import json
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from embedding_finetune.data.collection import Collection
from embedding_finetune.data.near_duplicates import near_duplicates
from embedding_finetune.data.normalize import clean_text
from embedding_finetune.evaluation.conclusion import conclusion, verdict
from embedding_finetune.evaluation.names import name_of
from embedding_finetune.evaluation.plots import training_logs
from embedding_finetune.evaluation.results import read_measured_run
from embedding_finetune.evaluation.significance import outcome
from embedding_finetune.files import UserError, atomic_write
from embedding_finetune.settings import Settings

DEPTH = 100  # ranks considered; runs are at least this deep, or as deep as the corpus
SHOWN = 5  # passages shown per model
PASSAGE_CHARACTERS = 1000  # longer passages are truncated on the page, with a note
CURVE_POINTS = 300  # longer training curves are averaged down to about this many points
ROW_FIELDS = ("model", "dataset", "metrics", "ci95", "note", "chosen", "ms_per_query",
              "bytes_per_passage")  # of comparison.json
TEMPLATE = Path(__file__).with_name("report_page.html")


@dataclass
class ReportData:
    """Runs and judgements as arrays; query and passage numbers are positions in the test set."""

    rows: list[dict]  # of comparison.json, one per model
    query_ids: list[str]
    queries: list[str]
    passages: list[str]
    judged: np.ndarray  # (judgements, 2): query number, number of a passage that answers it
    rankings: dict[str, np.ndarray]  # label -> (queries, DEPTH) passage numbers, -1 past the end of a short run

    @property
    def labels(self) -> list[str]:
        """The labels of the models."""
        return [row["label"] for row in self.rows]

    @cached_property
    def positives(self) -> list[list[int]]:
        """Passage numbers of the positives of each query."""
        found: list[list[int]] = [[] for _ in self.queries]
        for query, passage in self.judged.tolist():
            found[query].append(passage)
        return found

    def judged_ranks(self, label: str) -> np.ndarray:
        """Rank of each judged passage in a run, DEPTH + 1 if it is not in the top DEPTH."""
        hits = self.rankings[label][self.judged[:, 0]] == self.judged[:, 1:]
        return np.where(hits.any(axis=1), hits.argmax(axis=1) + 1, DEPTH + 1)

    def first_ranks(self) -> pd.DataFrame:
        """Rank of the first positive (queries x labels), DEPTH + 1 if it is not in the top DEPTH."""
        ranks = pd.DataFrame({label: self.judged_ranks(label) for label in self.labels})
        return pd.DataFrame(ranks.groupby(self.judged[:, 0]).min())

    def recall_curve(self, label: str) -> np.ndarray:
        """Recall@k for k = 1 .. DEPTH, averaged over queries."""
        share = 1 / np.bincount(self.judged[:, 0])[self.judged[:, 0]]
        found = np.bincount(self.judged_ranks(label), weights=share, minlength=DEPTH + 2)[1:DEPTH + 1]
        return found.cumsum() / len(self.queries)

    @cached_property
    def suspected_false_negatives(self) -> list[list[int]]:
        """Shown passages of each query that are not positives but near-duplicates of one: perhaps missing labels."""
        shown = np.concatenate([ranking[:, :SHOWN] for ranking in self.rankings.values()], axis=1)
        used = np.union1d(shown[shown >= 0], self.judged[:, 1])
        near: dict[int, set] = {passage: set() for passage in used.tolist()}
        for one, other in used[near_duplicates([self.passages[passage] for passage in used])].tolist():
            near[one].add(other)
            near[other].add(one)
        return [[passage for passage in np.unique(row[row >= 0]).tolist()
                 if passage not in positives and near[passage] & set(positives)]
                for row, positives in zip(shown, self.positives)]

    @cached_property
    def favourites(self) -> np.ndarray:
        """Passage per query that more than half of the models (and at least two) rank first, or -1."""
        first = np.stack([ranking[:, 0] for ranking in self.rankings.values()], axis=1)
        votes = (first[:, :, None] == first[:, None, :]).sum(axis=2)
        best = np.take_along_axis(first, votes.argmax(axis=1)[:, None], axis=1)[:, 0]
        return np.where(votes.max(axis=1) * 2 > max(2, first.shape[1]), best, -1)


def load(settings: Settings, collection: Collection, rows: list[dict]) -> ReportData:
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
        rankings[label] = np.full((len(test.queries), DEPTH), -1, np.int32)
        try:
            for ranking, query in zip(rankings[label], test.queries):
                top = [number[passage] for passage in islice(run[query], DEPTH)]
                ranking[:len(top)] = top
        except KeyError as error:
            raise UserError(f"the run of {label} ranks the passage {error}, which is not in the corpus: evaluate "
                            "it again") from None
    return ReportData(rows, list(test.queries), list(map(clean_text, test.queries.values())),
                      list(map(clean_text, test.corpus.values())), judged, rankings)


def suspected_label_errors(evidence: ReportData) -> pd.DataFrame:
    """Count, per label, top-ranked passages that are not positives, and those of them that may be missing labels.

    The columns are errors, near_duplicate and favourite. A missing label is suspected for a near-duplicate of a
    positive, and for the passage that most models rank first. The second sign is weak, since models that share training
    data share mistakes. Both only suggest what to inspect.
    """
    near, liked, table = evidence.suspected_false_negatives, evidence.favourites, {}
    for label, ranking in evidence.rankings.items():
        errors = [(query, first) for query, first in enumerate(ranking[:, 0].tolist())
                  if first not in evidence.positives[query]]
        table[label] = {"errors": len(errors), "near_duplicate": sum(first in near[query] for query, first in errors),
                        "favourite": sum(first == liked[query] for query, first in errors)}
    return pd.DataFrame(table).T


def training_curves(logs: dict[str, pd.DataFrame]) -> dict[str, dict]:
    """Curves of training logs (see plots.training_logs): label -> {"loss": [[step, value], ..], ..}, thinned."""
    curves = {}
    for label, table in logs.items():
        for name in filter(table.__contains__, ("loss", "recall@10", "mrr@10")):
            values = table[name].dropna()
            points, width = np.column_stack([values.index, values]), max(1, -(-len(values) // CURVE_POINTS))
            means = [points[start:start + width].mean(axis=0) for start in range(0, len(points), width)]
            curves.setdefault(label, {})[name] = np.round(means, 5).tolist()
    return curves


def page_data(evidence: ReportData, logs: dict[str, pd.DataFrame], damaged: list[str]) -> dict[str, Any]:
    """All data of the page as a JSON-serializable dict, without the passages that are never shown.

    `logs` and `damaged` are the results of plots.training_logs. On the page, systems have their names (see names) in
    place of their labels.
    """
    name = {label: label for label in evidence.rankings} | {row["label"]: name_of(row) for row in evidence.rows}

    def by_name(values: dict[str, Any]) -> dict[str, Any]:
        return {name[label]: value for label, value in values.items()}

    ranks, tops = evidence.first_ranks(), {label: ranking[:, :SHOWN] for label, ranking in evidence.rankings.items()}
    used = np.unique(np.concatenate([evidence.judged[:, 1], *(top[top >= 0] for top in tops.values())]))
    number = np.full(len(evidence.passages) + 1, -1)  # index -1, the end of a short run, maps to the last entry: -1
    number[used] = np.arange(len(used))
    return {
        "rows": [{field: row[field] for field in ROW_FIELDS if field in row}
                 | {"label": name[row["label"]], "against": by_name(_with_verdicts(row, name))}
                 for row in evidence.rows],
        "conclusion": conclusion(evidence.rows),
        "labels": list(map(name_of, evidence.rows)), "depth": DEPTH, "shown": SHOWN, "corpus": len(evidence.passages),
        "ids": evidence.query_ids, "queries": evidence.queries,
        "passages": [text if len(text) <= PASSAGE_CHARACTERS else text[:PASSAGE_CHARACTERS] + " … (truncated)"
                     for text in (evidence.passages[passage] for passage in used)],
        "positives": [number[row].tolist() for row in evidence.positives],
        "near": [number[row].tolist() for row in evidence.suspected_false_negatives],
        "favourites": number[evidence.favourites].tolist(),
        "ranks": {name[label]: ranks[label].tolist() for label in ranks},
        "top": {name[label]: number[top].ravel().tolist() for label, top in tops.items()},
        "recall": {name[label]: evidence.recall_curve(label).round(5).tolist() for label in evidence.labels},
        "doubts": by_name(suspected_label_errors(evidence).to_dict("index")), "training": training_curves(logs),
        "damaged": damaged,
    }


def _with_verdicts(row: dict, name: dict[str, str]) -> dict:
    """`against` of a row with the verdict on each pair, and whether a planned comparison found it significant.

    `name` is label -> name.
    """
    better = {other: {True: name[row["label"]], False: name[other]} for other in row["against"]}
    return {other: {metric: pair | {"verdict": verdict(better[other][pair["difference"] >= 0], pair),
                                    "significant": pair["planned"] and outcome(pair).significant}
                    for metric, pair in pairs.items()} for other, pairs in row["against"].items()}


def render(data: dict[str, Any]) -> bytes:
    """Render the page for the result of `page_data`; returns UTF-8 bytes."""
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    text = text.replace("<", "\\u003c")  # so that no text can close the script element
    return TEMPLATE.read_text(encoding="utf-8").replace("__DATA__", text).encode("utf-8")


def write_page(settings: Settings, evidence: ReportData) -> Path:
    """Write OUTPUT_DIR/report.html; returns its path."""
    path = settings.paths.report
    page = render(page_data(evidence, *training_logs(settings, evidence.labels)))
    with atomic_write(path, "wb") as file:
        file.write(page)
    return path
