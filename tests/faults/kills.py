"""kill -9 and signals: before each change that a step makes, in the middle of each write, and with the power cut."""

import signal
from functools import partial

from .bench import LOST, Trial
from .laboratory import CHANGES, DONE, HUNG, KILL, SIGNAL, TEAR, WRITE, Fault


def trials(bench):
    """A trial for each change of each step, each way to end."""
    for step in bench.steps.values():
        for number, (kind, *_) in enumerate(bench.changes[step.name]):
            ways = {"kill -9": Fault(KILL, number), "power cut": Fault(KILL, number, power=True)}
            ways |= {"kill -9 in a write": Fault(TEAR, number)} if kind == WRITE else {}
            name = signal.Signals([signal.SIGTERM, signal.SIGINT, signal.SIGHUP][number % 3])
            ways |= {"SIGTERM, SIGINT, SIGHUP": Fault(SIGNAL, number, name)} if number % 5 == 0 else {}
            for way, fault in ways.items():
                yield Trial(way, step.name, bench.where(step, number, CHANGES), partial(killed, bench, step, fault))


def killed(bench, step, fault):
    """The verdict over a step that was ended by force, and run again."""
    laboratory = bench.laboratory
    laboratory.load(step.begins)
    inodes = laboratory.inodes() if fault.power else {}
    outcome = bench.run(step, fault)
    if fault.power:
        laboratory.cut_power(outcome.events, inodes)
    if outcome.how == DONE:  # it came to its end before the fault, or in spite of it
        return bench.verdict(step, outcome)
    if outcome.how == HUNG:
        return LOST, "it hung"
    return bench.again(step)
