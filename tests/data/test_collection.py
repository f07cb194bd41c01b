import dataclasses
import json
import shutil

import pytest
import pytrec_eval
from tiny import build

from embedding_finetune.artifacts.manifest import read_checksummed, write_checksummed
from embedding_finetune.data.cleaning import source_of
from embedding_finetune.data.collection import (
    Collection,
    data_identity,
    read_collection,
    read_data,
    write_collection,
    write_data,
    write_test_files,
)
from embedding_finetune.data.normalize import PSEUDO_QUERY_PREFIX, passage_id
from embedding_finetune.files import UserError, read_jsonl, write_jsonl
from embedding_finetune.settings import DATA, Settings

SMALL = Collection(queries={"q1": "one", "q2": "two", "q3": "three"},
                   corpus={"a": "A", "b": "B", "c": "C", "d": "D"},
                   qrels={"q1": {"b": 2, "a": 1, "d": 0}, "q2": {"a": 1}, "q3": {"c": 0}},
                   splits={"q1": "train", "q2": "dev", "q3": "train"})


def test_a_part_has_its_own_queries_and_the_whole_corpus():
    train = SMALL.split("train")
    assert list(train.queries) == list(train.qrels) == list(train.splits) == ["q1", "q3"]
    assert train.corpus == SMALL.corpus
    assert SMALL.split("test").queries == {}


def test_positives_are_the_passages_judged_above_0():
    assert [SMALL.positives(query) for query in SMALL.queries] == [["b", "a"], ["a"], []]
    assert SMALL.positive_pool() == (["b", "a"], [[0, 1], [1], []])
    assert SMALL.judged_passages() == {"a", "b", "c", "d"}


def test_a_query_without_judgements_has_no_positives():
    more = dataclasses.replace(SMALL, queries={"q0": "zero", **SMALL.queries})
    assert more.positives("q0") == [] and more.positive_pool()[1] == [[], [0, 1], [1], []]
    assert "q0" not in more.select_queries(["q0", "q2"]).qrels


def test_a_sample_keeps_the_order_and_the_judged_passages():
    queries = {f"q{number}": f"query {number}" for number in range(50)}
    whole = Collection(queries, {f"p{number}": "text" for number in range(60)},
                       {f"q{number}": {f"p{number}": 1} for number in range(50)})
    sample = whole.sample(10, seed=1)
    assert sample == whole.sample(10, seed=1) != whole.sample(10, seed=2)
    assert list(sample.queries) == [query for query in queries if query in sample.queries] and len(sample.queries) == 10
    assert {query.replace("q", "p") for query in sample.queries} == sample.judged_passages()
    not_judged = {f"p{number}" for number in range(50, 60)}
    assert set(sample.corpus) == sample.judged_passages() | not_judged
    assert whole.sample(0, seed=1) is whole.sample(50, seed=1) is whole


def test_the_corpus_grows_from_the_judged_passages_to_everything():
    """In the order of the texts' hashes: a user's ids may say what the passages are about."""
    whole = Collection({"q": "query"}, {f"p{number}": f"passage {number}" for number in range(9)}, {"q": {"p8": 1}})
    subsets = list(whole.growing_corpora(steps=3))
    half = sorted(range(8), key=lambda number: passage_id(f"passage {number}"))[:4]
    assert half != [0, 1, 2, 3]
    assert [list(subset.corpus) for subset in subsets] == [
        ["p8"], [*(f"p{number}" for number in sorted(half)), "p8"], list(whole.corpus)]
    assert all(subset.qrels == whole.qrels and subset.queries == whole.queries for subset in subsets)


def test_a_collection_comes_back_as_written(tmp_path):
    odd = dataclasses.replace(SMALL, copies={"q3": ["a", "b"]}, source={"c": "page 3"})
    odd = dataclasses.replace(odd, corpus=SMALL.corpus | {"d": "line one\nline two\t\u2028 größer 獭 \"quoted\""})
    write_collection(tmp_path, odd)
    again = read_collection(tmp_path)
    assert again == odd and list(again.corpus) == list(odd.corpus)
    assert (tmp_path / "qrels" / "dev.tsv").read_text() == "query-id\tcorpus-id\tscore\nq2\ta\t1\n"
    assert read_jsonl(tmp_path / "corpus.jsonl")[0] == {"_id": "a", "id": "a", "title": "", "text": "A"}


@pytest.mark.parametrize("line", ["q2\ta", "q2\tnot there\t1", "not there\ta\t1", "q2\ta\tb"])
def test_a_damaged_judgement_is_named(tmp_path, line):
    write_collection(tmp_path, SMALL)
    (tmp_path / "qrels" / "dev.tsv").write_text(f"query-id\tcorpus-id\tscore\n{line}\n")
    with pytest.raises(UserError, match="dev.tsv, line 2 is damaged: run build_train_dataset.ipynb again"):
        read_collection(tmp_path)


