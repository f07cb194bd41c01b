"""Nothing in a table is dropped or misread silently: each kind of trouble is read rightly, or named."""

import dataclasses
import gzip
import json
import zipfile

import pyarrow
import pyarrow.parquet
import pytest

from embedding_finetune.data.cleaning import read_pairs, source_of
from embedding_finetune.data.normalize import passage_id
from embedding_finetune.files import UserError
from embedding_finetune.settings import Settings


def at(path, **settings):
    return dataclasses.replace(Settings.load("demo"), dataset=str(path), **{"max_queries": 0} | settings)


def read(path, content, **settings):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return read_pairs(at(path, **settings))


def judged(collection):
    """query -> passage -> grade, as texts."""
    return {collection.queries[query]: {collection.corpus[passage]: grade for passage, grade in passages.items()}
            for query, passages in collection.qrels.items()}


def lines(*rows):
    return "".join(json.dumps(row) + "\n" for row in rows)


# Quotes in TSV

PLAIN = [f"query {number}\tpassage {number}" for number in range(20)]


@pytest.mark.parametrize("odd, texts", [
    ({5: '"query 5\tpassage 5', 9: 'query 9"\tpassage 9'}, {'"query 5': "passage 5", 'query 9"': "passage 9"}),
    ({5: '"query" 5\tpassage 5'}, {'"query" 5': "passage 5"}),
    ({5: 'query 5\t5" pipe'}, {"query 5": '5" pipe'}),
    ({5: '"query 5"\tpassage 5'}, {'"query 5"': "passage 5"}),
    ({5: 'query 5\t"two\tfields"'}, {"query 5": "two\tfields"}),
    ({5: 'query 5\t"two\nlines"'}, {"query 5": "two\nlines"}),
    ({5: 'query 5\t"a ""word"""'}, {"query 5": 'a "word"'}), ({5: 'query 5\t"a\rb"'}, {"query 5": "a\rb"}),
])
def test_quotes_in_tsv_are_letters_unless_they_enclose_what_needs_it(tmp_path, odd, texts):
    rows = [odd.get(number, line) for number, line in enumerate(PLAIN)]
    collection, counts = read(tmp_path / "pairs.tsv", "\n".join(["query\tpos", *rows]))
    wanted = dict(line.split("\t") for number, line in enumerate(PLAIN) if number not in odd) | texts
    assert judged(collection) == {query: {passage: 1} for query, passage in wanted.items()}
    enclose = {*odd[5]} & {"\n", "\r"} or '""' in odd[5] or odd[5].count("\t") == 2
    assert counts.sources[0].how["quotes"] == ("enclose fields" if enclose else "are letters (detected)")


def test_a_field_that_may_be_several_rows_is_named(tmp_path, capsys):
    rows = "query,pos\n" + "".join(f"query {number},passage {number}\n" for number in range(60))
    for text in ("query 5,", "query 9,"):
        rows = rows.replace(text, f'"{text}' if text == "query 5," else f'{text[:-1]}",')
    collection, counts = read(tmp_path / "pairs.csv", rows)
    assert len(collection.queries) == 56
    assert "check the quotes of lines 7 to 11, read as one row" in capsys.readouterr().out
    content = rows.replace(",", "\t") + 'last\t"two\nlines"\n'  # quotes enclose fields, too
    collection, counts = read(tmp_path / "pairs.tsv", content, max_bad_rows=0.1)
    assert len(collection.queries) == 56 and counts.sources[0].skipped == {
        "a quoted field over several lines, each of which would be a row": {"rows": 5, "first": [
            f"line {line}" for line in range(7, 12)]}}


# Labels and splits

LABELLED = [("a", "x", 1), ("a", "y", 0), ("b", "z", 3), ("b", "x", 0), ("c", "v", 0)]


