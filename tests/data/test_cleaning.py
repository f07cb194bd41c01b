import dataclasses
import importlib.metadata
import json
from pathlib import Path

import pytest
from tiny import build

from embedding_finetune.data import cleaning as module
from embedding_finetune.data.cleaning import read_pairs, reader, source_of
from embedding_finetune.data.collection import read_data
from embedding_finetune.data.deduplication import clean
from embedding_finetune.data.normalize import passage_id, query_id
from embedding_finetune.data.readers import Row
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
    assert collection.qrels == {"7": {letter: 1, before: 1}, y: {before: 1}} and collection.splits == {}
    assert counts == {
        "rows read": 5, "queries read": 2, "rows merged with an earlier row of the same query": 1,
        "empty passages dropped": 1,
        "passages equal to their query dropped": 1, "rows without query or passage dropped": 2,
        "queries with several positives": 1}


def test_texts_that_look_the_same_are_one_and_a_query_that_shows_nothing_is_none():
    collection, counts = clean([Row("where is\u200b it?", ["in\u00ad side"]), Row("where is it?", ["\ufeffin side"]),
                                Row("\u200b\ufeff", ["a passage"]), Row("who?", ["\u2060", "who\u200d?"])])
    assert list(collection.queries.values()) == ["where is\u200b it?"]  # as written
    assert list(collection.corpus.values()) == ["in\u00ad side"]
    assert counts["rows merged with an earlier row of the same query"] == 1
    assert counts["rows without query or passage dropped"] == 2


def test_cleaning_nothing_leaves_nothing():
    collection, counts = clean([])
    assert collection.queries == collection.corpus == {} and counts == {}


def test_one_id_for_two_queries_is_refused():
    with pytest.raises(UserError, match="the id '1' names two queries: 'a' and 'b'"):
        clean([Row("a", ["x"], "1"), Row("b", ["y"], "1")])


@pytest.mark.parametrize("identity", ["1 2", "", " ", "a\tb", "a\nb"])
def test_an_id_that_a_run_file_cannot_hold_is_refused_whatever_the_reader(identity):
    with pytest.raises(UserError, match="row 2: the id .* must be one word, as TREC files require"):
        clean([Row("a", ["x"]), Row("b", ["y"], identity)])


def local(tmp_path, *rows, **settings):
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return dataclasses.replace(Settings.load("demo"), dataset=str(path), **settings)


@pytest.mark.parametrize("row, message", [
    ({"query": "a"}, "line 2: no relevant passage"),
    ({"query": "a", "pos": [1]}, "line 2: 'pos' must be a text or a list of texts"),
    ({"query": 3, "pos": ["x"]}, "line 2: 'query' must be a text or a list of texts"),
    ({"query": None, "pos": ["x"]}, "line 2: no query"),
    ({"query": "a", "pos": ["x"], "id": 0.5}, "line 2: 'id' must be an id: a word or a whole number"),
])
def test_too_many_broken_rows_stop_the_build_and_few_are_named(tmp_path, capsys, row, message):
    good = [{"query": f"query {number}", "pos": [f"passage {number}"], "id": number} for number in range(20)]
    with pytest.raises(UserError, match=rf"1 of 2 rows are broken \({message}\), and MAX_BAD_ROWS .* 0.05"):
        read_pairs(local(tmp_path, good[0], row))
    collection, _ = read_pairs(local(tmp_path, good[0], row, *good[1:]))
    assert len(collection.queries) == 20
    assert f"pairs.jsonl: 1 of 21 rows are broken ({message}): left out" in capsys.readouterr().out
    with pytest.raises(UserError, match="1 of 21 rows"):
        read_pairs(local(tmp_path, good[0], row, *good[1:], max_bad_rows=0.0))


def test_an_id_of_two_words_is_named_by_its_line(tmp_path):
    with pytest.raises(UserError, match="pairs.jsonl, line 2: the id '1 2' must be one word"):
        read_pairs(local(tmp_path, {"query": "b", "pos": "y"}, {"query": "a", "pos": ["x"], "id": "1 2"}))


def test_negatives_are_judged_0_unless_they_answer_the_query_somewhere():
    collection, counts = clean([
        Row("a", ["x"], negatives=["y", "z", " ", "A"]), Row("a", ["y"], negatives=["x"]), Row("b", ["z"], "7")])
    x, y, z = map(passage_id, "xyz")
    assert collection.qrels == {query_id("a"): {x: 1, y: 1, z: 0}, "7": {z: 1}}
    assert collection.corpus == {x: "x", y: "y", z: "z"}
    assert counts["queries with negatives of their own"] == 1 == counts["queries with several positives"]


def test_passages_without_a_query_keep_their_ids_and_sources():
    more, _ = clean([Row(None, ["The  letter x"], "p1", source="letters.md"), Row(None, ["the letter X"], "p2"),
                     Row(None, ["y"]), Row(None, [""])])
    assert more.corpus == {"p1": "The  letter x", passage_id("y"): "y"} and more.source == {"p1": "letters.md"}
    collection, _ = clean([Row("which letter?", ["the letter X", "z"], source="a link", negatives=["Y"])], more)
    assert collection.qrels == {query_id("which letter?"): {"p1": 1, passage_id("z"): 1, passage_id("y"): 0}}
    assert collection.source == {"p1": "letters.md", passage_id("z"): "a link"}
    assert list(collection.corpus) == ["p1", passage_id("y"), passage_id("z")]
    with pytest.raises(UserError, match="the id 'p1' names two passages: 'x' and 'y'"):
        clean([Row(None, ["x"], "p1"), Row(None, ["y"], "p1")])


