"""Saved runs and results by label, and the planned comparison of all current results.

Files in OUTPUT_DIR:

    runs/LABEL.trec, runs/dev/LABEL.trec    rankings of the test queries and of the dev queries
    results/LABEL.json                      metrics on both, configuration and revision of the model
"""

import time
from copy import copy
from dataclasses import asdict

import pandas as pd

from embedding_finetune.artifacts.manifest import read_checksummed, write_checksummed
from embedding_finetune.data.collection import data_identity
from embedding_finetune.data.normalize import PSEUDO_QUERY_PREFIX
from embedding_finetune.data.out_of_domain import out_of_domain_sets
from embedding_finetune.evaluation.metrics import MEASURES, mean, measure, per_query
from embedding_finetune.evaluation.significance import add_significance
from embedding_finetune.files import UserError, sha256
from embedding_finetune.hub import model_content, model_size
from embedding_finetune.models.encoder_config import load_encoder_config, pretrained
from embedding_finetune.recipes import all_recipes
from embedding_finetune.retrieval.base import DEPTH
from embedding_finetune.retrieval.trec import pad_run, read_run, write_run
from embedding_finetune.settings import SELECTION_METRIC
from embedding_finetune.training.model_card import write_metrics

RESULT = {"label": str, "metrics": dict, "dev": dict, "used": dict, "settings": dict}  # keys of every result
PSEUDO_QUERY_CAVEAT = ("The test queries are pseudo-queries, made from the passages that they should retrieve: these "
                       "numbers say nothing about human-written queries. Write some and set DOCUMENT_QUERIES.")


def save_result(settings, collection, label, runs, *, model, used=None, **more):
    """Write the runs, results/LABEL.json, and the metrics in the card of a fine-tuned model; returns the result.

    `runs` has a run for "test" and one for "dev". `model` is the display name of the system, `used` (dict) its
    configuration: pooling, prompts, lengths. `more` is added to the result unchanged, such as `model_metadata`,
    `by_corpus_size` (see metrics) or `eval_sets`.
    """
    runs = {part: pad_run(run, collection.corpus, DEPTH) for part, run in runs.items()}
    metrics = {part: measure(collection.split(part), run) for part, run in runs.items()}
    pseudo = sum(query.startswith(PSEUDO_QUERY_PREFIX) for query in runs["test"])
    if (settings.paths.model(label) / "README.md").exists():
        write_metrics(settings.paths.model(label), metrics["test"], PSEUDO_QUERY_CAVEAT if pseudo else "")
    paths = {part: settings.paths.run(label, part) for part in runs}
    for part, run in runs.items():
        write_run(paths[part], run, label)
    result = {"label": label, "model": model, "dataset": settings.dataset, "queries": len(runs["test"]),
              "pseudo_queries": pseudo, "corpus": len(collection.corpus), "metrics": metrics["test"],
              "dev": metrics["dev"], "used": used or {}, **more, "data": data_identity(settings),
              "runs": {part: sha256(path) for part, path in paths.items()}, "settings": settings.as_dict(),
              "finished": time.strftime("%Y-%m-%d %H:%M:%S")}
    write_checksummed(settings.paths.result(label), result)
    return result


def model_metadata(settings, encoder):
    """Fields of a result that describe a model: name, configuration, training data, revision, size, recipe (if any)."""
    config, recipe = encoder.config, all_recipes(settings).get(encoder.config.label)
    metadata = {"model": config.title, "used": asdict(config), "note": config.training_data_note,
                "content": encoder.revision, "size": model_size(config.name)}
    if recipe:
        metadata |= {"recipe": recipe.repeats or recipe.label, "about": recipe.description,
                     "share": recipe.train_fraction}
    return metadata


