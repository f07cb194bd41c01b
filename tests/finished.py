"""A fine-tuned model as its training leaves it, and results of it and of its rivals: nothing is trained."""

import shutil

from transformers import AutoModel, AutoTokenizer

from embedding_finetune.data.collection import read_data
from embedding_finetune.evaluation.results import facts, save_result
from embedding_finetune.files import write_json
from embedding_finetune.recipes import find_recipe
from embedding_finetune.retrieval.encoder import Encoder
from embedding_finetune.retrieval.model_use import base_use, use_of
from embedding_finetune.retrieval.retrievers import BM25, Dense
from embedding_finetune.training.export import export
from embedding_finetune.training.records import record_of


def finish(settings, label="neg10"):
    """Export the base model as the model of `label`, with the record of its training; returns its folder."""
    folder, use = settings.output_dir / label, base_use(settings)
    shutil.rmtree(folder, ignore_errors=True)
    export(AutoModel.from_pretrained(use.name), AutoTokenizer.from_pretrained(use.name), folder, use)
    write_json(folder / "training.json", record_of(settings, find_recipe(settings, label)))
    return folder


def evaluate(settings, *labels):
    """Measure these labels as the evaluation notebooks do, and save their results."""
    collection = read_data(settings)
    for label in labels:
        encoder = None if label == "bm25" else Encoder(use_of(settings, label))
        ranked = (Dense(encoder) if encoder else BM25()).index(collection.corpus)
        runs = {part: ranked.search(collection.part(part).queries) for part in ("test", "dev")}
        save_result(settings, collection, label, runs, **(facts(settings, encoder) if encoder else {"model": "BM25"}))
