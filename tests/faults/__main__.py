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

from faults import damage, disks, kills  # noqa: E402
from faults.bench import LOST, Bench, sampled  # noqa: E402

KINDS = {"kills": kills, "disks": disks, "damage": damage}


def main():
    parser = argparse.ArgumentParser(prog="python -m faults")
    parser.add_argument("--sample", type=int, help="so many trials of each kind, instead of all")
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
            trials = [trial for trial in KINDS[kind].trials(bench) if not names or trial.step in names]
            for trial in sampled(trials, options.sample):
                verdict, said = trial.run()
                counts[f"{kind}\t{trial.kind}\t{trial.step}"][verdict] += 1
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
