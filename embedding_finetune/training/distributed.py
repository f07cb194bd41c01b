"""Checks that the processes of a distributed training, on one or several nodes, run the same training."""

import os
import secrets
import time

import torch
import torch.distributed as dist

from embedding_finetune.files import FILE_VISIBILITY_LAG, UserError, atomic_write, sha256

RANK, WORLD_SIZE = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
LOST = 75  # exit status (EX_TEMPFAIL of sysexits.h) of a process that may have failed because another one ended
PATHS = ("model_name_or_path", "train_data", "dev_data", "output_dir", "cache_path")  # may differ between nodes


def broadcast_from_rank_0(value):
    """The value of rank 0, in every process."""
    values = [value]
    if dist.is_initialized():
        dist.broadcast_object_list(values, src=0, device=_device())
    return values[0]


def check_same_arguments(flags, train_data):
    """Raise UserError in all processes unless all have the same flags (a list of words) and training files.

    Training files (paths) are compared by content. Without this check, processes with different batches would hang or
    train on different data instead of failing.
    """
    if not dist.is_initialized():
        return
    given, name = {f"training file {number}": sha256(path)[:12] for number, path in enumerate(train_data, start=1)}, ""
    for word in flags:
        name = word.removeprefix("--") if word.startswith("--") else name
        if name not in PATHS and not word.startswith("--"):
            given[f"--{name}"] = f"{given.get(f'--{name}', '')} {word}".strip()
    of_all = _from_all(given)
    for rank, other in enumerate(of_all):
        for name in [name for name in of_all[0] | other if of_all[0].get(name) != other.get(name)][:1]:
            raise UserError(f"process {rank} has {name} {other.get(name, '-')}, process 0 {of_all[0].get(name, '-')}: "
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
