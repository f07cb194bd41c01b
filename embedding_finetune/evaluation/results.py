"""Saved runs and results by system, and the planned comparison of all current results.

Files in OUTPUT_DIR:

    runs/LABEL.trec, runs/dev/LABEL.trec    rankings of the test and of the dev queries (see selection_queries)
    results/LABEL.json                      metrics on both, the system, and what they were measured with
"""

import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import Any

import pandas as pd

from embedding_finetune.artifacts.manifest import read_checksummed, write_checksummed
from embedding_finetune.artifacts.provenance import stale_reason
from embedding_finetune.data.collection import Collection, data_identity
from embedding_finetune.data.normalize import is_pseudo_query
from embedding_finetune.evaluation.metrics import MEASURES, by_training, mean, measure, per_query
from embedding_finetune.evaluation.names import baseline, with_names
from embedding_finetune.evaluation.selection import select, selection_queries
from embedding_finetune.evaluation.significance import add_significance
from embedding_finetune.files import UserError, sha256
from embedding_finetune.hints import missing_hint
from embedding_finetune.hub import model_content
from embedding_finetune.models.encoder_config import load_encoder_config, model_identity, pretrained
from embedding_finetune.recipes import all_recipes
from embedding_finetune.retrieval.base import DEPTH, Run
from embedding_finetune.retrieval.system import CROSS_ENCODER, System
from embedding_finetune.retrieval.trec import pad_run, read_run, write_run
from embedding_finetune.settings import SELECTION_METRIC, Settings, display_value
from embedding_finetune.training.model_card import write_metrics

RESULT = {"label": str, "model": str, "system": dict, "inputs": dict, "metrics": dict, "dev": dict,
          "runs": dict}  # keys of every result
RERANKER_SETTINGS = {"late": ("TOKEN_DTYPE", "TOKEN_POOL_FACTOR"), "rerank": ("RERANKER_PRECISION",)}  # of their scores
PSEUDO_QUERY_CAVEAT = ("The test queries are pseudo-queries, made from the passages that they should retrieve: these "
                       "numbers say nothing about human-written queries. Write some and set DOCUMENT_QUERIES.")
LEAKING_CAVEAT = ("{} training pairs share their query or passage with the dev or test split and were kept "
                  "(LEAKING_ROWS=keep): the results of fine-tuned models are too high.")


def part_of(settings: Settings, collection: Collection, system: System, part: str) -> Collection:
    """The queries of a run of a system, "test" or "dev", and the whole corpus; for "dev" see selection_queries."""
    if part == "test":
        return collection.split("test")
    models = {system.retriever, system.reranker_model}
    return selection_queries(collection, trained=not models.isdisjoint(all_recipes(settings)))


def caveats(row: dict) -> str:
    """Sentences on what limits the meaning of a result (or of a row of the comparison), "" if nothing does."""
    pseudo = PSEUDO_QUERY_CAVEAT if row.get("pseudo_queries") else ""
    return " ".join(filter(None, [pseudo, row.get("leaking_pairs") and LEAKING_CAVEAT.format(row["leaking_pairs"])]))


