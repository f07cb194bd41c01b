"""Rows by id: what is read is what was written; what is damaged or does not fit is one clear line."""

import json
import pickle

import pyarrow as pa
import pytest
from tiny_training import passages, training_rows
from tiny_training import write_rows as write_texts

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
from embedding_finetune.files import UserError, read_jsonl

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
    rows = read_rows(path)
    assert len(rows) == 2 and list(rows) == BY_TEXT and rows[1] == rows[-1] == BY_TEXT[1]
    assert rows.keys.tolist() == list(map(text_hash, TEXTS))
    scores = [{name: row[name] for name in ("pos_scores", "neg_scores")} for row in ROWS]
    assert list(read_rows(path, teacher=True)) == [row | more for row, more in zip(BY_TEXT, scores)]
    with pytest.raises(IndexError):
        rows[2]


def test_files_of_many_batches_are_those_of_one(path, tmp_path, monkeypatch):
    """And the same rows have the same identity, however the files are cut."""
    texts, found = passages(25), []
    many = [{"id": str(n), "query": f"q{n}", "pos": [n], "neg": [24 - n, n + 1]} for n in range(24)]
    for batch in (1000, 4):
        monkeypatch.setattr(row_store, "BATCH", batch)
        write_rows(path, many, write_passages(tmp_path / PASSAGES, texts))
        found.append(read_rows(path))
    assert found[0].table["neg"].num_chunks == 1 and found[1].table["neg"].num_chunks == 6
    assert list(found[0]) == list(found[1]) and found[1][23]["neg"] == [texts[1], texts[24]]
    assert rows_identity(found[0]) == rows_identity(found[1])


def test_the_texts_stay_on_disk(tmp_path):
    """20 MB of passages are opened in the memory of their keys; and so they are in the process that unpickles them."""
    texts = (f"{number} " + "word " * 400 for number in range(10_000))
    write_rows(tmp_path / "rows.arrow", ROWS, write_passages(tmp_path / PASSAGES, texts))
    before = pa.total_allocated_bytes()
    rows = read_rows(tmp_path / "rows.arrow")
    assert rows.passages.nbytes > 20e6 and pa.total_allocated_bytes() - before < 1e5
    pickled = pickle.dumps(rows)
    assert len(pickled) < 1000 and list(pickle.loads(pickled)) == list(rows)


def test_flagembeddings_format_has_the_texts_and_the_prompt(path, tmp_path):
    export = tmp_path / "export.json"
    write_for_flagembedding(export, read_rows(path, teacher=True), "find: ")
    assert export.read_text().splitlines()[0] == (
        '{"query": "which bird", "pos": ["a heron"], "neg": ["an otter, 水獺", "a lynx"], "id": "1", '
        '"prompt": "find: ", "pos_scores": [3.5], "neg_scores": [0.25, -1.0]}')
    rows = training_rows(scores=True)
    write_for_flagembedding(export, read_rows(write_texts(tmp_path / "rows.arrow", rows), teacher=True), "find: ")
    assert read_jsonl(export) == rows


def test_the_identity_is_that_of_all_that_is_trained_on(tmp_path):
    row = {"query": "a", "pos": ["x"], "neg": ["y", "z"], "pos_scores": [1.0], "neg_scores": [0.5, 0.25], "id": "1"}
    other = [{**row, "query": "b"}, {**row, "pos": ["w"]}, {**row, "neg": ["z", "y"]}, {**row, "pos_scores": [2.0]},
             {**row, "neg_scores": [0.5, 0.5]}, {**row, "pos": ["x", "y"], "neg": ["z"], "pos_scores": [1.0, 0.5],
                                                 "neg_scores": [0.25]}]

    def identity(*rows, teacher=True, store=()):
        return rows_identity(read_rows(write_texts(tmp_path / "rows.arrow", rows, store), teacher))

    assert identity(row) == identity({**row, "id": "2"}) == identity(row, store=["z", "w", "y", "x"])
    few, many = {**row, "neg": ["y"], "neg_scores": [0.5]}, {**row, "neg": ["z", "w"], "neg_scores": [0.25, 0.1]}
    longer, shorter = {**few, "neg": ["y", "z"], "neg_scores": [0.5, 0.25]}, {**few, "neg": ["w"], "neg_scores": [0.1]}
    assert identity(few, many) != identity(longer, shorter)  # the same texts in the same order, in other rows
    others = {identity(changed) for changed in (row, *other)}
    assert len(others | {identity(row, row), identity(row, teacher=False)}) == 9


def test_scores_are_asked_for_only_where_a_teacher_is(path):
    write_rows(path, ROWS, store_identity(read_rows(path).keys))
    assert list(read_rows(path)) == BY_TEXT
    with pytest.raises(UserError, match="rows.arrow has no teacher scores: it is made by build_train"):
        read_rows(path, teacher=True)


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
        read_rows(path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["rows.arrow", PASSAGES])
def test_whatever_byte_is_damaged_nothing_breaks_off(path, name):
    """A text may be another one, which only the hash in the record of the file tells; else it is one line. Every third
    byte: all of them take three times as long."""
    file = path.with_name(name)
    content = file.read_bytes()
    for place in range(0, len(content), 3):
        file.write_bytes(content[:place] + bytes([content[place] ^ 0xFF]) + content[place + 1:])
        try:
            assert len(list(read_rows(path, teacher=True))) <= 2
        except UserError as error:
            assert "\n" not in str(error)


def test_a_file_that_is_missing_names_what_makes_it(path):
    path.with_name(PASSAGES).unlink()
    with pytest.raises(UserError, match="passages.arrow does not exist: it is made by build_train_dataset.ipynb"):
        read_rows(path)
    path.unlink()
    with pytest.raises(UserError, match="rows.arrow does not exist"):
        read_rows(path)


def test_rows_of_other_passages_are_refused(path):
    """The same texts in another order would train on wrong ones without a word."""
    write_passages(path.with_name(PASSAGES), TEXTS[::-1])
    with pytest.raises(UserError, match="rows.arrow does not belong to the passages of .*passages.arrow"):
        read_rows(path)


@pytest.mark.parametrize("change", [{"neg": [4]}, {"pos": [-1]}])
def test_positions_beyond_the_store_are_refused(path, change):
    write_rows(path, [{**ROWS[0], **change}], store_identity(read_rows(path).keys))
    with pytest.raises(UserError, match=f"rows.arrow is damaged .'{next(iter(change))}' refers to passages that do"):
        read_rows(path)
