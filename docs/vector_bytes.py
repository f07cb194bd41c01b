"""What one vector a passage may lose: memory against quality of several values of INDEX, on a set of second_ladder.py.

    python docs/vector_bytes.py msmarco [reference]    after `python docs/second_ladder.py msmarco LABEL`
    python docs/vector_bytes.py msmarco matryoshka     a model whose first dimensions were trained as vectors, too

Each index is searched as it is, by its codes alone, and as `search` and `serve` use it: its first hundred, scored once
more by the vectors themselves. Differences to the exact order are paired over the test queries, with 95 % intervals;
nothing is chosen. Prints a table.
"""

import argparse
import tempfile
from pathlib import Path

import faiss
import numpy as np
import pandas as pd
from second_ladder import SEED, SETS, settings_of

from embedding_finetune.data.collection import read_data
from embedding_finetune.evaluation.metrics import per_query
from embedding_finetune.evaluation.significance import add_significance
from embedding_finetune.files import run_command_line
from embedding_finetune.retrieval.encoder import encoder_of
from embedding_finetune.retrieval.model_use import use_of
from embedding_finetune.retrieval.vector_index import Faiss

DEPTH = 10
WAYS = {"float32": "Flat", "float16": "SQfp16", "int8": "SQ8", "4 bits": "SQ4", "PCA, half": "PCAR{half},SQ8",
        "PCA, a quarter": "PCAR{quarter},SQ8", "PCA, an eighth": "PCAR{eighth},SQ8", "product codes": "PQ{eighth}",
        "1 bit": "RaBitQ",
        **{f"first {name}{bits}": f"First{{{part}}},{kind}" for name, part in (
            ("half", "half"), ("quarter", "quarter"), ("eighth", "eighth"))
           for bits, kind in (("", "Flat"), (", 1 bit", "RaBitQ"))}}


class First(Faiss):
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
        return self.restore(vectors, folder)


def runs_of(index, test, vectors):
    """(the run by an index's codes alone, the run scored once more by the vectors): query id -> passage id -> score."""
    ids, order = list(test.corpus), np.arange(len(test.corpus))
    near, places = index.index.search(vectors, DEPTH)
    found = [(near, places), index.top(vectors, DEPTH, order)]
    return [{query: {ids[place]: float(score) for score, place in zip(*row) if place >= 0}
             for query, *row in zip(test.queries, scores, positions)} for scores, positions in found]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("set", choices=SETS)
    parser.add_argument("label", nargs="?", default="reference")
    options = parser.parse_args()
    settings = settings_of(options.set)
    test, encoder = read_data(settings).part("test"), encoder_of(settings, use_of(settings, options.label))
    passages, queries = (encode(texts.values()) for encode, texts in (
        (encoder.encode_passages, test.corpus), (encoder.encode_queries, test.queries)))
    dim, frames, rows = passages.shape[1], {"alone": {}, "again": {}}, {}
    for way, words in WAYS.items():
        with tempfile.TemporaryDirectory() as folder:
            kind = First if words.startswith("First") else Faiss
            index = kind(words.format(half=dim // 2, quarter=dim // 4, eighth=dim // 8)).build(passages, Path(folder))
            size = (Path(folder) / index.FILE).stat().st_size
            runs = runs_of(index, test, queries)
        rows[way] = {"INDEX": index.factory, "bytes a passage": round(size / len(passages))}
        for kind, run in zip(frames, runs):
            frames[kind][way] = per_query(test.qrels, run)
    for kind, title in {"alone": "recall@1 by its codes", "again": "scored once more"}.items():
        for row in add_significance([{"label": way} for way in WAYS], frames[kind], planned=[], seed=SEED):
            pair = row["against"].get("float32", {}).get("recall@1")
            rows[row["label"]][title] = f"{frames[kind][row['label']]['recall@1'].mean():.3f}" + (
                ", {difference:+.3f} [{ci95[0]:+.3f}, {ci95[1]:+.3f}]".format(**pair) if pair else "")
    print(pd.DataFrame.from_dict(rows, orient="index").to_markdown(disable_numparse=True))


if __name__ == "__main__":
    run_command_line(main)
