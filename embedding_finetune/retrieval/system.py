"""The System: what is evaluated, compared, recommended, searched and exported."""

from dataclasses import dataclass, replace
from typing import Self

from embedding_finetune.retrieval.base import RETRIEVERS

EMBEDDING_RERANKERS = "late", "m3"  # kinds of rerankers that use an embedding model
CROSS_ENCODER = "rerank"  # kind of reranker that uses a cross-encoder


@dataclass(frozen=True)
class System:
    """A retriever, alone or fused with BM25, and optionally reranked.

    Pooling, prompts and lengths belong to the model (see models.encoder_config); weights and depths are tuned on dev
    queries and stored in the result of the system (see evaluation.evaluate).
    """

    retriever: str            # label of a retriever without a model (bm25), or of a model
    runtime: str = "pytorch"  # what computes the embeddings: pytorch, onnx or openvino
    precision: str = "fp32"   # of a compiled model: fp32, bf16 or int8
    fused: bool = False       # whether the scores of BM25 are added
    reranker: str = ""        # kind of the reranker: late (interaction), m3 (three scores) or rerank (cross-encoder)
    reranker_model: str = ""  # label of its model

    @property
    def label(self) -> str:
        """The display name, which is also the name of the system's files."""
        label = self.encoder
        if self.reranker:
            label = f"{self.reranker_name}{'' if self.reranker_model == label else f'_on_{label}'}"
        return f"hybrid_{label}" if self.fused else label

    @property
    def encoder(self) -> str:
        """Label of the retriever's model in its runtime, which is also the name of its folder."""
        parts = [self.runtime, self.precision] if self.precision != "fp32" else [self.runtime]
        return self.retriever if self.runtime == "pytorch" else "-".join([self.retriever, *parts])

    @property
    def reranker_name(self) -> str:
        """Label of the reranker, without what it reranks."""
        return f"{self.reranker}_{self.reranker_model}"

    @property
    def first_stage(self) -> Self:
        """The retriever alone."""
        return replace(self, fused=False, reranker="", reranker_model="")

    @property
    def has_model(self) -> bool:
        """Whether the retriever is a model."""
        return self.retriever not in RETRIEVERS

    @property
    def is_single(self) -> bool:
        """Whether the system is a retriever alone."""
        return self == self.first_stage
