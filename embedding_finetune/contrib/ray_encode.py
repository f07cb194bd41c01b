"""A function over shares, by the workers of a Ray cluster as a Ray Data job: all that this package knows of Ray.

RAY_ADDRESS names the cluster (docs/scale.md). No data pass through Ray, and what a share does needs none: it reads
DATA_DIR and writes OUTPUT_DIR, which all machines see.
"""

import contextlib
import importlib.metadata
import importlib.util
import logging
import math
import os
import secrets
import socket
import time
from pathlib import Path

from tqdm.auto import tqdm

from embedding_finetune.data.collection import data_identity
from embedding_finetune.files import FILE_VISIBILITY_LAG, UserError, atomic_write, content_hash, one_line, sha256
from embedding_finetune.settings import ROOT

REQUIREMENT = "ray[data]==2.60.0"  # as in requirements.txt
RETRIES = 3  # of a share whose worker was killed, or whose machine has gone
PACKAGES = ("torch", "transformers", "tokenizers")  # vectors of other versions would not be found again


def for_each_shard(settings, work, shares):
    """Call `work(part)` for part 0, 1 .. shares - 1, each in a worker that has a GPU, or its part of the cores, to
    itself.

    Raises UserError when there is no such cluster, when a machine has not what this one has, or when a share fails or
    its worker is killed more than RETRIES times: then the others are stopped, and what they have written stays.
    """
    seen = settings.output_dir / "cache" / f".seen-{secrets.token_hex(8)}"
    with cluster(settings.ray_address) as ray:
        machines = [node["Resources"] for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU")]
        wanted, threads = resources(machines, shares)
        ray.data.DataContext.get_current().enable_progress_bars = False
        # A share may take hours, and shares are no progress until they end.
        ray.data.DataContext.get_current().execution_no_progress_timeout_s = -1
        done = ray.data.from_items([{"part": part} for part in range(shares)], override_num_blocks=shares).map(
            one_shard, fn_kwargs={"work": work, "settings": settings, "seen": seen, "expected": machine(settings)},
            runtime_env={"env_vars": {"OMP_NUM_THREADS": str(threads)}}, max_retries=RETRIES, **wanted)
        with atomic_write(seen) as file:
            file.write("whether all machines see OUTPUT_DIR is tried out with this file\n")
        try:
            for batch in tqdm(done.iter_batches(batch_size=1, prefetch_batches=0), total=shares, unit="share"):
                if batch["failure"][0]:
                    raise UserError(f"share {batch['part'][0] + 1} of {shares}, on {batch['failure'][0]}; the same "
                                    "command goes on from what is finished")
        finally:
            seen.unlink()


def one_shard(row, work, settings, seen, expected):
    """What a worker does: the row with what failed there, as `HOST: line`, or with an empty text."""
    failure = ""
    try:
        check_machine(settings, seen, expected)
        work(int(row["part"]))
    except (UserError, OSError) as error:
        failure = f"{socket.gethostname()}: {one_line(error)}"
    return row | {"failure": failure}


def machine(settings):
    """What all machines must have alike, lest the vectors be others, or not be found again: name -> version or hash."""
    code = sorted((ROOT / "embedding_finetune").rglob("*.py"))
    return {"data": data_identity(settings), "code": content_hash(*map(sha256, code)),
            **{package: importlib.metadata.version(package) for package in PACKAGES}}


def check_machine(settings, seen, expected):
    """Raise UserError unless this machine sees the file `seen` of OUTPUT_DIR, and is as `machine` says of the first."""
    deadline = time.monotonic() + FILE_VISIBILITY_LAG
    while not Path(seen).exists():
        if time.monotonic() > deadline:
            raise UserError(f"does not see what the first machine writes to {settings.output_dir}: OUTPUT_DIR must be "
                            "on a disk that all machines share")
        time.sleep(0.5)
    for name, value in machine(settings).items():
        if value != expected[name]:
            raise UserError(f"has {name} {value[:12]}, and the first machine {expected[name][:12]}: DATA_DIR, this "
                            "package and what it needs must be the same on all")


def resources(machines, shares):
    """What a share asks Ray for, and how many threads it has, by the resources of each machine: one GPU where there
    are some (shares may then be more, and wait), else as many cores as let all shares run at once."""
    with_gpus = [machine for machine in machines if machine.get("GPU")]
    if with_gpus:
        return {"num_gpus": 1}, max(1, int(min(machine["CPU"] // machine["GPU"] for machine in with_gpus)))
    at_once = math.ceil(shares / max(1, len(machines)))  # on a machine
    cores = max(1, int(min((machine["CPU"] for machine in machines), default=1) // at_once))
    return {"num_cpus": cores}, cores


@contextlib.contextmanager
def cluster(address):
    """Ray, connected to the cluster at an address. Raises UserError when there is none, or when Ray fails."""
    if importlib.util.find_spec("ray") is None:
        raise UserError(f"the package ray is not installed, and RAY_ADDRESS={address} needs it: pip install "
                        f"'{REQUIREMENT}'")
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"  # else it reports its use to its makers, unasked
    own = {}
    if address == "local":
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))  # else Ray leaves one in the home directory
        own = {"include_dashboard": False}
    import ray.data  # takes a second to import
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # it tells each step; what fails is raised, too
    try:
        _knock(address)
        ray.init(address, log_to_driver=False, logging_level=logging.ERROR,
                 runtime_env={"env_vars": {"PYTHONPATH": str(ROOT)}}, **own)
    except Exception as error:  # what Ray raises when a process of its own is late is no more than that
        raise UserError(f"no Ray cluster at RAY_ADDRESS={address} ({one_line(error)}): start one (`ray start --head`), "
                        "or give local for one on this machine") from None
    try:
        yield ray
    except ray.exceptions.RayTaskError:
        raise  # a fault in the program, which says itself where
    except ray.exceptions.RayError as error:
        raise UserError(f"Ray at RAY_ADDRESS={address} gave up ({type(error).__name__}: {one_line(error)}); the same "
                        "command goes on from what is finished") from None
    finally:
        ray.shutdown()


def _knock(address):
    """Raise an error unless something listens at HOST:PORT or ray://HOST:PORT; Ray itself asks half a minute long."""
    place = address.removeprefix("ray://")
    if place in ("auto", "local"):
        return
    host, _, port = place.rpartition(":")
    if not host or not port.isdigit():
        raise ValueError("neither HOST:PORT nor ray://HOST:PORT, auto or local")
    socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
