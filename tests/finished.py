"""A fine-tuned model as its training leaves it, and results of it and of its rivals: nothing is trained."""

import shutil

from transformers import AutoModel, AutoTokenizer

from embedding_finetune.data.collection import read_data
from embedding_finetune.evaluation.results import model_metadata, save_result
from embedding_finetune.files import write_json
from embedding_finetune.models.encoder import Encoder
from embedding_finetune.models.encoder_config import base_encoder_config, load_encoder_config
from embedding_finetune.recipes import find_recipe
from embedding_finetune.retrieval.bm25 import BM25
from embedding_finetune.retrieval.dense import Dense
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
    """Measure these labels as the evaluation notebooks do, and save their results."""
    collection = read_data(settings)
    for label in labels:
        encoder = None if label == "bm25" else Encoder(load_encoder_config(settings, label))
        ranked = (Dense(encoder) if encoder else BM25()).index(collection.corpus)
        runs = {part: ranked.search(collection.split(part).queries) for part in ("test", "dev")}
        metadata = model_metadata(settings, encoder) if encoder else {"model": "BM25"}
        save_result(settings, collection, label, runs, **metadata)
