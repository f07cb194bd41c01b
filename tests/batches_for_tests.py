"""A batch of the tiny training set, laid out for our model and for FlagEmbedding's."""

import random
from types import SimpleNamespace

from transformers import AutoModel, AutoTokenizer, BatchEncoding

from embedding_finetune.batches import Collator, TrainingSet
from embedding_finetune.contrastive import ContrastiveModel


def load(folder, **options):
    return ContrastiveModel(AutoModel.from_pretrained(folder), **{"temperature": 0.05, "normalize_embeddings": True} | options)


def data_arguments(tiny, scores=False, **changes):
    defaults = {
        "train_data": [str(tiny / ("train_scores.json" if scores else "train.json"))], "cache_path": str(tiny / "cache"),
        "train_group_size": 4, "max_example_num_per_dataset": 10**6, "knowledge_distillation": scores, "shuffle_ratio": 0.0,
        "query_instruction_for_retrieval": "find: ", "query_instruction_format": "{}{}", "passage_instruction_for_retrieval": None,
        "passage_instruction_format": "{}{}"}
    return SimpleNamespace(**defaults | changes)


def batch_of(tiny, scores=False, items=range(6), limit=None, seed=5):
    """(arguments of ContrastiveModel.forward, arguments of FlagEmbedding's forward) for the same texts."""
    tokenizer = AutoTokenizer.from_pretrained(tiny / "bert")
    dataset, generator = TrainingSet(data_arguments(tiny, scores), tokenizer), random.Random(seed)
    rows = [dataset[dataset.draw(item, generator)] for item in range(max(items) + 1)]
    rows = [rows[item] for item in items]
    batch = Collator(tokenizer=tokenizer, query_max_len=16, passage_max_len=48, limit=limit)(rows)

    def tokenize(texts, max_length):
        return dict(BatchEncoding(tokenizer(texts, truncation=True, max_length=max_length, padding=True, return_tensors="pt")))

    features = {"queries": tokenize([row["query"] for row in rows], 16),
                "passages": tokenize([text for row in rows for text in row["passages"]], 48),
                "teacher_scores": [score for row in rows for score in row["teacher_scores"]] if scores else None}
    return batch, features


def gradients(model):
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None}
