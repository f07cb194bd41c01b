"""What happens before and after the training itself, for `finetune.sh`.

    python -m embedding_finetune.finetune prepare LABEL    checks; prints base model, precision flags, folder to train in, training file
                                                           and seed, a line each
    python -m embedding_finetune.finetune finish LABEL     makes that folder the finished model
"""

import contextlib
import json
import os
import shutil
import sys
import time

from embedding_finetune.experiment import Experiment
from embedding_finetune.files import ExperimentError, run_command_line, sha256, write_json
from embedding_finetune.hub import check_hub, check_lengths
from embedding_finetune.training_files import check_data_settings, is_mined, mining_settings, read_training_file, training_path, with_teacher

RECORD = "training.json"
TRAINING_SETTINGS = ("BASE_MODEL", "BASE_POOLING", "QUERY_INSTRUCTION", "TRAIN_GROUP_SIZE", "BATCH_SIZE", "LEARNING_RATE", "EPOCHS",
                     "WARMUP_RATIO", "TEMPERATURE", "PRECISION", "QUERY_MAX_LEN", "PASSAGE_MAX_LEN", "SEED")


def prepare(experiment, label):
    """Check what can be checked before a model is loaded; returns base model, precision flags, folder to train in, training file, seed.

    The seed of `neg10_seed43` is 43; without such an ending it is the experiment's.

    Raises ExperimentError when a finished model is in the way (OVERWRITE=1 moves it aside), the training file cannot be trained on,
    or the base model cannot be had or is too short for the lengths.
    """
    finished = experiment.output_dir / label
    if finished.exists() and os.environ.get("OVERWRITE") != "1":
        raise ExperimentError(f"{finished} holds a finished model; OVERWRITE=1 moves it aside and trains anew")
    check_data_settings(experiment)
    if is_mined(label):
        from embedding_finetune.mining import mine  # takes seconds to import, and only this needs it
        with contextlib.redirect_stdout(sys.stderr):  # standard output is for the script
            mine(experiment, label)
    read_training_file(training_path(experiment, label), teacher=with_teacher(label))
    base = experiment.model("raw").name
    check_hub(base)
    check_lengths(base, experiment.query_max_len, experiment.passage_max_len)
    unfinished, record = unfinished_folder(experiment, label), _record(experiment, label)
    if not _own_trainer():
        shutil.rmtree(unfinished, ignore_errors=True)  # FlagEmbedding's trainer cannot continue what is there
    elif _read_record(unfinished) not in (None, record):
        raise ExperimentError(f"{unfinished} holds an interrupted training with other settings or another training file: "
                              "set them back to continue it, or remove the folder")
    if finished.exists():
        aside = finished.with_name(f"{label}.{time.strftime('%Y%m%d-%H%M%S')}")
        finished.rename(aside)
        print(f"the old model is now {aside}", file=sys.stderr)
    write_json(unfinished / RECORD, record)
    seed = int(label.partition("_seed")[2] or experiment.seed)
    return base, precision(experiment.precision), unfinished, training_path(experiment, label), seed


def unfinished_folder(experiment, label):
    """Where a model is trained until it is complete."""
    return experiment.output_dir / f"{label}.{'' if _own_trainer() else 'flagembedding.'}partial"


def _own_trainer():
    return os.environ.get("TRAINER", "embedding_finetune") == "embedding_finetune"


def precision(wanted="auto"):
    """The flags for PRECISION, which `auto` takes from what this machine is good at; a CPU without AVX-512-BF16 or AMX only emulates bf16."""
    import torch  # takes seconds to import, and only this needs it
    gpu = torch.cuda.is_available()
    if wanted == "auto" and gpu:
        wanted = "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    elif wanted == "auto":
        wanted = "bf16" if torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported() else "fp32"
    return " ".join(f"--{flag} True" for flag in ("use_cpu" * (not gpu), wanted.replace("fp32", "")) if flag)


def finish(experiment, label):
    """Give a folder that was trained to the end its name, with the record of what it was trained from; returns the finished folder."""
    trained, finished = unfinished_folder(experiment, label), experiment.output_dir / label
    if not (trained / "model.safetensors").exists():
        raise ExperimentError(f"{trained} holds no model: the training did not finish, its messages are above")
    (trained / ".lock").unlink(missing_ok=True)
    trained.rename(finished)
    return finished


def is_current(experiment, label):
    """Whether the finished model was trained from today's training file with today's settings."""
    recorded = _read_record(experiment.output_dir / label)
    return recorded is not None and training_path(experiment, label).exists() and recorded == _record(experiment, label)


def check_trained(experiment, label):
    """Raise ExperimentError unless the model of this label can be evaluated: trained, and not from another split's file."""
    if label in ("raw", "reference", *experiment.extras()):
        return
    folder = experiment.output_dir / label
    trained_from = _read_record(folder)
    if trained_from is None:
        raise ExperimentError(f"{folder} holds no finished model: run `bash {script(label)}` first")
    if not training_path(experiment, label).exists() or trained_from["training_file_sha256"] != sha256(training_path(experiment, label)):
        raise ExperimentError(f"{folder} was trained from another {training_path(experiment, label).name}, which may hold today's "
                              f"test queries: run `OVERWRITE=1 bash {script(label)}`")


def script(label):
    """What trains the model of a label."""
    if is_mined(label):
        return f"finetune_hard.sh {label}"
    return f"finetune_{label}.sh" if "_seed" not in label else f"embedding_finetune/finetune.sh {label}"


def _read_record(folder):
    path = folder / RECORD
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def _record(experiment, label):
    """What identifies a training. It is written when the training starts: the files may have changed by the time it ends."""
    settings = {name: value for name, value in experiment.as_dict().items() if name in TRAINING_SETTINGS}
    return {"label": label, "training_file_sha256": sha256(training_path(experiment, label)), "settings": settings | mining_settings(experiment, label)}


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
