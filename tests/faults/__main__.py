"""See __init__.py."""

import argparse
import collections
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

if sys.argv[1:2] == ["soak"]:
    from faults.soak import main
    sys.exit(main(sys.argv[2:]))

from faults.laboratory import Laboratory, preloaded  # noqa: E402

preloaded()

from faults import damage, disks, fuzz, hubs, kills, surroundings, together  # noqa: E402
from faults.bench import LOST, Bench, sampled  # noqa: E402
from faults.plants import PLANTS, found  # noqa: E402
from faults.report import write_report  # noqa: E402

KINDS = {"kills": kills, "disks": disks, "damage": damage, "together": together, "surroundings": surroundings,
         "fuzz": fuzz, "hubs": hubs}
FULL = {"kills": 2200, "disks": 660, "damage": 1100, "together": None, "surroundings": None,
        "hubs": 120}  # trials; None: all


def main():
    parser = argparse.ArgumentParser(prog="python -m faults", description="Faults on purpose.")
    parser.add_argument("--sample", type=int, help="so many trials of each kind, instead of the full number")
    parser.add_argument("--cases", type=int, default=10_000, help="of the fuzzer")
    parser.add_argument("--steps", help="of these steps alone, with commas between them")
    parser.add_argument("--kinds", help=f"of these kinds alone: {','.join(KINDS)}")
    parser.add_argument("--plant", choices=[*PLANTS, "all"], action="append", default=[], help="a bug to be found, too")
    parser.add_argument("--seed", type=int, default=0, help="of the sample")
    parser.add_argument("--processes", type=int, default=1, help="that share the trials")
    parser.add_argument("--part", type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument("--json", type=Path, help="where to write counts, and what was lost")
    parser.add_argument("--page", type=Path, help="the page to write")
    options, began = parser.parse_args(), time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        others = [] if options.part else [_start(number, Path(folder)) for number in range(1, options.processes)]
        counts, lost, planted = one_part(options, began)
        for process, path in others:
            if process.wait() not in (0, 1):
                sys.exit(f"a process of the harness ended with status {process.returncode}")
            _add(path, counts, lost, planted)
    seconds = time.monotonic() - began
    for name, number in planted.items():
        print(f"planted: {name}: " + (f"found by trial {number}" if number else "NOT FOUND"))
    total = sum(counts.values(), collections.Counter())
    print(dict(total), f"in {seconds:.0f} s")
    if options.json:
        options.json.write_text(json.dumps({"counts": counts, "lost": lost, "planted": planted}))
    if options.page and not options.part:
        write_report(options.page, counts, planted, seconds, options.processes)
    sys.exit(bool(lost) or not all(planted.values()))


def _add(path, counts, lost, planted):
    """Add what another process found, in a file of --json."""
    found = json.loads(path.read_text())
    lost += found["lost"]
    planted |= found["planted"]
    for row, verdicts in found["counts"].items():
        counts[row].update(verdicts)


def _start(number, folder):
    """Start the process that does this part of the trials: it, and where it will write what it found."""
    path = folder / f"{number}.json"
    command = [sys.executable, "-m", "faults", *sys.argv[1:], "--part", str(number), "--json", path]
    return subprocess.Popen(command), path


def one_part(options, began):
    """This part's trials: counts of the verdicts, what was lost, and which planted bugs were found (by the first part).
    """
    names = options.steps and options.steps.split(",")
    counts, lost, laboratory = collections.defaultdict(collections.Counter), [], Laboratory()
    try:
        bench = Bench(laboratory, names)
        for kind in (options.kinds or ",".join(KINDS)).split(","):
            for trial in chosen(bench, kind, names, options):
                verdict, said, *cases = trial.run()
                counts[f"{kind}\t{trial.kind}\t{trial.step}"][verdict] += cases[0] if cases else 1
                if verdict == LOST:
                    lost.append([kind, trial.kind, trial.step, trial.where, said])
                    print("LOST", *lost[-1], flush=True)
            print(f"{kind}: done after {time.monotonic() - began:.0f} s", flush=True)
        plants = [] if options.part else PLANTS if "all" in options.plant else options.plant
        return counts, lost, {name: found(bench, name) for name in plants}
    finally:
        laboratory.close()


def chosen(bench, kind, names, options):
    """The trials of a kind, as many as were asked for, of every `--processes`-th from number `--part` on."""
    if kind == "fuzz":
        return list(fuzz.trials(bench, options.cases))[options.part::options.processes]
    trials = [trial for trial in KINDS[kind].trials(bench) if not names or trial.step in names]
    trials = trials[options.part::options.processes]
    most = options.sample or FULL[kind]
    # Not all of them: else they would keep their order.
    most = -(-most // options.processes) if most else len(trials) - 1
    return sampled(trials, most, bench.seconds, options.seed)


if __name__ == "__main__":
    main()
