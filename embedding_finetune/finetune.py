"""What happens before and after the training itself, for `finetune.sh`.

    python -m embedding_finetune.finetune prepare LABEL    checks; prints base model, precision flag and folder to train in, a line each
    python -m embedding_finetune.finetune finish LABEL     makes that folder the finished model
"""

import json
import os
import sys
import time

import torch

from embedding_finetune.experiment import Experiment
from embedding_finetune.files import ExperimentError, run_command_line, sha256, write_json
from embedding_finetune.hub import check_hub
from embedding_finetune.train import check_lengths
from embedding_finetune.training_files import read_training_file, training_path

TRAINING_SETTINGS = ("BASE_MODEL", "BASE_POOLING", "QUERY_INSTRUCTION", "TRAIN_GROUP_SIZE", "BATCH_SIZE", "LEARNING_RATE", "EPOCHS",
                     "WARMUP_RATIO", "TEMPERATURE", "QUERY_MAX_LEN", "PASSAGE_MAX_LEN", "SEED")


def prepare(experiment, label):
    """Check what can be checked before a model is loaded; returns base model, precision flag and the folder to train in.

    Raises ExperimentError when a finished model is in the way (OVERWRITE=1 moves it aside), the training file cannot be trained on,
    or the base model cannot be had or is too short for the lengths.
    """
    read_training_file(training_path(experiment, label))
    finished = experiment.output_dir / label
    if finished.exists() and os.environ.get("OVERWRITE") != "1":
        raise ExperimentError(f"{finished} holds a finished model; OVERWRITE=1 moves it aside and trains anew")
    base = experiment.model("raw").name
    check_hub(base)
    check_lengths(base, experiment.query_max_len, experiment.passage_max_len)
    if finished.exists():
        aside = finished.with_name(f"{label}.{time.strftime('%Y%m%d-%H%M%S')}")
        finished.rename(aside)
        print(f"the old model is now {aside}", file=sys.stderr)
    return base, precision(), unfinished_folder(experiment, label)


def unfinished_folder(experiment, label):
    """Where a model is trained until it is complete."""
    own = os.environ.get("TRAINER", "embedding_finetune") == "embedding_finetune"
    return experiment.output_dir / f"{label}.{'' if own else 'flagembedding.'}partial"


def precision():
    """The flag for the arithmetic this machine is good at."""
    if not torch.cuda.is_available():
        return "--use_cpu"
    return "--bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "--fp16"


def finish(experiment, label):
    """Record what the model was trained from and give the folder its name; returns the finished folder."""
    trained, finished = unfinished_folder(experiment, label), experiment.output_dir / label
    if not (trained / "model.safetensors").exists():
        raise ExperimentError(f"{trained} holds no model: the training did not finish, its messages are above")
    (trained / ".lock").unlink(missing_ok=True)
    write_json(trained / "training.json", _record(experiment, label))
    trained.rename(finished)
    return finished


def is_current(experiment, label):
    """Whether the finished model was trained from today's training file with today's settings."""
    path = experiment.output_dir / label / "training.json"
    return path.exists() and json.loads(path.read_text(encoding="utf-8")) == _record(experiment, label)


def check_trained(experiment, label):
    """Raise ExperimentError unless the model of this label can be evaluated: trained, and not from another split's file."""
    if label in ("raw", "reference"):
        return
    path = experiment.output_dir / label / "training.json"
    if not path.exists():
        raise ExperimentError(f"{path.parent} holds no finished model: run `bash finetune_{label}.sh` first")
    trained_from = json.loads(path.read_text(encoding="utf-8"))["training_file_sha256"]
    if trained_from != sha256(training_path(experiment, label)):
        raise ExperimentError(f"{path.parent} was trained from another {training_path(experiment, label).name}, which may hold today's "
                              f"test queries: run `OVERWRITE=1 bash finetune_{label}.sh`")


def _record(experiment, label):
    settings = {name: value for name, value in experiment.as_dict().items() if name in TRAINING_SETTINGS}
    return {"label": label, "training_file_sha256": sha256(training_path(experiment, label)), "settings": settings}


def _main():
    command, label = sys.argv[1:]
    experiment = Experiment.load()
    if command == "prepare":
        print(*prepare(experiment, label), sep="\n")
    elif command == "finish":
        print(f"finished: {finish(experiment, label)}")
    else:
        raise ExperimentError(f"unknown command {command!r}: prepare or finish")


if __name__ == "__main__":
    run_command_line(_main)
