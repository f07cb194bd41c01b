"""Reranking with cross-encoders, which read query and passage together and give one score per pair.

Each pair needs its own forward pass, so they are only used for reranking. (Nogueira and Cho, "Passage Re-ranking with
BERT", 2019, arXiv 1901.04085.)
"""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch

from embedding_finetune.artifacts.manifest import read_checksummed
from embedding_finetune.files import UserError, atomic_write, reading
from embedding_finetune.hub import load, model_content, positions_of
from embedding_finetune.models.batching import padded_batches
from embedding_finetune.retrieval.rerank import Reranker, check_finite
from embedding_finetune.settings import Settings

TEXTS = "texts.json"


def load_cross_encoder(name: str, trusted: bool = False, new_head: bool = False) -> tuple[Any, Any]:
    """Tokenizer and sequence classifier with one output of the model `name`.

    `new_head` adds a randomly initialised head to an encoder. Otherwise raises UserError when the model is no such
    classifier.
    """
    config = load("AutoConfig", name, trusted)
    is_one = "ForSequenceClassification" in str(config.architectures)
    if not new_head and not (is_one and config.num_labels == 1):
        raise UserError(f"{name} is no reranker that gives one score per pair ({config.num_labels} outputs, "
                        f"{', '.join(config.architectures or ['no architecture'])}): choose one such as "
                        "BAAI/bge-reranker-v2-m3")
    options = {} if is_one else {"num_labels": 1}
    return (load("AutoTokenizer", name, trusted),
            load("AutoModelForSequenceClassification", name, trusted, dtype=torch.float32, **options))


class CrossEncoder(Reranker):
    """Reranker with a cross-encoder; scores are its logits, float32."""

    depths = 5, 10, 20  # each passage costs as much as encoding a query and a passage

    def __init__(self, name: str, title: str = "", trusted: bool = False, max_length: int = 0,
                 precision: str = "fp32") -> None:
        """`name` is a folder or a model on the Hugging Face Hub, `precision` is fp32 or bf16.

        Pairs are truncated to `max_length` tokens; 0 means the model's own limit, at most 512.
        """
        self.name, self.trusted, self.max_length, self.cut = name, trusted, max_length, 0
        self.model: Any = None
        self.dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]
        self.description = f"reranker {title or name}" + (" in bfloat16" if precision == "bf16" else "")
        self.revision = model_content(name)
        self.device = "cuda:0" if torch.cuda.is_available() else "cpu"

    def _load(self) -> Any:
        self.tokenizer, model = load_cross_encoder(self.name, self.trusted)
        own = min(self.tokenizer.model_max_length, positions_of(self.name, self.trusted))
        self.max_length = self.max_length or min(own, 512)
        return model.to(self.device, self.dtype).eval()

    @classmethod
    def of(cls, settings: Settings, label: str) -> Self:
        folder = settings.paths.model(label)
        if not (folder / "config.json").is_file():
            raise UserError(f"{folder} holds no finished reranker: run `bash finetune_reranker.sh` first")
        record = read_checksummed(folder / "training.json", having={"settings": dict}) or {"settings": {}}
        base = settings.reranker_model or record["settings"].get("BASE_MODEL", "")
        return cls(str(folder), label, settings.trusts(str(folder), base), precision=settings.reranker_precision)

    def build(self, texts: list[str]) -> None:
        self.texts = texts

    def save(self, folder: Path) -> None:
        with atomic_write(folder / TEXTS) as file:
            json.dump(self.texts, file, ensure_ascii=False)

    def load(self, folder: Path) -> Self:
        with reading(folder / TEXTS):
            self.texts = json.loads((folder / TEXTS).read_text(encoding="utf-8"))
        return self

    def scores(self, texts: list[str], places: Iterable) -> Iterator[np.ndarray]:
        self.cut, pairs = 0, 0
        for query, own in zip(texts, places):
            yield self.pairs(query, [self.texts[place] for place in own])
            pairs += len(own)
        if self.cut:
            print(f"{self.description}: {self.cut} of {pairs} passages were truncated: with their query they have more "
                  f"than {self.max_length} tokens")

    @torch.inference_mode()
    def pairs(self, query: str, passages: list[str]) -> np.ndarray:
        """Scores of a query with each passage: float32 (passages,)."""
        if self.model is None:
            self.model = self._load()
        scores = np.zeros(len(passages), np.float32)
        if not passages:
            return scores
        tokens = self.tokenizer([query] * len(passages), passages, verbose=False)  # `scores` reports truncation
        long = [len(ids) > self.max_length for ids in tokens["input_ids"]]
        if any(long):
            self.cut += sum(long)
            tokens = self.tokenizer([query] * len(passages), passages, truncation="only_second",
                                    max_length=self.max_length)
        for rows, batch in padded_batches(self.tokenizer, tokens, 0, self.device):
            scores[rows] = self.model(**batch).logits[:, 0].float().cpu().numpy()
        return check_finite(scores, self.description)
