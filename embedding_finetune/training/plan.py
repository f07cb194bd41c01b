"""What a training will do and how long it takes, and the equivalent commands of torchrun and FlagEmbedding."""

import math
import shlex
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from embedding_finetune.data.row_store import Rows
from embedding_finetune.hub import load
from embedding_finetune.models.encoder_config import base_encoder_config
from embedding_finetune.models.fast_layers import cpu_has
from embedding_finetune.recipes import Recipe
from embedding_finetune.settings import SELECTION_METRIC, Settings
from embedding_finetune.training.arguments import MODULES, TrainingSettings, stock_flags

WORKER = "embedding_finetune.training.worker"


def missing_in_flagembedding(tuned: Settings, recipe: Recipe) -> list[str]:
    """What a training needs that FlagEmbedding's own trainer lacks, a list."""
    wanted = {"LoRA": tuned.lora_rank, "Dense layers": base_encoder_config(tuned).dense,
              "late interaction": tuned.architecture != "single_vector",
              "margin distillation": recipe.teacher and tuned.distillation_loss == "margin",
              "early stopping (PATIENCE)": tuned.patience}
    return [name for name, value in wanted.items() if value]


def describe(training: TrainingSettings, rows: int) -> Iterator[str]:
    """Lines that say what the trainer will do; `rows` is the number of training queries."""
    per_epoch = rows // (training.batch_size * training.processes)
    steps = training.max_steps or math.ceil(training.epochs * per_epoch)
    every = [_every(size, steps) for size in (training.save_steps, training.dev_steps)]
    encoder = training.encoder_in_training
    processes = f" x {training.processes} processes" if training.processes > 1 else ""
    yield (f"{rows} training queries, {training.epochs:g} epochs, {steps} steps of {training.batch_size} queries x "
           f"{training.train_group_size} passages{processes}")
    yield (f"precision {training.precision}, learning rate {training.learning_rate:g}, at most {encoder.query_max_len} "
           f"tokens per query and {encoder.passage_max_len} per passage")
    if training.kind == "cross_encoder":
        yield "loss: cross entropy of the positive among the passages of its query"
    else:
        yield (f"loss: cross entropy of the positive among all passages of a step, temperature {training.temperature:g}"
               f"{', plus distillation' if training.teacher else ''}; {training.architecture}"
               f"{f', LoRA rank {training.lora_rank}' if training.lora_rank else ''}")
    yield (f"dev evaluation before training, every {every[1]} steps and at the end: {SELECTION_METRIC} among the dev "
           f"positives and {training.dev_corpus_size} other passages")
    yield (f"checkpoint every {every[0]} steps and at each new best {SELECTION_METRIC}; the last and the best are "
           "kept, and the best is exported")


def _every(size, steps):
    """Transformers' reading of a number of steps: below 1, it is a fraction of all steps."""
    return math.ceil(size * steps) if size < 1 else int(size)


def torchrun_command(settings: Settings, training: TrainingSettings, words: Sequence[object]) -> str:
    """The torchrun command that is equivalent to what the launcher starts; `words` are a module and its arguments."""
    place = ["--standalone"]
    if training.nnodes > 1:
        place = ["--nnodes", str(training.nnodes), "--rdzv_backend", "c10d", "--rdzv_id", training.label,
                 "--rdzv_endpoint", settings.rdzv_endpoint]
    return shlex.join(["torchrun", *place, "--nproc_per_node", str(training.gpus), "-m", *map(str, words)])


def log_lines(settings: Settings, training: TrainingSettings, folder: Path, rows: int, export: Path,
              missing: Sequence[str]) -> Iterator[str]:
    """Lines for the log and for a dry run: what our trainer does, and both commands.

    `export` is the path of the training file in FlagEmbedding's format, `missing` what its trainer lacks.
    """
    yield f"equivalent command: {torchrun_command(settings, training, [WORKER, folder])}"
    yield from (f"  {line}" for line in describe(training, rows))
    if training.cpu and training.precision != "fp32" and not cpu_has(training.precision):
        yield f"this CPU only emulates {training.precision}: PRECISION=fp32 is faster"
    if missing:
        yield f"FlagEmbedding's own trainer has no {' and no '.join(missing)}: there is no equivalent command"
    else:
        command = torchrun_command(settings, training, [MODULES[training.kind]])
        flags = f" {shlex.join(stock_flags(training, folder, export))}".replace(" --", " \\\n    --")
        yield f"with FlagEmbedding's own trainer:\n{command}{flags}"


def estimate_time(training: TrainingSettings, rows: Rows) -> float:
    """Rough training time on this CPU in seconds: 6 operations per weight and token, at matrix multiplication speed."""
    encoder = training.encoder_in_training
    config, tokenizer = (load(kind, encoder.name, encoder.trusted) for kind in ("AutoConfig", "AutoTokenizer"))
    sample = [rows[number] for number in range(min(200, len(rows)))]
    texts, max_length = [[row["pos"][0] for row in sample]], encoder.passage_max_len
    if training.kind == "cross_encoder":  # it reads each passage together with the query
        texts, max_length = [[row["query"] for row in sample], *texts], encoder.query_max_len + encoder.passage_max_len
    tokens = tokenizer(*texts, truncation=True, max_length=max_length)["input_ids"]
    tokens = training.epochs * len(rows) * training.train_group_size * sum(map(len, tokens)) / len(sample)
    left, right, start = torch.rand(512, config.hidden_size), torch.rand(config.hidden_size, 2048), time.monotonic()
    for _ in range(10):
        torch.matmul(left, right)
    operations_per_second = 10 * 2 * left.numel() * 2048 / (time.monotonic() - start)
    return tokens * 6 * 12 * config.num_hidden_layers * config.hidden_size**2 / operations_per_second
