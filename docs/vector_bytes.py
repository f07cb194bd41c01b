"""What single-vector embeddings may lose: memory against quality by INDEX, on sets of benchmarks/claims.

    python docs/vector_bytes.py [--sets msmarco covidqa ..]

of the models of a set that are there (`python benchmarks/claims.py SET LABEL`): reference (as it is), single (trained),
matryoshka (trained so that its first dimensions can be used alone).

Each index is searched as it is, by its codes alone, and as `search` and `serve` use it: its first hundred, scored once
more by the vectors themselves. Differences to the exact order are paired over the test queries, with 95 % intervals;
nothing is chosen. Prints tables; the last line is one JSON object, which `benchmarks/bench.py bytes` keeps.
"""

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

import faiss
import numpy as np
import pandas as pd

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))
from claims import claim_names, read_claim, settings_of

from embedding_finetune.data.collection import read_data
from embedding_finetune.evaluation.metrics import per_query
from embedding_finetune.evaluation.significance import SEED, bootstrap_means, interval
from embedding_finetune.files import run_command_line
from embedding_finetune.models.encoder import make_encoder
from embedding_finetune.models.encoder_config import load_encoder_config, pretrained
from embedding_finetune.retrieval.ann import FaissIndex

DEPTH, TIMED = 10, 100  # passages, and queries that are asked alone
LABELS = "reference", "single", "matryoshka"
WAYS = {"float32": "Flat", "float16": "SQfp16", "int8": "SQ8", "4 bits": "SQ4", "PCA, half": "PCAR{half},SQ8",
        "PCA, a quarter": "PCAR{quarter},SQ8", "PCA, an eighth": "PCAR{eighth},SQ8", "product codes": "PQ{eighth}",
        "1 bit": "RaBitQ",
        **{f"first {name}{bits}": f"First{{{part}}},{kind}" for name, part in (
            ("half", "half"), ("quarter", "quarter"), ("eighth", "eighth"))
           for bits, kind in (("", "Flat"), (", 1 bit", "RaBitQ"))}}


class First(FaissIndex):
    """The first dimensions alone, scaled to length 1 again (`First192,Flat`): what Matryoshka trains."""

    def build(self, vectors, folder):
        first, words = self.factory.split(",")
        size = int(first.removeprefix("First"))
        kept = faiss.index_factory(size, words, faiss.METRIC_INNER_PRODUCT)
        scaled = faiss.IndexPreTransform(faiss.NormalizationTransform(size), kept)
        index = faiss.IndexPreTransform(faiss.RemapDimensionsTransform(vectors.shape[1], size, False), scaled)
        index.train(vectors)
        index.add(vectors)
        faiss.write_index(index, str(folder / self.FILE))
        return self.load(vectors, folder)


def runs_of(index, test, vectors):
    """(the run by an index's codes alone, the run scored once more by the vectors): query id -> passage id -> score."""
    ids, order = list(test.corpus), np.arange(len(test.corpus))
    near, places = index.index.search(vectors, DEPTH)
    found = [(near, places), index.search_batch(vectors, DEPTH, order)]
    return [{query: {ids[place]: float(score) for score, place in zip(*row) if place >= 0}
             for query, *row in zip(test.queries, scores, positions)} for scores, positions in found]


def measured(settings, label):
    """Way -> what it costs and loses, for the model of a label."""
    test, encoder = read_data(settings).split("test"), make_encoder(settings, load_encoder_config(settings, label))
    passages, queries = (encode(texts.values()) for encode, texts in (
        (encoder.encode_passages, test.corpus), (encoder.encode_queries, test.queries)))
    dim, rows, found = passages.shape[1], {}, {"codes": {}, "again": {}}
    for way, words in WAYS.items():
        with tempfile.TemporaryDirectory() as folder:
            kind = First if words.startswith("First") else FaissIndex
            index = kind(words.format(half=dim // 2, quarter=dim // 4, eighth=dim // 8)).build(passages, Path(folder))
            size = (Path(folder) / index.FILE).stat().st_size
            runs = runs_of(index, test, queries)
            times = [timed(index.index.search, query[None]) for query in queries[:TIMED]]
        rows[way] = {"INDEX": index.factory, "bytes": round(size / len(passages)), "ms": round(np.median(times), 3)}
        for kind, run in zip(found, runs):
            found[kind][way] = per_query(test.qrels, run)["recall@1"]
    for kind, values in found.items():
        values = pd.DataFrame(values)
        gaps = values.sub(values["float32"], axis=0)
        low, high = interval(bootstrap_means(gaps.to_numpy(), seed=SEED))
        for number, way in enumerate(WAYS):
            rows[way][kind] = [round(float(value), 4) for value in (
                values[way].mean(), gaps[way].mean(), low[number], high[number])]
    return rows


def timed(search, query):
    """Milliseconds of a search."""
    began = time.perf_counter()
    search(query, DEPTH)
    return 1000 * (time.perf_counter() - began)


def table(rows):
    """The rows of a model, for people."""
    said = {way: {"INDEX": row["INDEX"], "bytes a passage": row["bytes"], "ms a query": row["ms"]} | {
        title: "{:.3f}, {:+.3f} [{:+.3f}, {:+.3f}]".format(*row[kind]) for kind, title in (
            ("codes", "recall@1 by its codes"), ("again", "scored once more"))} for way, row in rows.items()}
    return pd.DataFrame.from_dict(said, orient="index").to_markdown(disable_numparse=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sets", nargs="+", choices=claim_names(), default=["msmarco", "covidqa"])
    found = {}
    for name in parser.parse_args().sets:
        settings, found[name] = settings_of(read_claim(name), published_split=False, seeds=1), {}
        for label in LABELS:
            if label in pretrained(settings) or (settings.output_dir / label).exists():
                found[name][label] = measured(settings, label)
                print(f"{name}, {label}:\n{table(found[name][label])}", flush=True)
    print(json.dumps(found))


if __name__ == "__main__":
    run_command_line(main)
