"""Reranking: base class of rerankers, and combination of their scores with the first stage."""

import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Self

import numpy as np
from tqdm.auto import tqdm

from embedding_finetune.files import UserError
from embedding_finetune.retrieval.base import DEPTH, Run, top_k
from embedding_finetune.retrieval.fusion import HybridRetriever
from embedding_finetune.settings import Settings

DEPTHS = 10, 20, 30, 50  # reranked passages of BM25 and of the model; the best depth is selected on dev queries
FEW = 20  # no progress bar for fewer queries


class Reranker:
    """Base class of rerankers: call `index` with a corpus, then `score`. Subclasses define `build` and `scores`."""

    description: str = ""  # for reports
    revision: Any = None  # content of its model, see hub.model_content
    config: dict[str, Any] = {}  # see encoder_config.EncoderConfig.identity
    depths: tuple[int, ...] = DEPTHS
    bytes_per_passage: float = 0  # stored in addition to the text
    ms_per_query: float = 0.0  # of the latest call of `score`

    @classmethod
    def of(cls, settings: Settings, label: str) -> Self:
        """The reranker with the model of a label. Raises UserError when it is not available."""
        raise NotImplementedError

    @property
    def identity(self) -> dict[str, Any]:
        """What its scores depend on besides the texts, see encoder_config.EncoderConfig."""
        return {"config": self.config, "revision": self.revision}

    def index(self, corpus: dict[str, str]) -> Self:
        """Index the corpus (id -> text) in the order of its ids, as retrievers do; returns the reranker."""
        self.position = {passage: place for place, passage in enumerate(sorted(corpus))}
        self.build([corpus[passage] for passage in self.position])
        return self

    def score(self, queries: dict[str, str], candidates: dict[str, list[str]]) -> Run:
        """The run of the candidates (query id -> passage ids) of the queries (id -> text), best first.

        Sets `ms_per_query`. Raises UserError for a candidate that is not in the corpus.
        """
        try:
            places = [[self.position[passage] for passage in candidates[query]] for query in queries]
        except KeyError as error:
            raise UserError(f"{error} is not in this corpus or has no candidates: the first stage used another "
                            "corpus, run it again") from None
        began = time.perf_counter()
        scores = self.scores(list(queries.values()), places)
        run = {query: top_k(dict(zip(candidates[query], row.tolist())))
               for query, row in zip(queries, tqdm(scores, self.description, len(places), disable=len(places) < FEW),
                                     strict=True)}
        self.ms_per_query = 1000 * (time.perf_counter() - began) / max(1, len(places))
        return run

    def save(self, folder: Path) -> None:
        """Write the index to `folder` for `load`. Raises UserError when the reranker cannot be saved."""
        raise UserError(f"{self.description} cannot be saved for search")

    def load(self, folder: Path) -> Self:
        """Load what `save` wrote and return the reranker; only `scores` works, since the ids are missing."""
        raise NotImplementedError

    def build(self, texts: list[str]) -> None:
        """Index the texts of the passages for `scores`."""
        raise NotImplementedError

    def scores(self, texts: list[str], places: Iterable) -> Iterator[np.ndarray]:
        """Yield per query text the float32 scores of the passages at its positions (`places`, a list of lists)."""
        raise NotImplementedError


def candidate_union(*runs: Run, depth: int) -> dict[str, list[str]]:
    """Union of the `depth` best passages of each run: query id -> passage ids, those of the first run first.

    Passages that only pad a run file (see trec.pad_run) are left out.
    """
    return {query: list(dict.fromkeys(passage for run in runs for passage, score in list(run[query].items())[:depth]
                                      if score > 0 or run is runs[0]))
            for query in runs[0]}


def interpolate_scores(first: Run, second: Run, weight: float | None, candidates: dict[str, list[str]] | None = None,
                       depth: int = DEPTH) -> Run:
    """Rerank the run of the first stage: its score plus `weight` times the reranker's score.

    Only `candidates` (by default all passages scored by the reranker) are reranked. The other passages of the first
    run follow in their order. With `weight` None, only the reranker's score is used.
    """
    reordered = {}
    for query, ranking in first.items():
        scored = {passage: second[query][passage] for passage in (candidates or second)[query]}
        lowest = min(ranking.values(), default=0.0)
        scores = {passage: score if weight is None else ranking.get(passage, lowest) + weight * score
                  for passage, score in scored.items()}
        floor = min(scores.values(), default=0.0) - 1
        rest = [passage for passage in ranking if passage not in scores]
        scores |= {passage: floor - place for place, passage in enumerate(rest)}
        reordered[query] = top_k(scores, depth)
    return reordered


class RerankedRetriever(HybridRetriever):
    """A HybridRetriever (`fused`) with a reranker (`stage`) over the same corpus.

    Weight and depth are tuned on dev queries by evaluation.tune.
    """

    def __init__(self, fused: HybridRetriever, stage: Reranker, rerank_weight: float | None, candidates: int) -> None:
        super().__init__(fused.bm25, fused.dense, fused.weight)
        self.stage, self.rerank_weight, self.candidates = stage, rerank_weight, candidates
        self.description += f" + {stage.description}"

    def fuse(self, texts: list[str], bm25: dict, dense: dict) -> dict:
        chosen = candidate_union(dense, bm25, depth=self.candidates)
        second = {row: dict(zip(chosen[row], scores.tolist()))
                  for row, scores in zip(chosen, self.stage.scores(texts, chosen.values()))}
        return interpolate_scores(super().fuse(texts, bm25, dense), second, self.rerank_weight)


def check_finite(scores: np.ndarray, about: str) -> np.ndarray:
    """Return the scores unchanged. Raises UserError if some are not finite."""
    if not np.isfinite(scores).all():
        raise UserError(f"{about} gives scores that are not finite: its weights are broken")
    return scores
