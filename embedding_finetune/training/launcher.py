"""Launch the processes of a training with torchrun, on one or several nodes.

All nodes run the same command with NNODES and RDZV_ENDPOINT and join there (torchrun's c10d rendezvous, see
docs/scale.md). The number of nodes is fixed: fewer nodes would train on different batches and give different weights.
With MAX_RESTARTS all processes are restarted after one was killed. They continue from the last complete checkpoint, so
the result is the same.
"""

import logging
import os
import runpy
import signal
import socket
import sys
import time

import torch
from torch.distributed import DistError
from torch.distributed.elastic.agent.server import WorkerState
from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent
from torch.distributed.elastic.multiprocessing import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.elastic.rendezvous import RendezvousClosedError, RendezvousError, RendezvousTimeoutError
from torch.distributed.launcher import api
from torch.distributed.run import main as torchrun

from embedding_finetune.files import UserError, one_line

RENDEZVOUS_TIMEOUT = 600  # seconds within which all nodes must have joined


class Agent(LocalElasticAgent):
    """torchrun's agent of one node, which stops instead of restarting where a restart cannot help.

    A process with exit status 1 has reported an error that would only occur again. A node also stops when another node
    has given up.
    """

    def _monitor_workers(self, worker_group):
        result = super()._monitor_workers(worker_group)
        codes = {rank: failure.exitcode for rank, failure in result.failures.items()}
        if 1 in codes.values():
            self._remaining_restarts = 0
        elif codes and self._remaining_restarts:
            rank, code = min(codes.items())
            print(f"training process {rank} {_end(code)}: restarting all from the last checkpoint "
                  f"({self._remaining_restarts} of MAX_RESTARTS left)", file=sys.stderr, flush=True)
        elif result.state == WorkerState.HEALTHY and worker_group.spec.rdzv_handler.is_closed():
            raise RendezvousClosedError("another node has given up")
        return result


api.LocalElasticAgent = Agent  # torchrun has no parameter for the agent's class


def check_processes(settings):
    """Raise UserError if this machine has fewer GPUs than processes, or if several nodes have no RDZV_ENDPOINT."""
    devices = torch.cuda.device_count()
    if devices and settings.gpus > devices:
        raise UserError(f"GPUS={settings.gpus} is more than the GPUs of this machine: use at most {devices}")
    if settings.nnodes > 1 and not settings.rdzv_endpoint:
        raise UserError(f"NNODES={settings.nnodes} needs RDZV_ENDPOINT=HOST:PORT, the same on all nodes: one of the "
                        "machines, with a free port that the others can reach")


def launch(settings, label, module, flags, one_process=False):
    """Run the training of a label under torchrun, or in this process.

    Raises UserError if it was stopped or killed, or if the nodes do not join. torchrun stops on SIGHUP even under
    nohup; here, signals that are ignored stay ignored.
    """
    if one_process:
        os.environ.setdefault("CUDA_VISIBLE_DEVICES", "0")  # otherwise one process would split each batch over all GPUs
        sys.argv = [module, *flags]
        return runpy.run_module(module, run_name="__main__", alter_sys=True)
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    signals = [name for name in ("SIGTERM", "SIGINT", "SIGQUIT", "SIGHUP")
               if signal.getsignal(signal.Signals[name]) != signal.SIG_IGN]
    outcome = "start over" if settings.trainer == "flagembedding" else "continue"
    place = ["--standalone"]
    if settings.nnodes > 1:
        place = ["--nnodes", str(settings.nnodes), "--rdzv-backend", "c10d", "--rdzv-id", label,
                 "--rdzv-endpoint", settings.rdzv_endpoint,
                 "--rdzv-conf", f"join_timeout={RENDEZVOUS_TIMEOUT},read_timeout={RENDEZVOUS_TIMEOUT}"]
        # Each node counts its own restarts, and the keys of a shared store would contain that count.
        os.environ["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"
        print(f"waiting for {settings.nnodes} nodes at {settings.rdzv_endpoint}", flush=True)
        _reach(settings.rdzv_endpoint)
    try:
        torchrun(["--signals-to-handle", ",".join(signals), *place, "--nproc_per_node", str(settings.gpus),
                  "--max-restarts", str(settings.max_restarts), "-m", module, *flags])
    except SignalException as error:
        raise UserError(f"stopped by {signal.Signals(error.sigval).name}; run the same command again to "
                        f"{outcome}") from None
    except ChildFailedError as error:  # with exit status 1 the process itself has printed the error
        rank, failure = error.get_first_failure()
        if failure.exitcode == 1:
            sys.exit(1)
        hint = " (possibly out of memory: set GRAD_CACHE_CHUNK)" if failure.exitcode == -9 else ""
        raise UserError(f"training process {rank} {_end(failure.exitcode)}{hint}; run the same "
                        f"command again to {outcome}") from None
    except RendezvousTimeoutError:
        raise UserError(f"{settings.nnodes} nodes did not join at RDZV_ENDPOINT={settings.rdzv_endpoint} within "
                        f"{RENDEZVOUS_TIMEOUT} s: start the same command on each node") from None
    except (RendezvousError, DistError):
        raise UserError("another node has ended; see its messages for the cause, then run the same command again on "
                        f"all nodes to {outcome}") from None


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


def _end(code):
    return f"was killed by signal {-code}" if code < 0 else "failed, or lost the connection to the others"
