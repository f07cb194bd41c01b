"""What is around a step: little memory, a clock that jumps, another locale, odd paths, a HOME that is read-only."""

import os
import random
import resource
import shutil
import subprocess
import sys
import time
from functools import partial

from embedding_finetune.settings import Settings

from .bench import CLEAR, EQUAL, LOST, Trial
from .laboratory import DONE, KILLED, RAISED, REFUSED, memory_taken
from .steps import environment

LIMITS = [8 << 20, 32 << 20, 64 << 20, 128 << 20]  # bytes beside what the process has
JUMPS = [-10**7, -3600, 3600, 10**7]  # seconds
ODD = "a folder's \"name\" 数据 é"


def trials(bench):
    for step in bench.steps.values():
        for limit in LIMITS:
            yield Trial("little memory (RLIMIT_AS)", step.name, f"{limit >> 20} MB more",
                        partial(short_of_memory, bench, step, limit))
        for jump in JUMPS:
            yield Trial("a clock that jumps", step.name, f"by {jump} s at any look",
                        partial(surrounded, bench, step, partial(jumping, jump)))
        yield Trial("HOME and TMPDIR read-only", step.name, "", partial(
            surrounded, bench, step, HOME="/proc/nowhere", XDG_CACHE_HOME="/proc/nowhere", HF_HOME="/proc/nowhere"))
        yield Trial("a locale of ASCII alone", step.name, "LC_ALL=C", partial(in_ascii, bench, step))
        yield Trial("a path with blanks, quotes, Chinese", step.name, ODD, partial(elsewhere, bench, step))


def surrounded(bench, step, prepare=lambda: None, **environment):
    """The verdict over a step in a child that `prepare()` has changed."""
    return bench.verdict(step, run_prepared(bench, step, prepare, environment))


def short_of_memory(bench, step, limit):
    """Out of memory, a process is killed, or a library ends it with an exception of its own, which counts alike: the
    same command again must be equal."""
    outcome = run_prepared(bench, step, lambda: resource.setrlimit(
        resource.RLIMIT_AS, (memory_taken() + limit, resource.RLIM_INFINITY)), {})
    return bench.again(step) if outcome.how in (KILLED, RAISED) else bench.verdict(step, outcome)


def run_prepared(bench, step, prepare, environment):
    """The Outcome of a step after `prepare()` in its child."""
    def job():
        prepare()
        return step.run(Settings.load())

    bench.laboratory.load(step.begins)
    return bench.laboratory.run(job, environment=bench.environment | environment | step.environment)


def jumping(seconds):
    """The clock of people jumps back and forth; the one that only counts does not."""
    real, draw = time.time, random.Random(0)
    time.time = lambda: real() + draw.choice([0, seconds])


def elsewhere(bench, step):
    """The whole state in a folder of another name: nothing is compared but that it ends, or says why not."""
    laboratory = bench.laboratory
    laboratory.load("given")
    folder = laboratory.trial / ODD
    folder.mkdir()
    for path in list(laboratory.trial.iterdir()):
        if path != folder:
            shutil.move(path, folder / path.name)
    for earlier in bench.steps_to(step):
        outcome = laboratory.run(bench.job(earlier), environment=environment(folder) | earlier.environment)
        if outcome.how != DONE:
            return (CLEAR, outcome.said) if outcome.how == REFUSED and "\n" not in outcome.said else (
                LOST, f"{earlier.name}: {outcome.how} {outcome.said}")
    return EQUAL, ""


def in_ascii(bench, step):
    """The step in a process of its own, whose locale knows ASCII alone: not every trial, for it imports all anew."""
    bench.laboratory.load(step.begins)
    code = ("from embedding_finetune.settings import Settings; from faults.steps import STEPS; "
            f"next(step for step in STEPS if step.name == {step.name!r}).run(Settings.load())")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("LC_", "LANG"))}
    environment |= bench.environment | step.environment
    environment |= {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    done = subprocess.run([sys.executable, "-X", "utf8=0", "-c", code], capture_output=True, text=True,
                          errors="replace", env=environment)
    if done.returncode:
        return LOST, done.stderr[-2000:]
    why = bench.differs(step, bench.expected[step.name][1])
    return (LOST, why) if why else (EQUAL, "")
