"""The second stages that there are, by their labels."""

from embedding_finetune.labels import KINDS
from embedding_finetune.retrieval.cross_encoder import CrossEncoder
from embedding_finetune.retrieval.late import LateInteraction
from embedding_finetune.retrieval.m3 import M3
from embedding_finetune.retrieval.second_stage import parts_of

CLASSES = {"late": LateInteraction, "m3": M3, "rerank": CrossEncoder}


def is_stage(label):
    """Whether a label is one of a second stage, such as `late_reference`."""
    return label.partition("_")[0] in KINDS and "_" in label


def stage_of(settings, label):
    """The stage of a label, without a corpus yet. Raises UserError when there is none."""
    kind, model, _ = parts_of(settings, label)
    return CLASSES[kind].of(settings, model)


def keeps_tokens(settings, label):
    """Whether a second stage that the settings name looks at the token vectors of a model: its evaluation keeps them,
    in the same pass that makes its passages' own vectors."""
    return ("late", label) in [parts_of(settings, stage)[:2] for stage in settings.second_stages.split()]