def evaluate_out_of_domain(settings, retriever):
    """Metrics of a retriever on each test set of OUT_OF_DOMAIN_SETS: name -> metrics.

    `each` holds the metrics per query (query id -> metrics) for paired comparisons. The retriever keeps its own corpus.
    """
    found = {}
    for name, collection in out_of_domain_sets(settings).items():
        test = collection.split("test")
        each = per_query(test.qrels, copy(retriever).index(test.corpus).search(test.queries))
        found[name] = mean(each) | {"each": each.round(6).to_dict("index")}
    return found


def read_measured_run(settings, collection, label, part="test"):
    """Read the saved run of a label. Raises UserError when it is missing or does not match the data or the result."""
    path = settings.paths.run(label, part)
    run, result = read_run(path), read_checksummed(settings.paths.result(label), RESULT) or {}
    if set(run) != set(collection.split(part).queries):
        raise UserError(f"{path} ranks other queries than those of {settings.paths.data}: evaluate {label} again, or "
                        f"delete its result in {settings.paths.results}")
    if result.get("runs", {}).get(part) not in (None, sha256(path)):
        raise UserError(f"{path} is not the run that was measured: evaluate {label} again")
    return run


def load_results(settings):
    """Load the current results in display order; returns them and a line per result that is left out.

    A result is left out when it was measured on other data, with other metrics, with another model than the label has
    now, or with another configuration of the same model.
    """
    results, left_out, contents = [], [], {}
    for path in sorted(settings.paths.results.glob("*.json")):
        if path.stem == "comparison":
            continue
        result = read_checksummed(path, RESULT)
        if result is None or result["label"] != path.stem:
            raise UserError(f"{path} is not a result, or is damaged: evaluate {path.stem} again, or delete the file")
        reason = _stale_reason(settings, result, contents)
        if reason:
            left_out.append(f"{result['label']} is left out: {reason}; evaluate it again")
        else:
            results.append(result)
    order = ["bm25", "raw", *all_recipes(settings), "reference", *pretrained(settings)]
    order = {label: place for place, label in reversed(list(enumerate(order)))}
    return sorted(results, key=lambda result: (order.get(result["label"], len(order)), result["label"])), left_out


def _stale_reason(settings, result, contents):
    """Why a result is no longer current, or None; `contents` caches the revisions of models by label."""
    label = result.get("hybrid_of", result["label"])
    if "second_weight" in result:
        return "it was measured by an earlier version"
    if result.get("data") != data_identity(settings):
        return "it was measured on other data"
    if result["metrics"].keys() != MEASURES.keys():
        return "it was measured with other metrics"
    language = result["settings"].get("BM25_LANGUAGE", settings.bm25_language)
    if language != settings.bm25_language and (result.get("content") is None or "hybrid_of" in result):
        return f"it was measured with BM25_LANGUAGE={language}"
    models = [(label, result)] + [(second["model"], second) for second in [result.get("second")] if second]
    return next(filter(None, (_changed(settings, *model, contents) for model in models)), None)


def _changed(settings, label, measured, contents):
    """How a model has changed since it was measured, or None; `measured` holds its `content` and `used`."""
    if measured.get("content") is None:
        return None
    try:
        config = load_encoder_config(settings, label) if measured["used"] else None
        if label not in contents:
            contents[label] = model_content(config.name if config else str(settings.paths.model(label)))
    except UserError as error:
        return f"its model cannot be read ({error})"
    if contents[label] != measured["content"]:
        return "its model has changed since"
    changed = [name for name, value in (config.identity if config else {}).items()
               if measured["used"].get(name, value) != value]
    return f"it was measured with another {changed[0]}" if changed else None


def best_fine_tuned(results):
    """The fine-tuned model to compare with the baselines: the best on dev queries, or None if there is none."""
    return best_on_dev(filter(is_fine_tuned, results))


def is_fine_tuned(result):
    """Whether a result belongs to a recipe itself.

    False for repetitions with other seeds, fusions with BM25, and models trained on a fraction of the queries for the
    learning curve.
    """
    return result.get("recipe") == result["label"] and result.get("share", 1) == 1


