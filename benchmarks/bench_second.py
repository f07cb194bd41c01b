"""Reranking, side by side in one run: 30 passages of one query by late interaction and by a cross-encoder, this
package's against sentence-transformers', and against what the machine allows.

    python benchmarks/bench_second.py [--passages 2000] [--queries 50] [--depth 30] [--rounds 3] [--threads 2]

Passages and queries come from the file that PAIRS names, else from numpy's docstrings (at most 128 tokens); the model
is the bundled all-MiniLM-L6-v2, the cross-encoder has its size and a head with random weights, which costs what a
trained one costs. Queries are asked one by one; late interaction's time has the encoding of the query in it, and
`MaxSim alone` has not. A limit is the time for the same matrix products at the best rate of the round, or for reading
the same bytes of token vectors at the best rate of a copy. The last line of standard output is one JSON object.
"""

import argparse
import json
import os
import random
import shutil
import statistics
import tempfile
import time
from pathlib import Path

from bench_encode import operations, product_rate
from inputs import bundled_model, read_rows

LENGTH = 128
IN_BF16 = "cross-encoder in bf16"


def read_texts(passages, queries):
    """(queries, passages), two lists."""
    rows = random.Random(0).sample(rows := read_rows(os.environ.get("PAIRS")), min(passages, len(rows)))
    return [row["query"] for row in rows if row["query"]][:queries], [row["pos"][0] for row in rows]


def late_contenders(config, folder, passages, queries, places):
    """Name -> function of a query's number; operations and bytes of a query's products with its candidates' tokens."""
    import torch
    from sentence_transformers import MultiVectorEncoder

    from embedding_finetune.models.encoder import Encoder
    from embedding_finetune.models.multi_vector import maxsim_candidates
    from embedding_finetune.retrieval.late_interaction import LateInteraction
    from embedding_finetune.training.export import write_multi_vector

    shutil.copytree(config.name, folder)
    write_multi_vector(folder, config, ())
    stage = LateInteraction(Encoder(config)).index(dict(enumerate(passages)))
    encoded = [vectors.astype("float32") for vectors in stage.encoder.encode_query_tokens(queries)]
    theirs = MultiVectorEncoder(str(folder / "late"), device="cpu")
    stored = [torch.from_numpy(stage.vectors[start:end].copy()).float()
              for start, end in zip(stage.starts, stage.starts[1:])]

    def sentence_transformers(number):
        query = theirs.encode_query([queries[number]], show_progress_bar=False)
        return theirs.similarity(query, [stored[place] for place in places[number]])

    sizes = [sum(int(stage.starts[place + 1] - stage.starts[place]) for place in own) for own in places]
    width = stage.vectors.shape[1]
    work = [2 * len(query) * size * width for query, size in zip(encoded, sizes)]
    moved = [2 * size * width for size in sizes]
    return {"late interaction": lambda number: next(stage.scores([queries[number]], [places[number]])),
            "MaxSim alone": lambda number: maxsim_candidates(
                encoded[number], stage.vectors, stage.starts, places[number]),
            "late interaction, sentence-transformers": sentence_transformers}, work, moved


def cross_contenders(folder, passages, queries, places):
    """Name -> function of a query's number, and the operations of its candidates' matrix products."""
    from sentence_transformers import CrossEncoder as Theirs
    from transformers import AutoConfig

    from embedding_finetune.models.fast_layers import cpu_has
    from embedding_finetune.retrieval.cross_encoder import CrossEncoder, load_cross_encoder

    tokenizer, model = load_cross_encoder(bundled_model(), new_head=True)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    theirs = Theirs(folder, device="cpu", max_length=2 * LENGTH)
    pairs = [[(queries[number], passages[place]) for place in own] for number, own in enumerate(places)]
    lengths = [[len(ids) for ids in tokenizer(*map(list, zip(*own)))["input_ids"]] for own in pairs]
    work = [operations(AutoConfig.from_pretrained(folder), own) for own in lengths]

    def ours(kind):
        stage = CrossEncoder(folder, max_length=2 * LENGTH, precision=kind).index(dict(enumerate(passages)))
        return lambda number: next(stage.scores([queries[number]], [places[number]]))

    found = {"cross-encoder": ours("fp32"),
             "cross-encoder, sentence-transformers": lambda number: theirs.predict(pairs[number])}
    if cpu_has("bf16"):  # other processors would only emulate it
        found[IN_BF16] = ours("bf16")
    return found, work


