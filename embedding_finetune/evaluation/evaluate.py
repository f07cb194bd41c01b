"""The evaluation of a system on dev and test queries: its runs, its result, and what is tuned on dev queries.

A retriever ranks the whole corpus. Fusions and rerankers combine the saved runs of BM25 and of the retriever, so these
two are evaluated first.
"""

from collections.abc import Iterator
from copy import copy
from dataclasses import replace
from typing import Any

from embedding_finetune.data.collection import Collection, read_data
from embedding_finetune.data.out_of_domain import out_of_domain_sets
from embedding_finetune.evaluation.metrics import by_corpus_size, mean, per_query
from embedding_finetune.evaluation.results import (
    inputs_of,
    part_of,
    read_measured_run,
    read_result,
    result_stale_reason,
    save_result,
)
from embedding_finetune.evaluation.tables import as_table
from embedding_finetune.evaluation.tuning import choose_weight, rerank_run, tune_reranking
from embedding_finetune.files import UserError, parse_label
from embedding_finetune.hub import model_size
from embedding_finetune.labels import SYSTEM_LABELS
from embedding_finetune.models.encoder import make_encoder
from embedding_finetune.models.encoder_config import EncoderConfig, display_name, load_encoder_config, usage
from embedding_finetune.recipes import all_recipes
from embedding_finetune.retrieval.base import Retriever, Run, make_retriever
from embedding_finetune.retrieval.dense import Dense
from embedding_finetune.retrieval.fusion import weighted_sum_fusion
from embedding_finetune.retrieval.known_systems import find_system, make_reranker, needs_token_embeddings
from embedding_finetune.retrieval.rerank import candidate_union
from embedding_finetune.retrieval.system import CROSS_ENCODER, System
from embedding_finetune.settings import Settings
from embedding_finetune.training.provenance import check_trained

PARTS = "test", "dev"


def evaluate(settings: Settings, label: str) -> dict[str, dict]:
    """Evaluate the system of a label and, unless it is lexical, the same system fused with BM25.

    Returns label -> result. `known` in the functions below are identities of models (see results.inputs_of), so that
    each is hashed once. Raises UserError when a model or one of the runs that are combined is missing or outdated.
    """
    system, collection = find_system(settings, label), read_data(settings)
    system, known = replace(system, fused=False), {}
    if system.reranker:
        return evaluate_reranked(settings, collection, system, known)
    found = {system.label: evaluate_retriever(settings, collection, system, known)}
    if system.has_model:
        fused = replace(system, fused=True)
        found[fused.label] = evaluate_fused(settings, collection, fused, known)
    return found


def evaluate_retriever(settings: Settings, collection: Collection, system: System,
                       known: dict[str, Any] | None = None) -> dict:
    """Rank the whole corpus for all dev and test queries with the retriever alone; returns the result."""
    known = {} if known is None else known
    test = collection.split("test")
    if system.has_model:
        check_trained(settings, system.encoder)
        encoder = make_encoder(settings, load_encoder_config(settings, system.encoder))
        if needs_token_embeddings(settings, system.encoder):
            encoder.encode_passage_tokens(test.corpus.values())
        known[system.encoder] = {"config": encoder.config.identity, "revision": encoder.revision}
        retriever, about = Dense(encoder), model_metadata(settings, encoder.config)
    else:
        retriever = make_retriever(system.retriever, settings)
        about = {"model": retriever.description}
    retriever.index(test.corpus)
    runs = {part: retriever.search(part_of(settings, collection, system, part).queries, copies=collection.copies)
            for part in PARTS}
    return save_result(settings, collection, system, runs, inputs=inputs_of(settings, system, known), **about,
                       parameters=retriever.config, eval_sets=evaluate_out_of_domain(settings, retriever),
                       by_corpus_size=by_corpus_size(test, retriever))


def evaluate_fused(settings: Settings, collection: Collection, system: System, known: dict[str, Any]) -> dict:
    """Add the scores of BM25 to those of the retriever, with the best weight on dev queries; returns the result."""
    bm25, dense = read_runs(settings, collection, system, known)
    weight = choose_weight(part_of(settings, collection, system, "dev"), bm25["dev"], dense["dev"])
    runs = {part: weighted_sum_fusion(bm25[part], dense[part], weight) for part in PARTS}
    return save_result(settings, collection, system, runs, inputs=inputs_of(settings, system, known),
                       model=f"BM25 + {read_result(settings, system.encoder)['model']}",
                       parameters={"bm25_weight": weight})


