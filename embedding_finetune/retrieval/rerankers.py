"""The second stages that there are, by their labels."""

from embedding_finetune.contrib.bge_m3 import M3
from embedding_finetune.labels import RERANKER_KINDS
from embedding_finetune.retrieval.cross_encoder import CrossEncoder
from embedding_finetune.retrieval.late_interaction import LateInteraction
from embedding_finetune.retrieval.rerank import parse_reranker_label

CLASSES = {"late": LateInteraction, "m3": M3, "rerank": CrossEncoder}


def is_reranker(label):
    """Whether a label is one of a second stage, such as `late_reference`."""
    return label.partition("_")[0] in RERANKER_KINDS and "_" in label


def make_reranker(settings, label):
    """The stage of a label, without a corpus yet. Raises UserError when there is none."""
    kind, model, _ = parse_reranker_label(settings, label)
    return CLASSES[kind].of(settings, model)


def needs_token_embeddings(settings, label):
    """Whether a second stage that the settings name looks at the token vectors of a model: its evaluation keeps them,
    in the same pass that makes its passages' own vectors."""
    return ("late", label) in [parse_reranker_label(settings, stage)[:2] for stage in settings.rerankers.split()]
