"""Processes that need not import the libraries: a server has imported them once, and forks each process.

A process of its own has its own environment, output, signals and end, as `python -m MODULE` has; what is shared is the
import, which takes longer than a tiny training. Nothing is computed in the server, so that its forks may train.
"""

import contextlib
import io
import multiprocessing
import os
import runpy
import signal
import sys
from pathlib import Path
from unittest import mock

from torch.distributed import run as torchrun
from torch.distributed.launcher import api as launcher

from embedding_finetune.settings import ROOT

SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["embedding_finetune.training.worker", "embedding_finetune.pipeline", "FlagEmbedding",
                               "sentence_transformers", "IPython.core.interactiveshell"])


@contextlib.contextmanager
def forked(function, *arguments, log, errors=None, **environment):
    """A process that calls `function(*arguments)` in ROOT, its output in the file `log`, or what goes to standard error
    in the file `errors`; it is killed in the end."""
    words = (function, tuple(map(str, arguments)), str(log), str(errors or log), os.environ | environment)
    process = SERVER.Process(target=_begin, args=words)
    process.start()
    try:
        yield process
    finally:
        process.kill()
        process.join()


def run_forked(function, *arguments, log, **environment):
    """Let such a process come to its end; returns its exit status, and what it said."""
    with forked(function, *arguments, log=log, **environment) as process:
        process.join()
        return process.exitcode, Path(log).read_text(encoding="utf-8")


def _begin(function, arguments, log, errors, environment):
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(ROOT)
    for path in (log, errors):
        Path(path).write_bytes(b"")
    for place, path in enumerate((log, errors), start=1):
        os.dup2(os.open(path, os.O_APPEND | os.O_WRONLY), place)
    function(*arguments)


def command(module, *words):
    """`python -m MODULE WORDS`; the processes that elastic_launch starts are forked, too."""
    _forget_the_package()
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)  # torchrun has handlers of its own
    launch = launcher.launch_agent

    def launch_agent(config, entrypoint, words, **options):
        config.start_method = "fork"
        return launch(config, command, words[words.index("-m") + 1:], **options)

    with mock.patch.object(launcher, "launch_agent", launch_agent):
        sys.argv = [module, *words]
        if module == torchrun.__name__:
            torchrun.main()
        else:
            runpy.run_module(module, run_name="__main__", alter_sys=True)


def _forget_the_package():
    """It reads the environment when it is imported."""
    for name in [name for name in sys.modules if name.partition(".")[0] == "embedding_finetune"]:
        del sys.modules[name]


def program(source, *words):
    """`python -c SOURCE WORDS`"""
    _forget_the_package()
    sys.argv = ["-c", *words]
    exec(compile(source, "-c", "exec"), {"__name__": "__main__"})


def debugged(typed, *words):
    """`python -m pdb WORDS`, with what is typed."""
    sys.stdin = io.StringIO(typed)
    command("pdb", *words)