def best_on_dev(results):
    """The result with the best MRR@10 on dev queries, ties to the first; None if there are no results."""
    return max(results, key=lambda result: result["dev"][SELECTION_METRIC], default=None)


def finalists(results):
    """The best system without training and the best with it on dev queries, either may be None.

    A system is a model, alone or fused with BM25, or reranked; it needs no training if none of its models does. A
    compiled form (ONNX or OpenVINO) counts as a system without training only if it was made from one; forms of
    fine-tuned models are not finalists.
    """
    tuned = {result["label"] for result in filter(is_fine_tuned, results)}
    ready = {result["label"] for result in results if not result.keys() & {"recipe", "hybrid_of", "compiled_of"}}
    ready |= {result["label"] for result in results if result.get("compiled_of") in ready}
    without, trained = [], []
    for result in results:
        retriever = result.get("hybrid_of", result["label"])
        reranker = result.get("second", {}).get("model", retriever)
        if {retriever, reranker} <= ready:
            without.append(result)
        elif retriever in ready | tuned:
            trained.append(result)
    return best_on_dev(without), best_on_dev(trained)


def planned_pairs(results):
    """The planned comparisons as pairs of labels; only these are corrected for multiple testing.

    They are: the best fine-tuned model on dev queries against raw, bm25 and reference; every other recipe against
    neg10; the best fine-tuned system against the best without training (see finalists). All other pairs are
    exploratory.
    """
    measured, best = {result["label"] for result in results}, best_fine_tuned(results)
    baselines = [(best["label"], label) for label in ("raw", "bm25", "reference") if label in measured] if best else []
    others = [(result["label"], "neg10") for result in filter(is_fine_tuned, results)
              if result["label"] != "neg10" and "neg10" in measured]
    last = [(tuned["label"], ready["label"]) for ready, tuned in [finalists(results)] if ready and tuned]
    return list(dict.fromkeys(baselines + others + last))


def compare(settings, collection):
    """Compare all current results; returns the rows of comparison.json and a line per result that is left out.

    A row is a result with `ci95` and `against` (see significance.add_significance), computed from the run files.
    `chosen` marks the best fine-tuned model on dev queries, `finalist` the best systems with and without training.
    """
    results, left_out = load_results(settings)
    if not results:
        raise UserError(f"{settings.paths.results} has no result for the current data: run an evaluation "
                        "notebook")
    test = collection.split("test")
    frames = {}
    for result in results:
        run = read_measured_run(settings, collection, result["label"])
        frame = frames[result["label"]] = per_query(test.qrels, run)
        if any(abs(mean(frame)[name] - value) > 1e-6 for name, value in result["metrics"].items()):
            raise UserError(f"the run and the result of {result['label']} do not match: evaluate it again")
    best, last = best_fine_tuned(results), [result["label"] for result in finalists(results) if result]
    rows = add_significance(results, frames, planned_pairs(results), seed=settings.seed)
    return [row | {"chosen": best is not None and row["label"] == best["label"], "finalist": row["label"] in last,
                   "eval_sets": compare_out_of_domain(row, rows, settings.seed)} for row in rows], left_out


def compare_out_of_domain(row, rows, seed):
    """`eval_sets` of a row, with paired differences to raw and reference instead of the values per query.

    `against` is other label -> metric -> difference and ci95, for labels evaluated on the same queries.
    """
    found, baselines = {}, [other for other in rows if other["label"] in ("raw", "reference")]
    for name, measured in row.get("eval_sets", {}).items():
        each = {other["label"]: other.get("eval_sets", {}).get(name, {}).get("each", {}) for other in (row, *baselines)}
        frames = {label: pd.DataFrame.from_dict(values, orient="index") for label, values in each.items()
                  if values and values.keys() == each[row["label"]].keys()}
        lines = [{"label": label} for label in frames]
        first, *_ = add_significance(lines, frames, planned=[], seed=seed) if lines else [{}]
        found[name] = {key: value for key, value in (measured | first).items() if key not in ("each", "label")}
    return found
