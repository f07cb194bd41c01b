"""The recipe ladder: a row runs, dev queries alone decide, and what is committed is what the rows say."""

import importlib.util
import json
import os
import re
from unittest import mock

import pytest

from embedding_finetune.experiment import ROOT
from embedding_finetune.files import ExperimentError

SPEC = importlib.util.spec_from_file_location("recipe", ROOT / "docs" / "recipe.py")
recipe = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(recipe)
LADDER = json.loads((ROOT / "docs" / "recipe.json").read_text(encoding="utf-8"))


@pytest.fixture
def tiny_ladder(tiny_settings, tmp_path, monkeypatch):
    """The ladder on tiny pairs and a tiny model, in a folder of its own, with two steps a row."""
    monkeypatch.setattr(recipe, "OUTPUT", tmp_path)
    monkeypatch.setattr(recipe, "STEPS", 2)
    monkeypatch.setitem(recipe.SETS, "msmarco", {"DATASET": tiny_settings["DATASET"], "MAX_PAIRS": "0"})
    with mock.patch.dict(os.environ, {**{name: tiny_settings[name] for name in ("BASE_MODEL", "REFERENCE_MODEL")}, "PYTHONPATH": str(ROOT)}):
        yield


def test_a_row_is_trained_measured_and_collected(tiny_ladder):
    recipe.run_row("msmarco", "random-10", recipe.SEED)
    recipe.run_row("msmarco", "BM25 negatives, filtered", recipe.SEED)
    rows = {row["label"]: row for row in recipe.collect("msmarco")}
    assert {"bm25", "raw", "reference", "random-10", "random-10 + hybrid", "BM25 negatives, filtered"} <= set(rows)
    row = rows["BM25 negatives, filtered"]
    assert row["steps"] == 2 and row["seeds"] == 1 and row["settings"]["HARD_SOURCE"] == "bm25"
    low, high = row["ci95"]
    assert low <= row["recall@1"] <= high
    against = row["against"]
    assert against["difference"] == pytest.approx(row["recall@1"] - rows[against["row"]]["recall@1"])
    log = recipe.folder_of("msmarco", "random-10") / "neg10" / "training_log.jsonl"
    assert [json.loads(line)["step"] for line in log.read_text().splitlines()][-1] == 2


def test_a_row_without_one_to_build_on_says_what_comes_first(tiny_ladder):
    with pytest.raises(ExperimentError, match="msmarco random-10 comes first"):
        recipe.run_row("msmarco", "second round", recipe.SEED)


def dev_of(name):
    return {row["label"]: row["dev"] for row in LADDER if row["set"] == name and row["label"] in recipe.ROWS}


def test_dev_queries_decide_what_a_row_builds_on():
    dev = {"random-10": 0.5, "learning rate 1e-4": 0.6, "learning rate 2e-4": 0.55, "temperature 0.05": 0.58}
    assert [recipe.parent_of(row, dev) for row in (*dev, "teacher", "random-10, mean pooling")] == [
        None, "random-10", "random-10", "learning rate 1e-4", "learning rate 1e-4", "random-10"]
    assert recipe.settings_of("BM25 negatives, filtered", dev) == {"LEARNING_RATE": "1e-4", "HARD_SOURCE": "bm25"}
    assert recipe.recipe_of("temperature 0.05", dev) == "neg10" and recipe.recipe_of("random-10, mean pooling", dev) == "neg10"


@pytest.mark.parametrize("row", [row for row in LADDER if row["seeds"]], ids=lambda row: f"{row['set']}-{row['label']}")
def test_the_committed_ladder_is_what_the_commands_would_run(row):
    """Settings and order of each committed row follow from the rungs and the dev figures; no test figure is asked."""
    name, dev = row["label"].removesuffix(" + hybrid"), dev_of(row["set"])
    assert {"set", "label", "recall@1", "ci95", "seeds", "steps", "minutes"} <= set(row)
    assert row["changes"] == (name if "hybrid" in row["label"] else recipe.parent_of(name, dev))
    asked = recipe.COMMON | recipe.SETS[row["set"]] | recipe.settings_of(name, dev)
    for key in asked.keys() & row["settings"].keys():
        mine, theirs = asked[key], str(row["settings"][key])
        assert mine == theirs or float(mine) == float(theirs), (key, mine, theirs)
    assert row["steps"] == recipe.STEPS


def test_the_readmes_table_is_the_ladder():
    known = {f"{row['recall@1']:.3f}" for row in LADDER}
    for row in LADDER:
        against = row.get("against")
        if against:
            known |= {f"{value:+.3f}" for value in (against["difference"], *against["ci95"])}
    table = [line for line in (ROOT / "README.md").read_text(encoding="utf-8").splitlines() if line.startswith("|") and re.search(r"\[[+-]", line)]
    assert len(table) >= 5
    for number in re.findall(r"[+-]?\d\.\d{3}", "\n".join(table)):
        assert number in known, f"{number} is not in docs/recipe.json"