def save_result(settings: Settings, collection: Collection, system: System, runs: dict[str, Run], *, model: str,
                inputs: dict, **more: Any) -> dict:
    """Write the runs, results/LABEL.json, and the metrics in the card of a fine-tuned model; returns the result.

    `runs` has a run for "test" and one for "dev". `model` is the system's name in words, `inputs` what it was measured
    with (see inputs_of). `more` is added to the result unchanged, such as `parameters` or `by_corpus_size`.
    """
    label = system.label
    runs = {part: pad_run(run, collection.corpus, DEPTH, collection.copies) for part, run in runs.items()}
    metrics = {part: measure(part_of(settings, collection, system, part), run) for part, run in runs.items()}
    pseudo = sum(map(is_pseudo_query, runs["test"]))
    paths = {part: settings.paths.run(label, part) for part in runs}
    for part, run in runs.items():
        write_run(paths[part], run, label)
    result = {"label": label, "model": model, "system": asdict(system), "dataset": settings.dataset,
              "queries": len(runs["test"]), "pseudo_queries": pseudo, "corpus": len(collection.corpus),
              "copies_left_out": sum(len(collection.copies.get(query, ())) for query in runs["test"]),
              "leaking_pairs": collection.leaking, "training_queries": len(collection.split("train").queries),
              "metrics": metrics["test"], "dev": metrics["dev"],
              "by_training": by_training(collection, runs["test"]) if collection.leaking else {},
              "parameters": {}, **more, "inputs": inputs, "runs": {part: sha256(path) for part, path in paths.items()},
              "settings": settings.as_dict(), "finished": time.strftime("%Y-%m-%d %H:%M:%S")}
    if (settings.paths.model(label) / "README.md").exists():
        write_metrics(settings.paths.model(label), metrics["test"], caveats(result))
    write_checksummed(settings.paths.result(label), result)
    return result


def inputs_of(settings: Settings, system: System, known: dict[str, Any] | None = None) -> dict:
    """What a result of the system depends on, see artifacts.provenance; raises UserError when a model is not available.

    `known` are identities of models by label, so that the content of each model is hashed once; new ones are added.
    """
    known, inputs = {} if known is None else known, {"data": data_identity(settings), "metrics": list(MEASURES)}
    if system.fused or system.reranker or not system.has_model:
        inputs["BM25_LANGUAGE"] = settings.bm25_language
    values = settings.as_dict()
    inputs |= {name: values[name] for name in RERANKER_SETTINGS.get(system.reranker, ())}
    models = {system.encoder: False} if system.has_model else {}
    models |= {system.reranker_model: system.reranker == CROSS_ENCODER} if system.reranker else {}
    for label in models.keys() - known.keys():
        known[label] = _identity(settings, label, models[label])
    return inputs | {"models": {label: known[label] for label in models}}


def _identity(settings: Settings, label: str, is_cross_encoder: bool) -> dict:
    if is_cross_encoder:
        return {"revision": model_content(str(settings.paths.model(label)))}
    return model_identity(load_encoder_config(settings, label))


def system_of(result: dict) -> System:
    """The System of a result or of a row of the comparison."""
    return System(**result["system"])


def read_result(settings: Settings, label: str) -> dict:
    """The result of a system; raises UserError when it is missing, damaged, or was written by an earlier version."""
    path = settings.paths.result(label)
    result = read_checksummed(path, RESULT)
    if result is None:
        kept = read_checksummed(path, {"label": str})
        found = "was written by an earlier version" if kept else "is damaged" if path.exists() else "does not exist"
        raise UserError(f"the result of {label}, {display_value(path)}, {found}: evaluate {label} again")
    return result


def read_measured_run(settings: Settings, collection: Collection, label: str, part: str = "test") -> Run:
    """Read the saved run of a label. Raises UserError when it is missing or does not match the data or the result."""
    path, result = settings.paths.run(label, part), read_result(settings, label)
    run = read_run(path)
    if set(run) != set(part_of(settings, collection, system_of(result), part).queries):
        raise UserError(f"{path} ranks other queries than those of {settings.paths.data}: evaluate {label} again, or "
                        f"delete its result in {settings.paths.results}")
    if result["runs"].get(part) != sha256(path):
        raise UserError(f"{path} is not the run that was measured: evaluate {label} again")
    return run


