"""A second look at the best hits: a stage that scores what a first one has found, more closely than could be afforded
for a whole corpus, and the runs that come of both.

A stage is named KIND_MODEL_on_FIRST: `late_reference_on_neg10` reorders the first passages of BM25 and neg10 by the
token vectors of the reference. Where both are one model, `late_neg10` is enough.
"""

import re
import time

import numpy as np
from tqdm.auto import tqdm

from embedding_finetune.files import UserError
from embedding_finetune.labels import RERANKER_KINDS
from embedding_finetune.models.encoder_config import model_labels
from embedding_finetune.retrieval.base import DEPTH, top_k
from embedding_finetune.retrieval.fusion import HybridRetriever

DEPTHS = 10, 20, 30, 50  # passages of BM25 and of the model that are looked at again: dev chooses among these
FEW = 20  # queries that need no progress bar


def parse_reranker_label(settings, label):
    """(kind, label of the stage's model, label of the first stage) of a stage.

    A model's label may have `_on_` in it, too: it is read by the labels that there are. Raises UserError when it is no
    stage's label, or when it can be read in several ways.
    """
    kind, _, rest = label.partition("_")
    if kind not in RERANKER_KINDS or not re.fullmatch(r"[\w-]+", rest, re.ASCII):
        raise UserError(f"{label!r} is no second stage: it must be KIND_MODEL or KIND_MODEL_on_FIRST, such as "
                        f"late_reference_on_neg10; kinds are {', '.join(RERANKER_KINDS)}")
    split = [(rest[:place.start()], rest[place.end():]) for place in re.finditer("_on_", rest)]
    there = {*model_labels(settings)}
    found = [pair for pair in ((rest, rest), *split) if there.issuperset(pair)] or split or [(rest, rest)]
    if len(found) > 1:
        raise UserError(f"{label!r} can be read as {' or '.join(f'{model} on {first}' for model, first in found)}: "
                        "rename one of these models")
    return kind, *found[0]


class Reranker:
    """Scores candidates: `index` a corpus once, then `score`. A kind is a class with `build` and `scores`."""

    description = ""  # what scores, for people
    revision = None  # of its model, see hub.model_content
    config = {}  # how it is used, as `identity` of model_use.ModelUse
    depths = DEPTHS
    bytes_per_passage = 0  # of what is stored beside the text
    ms_per_query = 0.0  # of the latest `score`

    @classmethod
    def of(cls, settings, label):
        """The stage with the model of a label, as the settings have it. Raises UserError when it cannot be had."""
        raise NotImplementedError

    def index(self, corpus):
        """Take in the corpus (id -> text); returns the stage."""
        self.position = {passage: place for place, passage in enumerate(corpus)}
        self.build(list(corpus.values()))
        return self

    def score(self, queries, candidates):
        """The run of the candidates (query id -> passage ids) of the queries (id -> text), best first.

        `ms_per_query` is what that took. Raises UserError for a candidate that is not in the corpus.
        """
        try:
            places = [[self.position[passage] for passage in candidates[query]] for query in queries]
        except KeyError as error:
            raise UserError(f"{error} is not in this corpus or has no candidates: the first stage ranked another one, "
                            "run it again") from None
        began = time.perf_counter()
        scores = self.scores(list(queries.values()), places)
        run = {query: top_k(dict(zip(candidates[query], row.tolist())))
               for query, row in zip(queries, tqdm(scores, self.description, len(places), disable=len(places) < FEW),
                                     strict=True)}
        self.ms_per_query = 1000 * (time.perf_counter() - began) / max(1, len(places))
        return run

    def save(self, folder):
        """Write to `folder` what `restore` maps into memory there. Raises UserError where a kind has no such form."""
        raise UserError(f"{self.description} cannot be kept on disk for a search")

    def build(self, texts):
        """Make whatever `scores` needs of the passages' texts."""
        raise NotImplementedError

    def scores(self, texts, places):
        """Yield for each query (texts, a list) the scores of the passages at its places (a list of lists): float32."""
        raise NotImplementedError


def candidate_union(*runs, depth):
    """The `depth` best passages of each run together: query id -> passage ids, the first run's first.

    What a retriever puts behind its hits to fill a run file (see runs.padded) counts as not found.
    """
    return {query: list(dict.fromkeys(passage for run in runs for passage, score in list(run[query].items())[:depth]
                                      if score > 0 or run is runs[0]))
            for query in runs[0]}


def interpolate_scores(first, second, weight, candidates=None, depth=DEPTH):
    """A run of the first stage, reordered: its score plus `weight` times that of the second stage.

    Only `candidates` (by default all that the second stage has scored) take part; the other passages of the first run
    come after them, in their order. With `weight` None the second stage alone decides.
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
    """BM25 and a dense retriever (`fused`, a Fused) reordered by a second stage over the same corpus, whose weight and
    depth evaluation.second_stage has chosen."""

    def __init__(self, fused, stage, rerank_weight, candidates):
        super().__init__(fused.bm25, fused.dense, fused.weight)
        self.stage, self.rerank_weight, self.candidates = stage, rerank_weight, candidates
        self.description += f" + {stage.description}"

    def fuse(self, texts, bm25, dense):
        chosen = candidate_union(dense, bm25, depth=self.candidates)
        places = [[position for _, position in chosen[row]] for row in range(len(texts))]
        second = {row: dict(zip(chosen[row], scores.tolist()))
                  for row, scores in enumerate(self.stage.scores(texts, places))}
        return interpolate_scores(super().fuse(texts, bm25, dense), second, self.rerank_weight)


def check_finite(scores, about):
    """The scores, as they are. Raises UserError when some are no numbers."""
    if not np.isfinite(scores).all():
        raise UserError(f"{about} gives scores that are not finite: its weights are broken")
    return scores
