"""Freeze the figures of the demo, and compare those of later code with them: `make baseline`, `make baseline-check`.

    python tests/baseline.py store    run the demo and keep its figures in output/baseline/stored
    python tests/baseline.py check    run the demo again, into output/baseline/current, and list what differs

Both run in float32 on one thread; figures of two machines cannot be compared. Compared are the data and training files,
byte by byte, and the scores of the run files, all losses and all dev metrics, to 2e-6: products of matrices differ in
their last bits from library to library, so that passages of nearly equal scores may swap.
"""

import filecmp
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "output" / "baseline"
FILES = ("data/*.json", "data/*.jsonl", "data/qrels.trec", "data/qrels/*.tsv", "run/runs/*.trec", "run/runs/dev/*.trec")
NOT_COMPARED = ("dataset.json", "dataset_report.json")  # settings and timings; their figures are in the other files
LOGS = ("run/neg10/training_log.jsonl", "run/neg50/training_log.jsonl")
MEASURED = ("loss", "recall@10", "mrr@10")
EQUAL = 2e-6


def run_demo(folder):
    """Run `make run` of the demo from the beginning, with its data and its results in `folder`."""
    shutil.rmtree(folder, ignore_errors=True)
    settings = {"PROFILE": "demo", "PRECISION": "fp32", "DATA_DIR": f"{folder / 'data'}",
                "OUTPUT_DIR": f"{folder / 'run'}", "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "embedding_finetune", "run"]
    subprocess.run(command, cwd=ROOT, env=os.environ | settings, check=True)


def compared(folder):
    """The files of `folder` that are compared, as names: a set."""
    files = {file.relative_to(folder) for pattern in FILES for file in folder.glob(pattern)}
    return {str(file) for file in files if file.name not in NOT_COMPARED and not file.name.endswith(".made.json")}


def measured(path):
    """(step, name) -> value of the losses and dev metrics in a training log."""
    rows = map(json.loads, path.read_text(encoding="utf-8").splitlines()) if path.exists() else ()
    return {(row["step"], name): row[name] for row in rows for name in MEASURED if name in row}


def read_run(path):
    """query -> passage -> score of a run file."""
    run = {}
    for query, _, passage, _, score, _ in map(str.split, path.read_text(encoding="utf-8").splitlines()):
        run.setdefault(query, {})[passage] = float(score)
    return run


def run_differences(before, now):
    """A line for each query whose scores have moved.

    A passage at the end of the ranking may give way to its equal. Passages below the reranked ones have their rank as
    score (see rerank.interpolate_scores), which equals may swap: of these only the sorted scores are compared.
    """
    found = []
    for query in sorted(before.keys() | now.keys()):
        one, other = before.get(query, {}), now.get(query, {})
        end = min(one.values(), default=0), min(other.values(), default=0)
        pairs = [(one.get(passage, end[0]), other.get(passage, end[1])) for passage in one.keys() | other.keys()]
        moved = max(_moved(pair for pair in pairs if max(pair) > 0),
                    _moved(zip(sorted(one.values()), sorted(other.values()))))
        if moved or len(one) != len(other):
            found.append(f"query {query}: {moved} scores have moved, {len(one)} passages are now {len(other)}")
    return found


def _moved(pairs):
    """How many of these pairs of scores, then and now, are not equal."""
    return sum(abs(then - now) > EQUAL * max(1, abs(then)) for then, now in pairs)


def differences(stored, current):
    """One line for each difference between two folders that run_demo has filled."""
    found = []
    for name in sorted(compared(stored) | compared(current)):
        one, other = stored / name, current / name
        if not one.exists() or not other.exists():
            found.append(f"{name}: only in {stored.name if one.exists() else current.name}")
        elif name.endswith(".trec") and "runs" in Path(name).parts:
            found += [f"{name}: {line}" for line in run_differences(read_run(one), read_run(other))[:5]]
        elif not filecmp.cmp(one, other, shallow=False):
            found.append(f"{name}: other content")
    for name in LOGS:
        before, now = measured(stored / name), measured(current / name)
        moved = [key for key in sorted(before.keys() | now.keys())
                 if key not in before or key not in now or abs(before[key] - now[key]) > EQUAL]
        found += [f"{name}: step {step}, {what}: {before.get((step, what))} is now {now.get((step, what))}"
                  for step, what in moved[:5]]
    return found


def main(task):
    stored, current = FOLDER / "stored", FOLDER / "current"
    if task == "store":
        run_demo(stored)
        return print(f"{len(compared(stored))} files and the losses of {len(LOGS)} trainings are in {stored}")
    if not compared(stored):
        sys.exit(f"error: {stored} has no baseline: run `make baseline` on the code to compare with")
    run_demo(current)
    found = differences(stored, current)
    print(*found, sep="\n")
    if found:
        sys.exit(f"{len(found)} differences to {stored}")
    values = sum(len(measured(stored / log)) for log in LOGS)
    print(f"equal: {len(compared(stored))} files, {values} losses and dev metrics")


if __name__ == "__main__":
    if sys.argv[1:] not in (["store"], ["check"]):
        sys.exit(f"usage: {sys.argv[0]} store|check")
    main(sys.argv[1])