def copy_rate(size=1 << 28):
    """Bytes a second that can be read: the best of ten copies, which read and write."""
    import numpy as np

    source, target, best = np.ones(size // 4, np.float32), np.empty(size // 4, np.float32), float("inf")
    for _ in range(10):
        began = time.perf_counter()
        np.copyto(target, source)
        best = min(best, time.perf_counter() - began)
    return 2 * size / best


def main():
    arguments = argparse.ArgumentParser()
    for name, default in {"passages": 2000, "queries": 50, "depth": 30, "rounds": 3, "threads": 2}.items():
        arguments.add_argument(f"--{name}", type=int, default=default)
    options = arguments.parse_args()

    import torch
    from transformers import AutoConfig, AutoTokenizer

    from embedding_finetune.models.encoder_config import EncoderConfig

    torch.set_num_threads(options.threads)
    path = bundled_model()
    tokenizer, config = AutoTokenizer.from_pretrained(path), AutoConfig.from_pretrained(path)
    queries, passages = ([tokenizer.decode(ids, skip_special_tokens=True) for ids in tokenizer(
        texts, truncation=True, max_length=LENGTH)["input_ids"]]
        for texts in read_texts(options.passages, options.queries))
    rng = random.Random(0)
    places = [rng.sample(range(len(passages)), options.depth) for _ in queries]
    encoder_config = EncoderConfig(label="", title="bundled", name=path, pooling="mean", query_prompt="",
                                   passage_prompt="", query_max_len=LENGTH, passage_max_len=2 * LENGTH)
    with tempfile.TemporaryDirectory() as folder:
        late, max_sim_work, moved = late_contenders(encoder_config, Path(folder) / "late", passages, queries, places)
        cross, cross_work = cross_contenders(f"{folder}/cross", passages, queries, places)
        found, times = late | cross, {}
        for score in found.values():
            score(0)  # loads
        for _ in range(options.rounds):
            rate, bytes_rate = product_rate(config, time.perf_counter), copy_rate()
            limits = {"limit of MaxSim by operations": sum(max_sim_work) / rate,
                      "limit of MaxSim by bytes": sum(moved) / bytes_rate,
                      "limit of the cross-encoder": sum(cross_work) / rate}
            for name, seconds in limits.items():
                times.setdefault(name, []).append(seconds / len(queries))
            for name, score in found.items():
                began = time.perf_counter()
                for number in range(len(queries)):
                    score(number)
                times.setdefault(name, []).append((time.perf_counter() - began) / len(queries))

    def ratio(one, other):
        return round(statistics.median(a / b for a, b in zip(times[one], times[other])), 3)

    print(f"{len(queries)} queries, {options.depth} passages each, {torch.get_num_threads()} threads")
    for name, seconds in times.items():
        each = " ".join(f"{1000 * second:.2f}" for second in seconds)
        print(f"{name:40} {1000 * statistics.median(seconds):8.2f} ms a query (each round: {each})")
    figures = {
        "late_ms": round(1000 * statistics.median(times["late interaction"]), 2),
        "max_sim_ms": round(1000 * statistics.median(times["MaxSim alone"]), 2),
        "cross_encoder_ms": round(1000 * statistics.median(times["cross-encoder"]), 1),
        "late_time_ratio_sentence_transformers": ratio("late interaction", "late interaction, sentence-transformers"),
        "cross_encoder_time_ratio_sentence_transformers": ratio("cross-encoder",
                                                                "cross-encoder, sentence-transformers"),
        "max_sim_share_of_limit_by_operations": ratio("limit of MaxSim by operations", "MaxSim alone"),
        "max_sim_share_of_limit_by_bytes": ratio("limit of MaxSim by bytes", "MaxSim alone"),
        "cross_encoder_share_of_limit": ratio("limit of the cross-encoder", "cross-encoder")}
    if IN_BF16 in times:
        figures["cross_encoder_bf16_ms"] = round(1000 * statistics.median(times[IN_BF16]), 1)
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
