"""The recipe ladder: what is committed is what the entries say, and a row comes from its entry to the table."""

import importlib.util
import json
import math
import os
import re
import tomllib
from functools import partial
from unittest import mock

import ladder_results
import pytest

from embedding_finetune.deprecation import rename_recipe, rename_settings
from embedding_finetune.evaluation import results
from embedding_finetune.recipes import KEYS, all_recipes, find_recipe
from embedding_finetune.settings import ROOT

SPEC = importlib.util.spec_from_file_location("recipe", ROOT / "docs" / "recipe.py")
recipe = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(recipe)
EVERYTHING = json.loads((ROOT / "docs" / "recipe.json").read_text(encoding="utf-8"))
LADDER = [row for row in EVERYTHING if "ladder" not in row]  # the others are test_second_ladder.py's


@pytest.fixture(autouse=True)
def own_environment(tmp_path, monkeypatch):
    """The ladder puts its settings into the environment, and writes to a folder of its own."""
    monkeypatch.setattr(recipe, "OUTPUT", tmp_path)
    with mock.patch.dict(os.environ):
        yield


def rows_of(name, trained=True):
    return {row["label"]: row for row in LADDER if row["set"] == name and (row["seeds"] or not trained)}


def flat(some):
    """What a recipe says but for its name: keys and settings side by side."""
    return {key: getattr(some, key) for key in KEYS if key not in ("description", "file", "settings")} | some.settings


@pytest.mark.parametrize("name", recipe.SETS)
def test_each_row_is_an_entry_and_says_in_what_it_differs(name):
    settings, raw = recipe.settings_of(name), tomllib.loads((ROOT / f"docs/ladder_{name}.toml").read_text())
    entries, rows = all_recipes(settings), rows_of(name)
    about = {label: entry.description for label, entry in entries.items()}
    assert len(set(about.values())) == len(about)
    assert set(rows) == {*about.values(), *(f"{row} + hybrid" for row in about.values())}
    for label, entry in entries.items():
        settings.with_overrides(entry.settings)
        row, fused, base = rows[entry.description], rows[f"{entry.description} + hybrid"], raw[label].get("extends")
        assert row["changes"] == about.get(base) and fused["changes"] == entry.description
        before = flat(entries[base]) if base else flat(entry)
        by = rename_settings(rename_recipe(row["by"]))  # measured under earlier names
        assert by == {key: value for key, value in flat(entry).items() if before.get(key) != value}


@pytest.mark.parametrize("name", recipe.SETS)
def test_what_rows_build_on_was_the_best_on_dev_so_far(name):
    dev, best = {row: rows_of(name)[row]["dev"] for row in rows_of(name) if "hybrid" not in row}, 0
    built_on = {rows_of(name)[row]["changes"] for row in dev} - {None}
    for row in dev:
        assert row not in built_on or dev[row] > best, row
        best = max(best, dev[row])


def test_all_that_was_measured_is_still_there():
    assert len(LADDER) == 90 and {row["steps"] for row in LADDER} == {0, recipe.STEPS}
    for row in LADDER:
        low, high = row["ci95"]
        assert low <= row["recall@1"] <= high and row["queries"] == {"docstrings": 1200, "msmarco": 1396}[row["set"]]
        if row["seeds"]:
            seeds = row["recall@1 by seed"].values()
            assert len(seeds) == row["seeds"] and sum(seeds) / len(seeds) == pytest.approx(row["recall@1"], abs=1e-5)
            assert {"bm25", "reference", "hybrid_reference"} <= set(row["baselines"]) and row["minutes"] > 0


def cells_of(page, columns):
    """The cells of a page's table lines with so many columns, without the head."""
    lines = [line.replace("*", "") for line in page.read_text(encoding="utf-8").splitlines() if line.startswith("| ")]
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines]
    return [row for row in cells if len(row) == columns and re.search(r"\d\.\d{3}", row[-1] + row[1])]


def test_the_tables_of_the_readme_are_the_ladder():
    known = {name: {f"{row['recall@1']:.3f}" for row in rows_of(name, trained=False).values()} for name in recipe.SETS}
    for page in (ROOT / "README.md", ROOT / "README.zh.md"):
        table = cells_of(page, 3)
        assert len(table) >= 4
        for _, one, other in table:
            assert one in known["docstrings"] and other in known["msmarco"]


def test_the_pages_sentence_on_fusion_is_counted():
    low = [row["against"]["ci95"][0] for row in LADDER if row["label"].endswith("+ hybrid")]
    page = (ROOT / "docs/results.md").read_text(encoding="utf-8")
    assert f"in {sum(end > 0 for end in low)} of {len(low)} rows" in page


def test_the_pages_entries_are_recipes(tmp_path):
    page = (ROOT / "docs/training.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```toml\n(\[\w.*?)^```", page, flags=re.MULTILINE | re.DOTALL)
    (tmp_path / "own.toml").write_text((ROOT / "profiles/recipes.toml").read_text() + "\n".join(blocks))
    settings = recipe.settings_of("msmarco", RECIPE_FILE=tmp_path / "own.toml")
    own = [entry for label, entry in all_recipes(settings).items() if f"[{label}]" in "".join(blocks)]
    assert len(own) == len(blocks) == 2
    for entry in own:
        settings.with_overrides(entry.settings)


