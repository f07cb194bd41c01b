"""Every form of table, in several scripts, whole and broken; readers are fuzzed at the end."""

import dataclasses
import json
import os
import re
from unittest.mock import Mock

import datasets
import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as effort
from hypothesis import strategies as st
from tiny import build

from embedding_finetune.data.cleaning import read_pairs
from embedding_finetune.data.collection import read_data
from embedding_finetune.data.normalize import passage_id, query_id
from embedding_finetune.files import UserError
from embedding_finetune.settings import Settings

ENGLISH = [{"question": f"what does number {number} do, then?", "answer": f'Number {number} "rests", and\neats.'}
           for number in range(100)]
CHINESE = [{"question": f"第{number}号做什么？", "answer": f"第{number}号休息，然后吃饭。"} for number in range(100)]
ARABIC = [{"question": f"ماذا يفعل الرقم {number}؟", "answer": f"الرقم {number} يستريح، ثم يأكل."}
          for number in range(100)]


def at(path, **more):
    return dataclasses.replace(Settings.load("demo"), dataset=str(path), max_queries=0, **more)


def quoted(*fields, mark=","):
    return mark.join('"' + field.replace('"', '""') + '"' for field in fields)


def as_csv(path, rows, mark=",", end="\n", encoding="utf-8"):
    lines = [mark.join(rows[0]), *(quoted(*row.values(), mark=mark) for row in rows)]
    path.write_bytes((end.join(lines) + end).encode(encoding))


FORMS = {
    "comma.csv": as_csv, "tab.tsv": lambda path, rows: as_csv(path, rows, "\t"),
    "semicolon.csv": lambda path, rows: as_csv(path, rows, ";", "\r\n"),
    "mark.csv": lambda path, rows: as_csv(path, rows, encoding="utf-8-sig"),
    "excel.csv": lambda path, rows: as_csv(path, rows, "\t", "\r\n", "utf-16"),
    "lines.jsonl": lambda path, rows: path.write_text("\n\n".join(map(json.dumps, rows))),
    "list.json": lambda path, rows: path.write_text(json.dumps(rows, indent=1, ensure_ascii=False), encoding="utf-8"),
    "table.parquet": lambda path, rows: pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path),
}


@pytest.mark.parametrize("rows", [ENGLISH, CHINESE, ARABIC], ids=["english", "chinese", "arabic"])
@pytest.mark.parametrize("form", FORMS)
def test_each_form_in_each_script_gives_the_same_pairs(tmp_path, capsys, form, rows):
    FORMS[form](tmp_path / f"a name, {form}", rows)
    collection, counts = read_pairs(at(tmp_path / f"a name, {form}"))
    assert collection.queries == {query_id(row["question"]): row["question"] for row in rows}
    assert list(collection.corpus) == sorted(map(passage_id, (row["answer"] for row in rows)))
    assert collection.qrels == {query_id(row["question"]): {passage_id(row["answer"]): 1} for row in rows}
    assert counts["rows read"] == counts["queries kept"] == 100
    said = capsys.readouterr().out
    assert "guessed from the column names: QUERY_COLUMN=question; POSITIVE_COLUMN=answer" in said


def test_100_pairs_with_ids_negatives_and_a_corpus_become_training_files(settings, tmp_path):
    """From a CSV to rows: the negatives of the file come first, and the ids are those of the files."""
    negatives = [f"Number {number} sleeps on {number} beds." for number in range(100)]
    rows = [{"query": row["question"], "text": row["answer"], "negative_1": negatives[number], "qid": f"Q-{number}"}
            for number, row in enumerate(ENGLISH)]
    as_csv(tmp_path / "pairs.csv", rows)
    texts = ["a  thing", *negatives[:50]]
    more = [{"_id": f"D{number}", "title": "Of", "body": text} for number, text in enumerate(texts)]
    more += [{"_id": f"E{number}", "body": row["answer"]} for number, row in enumerate(ENGLISH)]
    FORMS["list.json"](tmp_path / "more.json", more)
    settings = dataclasses.replace(settings, dataset=str(tmp_path / "pairs.csv"), corpus=str(tmp_path / "more.json"))
    collection = build(settings, labels=["neg10"])
    assert set(collection.queries) == {f"Q-{number}" for number in range(100)}
    assert collection.corpus["D0"] == "Of a  thing" and collection.corpus["E7"] == ENGLISH[7]["answer"]
    assert collection.qrels["Q-7"] == {"E7": 1, passage_id(negatives[7]): 0} and len(collection.corpus) == 251
    assert read_data(settings) == collection
    for line in (settings.data_dir / "training_neg_10.json").read_text().splitlines():
        row = json.loads(line)
        number = int(row["id"].removeprefix("Q-"))
        assert row["neg"][0] == negatives[number] and len(set(row["neg"])) == 10
        assert not set(row["neg"][1:]) & set(negatives)


