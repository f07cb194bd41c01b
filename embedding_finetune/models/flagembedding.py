"""The same model in FlagEmbedding, to compare its embeddings with ours."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from embedding_finetune.hub import ENCODER_HALF, load, snapshot

if TYPE_CHECKING:
    from embedding_finetune.models.encoder_config import EncoderConfig


def flag_embedder(config: EncoderConfig) -> Any:
    """FlagEmbedding's BaseEmbedder with the model, pooling, prompts and lengths of an EncoderConfig.

    Raises UserError when the model is not available. Returns None if FlagEmbedding cannot load the model (see
    unread_by_flagembedding).
    """
    from FlagEmbedding.inference.embedder.encoder_only.base import BaseEmbedder
    if unread_by_flagembedding(config, load("AutoConfig", config.name, config.trusted).model_type):
        return None
    return BaseEmbedder(snapshot(config.name), pooling_method=config.pooling, normalize_embeddings=config.normalize,
                        query_instruction_for_retrieval=config.query_prompt or None, devices=["cpu"], use_fp16=False,
                        query_max_length=config.query_max_len, passage_max_length=config.passage_max_len,
                        trust_remote_code=config.trusted)


def unread_by_flagembedding(config: EncoderConfig, model_type: str) -> str:
    """Why FlagEmbedding's embedder does not support a model of this EncoderConfig and type; "" if it does."""
    reasons = {"it has only cls and mean pooling": config.pooling == "last_token",
               "it has no Dense layers": config.dense,
               "it loads the encoder with its decoder": model_type in ENCODER_HALF}
    return " and ".join(reason for reason, holds in reasons.items() if holds)