@pytest.mark.parametrize("name", ["label", "Score", "relevance", "grade", "similarity"])
def test_labels_are_grades_and_0_is_a_negative(tmp_path, name):
    table = f"query,passage,{name}\n" + "".join(f"{query},{text},{label}.0\n" for query, text, label in LABELLED)
    for content, label in ((table, "auto"), (table.replace(".0", ""), name), (table, f"{name}>=1")):
        collection, counts = read(tmp_path / "pairs.csv", content, label_column=label)
        grade = 1 if ">" in label else 3
        assert judged(collection) == {"a": {"x": 1, "y": 0}, "b": {"z": grade, "x": 0}}
        assert set(collection.corpus.values()) == set("xyzv")
        assert counts["rows read"] == 5 == sum(counts[name] for name in (
            "queries read", "rows merged with an earlier row of the same query",
            "rows of queries without a positive dropped"))
    collection, counts = read(tmp_path / "pairs.csv", table, label_column="none")
    assert counts["queries kept"] == 3 and counts.sources[0].columns[name] == ""


@pytest.mark.parametrize("values, message", [
    (["0.87", "0.1"], r"line 2: 'score' holds a value that is no grade .* LABEL_COLUMN='score>=NUMBER' .*COLUMN=none"),
    (["1", "good"], "line 3: 'score' holds a value that is no grade"), (["-1", "1"], "no grade"),
    (["1", ""], "1 of 2 rows are broken .line 3: no label in 'score'"),
])
def test_labels_without_a_known_meaning_stop_the_build(tmp_path, values, message):
    content = "query,passage,score\n" + "".join(f"q{value},p{value},{value}\n" for value in values)
    with pytest.raises(UserError, match=message):
        read(tmp_path / "pairs.csv", content)


def test_a_threshold_makes_grades_of_scores(tmp_path):
    content = lines(*({"sentence1": query, "sentence2": text, "score": score} for query, text, score in (
        ("a", "x", 0.8), ("a", "y", 0.79), ("b", "z", True))))
    collection, _ = read(tmp_path / "pairs.jsonl", content, label_column="score>=0.8")
    assert judged(collection) == {"a": {"x": 1, "y": 0}, "b": {"z": 1}}


def test_two_label_columns_have_to_be_told_apart(tmp_path):
    with pytest.raises(UserError, match="'label', 'score': set LABEL_COLUMN to the right ones, or to none"):
        read(tmp_path / "pairs.csv", "query,pos,label,score\na,x,1,2\n")


def test_a_split_column_is_used_or_named(tmp_path):
    rows = [{"query": f"q{number}", "pos": f"p{number}", "split": "train" if number < 6 else "validation"}
            for number in range(8)]
    collection, _ = read(tmp_path / "pairs.jsonl", lines(*rows))
    assert list(collection.splits.values()) == ["train"] * 6 + ["dev"] * 2 and collection.predefined == ("dev", "train")
    collection, counts = read(tmp_path / "pairs.jsonl", lines(*rows), max_queries=3)
    assert sorted(collection.splits.values()) == ["dev"] * 2 + ["train"] * 3
    assert counts["queries left out by MAX_QUERIES"] == 3
    assert read(tmp_path / "pairs.jsonl", lines(*rows), split_column="none")[0].splits == {}
    for change, message in (({"split": "new"}, "line 2: 'split' holds 'new', .* set SPLIT_COLUMN=none"),
                            ({"split": None}, "line 2: 'split' holds ''")):
        with pytest.raises(UserError, match=message):
            read(tmp_path / "pairs.jsonl", lines(rows[0], rows[1] | change, *rows[2:]))
    collection, counts = read(tmp_path / "pairs.jsonl", lines(rows[0] | {"query": "q7"}, *rows[1:], rows[6] | {
        "split": "train", "pos": "x"}))  # q7 is a train query first, q6 a dev query first: both belong to dev
    assert judged(collection) == {f"q{number}": {f"p{number}": 1} for number in range(1, 8)}
    assert [collection.splits[query] for query in collection.queries].count("dev") == 2
    assert counts["judgments dropped, since their query is also in a later split"] == 2
    with pytest.raises(UserError, match="2 judgments dropped, since .*: only LEAKING_ROWS=drop allows that"):
        read(tmp_path / "pairs.jsonl", lines(rows[0] | {"query": "q7"}, *rows[1:], rows[6] | {
            "split": "train", "pos": "x"}), leaking_rows="stop")
    with pytest.raises(UserError, match="no row in the train split"):
        read(tmp_path / "pairs.jsonl", lines(*rows[6:]))


