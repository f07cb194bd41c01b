"""The notebooks as they are committed: short cells with prose before them, and outputs that are of these cells."""

import re

import nbformat
import pytest

from embedding_finetune.pipeline import WIDGET, source_hash
from embedding_finetune.settings import ROOT

NOTEBOOKS = {path.name: nbformat.read(path, as_version=4) for path in sorted(ROOT.glob("*.ipynb"))}
EVALUATIONS = [name for name in NOTEBOOKS if name.startswith("eval_")]
WITHOUT_OUTPUTS = {"eval_train_hard.ipynb", "learning_curve.ipynb"}  # the demo trains neither
each_notebook = pytest.mark.parametrize("name", NOTEBOOKS)


def code_of(name):
    return [cell for cell in NOTEBOOKS[name].cells if cell.cell_type == "code"]


def test_the_notebooks_are_there():
    assert set(NOTEBOOKS) == {"build_train_dataset.ipynb", "build_eval_dataset.ipynb", "compare.ipynb",
                              "rerank.ipynb", "learning_curve.ipynb", *EVALUATIONS}
    assert len(EVALUATIONS) == 5


@each_notebook
def test_cells_are_short(name):
    long = [cell.source for cell in code_of(name) if len(cell.source.splitlines()) > 12]
    wide = [line for cell in code_of(name) for line in cell.source.splitlines() if len(line) > 120]
    assert (long, wide) == ([], [])


@each_notebook
def test_prose_stands_before_the_code(name):
    """Each chapter begins with prose; no more than two cells of code follow each other."""
    kinds = "".join(cell.cell_type[0] for cell in NOTEBOOKS[name].cells)
    assert kinds.startswith("mc") and "ccc" not in kinds
    assert NOTEBOOKS[name].cells[0].source.startswith("# ")


@each_notebook
def test_the_first_code_cell_has_the_parameters(name):
    first, *others = code_of(name)
    assert first.metadata["tags"] == ["parameters"] and "PROFILE = None" in first.source
    assert not any("parameters" in cell.metadata.get("tags", ()) for cell in others)


def test_the_evaluation_notebooks_differ_in_their_parameters_alone():
    sources = {name: [cell.source for cell in NOTEBOOKS[name].cells] for name in EVALUATIONS}
    assert len({len(cells) for cells in sources.values()}) == 1 and len(sources["eval_raw_bert.ipynb"]) <= 24
    different = [place for place, cells in enumerate(zip(*sources.values())) if len(set(cells)) > 1]
    parameters = [NOTEBOOKS[name].cells.index(code_of(name)[0]) for name in EVALUATIONS]
    assert different == [parameters[0]] and len(set(parameters)) == 1
    labels = [re.search('LABEL = "(.*?)"', cells[parameters[0]])[1] for cells in sources.values()]
    assert sorted(labels) == ["hard", "neg10", "neg50", "raw", "reference"]


@each_notebook
def test_the_outputs_are_of_the_cells_as_they_are(name):
    for number, cell in enumerate(code_of(name), start=1):
        if cell.outputs or "outputs_of" in cell.metadata:
            assert cell.metadata.get("outputs_of") == source_hash(cell.source), \
                f"{name}, code cell {number} has outputs of another source: `make notebooks` puts today's in"


@pytest.mark.parametrize("name", [name for name in NOTEBOOKS if name not in WITHOUT_OUTPUTS])
def test_a_notebook_shows_what_it_does(name):
    cells = code_of(name)
    assert all("outputs_of" in cell.metadata for cell in cells), f"{name} has no outputs: `make notebooks`"
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert sum(bool(cell.outputs) for cell in cells) > len(cells) / 2


@each_notebook
def test_outputs_are_fit_to_be_read_by_others(name):
    outputs = [output for cell in code_of(name) for output in cell.outputs]
    text = nbformat.writes(NOTEBOOKS[name])
    assert re.findall(r"/(?:work|home|root|tmp|Users)/.{0,40}", text) == []  # no paths of the machine it was run on
    assert [output.output_type for output in outputs if output.output_type == "error"] == []
    assert not any(output.get("name") == "stderr" or WIDGET in output.get("data", {}) for output in outputs)
    assert len(text.encode()) < 300_000


@pytest.mark.parametrize("rows, shown", [
    ([{"label": "bm25", "metrics": {"recall@1": 0.5}, "eval_sets": {}}], ["one test set, one seed: nothing to show"]),
    ([{"label": "bm25", "metrics": {"recall@1": 0.5}, "eval_sets": {"far": {"recall@1": 0.25}}}], ["far"])])
def test_no_empty_table_is_shown(rows, shown, capsys):
    cell, = (cell for cell in code_of("compare.ipynb") if "out_of_domain_table(rows)" in cell.source)
    exec(cell.source, {"rows": rows})
    printed = capsys.readouterr().out
    assert all(text in printed for text in shown) and "Empty DataFrame" not in printed
