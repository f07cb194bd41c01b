"""A second stage on the tiny experiment, as second_stage.ipynb measures it."""

from embedding_finetune.data.collection import read_data
from embedding_finetune.evaluation import results
from embedding_finetune.evaluation.second_stage import choose, reordered, save_stage
from embedding_finetune.retrieval.encoder import Encoder
from embedding_finetune.retrieval.model_use import use_of
from embedding_finetune.retrieval.retrievers import BM25, Dense
from embedding_finetune.retrieval.second_stage import union
from embedding_finetune.retrieval.stages import stage_of


def measured_stage(settings, label="late_reference", collection=None):
    """BM25, the reference, and a stage over both, measured and saved as the notebooks do it."""
    collection, use = collection or read_data(settings), use_of(settings, "reference")
    parts = {part: collection.part(part) for part in ("dev", "test")}
    runs = []
    for retriever, more in ((BM25(), {"model": "BM25"}), (Dense(Encoder(use)), None)):
        retriever.index(collection.corpus)
        runs.append({part: retriever.search(of.queries) for part, of in parts.items()})
        more = more or results.facts(settings, retriever.encoder)
        results.save_result(settings, collection, "bm25" if "used" not in more else "reference", runs[-1], **more)
    bm25, dense = runs
    stage, second = stage_of(settings, label).index(collection.corpus), {}
    for part, of in parts.items():
        second[part] = stage.score(of.queries, union(dense[part], bm25[part], depth=50))
    chosen = choose(parts["dev"], bm25["dev"], dense["dev"], second["dev"])
    alone, fused = ({part: reordered(bm25[part], dense[part], second[part], **how) for part in parts}
                    for how in (chosen | {"weight": 0.0, "second_weight": None}, chosen))
    return collection, save_stage(settings, collection, label, stage, alone, fused, chosen)
