"""A sample of `make faults`: nothing is lost, and bugs that are planted are found."""

import os
import subprocess
import sys
from collections import Counter

from embedding_finetune.settings import ROOT
from faults.report import write_report


def harness(*words):
    """(exit status, output) of the harness in a process of its own, which begins with a library preloaded."""
    done = subprocess.run([sys.executable, "-m", "faults", *words], capture_output=True, text=True, timeout=300,
                          env=os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")])})
    return done.returncode, done.stdout + done.stderr


def test_nothing_is_lost_and_planted_bugs_are_found():
    status, said = harness("--steps", "data,rows,build over", "--kinds", "kills,disks,damage", "--sample", "20",
                           "--plant", "rename before fsync", "--plant", "write in place")
    assert status == 0 and "LOST" not in said and said.count("found by trial") == 2, said


def test_the_page_counts_by_kind_and_by_step(tmp_path):
    counts = {"kills\tkill -9\ttrain": {"equal": 1200, "lost": 1}, "kills\tkill -9\trows": {"equal": 3},
              "fuzz\tfuzzing\tcsv": {"equal": 50}}
    write_report(tmp_path / "page.md", {row: Counter(found) for row, found in counts.items()},
                 {"no marker": 3}, 90)
    lines = (tmp_path / "page.md").read_text().splitlines()
    assert "| kills | kill -9 | 1,204 | 1,203 | 0 | 1 |" in lines and "| all |  | 1,254 | 1,253 | 0 | 1 |" in lines
    assert "Bugs that were planted to test the harness: no marker: found by trial 3." in " ".join(lines)
    assert "| train | 1,201 | 1,200 | 0 | 1 |" in lines and not any(line.startswith("| csv") for line in lines)
