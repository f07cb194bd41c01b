"""What a comparison means, in sentences: the verdict on a pair, the conclusion, and what the best systems cost.

Dev queries select the two finalists. Test queries are used only to report and compare them.
"""

import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pandas as pd

from embedding_finetune.data.collection import Collection
from embedding_finetune.evaluation.metrics import per_query
from embedding_finetune.evaluation.names import baseline, name_of
from embedding_finetune.evaluation.results import candidates, caveats, finalists, read_measured_run, system_of
from embedding_finetune.evaluation.significance import SEED, excludes_zero, outcome
from embedding_finetune.models.encoder import Encoder
from embedding_finetune.models.encoder_config import load_encoder_config
from embedding_finetune.retrieval.base import DEPTH, make_retriever
from embedding_finetune.settings import SELECTION_METRIC, Settings

METRIC = "recall@1"
TIMED_QUERIES, TIMED_PASSAGES = 32, 128
SELECTIONS = 1000  # repetitions of the selection on resampled dev queries


def format_difference(pair: dict, digits: int = 3) -> str:
    """Format a paired difference (an entry of `against`) with its 95 % interval."""
    return "{difference:+.{digits}f} [{ci95[0]:+.{digits}f}, {ci95[1]:+.{digits}f}]".format(**pair, digits=digits)


def required_queries(pair: dict, kind: str = "") -> str:
    """Phrase with the number of queries needed to confirm a difference, in two significant digits; "" where unknown."""
    needed = pair.get("queries_needed")
    return f"about {float(f'{needed:.2g}'):,.0f} {kind}queries would be needed" if needed else ""


def verdict(better: str, pair: dict) -> str:
    """Verdict on a pair of models, of which `better` has the higher mean."""
    if not pair["planned"]:
        return f"exploration: interval {'excludes' if excludes_zero(pair['ci95']) else 'includes'} 0"
    found = outcome(pair)
    text = found.word if found.word == "not distinguishable" else f"{better} is better{found.note}"
    return text if found.significant else f"{text}; {required_queries(pair) or 'difference too small to plan for'}"


def recommended(rows: list[dict], metric: str = METRIC) -> dict | None:
    """The row of the system to use; None if a finalist is missing or their scores mean nothing (see conclusion).

    The fine-tuned finalist (see results.finalists) is recommended only if it is significantly better than the best
    system without training, which is a planned comparison.
    """
    ready, tuned = finalists(rows)
    if not ready or not tuned or any(row.get("pseudo_queries") for row in rows) or not any(
            row["dev"][SELECTION_METRIC] for row in (ready, tuned)):
        return None
    found = outcome(tuned["against"][ready["label"]][metric])
    return tuned if found.significant and found.word == "better" else ready


def conclusion(rows: list[dict], metric: str = METRIC) -> str:
    """Sentences on which system to use, what fine-tuning gains, and its cost out of domain.

    Without a recommended system, a sentence says why there is none.
    """
    if any(row.get("pseudo_queries") for row in rows):
        return f"Nothing to recommend. {caveats(rows[0])}"
    ready, tuned = finalists(rows)
    if not ready or not tuned:
        missing = "fine-tuned model" if ready else "system without training"
        return f"Nothing to recommend yet: no {missing} has been evaluated."
    use = recommended(rows, metric)
    if not use:
        return "Nothing to recommend: no system finds a positive for any dev query."
    return " ".join(_sentences({row["label"]: row for row in rows}, use, ready, tuned, metric))


def _sentences(by_label: dict[str, dict], use: dict, ready: dict, tuned: dict, metric: str) -> Iterator[str]:
    value = {label: row["metrics"][metric] for label, row in by_label.items()}
    low, high = use["ci95"][metric]
    yield (f"Use {use['model']} ({name_of(use)}, {'fine-tuned' if use is tuned else 'no training'}): {metric} "
           f"{value[use['label']]:.3f} [{low:.3f}, {high:.3f}].")
    yield (f"On dev queries, {name_of(ready)} is the best system without training and {tuned['label']} the best "
           f"fine-tuned one; on test queries, {tuned['label']} has {value[tuned['label']]:.3f} against "
           f"{value[ready['label']]:.3f}: {_outcome(tuned['against'][ready['label']][metric])}.")
    if use["label"] != "bm25" and "bm25" in by_label:
        difference = format_difference(use["against"]["bm25"][metric])
        yield f"BM25 alone has {value['bm25']:.3f}; {use['label']} differs from it by {difference}."
    best = next((row for row in by_label.values() if row.get("chosen")), None)
    if best and (base := baseline(list(by_label.values()))):
        yield (f"Fine-tuning alone changed {metric} from {value[base['label']]:.3f} ({name_of(base)}) to "
               f"{value[best['label']]:.3f} ({best['label']}): {_outcome(best['against'][base['label']][metric])}.")
        if base.get("unpublished"):
            yield (f"That is no fair baseline: EXTRA_MODELS=published={base['settings']['BASE_MODEL']} evaluates it as "
                   "published.")
    model = by_label.get(system_of(use).encoder, {}) if use is tuned else {}
    for name, measured in model.get("eval_sets", {}).items():
        yield f"Out of domain, on {name}, {model['label']} has {measured[metric]:.3f}."
        for other, pairs in measured.get("against", {}).items():
            yield f"Its difference to {name_of(by_label[other])} there is {format_difference(pairs[metric])}."
    yield from filter(None, [caveats(use)])


