"""Old names of settings, recipe keys and commands: they work, print one line, and are to be removed in 2.0."""

import argparse
import ast
import dataclasses
import os
import re
import runpy
import subprocess
import sys

import pytest

from embedding_finetune import deprecation, profiles, version
from embedding_finetune.deprecation import (
    FILTERS,
    RECIPE_KEYS,
    RECIPE_VALUES,
    SETTING_VALUES,
    SETTINGS,
)
from embedding_finetune.files import UserError
from embedding_finetune.recipes import all_recipes, find_recipe
from embedding_finetune.serving.available import add_system_option
from embedding_finetune.settings import ROOT, Settings

PACKAGE = ROOT / "embedding_finetune"
EXAMPLES = {"OUT_OF_DOMAIN_SETS": "some/set", "ARCHITECTURE": "both", "MAX_QUERIES": "7", "GROUP_NEAR_DUPLICATES": "no",
            "ABSTENTION_PRECISION": "0.5", "PASSAGE_PROMPT": "text: ", "DOCUMENT_QUERIES": "q.jsonl",
            "QUERY_PROMPT": "find: ", "REFERENCE_PROMPT": "ask: ", "RERANKER_MODEL": "some/model",
            "RERANKERS": "late_raw", "DISTILLATION_LOSS": "margin", "TOKEN_POOL_FACTOR": "2", "TOKEN_DTYPE": "int8"}
COMMANDS = {"finetune": "train", "run": "run", "encode": "encode", "search": "search", "serve": "serve",
            "smaller": "export", "publish": "publish", "settings": "settings"}
RECIPE = {"description": "mine", "mining_top_k": 7, "extends": "first", "merge_weight": 0.5, "num_negatives": 3,
          "train_fraction": 0.5}


@pytest.fixture(autouse=True)
def no_notice_yet():
    deprecation._notice.cache_clear()


def notice(source, old, new):
    return f"note: {source}: {old} is now {new}; the old name works until 2.0"


def notices(capsys):
    return capsys.readouterr().err.splitlines()


@pytest.mark.parametrize("old, new", SETTINGS.items())
def test_an_old_setting_works_and_prints_one_line(monkeypatch, tmp_path, capsys, old, new):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(new, EXAMPLES[new])
        expected = Settings.load("demo")
    assert notices(capsys) == [] and expected != Settings.load("demo")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(old, EXAMPLES[new])
        assert Settings.load("demo") == Settings.load("demo") == expected
    assert notices(capsys) == [notice("environment", old, new)]
    demo = (ROOT / "profiles" / "demo.env").read_text(encoding="utf-8")
    lines = [line for line in demo.splitlines() if not line.startswith(f"{new}=")]
    (tmp_path / "profiles").mkdir()
    (tmp_path / "profiles" / "own.env").write_text("\n".join([*lines, f"{old}='{EXAMPLES[new]}'\n"]), encoding="utf-8")
    monkeypatch.setattr(profiles, "ROOT", tmp_path)
    assert dataclasses.replace(Settings.load("own"), profile="demo", of_others=expected.of_others) == expected
    assert notices(capsys) == [notice("profiles/own.env", old, new)]


@pytest.mark.parametrize("name, old, new", [(name, old, new) for (name, old), new in SETTING_VALUES.items()])
def test_an_old_value_of_a_setting_works_and_prints_one_line(monkeypatch, capsys, name, old, new):
    monkeypatch.setenv(name, old)
    assert getattr(Settings.load("demo"), name.lower()) == new
    assert notices(capsys) == [notice("environment", f"{name}={old}", f"{name}={new}")]


@pytest.mark.parametrize("old, new", SETTINGS.items())
def test_both_names_of_a_setting_are_an_error(monkeypatch, old, new):
    message = f"environment gives {new} and {old}, its old name: remove {old}"
    monkeypatch.setenv(old, EXAMPLES[new])
    monkeypatch.setenv(new, EXAMPLES[new])
    with pytest.raises(UserError, match=f"^{message}$"):
        Settings.load("demo")


def recipes_of(tmp_path, entry):
    """The recipes of a file in which `second` has the keys and values of `entry`."""
    text = "\n".join(f"{key} = {value!r}" for key, value in entry.items())
    path = tmp_path / "own.toml"
    path.write_text(f"[first]\n[second]\n{text}\n", encoding="utf-8")
    return all_recipes(dataclasses.replace(Settings.load("demo"), recipe_file=path))


@pytest.mark.parametrize("old, new", RECIPE_KEYS.items())
def test_an_old_key_of_a_recipe_works_and_prints_one_line(tmp_path, capsys, old, new):
    more = {"merge": "first"} if new == "merge_weight" else {}
    expected = recipes_of(tmp_path, {new: RECIPE[new]} | more)
    assert notices(capsys) == [] and recipes_of(tmp_path, {old: RECIPE[new]} | more) == expected
    assert notices(capsys) == [notice("own.toml, recipe 'second'", old, new)]
    message = f"own.toml, recipe 'second' gives {new} and {old}, its old name: remove {old}"
    for both in ({old: RECIPE[new], new: RECIPE[new]}, {new: RECIPE[new], old: RECIPE[new]}):
        with pytest.raises(UserError, match=f"^{message}$"):
            recipes_of(tmp_path, both | more)


