"""Training, side by side in one run: FlagEmbedding's trainer, this package's, and sentence-transformers'.

    python benchmarks/bench_train.py [--pairs PAIRS.jsonl] [--threads 2] [--steps 8]

PAIRS.jsonl has a `{"query", "pos": [..]}` a line (default: the environment variable PAIRS, else docstrings of numpy).
Every contender trains in a process of its own, at the tutorial's settings (batch 4, group 8, length 512, dropout on),
on the bundled MiniLM. A row has one positive and as many negatives as a group takes, so that nothing is left to draw
and all contenders train on the same groups, FlagEmbedding and this package in the same order. Each round runs all of
them, so that a busy machine wrongs none. The last line of standard output is one JSON object.
"""

import argparse
import functools
import importlib.metadata
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from inputs import ROOT, bundled_model, peak_gb, read_rows

BATCH, GROUP, LENGTH = 4, 8, 512
NAMES = {"flagembedding": f"FlagEmbedding {importlib.metadata.version('FlagEmbedding')}",
         "ours": "embedding_finetune.training",
         "mnrl": "sentence-transformers MultipleNegativesRankingLoss",
         "cached_mnrl": "sentence-transformers CachedMultipleNegativesRankingLoss"}


def prepare(folder, pairs, count=400, config=None):
    """training.json with random negatives; the bundled model with and without dropout or, with the values of `config`,
    a BERT of random weights with the bundled model's vocabulary."""
    import torch
    import transformers
    from transformers import AutoModel, AutoTokenizer, BertConfig, BertModel

    transformers.logging.disable_progress_bar()
    draw = random.Random(0)
    pool = sorted({text for row in pairs for text in row["pos"]})
    with open(folder / "training.json", "w", encoding="utf-8") as file:
        for row in draw.sample(pairs, min(count, len(pairs))):
            negatives = draw.sample([text for text in pool if text not in row["pos"]], GROUP - 1)
            file.write(json.dumps({"query": row["query"], "pos": row["pos"][:1], "neg": negatives}) + "\n")
    for name, dropout in (("dropout", 0.1), ("no_dropout", 0.0)):
        dropouts = {"hidden_dropout_prob": dropout, "attention_probs_dropout_prob": dropout}
        torch.manual_seed(0)
        model = (AutoModel.from_pretrained(bundled_model(), **dropouts) if config is None
                 else BertModel(BertConfig(**config, **dropouts)))
        model.save_pretrained(folder / name)
        AutoTokenizer.from_pretrained(bundled_model()).save_pretrained(folder / name)


def flags(folder, model, output, steps, length, precision):
    import torch

    values = {"model_name_or_path": folder / model, "train_data": folder / "training.json",
              "cache_path": folder / "cache", "output_dir": output, "train_group_size": GROUP, "query_max_len": length,
              "passage_max_len": length, "temperature": 0.02, "per_device_train_batch_size": BATCH,
              "learning_rate": 1e-5, "warmup_steps": 0.1, "max_steps": steps, "seed": 42, "logging_steps": steps,
              "save_strategy": "no", "disable_tqdm": True}
    values |= {"fp32": {}}.get(precision, {precision: True}) | ({} if torch.cuda.is_available() else {"use_cpu": True})
    return [word for name, value in values.items() for word in (f"--{name}", str(value))]


def prepared(folder, model, output, steps, length, precision):
    """`output` with the same settings for our trainer; FlagEmbedding masks no false negatives."""
    import torch

    from embedding_finetune.models.encoder_config import EncoderConfig
    from embedding_finetune.training.arguments import TrainingSettings, write_settings

    name = str(folder / model)
    write_settings(output, TrainingSettings(
        "bench", "bi_encoder", EncoderConfig("", name, name, "cls", "", "", length, length),
        str(folder / "training.json"), "", batch_size=BATCH, train_group_size=GROUP, learning_rate=1e-5, epochs=1,
        seed=42, precision=precision, cpu=not torch.cuda.is_available(), mask_false_negatives=False,
        logging_steps=steps, save_steps=steps, max_steps=steps))
    return output


