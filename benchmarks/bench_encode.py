"""Encoding, side by side in one run: FlagEmbedding's BaseEmbedder, this package's Encoder, and sentence-transformers.

    python benchmarks/bench_encode.py [--texts 512] [--rounds 3] [--threads 2] [--clock wall] [--experiments]

Passages come from the JSONL file of `{"query", "pos": [..]}` that the variable PAIRS names, else from docstrings of
numpy; the model is the bundled all-MiniLM-L6-v2 with mean pooling, passages of up to 512 tokens, all in fp32. Each
round lets every contender encode all texts, so that a busy machine wrongs none; a ratio is the median over the rounds.
The matrix-product limit is the time that the products of the same tokens, without any padding, would take at the best
rate measured in the round for the shapes of this model. On a machine that others load as well, --clock cpu --threads 1
counts the seconds of the processor instead of the clock's. --experiments adds torch.compile and ONNX Runtime (pip
install onnx onnxscript onnxruntime). The last line of standard output is one JSON object.
"""

import argparse
import json
import os
import random
import statistics
import tempfile
import time
from pathlib import Path

from inputs import bundled_model, read_rows


def read_texts(count):
    """A sample of passages."""
    texts = sorted({text for row in read_rows(os.environ.get("PAIRS")) for text in row["pos"] if len(text) > 100})
    return random.Random(0).sample(texts, min(count, len(texts)))


def contenders(path, experiments):
    """Name -> function from texts to vectors."""
    from FlagEmbedding.inference.embedder.encoder_only.base import BaseEmbedder
    from sentence_transformers import SentenceTransformer

    from embedding_finetune.models.encoder import Encoder
    from embedding_finetune.models.encoder_config import EncoderConfig

    config = EncoderConfig(label="", title="bundled", name=path, pooling="mean", query_prompt="", passage_prompt="",
                   query_max_len=512, passage_max_len=512)
    theirs = BaseEmbedder(path, pooling_method="mean", use_fp16=False, devices="cpu")
    transformer = SentenceTransformer(path, device="cpu")
    transformer.max_seq_length = 512
    found = {"flagembedding": theirs.encode_corpus, "ours": Encoder(config).encode_passages,
             "sentence_transformers": lambda texts: transformer.encode(texts, normalize_embeddings=True)}
    if experiments:
        found["ours, torch.compile"] = compiled(plain(Encoder(config))).encode_passages
        found["ours, ONNX Runtime"] = onnx(plain(Encoder(config))).encode_passages
    return found


def plain(encoder):
    """An Encoder with its model loaded and PyTorch's own linear layers in it, which compilers know."""
    import torch

    encoder._load()
    for layer in encoder._model.modules():
        if isinstance(layer, torch.nn.Linear):
            layer.__class__ = torch.nn.Linear
    return encoder


def compiled(encoder):
    """The same loop around a compiled model: dynamic shapes, weights frozen into the graph."""
    import torch
    import torch._inductor.config

    torch._inductor.config.freezing = True
    encoder._model = torch.compile(encoder._model, dynamic=True)
    return encoder


def onnx(encoder):
    """The same loop around ONNX Runtime, the graph optimised as far as it goes on a CPU."""
    import onnxruntime
    import torch
    from transformers.modeling_outputs import BaseModelOutput

    names = ["input_ids", "attention_mask", "token_type_ids"]

    class Hidden(torch.nn.Module):
        def __init__(self, model):
            super().__init__()
            self.model = model

        def forward(self, *inputs):
            return self.model(**dict(zip(names, inputs))).last_hidden_state

    file = Path(tempfile.mkdtemp()) / "model.onnx"
    axes = {0: torch.export.Dim("texts", max=4096), 1: torch.export.Dim("tokens", max=512)}
    example = tuple(torch.ones(3, 7, dtype=torch.long) for _ in names)
    with torch.no_grad():
        torch.onnx.export(Hidden(encoder._model), example, file, input_names=names, dynamo=True,
                          dynamic_shapes=((axes,) * 3,), verbose=False)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])

    class Run(torch.nn.Module):
        def forward(self, **batch):
            hidden = session.run(None, {name: batch[name].numpy() for name in names})[0]
            return BaseModelOutput(torch.from_numpy(hidden))

    encoder._model = Run()
    return encoder


