"""Fusion of BM25 with a dense retriever, by reciprocal rank or by a weighted sum of scores."""

import numpy as np

from embedding_finetune.retrieval.base import DEPTH, Retriever, break_ties, top_k


def reciprocal_rank_fusion(bm25, dense, constant=60, depth=DEPTH):
    """Reciprocal rank fusion of two runs: a passage scores the sum of 1 / (constant + rank) over the runs with it.

    Cormack, Clarke and Büttcher, "Reciprocal Rank Fusion outperforms Condorcet and individual Rank Learning Methods",
    SIGIR 2009. Passages with BM25 scores of 0 or less (see trec.pad_run) share no word and count as absent.
    """
    fused = {}
    for query in dense:
        scores = {}
        for ranking in (_matching(bm25, query), dense[query]):
            for rank, passage in enumerate(ranking, start=1):
                scores[passage] = scores.get(passage, 0) + 1 / (constant + rank)
        fused[query] = top_k(scores, depth)
    return fused


def weighted_sum_fusion(bm25, dense, weight, depth=DEPTH):
    """Cosine plus `weight` times the BM25 score divided by the query's best BM25 score.

    A passage missing from a run gets that run's lowest score, the upper bound of its true score. If a BM25 run has
    fewer than `depth` passages, all others share no word with the query and get 0.
    """
    fused = {}
    for query, cosines in dense.items():
        words = _matching(bm25, query)
        scale = max(words.values(), default=1)
        lexical = {passage: weight * score / scale for passage, score in words.items()}
        lowest = min(cosines.values(), default=0.0), min(lexical.values()) if len(lexical) >= depth else 0.0
        fused[query] = top_k({passage: cosines.get(passage, lowest[0]) + lexical.get(passage, lowest[1])
                              for passage in cosines | lexical}, depth)
    return fused


class HybridRetriever(Retriever):
    """`weighted_sum_fusion` of the top DEPTH passages of BM25 and of a dense retriever over the same corpus."""

    def __init__(self, bm25, dense, weight):
        self.bm25, self.dense, self.weight, self.tie_rank = bm25, dense, weight, dense.tie_rank
        self.description = f"{bm25.description} + {dense.description}"

    def search_batch(self, texts, depth):
        bm25, dense = (self._run(part, texts) for part in (self.bm25, self.dense))
        depth = min(depth, DEPTH, len(self.tie_rank))
        scores, positions = np.zeros((len(texts), depth), np.float32), np.full((len(texts), depth), -1, np.int32)
        for row, fused in self.fuse(texts, bm25, dense).items():
            found = list(fused.items())[:depth]
            positions[row, :len(found)] = [position for (_, position), _ in found]
            scores[row, :len(found)] = [score for _, score in found]
        return scores, positions

    def fuse(self, texts, bm25, dense):
        """Fuse both runs, whose query ids are the positions of the texts."""
        return weighted_sum_fusion(bm25, dense, self.weight)

    def _run(self, part, texts):
        """Run with row numbers as query ids and (tie rank, position) as passage ids, which sort like the ids."""
        scores, positions = part.search_batch(texts, DEPTH)
        return {row: {(int(self.tie_rank[position]), int(position)): float(score)
                      for score, position in zip(break_ties(scores[row]), positions[row]) if position >= 0}
                for row in range(len(texts))}


def _matching(bm25, query):
    return {passage: score for passage, score in bm25[query].items() if score > 0}
