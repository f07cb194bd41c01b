"""Rows by id: what is read is what was written, in either format; what is damaged or does not fit is one clear line."""

import json
import pickle

import pyarrow as pa
import pytest
from tiny_training import passages, training_rows
from tiny_training import write_rows as write_json_rows

from embedding_finetune.data import row_store
from embedding_finetune.data.row_store import (
    PASSAGES,
    read_rows,
    rows_identity,
    store_identity,
    text_hash,
    write_for_flagembedding,
    write_passages,
    write_rows,
)
from embedding_finetune.files import UserError, read_jsonl, write_jsonl

TEXTS = ["a heron", "an otter, 水獺", "", "a lynx"]
ROWS = [{"id": "1", "query": "which bird", "pos": [0], "neg": [1, 3], "pos_scores": [3.5], "neg_scores": [0.25, -1.0]},
        {"id": "2", "query": "which cat", "pos": [3, 2], "neg": [0], "pos_scores": [2.0, 1e-6], "neg_scores": [0.1]}]
BY_TEXT = [{"query": "which bird", "pos": ["a heron"], "neg": ["an otter, 水獺", "a lynx"], "id": "1"},
           {"query": "which cat", "pos": ["a lynx", ""], "neg": ["a heron"], "id": "2"}]


@pytest.fixture
def path(tmp_path):
    write_rows(tmp_path / "rows.arrow", ROWS, write_passages(tmp_path / PASSAGES, TEXTS), teacher=True)
    return tmp_path / "rows.arrow"


def test_rows_come_back_with_their_texts(path, monkeypatch):
    rows = read_rows([path])
    assert len(rows) == 2 and list(rows) == BY_TEXT and rows[1] == rows[-1] == BY_TEXT[1]
    assert rows.keys.tolist() == list(map(text_hash, TEXTS))
    scores = [{name: row[name] for name in ("pos_scores", "neg_scores")} for row in ROWS]
    assert list(read_rows([path], teacher=True)) == [row | more for row, more in zip(BY_TEXT, scores)]
    with pytest.raises(IndexError):
        rows[2]


def test_files_of_many_batches_are_those_of_one(path, tmp_path, monkeypatch):
    """And the same rows have the same identity, however the files are cut."""
    texts, found = passages(25), []
    many = [{"id": str(n), "query": f"q{n}", "pos": [n], "neg": [24 - n, n + 1]} for n in range(24)]
    for batch in (1000, 4):
        monkeypatch.setattr(row_store, "BATCH", batch)
        write_rows(path, many, write_passages(tmp_path / PASSAGES, texts))
        found.append(read_rows([path]))
    assert found[0].table["neg"].num_chunks == 1 and found[1].table["neg"].num_chunks == 6
    assert list(found[0]) == list(found[1]) and found[1][23]["neg"] == [texts[1], texts[24]]
    assert rows_identity(found[0]) == rows_identity(found[1])


def test_the_texts_stay_on_disk(tmp_path):
    """20 MB of passages are opened in the memory of their keys; and so they are in the process that unpickles them."""
    texts = (f"{number} " + "word " * 400 for number in range(10_000))
    write_rows(tmp_path / "rows.arrow", ROWS, write_passages(tmp_path / PASSAGES, texts))
    before = pa.total_allocated_bytes()
    rows = read_rows([tmp_path / "rows.arrow"])
    assert rows.passages.nbytes > 20e6 and pa.total_allocated_bytes() - before < 1e5
    pickled = pickle.dumps(rows)
    assert len(pickled) < 1000 and list(pickle.loads(pickled)) == list(rows)


def test_flagembeddings_format_there_and_back(path, tmp_path):
    rows, export = read_rows([path], teacher=True), tmp_path / "export.json"
    write_for_flagembedding(export, rows, "find: ")
    assert export.read_text().splitlines()[0] == (
        '{"query": "which bird", "pos": ["a heron"], "neg": ["an otter, 水獺", "a lynx"], "id": "1", '
        '"prompt": "find: ", "pos_scores": [3.5], "neg_scores": [0.25, -1.0]}')
    back = read_rows([export], teacher=True)
    assert list(back) == list(rows) and len(back.passages) == 4  # each text once
    assert rows_identity(back) == rows_identity(rows) != rows_identity(read_rows([export]))


def test_several_files_follow_each_other_each_with_its_own_passages(path, tmp_path):
    other = tmp_path / "other.json"
    write_jsonl(other, [{"query": "which fish", "pos": ["a pike"], "neg": ["a heron", "a lynx"]}])
    rows = read_rows([other, path, other])
    fish = {"query": "which fish", "pos": ["a pike"], "neg": ["a heron", "a lynx"], "id": None}
    assert list(rows) == [fish, *BY_TEXT, fish]
    assert rows_identity(rows) != rows_identity(read_rows([path, other, other]))


