"""Quality against bytes: the token vectors of a second stage kept whole, in int8, and merged; one line a way.

    PROFILE=demo python docs/token_bytes.py [late_reference]

After a run with that second stage. Weights and depth are those that dev chooses for each way; differences are paired,
against whole float16, with 95 % intervals. Writes OUTPUT_DIR/results/token_bytes.md.
"""

import sys
from pathlib import Path

import pandas as pd

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from embedding_finetune.data.collection import read_data
from embedding_finetune.evaluation.metrics import per_query
from embedding_finetune.evaluation.results import read_measured_run
from embedding_finetune.evaluation.significance import add_significance
from embedding_finetune.evaluation.tuning import rerank_run, tune_reranking
from embedding_finetune.files import atomic_write, run_command_line
from embedding_finetune.retrieval.known_systems import find_system, make_reranker
from embedding_finetune.retrieval.rerank import candidate_union
from embedding_finetune.settings import Settings

WAYS = {"float16": ("float16", 1), "int8": ("int8", 1), "float16, 2 merged": ("float16", 2),
        "int8, 2 merged": ("int8", 2), "int8, 4 merged": ("int8", 4), "one vector": ("float16", 10**6)}


def main():
    settings, label = Settings.load(), (sys.argv[1:] or ["late_reference"])[0]
    collection, system = read_data(settings), find_system(settings, label)
    parts = {part: collection.split(part) for part in ("dev", "test")}
    bm25, dense = ({part: read_measured_run(settings, collection, name, part) for part in parts}
                   for name in ("bm25", system.encoder))
    frames, rows = {}, {}
    for way, (dtype, merged) in WAYS.items():
        stage = make_reranker(settings, system.reranker, system.reranker_model)
        stage.dtype, stage.merged = dtype, merged
        stage.index(collection.corpus)
        second = {part: stage.score(of.queries, candidate_union(dense[part], bm25[part], depth=max(stage.depths)))
                  for part, of in parts.items()}
        chosen = tune_reranking(parts["dev"], bm25["dev"], dense["dev"], second["dev"])
        for name, how in {"alone": chosen | {"bm25_weight": 0.0, "rerank_weight": None}, "fused": chosen}.items():
            run = rerank_run(bm25["test"], dense["test"], second["test"], **how)
            frames[way, name] = per_query(parts["test"].qrels, run)
        rows[way] = {"kB a passage": f"{stage.bytes_per_passage / 1000:.1f}",
                     "ms a query": f"{stage.ms_per_query:.1f}"}
    for name in ("alone", "fused"):
        own = {way: frame for (way, kind), frame in frames.items() if kind == name}
        for row in add_significance([{"label": way} for way in own], own, planned=[], seed=settings.seed):
            value, pair = own[row["label"]]["recall@1"].mean(), row["against"].get("float16", {}).get("recall@1")
            rows[row["label"]][f"recall@1 {name}"] = f"{value:.3f}" + (
                ", {difference:+.3f} [{ci95[0]:+.3f}, {ci95[1]:+.3f}]".format(**pair) if pair else "")
    table = pd.DataFrame.from_dict(rows, orient="index").to_markdown()
    with atomic_write(settings.output_dir / "results" / "token_bytes.md") as file:
        file.write(f"{table}\n")
    print(table)


if __name__ == "__main__":
    run_command_line(main)