# Values that are other than they seem

@pytest.mark.parametrize("write", [str, json.dumps, lambda texts: str(texts).replace(", ", ",\n ")])
def test_lists_written_as_text_are_lists(tmp_path, capsys, write):
    rows = [{"query": f"q{number}", "pos": write([f"it's {number}", f'or "{number}"'])} for number in range(3)]
    collection, _ = read(tmp_path / "pairs.jsonl", lines(*rows))
    assert judged(collection) == {f"q{number}": {f"it's {number}": 1, f'or "{number}"': 1} for number in range(3)}
    assert "lists written as text in 'pos' read as several texts" in capsys.readouterr().out


@pytest.mark.parametrize("first, other, problem", [
    ("['a', 'b']", "c", "'pos' is a plain text, but a list written as text in the first row"),
    ("c", '["a"]', "'pos' is a list written as text, but a plain text in the first row"),
    ("x", "nan", "'pos' is a missing value written as text"), ("x", "None", "'pos' is a missing value"),
    ("x", "null", "'pos' is a missing value"), ("x", "['a' 'b']", "a list without commas, as NumPy writes it"),
    ("x", {"text": "y"}, "'pos' must be a text or a list of texts"),
])
def test_values_of_another_kind_are_named(tmp_path, first, other, problem):
    rows = [{"query": "q0", "pos": first}, {"query": "q1", "pos": other}]
    with pytest.raises(UserError, match=rf"1 of 2 rows are broken \(line 2: {problem}"):
        read(tmp_path / "pairs.jsonl", lines(*rows))


def test_dictionaries_written_as_text_are_no_passages_but_code_is(tmp_path):
    with pytest.raises(UserError, match="line 1: 'pos' is a dictionary written as text"):
        read(tmp_path / "pairs.jsonl", lines({"query": "a", "pos": "{'text': ['x']}"}))
    texts = ["x", '{"a": 1}', "[1, 2]", "[sic] y"]
    collection, _ = read(tmp_path / "pairs.jsonl", lines(*({"query": text, "pos": f"{text} "} | {"pos": text}
                                                           for text in texts), *({"query": "all", "pos": text}
                                                                                 for text in texts)))
    assert set(judged(collection)["all"]) == set(texts)


def test_each_of_several_questions_is_a_query(tmp_path):
    collection, counts = read(tmp_path / "pairs.jsonl", lines(
        {"questions": ["a", "b"], "answer": "x", "id": 7}, {"questions": ["c"], "answer": "y", "id": 8}))
    assert collection.queries == {"7-1": "a", "7-2": "b", "8": "c"} and counts["rows read"] == 3
    assert judged(collection) == {"a": {"x": 1}, "b": {"x": 1}, "c": {"y": 1}}
    assert "each is a query" in str(counts.sources[0])


def test_lists_of_titles_texts_and_sources_are_not_shortened(tmp_path):
    (tmp_path / "more.jsonl").write_text(lines({"title": "T", "text": ["a", "b"]}, {"text": "c", "url": ["u", "v"]}))
    collection, _ = read(tmp_path / "pairs.jsonl", lines({"query": "q", "pos": "x"}),
                         corpus=str(tmp_path / "more.jsonl"))
    assert set(collection.corpus.values()) == {"T a", "T b", "c", "x"}
    assert collection.source == {passage_id("c"): "u, v"}
    for row, problem in (({"title": ["T", "U"], "text": "a"}, "several titles"),
                         ({"text": ["a", "b"], "id": 1}, "several texts with one id")):
        (tmp_path / "more.jsonl").write_text(lines(row))
        with pytest.raises(UserError, match=problem):
            read_pairs(at(tmp_path / "pairs.jsonl", corpus=str(tmp_path / "more.jsonl")))


