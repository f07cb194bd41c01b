"""Run the whole experiment: all notebooks and scripts in order.

    python -m embedding_finetune run                what `make run` calls
    python -m embedding_finetune run --notebooks    what `make notebooks` calls: copy the outputs of the last run into
                                                    the notebooks

Executed copies of the notebooks go to OUTPUT_DIR/notebooks; the notebooks themselves are not changed.
"""

import asyncio
import hashlib
import os
import re
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, DeadKernelError
from traitlets.config import Config

from embedding_finetune.data.cleaning import has_test_queries_only, read_pairs, source_of
from embedding_finetune.data.collection import read_data, write_data, write_test_files
from embedding_finetune.data.splits import assign_splits
from embedding_finetune.files import CommandLine, UserError, atomic_write, may_overwrite, read_json
from embedding_finetune.models.encoder_config import base_encoder_config, pretrained
from embedding_finetune.prerequisites import check_prerequisites
from embedding_finetune.recipes import find_recipe, trained_labels
from embedding_finetune.settings import ROOT, Settings, display_value
from embedding_finetune.training.provenance import is_current, training_script
from embedding_finetune.training.training_data import same_as_earlier

NOTEBOOK_OF = {"raw": "eval_raw_bert.ipynb", "neg10": "eval_train_neg10.ipynb", "neg50": "eval_train_neg50.ipynb",
               "hard": "eval_train_hard.ipynb", "reference": "eval_bge_m3.ipynb", "late_reference": "rerank.ipynb"}

WIDGET = "application/vnd.jupyter.widget-view+json"


def plan(settings: Settings) -> list[tuple[str, Any]]:
    """The steps as pairs: what runs (a notebook, a script, or "evaluate"), and the label it runs for, if any.

    RECIPES adds trainings, SEEDS repeats all trainings, EXTRA_MODELS adds evaluations, RERANKERS adds rerankers. A
    label with an evaluation notebook of its own is evaluated there. The comparison comes last, followed by the learning
    curve if a recipe uses a fraction of the queries. If DATASET has test queries only, nothing is trained.
    """
    if has_test_queries_only(settings):
        evaluated = [*settings.retrievers.split(), *pretrained(settings), *settings.rerankers.split()]
        return [("build", None), *(("evaluate", label) for label in evaluated), ("compare", None)]
    trained, others = trained_labels(settings), [label for label in pretrained(settings) if label not in NOTEBOOK_OF]
    models = [label for label in trained if find_recipe(settings, label).kind == "bi_encoder"]
    evaluated = ["raw", *models, *others, "reference", *settings.rerankers.split()]
    has_fractions = any(find_recipe(settings, label).train_fraction < 1 for label in trained)
    return [("build_train_dataset.ipynb", None), ("build_eval_dataset.ipynb", None),
            *((training_script(label).split()[0], label) for label in trained),
            *((NOTEBOOK_OF.get(label, "evaluate"), label) for label in evaluated),
            ("compare.ipynb", None), *([("learning_curve.ipynb", None)] if has_fractions else [])]


def run_pipeline(settings: Settings) -> None:
    """Run all steps of the plan, if all that they need is there; a model trained with the same settings and files is
    kept. Raises UserError.
    """
    check_prerequisites(settings)
    steps = plan(settings)
    for number, (step, label) in enumerate(steps, start=1):
        started = time.monotonic()
        is_named = not label or step in NOTEBOOK_OF.values() or f"_{label}." in step
        title = f"[{number}/{len(steps)}] {step}{'' if is_named else f' for {label}'}"
        earlier = label in trained_labels(settings) and same_as_earlier(settings, label)
        if earlier:
            _say(f"\n{title}: skipped, because the training split has no more negatives for {label} than for {earlier}")
            continue
        _say(f"\n{title}")
        if step.endswith(".ipynb"):
            run_notebook(ROOT / step, settings.paths.notebooks)
        elif step in FUNCTIONS:
            FUNCTIONS[step](settings, label)
        else:
            run_script(settings, step, label)
        _say(f"{title}: done in {time.monotonic() - started:.0f} s")
    _say(summary(settings))


def summary(settings: Settings) -> str:
    """What a finished run found, where its files are, and the commands that use it."""
    found = read_json(settings.paths.results / "recommendation.json") or {}
    given = {"PROFILE": settings.profile} if "PROFILE" in os.environ else {}
    given |= {name: settings.as_dict()[name] for name, source in settings.sources if source == "environment"}
    if "ENV_FILE" in os.environ and (ROOT / ".env").exists():  # which would take precedence
        given["ENV_FILE"] = os.environ["ENV_FILE"]
    command = "".join(f"{name}={shlex.quote(str(value))} " for name, value in given.items())
    command += "python -m embedding_finetune"
    return "\n".join([
        f"\n{found.get('sentence', 'Nothing to recommend.')}\n",
        f"report              {display_value(settings.paths.report)}",
        f"executed notebooks  {display_value(settings.paths.notebooks)}/",
        f"search              {command} search \"your question\"", f"serve               {command} serve",
        "                    (first: source .venv/bin/activate)"])


def run_evaluation(settings: Settings, label: str) -> None:
    """Evaluate a label that has no notebook of its own, and print its metrics."""
    from embedding_finetune.evaluation.evaluate import evaluate  # PyTorch and Matplotlib are imported only when needed
    from embedding_finetune.evaluation.tables import as_table
    _say(as_table(evaluate(settings, label).values()).round(3).to_string())


