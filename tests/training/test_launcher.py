"""The processes of a training: how they are launched, what ends them and what starts them again, and several nodes."""

import contextlib
import dataclasses
import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from torch.distributed.elastic.multiprocessing import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

from embedding_finetune.files import UserError
from embedding_finetune.training import launcher as launching

FOLDER = Path(__file__).parent.parent


def free_port():
    with socket.socket() as own:
        own.bind(("localhost", 0))
        return own.getsockname()[1]


@pytest.mark.parametrize("ignored", [[], [signal.SIGHUP], [signal.SIGHUP, signal.SIGINT]])
def test_the_training_ends_with_its_terminal_unless_nohup_has_it_ignore_that(built, monkeypatch, ignored):
    started = []
    monkeypatch.setattr(launching, "elastic_launch", lambda *how: lambda *words: started.extend([*how, *words]))
    every = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGHUP)  # the tests may run under nohup themselves
    wanted = {number: signal.SIG_IGN if number in ignored else signal.SIG_DFL for number in every}
    before = {number: signal.signal(number, handler) for number, handler in wanted.items()}
    try:
        launching.launch(built, "neg10", "module", ["--flag"])
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    config, program, *words = started
    handled = config.signals_to_handle.split(",")
    assert set(handled) == {"SIGTERM", "SIGINT", "SIGQUIT", "SIGHUP"} - {number.name for number in ignored}
    assert (program, words) == (sys.executable, ["-u", "-m", "module", "--flag"])
    assert (config.min_nodes, config.max_nodes, config.nproc_per_node, config.max_restarts) == (1, 1, 1, 0)


@pytest.mark.parametrize("exit_code, trainer, said", [
    (-signal.SIGKILL, "embedding_finetune", "training process 1 was killed by signal 9 (possibly out of memory: set "
                                            "GRAD_CACHE_CHUNK); run the same command again to continue"),
    (-signal.SIGSEGV, "flagembedding", "training process 1 was killed by signal 11; run the same command again to "
                                        "start over"),
    (1, "embedding_finetune", None),  # the process has said what is wrong
    (75, "embedding_finetune", "training process 1 failed, or lost the connection to the others; run the same command "
                               "again to continue"),
    ("SIGINT", "embedding_finetune", "stopped by SIGINT; run the same command again to continue"),
])
def test_what_ended_the_training_is_said_in_one_line(built, monkeypatch, exit_code, trainer, said):
    def start(*words):
        if isinstance(exit_code, str):
            raise SignalException("got a signal", signal.Signals[exit_code])
        raise ChildFailedError("module", {1: ProcessFailure(0, 1234, exit_code, "")})

    monkeypatch.setattr(launching, "elastic_launch", lambda *words: start)
    with pytest.raises(UserError if said else SystemExit) as stopped:
        launching.launch(dataclasses.replace(built, trainer=trainer), "neg10", "module", [])
    assert str(stopped.value) == (said or "1")


@pytest.mark.parametrize("changes, message", [
    ({"gpus": 3}, "GPUS=3 is more than the GPUs of this machine: use at most 2"),
    ({"nnodes": 2}, "NNODES=2 needs RDZV_ENDPOINT=HOST:PORT"), ({"gpus": 2}, None),
    ({"nnodes": 2, "rdzv_endpoint": "node1:29400"}, None), ({"max_restarts": 2}, None),
    ({"nnodes": 2, "rdzv_endpoint": "node1:29400", "max_restarts": 2}, "MAX_RESTARTS=2 is for one machine: with NNODE"),
])
def test_what_a_machine_cannot_start_is_refused(built, monkeypatch, changes, message):
    monkeypatch.setattr(launching.torch.cuda, "device_count", lambda: 2)
    with pytest.raises(UserError, match=message) if message else contextlib.nullcontext():
        launching.check_processes(dataclasses.replace(built, **changes))


@pytest.mark.long
def test_who_starts_again_and_who_waits(tmp_path):
    """Two restarts are allowed on one node, but not for a process that has said what is wrong."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    port = free_port()
    run = subprocess.run([sys.executable, FOLDER / "launches.py", tmp_path, str(port)], env=environment,
                         capture_output=True, text=True, timeout=240)
    assert run.returncode == 0 and "Traceback" not in run.stderr, run.stderr[-2000:]
    found = json.loads(run.stdout.splitlines()[-1])
    assert {how: (ended["starts"], ended["line"]) for how, ended in found.items()} == {
        "0": (1, None), "1": (1, 1),
        "75": (3, "training process 0 failed, or lost the connection to the others; run the same command again to "
                  "continue"),
        "killed": (3, "training process 0 was killed by signal 9 (possibly out of memory: set GRAD_CACHE_CHUNK); "
                      "run the same command again to continue"),
        "alone": (0, f"2 nodes did not join at RDZV_ENDPOINT=localhost:{port} within 3 s: start the same "
                     "command on each node"),
        **{how: (0, found[how]["line"]) for how in ("silent", "unknown")}, "given up": (2, found["given up"]["line"])}
    lost = "another node has ended; see its messages for the cause", "training process 0 failed, or lost the connection"
    assert found["given up"]["line"].startswith(lost)  # what is noticed first: that the other agent or process ended
    assert found["given up"]["line"].endswith("run the same command again to continue on all nodes")
    assert found["silent"]["line"].startswith("no response from RDZV_ENDPOINT=192.0.2.1:29400 within 3 s (")
    assert found["unknown"]["line"].startswith("RDZV_ENDPOINT=no.machine.invalid:1: cannot resolve the host "
                                               "no.machine.invalid (")
    assert found["given up"]["seconds"] < 60
    lines = run.stderr.splitlines()
    assert [line for line in lines if "killed" in line] == [
        f"training process 0 was killed by signal 9: restarting all from the last checkpoint ({left} of MAX_RESTARTS "
        "left)" for left in (2, 1)]