@pytest.mark.parametrize("name", ["pairs.jsonl", "pairs.json"])
def test_a_column_may_first_occur_in_any_row(tmp_path, name, capsys):
    rows = [{"query": f"q{number}", "pos": f"p{number}"} for number in range(300)]
    rows[250] |= {"neg": "n", "id": "seven", "remark": "r"}

    def content(rows):
        return json.dumps(rows) if name.endswith(".json") else lines(*rows)

    for column in ("auto", "neg"):
        collection, counts = read(tmp_path / name, content(rows), negative_column=column)
        assert judged(collection)["q250"] == {"p250": 1, "n": 0} and collection.queries["seven"] == "q250"
        assert counts.sources[0].columns == {"query": "QUERY_COLUMN", "pos": "POSITIVE_COLUMN", "id": "ID_COLUMN",
                                             "neg": "NEGATIVE_COLUMN", "remark": ""}
    rows[260]["answer"] = "another"
    with pytest.raises(UserError, match="set POSITIVE_COLUMN to the right ones"):
        read(tmp_path / name, content(rows))
    with pytest.raises(UserError, match="NEGATIVE_COLUMN=none_such: .* has no such column"):
        read(tmp_path / name, content(rows), negative_column="none_such")


# The account

def test_rows_and_columns_are_accounted_for(tmp_path, capsys):
    rows = ["query,pos,remark", "a,x,1", "A,y,2", ",z,3", "b,,4", "c", "d,w,5", "d,d,6"]
    collection, counts = read(tmp_path / "pairs.csv", "\n".join(rows), max_bad_rows=0.5)
    assert counts == {
        "rows read": 7, "queries read": 2, "rows merged with an earlier row of the same query": 1,
        "rows without query or passage dropped": 1, "passages equal to their query dropped": 1,
        "rows skipped: no query": 1, "rows skipped: no relevant passage": 1,
        "rows skipped: 1 fields, but the first line has 3": 1, "queries with several positives": 1,
        "queries kept": 2, "passages kept": 3}
    assert counts.sources[0].skipped["no query"] == {"rows": 1, "first": ["line 4"]}
    out = capsys.readouterr().out
    assert "7 rows = 1 merged with an earlier row of the same query + 1 without query or passage dropped + 2 " in out
    assert ("pairs.csv: format CSV; encoding utf-8; delimiter comma (detected); quotes enclose fields; columns "
            "used: query (QUERY_COLUMN), pos (POSITIVE_COLUMN); not used: 'remark'\n") in out


# Headers as spreadsheets write them

@pytest.mark.parametrize("content", [
    "query,pos,,\na,x,,\nb,y,,\n", "query,pos,,\na,x\nb,y\n", "query,pos\na,x,,\nb,y,\n",
    "sep=;\r\nquery;pos\r\na;x\r\nb;y",
    "\n\nsep=|\nquery|pos\na|x\nb|y\n", ",query,pos\n0,a,x\n1,b,y\n", "query|pos\na|x\nb|y\n"])
def test_headers_of_spreadsheets(tmp_path, content):
    assert judged(read(tmp_path / "pairs.csv", content)[0]) == {"a": {"x": 1}, "b": {"y": 1}}


