"""Retrievers: what turns queries into a run. Everything after a run knows nothing of models.

`Retriever` does what all have in common; a new one is a class with `build` and `top`, and `@retriever("label")` makes
it one that RETRIEVERS can name. Equal scores are ranked by id everywhere and moved apart by the smallest step a
32-bit number allows: faiss promises no order among them, and every evaluation tool has one of its own.
"""


import numpy as np

from embedding_finetune.files import UserError

DEPTH = 100  # recall@100 needs no more
FEW = 100  # queries that need no progress bar

RETRIEVERS = {}  # label -> class, of those that need no model


def retriever(label):
    """Register the decorated class, so that RETRIEVERS can name it."""
    def register(kind):
        RETRIEVERS[label] = kind
        return kind
    return register


def make_retriever(label, language="auto"):
    """A retriever that needs no model, by its label; `language` is for those that look at words (see words.Words).

    Raises UserError when there is none.
    """
    if label not in RETRIEVERS:
        raise UserError(f"RETRIEVERS={label} is unknown: it must list some of {', '.join(RETRIEVERS)}")
    found = RETRIEVERS[label]()
    found.language = language
    return found


class Retriever:
    """Finds passages for queries: `index` a corpus once, then `search` it."""

    description, config = "", {}  # what ranks, and how, for people
    language = "auto"

    def index(self, corpus):
        """Take in the corpus (id -> text); returns the retriever."""
        self.ids = np.array(list(corpus), dtype=object)
        self.tie_rank = np.empty(len(self.ids), dtype=np.int64)
        self.tie_rank[np.argsort(self.ids)] = np.arange(len(self.ids))
        self.build(list(corpus.values()))
        return self

    def search(self, queries, depth=DEPTH):
        """The run of the queries (id -> text): the `depth` best passages of each, or fewer where fewer match at all.

        A passage with the id of the query is the query itself (as in ArguAna or Quora) and is left out, as BEIR does.
        """
        if not queries:
            return {}
        own = {identity: position for position, identity in enumerate(self.ids) if identity in queries}
        scores, positions = self.search_batch(list(queries.values()), depth + 1)
        run = {}
        for query, row_scores, row in zip(queries, break_ties(scores), positions):
            kept = np.flatnonzero((row >= 0) & (row != own.get(query, -1)))[:depth]
            run[query] = dict(zip(self.ids[row[kept]].tolist(), row_scores[kept].tolist()))
        return run

    def save(self, folder):
        """Write to `folder` what `restore` maps into memory there. Raises UserError where a retriever has no such form.
        """
        if type(self).load is Retriever.load:
            raise UserError(f"{self.description or type(self).__name__} cannot be kept on disk: it lacks `restore`, see "
                            "BM25")
        np.save(folder / "tie_rank.npy", self.tie_rank)

    def load(self, folder):
        """Take up what `save` wrote, without the passages: for `top`, not for `search`. Returns the retriever."""
        self.tie_rank = np.load(folder / "tie_rank.npy", mmap_mode="r")
        return self

    def build(self, texts):
        """Make whatever `top` needs of the passages' texts, in the order of `self.ids`."""
        raise NotImplementedError

    def search_batch(self, texts, depth):
        """Scores (float32) and positions (int) of the best passages for texts, both (queries, depth or fewer columns).

        Best first, equal scores in the order of `self.tie_rank`; position -1 where fewer passages match.
        """
        raise NotImplementedError


def break_ties(scores):
    """Descending scores along the last axis in 32 bits, equal ones moved apart by the smallest steps there are."""
    scores = np.array(scores, np.float32)
    for place in range(1, scores.shape[-1]):
        below = np.nextafter(scores[..., place - 1], np.float32(-np.inf))
        scores[..., place] = np.minimum(scores[..., place], below)
    return scores


def top_k(scores, depth=None):
    """The `depth` best of the scores (passage id -> score) by (-score, id), in 32 bits, equal ones moved apart."""
    ranking = sorted(scores.items(), key=lambda item: (-np.float32(item[1]), item[0]))[:depth]
    return dict(zip((passage for passage, _ in ranking), break_ties([score for _, score in ranking]).tolist()))
