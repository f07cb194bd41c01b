"""Query encoding with ONNX Runtime, which avoids the slow import of PyTorch at search time.

`save_query_encoder` exports the model with its pooling as an ONNX graph, once per index; `QueryEncoder` runs it. The
weights stay in float32. The export checks that the vectors equal those of encoder.Encoder.
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
KNOWN = 4096  # size of the cache of query vectors
CALL_COST = 16  # estimated overhead per batch, in tokens


def save_query_encoder(folder, encoder):
    """Export the Encoder `encoder` to `folder` for QueryEncoder.

    Raises UserError, and leaves no graph, when the export fails or its vectors differ (cosine below 0.9999).
    """
    import torch

    from embedding_finetune.hub import load
    from embedding_finetune.models.encoder import pooled_embeddings
    from embedding_finetune.models.modeling import load_encoder
    config = encoder.config
    tokenizer = load("AutoTokenizer", config.name, config.trusted)
    if not getattr(tokenizer, "is_fast", False):
        raise UserError(f"{config.title} has no fast tokenizer")
    tokenizer.backend_tokenizer.save(str(folder / TOKENIZER))
    model, dense = load_encoder(config.name, config.dense, config.trusted)
    batch = dict(tokenizer(list(SAMPLES[:2]), padding=True, padding_side="right", return_tensors="pt"))

    class Queries(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.model, self.dense = model, dense

        def forward(self, *tensors):
            inputs = dict(zip(batch, tensors))
            hidden = self.model(**inputs).last_hidden_state
            return pooled_embeddings(hidden, self.dense, inputs["attention_mask"], config)

    free = {name: {0: "texts", 1: "tokens"} for name in batch} | {"vectors": {0: "texts"}}
    write_json(folder / FACTS, {"use": asdict(config), "padding": tokenizer.pad_token_id})
    try:
        with warnings.catch_warnings(), torch.inference_mode():
            warnings.simplefilter("ignore")
            # The newer exporter (dynamo=True) gives the same vectors but takes half a minute instead of a second.
            torch.onnx.export(Queries().eval(), tuple(batch.values()), str(folder / GRAPH), dynamo=False,
                              input_names=list(batch), output_names=["vectors"], dynamic_axes=free)
        found, expected = (each.encode_queries(SAMPLES) for each in (QueryEncoder(folder), encoder))
        cosines = (found * expected).sum(axis=1) / np.linalg.norm(found, axis=1) / np.linalg.norm(expected, axis=1)
        lowest = cosines.min()
        if not lowest >= 0.9999:
            raise ValueError(f"its vectors differ, cosine {lowest:.5f}")
    except Exception as error:  # exporter and runtime raise many types of errors
        (folder / GRAPH).unlink(missing_ok=True)
        raise UserError(f"{config.title} cannot be exported to ONNX ({one_line(error)})") from error


class QueryEncoder:
    """Query encoder over the files of `save_query_encoder`; `config` holds the fields of the EncoderConfig."""

    def __init__(self, folder):
        import onnxruntime
        from tokenizers import Tokenizer

        facts = read_json(folder / FACTS)
        self.config = SimpleNamespace(**facts["use"])
        self.tokenizer = Tokenizer.from_file(str(folder / TOKENIZER))
        self.tokenizer.enable_truncation(self.config.query_max_len)
        self.tokenizer.no_padding()  # its file may enable padding; here batches are sorted by length and padded below
        self.padding = facts["padding"]
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = int(os.environ.get("OMP_NUM_THREADS") or 0)  # as in PyTorch; 0: all cores
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # frees idle cores
        self.session = onnxruntime.InferenceSession(str(folder / GRAPH), options, providers=["CPUExecutionProvider"])
        self.known = {}  # cache of query vectors: queries repeat, for example when paging
        self.inputs = [tensor.name for tensor in self.session.get_inputs()]

    def encode_queries(self, texts):
        """Embed queries with their prompt; returns float32 vectors of shape (texts, dimensions)."""
        values = {"input_ids": "ids", "attention_mask": "attention_mask", "token_type_ids": "type_ids"}
        missing = sorted(set(texts) - self.known.keys())
        found = self.tokenizer.encode_batch([self.config.query_prompt + text for text in missing])
        for rows in sub_batch_rows([len(tokens) for tokens in found], CALL_COST):
            for row in rows:
                found[row].pad(len(found[rows[0]]), pad_id=self.padding)
            batch = {name: np.array([getattr(found[row], values[name]) for row in rows], np.int64)
                     for name in self.inputs}
            self.known.update(zip((missing[row] for row in rows), self.session.run(None, batch)[0]))
        vectors = np.stack([self.known[text] for text in texts])
        for text in list(self.known)[:max(0, len(self.known) - KNOWN)]:
            del self.known[text]
        return vectors