def test_text_behind_the_last_column_and_ids_with_blanks_are_named(tmp_path):
    with pytest.raises(UserError, match="line 2: 3 fields, but the first line has 2"):
        read(tmp_path / "pairs.csv", "query,pos,\na,x,more\n")
    with pytest.raises(UserError, match="line 2: the id 'FAQ 0' must be one word.* ID_COLUMN=none"):
        read(tmp_path / "pairs.csv", "id,query,pos\nFAQ 0,a,x\n")
    with pytest.raises(UserError, match="pairs.csv is not UTF-8 but probably gb"):
        read(tmp_path / "pairs.csv", ("问题,答案\n" + "网络配置需要管理员权限,请在控制面板中打开\n" * 9).encode("gbk"))


# JSON in its forms

ROWS = [{"query": "a", "pos": ["x"]}, {"query": "b", "pos": ["y"]}]
LLAMA = {"queries": {"1": "a", "2": "b"}, "corpus": {"n": "x", "m": "y"}, "relevant_docs": {"1": ["n"], "2": ["m"]}}


@pytest.mark.parametrize("content", [
    json.dumps(ROWS, indent=1), "\n".join(json.dumps(row, indent=1) for row in ROWS), ",\n".join(map(json.dumps, ROWS)),
    json.dumps({"data": ROWS, "version": 1}, indent=2), json.dumps({"rows": ROWS}), json.dumps(LLAMA),
], ids=lambda content: content[:30])
def test_json_that_has_rows_is_read(tmp_path, content):
    for name in ("pairs.json", "pairs.jsonl"):
        collection, _ = read(tmp_path / name, content)
        assert judged(collection) == {"a": {"x": 1}, "b": {"y": 1}}
        if "corpus" in content:
            assert collection.qrels == {"1": {"n": 1}, "2": {"m": 1}}


