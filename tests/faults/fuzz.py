"""Hypothesis feeds what is read (see targets.py): each case must end in a result or a UserError, soon, in little
memory. The seed is kept, so a case comes back; the smallest failing one is what is reported."""

import contextlib
import json
import resource
import signal
from functools import partial

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from embedding_finetune.files import UserError

from .bench import EQUAL, LOST, Trial
from .laboratory import DONE, memory_taken

SECONDS, MEMORY = 10, 2 << 30  # of a case, and of all cases of a target beside what the harness takes itself
SEED = 20_26
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20)
VALUES = st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=4)
                      | st.dictionaries(st.text(max_size=8), inner, max_size=4), max_leaves=8)
PIECES = st.sampled_from([
    b"", b"\0", b"\n", b"\r\n", b"\t", b",", b'"', b"{", b"}", b"[", b"]", b"[" * 5000, b"\xff\xfe", b"\xef\xbb\xbf",
    b"\xed\xa0\x80", b"null", b"NaN", b"1e999", b"9" * 5000, b"-1", b"PAR1", b"\\ud800", "第二".encode(),
    b"a" * 70_000,
]) | st.binary(max_size=12)


@st.composite
def broken(draw, content):
    """Bytes that are nearly `content`: some pieces of it are cut out, doubled, or others put in their place."""
    content = bytearray(content)
    for _ in range(draw(st.integers(0, 4))):
        start = draw(st.integers(0, len(content)))
        end = start + draw(st.sampled_from([0, 1, 2, 7, 50, len(content)]))
        piece = draw(PIECES | st.just(bytes(content[start:end]) * 2))
        content[start:end] = piece
    return bytes(content)


@st.composite
def otherwise(draw, value):
    """A JSON value that is nearly `value`: at some places it has another value, or none."""
    value = json.loads(json.dumps(value))
    for _ in range(draw(st.integers(1, 3))):
        holder, key, inner = None, None, value
        while isinstance(inner, dict | list) and inner and (holder is None or draw(st.booleans())):
            holder, key = inner, draw(st.sampled_from(sorted(inner) if isinstance(inner, dict) else range(len(inner))))
            inner = holder[key]
        new = draw(VALUES)
        if holder is None:
            value = new
        elif isinstance(holder, dict) and draw(st.integers(0, 3)) == 0:
            del holder[key]
        else:
            holder[key] = new
    return value


def explored(check, strategy, cases):
    """Call `check`, which may raise UserError, with so many values of a strategy; returns [cases, what failed].

    What failed is the smallest failing value and its error, None where all went well.
    """
    number, failed = 0, None

    def late(*_):
        raise TimeoutError(f"more than {SECONDS} s")

    def one(value):
        nonlocal number, failed
        number += 1
        signal.signal(signal.SIGALRM, late)
        signal.alarm(SECONDS)
        try:
            check(value)
        except UserError as error:
            assert "\n" not in str(error).strip(), f"more than a line: {error}"
        except BaseException as error:
            failed = f"{type(error).__name__}: {error!s:.300} for {value!r:.500}"
            raise
        finally:
            signal.alarm(0)

    run = seed(SEED)(settings(max_examples=cases, database=None, deadline=None, phases=[
        Phase.generate, Phase.shrink], suppress_health_check=list(HealthCheck))(given(strategy)(one)))
    soft = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (memory_taken() + MEMORY, soft[1]))
    with contextlib.suppress(Exception):
        run()
    return [number, failed]


def trials(bench, cases):
    """A trial for each target, with its share of the cases."""
    from . import own_targets  # noqa: F401, which adds its targets
    from .targets import TARGETS
    total = sum(target.weight for target in TARGETS)
    for target in TARGETS:
        if target.state in bench.laboratory.kept():
            share = max(5, round(cases * (target.share or target.weight / total)))
            yield Trial("fuzzing", target.name, f"{share} cases", partial(fuzzed, bench, target, share))


def fuzzed(bench, target, cases):
    """The verdict over all cases of a target, and their number."""
    bench.laboratory.load(target.state)
    outcome = bench.laboratory.run(lambda: target.run(bench.laboratory.trial, cases), patience=600,
                                   environment=bench.environment)
    if outcome.how != DONE:
        return LOST, f"{outcome.how} {outcome.said}", 0
    number, failed = outcome.value
    return (LOST, failed, 1) if failed else (EQUAL, "", number)
