"""Base class and registry of retrievers, which turn queries into runs.

A retriever is a subclass of `Retriever` with `build` and `search_batch`; `@retriever("label")` registers it for the
setting RETRIEVERS. A corpus is indexed in the order of its ids, so breaking ties by position breaks them by id. Equal
scores are separated by the smallest 32-bit step: faiss guarantees no order among them, and evaluation tools order them
differently.
"""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Self, TypeVar

import numpy as np
from numpy.typing import ArrayLike

from embedding_finetune.files import UserError
from embedding_finetune.settings import Settings

DEPTH = 100  # recall@100 needs no more
FEW = 100  # no progress bar for fewer queries

RETRIEVERS: dict[str, type["Retriever"]] = {}  # label -> class of the retrievers that need no model

Run = dict[str, dict[str, float]]  # query id -> passage id -> score, best first
Hits = tuple[np.ndarray, np.ndarray]  # scores (float32) and positions (int) of passages
Kind = TypeVar("Kind", bound=type["Retriever"])


def retriever(label: str) -> Callable[[Kind], Kind]:
    """Class decorator that registers a retriever under a label."""
    def register(kind: Kind) -> Kind:
        RETRIEVERS[label] = kind
        return kind
    return register


def make_retriever(label: str, settings: Settings | None = None) -> "Retriever":
    """Create the registered retriever of a label; lexical ones use BM25_LANGUAGE (see analyzer.Analyzer).

    Raises UserError when the label is unknown.
    """
    if label not in RETRIEVERS:
        raise UserError(f"RETRIEVERS={label} is unknown: it must list some of {', '.join(RETRIEVERS)}")
    found = RETRIEVERS[label]()
    found.language = settings.bm25_language if settings else "auto"
    return found


class Retriever:
    """Base class of retrievers: call `index` with a corpus, then `search`."""

    description: str = ""  # for reports
    config: dict[str, Any] = {}  # parameters, for reports
    language: str = "auto"

    def index(self, corpus: dict[str, str]) -> Self:
        """Index the corpus (id -> text) in the order of its ids; returns the retriever."""
        self.ids = np.array(sorted(corpus), dtype=object)
        self.build([corpus[identity] for identity in self.ids])
        return self

    def search(self, queries: dict[str, str], depth: int = DEPTH,
               copies: dict[str, list[str]] | None = None) -> Run:
        """The run of the queries (id -> text): up to `depth` matching passages per query, best first.

        `copies` (query id -> passage ids, see Collection.copies) are left out of the hits of their query.
        """
        if not queries:
            return {}
        left_out = {query: passages for query, passages in (copies or {}).items() if query in queries}
        more = max(map(len, left_out.values()), default=0)
        scores, positions = self.search_batch(list(queries.values()), depth + more)
        run = {}
        for query, row_scores, row in zip(queries, break_ties(scores), positions):
            own = left_out.get(query, ())
            kept = [place for place in np.flatnonzero(row >= 0) if self.ids[row[place]] not in own][:depth]
            run[query] = dict(zip(self.ids[row[kept]].tolist(), row_scores[kept].tolist()))
        return run

    def save(self, folder: Path) -> None:
        """Write the index to `folder` for `load`. Raises UserError when the retriever cannot be saved."""
        raise UserError(f"{self.description or type(self).__name__} cannot be saved: it has no methods `save` and "
                        "`load`; see BM25 for an example")

    def load(self, folder: Path) -> Self:
        """Load what `save` wrote; only `search_batch` works, since ids are missing. Returns the retriever."""
        raise NotImplementedError

    def build(self, texts: list[str]) -> None:
        """Index the texts of the passages for `search_batch`; their positions are those in the corpus sorted by id."""
        raise NotImplementedError

    def search_batch(self, texts: list[str], depth: int) -> Hits:
        """Scores (float32) and positions (int) of the best passages, both (queries, at most `depth`).

        Rows are sorted by descending score, ties by position. Missing matches have position -1.
        """
        raise NotImplementedError


def best(scores: np.ndarray, positions: np.ndarray, depth: int) -> Hits:
    """The `depth` best of one query's candidates, which are given in ascending order of their positions."""
    order = np.argsort(-scores, kind="stable")[:depth]
    return scores[order], positions[order]


def padded(rows: Iterable[tuple[Any, Any]], count: int, depth: int) -> Hits:
    """Scores and positions of `count` queries as arrays (count, depth), padded with score 0 and position -1."""
    scores, positions = np.zeros((count, depth), np.float32), np.full((count, depth), -1, np.int32)
    for row, (found, where) in enumerate(rows):
        scores[row, :len(where)], positions[row, :len(where)] = found, where
    return scores, positions


def break_ties(scores: ArrayLike) -> np.ndarray:
    """Make descending scores (along the last axis) strictly descending in float32, by the smallest steps."""
    scores = np.array(scores, np.float32)
    for place in range(1, scores.shape[-1]):
        below = np.nextafter(scores[..., place - 1], np.float32(-np.inf))
        scores[..., place] = np.minimum(scores[..., place], below)
    return scores


def top_k(scores: dict, depth: int | None = None) -> dict:
    """The `depth` best of scores (passage id -> score) by (-score, id), in float32 and without ties."""
    ranking = sorted(scores.items(), key=lambda item: (-np.float32(item[1]), item[0]))[:depth]
    return dict(zip((passage for passage, _ in ranking), break_ties([score for _, score in ranking]).tolist()))
