"""The processes of a training, on one machine or several: torchrun's, with what it cannot know.

Several nodes start the same command with NNODES and RDZV_ENDPOINT, and meet there (torchrun's rendezvous c10d, see
docs/scale.md). Their number is fixed: fewer would train on other batches, and end with other weights. MAX_RESTARTS
starts all processes again after one was killed; they continue from the last complete checkpoint, so that the end is the
same.
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

RENDEZVOUS_TIMEOUT = 600  # seconds in which all nodes must have come


class Agent(LocalElasticAgent):
    """torchrun's watch over a machine's processes, which ends what cannot go on: a process that has said what is wrong
    (exit status 1) would say it again, and a node that has given up is not waited for."""

    def _monitor_workers(self, worker_group):
        result = super()._monitor_workers(worker_group)
        codes = {rank: failure.exitcode for rank, failure in result.failures.items()}
        if 1 in codes.values():
            self._remaining_restarts = 0
        elif codes and self._remaining_restarts:
            rank, code = min(codes.items())
            print(f"training process {rank} {_end(code)}: all start again from the last checkpoint "
                  f"({self._remaining_restarts} of MAX_RESTARTS left)", file=sys.stderr, flush=True)
        elif result.state == WorkerState.HEALTHY and worker_group.spec.rdzv_handler.is_closed():
            raise RendezvousClosedError("another node has given up")
        return result


api.LocalElasticAgent = Agent  # torchrun takes no other


def check_processes(settings):
    """Raise UserError where this machine has fewer GPUs than processes, or nodes have no place to meet."""
    devices = torch.cuda.device_count()
    if devices and settings.gpus > devices:
        raise UserError(f"GPUS={settings.gpus} is more than the GPUs of this machine: give up to {devices}")
    if settings.nnodes > 1 and not settings.rdzv_endpoint:
        raise UserError(f"NNODES={settings.nnodes} needs RDZV_ENDPOINT=HOST:PORT, one of the machines with a free port "
                        "that the others reach, the same on all")


def launch(settings, label, module, flags, one_process=False):
    """Run the training of a label under torchrun, or in this process. Raises UserError when it was stopped or killed,
    or when the nodes do not meet.

    torchrun takes SIGHUP for a reason to end even where nohup has it ignored; here it does not.
    """
    if one_process:
        os.environ.setdefault("CUDA_VISIBLE_DEVICES", "0")  # else one process would split each batch over all GPUs
        sys.argv = [module, *flags]
        return runpy.run_module(module, run_name="__main__", alter_sys=True)
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    signals = [name for name in ("SIGTERM", "SIGINT", "SIGQUIT", "SIGHUP")
               if signal.getsignal(signal.Signals[name]) != signal.SIG_IGN]
    again = "begins it anew" if settings.trainer == "flagembedding" else "continues it"
    place = ["--standalone"]
    if settings.nnodes > 1:
        place = ["--nnodes", str(settings.nnodes), "--rdzv-backend", "c10d", "--rdzv-id", label,
                 "--rdzv-endpoint", settings.rdzv_endpoint,
                 "--rdzv-conf", f"join_timeout={RENDEZVOUS_TIMEOUT},read_timeout={RENDEZVOUS_TIMEOUT}"]
        # Nodes count restarts each for itself; in the store that they share otherwise, keys are named by the count.
        os.environ["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"
        print(f"waiting for {settings.nnodes} nodes at {settings.rdzv_endpoint}", flush=True)
        _reach(settings.rdzv_endpoint)
    try:
        torchrun(["--signals-to-handle", ",".join(signals), *place, "--nproc_per_node", str(settings.gpus),
                  "--max-restarts", str(settings.max_restarts), "-m", module, *flags])
    except SignalException as error:
        raise UserError(f"stopped by {signal.Signals(error.sigval).name}; the same command {again}") from None
    except ChildFailedError as error:  # with exit status 1 the process itself has said in one line what is wrong
        rank, failure = error.get_first_failure()
        if failure.exitcode == 1:
            sys.exit(1)
        hint = " (perhaps for want of memory: GRAD_CACHE_CHUNK)" if failure.exitcode == -9 else ""
        raise UserError(f"training process {rank} {_end(failure.exitcode)}{hint}; the same command {again}") from None
    except RendezvousTimeoutError:
        raise UserError(f"{settings.nnodes} nodes have not met at RDZV_ENDPOINT={settings.rdzv_endpoint} within "
                        f"{RENDEZVOUS_TIMEOUT} s: start the same command on each") from None
    except (RendezvousError, DistError):
        raise UserError("another node has ended, and its messages say why; the same command on all nodes "
                        f"{again}") from None


def _reach(endpoint):
    """Raise UserError where the endpoint is on another machine, and nobody answers there."""
    host, port = endpoint.split(":")
    deadline = time.monotonic() + RENDEZVOUS_TIMEOUT
    try:
        with socket.socket() as own:
            own.bind((socket.gethostbyname(host), 0))
        return  # an address of this machine: torchrun is about to answer there itself
    except socket.gaierror as error:
        raise UserError(f"RDZV_ENDPOINT={endpoint}: no machine {host} is known here ({error.strerror})") from None
    except OSError:
        pass
    while True:
        try:
            return socket.create_connection((host, int(port)), timeout=max(1, deadline - time.monotonic())).close()
        except OSError as error:
            if time.monotonic() > deadline:
                raise UserError(f"nobody answers at RDZV_ENDPOINT={endpoint} within {RENDEZVOUS_TIMEOUT} s ({one_line(error)}): "
                                "start the same command on that machine, and let the others reach the port") from None
            time.sleep(1)


def _end(code):
    return f"was killed by signal {-code}" if code < 0 else "has failed, or lost the others"