def test_the_parts_on_disk_are_those_that_were_made(settings):
    collection = build(settings, labels=())
    assert read_data(settings) == collection
    test = collection.split("test")
    rows = read_jsonl(settings.data_dir / "eval_dataset.json")
    assert rows == [{"query": text, "pos": [test.corpus[passage] for passage in test.positives(query)], "id": query,
                     "prompt": settings.query_prompt} for query, text in test.queries.items()]
    assert pytrec_eval.parse_qrel((settings.data_dir / "qrels.trec").open()) == test.qrels
    assert any(len(judged) > 1 for judged in test.qrels.values()), "a query with two positives must be in the test part"
    assert list(collection.corpus) == sorted(collection.corpus)
    assert all(passage_id(text) == passage for passage, text in collection.corpus.items())


def test_grade_0_is_no_positive_of_the_test_files(settings):
    write_test_files(settings, dataclasses.replace(SMALL, splits={"q1": "test"}), "find: ")
    assert read_jsonl(settings.data_dir / "eval_dataset.json")[0]["pos"] == ["B", "A"]
    assert (settings.data_dir / "qrels.trec").read_text() == "q1 0 b 2\nq1 0 a 1\nq1 0 d 0\n"


def test_the_same_settings_give_the_same_bytes(built):
    def contents():
        return {path: path.read_bytes() for path in built.data_dir.rglob("*") if path.is_file()}

    before, identity = contents(), data_identity(built)
    build(built)
    assert contents() == before and len(before) == 15 and data_identity(built) == identity


def recorded(settings):
    return json.loads((settings.data_dir / "dataset.json").read_text())["inputs"]


def test_the_record_names_the_settings_of_the_data_and_the_files_hash(built):
    inputs = recorded(built)
    assert inputs == {"settings": built.as_dict(DATA), "source": {"sha256": source_of(built)["sha256"]}}
    assert "SEED" in inputs["settings"] and "QUERY_PROMPT" not in inputs["settings"]


def test_data_of_other_settings_is_neither_overwritten_nor_read(built, monkeypatch):
    other, collection = dataclasses.replace(built, seed=7), read_data(built)
    with pytest.raises(UserError, match=r"holds the data of other settings \(SEED: 42, now 7\)"):
        write_data(other, collection, source_of(other))
    with pytest.raises(UserError, match=r"was made with other settings \(SEED: 42, now 7\): run build_train"):
        read_data(other)
    monkeypatch.setenv("OVERWRITE", "1")
    write_data(other, collection, source_of(other))
    assert recorded(built)["settings"]["SEED"] == 7 and read_data(other) == collection


def test_settings_that_change_nothing_are_no_other_settings(built, tmp_path):
    """All 110 or so queries are read; without documents there is nothing to chunk."""
    collection = read_data(built)
    assert len(collection.queries) == collection.available < 120
    unused = {"chunk_tokens": 40, "chunk_overlap": 8}
    for change in ({"max_queries": 120}, {"max_queries": collection.available, **unused}, {"max_queries": 0}):
        settings = dataclasses.replace(built, **change)
        assert read_data(settings) == collection
        write_data(settings, collection, source_of(settings))
        assert recorded(built)["settings"]["MAX_QUERIES"] == change["max_queries"]
    with pytest.raises(UserError, match="MAX_QUERIES"):
        read_data(dataclasses.replace(built, max_queries=collection.available - 1))
    small = dataclasses.replace(built, max_queries=60, data_dir=tmp_path / "small")
    sample = build(small, labels=())
    assert (len(sample.queries), sample.available) == (60, collection.available)
    with pytest.raises(UserError, match="MAX_QUERIES: 60, now 61"):
        read_data(dataclasses.replace(small, max_queries=61))


def test_fractions_of_splits_that_came_with_the_data_are_no_settings_of_the_data(built):
    write_data(built, dataclasses.replace(read_data(built), predefined=("train", "test")), source_of(built))
    assert read_data(dataclasses.replace(built, test_fraction=0.5)).predefined == ("train", "test")
    with pytest.raises(UserError, match="DEV_FRACTION"):
        read_data(dataclasses.replace(built, dev_fraction=0.5))


def test_data_of_another_source_is_not_overwritten(built, tmp_path, monkeypatch):
    """The file has changed, under its name: models trained on the old pairs could not be evaluated any more."""
    path = tmp_path / "pairs.jsonl"
    rows = read_jsonl(built.dataset)
    write_jsonl(path, rows)
    settings = dataclasses.replace(built, dataset=str(path), data_dir=tmp_path / "other")
    build(settings, labels=())
    before = recorded(settings)["source"]["sha256"]
    write_jsonl(path, rows[:-1])
    with pytest.raises(UserError, match=r"holds the data of other settings \(sha256\)"):
        build(settings, labels=())
    monkeypatch.setenv("OVERWRITE", "1")
    build(settings, labels=())
    assert recorded(settings)["source"]["sha256"] != before


