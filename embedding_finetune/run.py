"""The whole experiment in one go: every notebook and script in the order in which a person would run them.

    python -m embedding_finetune.run    (what `make run` calls)

Executed copies of the notebooks go to OUTPUT_DIR/notebooks; the notebooks themselves stay as they are.
"""

import os
import re
import subprocess
import sys
import tempfile
import time

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from traitlets.config import Config

from embedding_finetune.experiment import ROOT, Experiment
from embedding_finetune.files import ExperimentError, atomic_write, run_command_line
from embedding_finetune.finetune import is_current
from embedding_finetune.training_files import FINE_TUNED


def plan(experiment):
    """The steps as pairs: a notebook or script, and the label it runs for where that is not its own.

    RECIPES adds fine-tunings with mined negatives, SEEDS repeats all fine-tunings, EXTRA_MODELS adds evaluations; the last notebook comes
    last, because it sees all results.
    """
    recipes = experiment.recipes.split()
    repeats = [f"{label}_seed{experiment.seed + number}" for label in (*FINE_TUNED, *recipes) for number in range(1, experiment.seeds)]
    return [("build_train_dataset.ipynb", None), ("build_eval_dataset.ipynb", None),
            *((f"finetune_{label}.sh", None) for label in FINE_TUNED),
            *(("finetune_hard.sh", label) for label in recipes),
            *(("embedding_finetune/finetune.sh", label) for label in repeats),
            ("eval_raw_bert.ipynb", None), ("eval_train_neg10.ipynb", None), ("eval_train_neg50.ipynb", None),
            *(("eval_train_hard.ipynb", label) for label in (*recipes, *repeats)),
            *(("eval_bge_m3.ipynb", label) for label in experiment.extras()),
            ("eval_bge_m3.ipynb", None)]


def run(experiment):
    """Run the plan; a model that these settings and files have already trained is kept. Raises ExperimentError at the first failure."""
    steps = plan(experiment)
    for number, (step, label) in enumerate(steps, start=1):
        started = time.monotonic()
        title = f"[{number}/{len(steps)}] {step}" + (f" for {label}" if label else "")
        _say(f"\n{title}")
        if step.endswith(".ipynb"):
            run_notebook(ROOT / step, experiment.output_dir / "notebooks", label)
        else:
            run_script(experiment, step, label or re.fullmatch(r"finetune_(\w+)\.sh", step)[1])
        _say(f"{title}: done in {time.monotonic() - started:.0f} s")


def run_script(experiment, script, label):
    """Run the fine-tuning script of a label unless its model is there already."""
    if is_current(experiment, label) and os.environ.get("OVERWRITE") != "1":
        _say(f"{experiment.output_dir / label} is trained with these settings and this file already: kept (OVERWRITE=1 trains it anew)")
    elif subprocess.run(["bash", ROOT / script, label], check=False).returncode:
        raise ExperimentError(f"{script} failed, its own messages are above")


def run_notebook(path, folder, label=None):
    """Execute a notebook top to bottom and keep the executed copy in `folder`; an evaluation may be run for another `label`.

    A heading of the notebook is printed when its cells begin to run. If a cell fails, the copy is kept as NAME.failed.ipynb.
    """
    notebook = nbformat.read(path, as_version=4)
    headings, copy = _headings(notebook), folder / path.name
    if label:
        parameters = next(cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", ()))
        parameters.source += f'\nLABEL = "{label}"'
        copy = folder / f"eval_{label}.ipynb"

    def announce(cell, cell_index):
        if cell_index in headings:
            _say(f"    {headings[cell_index]}")

    try:
        with tempfile.TemporaryDirectory() as sockets:  # local sockets, which only this user can listen to
            client = NotebookClient(notebook, timeout=None, kernel_name="python3", resources={"metadata": {"path": str(ROOT)}},
                                    coalesce_streams=True, on_cell_execute=announce,
                                    config=Config(KernelManager={"transport": "ipc", "ip": f"{sockets}/kernel"}))
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
