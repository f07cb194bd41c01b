"""A fine-tuned model as its training leaves it, and results of systems: nothing is trained."""

import shutil

from transformers import AutoModel, AutoTokenizer

from embedding_finetune.evaluation.evaluate import evaluate as evaluate_system
from embedding_finetune.files import write_json
from embedding_finetune.models.encoder_config import base_encoder_config
from embedding_finetune.recipes import find_recipe
from embedding_finetune.training.export import export
from embedding_finetune.training.provenance import training_record


def finish(settings, label="neg10"):
    """Export the base model as the model of `label`, with the record of its training; returns its folder."""
    folder, config = settings.output_dir / label, base_encoder_config(settings)
    shutil.rmtree(folder, ignore_errors=True)
    export(AutoModel.from_pretrained(config.name), AutoTokenizer.from_pretrained(config.name), folder, config)
    write_json(folder / "training.json", training_record(settings, find_recipe(settings, label)))
    return folder


def evaluate(settings, *labels):
    """Evaluate systems in this order, bm25 before those that need its run; returns label -> result."""
    return {label: result for each in labels for label, result in evaluate_system(settings, each).items()}
