"""Rerankers by kind: late interaction, the three scores of BGE-M3, cross-encoders."""

from embedding_finetune import contrib
from embedding_finetune.retrieval.cross_encoder import CrossEncoder
from embedding_finetune.retrieval.known_systems import find_system
from embedding_finetune.retrieval.late_interaction import LateInteraction


def make_reranker(settings, kind, model):
    """Create the reranker of a kind (late, m3 or rerank) with the model of a label, still without a corpus.

    Raises UserError when the model is not available.
    """
    kinds = {"late": LateInteraction, "rerank": CrossEncoder}
    reranker = kinds[kind] if kind in kinds else contrib.load("bge_m3").M3
    return reranker.of(settings, model)


def needs_token_embeddings(settings, label):
    """Whether a reranker in the settings uses the token vectors of the model `label`.

    Its evaluation then stores them in the same pass that computes the vectors of the passages.
    """
    systems = [find_system(settings, stage) for stage in settings.rerankers.split()]
    return ("late", label) in [(system.reranker, system.reranker_model) for system in systems]
