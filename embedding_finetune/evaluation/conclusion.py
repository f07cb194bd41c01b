"""What a comparison means, in sentences: the verdict on a pair, the conclusion, and what the best systems cost.

Dev queries select the two finalists (see selection). Test queries are used only to report and compare them.
"""

import time
from collections.abc import Callable, Iterator
from typing import Any

import pandas as pd

from embedding_finetune.data.collection import Collection
from embedding_finetune.evaluation.names import baseline, name_of
from embedding_finetune.evaluation.results import caveats, finalists, system_of
from embedding_finetune.evaluation.selection import MIN_QUERIES
from embedding_finetune.evaluation.significance import excludes_zero, outcome
from embedding_finetune.models.encoder import Encoder
from embedding_finetune.models.encoder_config import load_encoder_config
from embedding_finetune.retrieval.base import DEPTH, make_retriever
from embedding_finetune.settings import SELECTION_METRIC, Settings

METRIC = "recall@1"
TIMED_QUERIES, TIMED_PASSAGES = 32, 128


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
    system without training, which is a planned comparison. Without training queries, there is only the latter.
    """
    ready, tuned = finalists(rows)
    if ready and ready.get("training_queries") == 0:
        tuned = ready
    if not ready or not tuned or any(row.get("pseudo_queries") for row in rows) or not any(
            row["dev"][SELECTION_METRIC] for row in (ready, tuned)):
        return None
    if tuned is ready:
        return ready
    found = outcome(tuned["against"][ready["label"]][metric])
    return tuned if found.significant and found.word == "better" else ready


def conclusion(rows: list[dict], metric: str = METRIC) -> str:
    """Sentences on which system to use, what fine-tuning gains, and its cost out of domain.

    Without a recommended system, a sentence says why there is none.
    """
    if any(row.get("pseudo_queries") for row in rows):
        return f"Nothing to recommend. {caveats(rows[0])}"
    ready, tuned = finalists(rows)
    if not ready or not (tuned or ready.get("training_queries") == 0):
        missing = "fine-tuned model" if ready else "system without training"
        return f"Nothing to recommend yet: no {missing} has been evaluated."
    use = recommended(rows, metric)
    if not use:
        return "Nothing to recommend: no system finds a positive for any dev query."
    return " ".join(_sentences({row["label"]: row for row in rows}, use, ready, tuned, metric))


def _sentences(by_label: dict[str, dict], use: dict, ready: dict, tuned: dict | None,
               metric: str) -> Iterator[str]:
    value = {label: row["metrics"][metric] for label, row in by_label.items()}
    low, high = use["ci95"][metric]
    yield (f"Use {use['model']} ({name_of(use)}, {'fine-tuned' if use is tuned else 'no training'}): {metric} "
           f"{value[use['label']]:.3f} [{low:.3f}, {high:.3f}].")
    if tuned:
        yield from _compared(ready, tuned, metric)
    else:
        yield f"{_selected(ready, 'system without training')} There are no training queries, so nothing was fine-tuned."
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


def _compared(ready: dict, tuned: dict, metric: str) -> Iterator[str]:
    """Sentences on the two finalists: how they were selected, and what the test queries say."""
    on_test = (f"n test queries, {tuned['label']} has {tuned['metrics'][metric]:.3f} against "
               f"{ready['metrics'][metric]:.3f}: {_outcome(tuned['against'][ready['label']][metric])}.")
    if ready["finalist"]["is_default"] or tuned["finalist"]["is_default"]:
        yield from (_selected(ready, "system without training"), _selected(tuned, "fine-tuned system"), f"O{on_test}")
    else:
        yield (f"On dev queries, {name_of(ready)} is the best system without training and {tuned['label']} the best "
               f"fine-tuned one; o{on_test}")


def _selected(row: dict, kind: str) -> str:
    """The sentence that says whether a finalist was selected, or why it is the default."""
    found = row["finalist"]
    on = f"{found['queries']} {found['on']} queries"
    if not found["is_default"]:
        return f"{name_of(row)} is the best {kind} on {on}."
    few = found["queries"] < MIN_QUERIES
    reason = f"{on} are too few to select one" if few else f"{on} do not tell, since only {_agreement(found)}"
    return f"{name_of(row)} is the default {kind}: {reason}."


def _agreement(found: dict) -> str:
    return f"{found['stability']:.0%} of selections on resampled {found['on']} queries agree"


def recommendation(collection: Collection, rows: list[dict]) -> dict[str, Any]:
    """The content of recommendation.json: the recommended `system`, None if there is none, and its `metrics`.

    `trained` says whether it was fine-tuned here, `chosen_on` on how many queries it was selected, `stability` how many
    of the selections on resampled queries agree, and `is_default` whether it is the default because these queries do
    not suffice (see selection). `sentence` is the conclusion.
    """
    use, sentence = recommended(rows), conclusion(rows)
    if not use:
        return {"system": None, "chosen_on": len(collection.split("dev").queries), "sentence": sentence}
    how = use["finalist"]
    if not how["is_default"]:
        sentence += f" {use['label']} was selected on {how['queries']} {how['on']} queries; {_agreement(how)}."
    return {"system": use["label"], "trained": use is finalists(rows)[1], "chosen_on": how["queries"],
            "stability": how["stability"], "is_default": how["is_default"], "metrics": use["metrics"],
            "sentence": sentence}


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
