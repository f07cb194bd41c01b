"""Training files with mined hard negatives and a teacher's scores, of the recipes `hard`, `hard_kd` and their second rounds.

In DATA_DIR, for a recipe LABEL:

    training_LABEL.json     train queries with their positives, HARD_NEGATIVES negatives each and, for a teacher, the scores of all
    mining_LABEL.json       what it was made with, and where the negatives came from
"""

import json

import numpy as np

from embedding_finetune.embedder import Embedder
from embedding_finetune.experiment import model_path
from embedding_finetune.files import ExperimentError, sha256, write_json, write_jsonl
from embedding_finetune.hub import cannot_load, check_hub, model_content
from embedding_finetune.index import bm25_search
from embedding_finetune.negatives import Filter, choose, interleave, screen, search
from embedding_finetune.training_files import (audit, mining_settings, of_part, passage_pool, read_pairs, recipe_of, training_path,
                                               training_rows, with_teacher)

RERANKED = 256  # training rows whose texts the reranker scores together


def mine(experiment, label):
    """Write the training file of a recipe's label, unless today's settings and models have made the one that is there.

    Candidates come from BM25, from the model HARD_MODEL, or from both; for a second round, `hard_round2`, that model is `hard`. They are
    training passages only; the filter HARD_FILTER judges them by the model's scores. Returns the share of each source.
    Raises ExperimentError when there is no such model, or the training part is too small.
    """
    recipe, path = recipe_of(label), training_path(experiment, label)
    record_path = path.with_name(f"mining_{recipe}.json")
    miner = _miner(experiment, recipe)
    made_with = {"settings": mining_settings(experiment, label), "pairs": sha256(experiment.data_dir / "pairs.jsonl"), "model": model_content(miner.name)}
    if path.exists() and record_path.exists():
        record = json.loads(record_path.read_text(encoding="utf-8"))
        if record["made_with"] == made_with and record["sha256"] == sha256(path):
            return record["sources"]
    pairs, parts = read_pairs(experiment)
    train = of_part(pairs, parts, "train")
    texts, positives = passage_pool(train)
    print(f"mining for {recipe}: {len(train)} training queries, {len(texts)} training passages, model {miner.title}", flush=True)
    query_vectors, passage_vectors = _encode(experiment, miner, train, texts)
    found = {}
    if experiment.hard_source in ("bm25", "both"):
        found["bm25"] = bm25_search([pair["query"] for pair in train], texts, experiment.hard_depth)[1]
    if experiment.hard_source in ("model", "both"):
        found["model"] = search(query_vectors, passage_vectors, experiment.hard_depth)
    candidates = interleave(*found.values()) if len(found) == 2 else next(iter(found.values()))
    candidates = screen(candidates, positives, query_vectors, passage_vectors, Filter.parse(experiment.hard_filter))
    chosen, mined = choose(candidates, positives, texts, experiment.hard_negatives, seed=[experiment.seed, experiment.hard_negatives])
    sources = _sources(chosen, mined, found)
    rows = training_rows(experiment, train, texts, chosen)
    if with_teacher(label):
        rows = _with_scores(experiment, rows, train, texts, [np.concatenate(places) for places in zip(positives, chosen)])
    write_jsonl(path, rows)
    audit(experiment, [label])
    write_json(record_path, {"made_with": made_with, "sources": sources, "sha256": sha256(path)})
    print(f"{path}: " + ", ".join(f"{share:.1%} {source}" for source, share in sources.items()), flush=True)
    return sources


def _miner(experiment, recipe):
    """The model that searches and filters."""
    first_round = recipe.removesuffix("_round2")
    if first_round == recipe:
        return experiment.model(experiment.hard_model)
    if not (experiment.output_dir / first_round / "config.json").exists():
        raise ExperimentError(f"{recipe} mines with the model {first_round}, which is not in {experiment.output_dir}: "
                              f"run `bash finetune_hard.sh {first_round}` first")
    return experiment.model(first_round)


def _encode(experiment, use, train, texts):
    """Vectors of the training queries and of the pool."""
    embedder = Embedder(use, experiment.encode_batch_size, cache=experiment.output_dir / "cache")
    return embedder.encode_queries(pair["query"] for pair in train), embedder.encode_passages(texts)


def _sources(chosen, mined, found):
    """Share of the negatives by where they came from: `bm25`, `model`, `bm25 and model`, `random`."""
    is_mined = np.arange(chosen.shape[1]) < mined[:, None]
    by = {source: np.array([np.isin(row, own) for row, own in zip(chosen, candidates)]) & is_mined for source, candidates in found.items()}
    shares = {"random": ~is_mined}
    if len(by) == 2:
        shares["bm25 and model"] = by["bm25"] & by["model"]
        by = {source: where & ~shares["bm25 and model"] for source, where in by.items()}
    return {source: float(where.mean()) for source, where in (by | shares).items()}


def _with_scores(experiment, rows, train, texts, places):
    """The rows with `pos_scores` and `neg_scores`: TEACHER's scores of the passages at `places`, over TEACHER_TEMPERATURE.

    FlagEmbedding turns the scores of a query into probabilities by a softmax; the temperature says how sharp. TEACHER is a label of a model, whose cosine
    is the score, or else a cross-encoder (a FlagEmbedding reranker), which gives a logit.
    """
    score = _cosines(experiment, train, texts) if experiment.is_label(experiment.teacher) else _logits(experiment.teacher, train, texts)
    for start in range(0, len(train), RERANKED):
        block = range(start, min(start + RERANKED, len(train)))
        for scores in score(block, [places[query] for query in block]):
            row = next(rows)
            scaled = (np.asarray(scores, dtype=np.float64) / experiment.teacher_temperature).round(6).tolist()
            yield {**row, "pos_scores": scaled[:len(row["pos"])], "neg_scores": scaled[len(row["pos"]):]}


def _cosines(experiment, train, texts):
    query_vectors, passage_vectors = _encode(experiment, experiment.model(experiment.teacher), train, texts)
    return lambda block, places: [passage_vectors[own] @ query_vectors[query] for query, own in zip(block, places)]


def _logits(name, train, texts):
    import torch
    from FlagEmbedding.inference.reranker.encoder_only.base import BaseReranker
    name = model_path(name)
    check_hub(name)
    try:
        reranker = BaseReranker(name, use_fp16=torch.cuda.is_available(), devices="cuda:0" if torch.cuda.is_available() else "cpu")
    except (OSError, ValueError) as error:
        raise cannot_load(name, error) from None
    if reranker.model.config.num_labels != 1:
        raise ExperimentError(f"TEACHER={name} is no reranker that gives one score a pair; name one, or the label of a model (reference, raw)")

    def score(block, places):
        pairs = [(train[query]["query"], texts[place]) for query, own in zip(block, places) for place in own]
        scores = reranker.compute_score(pairs)
        return np.split(np.asarray(scores), np.cumsum([len(own) for own in places])[:-1])

    return score