def load_results(settings: Settings) -> tuple[list[dict], dict[str, str]]:
    """Load the current results in display order; returns them and label -> reason of those that are left out.

    A result is left out when the data, the metrics or a model have changed since it was measured.
    """
    results, left_out, known = [], {}, {}
    for path in sorted(settings.paths.results.glob("*.json")):
        if path.stem in ("comparison", "recommendation"):
            continue
        result = read_checksummed(path, {"label": str})
        if result is None or result["label"] != path.stem:
            raise UserError(f"{path} is not a result, or is damaged: evaluate {path.stem} again, or delete the file")
        if reason := result_stale_reason(settings, result, known):
            left_out[result["label"]] = reason
        else:
            results.append(result)
    order = list(dict.fromkeys(["bm25", "raw", *all_recipes(settings), "reference", *pretrained(settings)]))
    place = {label: number for number, label in enumerate(order)}
    return sorted(results, key=lambda result: (place.get(result["label"], len(place)), result["label"])), left_out


def left_out_line(left_out: dict[str, str]) -> str:
    """One line on the results that are left out (label -> reason), "" if there are none."""
    labels: dict[str, list[str]] = {}
    for label, reason in left_out.items():
        labels.setdefault(reason, []).append(label)
    parts = [f"{', '.join(found)} {'are' if len(found) > 1 else 'is'} left out: {reason}"
             for reason, found in labels.items()]
    return f"{'; '.join(parts)}; evaluate {'them' if len(left_out) > 1 else 'it'} again" if parts else ""


def result_stale_reason(settings: Settings, result: dict, known: dict[str, Any] | None = None) -> str | None:
    """Why a result is no longer current, or None; `known` as in inputs_of."""
    if not all(isinstance(result.get(name), kind) for name, kind in RESULT.items()):
        return "it was measured by an earlier version"
    try:
        current = inputs_of(settings, system_of(result), known)
    except UserError as error:
        return f"its model cannot be read ({error})"
    reason = stale_reason(result["inputs"], current)
    return reason and f"it was measured with other inputs ({reason})"


def best_fine_tuned(results: Iterable[dict]) -> dict | None:
    """The fine-tuned model to compare with the baselines: the best on dev queries, or None if there is none."""
    return max(filter(is_fine_tuned, results), key=lambda result: result["dev"][SELECTION_METRIC], default=None)


def is_fine_tuned(result: dict) -> bool:
    """Whether a result belongs to a recipe itself.

    False for repetitions with other seeds, fusions with BM25, and models trained on a fraction of the queries for the
    learning curve.
    """
    return result.get("recipe") == result["label"] and result.get("train_fraction", 1) == 1


def with_finalists(settings: Settings, collection: Collection, results: Sequence[dict]) -> list[dict]:
    """The results with `finalist`: how a system without training and one with it were selected, None for the others."""
    found, dev = {}, len(collection.split("dev").queries)
    for trained, group in enumerate(candidates(results)):
        part, values = selection_queries(collection, bool(trained)), {}
        for label in (result["label"] for result in group):
            run = read_measured_run(settings, collection, label, "dev")
            frame = per_query(part.qrels, {query: run[query] for query in part.queries})
            values[label] = frame[SELECTION_METRIC].to_numpy()
        if values:
            how = asdict(select(values, default_system(group)))
            found[how["label"]] = how | {"on": "dev" if how["queries"] == dev else "dev and training"}
    return [result | {"finalist": found.get(result["label"])} for result in results]


def default_system(group: Sequence[dict]) -> str:
    """The label to use where none can be selected: a model fused with BM25, the off-the-shelf one or neg10 if there."""
    fused = [result["label"] for result in group if (system := system_of(result)).fused and not system.reranker]
    labels = ["hybrid_reference", "hybrid_neg10", *fused, *(result["label"] for result in group)]
    return next(label for label in labels if label in {result["label"] for result in group})


def finalists(rows: Sequence[dict]) -> tuple[dict | None, dict | None]:
    """The selected system without training and the one with it (see with_finalists); either may be None."""
    without, trained = ([row for row in group if row.get("finalist")] for group in candidates(rows))
    return (without or [None])[0], (trained or [None])[0]