def test_lists_and_several_rows_of_a_query_are_merged(tmp_path):
    rows = [{"anchor": "a", "positive": ["x", "y", None], "negative_1": "n", "negative_2": "m", "url": "link", "id": 7},
            {"anchor": "A ", "positive": ["z"], "negative_1": "n", "negative_2": None, "url": None, "id": None}]
    for form in ("lines.jsonl", "list.json", "table.parquet"):
        FORMS[form](tmp_path / form, rows)
        collection, counts = read_pairs(at(tmp_path / form))
        assert collection.qrels == {"7": {passage_id(text): text in "xyz" for text in "xyznm"}}
        assert collection.source == dict.fromkeys(map(passage_id, "xy"), "link")
        assert counts["rows merged with an earlier row of the same query"] == 1


def test_columns_are_named_where_there_is_a_doubt(tmp_path, capsys):
    as_csv(tmp_path / "pairs.csv", [{"Question": "a", "title": "t", "Answer": "x", "text": "y", "id": "1", "qid": "2"}])
    with pytest.raises(UserError, match="has the columns 'Question', 'title', .*: set POSITIVE_COLUMN to the right"):
        read_pairs(at(tmp_path / "pairs.csv"))
    with pytest.raises(UserError, match="POSITIVE_COLUMN=answers: .*pairs.csv has no such column; it has 'Question'"):
        read_pairs(at(tmp_path / "pairs.csv", positive_column="answers"))
    collection, _ = read_pairs(at(tmp_path / "pairs.csv", positive_column="text"))
    assert collection.corpus == {passage_id("y"): "y"} and list(collection.queries) == [query_id("a")]
    assert "guessed from the column names: QUERY_COLUMN=Question; ID_COLUMN=none (or id or qid?)" in \
        capsys.readouterr().out
    chosen = at(tmp_path / "pairs.csv", query_column="title", positive_column="Answer", id_column="id",
                negative_column="text")
    collection, _ = read_pairs(chosen)
    assert collection.queries == {"1": "t"} and "not used: 'Question', 'qid'\n" in capsys.readouterr().out
    assert collection.qrels == {"1": {passage_id("x"): 1, passage_id("y"): 0}}
    with pytest.raises(UserError, match="QUERY_COLUMN=none: .* has no such column"):
        read_pairs(at(tmp_path / "pairs.csv", query_column="none"))


def test_five_broken_rows_are_named_by_line(tmp_path, capsys):
    lines = ["question,answer", *(quoted(*row.values()) for row in CHINESE)]
    lines[10] = "only one field"
    lines[20] = '"a "stray" quote",x'
    lines[30] = ",no question"
    lines[40] += ",one too many"
    content = "\n".join(lines).encode()
    (tmp_path / "pairs.csv").write_bytes(content.replace("第54号做".encode(), "第54号做".encode("gb18030")))
    collection, _ = read_pairs(at(tmp_path / "pairs.csv"))
    assert len(collection.queries) == 95
    said = capsys.readouterr().out
    assert "5 of 100 rows are broken (line 11: 1 fields, but the first line has 2; line 21: a stray quote (" in said
    assert "line 31: no query; line 41: 3 fields" in said and "line 56: not UTF-8: save the file as " in said


def test_the_lines_are_those_of_the_file(tmp_path, capsys):
    """Texts of several lines, blank lines, and both kinds of JSON."""
    broken = {"query": None, "pos": "x"}
    rows = [{"query": f"query {number}", "pos": f"two\nlines {number}"} for number in range(30)]
    more = "".join(f"{number},{number}\n" for number in range(30))
    (tmp_path / "pairs.csv").write_text('query,pos\n\n"a","two\nlines"\n,"x"\n' + more)
    (tmp_path / "pairs.jsonl").write_text("\n".join(map(json.dumps, [*rows, broken])))
    (tmp_path / "pairs.json").write_text(json.dumps([*rows, broken], indent=2))
    for name, line in (("pairs.csv", 5), ("pairs.jsonl", 31), ("pairs.json", 122)):
        read_pairs(at(tmp_path / name))
        assert f"(line {line}: no query)" in capsys.readouterr().out
    assert (tmp_path / "pairs.json").read_text().splitlines()[121] == "  {"


