"""Checks that the processes of a distributed training, on one or several nodes, run the same training."""

import os
import secrets
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

import torch.distributed as dist

from embedding_finetune.files import FILE_VISIBILITY_LAG, UserError, atomic_write, sha256

RANK, WORLD_SIZE = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
LOST = 75  # exit status (EX_TEMPFAIL of sysexits.h) of a process that may have failed because another one ended
Value = TypeVar("Value")


def gather(value: Value) -> list[Value]:
    """The values of all processes, by rank; those of a process that is alone are its own."""
    values: list = [value]
    if dist.is_initialized():
        values = [None] * WORLD_SIZE
        dist.all_gather_object(values, value)
    return values


def check_same_inputs(files: Mapping[str, str | Path]) -> None:
    """Raise UserError in all processes unless all have the same files, compared by content; `files` is name -> path.

    Without this check, processes with different batches would hang or train on different data instead of failing.
    """
    first, *others = gather({name: sha256(path)[:12] for name, path in files.items()})
    for rank, hashes in enumerate(others, start=1):
        for name, found in hashes.items():
            if found != first[name]:
                raise UserError(f"process {rank} has other {name} ({found}) than process 0 ({first[name]}): start all "
                                "nodes with the same settings and training files")


def check_shared(folder: Path) -> None:
    """Raise UserError in all processes unless all see the files that rank 0 writes to the folder.

    Rank 0 writes the checkpoints, all processes read them, and each adds its own random state.
    """
    if int(os.environ.get("LOCAL_WORLD_SIZE", WORLD_SIZE)) == WORLD_SIZE:
        return
    path, deadline = folder / f".seen-{gather(secrets.token_hex(8))[0]}", time.monotonic() + FILE_VISIBILITY_LAG
    if RANK == 0:
        with atomic_write(path) as file:
            file.write("")
    dist.barrier()
    while not (seen := path.exists()) and time.monotonic() < deadline:
        time.sleep(0.5)
    blind = [rank for rank, sees in enumerate(gather(seen)) if not sees]
    if RANK == 0:
        path.unlink()
    if blind:
        raise UserError(f"process {blind[0]} does not see what process 0 writes to {folder}: OUTPUT_DIR must be on a "
                        "disk that all nodes share")