def test_a_changed_corpus_is_another_source(built, tmp_path):
    path = tmp_path / "more.jsonl"
    write_jsonl(path, [{"text": "a passage that answers nothing"}])
    settings = dataclasses.replace(built, corpus=str(path), data_dir=tmp_path / "other")
    build(settings, labels=())
    write_jsonl(path, [{"text": "another passage that answers nothing"}])
    with pytest.raises(UserError, match=r"holds the data of other settings \(corpus_sha256\)"):
        build(settings, labels=())


def test_how_a_model_is_asked_is_no_part_of_the_data(built, monkeypatch):
    for name, value in {"QUERY_PROMPT": "Say: ", "QUERY_MAX_LEN": "20", "EPOCHS": "3"}.items():
        monkeypatch.setenv(name, value)
    other = Settings.load()
    assert other.query_prompt == "Say: " and read_data(other) == read_data(built)
    write_data(other, read_data(built), source_of(other))
    assert data_identity(other) == data_identity(built)


@pytest.mark.parametrize("name", ["corpus.jsonl", "queries.jsonl", "qrels/dev.tsv"])
def test_a_changed_file_is_noticed(built, name):
    path = built.data_dir / name
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]))
    with pytest.raises(UserError, match="the files in .* are not those that build_train_dataset.ipynb wrote"):
        read_data(built)
    path.unlink()
    with pytest.raises(UserError, match="the files in .* are not those"):
        read_data(built)


def test_missing_data_say_who_makes_them(settings):
    with pytest.raises(UserError, match="dataset.json does not exist: it is made by build_train_dataset.ipynb"):
        read_data(settings)


def test_the_corpus_setting_adds_passages_and_nothing_else(built, tmp_path):
    """Passages that the pairs have, too, are there once."""
    known = read_data(built)
    texts = [text.upper() for text in known.corpus.values()] + [f"another {number}" for number in range(50)]
    write_jsonl(tmp_path / "more.jsonl", [{"text": text} for text in texts])
    settings = dataclasses.replace(built, corpus=str(tmp_path / "more.jsonl"), data_dir=tmp_path / "other")
    harder = build(settings, labels=())
    added = {passage: text for passage, text in harder.corpus.items() if passage not in known.corpus}
    assert sorted(added.values()) == sorted(texts[-50:])
    assert all(passage_id(text) == passage for passage, text in added.items())
    assert (harder.qrels, harder.splits, harder.queries) == (known.qrels, known.splits, known.queries)
    assert known.corpus.keys() <= harder.corpus.keys() and read_data(settings) == harder


def test_sources_and_given_parts_come_back(settings):
    collection = dataclasses.replace(SMALL, source={"b": "guide.md, lines 10-42"}, predefined=("test", "train"))
    write_data(settings, collection, {})
    assert read_data(settings) == collection
    assert read_jsonl(settings.data_dir / "corpus.jsonl")[1]["source"] == "guide.md, lines 10-42"


def test_data_older_than_a_setting_are_those_of_its_default(built):
    path = built.data_dir / "dataset.json"
    record = read_checksummed(path)
    del record["inputs"]["settings"]["CORPUS"]
    write_checksummed(path, record)
    assert read_data(built).queries
    with pytest.raises(UserError, match="CORPUS: , now more.jsonl"):
        read_data(dataclasses.replace(built, corpus="more.jsonl"))


def test_the_record_of_something_else_is_no_record_of_the_data(built):
    record = built.data_dir / "dataset.json"
    shutil.copy(built.data_dir / "training_neg_10.made.json", record)
    with pytest.raises(UserError, match="dataset.json is damaged or of an earlier version: it is made by"):
        read_data(built)


def test_evaluation_does_not_see_the_words_of_a_pseudo_query_in_its_passages():
    """And of no other: training and search see the passages as they are."""
    corpus = {"p1": "moon cools river falcon marble", "p2": "moon cools river engine", "p3": "a falcon"}
    queries = {f"{PSEUDO_QUERY_PREFIX}span-1": "cools river", f"{PSEUDO_QUERY_PREFIX}span-2": "engine", "q3": "a falcon"}
    collection = Collection(queries, corpus, dict(zip(queries, ({"p1": 1}, {"p2": 1}, {"p3": 1}))),
                            dict(zip(queries, ("dev", "train", "test"))))
    hidden = corpus | {"p1": "moon falcon marble"}
    assert [collection.split(part).corpus for part in ("train", "dev", "test")] == [corpus, hidden, hidden]
    assert collection.corpus == corpus