def test_a_stray_quote_costs_its_own_lines_and_no_others(tmp_path, capsys):
    """Every line that went into the broken row counts."""
    lines = ["query,pos", *(quoted(f"query {number}", f"passage {number}") for number in range(100))]
    lines[50] = '"query 49,passage 49'
    (tmp_path / "pairs.csv").write_text("\n".join(lines))
    collection, _ = read_pairs(at(tmp_path / "pairs.csv"))
    assert len(collection.queries) == 98
    assert "2 of 100 rows are broken (line 51: a stray quote" in capsys.readouterr().out
    lines[51:] = [line.replace('"', "") for line in lines[51:]]
    (tmp_path / "pairs.csv").write_text("\n".join(lines))
    with pytest.raises(UserError, match="pairs.csv, line 51: a quote opens here and is never closed"):
        read_pairs(at(tmp_path / "pairs.csv"))


def test_a_data_set_of_the_hub_is_read_by_its_columns(tmp_path, monkeypatch):
    """`load_dataset` itself is tried against a stand-in hub in test_hub; here what comes of its answers."""
    asked = []
    rows = datasets.Dataset.from_list(CHINESE)

    def load(name, config, revision=None):
        asked.append((name, config))
        if config == "wrong":
            raise ValueError("BuilderConfig 'wrong' not found.\nAvailable: ['pair']")
        return {"train": rows, "dev": rows.select(range(10))} if config else {"only": rows}

    monkeypatch.setattr("embedding_finetune.hub.check_hub", lambda name, kind: None)
    monkeypatch.setattr("embedding_finetune.data.readers.beir.data_set_folder", lambda *asked: None)
    monkeypatch.setattr(datasets, "load_dataset", load)
    assert len(read_pairs(at("some/pairs"))[0].queries) == 100
    assert len(read_pairs(at("some/pairs:pair", split="dev"))[0].queries) == 10
    with pytest.raises(UserError, match="some/pairs has the splits train, dev: set SPLIT to one of them"):
        read_pairs(at("some/pairs:pair"))
    with pytest.raises(UserError, match="some/pairs has the splits only: set SPLIT"):
        read_pairs(at("some/pairs", split="dev"))
    with pytest.raises(UserError, match=r"cannot load some/pairs \(BuilderConfig .* Available: \['pair'\]\)"):
        read_pairs(at("some/pairs:wrong"))
    for error, message in ((RuntimeError("Dataset scripts are no longer supported, but found faq.py"), "found faq.py;"),
                           (datasets.exceptions.DatasetGenerationError("An error occurred"), "column x;")):
        error.__cause__ = TypeError("Couldn't cast\ncolumn x") if "error" in str(error) else None
        monkeypatch.setattr(datasets, "load_dataset", Mock(side_effect=error))
        with pytest.raises(UserError, match=f"cannot load some/pairs: .*{message} download its tables"):
            read_pairs(at("some/pairs"))
    monkeypatch.setattr(datasets, "load_dataset", lambda name, config, revision=None: {
        "train": datasets.Dataset.from_dict({"content": ["x", "y"], "pid": [1, 2]})})
    FORMS["lines.jsonl"](tmp_path / "pairs.jsonl", [{"query": "a", "pos": "X"}])
    collection, _ = read_pairs(at(tmp_path / "pairs.jsonl", corpus="other/passages"))
    assert collection.corpus == {"1": "x", "2": "y"} and collection.qrels == {query_id("a"): {"1": 1}}
    assert asked[0] == ("some/pairs", None)