def recommendation(settings: Settings, collection: Collection, rows: list[dict]) -> dict[str, Any]:
    """The content of recommendation.json: the recommended `system`, None if there is none, and its `metrics`.

    `trained` says whether it was fine-tuned here, `chosen_on` on how many dev queries it was selected, and `stability`
    how often it is selected again when the dev queries are resampled. `sentence` is the conclusion.
    """
    use, qrels = recommended(rows), collection.split("dev").qrels
    found: dict[str, Any] = {"system": None, "chosen_on": len(qrels), "sentence": conclusion(rows)}
    if not use:
        return found
    without, trained = ([row["label"] for row in group] for group in candidates(rows))
    group = trained if use["label"] in trained else without
    values = np.array([per_query(qrels, read_measured_run(settings, collection, label, "dev"))[SELECTION_METRIC]
                       for label in group])  # systems x queries
    draws = np.random.default_rng(SEED).multinomial(len(qrels), np.full(len(qrels), 1 / len(qrels)), size=SELECTIONS)
    stability = float(((draws @ values.T).argmax(axis=1) == group.index(use["label"])).mean())
    found["sentence"] += (f" {use['label']} was selected on {len(qrels)} dev queries; {stability:.0%} of selections on "
                          "resampled dev queries agree.")
    return found | {"system": use["label"], "trained": group is trained, "stability": stability,
                    "metrics": use["metrics"]}


def _outcome(pair: dict) -> str:
    """Such as "better (+0.100 [+0.080, +0.120])"."""
    found = outcome(pair)
    numbers = [format_difference(pair), *filter(None, [required_queries(pair, "test ")])]
    return f"{found.word}{found.note} ({'; '.join(numbers)})"


def costs(settings: Settings, collection: Collection, rows: list[dict]) -> pd.DataFrame:
    """Table of size and speed, with one row for BM25 and one for each finalist; speed is measured on this machine.

    Columns: milliseconds per query, encoded one at a time (plus the BM25 search of a fusion, plus the reranking time
    recorded in the result); passages encoded per second; megabytes of weights; bytes per passage in the index (a
    float32 vector plus what a reranker stores).
    """
    test, by_label, table = collection.split("test"), {row["label"]: row for row in rows}, {}
    queries, passages = list(test.queries.values())[:TIMED_QUERIES + 1], list(test.corpus.values())[:TIMED_PASSAGES + 1]
    retriever = make_retriever("bm25", settings).index(test.corpus)
    bm25 = _seconds(lambda texts: retriever.search_batch(texts, DEPTH), queries)
    for label in dict.fromkeys(["bm25", *(row["label"] for row in finalists(rows) if row)]):
        row = by_label.get(label, {})
        model = system_of(row).encoder if row else label
        size, line = by_label.get(model, {}).get("size"), table.setdefault(label, {})
        seconds = row.get("ms_per_query", 0) / 1000 + (bm25 if model != label or label == "bm25" else 0)
        if size:
            encoder = Encoder(load_encoder_config(settings, model), batch_size=1)
            seconds += _seconds(encoder.encode_queries, queries)
            encoder.batch_size = settings.encode_batch_size
            line["passages per second"] = f"{1 / _seconds(encoder.encode_passages, passages):.0f}"
            line["MB of weights"] = f"{size['weights'] / 1e6:.0f}" if size["weights"] else ""
            stored = 4 * size["vector"] + row.get("bytes_per_passage", 0) if size["vector"] else ""
            line["bytes per passage"] = f"{stored}"
        line["ms per query"] = f"{1000 * seconds:.1f}" if seconds else ""
    return pd.DataFrame.from_dict(table, orient="index").fillna("")


def _seconds(work: Callable[[list[str]], Any], texts: list[str]) -> float:
    """Seconds per text, after a warm-up call."""
    work(texts[:1])
    began = time.perf_counter()
    work(texts[1:])
    return (time.perf_counter() - began) / max(len(texts) - 1, 1)
