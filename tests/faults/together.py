"""Two of everything at once in one folder: both must end equal, or one of them in one clear line."""

from functools import partial

from .bench import CLEAR, EQUAL, LOST, Trial
from .laboratory import DONE, REFUSED, WATCH, Fault

ROUNDS = 6


def trials(bench):
    """Each step beside itself, some times over: the moments at which they meet differ."""
    for step in bench.steps.values():
        for number in range(ROUNDS):
            yield Trial("two at once", step.name, f"round {number}", partial(both, bench, step))


def both(bench, step):
    laboratory = bench.laboratory
    laboratory.load(step.begins)
    jobs = [(bench.job(step), Fault(WATCH))] * 2
    outcomes = laboratory.together(jobs, bench.environment | step.environment)
    for outcome in outcomes:
        if outcome.how not in (DONE, REFUSED):
            return LOST, f"{outcome.how} {outcome.said}"
        if "\n" in outcome.said.strip():
            return LOST, f"more than a line: {outcome.said}"
    done = [outcome for outcome in outcomes if outcome.how == DONE]
    if not done:
        return bench.verdict(step, outcomes[0])
    if len(done) == 2 and "OVERWRITE" in step.environment and step.name == "train over":
        return EQUAL, ""  # the second has moved the model of the first aside, as it was told
    why = bench.differs(step, done[0].value)
    return (LOST, why) if why else (EQUAL, "") if len(done) == 2 else (CLEAR, "one was refused")