WRONG = {
    "empty.csv": b"", "blank.csv": b"\n\r\n\n", "header.csv": b"query,pos\n", "empty.json": b"", "list.json": b"[]",
    "cut.json": b'[{"query": "a", "pos": "b"}', "word.json": b"word", "number.json": b"7",
    "nested.json": b"[" * 100_000,
    "deep.jsonl": b'{"query": ' * 100_000, "open.json": b'[{"query": "a", "pos', "dict.json": b'{"data": []}',
    "zero.parquet": b"", "magic.parquet": b"PAR1PAR1", "text.parquet": b"query,pos\n",
    "binary.csv": bytes(range(256)) * 9,
    "binary.jsonl": bytes(range(256)) * 9, "half.csv": "query,pos\nä,ö\n".encode("utf-16")[:-3],
    "twice.csv": b"query,query,pos\na,b,c\n", "rows.csv": b"query,pos\n" + b",\n" * 100_000,
    "lines.csv": b"query,pos\n" + b"\n" * 1_000_000, "long.jsonl": b'{"query": "' + b"x" * 10_000_000,
    "number.jsonl": b'{"query": ' + b"9" * 10_000 + b', "pos": "x"}', "nan.jsonl": b'{"query": NaN, "pos": "x"}',
    "nul.csv": b"que\0ry,pos\n\0,\0\n", "quote.csv": b'"', "quotes.tsv": b'query\tpos\n"\n"\n"\n',
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_broken_as_a_whole_is_one_line(tmp_path, name):
    (tmp_path / name).write_bytes(WRONG[name])
    with pytest.raises(UserError, match=re.escape(name)) as error:
        read_pairs(at(tmp_path / name))
    assert "\n" not in str(error.value) and len(str(error.value)) < 1500


def test_a_truncated_parquet_file_and_one_of_other_types_are_one_line(tmp_path):
    FORMS["table.parquet"](tmp_path / "whole.parquet", ENGLISH)
    content = (tmp_path / "whole.parquet").read_bytes()
    for end in range(0, len(content), len(content) // 40):
        (tmp_path / "cut.parquet").write_bytes(content[:end])
        with pytest.raises(UserError, match="cut.parquet"):
            read_pairs(at(tmp_path / "cut.parquet"))
    table = pyarrow.table({"query": [1, 2], "pos": [{"text": "x"}, None]})
    pyarrow.parquet.write_table(table, tmp_path / "types.parquet")
    with pytest.raises(UserError, match="2 of 2 rows are broken .row 1: 'query' must be a text or a list of"):
        read_pairs(at(tmp_path / "types.parquet"))


def test_a_line_of_ten_megabytes_is_a_row(tmp_path):
    long = "x" * 10_000_000
    as_csv(tmp_path / "pairs.csv", [{"query": "a", "pos": long}])
    FORMS["lines.jsonl"](tmp_path / "pairs.jsonl", [{"query": "a", "pos": long}])
    for name in ("pairs.csv", "pairs.jsonl"):
        assert read_pairs(at(tmp_path / name))[0].corpus == {passage_id(long): long}


def test_loops_of_links_and_unreadable_places_are_one_line(tmp_path):
    os.symlink(tmp_path / "two.csv", tmp_path / "one.csv")
    os.symlink(tmp_path / "one.csv", tmp_path / "two.csv")
    (tmp_path / "folder").mkdir()
    os.symlink(tmp_path / "folder", tmp_path / "folder" / "itself")
    for name, message in (("one.csv", "cannot be read"), ("folder", "has no document with text in it")):
        with pytest.raises(UserError, match=message):
            read_pairs(at(tmp_path / name))


TEXTS = st.text(max_size=8) | st.sampled_from(["query", "pos", "a", "x", ""])
VALUES = st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | TEXTS,
                      lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
                      max_leaves=6)
ROWS = st.fixed_dictionaries({"query": TEXTS | VALUES, "pos": TEXTS | VALUES},
                             optional={"neg": VALUES, "id": VALUES, "source": VALUES})
MANY = effort(max_examples=80, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))


def survives(path, **more):
    """Rows, or an UserError of one line that names the file: nothing else."""
    try:
        collection, _ = read_pairs(at(path, **more))
    except UserError as error:
        assert "\n" not in str(error) and path.name in str(error)
        return None
    assert collection.queries and all(map(collection.positives, collection.queries))
    return collection


@MANY
@given(content=st.binary(max_size=300), suffix=st.sampled_from([".csv", ".tsv", ".jsonl", ".json", ".parquet"]))
def test_random_bytes(tmp_path, content, suffix):
    path = tmp_path / f"bytes{suffix}"
    path.write_bytes(content)
    survives(path)
    if suffix != ".parquet":  # behind a sound beginning, too
        good = b'{"query": "a", "pos": "b"}\n' if "json" in suffix else b"query,pos\na,b\n"
        path.write_bytes(good + content)
        survives(path, max_bad_rows=1.0)


@MANY
@given(lines=st.lists(st.text(alphabet='a",;\t\n\r\\\0é', max_size=12), max_size=12),
       end=st.sampled_from(["\n", "\r\n"]))
def test_stray_quotes_and_ends_of_lines(tmp_path, lines, end):
    path = tmp_path / "quotes.csv"
    path.write_bytes(end.join(["query,pos", "a,b", *lines]).encode())
    found = survives(path, max_bad_rows=1.0)
    assert found is None or "a" in found.queries.values()


@MANY
@given(rows=st.lists(VALUES | ROWS, max_size=6), whole=st.booleans())
def test_json_of_any_kind(tmp_path, rows, whole):
    path = tmp_path / "any.json"
    path.write_text(json.dumps(rows) if whole else "\n".join(map(json.dumps, rows)))
    survives(path, max_bad_rows=1.0)
    try:
        read_pairs(at(path, corpus=str(path), corpus_text_column="query", max_bad_rows=1.0))
    except UserError as error:
        assert "\n" not in str(error)