def run_build(settings: Settings, _: None = None) -> None:
    """What the build notebooks do for a dataset with test queries only: no negatives are drawn."""
    from embedding_finetune.evaluation.data_report import report_data
    pairs, counts = read_pairs(settings)
    collection = assign_splits(pairs, test_fraction=settings.test_fraction, dev_fraction=settings.dev_fraction,
                               seed=settings.seed, together=settings.group_near_duplicates)
    write_data(settings, collection, source_of(settings))
    write_test_files(settings, collection, base_encoder_config(settings).query_prompt)
    _say("\n".join(report_data(settings, collection, counts)["sentences"]))


def run_comparison(settings: Settings, _: None = None) -> None:
    """Compare all evaluated systems, and write the report page."""
    from embedding_finetune.evaluation.report_page import load, write_page
    from embedding_finetune.evaluation.results import compare
    from embedding_finetune.evaluation.tables import comparison_table, write_comparison
    collection = read_data(settings)
    rows, left_out = compare(settings, collection)
    write_comparison(settings, collection, rows)
    write_page(settings, load(settings, collection, rows))
    _say("\n".join([*left_out, comparison_table(rows).to_string()]))


FUNCTIONS = {"build": run_build, "evaluate": run_evaluation, "compare": run_comparison}  # steps without a notebook


def run_script(settings: Settings, script: str, label: str) -> None:
    """Run the training script of a label, unless its model is current.

    Raises UserError if the script fails. On Ctrl-C, which reaches the script as well, it exits once the script has
    ended: its processes must not go on, and the script has said how to continue.
    """
    if is_current(settings, find_recipe(settings, label)) and not may_overwrite():
        _say(f"{display_value(settings.paths.model(label))} is already trained with these settings and this file: kept "
             "(OVERWRITE=1 trains it again)")
        return
    with subprocess.Popen(["bash", ROOT / script, label]) as process:
        try:
            failed = process.wait()
        except KeyboardInterrupt:
            process.wait()
            sys.exit(130)
    if failed:
        raise UserError(f"{script} failed; see its messages above")


def run_notebook(path: Path, folder: Path) -> None:
    """Execute a notebook and save the executed copy in `folder`.

    Headings are printed when their cells start. The copy contains only outputs of this run. If a cell fails, the copy
    is saved as NAME.failed.ipynb and UserError is raised.
    """
    notebook = nbformat.read(path, as_version=4)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    headings, copy = _headings(notebook), folder / path.name

    def announce(cell, cell_index):
        if cell_index in headings:
            _say(f"    {headings[cell_index]}")

    try:
        with tempfile.TemporaryDirectory() as sockets:  # sockets that only this user can access
            client = NotebookClient(notebook, timeout=None, kernel_name="python3", coalesce_streams=True,
                                    resources={"metadata": {"path": str(ROOT)}}, on_cell_execute=announce,
                                    config=Config(KernelManager={"transport": "ipc", "ip": f"{sockets}/kernel"}))
            client.execute(stderr=subprocess.DEVNULL)  # of the kernel itself; the output of cells is in the notebook
    except (DeadKernelError, AssertionError, asyncio.CancelledError):  # the latter two are what Ctrl-C leads to
        copy = copy.with_suffix(".failed.ipynb")
        raise UserError(f"{path.name} stopped: its kernel has ended, by Ctrl-C or for lack of memory; the same command "
                        "continues") from None
    except CellExecutionError as error:
        copy = copy.with_suffix(".failed.ipynb")
        raise UserError(f"{path.name} stopped: {error.evalue} (executed so far: {copy})") from None
    finally:
        with atomic_write(copy) as file:
            nbformat.write(notebook, file)


def _headings(notebook):
    """Index of a code cell -> the heading above it, for the first code cell under each heading."""
    headings, latest = {}, None
    for index, cell in enumerate(notebook.cells):
        found = re.search(r"^#+ (.*)", cell.source, flags=re.MULTILINE) if cell.cell_type == "markdown" else None
        latest = found[1] if found else latest
        if cell.cell_type == "code" and latest:
            headings[index], latest = latest, None
    return headings


def _say(text):
    print(text, flush=True)


def keep_outputs(settings: Settings) -> None:
    """Copy the outputs of the executed copies in OUTPUT_DIR/notebooks into the notebooks, without progress bars.

    The metadata of a cell holds the hash of the source of its outputs, so that a test can detect outdated outputs.
    """
    for path in sorted(ROOT.glob("*.ipynb")):
        copy = settings.paths.notebooks / path.name
        if not copy.exists():
            _say(f"{path.name}: no executed copy in {display_value(copy.parent)}, not changed")
            continue
        notebook, executed = nbformat.read(path, as_version=4), nbformat.read(copy, as_version=4)
        done = {cell.source: cell for cell in executed.cells if cell.cell_type == "code"}
        code = [cell for cell in notebook.cells if cell.cell_type == "code"]
        if any(cell.source not in done for cell in code):
            raise UserError(f"{copy} was executed from other cells than {path.name} has now: run `make demo` again")
        for number, cell in enumerate(code, start=1):
            cell.outputs = [output for output in done[cell.source].outputs if output.get("name") != "stderr"
                            and WIDGET not in output.get("data", {})]  # progress bars
            cell.execution_count = number
            for output in cell.outputs:
                if "execution_count" in output:
                    output["execution_count"] = number
            cell.metadata["outputs_of"] = source_hash(cell.source)
        with atomic_write(path) as file:
            nbformat.write(notebook, file)
        _say(f"{path.name}: {path.stat().st_size / 1000:.0f} kB")


def source_hash(source: str) -> str:
    """Short hash of the source of a cell."""
    return hashlib.sha256(source.encode()).hexdigest()[:16]


def main() -> None:
    """The command `run`."""
    parser = CommandLine("run", __doc__)
    parser.add_argument("--notebooks", action="store_true", help="copy the outputs of the last run into the notebooks")
    (keep_outputs if parser.parse_args().notebooks else run_pipeline)(Settings.load())
