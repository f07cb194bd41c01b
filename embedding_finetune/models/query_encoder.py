"""Query encoding with ONNX Runtime, which avoids the slow import of PyTorch at search time.

`save_query_encoder` exports the model with its pooling as an ONNX graph, once per index; `QueryEncoder` runs it. The
weights stay in float32. The export checks that the vectors equal those of encoder.Encoder.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING

import numpy as np

from embedding_finetune.files import UserError, one_line, read_json, write_json
from embedding_finetune.models.batching import BATCH_OVERHEAD_TOKENS, sub_batch_rows
from embedding_finetune.models.compiled_model import MIN_COSINE, export_onnx, lowest_cosine, onnx_session

if TYPE_CHECKING:
    from embedding_finetune.models.encoder import Encoder

GRAPH, TOKENIZER, FACTS = "queries.onnx", "tokenizer.json", "queries.json"
SAMPLES = ("how far is the moon", "what is a dot product?", "x", "月亮有多远", "one two three four five " * 30)
KNOWN = 4096  # size of the cache of query vectors
INPUTS = {"input_ids": "ids", "attention_mask": "attention_mask", "token_type_ids": "type_ids"}  # graph -> tokenizers


def save_query_encoder(folder: Path, encoder: Encoder) -> None:
    """Export the Encoder `encoder` to `folder` for QueryEncoder.

    Raises UserError, and leaves no graph, when the export fails or its vectors differ (cosine below MIN_COSINE).
    """
    from embedding_finetune.hub import load
    from embedding_finetune.models.encoder import pooled_embeddings
    from embedding_finetune.models.modeling import load_encoder
    config = encoder.config
    tokenizer = load("AutoTokenizer", config.name, config.trusted)
    if not getattr(tokenizer, "is_fast", False):
        raise UserError(f"{config.title} has no fast tokenizer")
    tokenizer.backend_tokenizer.save(str(folder / TOKENIZER))
    write_json(folder / FACTS, {"use": asdict(config), "padding": tokenizer.pad_token_id})
    model, dense = load_encoder(config.name, config.dense, config.trusted)
    batch = dict(tokenizer(list(SAMPLES[:2]), padding=True, padding_side="right", return_tensors="pt"))

    def vectors(**inputs):
        return pooled_embeddings(model(**inputs).last_hidden_state, dense, inputs["attention_mask"], config)

    try:
        export_onnx(folder / GRAPH, batch, vectors, {"vectors": {0: "texts"}}, model, dense)
        lowest = lowest_cosine(QueryEncoder(folder).encode_queries(SAMPLES), encoder.encode_queries(SAMPLES))
        if not lowest >= MIN_COSINE:
            raise ValueError(f"its vectors differ, cosine {lowest:.5f}")
    except Exception as error:  # exporter and runtime raise many types of errors
        (folder / GRAPH).unlink(missing_ok=True)
        raise UserError(f"{config.title} cannot be exported to ONNX ({one_line(error)})") from error


class QueryEncoder:
    """Query encoder over the files of `save_query_encoder`; `config` holds the fields of the EncoderConfig."""

    def __init__(self, folder: Path) -> None:
        from tokenizers import Tokenizer

        facts = read_json(folder / FACTS) or {}
        self.config = SimpleNamespace(**facts["use"])
        self.tokenizer = Tokenizer.from_file(str(folder / TOKENIZER))
        self.tokenizer.enable_truncation(self.config.query_max_len)
        self.tokenizer.no_padding()  # its file may enable padding; here batches are sorted by length and padded below
        self.padding = facts["padding"]
        threads = int(os.environ.get("OMP_NUM_THREADS") or 0)  # as in PyTorch
        self.session = onnx_session(folder / GRAPH, threads, **{"intra_op.allow_spinning": "0"})  # frees idle cores
        self.known = {}  # cache of query vectors: queries repeat, for example when paging

    def encode_queries(self, texts: Sequence[str]) -> np.ndarray:
        """Embed queries with their prompt; returns float32 vectors of shape (texts, dimensions)."""
        missing = sorted(set(texts) - self.known.keys())
        tokens = self.tokenizer.encode_batch([self.config.query_prompt + text for text in missing])
        inputs = [tensor.name for tensor in self.session.get_inputs()]
        for rows in sub_batch_rows([len(each) for each in tokens], BATCH_OVERHEAD_TOKENS["cpu"]):
            for row in rows:
                tokens[row].pad(len(tokens[rows[0]]), pad_id=self.padding)
            batch = {name: np.array([getattr(tokens[row], INPUTS[name]) for row in rows], np.int64) for name in inputs}
            self.known.update(zip((missing[row] for row in rows), self.session.run(None, batch)[0]))
        vectors = np.stack([self.known[text] for text in texts])
        for text in list(self.known)[:max(0, len(self.known) - KNOWN)]:
            del self.known[text]
        return vectors