def test_finished_rows_are_collected(tmp_path, monkeypatch):
    monkeypatch.setattr(results, "_identity", lambda *_: "its content")
    settings = recipe.settings_of("msmarco")
    measured = partial(ladder_results.measured, settings, ladder_results.write_collection_of(settings))
    measured("bm25", {0})
    measured("reference", {0, 1})
    measured("neg10", {0, 1, 2}, recipe="neg10")
    measured("neg10_seed43", {0, 1}, recipe="neg10")
    measured("temperature", {0, 1, 2, 3}, recipe="temperature")  # like lr1e-4, which was not measured
    measured("lr1e-4", {3}, recipe="lr1e-4")
    measured("hybrid_lr1e-4", {2, 3}, parameters={"bm25_weight": 0.3})
    (settings.output_dir / "minutes.json").write_text(json.dumps({"neg10": 4.0, "neg10_seed43": 5.0, "lr1e-4": 3.0}))
    rows = {row["label"]: row for row in recipe.collect("msmarco")}
    assert list(rows) == ["bm25", "reference", "random-10", "learning rate 1e-4", "temperature 0.05",
                          "learning rate 1e-4 + hybrid"]
    first = rows["random-10"]
    assert first["recall@1"] == 0.625 and first["recall@1 by seed"] == {"42": 0.75, "43": 0.5} and first["seeds"] == 2
    assert first["recall@10"] == 1 and first["mrr@10"] == pytest.approx((3.5 + 3) / 8) and first["dev"] == 0.75
    assert first["minutes"] == 4.5 and first["changes"] is None and first["by"] == {} and first["against"] is None
    assert first["baselines"]["bm25"]["difference"] == pytest.approx(0.375) and "random-10" not in first["baselines"]
    changed = rows["learning rate 1e-4"]
    assert changed["changes"] == "random-10" and changed["by"] == {"LEARNING_RATE": 1e-4}
    assert changed["against"]["row"] == "random-10" and changed["against"]["difference"] == pytest.approx(-0.375)
    fused = rows["learning rate 1e-4 + hybrid"]
    assert (fused["changes"], fused["by"], fused["weight"], fused["minutes"]) == ("learning rate 1e-4", {}, 0.3, 3.0)
    assert fused["against"]["difference"] == pytest.approx(0.25) and fused["steps"] == recipe.STEPS
    assert rows["bm25"]["seeds"] == rows["bm25"]["steps"] == 0 and rows["bm25"]["baselines"] == {}
    assert {"set", "queries", "corpus", "ci95"} <= set(fused) and fused["queries"] == 4 and fused["corpus"] == 306
    assert set(rows["bm25"]) == set(fused) and set(LADDER[5]) <= set(fused)
    monkeypatch.setattr(recipe, "LADDER", tmp_path / "recipe.json")
    recipe.LADDER.write_text(json.dumps(EVERYTHING))
    monkeypatch.setattr("sys.argv", ["recipe.py", "collect"])
    recipe.main()
    kept = [row for row in LADDER if row["set"] == "docstrings"]  # of which nothing is finished here
    others = [row for row in EVERYTHING if "ladder" in row]
    assert json.loads(recipe.LADDER.read_text()) == [*kept, *rows.values(), *others]
    assert len(recipe.LADDER.read_text().splitlines()) == len(kept) + len(rows) + len(others) + 2  # a row a line
    shown = recipe.table(rows.values())
    assert shown.loc["learning rate 1e-4", "recall@1"].startswith("0.250 [")
    assert shown.loc["learning rate 1e-4 + hybrid", "difference"].startswith("+0.250 [")


@pytest.mark.parametrize("label, batch", [("lr1e-4", 32), ("neg10_batch128", 128)])
def test_a_row_takes_as_many_steps_as_all_others(label, batch, monkeypatch):
    settings = recipe.settings_of("msmarco")
    ladder_results.write_collection_of(settings)
    asked = []
    monkeypatch.setattr(recipe.pipeline, "run_notebook",
                        lambda path, folder, label=None: asked.append((path.stem, label)))

    def train(settings, label):
        entry = find_recipe(settings, label)
        tuned = settings.with_overrides(entry.settings)
        (settings.output_dir / label).mkdir()
        asked.append((label, tuned.seed, tuned.batch_size, math.ceil(tuned.epochs * (300 // tuned.batch_size))))

    monkeypatch.setattr(recipe.training, "finetune", train)
    recipe.run_row("msmarco", label, 43)
    seed = f"{label}_seed43"
    before = [(notebook, None) for notebook in recipe.BEFORE]
    assert asked == [*before, (seed, 43, batch, recipe.STEPS), ("eval_train_hard", seed)]
    assert list(json.loads((settings.output_dir / "minutes.json").read_text())) == [seed]
    asked.clear()
    recipe.run_row("msmarco", label, 43)
    assert asked == [*before, ("eval_train_hard", seed)]  # what is trained stays
