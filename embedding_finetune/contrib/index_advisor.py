"""Which INDEX for a corpus: what several cost and find, measured on a sample of its vectors and foretold for all.

    python -m embedding_finetune choose-index [LABEL] [--passages 10000000] [--memory 4] [--sample 50000]

Two samples of the passages' vectors of LABEL (default reference) are searched by the dev queries; `--passages` says
for how many the figures are to be foretold, `--memory` how many GB an index may take. What scales how is in `foretell`.
Recall falls as a corpus grows, since more passages are nearly as near: a sample that is the n-th part of it is looked
through n times less far (see vector_index.Faiss.narrow). That is an estimate; a larger `--sample` makes it better,
and what `search` says of the index once it is made is measured.
"""

import math
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd

from embedding_finetune.data.collection import read_data
from embedding_finetune.files import CommandLine, UserError
from embedding_finetune.models.encoder import make_encoder
from embedding_finetune.models.encoder_config import load_encoder_config
from embedding_finetune.retrieval.ann import FLAT, REACH, make_index, num_ivf_lists, recall_vs_exact
from embedding_finetune.settings import Settings

SAMPLE = 50_000  # vectors
TARGET_RECALL = 0.95  # recall@10 beside an exact search
QUICK = 20  # milliseconds a query in which an exact search needs no index


def candidates(count, dim):
    """Values of INDEX for so many vectors of so many dimensions: name -> value."""
    lists = num_ivf_lists(count)
    probe = f"nprobe={max(1, round(lists * REACH['nprobe']))}"
    return {"flat": FLAT, "scalar-quantised": "SQ8", "lists, scalar-quantised": f"IVF{lists},SQ8 {probe}",
            "lists, product-quantised": f"IVF{lists},PQ{dim // 2}x4fs {probe}",
            "graph, scalar-quantised": f"HNSW32,SQ8 efSearch={REACH['efSearch']}"}


def measure(where, vectors, queries, share=1, seed=0):
    """What an index of these vectors costs and finds: `GB` of the index, `minutes` to make it, `ms` a query asked alone
    (and `p99_ms`, `exact_ms`), `recall` of the exact first ten; where they are but a share of a corpus, as it finds
    when it looks less far."""
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        index = make_index(where).build(vectors, Path(folder))
        minutes = (time.perf_counter() - began) / 60
        size = sum(file.stat().st_size for file in Path(folder).iterdir()) or vectors.nbytes
        tie_rank = np.random.default_rng(seed).permutation(len(vectors))
        found = recall_vs_exact(index, queries, tie_rank)
        if share < 1 and index.narrow(share):
            found["recall"] = recall_vs_exact(index, queries, tie_rank)["recall"]
    return {"INDEX": where, "GB": size / 1e9, "minutes": minutes} | {
        name: found[name] for name in ("ms", "p99_ms", "exact_ms", "recall")}


def extrapolate(name, rows, count):
    """What `measure` would say of `count` vectors, by what it said of two samples (vectors -> row): on the line through
    both where it rises, so that what an index costs once is not multiplied.

    Bytes grow with the vectors. So does what a search compares (with the share of the lists that it looks into), but in
    a graph, where it grows with the logarithm (Malkov and Yashunin 2018), as does what each vector costs to put in.
    """
    graph, (few, more) = name.startswith("graph"), sorted(rows)
    search = math.log if graph else lambda n: n
    grows = {"GB": lambda n: n, "exact_ms": lambda n: n, "ms": search, "p99_ms": search,
             "minutes": lambda n: n * math.log(n) if graph else n}
    told = dict(rows[more])
    for key, of in grows.items():
        rise = max(0, rows[more][key] - rows[few][key]) / (of(more) - of(few))
        told[key] = rows[more][key] + rise * (of(count) - of(more))
    return told


def recommended(table, memory):
    """The name of the row to take: exact where that is quick, else the quickest that finds enough in so many GB; None
    where there is none."""
    fits = table[(table["GB"] <= memory) & (table["recall"] >= TARGET_RECALL)]
    if "flat" in fits.index and fits.loc["flat", "ms"] <= QUICK:
        return "flat"
    return fits["ms"].idxmin() if len(fits) else None


def choose(vectors, queries, count, sample=SAMPLE, seed=0):
    """The foretold table of all candidates for `count` vectors like these, from so many of them; a row a candidate."""
    order, dim = np.random.default_rng(seed).permutation(len(vectors))[:sample], vectors.shape[1]
    samples = {size: vectors[np.sort(order[:size])] for size in (len(order) // 4, len(order))}
    told = {}
    for name, where in candidates(count, dim).items():
        rows = {size: measure(candidates(size, dim)[name], some, queries, size / count)
                for size, some in samples.items()}
        told[name] = extrapolate(name, rows, count) | {"INDEX": where}
    return pd.DataFrame.from_dict(told, orient="index")


def main():
    parser = CommandLine("choose-index", "Choose an index.")
    parser.add_argument("label", nargs="?", default="reference")
    parser.add_argument("--passages", type=int, default=0, help="foretold for so many; the corpus's by default")
    parser.add_argument("--memory", type=float, default=4, help="GB that an index may take")
    parser.add_argument("--sample", type=int, default=SAMPLE, help="passages whose vectors are looked at")
    options, settings = parser.parse_args(), Settings.load()
    collection, encoder = read_data(settings), make_encoder(settings, load_encoder_config(settings, options.label))
    dev = collection.split("dev")
    if not dev.queries:
        raise UserError("there are no dev queries to measure with: raise DEV_FRACTION, and build the data again")
    vectors = encoder.encode_passages(collection.corpus.values())
    count = options.passages or len(vectors)
    table = choose(vectors, encoder.encode_queries(dev.queries.values()), count, options.sample)
    print(f"{options.label}, foretold for {count:,} passages from {min(options.sample, len(vectors)):,}:")
    print(table.round(3).to_markdown())
    best = recommended(table, options.memory)
    print(f"take INDEX=\"{table.loc[best, 'INDEX']}\" ({best})" if best else
          f"none finds {TARGET_RECALL:.0%} of the exact first ten within {options.memory} GB: allow more (--memory)")
