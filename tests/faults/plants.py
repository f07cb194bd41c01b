"""Bugs put into the package, one at a time: a harness that reports nothing lost with one of them is worth nothing."""

import contextlib
import os
import random
from pathlib import Path

from embedding_finetune import files
from embedding_finetune.artifacts import manifest, staging
from embedding_finetune.data import collection, row_store
from embedding_finetune.training import trainer

from . import kills
from .bench import LOST


def rename_before_fsync():
    """A file bears its name before its content is on the disk: that is left to the system."""
    @contextlib.contextmanager
    def atomic_write(path, mode="w"):
        path = Path(path)
        partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(partial, mode, encoding=None if "b" in mode else "utf-8") as file:
            yield file
        os.replace(partial, path)

    _everywhere("atomic_write", atomic_write)


def write_in_place():
    """A file is overwritten where it is, instead of beside."""
    @contextlib.contextmanager
    def atomic_write(path, mode="w"):
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        with open(path, mode, encoding=None if "b" in mode else "utf-8") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())

    _everywhere("atomic_write", atomic_write)


def no_marker():
    """A checkpoint has no manifest, and whatever is there passes for complete."""
    trainer.write_manifest = lambda folder: None
    staging.is_complete = lambda folder: folder.is_dir()


def _everywhere(name, function):
    """In `files` and wherever it was imported from there."""
    for module in (files, collection, manifest, row_store):
        if hasattr(module, name):
            setattr(module, name, function)


# plant -> what puts it there, and the step and the fault that are to find it
PLANTS = {"rename before fsync": (rename_before_fsync, "build over", "power cut"),
          "write in place": (write_in_place, "build over", "kill -9 in a write"),
          "no marker": (no_marker, "train", "kill -9")}


def found(bench, name, most=60):
    """How many of the fault's trials it took until something was lost; 0 where nothing was."""
    plant, step, kind = PLANTS[name]
    trials = [trial for trial in kills.trials(bench) if (trial.step, trial.kind) == (step, kind)]
    random.Random(0).shuffle(trials)
    bench.plant = plant
    try:
        return next((number for number, trial in enumerate(trials[:most], start=1) if trial.run()[0] == LOST), 0)
    finally:
        bench.plant = None
