"""The pages are true: links lead somewhere, functions, messages and commands exist, extensions work as shown."""

import ast
import json
import pydoc
import re
import xml.etree.ElementTree as ElementTree

import nbformat
import pytest
from forked import program, run_forked

from embedding_finetune import cli
from embedding_finetune.settings import ROOT, TABLE

DOCS = ROOT / "docs"
PAGES = sorted([*DOCS.glob("*.md"), *ROOT.glob("README*.md"), *(ROOT / "benchmarks").glob("*.md"),
                ROOT / "tests/faults/RESULTS.md", ROOT / "ft_data/README.md", ROOT / "output/README.md"])
NOTEBOOKS = sorted([*DOCS.glob("*.ipynb"), *ROOT.glob("*.ipynb")])
MODULES = sorted((ROOT / "embedding_finetune").rglob("*.py"))


def text_of(path):
    """A page, or the prose of a notebook."""
    if path.suffix != ".ipynb":
        return path.read_text(encoding="utf-8")
    return "\n".join(cell.source for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "markdown")


@pytest.mark.parametrize("path", [*PAGES, *NOTEBOOKS], ids=lambda path: path.name)
def test_relative_links_exist(path):
    for target in re.findall(r"\]\(([^)#\s]+)", text_of(path)):
        assert "://" in target or (path.parent / target).exists(), f"{path.name} links to {target}"


