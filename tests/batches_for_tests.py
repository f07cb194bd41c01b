"""A batch of the tiny training set, laid out for our model and for FlagEmbedding's."""

from tiny_training import rows_of, use
from transformers import AutoModel, AutoTokenizer, BatchEncoding

from embedding_finetune.training.batches import Collator, TrainingSet
from embedding_finetune.training.loss import ContrastiveModel


def load(folder, **options):
    return ContrastiveModel(AutoModel.from_pretrained(folder), **{"temperature": 0.05} | options)


def batch_of(tiny, scores=False, items=range(6), limit=None, tokenizer=None):
    """(arguments of ContrastiveModel.forward, arguments of FlagEmbedding's forward) for the same texts."""
    tokenizer = tokenizer or AutoTokenizer.from_pretrained(tiny / "bert")
    dataset = TrainingSet(rows_of(tiny, scores), use(), group=4, seed=5)
    rows = [dataset[0, item] for item in items]
    batch = Collator(tokenizer, use(), limit=limit)(rows)

    def tokenize(texts, max_length):
        return dict(BatchEncoding(tokenizer(texts, truncation=True, max_length=max_length, padding=True,
                                            return_tensors="pt")))

    features = {"queries": tokenize([row["query"] for row in rows], 16),
                "passages": tokenize([text for row in rows for text in row["passages"]], 48),
                "teacher_scores": [score for row in rows for score in row["teacher_scores"]] if scores else None}
    return batch, features


def gradients(model):
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None}