def candidates(results: Sequence[dict]) -> tuple[list[dict], list[dict]]:
    """The candidates for finalists: systems without training, and systems with it.

    A system is a model, alone or fused with BM25, or reranked; it needs no training if none of its models does. A
    compiled form (ONNX or OpenVINO) counts as a system without training only if it was made from one; forms of
    fine-tuned models are not finalists.
    """
    tuned = {result["label"] for result in filter(is_fine_tuned, results)}
    systems = {result["label"]: system_of(result) for result in results}
    ready = {label for label, system in systems.items() if label == system.retriever} - {
        result["label"] for result in results if "recipe" in result}
    ready |= {label for label, system in systems.items() if system.is_single and system.retriever in ready}
    without, trained = [], []
    for result in results:
        system = systems[result["label"]]
        if {system.encoder, system.reranker_model or system.encoder} <= ready:
            without.append(result)
        elif system.encoder in ready | tuned:
            trained.append(result)
    return without, trained


def planned_pairs(results: Sequence[dict]) -> list[tuple[str, str]]:
    """The planned comparisons as pairs of labels; only these are corrected for multiple testing.

    They are: the best fine-tuned model on dev queries against raw, its base as published, bm25 and reference; every
    other recipe against neg10; the best fine-tuned system against the best without training (see finalists). All other
    pairs are exploratory.
    """
    measured, best = {result["label"] for result in results}, best_fine_tuned(results)
    base = baseline(results)
    against = ["raw", "bm25", "reference", *([base["label"]] if base else [])]
    baselines = [(best["label"], label) for label in against if label in measured] if best else []
    others = [(result["label"], "neg10") for result in filter(is_fine_tuned, results)
              if result["label"] != "neg10" and "neg10" in measured]
    last = [(tuned["label"], ready["label"]) for ready, tuned in [finalists(results)] if ready and tuned]
    return list(dict.fromkeys(baselines + others + last))


def compare(settings: Settings, collection: Collection) -> tuple[list[dict], list[str]]:
    """Compare all current results; returns the rows of comparison.json and, if results are left out, a line on them.

    A row is a result with `ci95` and `against` (see significance.add_significance), computed from the run files.
    `chosen` marks the best fine-tuned model on dev queries; for `finalist`, see with_finalists.
    """
    results, left_out = load_results(settings)
    if not results:
        raise UserError(f"{settings.paths.results} has no result for the current data: run an evaluation "
                        f"notebook{missing_hint(settings)}")
    results, qrels, frames = with_names(results), collection.split("test").qrels, {}
    for result in results:
        frame = per_query(qrels, read_measured_run(settings, collection, result["label"]))
        frames[result["label"]] = frame
        if any(abs(mean(frame)[name] - value) > 1e-6 for name, value in result["metrics"].items()):
            raise UserError(f"the run and the result of {result['label']} do not match: evaluate it again")
    best, results = best_fine_tuned(results), with_finalists(settings, collection, results)
    rows, line = add_significance(results, frames, planned_pairs(results)), left_out_line(left_out)
    return [row | {"chosen": best is not None and row["label"] == best["label"],
                   "eval_sets": compare_out_of_domain(row, rows)} for row in rows], [line] if line else []


def compare_out_of_domain(row: dict, rows: Sequence[dict]) -> dict:
    """`eval_sets` of a row, with paired differences to raw and reference instead of the values per query.

    `against` is other label -> metric -> difference and ci95, for labels evaluated on the same queries.
    """
    found, baselines = {}, [other for other in rows if other["label"] in ("raw", "reference")]
    for name, measured in row.get("eval_sets", {}).items():
        each = {other["label"]: other.get("eval_sets", {}).get(name, {}).get("each", {}) for other in (row, *baselines)}
        frames = {label: pd.DataFrame.from_dict(values, orient="index") for label, values in each.items()
                  if values and values.keys() == each[row["label"]].keys()}
        lines = [{"label": label} for label in frames]
        first, *_ = add_significance(lines, frames, planned=[]) if lines else [{}]
        found[name] = {key: value for key, value in (measured | first).items() if key not in ("each", "label")}
    return found
