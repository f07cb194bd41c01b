"""The whole experiment in one go: every notebook and script in the order in which a person would run them.

    python -m embedding_finetune.run    (what `make run` calls)

Executed copies of the notebooks go to OUTPUT_DIR/notebooks; the notebooks themselves stay as they are.
"""

import os
import re
import subprocess
import sys
import time

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from traitlets.config import Config

from embedding_finetune.experiment import ROOT, Experiment
from embedding_finetune.files import ExperimentError, atomic_write, run_command_line
from embedding_finetune.finetune import is_current

STEPS = ("build_train_dataset.ipynb", "build_eval_dataset.ipynb", "finetune_neg10.sh", "finetune_neg50.sh",
         "eval_raw_bert.ipynb", "eval_train_neg10.ipynb", "eval_train_neg50.ipynb", "eval_bge_m3.ipynb")


def run(experiment):
    """Run STEPS; a model that these settings and files have already trained is kept. Raises ExperimentError at the first failure."""
    for number, step in enumerate(STEPS, start=1):
        started = time.monotonic()
        _say(f"\n[{number}/{len(STEPS)}] {step}")
        if step.endswith(".ipynb"):
            run_notebook(ROOT / step, experiment.output_dir / "notebooks")
        else:
            run_script(experiment, step)
        _say(f"[{number}/{len(STEPS)}] {step}: done in {time.monotonic() - started:.0f} s")


def run_script(experiment, script):
    """Run a fine-tuning script unless its model is there already."""
    label = re.fullmatch(r"finetune_(\w+)\.sh", script)[1]
    if is_current(experiment, label) and os.environ.get("OVERWRITE") != "1":
        _say(f"{experiment.output_dir / label} is trained with these settings and this file already: kept (OVERWRITE=1 trains it anew)")
    elif subprocess.run(["bash", ROOT / script], check=False).returncode:
        raise ExperimentError(f"{script} failed, its own messages are above")


def run_notebook(path, folder):
    """Execute a notebook top to bottom and keep the executed copy in `folder`.

    A heading of the notebook is printed when its cells begin to run. If a cell fails, the copy is kept as NAME.failed.ipynb.
    """
    notebook = nbformat.read(path, as_version=4)
    headings = _headings(notebook)

    def announce(cell, cell_index):
        if cell_index in headings:
            _say(f"    {headings[cell_index]}")

    client = NotebookClient(notebook, timeout=None, kernel_name="python3", resources={"metadata": {"path": str(ROOT)}},
                            coalesce_streams=True, on_cell_execute=announce, config=Config(KernelManager={"transport": "ipc"}))
    copy = folder / path.name
    try:
        client.execute()
    except CellExecutionError as error:
        copy = copy.with_suffix(".failed.ipynb")
        raise ExperimentError(f"{path.name} stopped: {error.evalue} (executed so far: {copy})") from None
    finally:
        with atomic_write(copy) as file:
            nbformat.write(notebook, file)


def _headings(notebook):
    """Index of a code cell -> the nearest heading above it, where that heading is new."""
    headings, latest = {}, None
    for index, cell in enumerate(notebook.cells):
        found = re.search(r"^#+ (.*)", cell.source, flags=re.MULTILINE) if cell.cell_type == "markdown" else None
        latest = found[1] if found else latest
        if cell.cell_type == "code" and latest:
            headings[index], latest = latest, None
    return headings


def _say(text):
    print(text, flush=True)


if __name__ == "__main__":
    run_command_line(lambda: run(Experiment.load(*sys.argv[1:])))