def test_the_identity_is_that_of_all_that_is_trained_on(tmp_path):
    row = {"query": "a", "pos": ["x"], "neg": ["y", "z"], "pos_scores": [1.0], "neg_scores": [0.5, 0.25], "id": "1"}
    same = [{**row, "id": "2"}, {**row, "prompt": "find: "}]
    other = [{**row, "query": "b"}, {**row, "pos": ["w"]}, {**row, "neg": ["z", "y"]}, {**row, "pos_scores": [2.0]},
             {**row, "neg_scores": [0.5, 0.5]}, {**row, "pos": ["x", "y"], "neg": ["z"], "pos_scores": [1.0, 0.5],
                                                 "neg_scores": [0.25]}]

    def identity(*rows, teacher=True):
        return rows_identity(read_rows([write_json_rows(tmp_path / "rows.json", rows)], teacher))

    assert {identity(changed) for changed in same} == {identity(row)}
    others = {identity(changed) for changed in (row, *other)}
    assert len(others | {identity(row, row), identity(row, teacher=False)}) == 9


@pytest.mark.parametrize("change, message", [
    ({"neg": []}, "row 2: 'neg' must be a list of at least one text"),
    ({"pos": []}, "row 2: 'pos' must be a list of at least one text"),
    ({"pos": "text"}, "row 2: 'pos' must be a list"),
    ({"neg": ["a", None]}, "row 2: 'neg' must be"),
    ({"query": None}, "row 2: 'query' must be a text"),
    ({"neg_scores": [1]}, "row 2: a teacher needs 'neg_scores', one number per text of 'neg'"),
    ({"pos_scores": ["high"]}, "row 2: a teacher needs 'pos_scores'"),
    ({"query": "\ud800"}, "a text has an unpaired surrogate"),
    ({"neg": ["\udc00", "z"]}, "a text has an unpaired surrogate"),
])
def test_a_row_that_cannot_be_trained_on_is_named(tmp_path, change, message):
    row = {"query": "a", "pos": ["x"], "neg": ["y", "z"], "pos_scores": [1], "neg_scores": [0.5, 0]}
    path = write_json_rows(tmp_path / "training.json", [row, row])
    assert len(read_rows([path], teacher=True)) == 2
    write_json_rows(tmp_path / "training.json", [row, {**row, **change}])
    with pytest.raises(UserError, match=f"training.json.* {message}"):
        read_rows([path], teacher=True)


def test_scores_are_asked_for_only_where_a_teacher_is(path, tmp_path):
    json_rows = write_json_rows(tmp_path / "training.json", [{"query": "a", "pos": ["x"], "neg": ["y"]}])
    assert read_rows([json_rows])[0]["neg"] == ["y"]
    with pytest.raises(UserError, match="row 1: a teacher needs 'pos_scores'"):
        read_rows([json_rows], teacher=True)
    write_rows(path, ROWS, store_identity(read_rows([path]).keys))
    with pytest.raises(UserError, match="rows.arrow has no teacher scores: it is made by build_train"):
        read_rows([path], teacher=True)


def cut(share):
    return lambda content: content[:round(share * len(content))]


@pytest.mark.parametrize("name", ["rows.arrow", PASSAGES])
@pytest.mark.parametrize("damage", [cut(0), cut(0.5), cut(0.99), lambda content: b"?" * len(content),
                                    lambda content: json.dumps(BY_TEXT).encode()])
def test_a_damaged_file_is_one_line(path, name, damage):
    file = path.with_name(name)
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(UserError, match=f"{name} is damaged .*: run build_train_dataset.ipynb or "
                                        "finetune_hard.sh again") as error:
        read_rows([path])
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["rows.arrow", PASSAGES])
def test_whatever_byte_is_damaged_nothing_breaks_off(path, name):
    """A text may be another one, which only the hash in the record of the file tells; else it is one line."""
    file = path.with_name(name)
    content = file.read_bytes()
    for place in range(len(content)):
        file.write_bytes(content[:place] + bytes([content[place] ^ 0xFF]) + content[place + 1:])
        try:
            assert len(list(read_rows([path], teacher=True))) <= 2
        except UserError as error:
            assert "\n" not in str(error)


def test_a_file_that_is_missing_names_what_makes_it(path):
    path.with_name(PASSAGES).unlink()
    with pytest.raises(UserError, match="passages.arrow does not exist: it is made by build_train_dataset.ipynb"):
        read_rows([path])
    path.unlink()
    with pytest.raises(UserError, match="rows.arrow does not exist"):
        read_rows([path])


def test_rows_of_other_passages_are_refused(path):
    """The same texts in another order would train on wrong ones without a word."""
    write_passages(path.with_name(PASSAGES), TEXTS[::-1])
    with pytest.raises(UserError, match="rows.arrow does not belong to the passages of .*passages.arrow"):
        read_rows([path])


@pytest.mark.parametrize("change", [{"neg": [4]}, {"pos": [-1]}])
def test_positions_beyond_the_store_are_refused(path, change):
    write_rows(path, [{**ROWS[0], **change}], store_identity(read_rows([path]).keys))
    with pytest.raises(UserError, match=f"rows.arrow is damaged .'{next(iter(change))}' refers to passages that do"):
        read_rows([path])


def test_the_rows_of_a_training_file_are_those_that_were_read_before(tmp_path):
    """Against JSON lines read into dicts."""
    path = write_json_rows(tmp_path / "rows.json", training_rows(scores=True))
    before = [{name: value for name, value in row.items() if name != "prompt"} for row in read_jsonl(path)]
    assert list(read_rows([path], teacher=True)) == before