def test_a_data_set_that_is_none_is_refused(tmp_path):
    settings = Settings.load("demo")
    (tmp_path / "empty.jsonl").write_text("\n")
    (tmp_path / "folder").mkdir()
    (tmp_path / "pairs.xyz").write_text("a,b\n")
    for dataset, message in (("docstring", "DATASET=docstring cannot be read: it must be one of .*`docstrings`"),
                             ("", "DATASET= cannot be read"),
                             (str(tmp_path / "folder"), "has no document with text in it"),
                             (str(tmp_path / "none.jsonl"), "none.jsonl does not exist: name a file"),
                             (str(tmp_path / "pairs.xyz"), "pairs.xyz cannot be read"),
                             ("data/none.csv", "data/none.csv cannot be read"), ("a\0b", "cannot be read"),
                             ("x" * 5000, "cannot be read"), ("~nobody-here/x.csv", "cannot be read"),
                             (str(tmp_path / "empty.jsonl"), "empty.jsonl is empty"),
                             (str(tmp_path / "folder"), "folder in BEIR's layout")):
        with pytest.raises(UserError, match=message):
            read_pairs(dataclasses.replace(settings, dataset=dataset))


def test_a_reader_for_a_new_ending_is_all_that_a_new_form_needs(settings, tmp_path, monkeypatch):
    """Lines `query|passage`, read, split and written with no edit elsewhere."""
    monkeypatch.setitem(module.READERS, ".xyz", None)  # is taken out again

    @reader(".xyz")
    def read_xyz(name, settings):
        for line in Path(name).read_text().splitlines():
            query, *positives = line.split("|")
            yield Row(query, positives)

    path = tmp_path / "pairs.XYZ"
    path.write_text("".join(f"query {number}|passage {number} says so\n" for number in range(50)))
    settings = dataclasses.replace(settings, dataset=str(path))
    collection, counts = read_pairs(settings)
    assert counts["queries kept"] == 50 and collection.queries[query_id("query 7")] == "query 7"
    assert source_of(settings) == {"sha256": sha256(path)}
    build(settings, labels=["neg10"])
    assert len(read_data(settings).split("test").queries) == 10


def test_a_local_file_may_have_an_at_sign_in_its_name(tmp_path, monkeypatch):
    (tmp_path / "my").mkdir()
    for name in ("pairs@v1.jsonl", "pairs@v1"):
        (tmp_path / "my" / name).write_text(json.dumps({"query": "a", "pos": ["x"]}) + "\n")
    settings = Settings.load("demo")
    monkeypatch.setattr("embedding_finetune.settings.ROOT", tmp_path)
    settings = dataclasses.replace(settings, dataset="my/pairs@v1.jsonl")
    assert read_pairs(settings)[0].queries and list(source_of(settings)) == ["sha256"]
    with pytest.raises(UserError, match="DATASET=my/pairs@v1 cannot be read"):  # a file without an ending
        read_pairs(dataclasses.replace(settings, dataset="my/pairs@v1"))


def test_half_surrogate_pairs_break_neither_reading_nor_writing(settings, tmp_path):
    """JSON can spell them, files cannot hold them: in queries, passages, ids and CORPUS."""
    rows = [{"query": f"query {number} \ud83d", "pos": [f"\ude00 passage {number}"], "id": f"q{number}\ud83d"}
            for number in range(40)]
    (tmp_path / "more.jsonl").write_text(json.dumps({"text": "more \udc00"}) + "\n")
    settings = dataclasses.replace(local(tmp_path, *rows), data_dir=settings.data_dir, base_model=settings.base_model,
                                   corpus=str(tmp_path / "more.jsonl"))
    build(settings, labels=["neg10"])
    collection = read_data(settings)
    assert collection.queries["q7?"] == "query 7 ?" and collection.corpus[passage_id("? passage 7")] == "? passage 7"
    assert "more ?" in collection.corpus.values()


def test_max_queries_takes_a_seeded_sample_in_the_files_order(tmp_path):
    rows = [{"query": f"query {number}", "pos": [f"passage {number}"], "id": number} for number in range(100)]
    first, counts = read_pairs(local(tmp_path, *rows, max_queries=10, seed=1))
    again, _ = read_pairs(local(tmp_path, *rows, max_queries=10, seed=1))
    other, _ = read_pairs(local(tmp_path, *rows, max_queries=10, seed=2))
    ids = list(map(int, first.queries))
    assert first == again != other and ids == sorted(ids) and len(set(ids)) == 10
    assert counts["queries left out by MAX_QUERIES"] == 90
    assert counts["passages kept"] == len(first.corpus) == counts["queries kept"] == 10


def test_the_source_of_docstrings_are_the_versions_of_the_packages(monkeypatch):
    versions = source_of(Settings.load("demo"))
    assert versions == {package: importlib.metadata.version(package) for package in module.DOCSTRING_PACKAGES}
    assert "numpy" in versions and "scikit-learn" in versions


def test_docstrings_of_another_version_are_another_source(settings, monkeypatch):
    """dataset.json holds the versions: an upgraded package does not slip under trained models."""
    monkeypatch.setattr(module, "DOCSTRING_PACKAGES", ("networkx",))
    rows = [Row(f"query {number}", [f"passage {number}"]) for number in range(40)]
    monkeypatch.setitem(module.READERS, "docstrings", lambda name, settings: rows)
    settings = dataclasses.replace(settings, dataset="docstrings")
    build(settings, labels=())
    version = importlib.metadata.version("networkx")
    assert json.loads((settings.data_dir / "dataset.json").read_text())["inputs"]["source"]["networkx"] == version
    monkeypatch.setattr("importlib.metadata.version", lambda name: "99.0")
    with pytest.raises(UserError, match=rf"holds the data of other settings \(networkx: {version}, now 99.0\)"):
        build(settings, labels=())