def anchors_of(page):
    """The anchors that GitHub makes of a page's headings."""
    headings = re.findall(r"^#+ (.*)$", re.sub(r"```.*?```", "", text_of(page), flags=re.DOTALL), flags=re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("path", [*PAGES, *NOTEBOOKS], ids=lambda path: path.name)
def test_anchors_exist(path):
    for target, anchor in re.findall(r"\]\(([^)#\s]*)#([^)\s]+)\)", text_of(path)):
        assert "://" in target or anchor in anchors_of(path.parent / target if target else path), f"{target}#{anchor}"


def test_the_pages_are_few_and_short():
    pages = list(DOCS.glob("*.md"))
    assert len(pages) <= 10 and sum(len(text_of(page).split()) for page in pages) <= 10_500


OF_OTHERS = {"ENV_FILE", "HF_ENDPOINT", "HF_HUB_OFFLINE", "HF_TOKEN", "MILVUS_TOKEN", "OMP_NUM_THREADS", "OVERWRITE",
             "PROFILE"}  # variables that are no settings
OF_THE_MAKEFILE = {"CLAIM", "CLAIMS_DATA", "NAME", "PAIRS"}


@pytest.mark.parametrize("path", sorted(DOCS.glob("*.md")), ids=lambda path: path.name)
def test_commands_and_settings_of_the_pages_exist(path):
    page = text_of(path)
    for command in re.findall(r"-m\s+embedding_finetune ([a-z][\w-]*)", page):
        assert command in cli.COMMANDS, command
    for target in re.findall(r"(?<=[`= ])make ([a-z-]+)", " ".join(re.findall(r"```.*?```|`[^`]+`", page, re.DOTALL))):
        assert re.search(rf"^{target}:|^[\w -]* {target}\b.*:", (ROOT / "Makefile").read_text(), re.MULTILINE), target
    for name in re.findall(r"(?<![\w{.])([A-Z][A-Z_]{2,})=", page):
        assert name in {*TABLE, *OF_OTHERS, *OF_THE_MAKEFILE}, name


@pytest.mark.parametrize("path", [*PAGES, *NOTEBOOKS], ids=lambda path: path.name)
def test_no_line_is_too_long(path):  # ruff checks the code
    for line in text_of(path).splitlines():
        assert len(line) <= 120, line


def imported_modules(path):
    """The modules of the package that a module imports, without those of its comments and docstrings."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("embedding_finetune"):
            package = node.module.partition(".")[2].replace(".", "/")
            is_module = (ROOT / "embedding_finetune" / f"{package}.py").exists()
            is_object = is_module or package == "data/readers"  # whose __init__ holds the row that every reader yields
            yield from [package] if is_object else ["/".join(filter(None, [package, name.name])) for name in node.names]


def test_every_module_is_on_the_map_and_imports_only_from_above_it():
    listed = re.findall(r"^    (\w+(?:/\w+)*)  ", (ROOT / "embedding_finetune/__init__.py").read_text(), re.MULTILINE)
    place = {name: number for number, name in enumerate(listed)}
    for path in MODULES:
        name = "/".join(path.relative_to(ROOT / "embedding_finetune").with_suffix("").parts)
        if path.name in ("__init__.py", "__main__.py") or path.read_text().startswith('"""Old name of '):
            continue
        assert name in place, f"{name} is not on the map"
        for other in imported_modules(path):
            assert other == "contrib" or place[other] < place[name], f"{name} imports {other}, which stands below it"


def test_modules_are_short():
    for path in MODULES:
        assert len(path.read_text(encoding="utf-8").splitlines()) <= 300, path


def test_the_places_to_change_something_exist():
    for target in re.findall(r"^\|[^|]*\|(.*)\|$", text_of(DOCS / "internals.md"), flags=re.MULTILINE)[2:]:
        for name in re.findall(r"`([\w./]+/[\w./]+)`", target):
            assert (ROOT / name).exists() or (ROOT / "embedding_finetune" / name).exists(), name


def test_the_five_places_worth_a_breakpoint_exist():
    page = text_of(DOCS / "internals.md")
    places = re.findall(r"^- `(embedding_finetune\.[\w.]+)`", page, flags=re.MULTILINE)
    others = re.findall(r"`(FlagEmbedding\.abc\.[\w.]+)`", page)
    assert (len(places), len(others)) == (5, 3)
    for name in places + others:
        assert callable(pydoc.locate(name)), name


def test_the_launch_configurations_say_what_the_page_says():
    page = text_of(DOCS / "internals.md")
    settings, module, words = re.search(r"((?:\w+=\S+ )+)python -m pdb -m (\S+) (.+)", page).groups()
    settings = dict(setting.split("=") for setting in settings.split())
    [code] = json.loads((ROOT / ".vscode" / "launch.json").read_text())["configurations"]
    assert (code["module"], code["args"], code["env"]) == (module, words.split(), settings)
    [path] = (ROOT / ".run").glob("*.run.xml")
    charm = ElementTree.parse(path).getroot().find("configuration")
    options = {option.get("name"): option.get("value") for option in charm.iter("option")}
    assert (options["SCRIPT_NAME"], options["PARAMETERS"], options["MODULE_MODE"]) == (module, words, "true")
    assert settings.items() <= {env.get("name"): env.get("value") for env in charm.iter("env")}.items()
    page = " ".join(page.split())
    assert f"**{code['name']}**" in page and f"**{charm.get('name')}**" in page


def test_the_messages_in_troubleshooting_are_those_of_the_code():
    """A message with `...` in it is ours; each of its parts stands in the sources."""
    sources = "\n".join(path.read_text(encoding="utf-8") for path in MODULES)
    sources = re.sub(r"\{[^{}]*\}", "...", re.sub(r'"\s*\n\s*f?"', "", sources))
    page = " ".join(text_of(DOCS / "troubleshooting.md").split("\n  "))
    headings = re.findall(r"^- \*\*(.*?)\*\*:", page, flags=re.MULTILINE)
    messages = [message for heading in headings for message in re.findall(r"`([^`]*\.\.\.[^`]*)`", heading)]
    assert len(messages) > 15
    for message in messages:
        for part in re.split(r"\.\.\.|\bN\b", message):
            assert part.strip() in sources, f"no message has {part!r} of {message!r}"


# What docs/internals.md shows is done here, line for line, in a process of its own; nothing else is edited.
EXTENDED = """
import sys
import numpy as np
from embedding_finetune.data.collection import read_data
from embedding_finetune.data.cleaning import read_pairs, reader
from embedding_finetune.evaluation.evaluate import evaluate
from embedding_finetune.evaluation.results import compare
from embedding_finetune.retrieval.base import Retriever, retriever
from embedding_finetune.settings import Settings, path_of

{added}

settings = Settings.load()
found, _ = read_pairs(settings.__class__(**(vars(settings) | {{"dataset": sys.argv[1]}})))
print("READ", len(found.queries), len(found.corpus))
collection = read_data(settings)
for label in ("bm25", "overlap"):
    evaluate(settings, label)
rows, _ = compare(settings, collection)
print("COMPARED", *(row["label"] for row in rows))
"""


def added_lines(heading):
    """The lines that the diff under a heading of docs/internals.md adds."""
    diff = re.search(rf"^### {heading}\n.*?```diff\n(.*?)```", text_of(DOCS / "internals.md"), re.MULTILINE | re.DOTALL)
    return "\n".join(line[1:] for line in diff[1].splitlines() if line.startswith("+"))


def test_a_format_and_a_retriever_take_one_addition_each(built, tmp_path):
    (tmp_path / "pairs.psv").write_text("what is it|it is this\nwho is it|it is she\n", encoding="utf-8")
    script = EXTENDED.format(added=f"{added_lines('A data format')}\n\n\n{added_lines('A retriever')}")
    status, said = run_forked(program, script, tmp_path / "pairs.psv", log=tmp_path / "log")
    assert status == 0 and "READ 2 2\n" in said and "COMPARED bm25 overlap\n" in said, said


def test_a_recipe_takes_one_entry(settings, tmp_path, monkeypatch):
    from embedding_finetune.recipes import find_recipe
    path = tmp_path / "recipes.toml"
    path.write_text(settings.recipe_file.read_text(encoding="utf-8") + "\n" + added_lines("A recipe"), encoding="utf-8")
    monkeypatch.setenv("RECIPE_FILE", str(path))
    recipe = find_recipe(settings.load(), "hard_big")
    assert recipe.candidates == ["bm25", "model"] and recipe.filter == "relative_margin 0.95"
    assert recipe.file == "training_hard_big.json"
    assert settings.with_overrides(recipe.settings).batch_size == 128
