"""Rankings: faiss for vectors, BM25 for words, and one order among equal scores.

Both give a run (see trec): the `depth` best passages of each query, by (-score, id). faiss promises no order among equal
scores, and evaluation tools have orders of their own, so equal scores are moved apart by the smallest step a 32-bit number
allows: every tool then sees the same ranking.
"""

import bm25s
import faiss
import numpy as np
import Stemmer
from tqdm.auto import tqdm

DEPTH = 100  # recall@100 needs no more


def dense_run(test_set, query_vectors, passage_vectors, depth=DEPTH):
    """Rank the corpus of a TestSet for its queries by inner product, exactly (faiss IndexFlatIP).

    Vectors are float32 of shape (queries, dimensions) and (passages, dimensions), in the order of the test set.
    """
    query_ids, passage_ids = list(test_set.queries), list(test_set.corpus)
    index = faiss.IndexFlatIP(passage_vectors.shape[1])
    index.add(passage_vectors)
    depth = min(depth, len(passage_ids))
    rank_of_id = _alphabetical_rank(passage_ids)
    scores, positions = np.empty((len(query_ids), depth), np.float32), np.empty((len(query_ids), depth), np.int64)
    rows, reach = np.arange(len(query_ids)), depth + 1
    while len(rows):  # all queries first; then those where a passage out of reach may tie with the last one wanted
        reach = min(reach, len(passage_ids))
        found, where = index.search(query_vectors[rows], reach)
        order = np.lexsort((rank_of_id[where], -found), axis=-1)[:, :depth]
        scores[rows], positions[rows] = np.take_along_axis(found, order, 1), np.take_along_axis(where, order, 1)
        rows = rows[(found[:, -1] == found[:, depth - 1]) & (reach < len(passage_ids))]
        reach *= 2
    return _as_run(query_ids, passage_ids, scores, positions)


def bm25_run(test_set, depth=DEPTH):
    """Rank the corpus of a TestSet for its queries by BM25 (see bm25_search)."""
    query_ids, passage_ids = list(test_set.queries), list(test_set.corpus)
    scores, positions = bm25_search(list(test_set.queries.values()), list(test_set.corpus.values()), depth, _alphabetical_rank(passage_ids))
    return _as_run(query_ids, passage_ids, scores, positions)


def bm25_search(queries, passages, depth, tie_rank=None):
    """BM25 (bm25s in Lucene's variant, k1 1.5, b 0.75; English stems, no stop words) of texts against texts.

    Returns scores (float32) and positions (int32) of the `depth` best passages, both of shape (queries, depth) or fewer columns if there are
    fewer passages; equal scores in the order of `tie_rank`, by default of the positions. Memory grows with queries times depth.
    """
    stemmer = Stemmer.Stemmer("english")

    def tokenize(texts, as_numbers):
        return bm25s.tokenize(texts, stopwords="en", stemmer=stemmer, return_ids=as_numbers, show_progress=False)

    index = bm25s.BM25()
    index.index(tokenize(passages, as_numbers=True), show_progress=False)
    depth = min(depth, len(passages))
    tie_rank = np.arange(len(passages)) if tie_rank is None else tie_rank
    scores, positions = np.empty((len(queries), depth), np.float32), np.empty((len(queries), depth), np.int32)
    for row, words in enumerate(tqdm(tokenize(queries, as_numbers=False), desc="BM25", unit="query")):
        all_scores = index.get_scores(words) if words else np.zeros(len(passages), np.float32)
        last_wanted = np.partition(all_scores, -depth)[-depth]
        candidates = np.flatnonzero(all_scores >= last_wanted)
        positions[row] = candidates[np.lexsort((tie_rank[candidates], -all_scores[candidates]))][:depth]
        scores[row] = all_scores[positions[row]]
    return scores, positions


def _alphabetical_rank(ids):
    rank = np.empty(len(ids), dtype=np.int64)
    rank[np.argsort(ids)] = np.arange(len(ids))
    return rank


def _as_run(query_ids, passage_ids, scores, positions):
    """Move equal scores apart in the order they have, and name the passages."""
    for column in range(1, scores.shape[1]):
        below = np.nextafter(scores[:, column - 1], np.float32(-np.inf))
        scores[:, column] = np.minimum(scores[:, column], below)
    names = np.asarray(passage_ids, dtype=object)[positions]
    return {query: dict(zip(row_names, row_scores)) for query, row_names, row_scores
            in zip(query_ids, names.tolist(), scores.tolist())}
