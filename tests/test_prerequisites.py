"""What a run checks before its first step: all of it, in one line each, before anything is made."""

import dataclasses
import shutil

import pytest
from huggingface_hub import constants
from tiny import tiny_bert, tiny_pairs, tiny_texts

from embedding_finetune import pipeline
from embedding_finetune.files import UserError
from embedding_finetune.prerequisites import check_prerequisites
from embedding_finetune.settings import Settings


@pytest.fixture
def offline(monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)


def test_each_thing_that_a_run_needs_is_one_line(settings, capsys):
    settings = dataclasses.replace(settings, out_of_domain_sets="general", extra_models=f"x={settings.base_model},cls")
    check_prerequisites(settings)
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(": ")[0] for line in lines] == [
        f"checked DATASET={settings.dataset}", "checked OUT_OF_DOMAIN_SETS=general",
        f"checked BASE_MODEL={settings.base_model}", f"checked REFERENCE_MODEL={settings.reference_model}",
        f"checked EXTRA_MODELS=x={settings.base_model}", "checked RERANKERS=late_reference", "checked disk space"]
    assert "(CLS pooling" in lines[4] and lines[4].endswith("MB of weights") and lines[6].startswith(
        "checked disk space: 2 trainings take about")
    assert not settings.output_dir.exists() and not settings.data_dir.exists()


@pytest.mark.parametrize("changes, expected", [
    ({"dataset": "nowhere.csv"}, "DATASET=nowhere.csv"), ({"corpus": "nowhere.csv"}, "CORPUS=nowhere.csv"),
    ({"document_queries": "nowhere.csv"}, "DOCUMENT_QUERIES=nowhere.csv"),
    ({"base_model": "nobody/nothing", "base_pooling": "cls"},
     "BASE_MODEL=nobody/nothing: nobody/nothing has no weights"),
    ({"reference_model": "/nowhere"}, "REFERENCE_MODEL=/nowhere: /nowhere is not a model folder"),
    ({"extra_models": "x=nobody/nothing,cls"}, "EXTRA_MODELS=x=nobody/nothing: cannot load nobody"),
    ({"out_of_domain_sets": "nowhere"}, "OUT_OF_DOMAIN_SETS=nowhere: nowhere is not a folder in BEIR's layout"),
    ({"rerankers": "late_nothing"}, "RERANKERS=late_nothing: there is no system"),
    ({"recipes": "reranker", "reranker_model": "/nowhere"}, "RERANKER_MODEL=/nowhere: /nowhere is not a model folder")])
def test_what_is_missing_is_said_before_the_first_step(settings, offline, capsys, monkeypatch, changes, expected):
    monkeypatch.setattr(pipeline, "run_notebook", lambda *args: pytest.fail("a step was run"))
    with pytest.raises(UserError) as stopped:
        pipeline.run_pipeline(dataclasses.replace(settings, **changes))
    assert str(stopped.value).startswith(expected) and str(stopped.value).endswith("; nothing was started")
    assert "missing " in capsys.readouterr().out and "\n" not in str(stopped.value)


def test_another_base_alone_stops_at_once_where_other_models_of_the_profile_are_missing(
        offline, tmp_path, monkeypatch):
    """It used to stop after all trainings."""
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(pipeline, "run_notebook", lambda *args: pytest.fail("a step was run"))
    settings = Settings.load("msmarco", {"BASE_MODEL": "bundled", "OUTPUT_DIR": str(tmp_path / "output")})
    with pytest.raises(UserError, match=r"^REFERENCE_MODEL=BAAI/bge-m3: .*; EXTRA_MODELS=raw_mean=bert-base-uncased: "
                                        r'cannot load .* \(EXTRA_MODELS="" leaves it out\); nothing was started$'):
        pipeline.run_pipeline(settings)


def test_all_that_is_missing_is_named_at_once(settings, offline, tmp_path):
    """A model folder without weights is none; neither is a base of a recipe that does not exist."""
    weightless = tiny_bert(tmp_path / "weightless", tiny_texts(tiny_pairs(20)))
    (weightless / "model.safetensors").unlink()
    recipes = settings.recipe_file.read_text() + '\n[other]\nextends = "neg10"\nsettings = { BASE_MODEL = "/nobody" }\n'
    (tmp_path / "recipes.toml").write_text(recipes)
    with pytest.raises(UserError, match=rf"^EXTRA_MODELS=x={weightless}: {weightless} has no weights on this machine.*"
                                        "; BASE_MODEL=/nobody of other: /nobody is not a model folder"):
        check_prerequisites(dataclasses.replace(settings, recipes="other", recipe_file=tmp_path / "recipes.toml",
                                                extra_models=f"x={weightless},cls"))


def test_a_full_disk_is_noticed(settings, monkeypatch):
    """Two models and three checkpoints of the first, each of three times its weights."""
    weights = (settings.paths.output.parent / settings.base_model / "model.safetensors").stat().st_size
    usage = shutil.disk_usage(settings.output_dir.parent)
    for free, fits in ((11 * weights, True), (11 * weights - 1, False)):
        monkeypatch.setattr(shutil, "disk_usage", lambda path, free=free: usage._replace(free=free))
        if fits:
            check_prerequisites(settings)
        else:
            with pytest.raises(UserError, match="^2 trainings take about .* choose another OUTPUT_DIR"):
                check_prerequisites(settings)
