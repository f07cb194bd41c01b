"""Base class and registry of retrievers, which turn queries into runs.

A retriever is a subclass of `Retriever` with `build` and `search_batch`; `@retriever("label")` registers it for the
setting RETRIEVERS. Ties are broken by id, and equal scores are separated by the smallest 32-bit step: faiss guarantees
no order among them, and evaluation tools order them differently.
"""

import numpy as np

from embedding_finetune.files import UserError

DEPTH = 100  # recall@100 needs no more
FEW = 100  # no progress bar for fewer queries

RETRIEVERS = {}  # label -> class of the retrievers that need no model


def retriever(label):
    """Class decorator that registers a retriever under a label."""
    def register(kind):
        RETRIEVERS[label] = kind
        return kind
    return register


def make_retriever(label, settings=None):
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

    description, config = "", {}  # name and parameters, for reports
    language = "auto"

    def index(self, corpus):
        """Index the corpus (id -> text); returns the retriever."""
        self.ids = np.array(list(corpus), dtype=object)
        self.tie_rank = np.empty(len(self.ids), dtype=np.int64)
        self.tie_rank[np.argsort(self.ids)] = np.arange(len(self.ids))
        self.build(list(corpus.values()))
        return self

    def search(self, queries: dict, depth: int = DEPTH, copies: dict | None = None) -> dict:
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

    def save(self, folder):
        """Write the index to `folder` for `load`. Raises UserError when the retriever cannot be saved."""
        if type(self).load is Retriever.load:
            raise UserError(f"{self.description or type(self).__name__} cannot be saved: it has no method `load`; see "
                            "BM25 for an example")
        np.save(folder / "tie_rank.npy", self.tie_rank)

    def load(self, folder):
        """Load what `save` wrote; only `search_batch` works, since ids are missing. Returns the retriever."""
        self.tie_rank = np.load(folder / "tie_rank.npy", mmap_mode="r")
        return self

    def build(self, texts):
        """Index the texts of the passages, given in the order of `self.ids`, for `search_batch`."""
        raise NotImplementedError

    def search_batch(self, texts, depth):
        """Scores (float32) and positions (int) of the best passages, both (queries, at most `depth`).

        Rows are sorted by descending score, ties by `self.tie_rank`. Missing matches have position -1.
        """
        raise NotImplementedError


def break_ties(scores):
    """Make descending scores (along the last axis) strictly descending in float32, by the smallest steps."""
    scores = np.array(scores, np.float32)
    for place in range(1, scores.shape[-1]):
        below = np.nextafter(scores[..., place - 1], np.float32(-np.inf))
        scores[..., place] = np.minimum(scores[..., place], below)
    return scores


def top_k(scores, depth=None):
    """The `depth` best of scores (passage id -> score) by (-score, id), in float32 and without ties."""
    ranking = sorted(scores.items(), key=lambda item: (-np.float32(item[1]), item[0]))[:depth]
    return dict(zip((passage for passage, _ in ranking), break_ties([score for _, score in ranking]).tolist()))
