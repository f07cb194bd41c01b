import ast
import dataclasses
import importlib.metadata
import json
from pathlib import Path

import pytest
from tiny import build

from embedding_finetune.data import sources as module
from embedding_finetune.data.collection import read_data
from embedding_finetune.data.sources import Row, clean, read_distractors, read_pairs, reader, source_of
from embedding_finetune.data.texts import passage_id, query_id
from embedding_finetune.files import UserError, sha256
from embedding_finetune.settings import Settings


def test_cleaning_merges_queries_and_passages_and_keeps_all_positives():
    collection, counts = clean([
        Row("What is X?", ["X is a letter. "], "7"),
        Row("what  is x?", ["x IS a letter.", "X comes before Y."], "8"),
        Row("what is y?", ["X comes before y."]),
        Row("  ", ["nothing"], "9"),
        Row("what is z?", ["", "What is Z?"], "10")])
    letter, before, y = passage_id("x is a letter."), passage_id("x comes before y."), query_id("what is y?")
    assert collection.queries == {"7": "What is X?", y: "what is y?"}
    assert collection.corpus == {letter: "X is a letter.", before: "X comes before Y."}
    assert collection.qrels == {"7": {letter: 1, before: 1}, y: {before: 1}} and collection.parts == {}
    assert counts == {
        "rows read": 5, "rows merged with an earlier row of the same query": 1, "empty passages dropped": 1,
        "passages equal to their query dropped": 1, "rows without query or passage dropped": 2,
        "queries with several positives": 1}


def test_cleaning_nothing_leaves_nothing():
    collection, counts = clean([])
    assert collection.queries == collection.corpus == {} and counts == {}


def test_one_id_for_two_queries_is_refused():
    with pytest.raises(UserError, match="the id '1' names two queries: 'a' and 'b'"):
        clean([Row("a", ["x"], "1"), Row("b", ["y"], "1")])


@pytest.mark.parametrize("identity", ["1 2", "", " ", "a\tb", "a\nb"])
def test_an_id_that_a_run_file_cannot_hold_is_refused_whatever_the_reader(identity):
    with pytest.raises(UserError, match="row 2: the id .* must be one word, as TREC files want it"):
        clean([Row("a", ["x"]), Row("b", ["y"], identity)])


def local(tmp_path, *rows, **settings):
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return dataclasses.replace(Settings.load("demo"), dataset=str(path), **settings)


@pytest.mark.parametrize("row, message", [
    ({"query": "a"}, "line 2: no 'pos'"),
    ({"query": "a", "pos": "x"}, "row 2: 'pos' must be a list of texts"),
    ({"query": "a", "pos": [1]}, "row 2: 'pos' must be a list of texts"),
    ({"query": None, "pos": ["x"]}, "row 2: 'query' must be a text"),
    ({"query": "a", "pos": ["x"], "id": "1 2"}, "row 2: the id '1 2' must be one word"),
])
def test_broken_local_rows_are_named(tmp_path, row, message):
    with pytest.raises(UserError, match=message):
        read_pairs(local(tmp_path, {"query": "b", "pos": ["y"]}, row))


def test_a_data_set_that_is_none_is_refused(tmp_path):
    settings = Settings.load("demo")
    (tmp_path / "empty.jsonl").write_text("\n")
    (tmp_path / "pairs.csv").write_text("a,b\n")
    for dataset, message in (("docstring", "DATASET=docstring cannot be read: it must be one of .*`docstrings`"),
                             ("", "DATASET= cannot be read"), (str(tmp_path), "cannot be read"),
                             (str(tmp_path / "none.jsonl"), "none.jsonl cannot be read: .*.jsonl"),
                             (str(tmp_path / "pairs.csv"), "pairs.csv cannot be read"),
                             (str(tmp_path / "empty.jsonl"), "empty.jsonl is empty")):
        with pytest.raises(UserError, match=message):
            read_pairs(dataclasses.replace(settings, dataset=dataset))


def test_a_reader_for_a_new_ending_is_all_that_a_new_form_needs(settings, tmp_path, monkeypatch):
    """Lines `query|passage`, read, split and written with no edit elsewhere."""
    monkeypatch.setattr(module, "READERS", dict(module.READERS))

    @reader(".xyz")
    def read_xyz(settings):
        for line in Path(settings.dataset).read_text().splitlines():
            query, *positives = line.split("|")
            yield Row(query, positives)

    path = tmp_path / "pairs.XYZ"
    path.write_text("".join(f"query {number}|passage {number} says so\n" for number in range(50)))
    settings = dataclasses.replace(settings, dataset=str(path))
    collection, counts = read_pairs(settings)
    assert counts["queries kept"] == 50 and collection.queries[query_id("query 7")] == "query 7"
    assert source_of(settings) == {"sha256": sha256(path)}
    build(settings, labels=["neg10"])
    assert len(read_data(settings).part("test").queries) == 10


