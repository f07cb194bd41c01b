"""See __init__.py."""

import argparse
import collections
import json
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from faults.laboratory import Laboratory, preloaded  # noqa: E402

preloaded()

from faults import damage, disks, fuzz, kills  # noqa: E402
from faults.bench import LOST, Bench, sampled  # noqa: E402

KINDS = {"kills": kills, "disks": disks, "damage": damage, "fuzz": fuzz}


def main():
    parser = argparse.ArgumentParser(prog="python -m faults")
    parser.add_argument("--sample", type=int, help="so many trials of each kind, instead of all")
    parser.add_argument("--cases", type=int, default=10_000, help="of the fuzzer")
    parser.add_argument("--steps", help="of these steps alone, with commas between them")
    parser.add_argument("--kinds", default=",".join(KINDS), help="of these kinds alone")
    parser.add_argument("--json", help="where to write counts and what was lost")
    options = parser.parse_args()
    names = options.steps and options.steps.split(",")
    laboratory, began = Laboratory(), time.monotonic()
    counts, lost = collections.defaultdict(collections.Counter), []
    try:
        bench = Bench(laboratory, names)
        for kind in options.kinds.split(","):
            if kind == "fuzz":
                trials = list(fuzz.trials(bench, options.cases))
            else:
                trials = sampled([trial for trial in KINDS[kind].trials(bench) if not names or trial.step in names],
                                 options.sample)
            for trial in trials:
                verdict, said, *number = trial.run()
                counts[f"{kind}\t{trial.kind}\t{trial.step}"][verdict] += number[0] if number else 1
                if verdict == LOST:
                    lost.append([kind, trial.kind, trial.step, trial.where, said])
                    print("LOST", *lost[-1], flush=True)
    finally:
        laboratory.close()
    total = collections.Counter()
    for row, found in sorted(counts.items()):
        print(row, dict(found))
        total += found
    print(dict(total), f"{time.monotonic() - began:.0f} s")
    if options.json:
        Path(options.json).write_text(json.dumps({"counts": counts, "lost": lost}))


if __name__ == "__main__":
    main()