def operations(config, lengths):
    """Floating-point operations of the matrix products for texts of these lengths in tokens, none spent on padding."""
    hidden, inner = config.hidden_size, config.intermediate_size
    tokens, squares = sum(lengths), sum(length * length for length in lengths)
    return config.num_hidden_layers * (2 * tokens * (4 * hidden * hidden + 2 * hidden * inner) + 4 * squares * hidden)


def products(config, tokens):
    """The matrix products of a layer for so many tokens: (tokens, from, to, how often)."""
    hidden, inner = config.hidden_size, config.intermediate_size
    return (tokens, hidden, hidden, 4), (tokens, hidden, inner, 1), (tokens, inner, hidden, 1)


def rate(shapes, least):
    """Operations a second of products in their proportion, of which `least(tokens, from, to)` gives the least seconds
    of one."""
    work = sum(times * 2 * tokens * columns * rows for tokens, columns, rows, times in shapes)
    return work / sum(times * least(tokens, columns, rows) for tokens, columns, rows, times in shapes)


def product_rate(config, clock, tokens=4096, seconds=1.0):
    """Operations a second of this model's three shapes of product, in their proportion; the best of many tries."""
    import torch

    def least(tokens, columns, rows):
        x, weight, bias = torch.randn(tokens, columns), torch.randn(rows, columns), torch.randn(rows)
        best, until = float("inf"), time.perf_counter() + seconds / len(shapes)
        while time.perf_counter() < until:
            started = clock()
            with torch.inference_mode():
                torch.nn.functional.linear(x, weight, bias)
            best = min(best, clock() - started)
        return best

    shapes = products(config, tokens)
    return rate(shapes, least)


def main():
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--texts", type=int, default=512)
    arguments.add_argument("--rounds", type=int, default=3)
    arguments.add_argument("--threads", type=int, default=2)
    arguments.add_argument("--clock", choices=("wall", "cpu"), default="wall")
    arguments.add_argument("--experiments", action="store_true")
    options = arguments.parse_args()

    import torch
    from transformers import AutoConfig, AutoTokenizer

    torch.set_num_threads(options.threads)
    clock = {"wall": time.perf_counter, "cpu": time.process_time}[options.clock]
    path, texts = bundled_model(), read_texts(options.texts)
    tokens = AutoTokenizer.from_pretrained(path)(texts, truncation=True, max_length=512)
    lengths = [len(ids) for ids in tokens["input_ids"]]
    config = AutoConfig.from_pretrained(path)
    work = operations(config, lengths)
    found = contenders(path, options.experiments)
    vectors = {name: encode(texts[:32]) for name, encode in found.items()}  # warms up, compiles
    times = {name: [] for name in (*found, "matrix products")}
    for _ in range(options.rounds):
        times["matrix products"].append(work / product_rate(config, clock))
        for name, encode in found.items():
            started = clock()
            vectors[name] = encode(texts)
            times[name].append(clock() - started)

    def ratio(slow, fast):
        return statistics.median(a / b for a, b in zip(times[slow], times[fast]))

    print(f"{len(texts)} texts, {sum(lengths)} tokens, {work / 1e9:.0f} GFLOP of matrix products, "
          f"{torch.get_num_threads()} threads")
    cosine = {name: float((vectors[name] * vectors["flagembedding"]).sum(1).min()) for name in found}
    for name, seconds in times.items():
        detail = f"minimal cosine {cosine[name]:.7f}" if name in found else "the limit"
        each = " ".join(f"{second:.1f}" for second in seconds)
        print(f"{name:24} {len(texts) / statistics.median(seconds):7.1f} texts/s (each round, s: {each}), "
              f"{ratio('matrix products', name):4.0%} of the limit, {detail}")
    others = {name.split(", ")[1].lower().replace(" ", "_").replace(".", "_"): name for name in found if ", " in name}
    print(json.dumps({
        "throughput_ratio_flagembedding": round(ratio("flagembedding", "ours"), 3),
        "throughput_ratio_sentence_transformers": round(ratio("sentence_transformers", "ours"), 3),
        "min_cosine": round(cosine["ours"], 7),
        "share_of_limit": round(ratio("matrix products", "ours"), 3),
        **{f"throughput_ratio_{key}_over_ours": round(ratio("ours", name), 3) for key, name in others.items()},
        "texts_per_second": round(len(texts) / statistics.median(times["ours"]), 1)}))


if __name__ == "__main__":
    main()
