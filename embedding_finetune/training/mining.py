"""Hard negative mining and teacher scores: candidates from a model, BM25 or both, filtered by the model's scores.

The retrievers run one after the other, so only one index is in memory. Search results are saved block by block in
OUTPUT_DIR/cache/hits (see retrieval.resumable_search), so interrupted mining resumes.
"""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from tqdm.auto import tqdm

from embedding_finetune.data.collection import Collection, read_data
from embedding_finetune.data.near_duplicates import near_duplicates
from embedding_finetune.data.negatives import (
    Filter,
    NegativeCandidates,
    filter_candidates,
    interleave,
    select_negatives,
)
from embedding_finetune.files import UserError, content_hash, parse_label
from embedding_finetune.hub import check_hub
from embedding_finetune.models.encoder import make_encoder
from embedding_finetune.models.encoder_config import load_encoder_config, model_identity, model_path, pretrained
from embedding_finetune.recipes import Recipe, all_recipes, find_recipe
from embedding_finetune.retrieval.base import make_retriever
from embedding_finetune.retrieval.cross_encoder import CrossEncoder
from embedding_finetune.retrieval.dense import Dense, encode_corpus
from embedding_finetune.retrieval.known_systems import make_reranker, rerankers
from embedding_finetune.retrieval.resumable_search import resumable_search
from embedding_finetune.settings import Settings, display_value
from embedding_finetune.training.training_data import make_training_file, training_path


