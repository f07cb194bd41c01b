"""Queries by ONNX Runtime have the vectors of the Encoder: every pooling, prompts, cut texts, two architectures."""

import dataclasses

import numpy as np
import pytest
from tiny import tiny_bert, tiny_pairs, tiny_texts, tiny_xlmr

from embedding_finetune.files import UserError
from embedding_finetune.retrieval import onnx_queries
from embedding_finetune.retrieval.encoder import Encoder
from embedding_finetune.retrieval.model_use import ModelUse
from embedding_finetune.retrieval.onnx_queries import QueryEncoder, save_query_encoder

ROWS = tiny_pairs(30)
TEXTS = [row["query"] for row in ROWS] + ["", "x", "月亮", "willow " * 100]


@pytest.mark.parametrize("make", [tiny_bert, tiny_xlmr])
@pytest.mark.parametrize("pooling, normalize", [("cls", True), ("mean", False), ("last_token", True)])
def test_the_same_vectors(tmp_path, make, pooling, normalize):
    use = ModelUse("m", "m", str(make(tmp_path / "model", tiny_texts(ROWS))), pooling, "ask: ", "", 24, 64, normalize)
    save_query_encoder(tmp_path, Encoder(use))
    encoder, expected = QueryEncoder(tmp_path), Encoder(use).encode_queries(TEXTS)
    assert encoder.use.pooling == pooling
    assert np.abs(encoder.encode_queries(TEXTS) - expected).max() < 1e-5
    encoder.known = {text: None for text in map(str, range(onnx_queries.KNOWN))}
    assert np.abs(encoder.encode_queries(TEXTS * 2)[len(TEXTS):] - expected).max() < 1e-5
    assert len(encoder.known) == onnx_queries.KNOWN and set(TEXTS) < encoder.known.keys()
    unasked = Encoder(dataclasses.replace(use, query_prompt="")).encode_queries(TEXTS)
    assert np.abs(encoder.encode_queries(TEXTS) - unasked).max() > 1e-4


def test_a_graph_that_differs_is_refused(tmp_path, monkeypatch):
    use = ModelUse("m", "my model", str(tiny_bert(tmp_path / "model", tiny_texts(ROWS))), "mean", "", "", 24, 64)
    other = Encoder(use)
    monkeypatch.setattr(other, "encode_queries", lambda texts: np.eye(len(texts), 64, dtype=np.float32))
    with pytest.raises(UserError, match="my model cannot be written as a graph .its vectors are others"):
        save_query_encoder(tmp_path, other)
    assert not (tmp_path / onnx_queries.GRAPH).exists()