def evaluate_reranked(settings: Settings, collection: Collection, system: System,
                      known: dict[str, Any]) -> dict[str, dict]:
    """Rerank the first hits of BM25 and of the retriever, with the best depth and weights on dev queries.

    Returns label -> result of the reranker alone, and of its scores added to those of the first stage.
    """
    check_trained(settings, system.reranker_model)
    bm25, dense = read_runs(settings, collection, system, known)
    reranker = make_reranker(settings, system.reranker, system.reranker_model).index(collection.split("test").corpus)
    if system.reranker != CROSS_ENCODER:
        known[system.reranker_model] = reranker.identity
    test, dev = (part_of(settings, collection, system, part) for part in PARTS)
    candidates = candidate_union(dense["dev"], bm25["dev"], depth=max(reranker.depths))
    scores = {"dev": reranker.score(dev.queries, candidates)}
    tuned = tune_reranking(dev, bm25["dev"], dense["dev"], scores["dev"], reranker.depths)
    candidates = candidate_union(dense["test"], bm25["test"], depth=tuned["depth"])
    scores["test"] = reranker.score(test.queries, candidates)
    cost = {"ms_per_query": round(reranker.ms_per_query, 3), "bytes_per_passage": round(reranker.bytes_per_passage)}
    first = read_result(settings, system.encoder)["model"]
    inputs = inputs_of(settings, system, known)

    def save(fused: bool, parameters: dict, model: str) -> tuple[str, dict]:
        one = replace(system, fused=fused)
        runs = {part: rerank_run(bm25[part], dense[part], scores[part], **parameters) for part in PARTS}
        return one.label, save_result(settings, collection, one, runs, inputs=inputs, model=model,
                                      parameters=parameters, **cost)

    alone = {"bm25_weight": 0.0, "rerank_weight": None, "depth": tuned["depth"]}
    return dict([save(False, alone, f"{reranker.description}, after BM25 and {first}"),
                 save(True, tuned, f"BM25 + {first} + {reranker.description}")])


def read_runs(settings: Settings, collection: Collection, system: System,
              known: dict[str, Any] | None = None) -> Iterator[dict[str, Run]]:
    """Yield the saved runs of BM25 and of the system's retriever: two dicts, "test" and "dev" -> run.

    They have the queries that select the system, see results.part_of.
    Raises UserError when one of them is missing or outdated.
    """
    for label in ("bm25", system.encoder):
        if reason := result_stale_reason(settings, read_result(settings, label), known):
            raise UserError(f"{label}: {reason}; evaluate it again")
    queries = {part: part_of(settings, collection, system, part).queries for part in PARTS}
    for label in ("bm25", system.encoder):
        runs = {part: read_measured_run(settings, collection, label, part) for part in PARTS}
        yield {part: {query: run[query] for query in queries[part]} for part, run in runs.items()}


def model_metadata(settings: Settings, config: EncoderConfig) -> dict[str, Any]:
    """Fields of a result that describe a model: name and use, training data, size in bytes, and its recipe (if any).

    `unpublished` says how its use differs from the published one.
    """
    recipe = all_recipes(settings).get(config.label)
    metadata = {"model": display_name(config), "unpublished": config.unpublished, "note": config.training_data_note,
                "size": model_size(config.name)}
    if recipe:
        metadata |= {"model": f"{config.label} ({usage(config)})", "recipe": recipe.repeats or recipe.label,
                     "description": recipe.description, "train_fraction": recipe.train_fraction}
    return metadata


def evaluate_out_of_domain(settings: Settings, retriever: Retriever) -> dict[str, dict]:
    """Metrics of a retriever on each test set of OUT_OF_DOMAIN_SETS: name -> metrics.

    `each` holds the metrics per query (query id -> metrics) for paired comparisons. The retriever keeps its own corpus.
    """
    found = {}
    for name, collection in out_of_domain_sets(settings).items():
        test = collection.split("test")
        each = per_query(test.qrels, copy(retriever).index(test.corpus).search(test.queries, copies=test.copies))
        found[name] = mean(each) | {"each": each.round(6).to_dict("index")}
    return found


def main() -> None:
    """Evaluate a system and print its metrics (`embedding-finetune evaluate LABEL`)."""
    label = parse_label("evaluate", "Evaluate a system on dev and test queries, alone and fused with BM25.",
                        SYSTEM_LABELS)
    print(as_table(evaluate(Settings.load(), label).values()).round(3).to_string())
