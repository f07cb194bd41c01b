"""Files that are not what they were, between any two steps: cut short, a bit turned, emptied, gone, exchanged with one
of their kind, of another making, or a folder in their place."""

import random
import shutil
from functools import partial
from pathlib import Path

from .bench import Trial
from .laboratory import LEFTOVER

OURS = ("data/", "output/")  # what the user has given may be anything, see fuzz
FREE = "README.md"  # the model card is for people, who may write into it what they like


def cut_short(path, draw):
    path.write_bytes(path.read_bytes()[:-1 - draw.randrange(max(1, path.stat().st_size - 1))])


def turn_a_bit(path, draw):
    content = bytearray(path.read_bytes() or b"\0")
    content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
    path.write_bytes(content)


def remove(path, draw):
    path.unlink()


def exchange(path, draw):
    """With another file of its kind from the same state: each is where the other was."""
    others = [other for other in path.parents[1].rglob(f"*{path.suffix}") if other.is_file() and other != path
              and other.read_bytes() != path.read_bytes()]
    if others:
        path.write_bytes(draw.choice(others).read_bytes())


def put_a_folder(path, draw):
    path.unlink()
    path.mkdir()
    (path / "inside").write_text("something")


DAMAGES = {"cut short": cut_short, "a bit turned": turn_a_bit, "emptied": lambda path, draw: path.write_bytes(b""),
           "removed": remove, "exchanged": exchange, "a folder in its place": put_a_folder,
           "noise": lambda path, draw: path.write_bytes(draw.randbytes(draw.randrange(1, 3000)))}


def trials(bench):
    for step in bench.steps.values():
        state = bench.laboratory.states / step.begins
        for path in sorted(state.rglob("*")):
            name = str(path.relative_to(state))
            if not path.is_file() or not name.startswith(OURS) or path.name == FREE:
                continue
            if any(map(LEFTOVER.search, path.relative_to(state).parts)):
                continue
            for kind, damage in DAMAGES.items():
                if damage is remove and path.parent.name == "results":
                    continue  # so one says that a model is not to be compared
                for seed in range(3 if damage in (turn_a_bit, cut_short) else 1):
                    yield Trial(kind, step.name, f"{name}, seed {seed}",
                                partial(damaged, bench, step, name, damage, seed))
            if step.begins != "given":
                yield Trial("of another making", step.name, name,
                            partial(damaged, bench, step, name, partial(of_another_making, bench, name), 0))


def of_another_making(bench, name, path, draw):
    """The same file as the experiment with another seed left it, as far as it has one."""
    other = bench.another() / name
    if other.is_file():
        shutil.copy(other, path)


def damaged(bench, step, name, damage, seed):
    laboratory = bench.laboratory
    bench.another()
    laboratory.load(step.begins)
    damage(laboratory.trial / name, random.Random(f"{name} {seed}"))
    # Vectors that are computed again may be stored in other files of their folder.
    aside = str(Path(name).parent) if name.startswith("output/cache/") else name
    return bench.verdict(step, bench.run(step), aside=aside, mended=False)
