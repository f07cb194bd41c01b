"""The notebooks of docs/: they run and their assertions hold, they are clean and short, and the pictures are theirs."""

import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
import whole_run
from forked import run_forked

from embedding_finetune.data.readers.docstrings import read_docstrings
from embedding_finetune.files import write_jsonl
from embedding_finetune.settings import ROOT

DOCS = ROOT / "docs"
NOTEBOOKS = sorted(DOCS.glob("*.ipynb"))
each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def cells(path, kind):
    return [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == kind]


def image_tags(path):
    tags = [tag for cell in cells(path, "code") for tag in cell.metadata.get("tags", [])]
    return {tag.removeprefix("image:") for tag in tags if tag.startswith("image:")}


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    """A file of numpy's docstrings: those of all packages take seconds to read, each time."""
    file = tmp_path_factory.mktemp("docs") / "pairs.jsonl"
    write_jsonl(file, ({"query": row.query, "pos": row.positives} for row in read_docstrings(["numpy"])))
    return file


@each_notebook
def test_the_notebook_runs_and_its_assertions_hold(path, pairs, tmp_path):
    """The same cells on less text."""
    less = {"DATASET": str(pairs), "MAX_QUERIES": "60", "MPLBACKEND": "module://matplotlib_inline.backend_inline"}
    status, said = run_forked(whole_run.notebook, path, tmp_path, log=tmp_path / "log", **less)
    assert status == 0, said
    code = cells(tmp_path / path.name, "code")
    drawn = [cell for cell in code if any("image/png" in output.get("data", {}) for output in cell.outputs)]
    pictures = {f"image:{name}" for name in image_tags(path)}
    assert pictures and pictures <= {tag for cell in drawn for tag in cell.metadata.get("tags", [])}


@each_notebook
def test_the_notebook_is_clean_and_short(path):
    code = cells(path, "code")
    assert "parameters" in code[0].metadata.tags and code[0].source.startswith("PROFILE = ")
    for cell in code:
        assert not cell.outputs and cell.execution_count is None, "clear the outputs before committing"
        assert len(cell.source.splitlines()) <= 10, cell.source
    for cell in code + cells(path, "markdown"):
        assert max(map(len, cell.source.splitlines())) <= 120, cell.source


@pytest.mark.parametrize("folder", [ROOT, DOCS], ids=["root", "docs"])
def test_the_notebooks_find_the_package_from_both_folders(folder):
    setups = {cells(path, "code")[1].source for path in NOTEBOOKS}
    assert len(setups) == 1  # all begin alike
    found = subprocess.run([sys.executable, "-c", f"PROFILE = 'demo'\n{setups.pop()}\nprint(ROOT, settings.profile)"],
                           cwd=folder, capture_output=True, text=True, check=True)
    assert found.stdout.split() == [str(ROOT), "demo"]


@each_notebook
def test_the_links_and_pictures_of_the_notebook_exist(path):
    text = "\n".join(cell.source for cell in cells(path, "markdown"))
    for target in re.findall(r"\]\(([^)#\s]+)", text):
        assert "://" in target or (path.parent / target).exists(), target
    for name in re.findall(r"`([\w/]+\.(?:md|ipynb|py|json|toml))`", text):
        assert any((folder / name).exists() for folder in (ROOT, DOCS)), name


def test_the_pictures_are_those_of_the_notebooks_and_small():
    files = {path.stem: path.stat().st_size for path in (DOCS / "images").glob("*.png")}
    tags = [name for path in NOTEBOOKS for name in image_tags(path)]
    assert len(set(tags)) == len(tags) and set(files) == {*tags}
    assert max(files.values()) < 150_000
    for page in [*DOCS.glob("*.md"), *ROOT.glob("README*.md")]:
        for target in re.findall(r"!\[.*?\]\((.*?)\)", page.read_text(encoding="utf-8"), flags=re.DOTALL):
            assert (page.parent / target).is_file(), f"{Path(page).name} shows {target}"
