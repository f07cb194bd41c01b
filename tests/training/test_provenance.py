"""What a model was trained from: what belongs to it, when it is today's, and what its evaluation says of it."""

import dataclasses
import shutil

import pytest
from tiny import tiny_bert, tiny_pairs, tiny_texts
from tiny_training import changed_rows

from embedding_finetune.data.row_store import read_rows, rows_identity
from embedding_finetune.files import UserError, write_json
from embedding_finetune.recipes import find_recipe
from embedding_finetune.settings import TRAINING
from embedding_finetune.training.provenance import (
    RECORD,
    check_trained,
    is_current,
    read_record,
    training_record,
    training_script,
)
from embedding_finetune.training.training_data import training_path

NEG10 = "training_neg_10.arrow"


@pytest.fixture
def trained(built):
    """The experiment with a model neg10, of which the record alone is there."""
    write_json(built.output_dir / "neg10" / RECORD, training_record(built, find_recipe(built, "neg10")))
    return built


def current(settings, label="neg10"):
    return is_current(settings, find_recipe(settings, label))


def test_the_record_has_all_settings_that_change_the_kept_weights(trained):
    record = read_record(trained.output_dir / "neg10")
    assert record["settings"] == trained.as_dict(TRAINING) | {"SEED": 42}
    assert {"GPUS", "TRAINER", "DEV_STEPS", "DEV_CORPUS_SIZE", "SEED", "PRECISION"} <= record["settings"].keys()
    assert not {"GRAD_CACHE_CHUNK", "LOGGING_STEPS", "ENCODE_BATCH_SIZE", "OUTPUT_DIR"} & record["settings"].keys()
    assert record["training_file"] == rows_identity(read_rows(training_path(trained, find_recipe(trained, "neg10"))))


def test_a_model_is_todays_unless_a_setting_of_its_weights_has_changed(trained):
    for change in ({}, {"grad_cache_chunk": 8}, {"logging_steps": 1}, {"encode_batch_size": 3}, {"seeds": 2},
                   {"reference_model": "another"}):
        assert current(dataclasses.replace(trained, **change)), change
    for change in ({"gpus": 2}, {"trainer": "flagembedding"}, {"dev_steps": 0.5}, {"dev_corpus_size": 7}, {"seed": 43},
                   {"epochs": 2.0}, {"query_prompt": "look up: "}, {"base_pooling": "mean"}, {"temperature": 0.05}):
        assert not current(dataclasses.replace(trained, **change)), change


def test_a_base_is_told_by_its_content_and_not_by_its_name(built, tmp_path):
    base = shutil.copytree(built.base_model, tmp_path / "base")
    settings = dataclasses.replace(built, base_model=str(base))
    write_json(built.output_dir / "neg10" / RECORD, training_record(settings, find_recipe(settings, "neg10")))
    moved = dataclasses.replace(settings, base_model=str(base.rename(tmp_path / "moved")))
    assert current(moved)
    tiny_bert(tmp_path / "moved", tiny_texts(tiny_pairs(120)), seed=9)  # other weights under the same name
    assert not current(moved)


def test_a_model_of_another_recipe_training_file_or_data_is_not_todays(trained):
    assert not current(trained, "neg50")
    recipe = find_recipe(trained, "neg10")
    for change in ({"num_negatives": 11}, {"teacher": "reference"}):  # the file has no scores for a teacher
        assert not is_current(trained, dataclasses.replace(recipe, **change))
    assert not is_current(trained, dataclasses.replace(recipe, settings={"EPOCHS": 2}))
    before = (trained.data_dir / NEG10).read_bytes()
    changed_rows(trained.data_dir / NEG10, lambda rows: [{**rows[0], "id": "another"}, *rows[1:]])
    assert current(trained)  # nothing of the id is trained on
    changed_rows(trained.data_dir / NEG10, lambda rows: rows[1:])
    assert not current(trained)
    (trained.data_dir / NEG10).write_bytes(before)
    assert current(trained)
    write_json(trained.data_dir / "dataset.json", {"files": {"corpus.jsonl": "another"}})
    assert not current(trained)


@pytest.mark.parametrize("damage", [
    lambda path: path.unlink(), lambda path: path.write_bytes(path.read_bytes()[:-10]),
    lambda path: path.write_text(""),
])
def test_a_broken_training_file_is_no_reason_to_stop(trained, damage):
    """`make run` asks before the fine-tuning makes the file anew."""
    damage(trained.data_dir / NEG10)
    assert not current(trained)


def test_a_model_is_evaluated_as_it_was_trained_and_the_differences_are_said(trained, tmp_path, capsys):
    check_trained(trained, "neg10")
    check_trained(trained, "raw")
    assert capsys.readouterr().out == ""
    (tmp_path / "recipes.toml").write_text('[neg10]\nnumber = 20\nfile = "training_neg_10.json"\n[neg50]\n')
    changed = dataclasses.replace(trained, epochs=3.0, query_prompt="look up: ", grad_cache_chunk=4,
                                  recipe_file=tmp_path / "recipes.toml")
    check_trained(changed, "neg10")
    assert capsys.readouterr().out == (
        "neg10 was trained with QUERY_PROMPT=Represent this sentence for searching relevant passages:  "
        "(now look up: ), EPOCHS=1.0 (now 3.0), num_negatives=10 (now 20): it is used as it was trained\n")


def test_a_model_of_another_split_is_refused(trained):
    write_json(trained.data_dir / "dataset.json", {"files": {"qrels/test.tsv": "another"}})
    with pytest.raises(UserError, match="neg10 was trained on another split, which may hold today's test queries: "
                                        "run `OVERWRITE=1 bash finetune_neg10.sh`"):
        check_trained(trained, "neg10")


@pytest.mark.parametrize("label, script", [
    ("neg50", "finetune_neg50.sh"), ("hard", "finetune_hard.sh hard"),
    ("neg10_seed43", "finetune_hard.sh neg10_seed43")])
def test_a_missing_model_names_what_trains_it(built, label, script):
    settings = dataclasses.replace(built, seeds=2)
    assert training_script(label) == script
    with pytest.raises(UserError, match=f"{label} holds no finished model: run `bash {script}` first"):
        check_trained(settings, label)


def test_a_repetition_has_the_seed_of_its_own_and_the_training_file_of_the_first(built):
    settings = dataclasses.replace(built, seeds=2)
    first, again = (training_record(settings, find_recipe(settings, label)) for label in ("neg10", "neg10_seed43"))
    assert (first["settings"].pop("SEED"), again["settings"].pop("SEED")) == (42, 43)
    assert first | {"label": ""} == again | {"label": ""}
    assert training_path(settings, find_recipe(settings, "neg10_seed43")).name == NEG10