class Miner:
    """Mines negatives with the `miner` of a recipes.Recipe and scores passages with its `teacher`, if it has one."""

    def __init__(self, settings: Settings, recipe: Recipe):
        """Raises UserError if a model of the recipe is missing or of the wrong kind."""
        self.settings, self.recipe = settings, recipe
        self.config: Any = self._use(recipe.miner) if recipe.negatives == "mined" else None
        self.teacher: Any = None
        self.stage: Any = None
        if recipe.teacher in (*pretrained(settings), *all_recipes(settings)):
            self.teacher = self._use(recipe.teacher)
        elif recipe.teacher in (known := rerankers(settings)):  # full precision, whatever the settings of evaluation
            full = replace(settings, reranker_precision="fp32", token_dtype="float16", token_pool_factor=1)
            self.stage = make_reranker(full, *known[recipe.teacher])
        elif recipe.teacher:
            name = model_path(recipe.teacher)
            check_hub(name)
            self.stage = CrossEncoder(name, recipe.teacher, settings.trusts(recipe.teacher, name))

    def _use(self, label):
        folder = self.settings.paths.model(label)
        if label not in pretrained(self.settings) and not (folder / "config.json").is_file():
            raise UserError(f"{self.recipe.label} mines with the model {label}, which is not in "
                            f"{self.settings.paths.output}: run `bash finetune_hard.sh {label}` first")
        return load_encoder_config(self.settings, label)

    def inputs(self) -> dict[str, Any]:
        """The models, and the language of BM25, for the record of the training file."""
        models = {"miner": self.config, "teacher": self.teacher}
        inputs = {name: model_identity(config) for name, config in models.items() if config}
        inputs |= {"teacher": self.stage.identity} if self.stage else {}
        return inputs | ({"bm25_language": self.settings.bm25_language} if "bm25" in self.recipe.candidates else {})

    def mine(self, pool: NegativeCandidates) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Negatives of each query of a NegativeCandidates `pool`: (positions in the pool, sources).

        Positions are an array (queries, num_negatives). Sources maps each source to a bool array of the same shape:
        whether it found the negative. Candidates come from the eligible passages of the pool. They are filtered by the
        model's scores, near-duplicates of a positive are dropped, and random passages fill the remaining places.
        """
        recipe, train = self.recipe, pool.train
        corpus: Any = dict(enumerate(pool.texts()))  # retrievers sort passages by id, and these stay in order
        print(f"mining for {recipe.label}: {len(train.queries)} training queries, {pool.num_eligible} training "
              f"passages, model {self.config.title}", flush=True)
        queries, passages, found = list(train.queries.values()), content_hash(*corpus.items()), {}
        if "bm25" in recipe.candidates:  # its index is deleted before the embeddings are computed
            bm25 = make_retriever("bm25", self.settings).index(corpus)
            print(f"BM25 analyzer language: {bm25.config['language']}", flush=True)
            found["bm25"] = self._found(bm25, queries, passages, bm25.config)
            del bm25
        dense = Dense(make_encoder(self.settings, self.config)).index(corpus)
        if "model" in recipe.candidates:
            found["model"] = self._found(dense, queries, passages, [self.config.identity, dense.encoder.revision])
        found = {name: np.where(found[name] < pool.num_eligible, found[name], -1) for name in recipe.candidates}
        candidates = interleave(*found.values()) if len(found) == 2 else next(iter(found.values()))
        vectors = dense.encoder.encode_queries(queries)
        candidates = filter_candidates(candidates, pool.positives, vectors, dense.vectors, Filter.parse(recipe.filter))
        near, seed = near_duplicates(corpus.values()), self.settings.rng(recipe.num_negatives)
        chosen, mined = select_negatives(candidates, pool.excluded(), near, pool.num_eligible, recipe.num_negatives,
                                         seed=seed)
        return chosen, _sources(chosen, mined, found)

    def _found(self, retriever, queries, passages, identity):
        """Positions of the top passages per query; `passages` is a hash of the corpus, `identity` that of the
        retriever.
        """
        folder = self.settings.paths.searches
        return resumable_search(retriever, queries, self.recipe.mining_top_k, folder, [identity, passages])

    def scores(self, pool: NegativeCandidates, chosen: np.ndarray) -> Iterator[list[float]]:
        """Yield per query the teacher's scores of its positives and of its negatives, divided by the temperature.

        The negatives of a query are at the positions in its row of `chosen`. FlagEmbedding turns the scores of a query
        into probabilities with a softmax. Scores are cosines (single-vector), mean cosines (late interaction) or logits
        (cross-encoder).
        """
        places = [np.concatenate([positives, negatives])
                  for positives, negatives in zip(pool.positives, chosen, strict=True)]
        for scores in self._scores(list(pool.train.queries.values()), pool.texts(), places):
            scores = np.asarray(scores, dtype=np.float64) / self.recipe.teacher_temperature
            yield scores.round(6).tolist()

    def _scores(self, queries, passages, places):
        if self.stage:
            self.stage.build(passages)
            scores = self.stage.scores(queries, places)
        else:
            encoder = make_encoder(self.settings, self.teacher)
            vectors, passages = encoder.encode_queries(queries), encode_corpus(encoder, passages)
            scores = (passages[positions] @ query for query, positions in zip(vectors, places))
        return tqdm(scores, "teacher scores", len(queries), unit="query")


def _sources(chosen, mined, found):
    """Sources of the negatives: source (`bm25`, `model`, `bm25 and model`, `random`) -> bool array like `chosen`."""
    is_mined = np.arange(chosen.shape[1]) < mined[:, None]
    by = {source: np.array([np.isin(row, hits) for row, hits in zip(chosen, candidates)]) & is_mined
          for source, candidates in found.items()}
    shares = {"random": ~is_mined}
    if len(by) == 2:
        shares["bm25 and model"] = by["bm25"] & by["model"]
        by = {source: where & ~shares["bm25 and model"] for source, where in by.items()}
    return by | shares


def mine(settings: Settings, label: str, collection: Collection | None = None) -> Path:
    """Write the training file of a recipe, unless it is current, and return its path.

    Hard negatives are mined and teacher scores computed if the recipe has them. `collection` is the data, if it has
    been read already. Raises UserError when a model of the recipe is missing, the train split is too small, or the
    leakage check fails.
    """
    recipe = find_recipe(settings, label)
    miner = Miner(settings, recipe) if recipe.negatives == "mined" or recipe.teacher else None
    sources = make_training_file(settings, recipe, collection or read_data(settings), miner)
    path = training_path(settings, recipe)
    shares = ", ".join(f"{share:.1%} {name}" for name, share in sources.items())
    print(f"{display_value(path)}: negatives {shares}", flush=True)
    return path


def main() -> None:
    """The command `mine`."""
    label = parse_label("mine", "Write the training file of a recipe; hard negatives are mined first if needed.",
                        "label of a recipe in RECIPE_FILE")
    mine(Settings.load(), label)
