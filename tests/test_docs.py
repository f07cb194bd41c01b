"""The documentation is true: its notebooks run, its links lead somewhere, the functions, messages and commands it names exist."""

import json
import pydoc
import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import nbformat
import pytest

from embedding_finetune.debug import training_command
from embedding_finetune.experiment import ROOT
from embedding_finetune.pairs import load_pairs
from embedding_finetune.run import run_notebook
from embedding_finetune.split import split
from embedding_finetune.training_files import write_eval_files, write_pairs, write_training_file

DOCS = ROOT / "docs"
NOTEBOOKS = sorted(DOCS.glob("*.ipynb"))
PAGES = sorted([*DOCS.glob("*.md"), *ROOT.glob("README*.md")])


def cells(path, kind):
    return [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == kind]


def table_rows(page):
    """The cells of each row of a page's tables."""
    lines = [line for line in page.read_text(encoding="utf-8").splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_the_notebook_runs_and_its_assertions_hold(path, tmp_path, monkeypatch):
    monkeypatch.setenv("MAX_PAIRS", "160")  # the same cells on less text
    run_notebook(path, tmp_path)
    pictures = {tag for cell in cells(path, "code") for tag in cell.metadata.get("tags", []) if tag.startswith("image:")}
    drawn = [cell for cell in cells(tmp_path / path.name, "code") if any("image/png" in output.get("data", {}) for output in cell.outputs)]
    assert pictures and pictures <= {tag for cell in drawn for tag in cell.metadata.get("tags", [])}


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_the_notebook_is_clean_and_short(path):
    code = cells(path, "code")
    assert "parameters" in code[0].metadata.tags and code[0].source.startswith("PROFILE = ")
    for cell in code:
        assert not cell.outputs and cell.execution_count is None, "clear the outputs before committing"
        assert len(cell.source.splitlines()) <= 10 and max(map(len, cell.source.splitlines())) <= 130, cell.source


@pytest.mark.parametrize("folder", [ROOT, DOCS], ids=["root", "docs"])
def test_the_notebooks_find_the_package_from_both_folders(folder):
    for path in NOTEBOOKS:
        found = subprocess.run([sys.executable, "-c", cells(path, "code")[1].source.split("\nexperiment")[0] + "\nprint(ROOT)"], cwd=folder,
                               capture_output=True, text=True, check=True)
        assert Path(found.stdout.strip()) == ROOT


@pytest.mark.parametrize("path", [*PAGES, *NOTEBOOKS], ids=lambda path: path.name)
def test_relative_links_exist(path):
    text = path.read_text(encoding="utf-8") if path.suffix == ".md" else "\n".join(cell.source for cell in cells(path, "markdown"))
    for target in re.findall(r"\]\(([^)#\s]+)", text):
        assert "://" in target or (path.parent / target).exists(), f"{path.name} links to {target}"


def test_the_pictures_are_those_of_the_notebooks_and_small():
    tags = {tag.removeprefix("image:") for path in NOTEBOOKS for cell in cells(path, "code")
            for tag in cell.metadata.get("tags", []) if tag.startswith("image:")}
    files = {path.stem: path.stat().st_size for path in (DOCS / "images").glob("*.png")}
    assert set(files) >= tags and max(files.values()) < 150_000


def test_the_five_places_worth_a_breakpoint_exist():
    places = [row[0].strip("`") for row in table_rows(DOCS / "debugging.md") if row[0].startswith("`")]
    assert len(places) == 5
    others = re.findall(r"`(FlagEmbedding\.abc\.[\w.]+)`", (DOCS / "debugging.md").read_text(encoding="utf-8"))
    assert len(others) == 3
    for name in places + others:
        assert callable(pydoc.locate(name)), name


def test_the_launch_configurations_say_what_the_page_says():
    page = (DOCS / "debugging.md").read_text(encoding="utf-8")
    settings, module, label = re.search(r"((?:\w+=\S+ )+)python -m pdb -m (\S+) (\w+)", page).groups()
    settings = dict(setting.split("=") for setting in settings.split())
    [code] = json.loads((ROOT / ".vscode" / "launch.json").read_text())["configurations"]
    assert (code["module"], code["args"], code["env"]) == (module, [label], settings)
    [path] = (ROOT / ".run").glob("*.run.xml")
    charm = ElementTree.parse(path).getroot().find("configuration")
    options = {option.get("name"): option.get("value") for option in charm.iter("option")}
    assert (options["SCRIPT_NAME"], options["PARAMETERS"], options["MODULE_MODE"]) == (module, label, "true")
    assert settings.items() <= {env.get("name"): env.get("value") for env in charm.iter("env")}.items()
    assert f"**{code['name']}**" in page and f"**{charm.get('name')}**" in page


@pytest.fixture
def with_data(experiment):
    """The tiny experiment with its data built."""
    pairs, _ = load_pairs(experiment)
    parts = split(pairs, test_fraction=experiment.test_fraction, dev_fraction=experiment.dev_fraction, seed=experiment.seed)
    write_pairs(experiment, pairs, parts)
    write_training_file(experiment, pairs, parts, 10)
    write_eval_files(experiment, pairs, parts)
    return experiment


def test_pdb_stops_inside_the_loss(with_data):
    """What the page shows, typed into the debugger."""
    typed = re.findall(r"^\(Pdb\) (.*)", (DOCS / "debugging.md").read_text(encoding="utf-8"), flags=re.MULTILINE)
    session = subprocess.run([sys.executable, "-m", "pdb", "-m", "embedding_finetune.debug", "neg10"], input="\n".join([*typed, "q\n"]), cwd=ROOT,
                             capture_output=True, text=True)
    queries, group = with_data.batch_size, with_data.train_group_size
    assert f"(torch.Size([{queries}, 64]), torch.Size([{queries * group}, 64]))" in session.stdout, session.stdout + session.stderr


def test_the_launcher_runs_what_finetune_sh_runs(with_data, monkeypatch):
    module, flags = training_command("neg10")
    assert module == "embedding_finetune.train"
    assert flags[flags.index("--train_data") + 1].endswith("training_neg_10.json")
    assert flags[flags.index("--query_instruction_for_retrieval") + 1] == with_data.query_instruction
    monkeypatch.setenv("TRAINER", "flagembedding")
    assert training_command("neg10")[0] == "FlagEmbedding.finetune.embedder.encoder_only.base"


def test_the_messages_in_troubleshooting_are_those_of_the_code():
    """A message with `...` in it is ours; each of its parts stands in the sources."""
    sources = "\n".join(path.read_text(encoding="utf-8") for path in sorted((ROOT / "embedding_finetune").glob("*.py")))
    sources = re.sub(r"\{[^{}]*\}", "...", re.sub(r'"\s*\n\s*f?"', "", sources))
    messages = [message for row in table_rows(DOCS / "troubleshooting.md") for message in re.findall(r"`([^`]*\.\.\.[^`]*)`", row[0])]
    assert len(messages) > 20
    for message in messages:
        for part in re.split(r"\.\.\.|\bN\b|\bSETTING\b", message):
            assert part.strip() in sources, f"no message has {part!r} of {message!r}"
