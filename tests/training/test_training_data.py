"""Training files: what their rows hold, and that they are made anew when what they are made of has changed."""

import dataclasses
import json

import pytest

from embedding_finetune.data.collection import data_identity, read_data
from embedding_finetune.data.row_store import PASSAGES, read_rows, rows_identity, write_for_flagembedding, write_rows
from embedding_finetune.files import UserError, read_json, read_jsonl, sha256
from embedding_finetune.recipes import find_recipe
from embedding_finetune.training import training_data as rows_module
from embedding_finetune.training.training_data import export_path, make_training_file, sample_fraction, training_path


def make(settings, label="neg10"):
    return make_training_file(settings, find_recipe(settings, label), read_data(settings))


def path_of(settings, label="neg10"):
    return training_path(settings, find_recipe(settings, label))


def export_of(settings, label="neg10"):
    return export_path(settings, find_recipe(settings, label))


@pytest.mark.parametrize("label, number", [("neg10", 10), ("neg50", 50)])
def test_rows_have_what_flagembedding_reads(built, label, number):
    train = read_data(built).split("train")
    pool = {train.corpus[passage] for passage in train.positive_pool()[0]}
    rows = read_jsonl(export_of(built, label))
    assert [row["id"] for row in rows] == list(train.queries)
    for row in rows:
        assert row["query"] == train.queries[row["id"]]
        assert row["pos"] == [train.corpus[passage] for passage in train.positives(row["id"])]
        assert len(set(row["neg"])) == number and set(row["neg"]) <= pool - set(row["pos"])
        assert row.keys() == {"query", "pos", "neg", "id", "prompt"} and row["prompt"] == built.query_prompt
    assert [row | {"prompt": built.query_prompt} for row in read_rows(path_of(built, label))] == rows


def test_recipes_share_one_store_that_has_each_passage_once_and_draw_different_negatives(built):
    few, many = (read_rows(path_of(built, label)) for label in ("neg10", "neg50"))
    train = read_data(built).split("train")
    assert few.passages.equals(many.passages)
    assert few.passages["text"].to_pylist() == [train.corpus[passage] for passage in train.positive_pool()[0]]
    assert few.table.nbytes + 40 * 4 * len(few) == many.table.nbytes  # 40 positions of four bytes a row
    assert [row["neg"] for row in few] != [row["neg"][:10] for row in many]


def test_a_share_keeps_rows_as_they_are_and_a_larger_one_has_all_of_a_smaller_one(built):
    kept = {}
    for label in ("neg10", "neg10_half", "neg10_quarter", "neg10_eighth", "neg10_half_long"):
        make(built, label)
        kept[label] = [json.dumps(row) for row in read_rows(path_of(built, label))]
    sizes = [len(kept[label]) for label in ("neg10", "neg10_half", "neg10_quarter", "neg10_eighth")]
    assert sizes == [sizes[0], *(round(share * sizes[0]) for share in (0.5, 0.25, 0.125))] and sizes[3] > 5
    assert set(kept["neg10_eighth"]) < set(kept["neg10_quarter"]) < set(kept["neg10_half"]) < set(kept["neg10"])
    assert kept["neg10_half_long"] == kept["neg10_half"] == [row for row in kept["neg10"] if row in kept["neg10_half"]]
    own = {text for row in map(json.loads, kept["neg10_eighth"]) for text in row["pos"]}
    assert not {text for row in map(json.loads, kept["neg10_eighth"]) for text in row["neg"]} <= own


def test_a_share_is_a_sample_of_the_seed_and_never_empty():
    queries = dict.fromkeys("abcdefgh")
    first, other = sample_fraction(queries, 0.5, seed=1), sample_fraction(queries, 0.5, seed=2)
    assert len(first) == 4 and first == sample_fraction(queries, 0.5, seed=1) and first != other
    assert first != set("abcd") and sample_fraction(queries, 1.0, seed=1) == set(queries)
    assert [len(sample_fraction(queries, fraction, seed=1)) for fraction in (0.01, 0.45)] == [1, 4]  # rounded


@pytest.fixture
def written(monkeypatch):
    """The names of the training files that were written, in their order."""
    names = []
    for write in (write_rows, write_for_flagembedding):
        monkeypatch.setattr(rows_module, write.__name__,
                            lambda path, *args, write=write: names.append(path.suffix) or write(path, *args))
    return names


def test_a_file_is_taken_as_it_is_until_something_has_changed(built, monkeypatch, written):
    files = path_of(built), built.data_dir / PASSAGES, export_of(built)
    contents = [file.read_bytes() for file in files]
    assert make(built) == {"random": 1.0} and not written

    def made_again(*suffixes):
        make(built)
        assert written == list(suffixes) and [file.read_bytes() for file in files] == contents
        written.clear()

    for file, content in zip(files[:2], contents):
        file.write_bytes(content[:-1])  # cut short: not the file that was made
        made_again(".arrow", ".json")
        file.write_bytes(content[:500] + b"?" + content[501:])
        made_again(".arrow", ".json")
        file.unlink()
        made_again(".arrow", ".json")
    export_of(built).write_bytes(contents[2][:-1])
    made_again(".json")
    export_of(built).unlink()
    made_again(".json")
    path_of(built).with_suffix(".made.json").unlink()
    made_again(".arrow", ".json")

    recipe = find_recipe(built, "neg10")
    make_training_file(built, dataclasses.replace(recipe, num_negatives=12), read_data(built))
    assert {len(row["neg"]) for row in read_rows(path_of(built))} == {12}
    assert {len(row["neg"]) for row in read_jsonl(export_of(built))} == {12}
    make(built)
    monkeypatch.setattr(rows_module, "data_identity", lambda settings: "other data")
    make(built)
    assert written == [".arrow", ".json"] * 3


