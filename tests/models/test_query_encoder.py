"""Queries by ONNX Runtime have the vectors of the Encoder: every pooling, prompts, cut texts, two architectures."""

import dataclasses

import numpy as np
import pytest
from tiny import tiny_bert, tiny_pairs, tiny_texts, tiny_xlmr

from embedding_finetune.files import UserError
from embedding_finetune.models import query_encoder
from embedding_finetune.models.encoder import Encoder
from embedding_finetune.models.encoder_config import EncoderConfig
from embedding_finetune.models.query_encoder import QueryEncoder, save_query_encoder

ROWS = tiny_pairs(30)
TEXTS = [row["query"] for row in ROWS] + ["", "x", "月亮", "willow " * 100]


@pytest.mark.parametrize("make", [tiny_bert, tiny_xlmr])
@pytest.mark.parametrize("pooling, normalize", [("cls", True), ("mean", False), ("last_token", True)])
def test_the_same_vectors(tmp_path, make, pooling, normalize):
    model = str(make(tmp_path / "model", tiny_texts(ROWS)))
    config = EncoderConfig("m", "m", model, pooling, "ask: ", "", 24, 64, normalize)
    save_query_encoder(tmp_path, Encoder(config))
    encoder, expected = QueryEncoder(tmp_path), Encoder(config).encode_queries(TEXTS)
    assert encoder.config.pooling == pooling
    assert np.abs(encoder.encode_queries(TEXTS) - expected).max() < 1e-5
    encoder.known = {text: None for text in map(str, range(query_encoder.KNOWN))}
    assert np.abs(encoder.encode_queries(TEXTS * 2)[len(TEXTS):] - expected).max() < 1e-5
    assert len(encoder.known) == query_encoder.KNOWN and set(TEXTS) < encoder.known.keys()
    unasked = Encoder(dataclasses.replace(config, query_prompt="")).encode_queries(TEXTS)
    assert np.abs(encoder.encode_queries(TEXTS) - unasked).max() > 1e-4


def test_a_graph_that_differs_is_refused(tmp_path, monkeypatch):
    model = str(tiny_bert(tmp_path / "model", tiny_texts(ROWS)))
    config = EncoderConfig("m", "my model", model, "mean", "", "", 24, 64)
    other = Encoder(config)
    monkeypatch.setattr(other, "encode_queries", lambda texts: np.eye(len(texts), 64, dtype=np.float32))
    with pytest.raises(UserError, match="my model cannot be exported to ONNX .its vectors differ"):
        save_query_encoder(tmp_path, other)
    assert not (tmp_path / query_encoder.GRAPH).exists()