def test_half_surrogate_pairs_break_neither_reading_nor_writing(settings, tmp_path):
    """JSON can spell them, files cannot hold them: in queries, passages, ids and distractors."""
    rows = [{"query": f"query {number} \ud83d", "pos": [f"\ude00 passage {number}"], "id": f"q{number}\ud83d"}
            for number in range(40)]
    (tmp_path / "more.jsonl").write_text(json.dumps({"text": "more \udc00"}) + "\n")
    settings = dataclasses.replace(local(tmp_path, *rows), data_dir=settings.data_dir, base_model=settings.base_model,
                                   distractors=str(tmp_path / "more.jsonl"))
    build(settings, labels=["neg10"])
    collection = read_data(settings)
    assert collection.queries["q7?"] == "query 7 ?" and collection.corpus[passage_id("? passage 7")] == "? passage 7"
    assert "more ?" in collection.corpus.values()


def test_max_pairs_takes_a_seeded_sample_in_the_files_order(tmp_path):
    rows = [{"query": f"query {number}", "pos": [f"passage {number}"], "id": number} for number in range(100)]
    first, counts = read_pairs(local(tmp_path, *rows, max_pairs=10, seed=1))
    again, _ = read_pairs(local(tmp_path, *rows, max_pairs=10, seed=1))
    other, _ = read_pairs(local(tmp_path, *rows, max_pairs=10, seed=2))
    ids = list(map(int, first.queries))
    assert first == again != other and ids == sorted(ids) and len(set(ids)) == 10
    assert counts["queries left out by MAX_PAIRS"] == 90
    assert counts["passages kept"] == len(first.corpus) == counts["queries kept"] == 10


@pytest.mark.parametrize("content, message", [
    ('{"txt": "a"}', "more.jsonl, line 1: no 'text'"),
    ('{"text": "a"}\n{"text": 3}', "more.jsonl, row 2: 'text' must be a text"),
])
def test_broken_distractors_are_named(tmp_path, content, message):
    (tmp_path / "more.jsonl").write_text(content)
    with pytest.raises(UserError, match=message):
        read_distractors(dataclasses.replace(Settings.load("demo"), distractors=str(tmp_path / "more.jsonl")), known={})


def test_distractors_are_a_seeded_sample_of_what_is_not_known(tmp_path):
    texts = [f"text {number}" for number in range(30)]
    (tmp_path / "more.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in [*texts, " TEXT 3 "]))
    settings = dataclasses.replace(Settings.load("demo"), distractors=str(tmp_path / "more.jsonl"), max_distractors=8)
    known = {passage_id(text): text for text in texts[:10]}
    drawn = read_distractors(settings, known)
    assert len(drawn) == 8 and not set(drawn) & set(known) and drawn == read_distractors(settings, known)
    assert drawn != read_distractors(dataclasses.replace(settings, seed=1), known)
    everything = read_distractors(dataclasses.replace(settings, max_distractors=100), known)
    assert sorted(everything.values()) == sorted(texts[10:])
    assert read_distractors(dataclasses.replace(settings, distractors=""), known) == {}


def test_docstrings_of_public_names_become_pairs():
    source = '''
class Kettle:
    """Boil water in a vessel with a lid.

    The vessel stands on a stove until the water in it boils, which takes some minutes at sea level.
    """
    def pour(self):
        """Fill a cup from the kettle.

        Too short.
        """
    def _lid(self):
        """A private thing nobody should find here.

        The words of this passage are many enough to make a pair if only the name were public.
        """
'''
    found = [row for docstring in module._public_docstrings(ast.parse(source)) for row in module._as_row(docstring)]
    assert found == [Row("Boil water in a vessel with a lid.", [
        "The vessel stands on a stove until the water in it boils, which takes some minutes at sea level."])]


def test_docstrings_of_an_installed_package(monkeypatch):
    monkeypatch.setattr(module, "DOCSTRING_PACKAGES", ("networkx",))
    collection, _ = read_pairs(Settings.load("demo"))
    assert len(collection.queries) > 300
    assert "Returns the average shortest path length." in collection.queries.values()
    monkeypatch.setattr(module, "DOCSTRING_PACKAGES", ("no-such-package",))
    with pytest.raises(UserError, match="no-such-package is not installed"):
        read_pairs(Settings.load("demo"))


def test_the_source_of_docstrings_are_the_versions_of_the_packages(monkeypatch):
    versions = source_of(Settings.load("demo"))
    assert versions == {package: importlib.metadata.version(package) for package in module.DOCSTRING_PACKAGES}
    assert "numpy" in versions and "scikit-learn" in versions


def test_docstrings_of_another_version_are_another_source(settings, monkeypatch):
    """dataset.json holds the versions: an upgraded package does not slip under trained models."""
    monkeypatch.setattr(module, "DOCSTRING_PACKAGES", ("networkx",))
    rows = [Row(f"query {number}", [f"passage {number}"]) for number in range(40)]
    monkeypatch.setitem(module.READERS, "docstrings", lambda settings: rows)
    settings = dataclasses.replace(settings, dataset="docstrings")
    build(settings, labels=())
    version = importlib.metadata.version("networkx")
    made_with = json.loads((settings.data_dir / "dataset.json").read_text())["made_with"]
    assert made_with["networkx"] == version
    monkeypatch.setattr("importlib.metadata.version", lambda name: "99.0")
    with pytest.raises(UserError, match=rf"holds the data of other settings \(networkx={version}, now 99.0\)"):
        build(settings, labels=())