def contend(contender, folder, steps, model="dropout", length=LENGTH, precision="fp32"):
    """Train in this process; returns the duration of each step (data included), each step's loss, and the GB that a
    GPU had to give at the peak."""
    import torch
    import transformers

    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    moments, losses = [], []

    class Clock(transformers.TrainerCallback):
        def on_train_begin(self, *args, **kwargs):
            moments.append(time.perf_counter())

        on_step_end = on_train_begin

    def timed(trainer_class):
        original = trainer_class.compute_loss

        def compute_loss(self, *args, **kwargs):
            loss = original(self, *args, **kwargs)
            losses.append(loss.item())
            return loss

        trainer_class.compute_loss = compute_loss
        original_init = transformers.Trainer.__init__

        @functools.wraps(original_init)  # FlagEmbedding looks at the signature
        def init(self, *args, **kwargs):
            original_init(self, *args, **kwargs)
            self.add_callback(Clock())

        transformers.Trainer.__init__ = init

    with tempfile.TemporaryDirectory(dir=folder) as output:
        arguments = flags(folder, model, output, steps, length, precision)
        if contender == "ours":
            from embedding_finetune.training import trainer, worker

            worker.export = lambda *args, **kwargs: None
            timed(trainer.Trainer)
            worker.train(prepared(folder, model, Path(output), steps, length, precision))
        elif contender == "flagembedding":
            from FlagEmbedding.finetune.embedder.encoder_only import base

            timed(base.EncoderOnlyEmbedderTrainer)
            parser = transformers.HfArgumentParser((
                base.EncoderOnlyEmbedderModelArguments, base.EncoderOnlyEmbedderDataArguments,
                base.EncoderOnlyEmbedderTrainingArguments))
            base.EncoderOnlyEmbedderRunner(*parser.parse_args_into_dataclasses(arguments)).run()
        else:
            _sentence_transformers(contender, folder, steps, output, timed)
    gpu = torch.cuda.max_memory_reserved() / 1e9 if torch.cuda.is_available() else 0
    return [later - earlier for earlier, later in zip(moments, moments[1:])], losses, gpu


def _sentence_transformers(contender, folder, steps, output, timed):
    import datasets
    from sentence_transformers import (
        SentenceTransformer,
        SentenceTransformerTrainer,
        SentenceTransformerTrainingArguments,
        losses,
    )
    from sentence_transformers.sentence_transformer.modules import Normalize, Pooling, Transformer

    transformer = Transformer(str(folder / "dropout"), max_seq_length=LENGTH)
    model = SentenceTransformer(modules=[transformer, Pooling(384, pooling_mode="cls"), Normalize()], device="cpu")
    columns = [{"anchor": row["query"], "positive": row["pos"][0],
                **{f"negative_{number}": text for number, text in enumerate(row["neg"])}}
               for row in read_rows(folder / "training.json")]
    loss = (losses.MultipleNegativesRankingLoss(model, scale=50) if contender == "mnrl"
            else losses.CachedMultipleNegativesRankingLoss(model, scale=50, mini_batch_size=4))
    timed(SentenceTransformerTrainer)
    arguments = SentenceTransformerTrainingArguments(
        output, per_device_train_batch_size=BATCH, max_steps=steps, learning_rate=1e-5, use_cpu=True,
        save_strategy="no", logging_steps=steps, seed=42, disable_tqdm=True)
    SentenceTransformerTrainer(model, arguments, train_dataset=datasets.Dataset.from_list(columns), loss=loss).train()


def peak_memory(folder, chunk, batch=256, group=GROUP, length=16):
    """One step of `batch` queries and their groups, texts of `length` tokens; returns (GB at the peak, seconds)."""
    import torch
    from transformers import AutoModel

    from embedding_finetune.training.loss import ContrastiveModel, grad_cache_step

    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    texts = batch * (1 + group)
    ids = torch.randint(1000, 30000, (texts, length), generator=torch.Generator().manual_seed(0))
    subs = [{"input_ids": part, "attention_mask": torch.ones_like(part)} for part in ids.split(chunk or texts)]
    labels = {"rows": torch.arange(texts), "passage_keys": torch.arange(batch * group),
              "positive_keys": torch.arange(0, batch * group, group).unsqueeze(1)}
    model = ContrastiveModel(AutoModel.from_pretrained(folder / "dropout"), temperature=0.02).train()
    began = time.perf_counter()
    if chunk:
        grad_cache_step(model, model, lambda loss: loss.backward(), subs, **labels)
    else:
        model(subs, **labels)["loss"].backward()
    return peak_gb(), time.perf_counter() - began


