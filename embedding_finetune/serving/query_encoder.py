"""Queries turned into vectors by ONNX Runtime: a search need not wait for PyTorch, whose import takes longer than it.

`save_query_encoder` writes, once an index, the model with its pooling as a graph of ONNX; `QueryEncoder` runs it. The
weights stay float32, and the vectors are those of encoder.Encoder, which is checked when the graph is written.
"""

import os
import warnings
from dataclasses import asdict
from types import SimpleNamespace

import numpy as np

from embedding_finetune.files import UserError, one_line, read_json, write_json
from embedding_finetune.models.batching import sub_batch_rows

GRAPH, TOKENIZER, FACTS = "queries.onnx", "tokenizer.json", "queries.json"
SAMPLES = ("how far is the moon", "what is a dot product?", "x", "月亮有多远", "one two three four five " * 30)
KNOWN = 4096  # queries whose vectors are kept in memory
CALL_COST = 16  # of a batch beside its tokens, in tokens: an estimate


def save_query_encoder(folder, encoder):
    """Write what QueryEncoder reads to `folder`; `encoder` is the Encoder of the model.

    Raises UserError, and leaves no graph, when the model cannot be written as a graph, or when its vectors differ
    (cosine below 0.9999).
    """
    import torch

    from embedding_finetune.hub import load
    from embedding_finetune.models.encoder import pooled_embeddings
    from embedding_finetune.models.modeling import load_encoder
    config = encoder.config
    tokenizer = load("AutoTokenizer", config.name, config.trusted)
    if not getattr(tokenizer, "is_fast", False):
        raise UserError(f"{config.title} has a tokenizer that only Python code can run")
    tokenizer.backend_tokenizer.save(str(folder / TOKENIZER))
    model, dense = load_encoder(config.name, config.dense, config.trusted)
    batch = dict(tokenizer(list(SAMPLES[:2]), padding=True, padding_side="right", return_tensors="pt"))

    class Queries(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.model, self.dense = model, dense

        def forward(self, *tensors):
            given = dict(zip(batch, tensors))
            return pooled_embeddings(self.model(**given).last_hidden_state, self.dense, given["attention_mask"], config)

    free = {name: {0: "texts", 1: "tokens"} for name in batch} | {"vectors": {0: "texts"}}
    write_json(folder / FACTS, {"use": asdict(config), "padding": tokenizer.pad_token_id})
    try:
        with warnings.catch_warnings(), torch.inference_mode():
            warnings.simplefilter("ignore")
            # The newer exporter (dynamo=True) gives the same vectors, and takes half a minute instead of a second.
            torch.onnx.export(Queries().eval(), tuple(batch.values()), str(folder / GRAPH), dynamo=False,
                              input_names=list(batch), output_names=["vectors"], dynamic_axes=free)
        one, other = (which.encode_queries(SAMPLES) for which in (QueryEncoder(folder), encoder))
        lowest = ((one * other).sum(axis=1) / np.linalg.norm(one, axis=1) / np.linalg.norm(other, axis=1)).min()
        if not lowest >= 0.9999:
            raise ValueError(f"its vectors are others, cosine {lowest:.5f}")
    except Exception as error:  # exporter and runtime have errors of their own
        (folder / GRAPH).unlink(missing_ok=True)
        raise UserError(f"{config.title} cannot be written as a graph ({one_line(error)})") from error


class QueryEncoder:
    """What `save_query_encoder` wrote, as an encoder of queries; `use` says as much of it as a reader wants to know."""

    def __init__(self, folder):
        import onnxruntime
        from tokenizers import Tokenizer

        facts = read_json(folder / FACTS)
        self.config = SimpleNamespace(**facts["use"])
        self.tokenizer = Tokenizer.from_file(str(folder / TOKENIZER))
        self.tokenizer.enable_truncation(self.config.query_max_len)
        self.tokenizer.no_padding()  # which its file may ask for: here texts of like length are padded together
        self.padding = facts["padding"]
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = int(os.environ.get("OMP_NUM_THREADS") or 0)  # as PyTorch reads it; 0: all
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # the cores are others', too
        self.session = onnxruntime.InferenceSession(str(folder / GRAPH), options, providers=["CPUExecutionProvider"])
        self.known = {}  # the vectors of the last queries: people ask alike, and page by page
        self.inputs = [given.name for given in self.session.get_inputs()]

    def encode_queries(self, texts):
        """Vectors of queries, prompt included; float32 of shape (texts, dimensions)."""
        values = {"input_ids": "ids", "attention_mask": "attention_mask", "token_type_ids": "type_ids"}
        missing = sorted(set(texts) - self.known.keys())
        found = self.tokenizer.encode_batch([self.config.query_prompt + text for text in missing])
        for some in sub_batch_rows([len(tokens) for tokens in found], CALL_COST):
            for row in some:
                found[row].pad(len(found[some[0]]), pad_id=self.padding)
            batch = {name: np.array([getattr(found[row], values[name]) for row in some], np.int64)
                     for name in self.inputs}
            self.known.update(zip((missing[row] for row in some), self.session.run(None, batch)[0]))
        vectors = np.stack([self.known[text] for text in texts])
        for text in list(self.known)[:max(0, len(self.known) - KNOWN)]:
            del self.known[text]
        return vectors
