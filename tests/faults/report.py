"""tests/faults/RESULTS.md: what was tried, and how it ended."""

import collections
import os
import platform
import re
import time

import numpy as np

from .bench import CLEAR, EQUAL, LOST

PAGE = """# Seeded faults

`make faults` injects faults into the real steps of a tiny experiment (120 pairs, a random BERT of two layers) and
writes this page. A trial may end in two ways. *Equal*: data, weights, vectors and metrics are byte for byte those of an
undisturbed run, if necessary after the same command is run again. *Refused*: one clear message, and all existing files
are unchanged. Anything else is *lost*, and a bug.

{when}, {machine}, {minutes:.0f} minutes, {processes}.

{kinds}

Bugs that were planted to test the harness:
{planted}.

By step, without the {fuzzed:,} cases of the fuzzer:

{steps}

Method:

- **Kills and disk errors.** A preloaded library counts the changes in a folder (open for writing, write, fsync, rename,
  unlink, mkdir) and the reads, including those of C++ and Rust libraries. At the n-th one it kills the process, sends a
  signal, or returns a disk error. After a *power cut*, everything that was not synced is truncated.
- **Damage** changes files in DATA_DIR and OUTPUT_DIR between two steps.
- **Two at once** runs the same command twice in one folder.
- **A hub** is a local server, from which pairs and a model are loaded into an empty cache. It fails at the n-th
  request, once or permanently, or has a new revision. All loaded files must be of one revision, and retries must end
  within ten minutes.
- **The fuzzer** (hypothesis, with a stored seed) covers everything that is read: settings, recipes, all data formats,
  our own files, model files, requests.

A sample of all this is part of `make test`, and so are the planted bugs (`tests/faults/plants.py`).

Limits:

- Changes of the pairs or of the base model are a new experiment, so damage to them is not detected.
- A file of an index is hashed only if its time of change is new. Its model, records and data are always hashed.
- A model card (`README.md`) may be edited. A deleted result is not compared.
- A killed process leaves hidden files (`.NAME.MACHINE.PID.partial`), which nothing reads.
- With too little memory, a process may end with the traceback of a library. This counts as a kill: the same command
  must then end equal.
- Steps that start other processes (torchrun, notebooks) run in one process here. Several machines, network file
  systems, the training of a reranker and exported models were not tested.
"""

SOAK = """## Soak of the server

`make soak` queries the real server over the tiny experiment for half an hour, with a dense model, BM25 and their
fusion, and writes this section. Every answer is compared with one computed without server and index: ids and texts must
be equal, scores to 1e-5. While data or weights change, an answer must come entirely from the old or entirely from the
new version. A request may be refused with a proper status, and may remain unanswered only while no server is running.

{when}, {machine}; {clients} clients.
Faults: {faults}.

{table}
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
    put(path, PAGE.format(
        when=time.strftime("%Y-%m-%d"), minutes=seconds / 60, fuzzed=fuzzed, machine=_machine(),
        processes="one process" if processes == 1 else f"{processes} processes",
        planted="; ".join(f"{name}: {f'found by trial {number}' if number else 'not found'}"
                          for name, number in planted.items()) or "none this time",
        kinds=_table(["kind", "fault"], kinds), steps=_table(["step"], steps)))


def put(path, section):
    """Write a section, which begins with its heading, into a page: over the one with this heading, or at the end."""
    there = re.split(r"\n(?=## )", path.read_text(encoding="utf-8")) if path.exists() else []
    heading = section.partition("\n")[0]
    there = {text.partition("\n")[0]: text for text in there} | {heading: section}
    path.write_text("\n".join(there.values()), encoding="utf-8")


def soak_section(soak):
    """The section about a soak that has ended (see soak.Soak)."""
    counts, clients = soak.clients.counts, soak.clients
    median, slow = (1000 * np.percentile(clients.seconds, share) for share in (50, 99))
    times, memory, files, threads = np.array(soak.server.samples).T
    fifths = [memory[times >= times[-1] * share][0] for share in (0.2, 0.4, 0.6, 0.8)]
    warm = times >= 0.4 * times[-1]
    slope = 3600 * np.polyfit(times[warm], memory[warm], 1)[0]
    refused = ", ".join(f"{number:,} by {what.removeprefix('refused: ')}" for what, number in sorted(counts.items())
                        if what.startswith("refused: "))
    rows = [
        ["requests", f"{counts['requests']:,}"], ["answered, and right", f"{counts['right']:,}"],
        ["answered wrongly, cut off, or against the rules", f"{len(clients.wrong)}"], ["refused", refused],
        ["without an answer, as there was no server", f"{counts['without a server']:,}"],
        ["clients that went away / hung", f"{counts['clients that went away']} / {counts['clients that hung']}"],
        ["latency between the faults, p50 / p99", f"{median:.0f} / {slow:.0f} ms ({len(clients.seconds):,} requests)"],
        ["memory of the last server: at its start, after each fifth of its time",
         f"{memory[0]:.0f}; {', '.join(f'{one:.0f}' for one in [*fifths, memory[-1]])} MB"],
        ["its slope after two fifths", f"{slope:+.1f} MB an hour, in {times[-1] / 60:.0f} minutes"],
        ["its open files and threads, start / end",
         f"{files[0]:.0f} / {files[-1]:.0f}, {threads[0]:.0f} / {threads[-1]:.0f}"]]
    return SOAK.format(when=time.strftime("%Y-%m-%d"), machine=_machine(), clients=len(clients.threads),
                       faults=", ".join(f"{name} {number}" for name, number in soak.faults.items()),
                       table="\n".join(f"| {name} | {value} |" for name, value in [["", ""], ["---", "---"], *rows]))


def _machine():
    return f"{os.cpu_count()} CPU cores ({platform.machine()}, Linux {platform.release()}), shared with others"


def _table(names, rows):
    total = sum(rows.values(), collections.Counter())
    lines = [[*names, "tried", "survived equal", "refused clearly", "lost"], ["---"] * (len(names) + 4)]
    for key, found in [*rows.items(), (("all", *[""] * (len(names) - 1)), total)]:
        words = [key] if isinstance(key, str) else key
        lines.append([*words, *(f"{number:,}" for number in (sum(found.values()), found[EQUAL], found[CLEAR],
                                                             found[LOST]))])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