@pytest.mark.parametrize("content, message", [
    ('["a", "x"]\n["b", "y"]\n', "line 1: a list, not a JSON object"), ("{'query': 'a'}\n", "line 1: a dictionary of "),
    ('{"query": "a",}\n{"query": "b",}\n', "line 1: not valid JSON"),
    ('{"query": "问题", "pos": "答案"}\n'.encode("gb18030") * 9, "line 1: not UTF-8 but probably gb"),
    (b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n", "is a pointer of Git LFS, not the data: `git lfs "),
    (json.dumps({"train": ROWS, "test": ROWS}), r"several lists of rows \(train, test\)"),
    (json.dumps({"data": [{"paragraphs": 1}]}), "looks like a dataset of SQuAD or LlamaIndex, but is none"),
    (json.dumps(LLAMA | {"relevant_docs": {"1": ["k"], "2": ["m"]}}), "relevant_docs names 'k', which the corpus la"),
    ("[1, 2]", "line 1: a number, not a JSON object"), (json.dumps(ROWS) + "\nmore", "line 1: more text after the li"),
])
def test_json_without_rows_names_the_first_fault(tmp_path, content, message):
    with pytest.raises(UserError, match=message):
        read(tmp_path / "pairs.jsonl", content)


# Compression, several files, folders

def zipped(path, content, *more):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in ("../../pairs.jsonl", *more):
            archive.writestr(name, content)


def zstd(path, content):
    with pyarrow.output_stream(str(path), compression="zstd") as file:
        file.write(content)


PACKERS = {".gz": lambda path, content: path.write_bytes(gzip.compress(content[:9]) + gzip.compress(content[9:])),
           ".zst": zstd, ".zip": zipped}


@pytest.mark.parametrize("ending", PACKERS)
def test_compressed_tables(tmp_path, ending):
    rows = [{"query": f"query {number}", "pos": f"passage {number}"} for number in range(200)]
    path = tmp_path / f"pairs.jsonl{ending}"
    PACKERS[ending](path, lines(*rows).encode())
    collection, counts = read_pairs(at(path))
    assert len(collection.queries) == 200 and counts.sources[0].how["compression"] and "sha256" in source_of(at(path))
    whole = path.read_bytes()
    for end in (1, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:end])
        with pytest.raises(UserError, match="pairs.jsonl"):
            read_pairs(at(path))


def test_unpacking_is_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr("embedding_finetune.data.readers.files.MOST_UNPACKED", (2**20, 100))
    for ending, pack in PACKERS.items():
        pack(tmp_path / f"pairs.jsonl{ending}", lines(*ROWS).encode() + b" " * 2**24)
        with pytest.raises(UserError, match="unpacks to more than 100 times its size"):
            read_pairs(at(tmp_path / f"pairs.jsonl{ending}"))
    zipped(tmp_path / "two.zip", b"{}", "b.jsonl")
    with pytest.raises(UserError, match="two.zip holds 2 files"):
        read_pairs(at(tmp_path / "two.zip"))


def test_several_files_and_a_cloned_dataset(tmp_path):
    data = tmp_path / "set" / "data"
    data.mkdir(parents=True)
    for number in range(2):
        pyarrow.parquet.write_table(pyarrow.table({"query": [f"q{number}"], "pos": [f"p{number}"]} | (
            {"neg": ["n"]} if number else {})), data / f"train-{number:05}-of-00002.parquet")
    (tmp_path / "set" / "README.md").write_text("# A set\n\nIts card.")
    (tmp_path / "set" / ".gitattributes").write_text("*.parquet filter=lfs")
    files = sorted(data.iterdir())
    for name in (tmp_path / "set", f"{data}/*.parquet", ":".join(map(str, files))):
        collection, counts = read_pairs(at(name))
        assert judged(collection) == {"q0": {"p0": 1}, "q1": {"p1": 1, "n": 0}} and source_of(at(name))["sha256"]
        assert counts.sources[0].how["files"] == ", ".join(map(str, files))
    pyarrow.parquet.write_table(pyarrow.table({"query": ["t"], "pos": ["u"]}), data / "test-00000-of-00001.parquet")
    with pytest.raises(UserError, match="has the splits test, train in .*: set SPLIT to one"):
        read_pairs(at(tmp_path / "set"))
    assert list(judged(read_pairs(at(tmp_path / "set", split="test"))[0])) == ["t"]
    files[1].unlink()
    with pytest.raises(UserError, match="but data/train-00001-of-00002.parquet is missing"):
        read_pairs(at(tmp_path / "set", split="train"))
    (tmp_path / "set" / "README.md").write_text("---\nconfigs:\n- config_name: en\n- config_name: de\n---\n")
    with pytest.raises(UserError, match="has the configurations en, de in data/"):
        read_pairs(at(tmp_path / "set"))


def test_dataset_scripts_are_named(tmp_path):
    (tmp_path / "faq.py").write_text("class Faq(datasets.GeneratorBasedBuilder): pass")
    with pytest.raises(UserError, match="faq.py is a dataset script, which is never run"):
        read_pairs(at(tmp_path))


def test_an_excel_sheet(tmp_path):
    openpyxl = pytest.importorskip("openpyxl")
    book = openpyxl.Workbook()
    for row in (["id", "query", None, "pos", None], [1, "a", None, "x"], [2.0, "b", 7, "y\nz"], [], [3, "c", None, 5]):
        book.active.append(row)
    book.save(tmp_path / "pairs.xlsx")
    collection, counts = read_pairs(at(tmp_path / "pairs.xlsx", max_bad_rows=0.5))
    assert collection.queries == {"1": "a", "2": "b"} and judged(collection)["b"] == {"y\nz": 1}
    assert counts.sources[0].skipped == {"'pos' must be a text or a list of texts": {"rows": 1, "first": ["row 5"]}}
    book.create_sheet("other").append(["query"])
    book.save(tmp_path / "pairs.xlsx")
    with pytest.raises(UserError, match="has the sheets Sheet, other: save the one to read"):
        read_pairs(at(tmp_path / "pairs.xlsx"))
    for content in (b"", b"PK\3\4", (tmp_path / "pairs.xlsx").read_bytes()[:900]):
        with pytest.raises(UserError, match="cannot read .*pairs.xlsx"):
            read(tmp_path / "pairs.xlsx", content)
