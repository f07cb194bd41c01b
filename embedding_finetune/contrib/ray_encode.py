"""Encoding over shards on the workers of a Ray cluster, as a Ray Data job.

RAY_ADDRESS is the address of the cluster (docs/scale.md). No data pass through Ray: a shard reads DATA_DIR and writes
OUTPUT_DIR, which must be visible to all machines.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import logging
import math
import os
import secrets
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from embedding_finetune.data.collection import data_identity
from embedding_finetune.extras import require
from embedding_finetune.files import FILE_VISIBILITY_LAG, UserError, atomic_write, content_hash, one_line, sha256
from embedding_finetune.settings import ROOT, Settings

RETRIES = 3  # of a shard whose worker was killed or whose machine was lost
PACKAGES = ("torch", "transformers", "tokenizers")  # other versions would give vectors with other cache keys


def for_each_shard(settings: Settings, work: Callable[[int], Any], shards: int) -> None:
    """Call `work(part)` for part 0, 1 .. shards - 1, each in a worker with a GPU, or its part of the cores, of its own.

    Raises UserError when there is no such cluster, when a machine differs from this one (see `machine`), or when a
    shard fails or its worker is killed more than RETRIES times. The other shards are then stopped; their output stays.
    """
    seen = settings.paths.cache / f".seen-{secrets.token_hex(8)}"
    with cluster(settings.ray_address) as ray:
        wanted, threads = resources([node["Resources"] for node in ray.nodes()
                                     if node["Alive"] and node["Resources"].get("CPU")], shards)
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False
        context.execution_no_progress_timeout_s = -1  # a shard may take hours, and Ray sees no progress until it ends
        done = ray.data.from_items([{"part": part} for part in range(shards)], override_num_blocks=shards).map(
            one_shard, fn_kwargs={"work": work, "settings": settings, "seen": seen, "expected": machine(settings)},
            runtime_env={"env_vars": {"OMP_NUM_THREADS": str(threads)}}, max_retries=RETRIES, **wanted)
        with atomic_write(seen) as file:
            file.write("checks that all machines see OUTPUT_DIR\n")
        try:
            for batch in tqdm(done.iter_batches(batch_size=1, prefetch_batches=0), total=shards, unit="shard"):
                if batch["failure"][0]:
                    raise UserError(f"shard {batch['part'][0] + 1} of {shards}, on {batch['failure'][0]}; run the same "
                                    "command again to continue")
        finally:
            seen.unlink()


def one_shard(row: dict[str, Any], work: Callable[[int], Any], settings: Settings, seen: Path,
              expected: dict[str, str]) -> dict[str, Any]:
    """Run one shard in a worker; returns the row with `failure`: "HOST: message", or "" on success."""
    try:
        check_machine(settings, seen, expected)
        work(int(row["part"]))
    except (UserError, OSError) as error:
        return row | {"failure": f"{socket.gethostname()}: {one_line(error)}"}
    return row | {"failure": ""}


def machine(settings: Settings) -> dict[str, str]:
    """Versions and hashes that must be equal on all machines, since vectors and cache keys depend on them."""
    code = sorted((ROOT / "embedding_finetune").rglob("*.py"))
    return {"data": data_identity(settings), "code": content_hash(*map(sha256, code)),
            **{package: importlib.metadata.version(package) for package in PACKAGES}}


def check_machine(settings: Settings, seen: Path, expected: dict[str, str]) -> None:
    """Raise UserError unless this machine sees the file `seen` in OUTPUT_DIR and its `machine` equals `expected`."""
    deadline = time.monotonic() + FILE_VISIBILITY_LAG
    while not seen.exists():
        if time.monotonic() > deadline:
            raise UserError(f"does not see what the first machine writes to {settings.paths.output}: OUTPUT_DIR must "
                            "be on a disk that all machines share")
        time.sleep(0.5)
    for name, value in machine(settings).items():
        if value != expected[name]:
            raise UserError(f"has {name} {value[:12]}, but the first machine {expected[name][:12]}: DATA_DIR, this "
                            "package and its dependencies must be the same on all machines")


def resources(machines: Sequence[dict[str, float]], shards: int) -> tuple[dict[str, int], int]:
    """Ray resources and number of threads per shard, from the resources of each machine.

    One GPU per shard if there are GPUs, so that further shards wait; else as many cores as let all shards run at once.
    """
    with_gpus = [machine for machine in machines if machine.get("GPU")]
    if with_gpus:
        return {"num_gpus": 1}, max(1, int(min(machine["CPU"] // machine["GPU"] for machine in with_gpus)))
    at_once = math.ceil(shards / max(1, len(machines)))  # per machine
    cores = max(1, int(min((machine["CPU"] for machine in machines), default=1) // at_once))
    return {"num_cpus": cores}, cores


@contextlib.contextmanager
def cluster(address: str) -> Iterator[Any]:
    """Connect Ray to the cluster at an address. Raises UserError when there is none, or when Ray fails."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"  # turns off telemetry
    if address == "local":
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))  # else Ray writes one to the home directory
    require("ray")
    import ray.data  # takes a second to import
    import ray.exceptions
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # it logs each step; failures are raised anyway
    try:
        _check_reachable(address)
        ray.init(address, log_to_driver=False, logging_level=logging.ERROR,
                 runtime_env={"env_vars": {"PYTHONPATH": str(ROOT)}},
                 include_dashboard=False if address == "local" else None)
    except Exception as error:  # Ray raises a plain Exception when its own processes are late
        raise UserError(f"no Ray cluster at RAY_ADDRESS={address} ({one_line(error)}): start one (`ray start --head`), "
                        "or set it to local for one on this machine") from None
    try:
        yield ray
    except ray.exceptions.RayTaskError:
        raise  # a bug in the program: the traceback shows where
    except ray.exceptions.RayError as error:
        raise UserError(f"Ray at RAY_ADDRESS={address} failed ({type(error).__name__}: {one_line(error)}); run the "
                        "same command again to continue") from None
    finally:
        ray.shutdown()


def _check_reachable(address):
    """Raise an error unless HOST:PORT or ray://HOST:PORT accepts connections; Ray itself tries for half a minute."""
    if address not in ("auto", "local"):
        host, _, port = address.removeprefix("ray://").rpartition(":")
        if not port.isdigit():
            raise ValueError("must be HOST:PORT, ray://HOST:PORT, auto or local")
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
