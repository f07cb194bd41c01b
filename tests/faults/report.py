"""docs/reliability.md: what was tried, and how it ended."""

import collections
import os
import platform
import time

from .bench import CLEAR, EQUAL, LOST

PAGE = """# What happens when something goes wrong

Faults on purpose, in the real steps of a tiny experiment (120 pairs, a random BERT of two layers): `make faults`, which
writes this page. A trial ends well in two ways: *equal* to an undisturbed run, byte for byte in data, weights, vectors
and metrics, if need be after the same command again; or *refused* in one clear line, with everything that was there
still there. Anything else is *lost*, and a bug.

{when}, {machine}, {minutes:.0f} minutes, {processes}.

{kinds}

Planted bugs, to see that the harness finds them: {planted}.

The same by step ({fuzzed:,} cases of the fuzzer aside):

{steps}

How it is done: a library that is preloaded counts the changes below a folder (open for writing, write, fsync, rename,
unlink, mkdir) and the reads, also those of libraries in C++ and Rust, and at the n-th it kills the process, sends a
signal or returns an error of the disk. After a *power cut*, what was not brought to the disk by fsync is cut off. *Damage* is done to the
files in DATA_DIR and OUTPUT_DIR between two steps. *Two at once* are two processes with the same command in one folder.
The *fuzzer* (hypothesis, with a seed that is kept) feeds everything that is read: settings, recipes, data in each form,
our own files, a model's, requests. A sample of all this is part of `make test`, and so are
the planted bugs (`tests/faults/plants.py`).

What is not in these numbers:

- Who changes the pairs or the base model changes the experiment: their damage is not to be seen.
- A file of an index whose bits turn without a new time of change is taken as it is: hashing it at each search would
  take longer than the search. Its model, its records and its data are hashed.
- A model card (`README.md`) is for people, who may write into it. A result that is removed is not compared.
- A process that is killed leaves hidden files (`.NAME.PID.partial`) beside what it wrote; nothing reads them.
- Short of memory, a process may end by an exception of the library that asked for it, with its traceback. That counts
  as a kill: the same command must then end equal.
- Steps that start other processes (torchrun, notebooks) run in one process here. Several machines, network file
  systems, a reranker's training and compiled models are not tried.
"""


def write_report(path, counts, planted, seconds, processes=1):
    """Write the page from counts: "group<tab>kind<tab>step" -> Counter of verdicts; and from which
    trial found which planted bug, 0 for none."""
    kinds, steps = collections.defaultdict(collections.Counter), collections.defaultdict(collections.Counter)
    for row, found in counts.items():
        group, kind, step = row.split("\t")
        kinds[group, kind] += found
        if group != "fuzz":
            steps[step] += found
    fuzzed = sum(sum(found.values()) for (group, _), found in kinds.items() if group == "fuzz")
    path.write_text(PAGE.format(
        when=time.strftime("%Y-%m-%d"), minutes=seconds / 60, fuzzed=fuzzed,
        processes="one process" if processes == 1 else f"{processes} processes",
        machine=f"{os.cpu_count()} CPU cores ({platform.machine()}, Linux {platform.release()}), shared with others",
        planted="; ".join(f"{name}: {f'found by trial {number}' if number else 'not found'}"
                          for name, number in planted.items()) or "none this time",
        kinds=_table(["kind", "fault"], kinds), steps=_table(["step"], steps)), encoding="utf-8")


def _table(names, rows):
    total = sum(rows.values(), collections.Counter())
    lines = [[*names, "tried", "survived equal", "refused clearly", "lost"], ["---"] * (len(names) + 4)]
    for key, found in [*rows.items(), (("all", *[""] * (len(names) - 1)), total)]:
        words = [key] if isinstance(key, str) else key
        lines.append([*words, *(f"{number:,}" for number in (sum(found.values()), found[EQUAL], found[CLEAR],
                                                             found[LOST]))])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
