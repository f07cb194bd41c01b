"""Bugs put into the package, one at a time: a harness that reports nothing lost with one of them is worth nothing."""

import contextlib
import os
import shutil
from pathlib import Path

from embedding_finetune import files, seals
from embedding_finetune.data import collection
from embedding_finetune.training import checkpoints, rows, trainer


def rename_before_fsync():
    """A file bears its name before its content is on the disk."""
    @contextlib.contextmanager
    def atomic_write(path, mode="w"):
        path = Path(path)
        partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(partial, mode, encoding=None if "b" in mode else "utf-8") as file:
            yield file
        os.replace(partial, path)
        with open(path, "rb") as file:
            os.fsync(file.fileno())

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
    """A checkpoint is written under its name, and whatever is there passes for complete."""
    trainer.publish = checkpoints.publish = lambda written, folder: shutil.copytree(written, folder)
    checkpoints.is_complete = trainer.is_complete = lambda folder: folder.is_dir()


def _everywhere(name, function):
    """In `files` and wherever it was imported from there."""
    for module in (files, collection, seals, rows):
        if hasattr(module, name):
            setattr(module, name, function)


# plant -> what puts it there, and the steps and kinds of faults that are to find it
PLANTS = {"rename-before-fsync": (rename_before_fsync, "data,rows,build over", "kills"),
          "write-in-place": (write_in_place, "data,rows,build over", "kills,disks"),
          "no-marker": (no_marker, "train", "kills")}
