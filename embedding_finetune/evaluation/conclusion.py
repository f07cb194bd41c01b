"""What to take, computed from the numbers: chosen on dev queries, and stated with what the test queries say of it."""

import time

import pandas as pd

from embedding_finetune.evaluation.results import PSEUDO_QUERY_CAVEAT, finalists
from embedding_finetune.evaluation.significance import outcome
from embedding_finetune.models.encoder import Encoder
from embedding_finetune.models.encoder_config import load_encoder_config
from embedding_finetune.retrieval.base import make_retriever

METRIC = "recall@1"
TIMED_QUERIES, TIMED_PASSAGES = 32, 128


def format_difference(pair, digits=3):
    """A difference of `against` with its 95 % interval, for people."""
    return "{difference:+.{digits}f} [{ci95[0]:+.{digits}f}, {ci95[1]:+.{digits}f}]".format(**pair, digits=digits)


def required_queries(pair, kind=""):
    """How many queries would tell the two apart, in two digits: more would claim to know more than it does."""
    needed = pair.get("queries_needed")
    return f"about {float(f'{needed:.2g}'):,.0f} {kind}queries would tell" if needed else ""


def recommendation(rows, metric=METRIC):
    """Sentences: which of the two finalists (results.finalists) to take, what it gains, and what that costs elsewhere.

    The fine-tuned one has to be better beyond doubt, which is a planned comparison: what needs no training is there
    already. Without both finalists, a sentence that says what is missing.
    """
    by_label, (ready, tuned) = {row["label"]: row for row in rows}, finalists(rows)
    if any(row.get("pseudo_queries") for row in rows):
        return f"Nothing to recommend. {PSEUDO_QUERY_CAVEAT}"
    if not ready or not tuned:
        return f"Nothing to recommend yet: no {'fine-tuned' if ready else 'other'} model has been evaluated."
    pair = tuned["against"][ready["label"]][metric]
    found = outcome(pair)
    taken = tuned if found.significant and found.word == "better" else ready
    seen = "; ".join(filter(None, [format_difference(pair), required_queries(pair, "test ")]))
    words = [f"Take {taken['label']}, which {'was fine-tuned' if taken is tuned else 'needs no training'}. On dev "
             f"queries {ready['label']} ({ready['model']}) is the best of what needs none, {tuned['label']} of what "
             f"was fine-tuned; on test queries that one has {metric} {tuned['metrics'][metric]:.3f} against "
             f"{ready['metrics'][metric]:.3f}: {found.word}{found.note} ({seen})."]
    if taken["label"] != "bm25" and "bm25" in by_label:
        words.append(f"BM25 alone, without any model: {by_label['bm25']['metrics'][metric]:.3f}, so "
                     f"{format_difference(taken['against']['bm25'][metric])} for {taken['label']}.")
    model = by_label.get(taken.get("hybrid_of", taken["label"]), {})
    for name, measured in model.get("eval_sets", {}).items() if taken is tuned else ():
        lost = [f"{format_difference(pairs[metric])} against {other}" for other, pairs in measured.get("against", {}).items()]
        words.append(f"Elsewhere, on {name}, {model['label']} has {measured[metric]:.3f}: {', '.join(lost)}.")
    return " ".join(words)


def costs(settings, collection, rows):
    """One line for BM25 and each finalist: size, and speed measured here and now.

    Milliseconds to encode one query alone (a fusion takes BM25's search, too, and a second stage what it took when it
    was measured), passages encoded in a second, megabytes of weights, bytes a passage in the index: a vector in
    float32, and what a second stage keeps.
    """
    test, by_label, table = collection.split("test"), {row["label"]: row for row in rows}, {}
    queries, passages = list(test.queries.values())[:TIMED_QUERIES + 1], list(test.corpus.values())[:TIMED_PASSAGES + 1]
    words = make_retriever("bm25", settings.bm25_language).index(test.corpus)
    bm25 = _seconds(lambda texts: words.search(dict(enumerate(texts))), queries)
    for label in dict.fromkeys(["bm25", *(row["label"] for row in finalists(rows) if row)]):
        row, line = by_label.get(label, {}), table.setdefault(label, {})
        model = row.get("hybrid_of", label)
        size, seconds = by_label.get(model, {}).get("size") or {}, bm25 if model != label or label == "bm25" else 0
        seconds += row.get("ms_per_query", 0) / 1000
        if size:
            encoder = Encoder(load_encoder_config(settings, model), batch_size=1)
            seconds += _seconds(encoder.encode_queries, queries)
            encoder.batch_size = settings.encode_batch_size
            line["passages a second"] = f"{1 / _seconds(encoder.encode_passages, passages):.0f}"
            line["MB of weights"] = f"{size['weights'] / 1e6:.0f}" if size["weights"] else ""
            stored = 4 * size["vector"] + row.get("bytes_per_passage", 0) if size["vector"] else 0
            line["bytes a passage"] = f"{stored}" if stored else ""
        line["ms a query"] = f"{1000 * seconds:.1f}" if seconds else ""
    return pd.DataFrame.from_dict(table, orient="index").fillna("")


def _seconds(work, texts):
    """Seconds a text, once everything is loaded."""
    work(texts[:1])
    began = time.perf_counter()
    work(texts[1:])
    return (time.perf_counter() - began) / max(len(texts) - 1, 1)
