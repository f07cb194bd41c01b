"""A reranker on the tiny experiment, as rerank.ipynb measures it."""

from embedding_finetune.data.collection import read_data
from embedding_finetune.evaluation import results
from embedding_finetune.evaluation.tuning import rerank_run, save_reranked, tune_reranking
from embedding_finetune.models.encoder import Encoder
from embedding_finetune.models.encoder_config import load_encoder_config
from embedding_finetune.retrieval.bm25 import BM25
from embedding_finetune.retrieval.dense import Dense
from embedding_finetune.retrieval.rerank import candidate_union
from embedding_finetune.retrieval.rerankers import make_reranker


def measured_stage(settings, label="late_reference", collection=None):
    """BM25, the reference, and a reranker of both, measured and saved as the notebooks do it."""
    collection, config = collection or read_data(settings), load_encoder_config(settings, "reference")
    parts = {part: collection.split(part) for part in ("dev", "test")}
    runs = []
    for retriever, more in ((BM25(), {"model": "BM25"}), (Dense(Encoder(config)), None)):
        retriever.index(collection.corpus)
        runs.append({part: retriever.search(of.queries) for part, of in parts.items()})
        more = more or results.model_metadata(settings, retriever.encoder)
        results.save_result(settings, collection, "bm25" if "used" not in more else "reference", runs[-1], **more)
    bm25, dense = runs
    stage, second = make_reranker(settings, label).index(collection.corpus), {}
    for part, of in parts.items():
        second[part] = stage.score(of.queries, candidate_union(dense[part], bm25[part], depth=50))
    chosen = tune_reranking(parts["dev"], bm25["dev"], dense["dev"], second["dev"])
    alone, fused = ({part: rerank_run(bm25[part], dense[part], second[part], **how) for part in parts}
                    for how in (chosen | {"weight": 0.0, "rerank_weight": None}, chosen))
    return collection, save_reranked(settings, collection, label, stage, alone, fused, chosen)