@pytest.mark.parametrize("key, old, new", [
    *((key, old, new) for (key, old), new in RECIPE_VALUES.items()),
    *(("filter", f"{old} {numbers}", f"{new} {numbers}")
      for (old, new), numbers in zip(FILTERS.items(), ("0.9", "0.05", "10 60"), strict=True))])
def test_an_old_value_of_a_recipe_works_and_prints_one_line(tmp_path, capsys, key, old, new):
    expected = recipes_of(tmp_path, {key: new})
    assert notices(capsys) == [] and recipes_of(tmp_path, {key: old}) == expected
    assert notices(capsys) == [notice("own.toml, recipe 'second'", f"{key} = {old!r}", f"{key} = {new!r}")]


def test_an_old_setting_in_a_recipe_works_and_prints_one_line(tmp_path, capsys):
    path = tmp_path / "own.toml"
    path.write_text("[first]\nsettings = { TEACHER_LOSS = 'margin' }\n", encoding="utf-8")
    recipe = find_recipe(dataclasses.replace(Settings.load("demo"), recipe_file=path), "first")
    assert recipe.settings == {"DISTILLATION_LOSS": "margin"}
    assert notices(capsys) == [notice("own.toml, recipe 'first'", "TEACHER_LOSS", "DISTILLATION_LOSS")]


def old_modules():
    """The modules that are old names of commands."""
    return {path.stem for path in PACKAGE.rglob("*.py")
            if (ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "").startswith("Old name of")}


@pytest.mark.filterwarnings("ignore:.*found in sys.modules")
@pytest.mark.parametrize("old, command", COMMANDS.items())
def test_an_old_command_prints_one_line_and_runs(monkeypatch, capsys, old, command):
    monkeypatch.setattr(sys, "argv", [f"{old}.py", "--help"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_module(f"embedding_finetune.{old}", run_name="__main__")
    shown = capsys.readouterr()
    assert ended.value.code == 0 and shown.out.startswith(f"usage: python -m embedding_finetune {command} ")
    assert shown.err.splitlines() == [
        notice("command", f"python -m embedding_finetune.{old}", f"python -m embedding_finetune {command}")]


def test_the_old_option_of_search_and_serve_prints_one_line(capsys):
    parser = argparse.ArgumentParser()
    add_system_option(parser, "")
    assert parser.parse_args(["--system", "bm25"]).system == "bm25" and notices(capsys) == []
    assert parser.parse_args(["--model", "bm25"]).system == "bm25" and "--model" not in parser.format_help()
    assert notices(capsys) == [notice("command", "--model", "--system")]


def test_every_old_command_is_tried():
    assert COMMANDS.keys() == old_modules() | {"settings"}


def test_an_old_command_in_a_process_of_its_own():
    done = subprocess.run([sys.executable, "-m", "embedding_finetune.settings"], cwd=ROOT, capture_output=True,
                          text=True, env={"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "PROFILE": "demo"})
    assert done.returncode == 0 and done.stdout.startswith("profile demo\n")
    assert "python -m embedding_finetune.settings is now python -m embedding_finetune settings" in done.stderr


def overdue(number):
    """The modules of old names that this version must not have: none before 2.0, all from then on."""
    if int(number.split(".")[0]) < int(deprecation.REMOVED_IN.split(".")[0]):
        return set()
    return old_modules() | {path.stem for path in PACKAGE.glob("deprecation.py")}


def test_old_names_are_removed_in_time():
    assert overdue(version.__version__) == overdue("1.9.9") == set()
    assert overdue("2.0.0") == overdue("10.1") == {"deprecation", *COMMANDS} - {"settings"}


def test_the_changelog_lists_every_old_name():
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (.+) \| (.+) \|$", text, flags=re.MULTILINE)

    def listed(old, new):
        return any(re.search(rf"(?<![\w.]){re.escape(old)}(?!\w)", left)
                   and re.search(rf"(?<![\w.]){re.escape(new)}(?!\w)", right) for left, right in rows)

    for old, new in (SETTINGS | RECIPE_KEYS).items():
        assert listed(old, new), old
    for (name, old), new in (SETTING_VALUES | RECIPE_VALUES).items():
        assert listed(old, new), f"{name}={old}"
    for old, new in FILTERS.items():
        assert listed(f"{old} ..", f"{new} .."), old
    for old, new in COMMANDS.items():
        assert listed(f"python -m embedding_finetune.{old}", f"python -m embedding_finetune {new}"), old
