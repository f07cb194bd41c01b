"""The recommendation: which system to use, computed from the comparison, and what it costs.

Dev queries select the two finalists. Test queries are used only to report and compare them.
"""

import time

import pandas as pd

from embedding_finetune.evaluation.results import caveats, finalists, system_of
from embedding_finetune.evaluation.significance import outcome
from embedding_finetune.models.encoder import Encoder
from embedding_finetune.models.encoder_config import load_encoder_config
from embedding_finetune.retrieval.base import make_retriever

METRIC = "recall@1"
TIMED_QUERIES, TIMED_PASSAGES = 32, 128


def format_difference(pair, digits=3):
    """Format a paired difference (an entry of `against`) with its 95 % interval."""
    return "{difference:+.{digits}f} [{ci95[0]:+.{digits}f}, {ci95[1]:+.{digits}f}]".format(**pair, digits=digits)


def required_queries(pair, kind=""):
    """Phrase with the number of queries needed to confirm a difference, in two significant digits; "" where unknown."""
    needed = pair.get("queries_needed")
    return f"about {float(f'{needed:.2g}'):,.0f} {kind}queries would be needed" if needed else ""


def recommendation(rows, metric=METRIC):
    """Sentences on which of the two finalists (results.finalists) to use, its gain, and its out-of-domain cost.

    The fine-tuned finalist is recommended only if it is significantly better, which is a planned comparison. Without
    both finalists, a sentence says which one is missing.
    """
    by_label, (ready, tuned) = {row["label"]: row for row in rows}, finalists(rows)
    if any(row.get("pseudo_queries") for row in rows):
        return f"Nothing to recommend. {caveats(rows[0])}"
    if not ready or not tuned:
        missing = "fine-tuned model" if ready else "system without training"
        return f"Nothing to recommend yet: no {missing} has been evaluated."
    pair = tuned["against"][ready["label"]][metric]
    found = outcome(pair)
    taken = tuned if found.significant and found.word == "better" else ready
    seen = "; ".join(filter(None, [format_difference(pair), required_queries(pair, "test ")]))
    words = [f"Use {taken['label']} ({'fine-tuned' if taken is tuned else 'no training'}). On dev queries, "
             f"{ready['label']} ({ready['model']}) is the best system without training and {tuned['label']} the best "
             f"fine-tuned one. On test queries, {tuned['label']} has {metric} {tuned['metrics'][metric]:.3f} against "
             f"{ready['metrics'][metric]:.3f} of {ready['label']}: {found.word}{found.note} ({seen})."]
    if taken["label"] != "bm25" and "bm25" in by_label:
        words.append(f"BM25 alone has {by_label['bm25']['metrics'][metric]:.3f}; {taken['label']} differs from it by "
                     f"{format_difference(taken['against']['bm25'][metric])}.")
    model = by_label.get(system_of(taken).encoder, {})
    for name, measured in model.get("eval_sets", {}).items() if taken is tuned else ():
        lost = [f"{format_difference(pairs[metric])} compared with {other}"
                for other, pairs in measured.get("against", {}).items()]
        words.append(f"Out of domain, on {name}, {model['label']} has {measured[metric]:.3f}: {', '.join(lost)}.")
    return " ".join([*words, *filter(None, [caveats(taken)])])


def costs(settings, collection, rows):
    """Table of size and speed, with one row for BM25 and one for each finalist; speed is measured on this machine.

    Columns: milliseconds per query, encoded one at a time (plus the BM25 search of a fusion, plus the reranking time
    recorded in the result); passages encoded per second; megabytes of weights; bytes per passage in the index (a
    float32 vector plus what a reranker stores).
    """
    test, by_label, table = collection.split("test"), {row["label"]: row for row in rows}, {}
    queries, passages = list(test.queries.values())[:TIMED_QUERIES + 1], list(test.corpus.values())[:TIMED_PASSAGES + 1]
    retriever = make_retriever("bm25", settings).index(test.corpus)
    bm25 = _seconds(lambda texts: retriever.search(dict(enumerate(texts))), queries)
    for label in dict.fromkeys(["bm25", *(row["label"] for row in finalists(rows) if row)]):
        row, line = by_label.get(label, {}), table.setdefault(label, {})
        model = system_of(row).encoder if row else label
        size, seconds = by_label.get(model, {}).get("size") or {}, bm25 if model != label or label == "bm25" else 0
        seconds += row.get("ms_per_query", 0) / 1000
        if size:
            encoder = Encoder(load_encoder_config(settings, model), batch_size=1)
            seconds += _seconds(encoder.encode_queries, queries)
            encoder.batch_size = settings.encode_batch_size
            line["passages per second"] = f"{1 / _seconds(encoder.encode_passages, passages):.0f}"
            line["MB of weights"] = f"{size['weights'] / 1e6:.0f}" if size["weights"] else ""
            stored = 4 * size["vector"] + row.get("bytes_per_passage", 0) if size["vector"] else 0
            line["bytes per passage"] = f"{stored}" if stored else ""
        line["ms per query"] = f"{1000 * seconds:.1f}" if seconds else ""
    return pd.DataFrame.from_dict(table, orient="index").fillna("")


def _seconds(work, texts):
    """Seconds per text, after a warm-up call."""
    work(texts[:1])
    began = time.perf_counter()
    work(texts[1:])
    return (time.perf_counter() - began) / max(len(texts) - 1, 1)
