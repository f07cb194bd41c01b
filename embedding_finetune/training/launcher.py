"""Launch the processes of a training on one or several nodes, with torchrun's elastic_launch.

All nodes run the same command with NNODES and RDZV_ENDPOINT and join there (torchrun's c10d rendezvous, see
docs/scale.md). The number of nodes is fixed: fewer nodes would train on different batches and give different weights.
On one node, MAX_RESTARTS restarts all processes after one was killed. They continue from the last complete checkpoint,
so the result is the same.
"""

import logging
import os
import runpy
import signal
import socket
import sys
import time
import uuid
from collections.abc import Sequence
from typing import Any

import torch
from torch.distributed import DistError
from torch.distributed.elastic.multiprocessing import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.elastic.rendezvous import RendezvousError, RendezvousTimeoutError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from embedding_finetune.files import UserError, one_line
from embedding_finetune.settings import Settings

REPORTED = 1  # exit status of a process that has printed its error; it would only occur again
RENDEZVOUS_TIMEOUT = 600  # seconds within which all nodes must have joined


def check_processes(settings: Settings) -> None:
    """Raise UserError if this machine has fewer GPUs than processes, or for invalid settings of several nodes."""
    devices = torch.cuda.device_count()
    if devices and settings.gpus > devices:
        raise UserError(f"GPUS={settings.gpus} is more than the GPUs of this machine: use at most {devices}")
    if settings.nnodes > 1 and not settings.rdzv_endpoint:
        raise UserError(f"NNODES={settings.nnodes} needs RDZV_ENDPOINT=HOST:PORT, the same on all nodes: one of the "
                        "machines, with a free port that the others can reach")
    if settings.nnodes > 1 and settings.max_restarts:
        raise UserError(f"MAX_RESTARTS={settings.max_restarts} is for one machine: with NNODES={settings.nnodes}, run "
                        "the same command again on all nodes to continue")


def launch(settings: Settings, label: str, module: str, arguments: Sequence[str], one_process: bool = False) -> None:
    """Run `python -m MODULE ARGUMENTS`, the training of a label, in GPUS processes on each node, or in this process.

    Raises UserError if it was stopped or killed, or if the nodes do not join; exits with status 1 if a process has
    reported an error.
    """
    if one_process:
        os.environ.setdefault("CUDA_VISIBLE_DEVICES", "0")  # otherwise one process would split each batch over all GPUs
        sys.argv = [module, *arguments]
        runpy.run_module(module, run_name="__main__", alter_sys=True)
        return
    for logger in ("torch.distributed.elastic", "torch.distributed.elastic.agent.server.api"):  # it has its own level
        logging.getLogger(logger).setLevel(logging.CRITICAL)
    if settings.gpus > 1:
        os.environ.setdefault("OMP_NUM_THREADS", "1")  # as torchrun does: the processes share the cores
    outcome = "start over" if settings.trainer == "flagembedding" else "continue"
    if settings.nnodes > 1:
        outcome += " on all nodes"
        print(f"waiting for {settings.nnodes} nodes at {settings.rdzv_endpoint}", flush=True)
        _reach(settings.rdzv_endpoint)
    try:
        _run(settings, label, ["-u", "-m", module, *arguments], outcome)
    except SignalException as error:
        raise UserError(f"stopped by {signal.Signals(error.sigval).name}; run the same command again to "
                        f"{outcome}") from None
    except RendezvousTimeoutError:
        raise UserError(f"{settings.nnodes} nodes did not join at RDZV_ENDPOINT={settings.rdzv_endpoint} within "
                        f"{RENDEZVOUS_TIMEOUT} s: start the same command on each node") from None
    except (RendezvousError, DistError):
        raise UserError("another node has ended; see its messages for the cause, then run the same command again to "
                        f"{outcome}") from None


def _run(settings, label, words, outcome):
    """Start the processes, and start them again after one was killed, at most MAX_RESTARTS times."""
    for left in range(settings.max_restarts, -1, -1):
        try:
            return elastic_launch(_configuration(settings, label), sys.executable)(*words)
        except ChildFailedError as error:
            if REPORTED in [failure.exitcode for failure in error.failures.values()]:
                sys.exit(REPORTED)
            rank, failure = error.get_first_failure()
            end = "failed, or lost the connection to the others"
            if failure.exitcode < 0:
                end = f"was killed by signal {-failure.exitcode}"
            how = f"training process {rank} {end}"
            if not left:
                is_kill = failure.exitcode == -signal.SIGKILL
                hint = " (possibly out of memory: set GRAD_CACHE_CHUNK)" if is_kill else ""
                raise UserError(f"{how}{hint}; run the same command again to {outcome}") from None
            print(f"{how}: restarting all from the last checkpoint ({left} of MAX_RESTARTS left)", file=sys.stderr,
                  flush=True)


def _configuration(settings, label):
    """Torch's LaunchConfig. It stops on SIGHUP even under nohup; here, signals that are ignored stay ignored."""
    signals = [name for name in ("SIGTERM", "SIGINT", "SIGQUIT", "SIGHUP")
               if signal.getsignal(signal.Signals[name]) != signal.SIG_IGN]
    place: dict[str, Any] = {"run_id": str(uuid.uuid4()), "rdzv_endpoint": "localhost:0"}  # as torchrun --standalone
    if settings.nnodes > 1:
        timeouts = {"join_timeout": RENDEZVOUS_TIMEOUT, "read_timeout": RENDEZVOUS_TIMEOUT}
        place = {"run_id": label, "rdzv_endpoint": settings.rdzv_endpoint, "rdzv_configs": timeouts}
    return LaunchConfig(settings.nnodes, settings.nnodes, settings.gpus, rdzv_backend="c10d", max_restarts=0,
                        signals_to_handle=",".join(signals), **place)


def _reach(endpoint):
    """Raise UserError if the endpoint is on another machine that does not respond."""
    host, port = endpoint.split(":")
    deadline = time.monotonic() + RENDEZVOUS_TIMEOUT
    try:
        with socket.socket() as local:
            local.bind((socket.gethostbyname(host), 0))
        return  # an address of this machine: torchrun will listen there itself
    except socket.gaierror as error:
        raise UserError(f"RDZV_ENDPOINT={endpoint}: cannot resolve the host {host} ({error.strerror})") from None
    except OSError:
        pass
    while True:
        try:
            return socket.create_connection((host, int(port)), timeout=max(1, deadline - time.monotonic())).close()
        except OSError as error:
            if time.monotonic() > deadline:
                raise UserError(f"no response from RDZV_ENDPOINT={endpoint} within {RENDEZVOUS_TIMEOUT} s "
                                f"({one_line(error)}): start the same command on that machine, and make sure that the "
                                "other nodes can reach the port") from None
            time.sleep(1)