def in_a_process(threads, task, *arguments, **more):
    """Run one of this file's tasks in a fresh process, with `more` in its environment; its result."""
    environment = os.environ | more | {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads),
                                "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    run = subprocess.run([sys.executable, __file__, "--task", json.dumps([task, *map(str, arguments)])],
                         env=environment, capture_output=True, text=True)
    if run.returncode:
        sys.exit(f"error: {task} {arguments} failed:\n{run.stderr[-3000:]}")
    return json.loads(run.stdout.splitlines()[-1])


def run_task(task, *arguments):
    if task == "contend":
        contender, folder, steps, *options = arguments
        model, length, precision = options or ("dropout", LENGTH, "fp32")
        result = contend(contender, Path(folder), int(steps), model, int(length), precision)
    else:
        folder, chunk = arguments
        result = peak_memory(Path(folder), int(chunk))
    print()
    print(json.dumps(result))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", default=os.environ.get("PAIRS"))
    parser.add_argument("--threads", type=int, default=int(os.environ.get("OMP_NUM_THREADS", 2)))
    parser.add_argument("--steps", type=int, default=8, help="steps a round and contender; the first is not counted")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--loss_steps", type=int, default=50)
    parser.add_argument("--contenders", nargs="+", default=NAMES, choices=NAMES)
    parser.add_argument("--chunk", type=int, default=32)
    parser.add_argument("--task", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.task:
        return run_task(*json.loads(options.task))

    pairs = read_rows(options.pairs)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prepare(folder, pairs)
        seconds = {contender: [] for contender in options.contenders}
        for number in range(options.rounds):
            for contender in options.contenders:
                durations, *_ = in_a_process(options.threads, "contend", contender, folder, options.steps)
                seconds[contender].append(durations[1:])
                print(f"round {number + 1}: {NAMES[contender]:60s} {statistics.median(durations[1:]):6.2f} s/step",
                      flush=True)
        # Both train on the same batches: the best time of each step over the rounds, then the median step.
        typical = {contender: statistics.median(map(min, zip(*rounds))) for contender, rounds in seconds.items()}
        task = options.loss_steps, "no_dropout", 128, "fp32"
        losses = [in_a_process(options.threads, "contend", contender, folder, *task)[1]
                  for contender in ("flagembedding", "ours")]
        difference = max(abs(one - other) for one, other in zip(*losses, strict=True))
        memory = {chunk: in_a_process(options.threads, "memory", folder, chunk) for chunk in (0, options.chunk)}

    print(f"\n{len(pairs)} pairs, batch {BATCH}, group {GROUP}, length {LENGTH}, {options.threads} threads\n")
    print(f"{'trainer':60s} {'s/step':>7s} {'ours is faster by':>18s}")
    for contender, value in typical.items():
        print(f"{NAMES[contender]:60s} {value:7.2f} {value / typical['ours']:17.2f}x")
    print(f"\nlargest difference of the first {options.loss_steps} losses, dropout off, FlagEmbedding against ours: "
          f"{difference:.1e}\n\none step of 256 queries x {GROUP} passages of 16 tokens")
    for chunk, (peak, duration) in memory.items():
        title = f"GradCache, chunks of {chunk} texts" if chunk else "without GradCache"
        print(f"{title:60s} {peak:6.2f} GB at the peak {duration:7.1f} s")
    result = {f"steps_per_second_ratio_{contender}": round(value / typical["ours"], 3)
              for contender, value in typical.items() if contender != "ours"}
    result |= {"max_loss_difference": difference, "peak_gb_uncached": round(memory[0][0], 2),
               "peak_gb_grad_cache": round(memory[options.chunk][0], 2),
               "seconds_per_step_ours": round(typical["ours"], 3)}
    print(json.dumps(result))


if __name__ == "__main__":
    main()
