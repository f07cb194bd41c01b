"""Training files: what their rows hold, and that they are made anew when what they are made of has changed."""

import dataclasses
import json

import pytest

from embedding_finetune.data.collection import data_identity, read_data
from embedding_finetune.files import UserError, read_json, read_jsonl, write_jsonl
from embedding_finetune.recipes import find_recipe
from embedding_finetune.training import rows as rows_module
from embedding_finetune.training.rows import (
    make_training_file,
    read_training_file,
    rows_identity,
    sample_share,
    training_path,
)


def make(settings, label="neg10"):
    return make_training_file(settings, find_recipe(settings, label), read_data(settings))


def path_of(settings, label="neg10"):
    return training_path(settings, find_recipe(settings, label))


@pytest.mark.parametrize("label, number", [("neg10", 10), ("neg50", 50)])
def test_rows_have_what_flagembedding_reads(built, label, number):
    train = read_data(built).part("train")
    pool = {train.corpus[passage] for passage in train.pool()[0]}
    rows = read_training_file(path_of(built, label))
    assert [row["id"] for row in rows] == list(train.queries)
    for row in rows:
        assert row["query"] == train.queries[row["id"]]
        assert row["pos"] == [train.corpus[passage] for passage in train.positives(row["id"])]
        assert len(set(row["neg"])) == number and set(row["neg"]) <= pool - set(row["pos"])
        assert row.keys() == {"query", "pos", "neg", "id", "prompt"} and row["prompt"] == built.query_instruction


def test_two_recipes_draw_different_negatives(built):
    few, many = (read_training_file(path_of(built, label)) for label in ("neg10", "neg50"))
    assert [row["neg"] for row in few] != [row["neg"][:10] for row in many]


def test_a_share_keeps_rows_as_they_are_and_a_larger_one_has_all_of_a_smaller_one(built):
    kept = {}
    for label in ("neg10", "neg10_half", "neg10_quarter", "neg10_eighth", "neg10_half_long"):
        make(built, label)
        kept[label] = [json.dumps(row) for row in read_training_file(path_of(built, label))]
    sizes = [len(kept[label]) for label in ("neg10", "neg10_half", "neg10_quarter", "neg10_eighth")]
    assert sizes == [sizes[0], *(round(share * sizes[0]) for share in (0.5, 0.25, 0.125))] and sizes[3] > 5
    assert set(kept["neg10_eighth"]) < set(kept["neg10_quarter"]) < set(kept["neg10_half"]) < set(kept["neg10"])
    assert kept["neg10_half_long"] == kept["neg10_half"] == [row for row in kept["neg10"] if row in kept["neg10_half"]]
    own = {text for row in map(json.loads, kept["neg10_eighth"]) for text in row["pos"]}
    assert not {text for row in map(json.loads, kept["neg10_eighth"]) for text in row["neg"]} <= own


def test_a_share_is_a_sample_of_the_seed_and_never_empty():
    queries = dict.fromkeys("abcdefgh")
    first, other = sample_share(queries, 0.5, seed=1), sample_share(queries, 0.5, seed=2)
    assert len(first) == 4 and first == sample_share(queries, 0.5, seed=1) and first != other
    assert first != set("abcd") and sample_share(queries, 1.0, seed=1) == set(queries)
    assert len(sample_share(queries, 0.01, seed=1)) == 1


@pytest.fixture
def write_count(monkeypatch):
    """How often a training file was written."""
    written = []
    monkeypatch.setattr(rows_module, "write_jsonl", lambda path, rows: (written.append(path), write_jsonl(path, rows)))
    return written


def test_a_file_is_taken_as_it_is_until_something_has_changed(built, monkeypatch, write_count):
    content = path_of(built).read_bytes()
    assert make(built) == {"random": 1.0} and not write_count

    path_of(built).write_bytes(content[:-1])  # cut short: not the file that was made
    make(built)
    assert len(write_count) == 1 and path_of(built).read_bytes() == content
    path_of(built).unlink()
    make(built)
    assert len(write_count) == 2 and path_of(built).read_bytes() == content
    path_of(built).with_suffix(".made.json").unlink()
    make(built)
    assert len(write_count) == 3 and path_of(built).read_bytes() == content

    recipe = find_recipe(built, "neg10")
    make_training_file(built, dataclasses.replace(recipe, number=12), read_data(built))
    assert len(write_count) == 4 and {len(row["neg"]) for row in read_jsonl(path_of(built))} == {12}
    make(built)
    monkeypatch.setattr(rows_module, "data_identity", lambda settings: "other data")
    make(built)
    assert len(write_count) == 6


