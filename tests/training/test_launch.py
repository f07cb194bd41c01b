"""The processes of a training: how torchrun is told, what ends them and what starts them again, and several nodes."""

import dataclasses
import signal

import pytest
from torch.distributed.elastic.multiprocessing import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

from embedding_finetune.files import UserError
from embedding_finetune.training import launch as launching


@pytest.mark.parametrize("ignored", [[], [signal.SIGHUP], [signal.SIGHUP, signal.SIGINT]])
def test_the_training_ends_with_its_terminal_unless_nohup_has_it_ignore_that(built, monkeypatch, ignored):
    words = []
    monkeypatch.setattr(launching, "torchrun", words.extend)
    every = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT, signal.SIGHUP)  # the tests may run under nohup themselves
    wanted = {number: signal.SIG_IGN if number in ignored else signal.SIG_DFL for number in every}
    before = {number: signal.signal(number, handler) for number, handler in wanted.items()}
    try:
        launching.launch(built, "neg10", "module", ["--flag"])
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    handled = words[words.index("--signals-to-handle") + 1].split(",")
    assert set(handled) == {"SIGTERM", "SIGINT", "SIGQUIT", "SIGHUP"} - {number.name for number in ignored}
    assert words[-3:] == ["-m", "module", "--flag"] and words[words.index("--nproc_per_node") + 1] == "1"


@pytest.mark.parametrize("exit_code, trainer, said", [
    (-signal.SIGKILL, "embedding_finetune", "training process 1 was killed by signal 9 (perhaps for want of memory: "
                                            "GRAD_CACHE_CHUNK); the same command continues it"),
    (-signal.SIGSEGV, "flagembedding", "training process 1 was killed by signal 11; the same command begins it anew"),
    (1, "embedding_finetune", None),  # the process has said what is wrong
    (75, "embedding_finetune", "training process 1 has failed, or lost the others; the same command continues it"),
    ("SIGINT", "embedding_finetune", "stopped by SIGINT; the same command continues it"),
])
def test_what_ended_the_training_is_said_in_one_line(built, monkeypatch, exit_code, trainer, said):
    def torchrun(words):
        if isinstance(exit_code, str):
            raise SignalException("got a signal", signal.Signals[exit_code])
        raise ChildFailedError("module", {1: ProcessFailure(0, 1234, exit_code, "")})

    monkeypatch.setattr(launching, "torchrun", torchrun)
    with pytest.raises(UserError if said else SystemExit) as stopped:
        launching.launch(dataclasses.replace(built, trainer=trainer), "neg10", "module", [])
    assert str(stopped.value) == (said or "1")