def test_other_passages_are_a_reason_to_make_all_files_anew(built, written):
    """Those of one recipe replace the store of all."""
    collection = read_data(built)
    left_out = list(collection.split("train").queries)[:9]
    parts = {query: part for query, part in collection.splits.items() if query not in left_out}
    fewer = dataclasses.replace(collection, splits=parts)
    path_of(built).unlink()
    make_training_file(built, find_recipe(built, "neg10"), fewer)
    with pytest.raises(UserError, match="training_neg_50.arrow does not belong to the passages of "):
        read_rows(path_of(built, "neg50"))
    make(built, "neg50")
    assert len(read_rows(path_of(built, "neg50"))) > 50 and len(written) == 4


def test_without_an_export_only_the_rows_are_written(built, written):
    small = dataclasses.replace(built, training_export=False)
    make(small)
    assert not written and export_of(built).exists()  # it is of these rows
    path_of(built).unlink()
    make(small)
    assert written == [".arrow"] and not export_of(built).exists()
    make(small)
    make(built)
    assert written == [".arrow", ".json"]
    assert read_json(path_of(built).with_suffix(".made.json"))["export"] == sha256(export_of(built))


def test_another_seed_draws_other_negatives(built):
    before = path_of(built).read_bytes()
    make_training_file(dataclasses.replace(built, seed=7), find_recipe(built, "neg10"), read_data(built))
    assert path_of(built).read_bytes() != before


def test_the_instruction_belongs_to_the_model_and_not_to_the_data(built, written):
    """Training files, data and rows stay what they are when QUERY_PROMPT changes."""
    before, identity = rows_identity(read_rows(path_of(built))), data_identity(built)
    changed = dataclasses.replace(built, query_prompt="look up: ", passage_prompt="text: ")
    for label in ("neg10", "neg50"):
        make(changed, label)
    assert not written and data_identity(changed) == identity
    path_of(built).unlink()
    make(changed)
    assert rows_identity(read_rows(path_of(built))) == before


def test_a_leak_is_noticed_and_no_record_vouches_for_the_file(built, monkeypatch):
    """Negatives from the whole pool, as if the parts had never been kept apart."""
    path_of(built).with_suffix(".made.json").unlink()
    collection = read_data(built)
    monkeypatch.setattr(type(collection), "split", lambda self, name: self if name == "train" else self.select_queries(
        [query for query, part in self.splits.items() if part == name]))
    with pytest.raises(UserError, match="training_neg_10.arrow is not clean, a count above 0 is a leak"):
        make_training_file(built, find_recipe(built, "neg10"), collection)
    assert read_json(path_of(built).with_suffix(".made.json")) is None


def test_where_there_are_too_few_passages_all_of_them_are_negatives(built, capsys):
    recipe, collection = dataclasses.replace(find_recipe(built, "neg10"), num_negatives=500), read_data(built)
    make_training_file(built, recipe, collection)
    train = collection.split("train")
    available = len(train.judged_passages()) - max(len(train.positives(query)) for query in train.queries)
    assert f"{available} negatives per query, not 500" in capsys.readouterr().out
    rows = read_rows(path_of(built))
    assert {len(row["neg"]) for row in rows} == {len(set(row["neg"])) for row in rows} == {available}


@pytest.mark.parametrize("available, earlier", [(7, "neg10"), (10, "neg10"), (11, None)])
def test_a_recipe_whose_file_has_no_more_negatives_than_an_earlier_one_is_known(built, monkeypatch, available, earlier):
    monkeypatch.setattr(rows_module, "most_negatives", lambda *_: available)
    for label in ("neg10", "neg50"):
        path_of(built, label).with_suffix(".made.json").unlink()
        make(built, label)
    assert (rows_module.same_as_earlier(built, "neg10"), rows_module.same_as_earlier(built, "neg50")) == (None, earlier)
    own = built.data_dir / "own.toml"
    number = "num_negatives = 50\n"
    own.write_text(built.recipe_file.read_text().replace(number, f"{number}settings = {{ SEED = 3 }}\n"))
    assert rows_module.same_as_earlier(dataclasses.replace(built, recipe_file=own), "neg50") is None


def test_without_a_passage_to_draw_the_file_is_not_written(built, monkeypatch):
    before = path_of(built).read_bytes()
    monkeypatch.setattr("embedding_finetune.training.training_data.most_negatives", lambda *_: 0)
    monkeypatch.setattr("embedding_finetune.data.negatives.NegativeCandidates.excluded",
                        lambda self: [range(self.num_eligible) for _ in self.positives])
    recipe = dataclasses.replace(find_recipe(built, "neg10"), num_negatives=500)
    with pytest.raises(UserError, match="but a query has only 0 other passages in the training split"):
        make_training_file(built, recipe, read_data(built))
    assert path_of(built).read_bytes() == before