def test_another_seed_draws_other_negatives(built):
    before = path_of(built).read_bytes()
    make_training_file(dataclasses.replace(built, seed=7), find_recipe(built, "neg10"), read_data(built))
    assert path_of(built).read_bytes() != before


def test_the_instruction_belongs_to_the_model_and_not_to_the_data(built, monkeypatch, write_count):
    """Training files, data and rows stay what they are when QUERY_INSTRUCTION changes."""
    before, identity = rows_identity(read_training_file(path_of(built))), data_identity(built)
    changed = dataclasses.replace(built, query_instruction="look up: ", passage_instruction="text: ")
    for label in ("neg10", "neg50"):
        make(changed, label)
    assert not write_count and data_identity(changed) == identity
    path_of(built).unlink()
    make(changed)
    assert rows_identity(read_training_file(path_of(built))) == before


def test_the_identity_is_that_of_all_that_is_trained_on():
    row = {"query": "a", "pos": ["x"], "neg": ["y", "z"], "pos_scores": [1.0], "neg_scores": [0.5, 0.25], "id": "1"}
    same = [{**row, "id": "2"}, {**row, "prompt": "find: "}]
    other = [{**row, "query": "b"}, {**row, "pos": ["w"]}, {**row, "neg": ["z", "y"]}, {**row, "pos_scores": [2.0]},
             {**row, "neg_scores": [0.5, 0.5]}, {key: row[key] for key in ("query", "pos", "neg")}]
    assert {rows_identity([changed]) for changed in same} == {rows_identity([row])}
    assert len({rows_identity([changed]) for changed in (row, *other)} | {rows_identity([row, row])}) == 8


def test_a_leak_is_noticed_and_no_record_vouches_for_the_file(built, monkeypatch):
    """Negatives from the whole pool, as if the parts had never been kept apart."""
    path_of(built).with_suffix(".made.json").unlink()
    collection = read_data(built)
    monkeypatch.setattr(type(collection), "part", lambda self, name: self if name == "train" else self.of_queries(
        [query for query, part in self.parts.items() if part == name]))
    with pytest.raises(UserError, match="training_neg_10.json is not clean, a count above 0 is a leak"):
        make_training_file(built, find_recipe(built, "neg10"), collection)
    assert read_json(path_of(built).with_suffix(".made.json")) is None


def test_too_few_passages_are_refused(built):
    recipe = dataclasses.replace(find_recipe(built, "neg10"), number=500)
    before = path_of(built).read_bytes()
    with pytest.raises(UserError, match="500 negatives a query were asked for"):
        make_training_file(built, recipe, read_data(built))
    assert path_of(built).read_bytes() == before


@pytest.mark.parametrize("change, message", [
    ({"neg": []}, "row 2: 'neg' must be a list of at least one text"),
    ({"pos": []}, "row 2: 'pos' must be a list of at least one text"),
    ({"pos": "text"}, "row 2: 'pos' must be a list"),
    ({"neg": ["a", None]}, "row 2: 'neg' must be"),
    ({"query": None}, "row 2: 'query' must be a text"),
    ({"neg_scores": [1]}, "row 2: a teacher needs 'neg_scores', one number a text of 'neg'"),
    ({"pos_scores": ["high"]}, "row 2: a teacher needs 'pos_scores'"),
])
def test_a_row_that_cannot_be_trained_on_is_named(tmp_path, change, message):
    row = {"query": "a", "pos": ["x"], "neg": ["y", "z"], "pos_scores": [1], "neg_scores": [0.5, 0]}
    write_jsonl(tmp_path / "training.json", [row, row])
    assert len(read_training_file(tmp_path / "training.json", teacher=True)) == 2
    write_jsonl(tmp_path / "training.json", [row, {**row, **change}])
    with pytest.raises(UserError, match=f"training.json, {message}"):
        read_training_file(tmp_path / "training.json", teacher=True)


def test_scores_are_asked_for_only_where_a_teacher_is(tmp_path):
    path = tmp_path / "training.json"
    path.write_text(json.dumps({"query": "a", "pos": ["x"], "neg": ["y"]}) + "\n")
    assert read_training_file(path)[0]["neg"] == ["y"]
    with pytest.raises(UserError, match="row 1: a teacher needs 'pos_scores'"):
        read_training_file(path, teacher=True)
