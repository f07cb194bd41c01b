"""The steps in a laboratory, each run once undisturbed; and the verdict over a trial: equal, refused, or lost."""

import collections
import random
import re
import shutil
import time
from dataclasses import dataclass

from embedding_finetune.settings import Settings

from .laboratory import DONE, KILL, NAMES, READ, REFUSED, WATCH, Fault
from .steps import STEPS, begin, environment

EQUAL, CLEAR, LOST = "equal", "refused clearly", "lost"


@dataclass(frozen=True)
class Trial:
    """One fault: `kind` and `step` are a row of the table; `run()` gives (verdict, what was said)."""

    kind: str
    step: str
    where: str
    run: object


class Bench:
    """What the trials need: the laboratory, the steps, and for each what it changes and what it leaves, undisturbed."""

    def __init__(self, laboratory, names=None):
        self.laboratory, self.expected, self.changes, self.seconds = laboratory, {}, {}, {}
        self.plant = None  # a bug, put into the child that runs a step
        needed = {step.begins for step in STEPS if names is None or step.name in names}
        needed |= {"trained"} if "interrupted" in needed else set()
        for step in reversed(STEPS):  # a step is needed for what it leaves, too
            needed |= {step.begins} if step.leaves in needed else set()
        self.steps = {step.name: step for step in STEPS
                      if names is None or step.name in names or step.leaves in needed}
        self.environment, self._before = environment(laboratory.trial), {}
        laboratory.run(lambda: begin(laboratory.trial))
        laboratory.keep("given")
        for step in self.steps.values():
            if step.begins == "interrupted":
                self._interrupt()
            for _ in range(2):  # the second time with everything imported
                laboratory.load(step.begins)
                began = time.monotonic()
                outcome = self.run(step)
                self.seconds[step.name] = time.monotonic() - began
                assert outcome.how == DONE, f"{step.name}: {outcome.said}"
                laboratory.import_what_was_missed()
            self.expected[step.name] = laboratory.snapshot(), outcome.value
            self.changes[step.name] = outcome.events
            if step.leaves:
                laboratory.keep(step.leaves)

    def steps_to(self, step):
        """The steps that lead from `given` to the end of a step, itself included."""
        earlier = next((other for other in STEPS if other.leaves == step.begins), None)
        earlier = self.steps["train"] if step.begins == "interrupted" else earlier
        return [*(self.steps_to(earlier) if earlier else ()), step]

    def job(self, step):
        def run():
            if self.plant:
                self.plant()
            return step.run(Settings.load())
        return run

    def run(self, step, fault=None, **more):
        """Run a step in a child, once."""
        arguments = [] if fault is None else [fault]
        return self.laboratory.run(self.job(step), *arguments, environment=self.environment | more | step.environment)

    def before(self, step):
        """The snapshot of the state that a step begins with."""
        if step.begins not in self._before:
            self._before[step.begins] = self.laboratory.snapshot(self.laboratory.states / step.begins)
        return self._before[step.begins]

    def reads(self, step):
        """The files that a step reads, undisturbed, if they are there before it."""
        self.laboratory.load(step.begins)
        there = {str(self.laboratory.trial / path) for path in self.before(step)}
        return sorted(there & {path for *_, path in self.run(step, Fault(WATCH, kinds=READ)).events})

    def where(self, step, number, kinds):
        """What the n-th change of these kinds was, undisturbed."""
        kind, *_, path = [event for event in self.changes[step.name] if event[0] & kinds][number]
        path = path.removeprefix(f"{self.laboratory.trial}/")
        return f"{NAMES[kind]} {number} {re.sub(r'[.][0-9]+[.]partial', '.PID.partial', path)}"

    # -- verdicts --

    def differs(self, step, value, aside=None):
        """Why what is there now is not what the step leaves undisturbed; "" where it is. The path `aside` may be as it
        is, whether a file or a folder."""
        expected, returned = self.expected[step.name]
        now = self.laboratory.snapshot()
        paths = sorted(path for path in now.keys() | expected.keys()
                       if now.get(path) != expected.get(path) and not _below(path, aside))
        if paths:
            path = paths[0]
            what = "is missing" if path not in now else "is too much" if path not in expected else "is another"
            return f"{path} {what} (of {len(paths)} that differ)"
        return "" if value == returned else f"it returned {str(value)[:200]}"

    def gone(self, step, aside=None):
        """Which file of those that were there is neither as it was, nor as it is to become, nor elsewhere."""
        now, expected, before = self.laboratory.snapshot(), self.expected[step.name][0], self.before(step)
        contents = set(now.values())
        lost = [path for path, content in before.items() if not _below(path, aside) and content not in contents
                and now.get(path) != expected.get(path)]
        return lost[0] if lost else ""

    def again(self, step, aside=None):
        """The verdict over the same command, once more and undisturbed."""
        if lost := self.gone(step, aside):
            return LOST, f"{lost} is gone"
        outcome = self.run(step)
        if outcome.how == DONE:
            why = self.differs(step, outcome.value, aside)
            return (LOST, f"again: {why}") if why else (EQUAL, "")
        return LOST, f"again: {outcome.how} {outcome.said}"

    def verdict(self, step, outcome, aside=None, mended=True):
        """The verdict over a run that has ended by itself; where the fault is over (`mended`), the same command again
        must come to the undisturbed end."""
        if outcome.how == DONE:
            why = self.differs(step, outcome.value, aside)
            return (LOST, why) if why else (EQUAL, "")
        if outcome.how != REFUSED:
            return LOST, f"{outcome.how} {outcome.said}"
        if "\n" in outcome.said.strip():
            return LOST, f"more than a line: {outcome.said}"
        if lost := self.gone(step, aside):
            return LOST, f"{lost} is gone after: {outcome.said}"
        verdict, said = self.again(step, aside) if mended else (EQUAL, "")
        return (CLEAR, outcome.said) if verdict == EQUAL else (verdict, f"{said} (after: {outcome.said})")

    def another(self):
        """The folder of the whole experiment as another seed leaves it."""
        laboratory, folder = self.laboratory, self.laboratory.home / "another"
        if not folder.exists():
            laboratory.load("given")
            for step in self.steps.values():
                if step.leaves:
                    self.run(step, SEED="7")
            shutil.copytree(laboratory.trial, folder)
        return folder

    def _interrupt(self):
        """The state `interrupted`: a training that was killed at its third and last checkpoint."""
        step = self.steps["train"]
        number = next(number for number, (*_, path) in enumerate(self.changes["train"]) if "checkpoint-3" in path)
        self.laboratory.load("built")
        self.run(step, Fault(KILL, number))
        self.laboratory.keep("interrupted")


def _below(path, folder):
    path = path.replace(".TIME/", "/")  # a model that was moved aside
    return folder is not None and (path == folder or path.startswith(f"{folder}/"))


def sampled(trials, number, seconds, seed=0):
    """So many of the trials, all of them for None: each kind and step gets the same time, as `seconds` (step -> how
    long it takes) foretell it, as far as it has trials."""
    if number is None or number >= len(trials):
        return trials
    groups = collections.defaultdict(list)
    for trial in trials:
        groups[trial.kind, trial.step].append(trial)
    draw, chosen, spent = random.Random(seed), [], dict.fromkeys(groups, 0.0)
    for group in groups.values():
        draw.shuffle(group)
    while len(chosen) < number:
        key = min(filter(groups.get, groups), key=spent.get)
        chosen.append(groups[key].pop())
        spent[key] += seconds[key[1]]
    return chosen
