"""The ladder of the second look: its rows are what its page says, and a system comes from its results to a row."""

import importlib.util
import itertools
import json
import os
import sys
from functools import partial
from unittest import mock

import ladder_results
import pytest

from embedding_finetune.evaluation import results
from embedding_finetune.files import write_json, write_jsonl
from embedding_finetune.recipes import all_recipes
from embedding_finetune.retrieval.known_systems import find_system
from embedding_finetune.retrieval.system import System
from embedding_finetune.settings import ROOT

with mock.patch.object(sys, "path", [str(ROOT / "docs"), *sys.path]):
    SPEC = importlib.util.spec_from_file_location("second_ladder", ROOT / "docs" / "second_ladder.py")
    ladder = importlib.util.module_from_spec(SPEC)
    SPEC.loader.exec_module(ladder)
    SPEC = importlib.util.spec_from_file_location("result_tables", ROOT / "docs" / "result_tables.py")
    result_tables = importlib.util.module_from_spec(SPEC)
    SPEC.loader.exec_module(result_tables)
ROWS = [row for row in json.loads((ROOT / "docs" / "recipe.json").read_text()) if row.get("ladder") == "second"]


@pytest.fixture(autouse=True)
def own_environment(tmp_path, monkeypatch):
    """The ladder puts its settings into the environment, and writes to a folder of its own."""
    monkeypatch.setattr(ladder, "OUTPUT", tmp_path)
    with mock.patch.dict(os.environ):
        yield


def told(entries, model):
    """What a row says of a model's training, of one of another set as well; "" of an untrained one."""
    set_of, _, other = model.partition("_")
    if set_of in ladder.SETS:
        return f"{entries[other].description}, on {set_of}"
    return entries[model].description if model in entries else ""


def test_each_row_has_what_it_claims(tmp_path):
    for name, model in itertools.product(ladder.SETS, ladder.TRAVEL):  # which other sets meet
        write_json(tmp_path / name / model / "config.json", {})
    settings = ladder.settings_of("msmarco")
    entries, seen = all_recipes(settings), set()
    for row in ROWS:
        models = ladder.models_of(find_system(ladder.settings_of(row["set"]), row["label"]))
        assert row["trained"] == [about for about in (told(entries, model) for model in models) if about]
        low, high = row["ci95"]
        assert low <= row["recall@1"] <= high and (row["set"], row["label"]) not in seen
        seen.add((row["set"], row["label"]))
        assert (row["seeds"] > 0) == bool(row["trained"]) == (row["steps"] > 0)
        assert row["minutes"] is None or bool(row["trained"]) == (row["minutes"] > 0)  # None: not trained on two cores
        by_seed = row["recall@1 by seed"].values()
        assert len(by_seed) == row["seeds"]
        assert not by_seed or sum(by_seed) / len(by_seed) == pytest.approx(row["recall@1"], abs=1e-5)
        assert row["ms_per_query"] > 0 and (row["bytes_per_passage"] > 0) == (row["label"] != "bm25")
    for name in {row["set"] for row in ROWS}:
        assert {(name, label) for label in ladder.BASELINES} <= seen


def test_the_tables_of_the_page_are_the_rows():
    page = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
    assert result_tables.filled(page) == page, "run python docs/result_tables.py"
    assert page.count("<!-- table ") == len(result_tables.tables()) == 6
    row = next(row for row in ROWS if (row["set"], row["label"]) == ("covidqa", "bm25"))
    assert f"| BM25 | {row['recall@1']:.3f} [" in result_tables.tables()["covidqa"]


def test_a_set_leaves_no_setting_to_the_next():
    assert ladder.settings_of("covidqa").corpus
    assert ladder.settings_of("msmarco").corpus == "" and ladder.settings_of("torch").passage_max_len == 96


