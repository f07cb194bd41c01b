"""A GPU: training at the tutorial's settings, its memory, the same losses as on the processor, and encoding.

    python benchmarks/bench_gpu.py [--pairs PAIRS.jsonl] [--hidden 768] [--layers 12]

The model is a bert-base of its configuration, with random weights and the vocabulary of the bundled model, which is
bert-base-uncased's: speed and memory ask for no more. Training is that of bench_train.py (batch 4, group 8, length 512,
dropout on), this package and FlagEmbedding. Encoding is in fp16 as always on a GPU, passages of up to 512 tokens;
the limit is the time that the matrix products of the same tokens, without any padding, would take at the best rate of
this model's shapes. The last line of standard output is one JSON object.
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from pathlib import Path

import bench_encode
import bench_train
from inputs import read_rows


def training(folder, steps):
    """Steps a second and GB at the peak by precision, and compared with FlagEmbedding."""
    found = {}
    for precision in ("bf16", "fp16", "fp32"):
        for contender in ("ours", "flagembedding"):
            task = contender, folder, steps, "dropout", bench_train.LENGTH, precision
            durations, _, gigabytes = bench_train.in_a_process(8, "contend", *task)
            rate = 1 / statistics.median(durations[5:])
            found |= {f"{contender}_{precision}_steps_per_second": round(rate, 2),
                      f"{contender}_{precision}_gb": round(gigabytes, 2)}
            print(f"training {precision} {bench_train.NAMES[contender]:28} {rate:6.2f} steps/s {gigabytes:6.2f} GB",
                  flush=True)
    return found


def losses(folder, steps=20):
    """How far the losses of each precision on the GPU are from those in fp32 on the processor, dropout off."""
    def of(precision, **more):
        return bench_train.in_a_process(8, "contend", "ours", folder, steps, "no_dropout", 128, precision, **more)[1]

    cpu = of("fp32", CUDA_VISIBLE_DEVICES="")
    return {f"{precision}_loss_difference": max(abs(one - other) for one, other in zip(of(precision), cpu, strict=True))
            for precision in ("fp32", "bf16", "fp16")}


def grad_cache(folder, queries=128, group=8, tokens=128, chunk=64):
    """GB at the peak and seconds of one step of many queries in bf16, without and with GradCache, and how far the
    gradients are apart, in fp32, as a share of their length."""
    import torch
    from transformers import AutoModel

    from embedding_finetune.training.loss import ContrastiveModel, grad_cache_step

    def step(chunk, queries, half):
        texts = queries * (1 + group)
        ids = torch.randint(1000, 30000, (texts, tokens), generator=torch.Generator().manual_seed(0)).cuda()
        subs = [{"input_ids": part, "attention_mask": torch.ones_like(part)} for part in ids.split(chunk or texts)]
        labels = {"rows": torch.arange(texts).cuda(), "passage_keys": torch.arange(queries * group).cuda(),
                  "positive_keys": torch.arange(0, queries * group, group).unsqueeze(1).cuda()}
        model = ContrastiveModel(AutoModel.from_pretrained(folder / "no_dropout"), temperature=0.02).cuda().train()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        with torch.autocast("cuda", torch.bfloat16, enabled=half):
            for _ in range(2):  # the first one warms up
                model.zero_grad()
                torch.cuda.synchronize()
                began = time.perf_counter()
                if chunk:
                    grad_cache_step(model, model, lambda loss: loss.backward(), subs, **labels)
                else:
                    model(subs, **labels)["loss"].backward()
                torch.cuda.synchronize()
        gradient = torch.cat([parameter.grad.flatten() for parameter in model.parameters()
                              if parameter.grad is not None])
        return gradient, torch.cuda.max_memory_allocated() / 1e9, time.perf_counter() - began

    plain, cached = (step(size, 16, half=False)[0] for size in (0, chunk))
    (_, whole, quick), (_, small, slow) = (step(size, queries, half=True) for size in (0, chunk))
    return {"grad_cache_gb": round(small, 2), "uncached_gb": round(whole, 2),
            "grad_cache_seconds": round(slow, 3), "uncached_seconds": round(quick, 3),
            "grad_cache_difference": float((plain - cached).norm() / plain.norm())}


def product_rate(shapes, dtype, tries=20):
    """Operations a second of products of these shapes (tokens, from, to, times) in their proportion, the best of
    several tries each."""
    import torch

    def least(tokens, columns, rows):
        x, weight = torch.randn(tokens, columns, device="cuda", dtype=dtype), torch.randn(
            rows, columns, device="cuda", dtype=dtype)
        best = float("inf")
        for _ in range(tries):
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            torch.nn.functional.linear(x, weight)
            end.record()
            torch.cuda.synchronize()
            best = min(best, start.elapsed_time(end) / 1000)
        return best

    return bench_encode.rate(shapes, least)


def encoding(folder, texts, compiled):
    """Texts a second of this package, FlagEmbedding and sentence-transformers, and the share of the card's limit."""
    import torch
    from FlagEmbedding.inference.embedder.encoder_only.base import BaseEmbedder
    from sentence_transformers import SentenceTransformer
    from tqdm.auto import tqdm
    from transformers import AutoConfig, AutoTokenizer

    from embedding_finetune.models.encoder import CHUNK, Encoder
    from embedding_finetune.models.encoder_config import EncoderConfig

    path = str(folder / "no_dropout")
    encoder_config = EncoderConfig(label="", title="", name=path, pooling="mean", query_prompt="", passage_prompt="",
                   query_max_len=512, passage_max_len=512)
    encoder = Encoder(encoder_config)
    encoder.encode_passages(texts[:64])
    if compiled:
        encoder._model = torch.compile(encoder._model, dynamic=True)
        encoder.encode_passages(texts)
    theirs = BaseEmbedder(path, pooling_method="mean", use_fp16=True, devices="cuda:0", batch_size=256)
    transformer = SentenceTransformer(path, device="cuda", model_kwargs={"torch_dtype": torch.float16})
    few = texts[:len(texts) // 4]
    config, lengths = AutoConfig.from_pretrained(path), [
        len(ids) for ids in AutoTokenizer.from_pretrained(path)(texts, truncation=True, max_length=512)["input_ids"]]
    rate = product_rate(bench_encode.products(config, 65536), torch.bfloat16)
    vectors, seconds = {}, {}
    contenders = {"ours": (encoder.encode_passages, texts), "flagembedding": (theirs.encode_corpus, few),
                  "sentence_transformers": (lambda some: transformer.encode(
                      some, batch_size=256, normalize_embeddings=True), few)}
    for name, (encode, some) in contenders.items():
        encode(some[:512])
        began = time.perf_counter()
        vectors[name] = encode(some)
        seconds[name] = (time.perf_counter() - began) / len(some)
        print(f"encoding {name:24} {1 / seconds[name]:8.0f} texts/s", flush=True)
    began = time.perf_counter()
    tokenised = encoder._tokenise(texts[:CHUNK], "passages")
    tokenising = (time.perf_counter() - began) / len(tokenised["input_ids"])
    began = time.perf_counter()
    encoder._compute(tokenised, tqdm(disable=True))
    computing = (time.perf_counter() - began) / len(tokenised["input_ids"])
    floor = bench_encode.operations(config, lengths) / rate / len(texts)
    cosine = (vectors["ours"][:len(few)] * vectors["flagembedding"]).sum(axis=1).min()
    return {"texts": len(texts), "tokens": sum(lengths), "texts_per_second": round(1 / seconds["ours"]),
            "throughput_ratio_flagembedding": round(seconds["flagembedding"] / seconds["ours"], 2),
            "throughput_ratio_sentence_transformers": round(seconds["sentence_transformers"] / seconds["ours"], 2),
            "share_of_limit": round(floor / seconds["ours"], 3),
            "share_of_limit_computing": round(floor / computing, 3),
            "tokenising_share": round(tokenising / seconds["ours"], 3), "min_cosine": float(cosine),
            "tflops_of_products": round(rate / 1e12),
            "tflops_of_squares": round(product_rate(((8192, 8192, 8192, 1),), torch.bfloat16) / 1e12)}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", default=os.environ.get("PAIRS"))
    parser.add_argument("--hidden", type=int, default=768)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--texts", type=int, default=60000)
    parser.add_argument("--compiled", action="store_true", help="the encoder through torch.compile")
    parser.add_argument("--only", nargs="+", default=["training", "losses", "grad_cache", "encoding"])
    options = parser.parse_args()

    import torch

    if not torch.cuda.is_available():
        raise SystemExit("error: no GPU here; `make bench-train` and `make bench-encode` measure a processor")
    pairs = read_rows(options.pairs)
    passages = sorted({text for row in pairs for text in row["pos"] if len(text) > 100})
    texts = [f"{number}: {passages[number % len(passages)]}" for number in range(options.texts)]  # no two are equal
    config = {"hidden_size": options.hidden, "num_hidden_layers": options.layers,
              "num_attention_heads": options.hidden // 64, "intermediate_size": 4 * options.hidden}
    result = {"card": torch.cuda.get_device_name()}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        bench_train.prepare(folder, pairs, count=4 * options.steps, config=config)
        sections = {"training": lambda: training(folder, options.steps), "losses": lambda: losses(folder),
                    "grad_cache": lambda: grad_cache(folder),
                    "encoding": lambda: encoding(folder, texts, options.compiled)}
        for section in options.only:
            found = sections[section]()
            print(section, json.dumps(found), flush=True)
            result |= found
    print(json.dumps(result))


if __name__ == "__main__":
    main()
