"""Registry of rerankers by the kind in their labels."""

from embedding_finetune.contrib.bge_m3 import M3
from embedding_finetune.labels import RERANKER_KINDS
from embedding_finetune.retrieval.cross_encoder import CrossEncoder
from embedding_finetune.retrieval.late_interaction import LateInteraction
from embedding_finetune.retrieval.rerank import parse_reranker_label

CLASSES = {"late": LateInteraction, "m3": M3, "rerank": CrossEncoder}


def is_reranker(label):
    """Whether a label is that of a reranker, such as `late_reference`."""
    return label.partition("_")[0] in RERANKER_KINDS and "_" in label


def make_reranker(settings, label):
    """Create the reranker of a label, still without a corpus. Raises UserError when the label is invalid."""
    kind, model, _ = parse_reranker_label(settings, label)
    return CLASSES[kind].of(settings, model)


def needs_token_embeddings(settings, label):
    """Whether a reranker in the settings uses the token vectors of the model `label`.

    Its evaluation then stores them in the same pass that computes the vectors of the passages.
    """
    return ("late", label) in [parse_reranker_label(settings, stage)[:2] for stage in settings.rerankers.split()]