def test_finished_systems_are_collected(tmp_path, monkeypatch):
    """Four test queries; the seeds of a system become one row, its costs the sum of its parts'."""
    monkeypatch.setattr(results, "_identity", lambda *_: "its content")
    settings = ladder.settings_of("msmarco")
    measured = partial(ladder_results.measured, settings, ladder_results.write_collection_of(settings, train=3),
                       size={"vector": 8, "weights": 1})

    def reranked(model, right):
        measured(System("reference", reranker="late", reranker_model=model), right, bytes_per_passage=100,
                 ms_per_query=9.0, parameters={"depth": 2, "bm25_weight": 0.0, "rerank_weight": None})

    measured("bm25", {0})
    measured("reference", {0, 1})
    measured(System("reference", fused=True), {0, 1}, parameters={"bm25_weight": 0.1})
    measured("tokens", {1})
    measured("tokens_seed43", {1})
    measured("docstrings_dense", {1, 3})
    reranked("tokens", {0, 1, 2})
    reranked("tokens_seed43", {0, 1, 2, 3})
    output = tmp_path / "msmarco"
    write_json(output / "minutes.json", {"tokens": 4.0, "tokens_seed43": 6.0})
    write_json(output / "costs.json", {"bm25": 1.0, "one vector": 2.0, "late_tokens_on_reference": 4.0})
    write_jsonl(output / "tokens" / "training_log.jsonl", [{"step": 7}])
    write_json(tmp_path / "docstrings" / "dense" / "config.json", {})
    write_json(tmp_path / "docstrings" / "minutes.json", {"dense": 5.0})
    write_jsonl(tmp_path / "docstrings" / "dense" / "training_log.jsonl", [{"step": 8}])
    rows = {row["label"]: row for row in ladder.collect("msmarco")}
    assert set(rows) == {"bm25", "reference", "hybrid_reference", "tokens", "late_tokens_on_reference",
                         "docstrings_dense"}
    row = rows["docstrings_dense"]
    assert row["trained"] == ["one vector, fine-tuned, on docstrings"]
    assert (row["steps"], row["minutes"], row["seeds"]) == (8, 5.0, 1)
    row = rows["late_tokens_on_reference"]
    assert row["recall@1"] == 0.875 and row["recall@1 by seed"] == {"42": 0.75, "43": 1.0} and row["seeds"] == 2
    assert row["steps"] == 7 and row["minutes"] == 4.0 and row["ms_per_query"] == 7.0 and row["dev"] == 0.75
    assert row["bytes_per_passage"] == 132 and row["trained"] == ["token vectors, fine-tuned"]
    assert row["baselines"]["hybrid_reference"]["difference"] == pytest.approx(0.375)
    assert rows["bm25"]["ms_per_query"] == 1.0 and rows["bm25"]["bytes_per_passage"] == 0
    assert rows["hybrid_reference"]["ms_per_query"] == 3.0 and rows["reference"]["bytes_per_passage"] == 32
    shown = ladder.table(rows.values())
    assert shown.loc["late_tokens_on_reference", "recall@1"].startswith("0.875 [")


def test_a_row_stays_unless_more_seeds_were_found():
    def row(label, seeds, value):
        return {"ladder": "second", "set": "msmarco", "label": label, "seeds": seeds, "recall@1": value}

    first = {"set": "msmarco", "label": "dense"}  # of the first ladder
    there = [first, row("reference", 0, 0.5), row("dense", 1, 0.5), row("tokens", 3, 0.5), row("both", 1, 0.5)]
    found = [row("reference", 0, 0.6), row("dense", 3, 0.6), row("tokens", 1, 0.6), row("taught", 1, 0.6)]
    assert ladder.with_new(there, found) == [first, there[1], there[3], there[4], found[1], found[3]]


def test_a_system_is_made_of_what_it_needs_once(monkeypatch):
    asked, output = [], ladder.settings_of("msmarco").output_dir

    def run_notebook(path, folder, label=None):
        asked.append((path.stem, label))
        if label:
            write_json(output / "results" / f"{label}.json", {})

    def train(settings, label):
        asked.append(("train", label))
        (output / label).mkdir(parents=True)

    monkeypatch.setattr(ladder.pipeline, "run_notebook", run_notebook)
    monkeypatch.setattr(ladder.training, "finetune", train)
    ladder.run_system("msmarco", "late_taught_by_tokens_seed43_on_dense")
    assert [step for step in asked if step[1]] == [
        ("train", "tokens"), ("eval_train_hard", "tokens"), ("eval_bge_m3", "reference"),
        ("rerank", "late_tokens_on_reference"), ("train", "taught_by_tokens_seed43"),
        ("eval_train_hard", "taught_by_tokens_seed43"), ("train", "dense"), ("eval_train_hard", "dense"),
        ("rerank", "late_taught_by_tokens_seed43_on_dense")]
    asked.clear()
    ladder.run_system("msmarco", "late_tokens_on_reference")
    assert not asked
