"""Fusion of BM25 with a dense retriever by a weighted sum of scores."""

from embedding_finetune.retrieval.base import DEPTH, Hits, Retriever, Run, break_ties, padded, top_k


def weighted_sum_fusion(bm25: Run, dense: Run, weight: float, depth: int = DEPTH) -> Run:
    """Cosine plus `weight` times the BM25 score divided by the query's best BM25 score.

    A passage missing from a run gets that run's lowest score, the upper bound of its true score. If a BM25 run has
    fewer than `depth` passages, all others share no word with the query and get 0.
    """
    fused = {}
    for query, cosines in dense.items():
        words = {passage: score for passage, score in bm25[query].items() if score > 0}  # others only pad a run
        scale = max(words.values(), default=1)
        lexical = {passage: weight * score / scale for passage, score in words.items()}
        no_cosine = min(cosines.values(), default=0.0)
        no_word = min(lexical.values()) if len(lexical) >= depth else 0.0
        fused[query] = top_k({passage: cosines.get(passage, no_cosine) + lexical.get(passage, no_word)
                              for passage in cosines | lexical}, depth)
    return fused


class HybridRetriever(Retriever):
    """`weighted_sum_fusion` of the top DEPTH passages of BM25 and of a dense retriever over the same corpus."""

    def __init__(self, bm25: Retriever, dense: Retriever, weight: float) -> None:
        self.bm25, self.dense, self.weight = bm25, dense, weight
        self.description = f"{bm25.description} + {dense.description}"

    def search_batch(self, texts: list[str], depth: int) -> Hits:
        bm25, dense = (self._run(part, texts) for part in (self.bm25, self.dense))
        depth = min(depth, DEPTH)
        fused = self.fuse(texts, bm25, dense).values()
        rows = [(list(ranking.values())[:depth], list(ranking)[:depth]) for ranking in fused]
        return padded(rows, len(texts), depth)

    def fuse(self, texts: list[str], bm25: dict, dense: dict) -> dict:
        """Fuse both runs, whose query ids are the positions of the texts and whose passage ids are positions, too."""
        return weighted_sum_fusion(bm25, dense, self.weight)

    def _run(self, part: Retriever, texts: list[str]) -> dict:
        scores, positions = part.search_batch(texts, DEPTH)
        return {row: {int(position): float(score)
                      for score, position in zip(break_ties(scores[row]), positions[row]) if position >= 0}
                for row in range(len(texts))}
