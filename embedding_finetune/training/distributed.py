"""Checks that the processes of a distributed training, on one or several nodes, run the same training."""

import os
import secrets
import time

import torch
import torch.distributed as dist

from embedding_finetune.files import FILE_VISIBILITY_LAG, UserError, atomic_write, sha256

RANK, WORLD_SIZE = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
LOST = 75  # exit status (EX_TEMPFAIL of sysexits.h) of a process that may have failed because another one ended


def broadcast_from_rank_0(value):
    """The value of rank 0, in every process."""
    values = [value]
    if dist.is_initialized():
        dist.broadcast_object_list(values, src=0, device=_device())
    return values[0]


def check_same_inputs(files):
    """Raise UserError in all processes unless all have the same files, compared by content; `files` is name -> path.

    Without this check, processes with different batches would hang or train on different data instead of failing.
    """
    if not dist.is_initialized():
        return
    of_all = _from_all({name: sha256(path)[:12] for name, path in files.items()})
    for rank, other in enumerate(of_all):
        for name in files:
            if other[name] != of_all[0][name]:
                raise UserError(f"process {rank} has other {name} ({other[name]}) than process 0 ({of_all[0][name]}): "
                                "start all nodes with the same settings and training files")


def check_shared(folder):
    """Raise UserError in all processes unless all see the files that rank 0 writes to the folder.

    Rank 0 writes the checkpoints, all processes read them, and each adds its own random state.
    """
    if int(os.environ.get("LOCAL_WORLD_SIZE", WORLD_SIZE)) == WORLD_SIZE:
        return
    token = broadcast_from_rank_0(secrets.token_hex(8))
    path, deadline = folder / f".seen-{token}", time.monotonic() + FILE_VISIBILITY_LAG
    if RANK == 0:
        with atomic_write(path) as file:
            file.write(token)
    dist.barrier()
    while not (seen := path.exists()) and time.monotonic() < deadline:
        time.sleep(0.5)
    blind = [rank for rank, sees in enumerate(_from_all(seen)) if not sees]
    if RANK == 0:
        path.unlink()
    if blind:
        raise UserError(f"process {blind[0]} does not see what process 0 writes to {folder}: OUTPUT_DIR must be on a "
                        "disk that all nodes share")


def _from_all(value):
    values = [None] * WORLD_SIZE
    dist.all_gather_object(values, value)
    return values


def _device():
    return torch.device("cuda", torch.cuda.current_device()) if dist.get_backend() == "nccl" else torch.device("cpu")
