"""Datasets with judgments: layouts, broken rows, and as DATASET: splits, ids and grades as given, without leaks."""

import dataclasses
import gzip
import json
import shutil
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from tiny import build, tiny_pairs
from tiny_training import changed_rows

from embedding_finetune.data.cleaning import has_test_queries_only, read_pairs
from embedding_finetune.data.collection import Collection, read_data, write_collection
from embedding_finetune.data.deduplication import clean
from embedding_finetune.data.leakage import check_leakage
from embedding_finetune.data.negatives import negative_candidates
from embedding_finetune.data.readers import Row
from embedding_finetune.data.readers.beir import is_beir, read_beir, read_beir_passages
from embedding_finetune.data.splits import assign_splits
from embedding_finetune.files import UserError, write_jsonl
from embedding_finetune.retrieval.bm25 import BM25

WORDS = "in the valley the {} rests at night among the reeds and wakes when the light changes{}"


def graded(folder, without=()):
    """40 train, 8 dev and 8 test queries, each with a passage of grade 2, one of grade 1 and one of grade 0.

    Test query 0 shares its best passage with train query 0, a train query is asked in dev, too; the train passage of
    query 1 says nearly what the test passage of query 1 says, and is twice in the corpus.
    """
    queries, corpus, qrels, parts = {}, {}, {}, {}
    for part, number in (("train", 40), ("dev", 8), ("test", 8)):
        for n in range(number):
            query = f"{part}/{n}"
            queries[query], parts[query] = f"what does {part} animal {n} do", part
            for grade in (2, 1, 0):
                corpus[f"{query}/{grade}"] = f"animal {part}{n} of grade {grade} does the {n * 7 + grade} of {part}"
            qrels[query] = {f"{query}/{grade}": grade for grade in (2, 1, 0)}
    qrels["test/0"]["train/0/2"] = 2
    queries["dev/3"] = queries["train/5"].upper()
    corpus["train/1/2"], corpus["test/1/2"] = WORDS.format("otter", ""), WORDS.format("otter", ", they say")
    corpus["train/1/1"] = corpus["train/1/2"]
    qrels["train/2"]["test/2/1"] = 0  # a train query's negative that answers a test query
    qrels["train/3"]["far"], corpus["far"] = 0, WORDS.format("otter", ", they say, and so they do")
    corpus["alone"] = "answers nothing"
    collection = Collection(queries, corpus, qrels, parts)
    write_collection(folder, collection)
    for part in without:
        (folder / "qrels" / f"{part}.tsv").unlink()
    return collection


def at(settings, folder, **more):
    return dataclasses.replace(settings, dataset=str(folder), **more)


def test_splits_ids_and_grades_stay_and_leaking_training_pairs_are_dropped(settings, tmp_path, capsys):
    """Train query 5 is asked in dev, and train query 0 has a positive of a test query; the other one of it stays."""
    whole = graded(tmp_path / "beir")
    settings = at(settings, tmp_path / "beir")
    collection = build(settings, labels=["neg10"])
    expected = {query: dict(judged) for query, judged in whole.qrels.items() if query != "train/5"}
    del expected["train/0"]["train/0/2"]
    assert collection.qrels == expected and collection.corpus == whole.corpus and collection.leaking == 0
    assert collection.queries == {query: text for query, text in whole.queries.items() if query in expected}
    assert collection.splits == {query: part for query, part in whole.splits.items() if query in expected}
    assert collection.predefined == ("dev", "test", "train") and read_data(settings) == collection
    said = capsys.readouterr().out
    assert ("3 of 80 training pairs leak: their query or passage is also in the dev or test split (queries train/0, "
            "train/5): dropped") in said
    assert "2 negatives that came with training queries are left out" in said
    assert check_leakage(settings, collection, ["training_neg_10.arrow"]).to_numpy().sum() == 0


def test_leaking_pairs_can_be_kept_or_stop_the_build(settings, tmp_path, capsys):
    whole = graded(tmp_path / "beir")
    settings = at(settings, tmp_path / "beir", leaking_rows="keep")
    collection = build(settings, labels=["neg10"])
    assert (collection.queries, collection.qrels, collection.splits) == (whole.queries, whole.qrels, whole.splits)
    assert collection.leaking == 3 and read_data(settings) == collection
    assert check_leakage(settings, collection, ["training_neg_10.arrow"])["positives"].tolist() == [0, 1]
    with pytest.raises(UserError, match="3 of 80 training pairs leak.*LEAKING_ROWS=drop leaves them out"):
        read_pairs(dataclasses.replace(settings, leaking_rows="stop"))
    with (tmp_path / "beir" / "qrels" / "train.tsv").open("a") as file:
        file.write("test/1\ttest/1/2\t1\n")
    with pytest.raises(UserError, match="1 judgments dropped, since their query is also .*: only LEAKING_ROWS=drop"):
        read_pairs(settings)


def test_no_negative_is_a_test_positive_or_nearly_one(settings, tmp_path):
    whole = graded(tmp_path / "beir")
    collection = build(at(settings, tmp_path / "beir", leaking_rows="keep"), labels=["neg10", "neg50"])
    held_out = {whole.corpus[passage] for query, part in whole.splits.items() if part != "train"
                for passage in whole.positives(query)}
    unsafe = held_out | {whole.corpus["train/1/2"], whole.corpus["far"]}
    for name in ("training_neg_10.json", "training_neg_50.json"):
        rows = [json.loads(line) for line in (settings.data_dir / name).read_text().splitlines()]
        assert len(rows) == 40
        for row in rows:
            assert not unsafe & set(row["neg"]) and not set(row["pos"]) & set(row["neg"])
            assert row["neg"][0] == whole.corpus[f"{row['id']}/0"] and len(set(row["neg"])) == len(row["neg"])
        assert rows[0]["pos"] == [whole.corpus["train/0/2"], whole.corpus["train/0/1"]]  # as its givers say
        assert rows[1]["pos"] == [whole.corpus["train/1/2"]]  # the same text under two ids
    pool = negative_candidates(collection)
    texts = pool.texts()
    given = {whole.corpus[f"train/{number}/0"] for number in range(40)}
    assert len(texts) == len(set(texts))
    assert set(texts[pool.num_eligible:]) - given == {whole.corpus["train/0/2"], whole.corpus["train/1/2"]}
    exact = negative_candidates(collection, near=False)
    assert exact.num_eligible == pool.num_eligible + 1
    assert whole.corpus["train/1/2"] in exact.texts()[:exact.num_eligible]


def test_the_audit_finds_a_negative_that_is_nearly_a_test_positive(settings, tmp_path):
    graded(tmp_path / "beir")
    settings = at(settings, tmp_path / "beir")
    collection = build(settings, labels=["neg10"])
    path = settings.data_dir / "training_neg_10.arrow"
    changed_rows(path, lambda rows: rows[7]["neg"].__setitem__(3, collection.corpus["far"]) or rows)
    with pytest.raises(UserError, match='"test", "queries": 0, "positives": 0, "negatives": 0, "near-dup[^,]*": 1'):
        check_leakage(settings, collection, [path.name])


@pytest.mark.parametrize("missing, kept", [(("dev",), ("test",)), (("test",), ("dev",)), (("dev", "test"), ())])
def test_a_part_that_is_missing_is_cut_from_train(settings, tmp_path, missing, kept):
    whole = graded(tmp_path / "beir", without=missing)
    collection = build(at(settings, tmp_path / "beir"), labels=["neg10"])
    for part in kept:
        assert collection.split(part).qrels == whole.split(part).qrels
    for part in missing:
        found = collection.split(part).queries
        assert found and all(query.startswith("train/") for query in found)
    again = {query: part for query, part in collection.splits.items() if query.startswith("train/")}
    assert set(again.values()) == {"train", *missing} and len(again) == 40 - ("dev" in kept)


@pytest.mark.parametrize("without, predefined", [(["train", "dev"], ("test",)), (["train"], ("dev", "test"))])
def test_a_set_without_training_judgements_has_test_and_dev_queries(settings, tmp_path, without, predefined):
    """Without dev queries, some of the test queries become dev queries, which select."""
    graded(tmp_path / "beir", without=without)
    assert has_test_queries_only(at(settings, tmp_path / "beir"))
    pairs, _ = read_pairs(at(settings, tmp_path / "beir"))
    assert pairs.predefined == predefined
    splits = assign_splits(pairs, test_fraction=0.2, dev_fraction=0.25, seed=1).splits
    assert set(splits) == set(pairs.queries) and set(splits.values()) == {"dev", "test"}
    if predefined == ("test",):
        assert list(splits.values()).count("dev") == round(0.25 * len(splits))


def test_a_set_with_dev_judgements_only_is_refused(settings, tmp_path):
    graded(tmp_path / "beir", without=["train", "test"])
    with pytest.raises(UserError, match="has neither qrels/train.tsv nor qrels/test.tsv with a positive"):
        read_pairs(at(settings, tmp_path / "beir"))


def test_max_queries_is_for_the_training_part_and_corpus_adds_to_the_corpus(settings, tmp_path):
    whole = graded(tmp_path / "beir")
    (tmp_path / "more.csv").write_text("id,text\nnew,a new one\nother,ANSWERS nothing\n")
    collection, counts = read_pairs(at(settings, tmp_path / "beir", max_queries=10, corpus=str(tmp_path / "more.csv")))
    assert len(collection.split("train").queries) == 10 and counts["train queries left out by MAX_QUERIES"] == 29
    assert [len(collection.split(part).queries) for part in ("dev", "test")] == [8, 8]
    assert collection.corpus == dict(sorted((whole.corpus | {"new": "a new one"}).items()))
    (tmp_path / "more.csv").write_text("id,text\nalone,another text\n")
    with pytest.raises(UserError, match="the id 'alone' names two passages, one of DATASET and one of CORPUS"):
        read_pairs(at(settings, tmp_path / "beir", corpus=str(tmp_path / "more.csv")))


def test_the_corpus_of_a_beir_set_joins_other_pairs(settings, tmp_path):
    whole = graded(tmp_path / "beir")
    collection, _ = read_pairs(dataclasses.replace(settings, corpus=str(tmp_path / "beir")))
    plain, _ = read_pairs(settings)
    assert collection.queries == plain.queries and collection.qrels == plain.qrels
    assert len(collection.corpus) == len(plain.corpus) + len(set(whole.corpus.values()))
    assert collection.corpus["alone"] == "answers nothing"


def test_our_own_split_with_the_users_negatives_is_clean(settings, tmp_path):
    """Each row's negative is the positive of another row, which may be in the test part."""
    rows = tiny_pairs(120)
    with (tmp_path / "pairs.jsonl").open("w") as file:
        for number, row in enumerate(rows):
            file.write(json.dumps({**row, "neg": rows[(number + 50) % 120]["pos"]}) + "\n")
    collection = build(at(settings, tmp_path / "pairs.jsonl"), labels=["neg10"])
    lost = [query for query in collection.split("train").queries for passage, grade in collection.qrels[query].items()
            if not grade and passage in set(collection.split("test").positive_pool()[0])]
    assert lost, "or nothing was to be left out"


def test_a_split_that_is_drawn_from_training_data_shares_no_text_whatever_its_ids(settings, tmp_path):
    """Every query and every passage of the training split is there twice, under two ids."""
    texts = {f"t{number}": f"query {number % 60}" for number in range(120)} | {"x": "query of the test split"}
    corpus = {f"p{number}": f"Passage {(number + 30) % 60}"[:12 + number % 2] for number in range(120)} | {"y": "z"}
    qrels = {f"t{number}": {f"p{number}": 1} for number in range(120)} | {"x": {"y": 1}}
    parts = dict.fromkeys(texts, "train") | {"x": "test"}
    write_collection(tmp_path / "beir", Collection(texts, corpus, qrels, parts))
    settings = at(settings, tmp_path / "beir", group_near_duplicates=False)
    collection = build(settings, labels=["neg10"])
    assert collection.split("dev").queries
    assert check_leakage(settings, collection, ["training_neg_10.arrow"]).to_numpy().sum() == 0


def numbered(folder, prefix):
    """60 queries, each answered by the passage of its number; ids are the numbers, of passages after a prefix."""
    pairs = [(str(number), f"{prefix}{number}") for number in range(100, 160)]
    queries = {query: f"what is item {query}" for query, _ in pairs}
    corpus = {passage: f"item {query}: what it is stands here" for query, passage in pairs}
    corpus |= {f"{prefix}99": queries["109"]}
    parts = {query: "train" if int(query) < 140 else "test" for query in queries}
    write_collection(folder, Collection(queries, corpus, {query: {passage: 1} for query, passage in pairs}, parts))
    found, _ = read_beir(folder, 0.05)
    return found, BM25().index(found.corpus).search(found.queries, copies=found.copies)


def test_equal_ids_of_queries_and_passages_mean_nothing(tmp_path):
    (plain, expected), (same, run) = numbered(tmp_path / "plain", "d"), numbered(tmp_path / "same", "")
    assert run == {query: {passage[1:]: score for passage, score in hits.items()} for query, hits in expected.items()}
    assert plain.copies == {"109": ["d99"]} and same.copies == {"109": ["99"]} and "d99" not in expected["109"]
    assert next(iter(expected["108"])) == "d108" and "d99" in expected["108"]


def test_copies_of_a_query_are_its_passages_with_its_text_but_not_its_positives(tmp_path):
    rows = [("q", "", "What  is\u200b it?"), ("b", "Title", "what is it?"), ("c", "", "it is"),
            ("d", "", "WHAT IS IT?")]
    write_jsonl(tmp_path / "corpus.jsonl", [{"_id": key, "title": title, "text": text} for key, title, text in rows])
    write_jsonl(tmp_path / "queries.jsonl", [{"_id": "q", "text": "what is it?"}, {"_id": "r", "text": "it is"}])
    (tmp_path / "qrels").mkdir()
    (tmp_path / "qrels" / "test.tsv").write_text("q\td\t1\nq\tc\t1\nr\tc\t0\nr\tb\t1\n")
    assert read_beir(tmp_path, 0)[0].copies == {"q": ["q", "b"], "r": ["c"]}
    collection, _ = clean([Row("a", ["b"], "1"), Row("b", ["a.", "c"], "2"), Row("c", ["a"], "3")],
                          clean([Row(None, ["C"], "2")])[0])
    assert {query: [collection.corpus[key] for key in own] for query, own in collection.copies.items()} == {
        "1": ["a"], "2": ["b"], "3": ["C"]}


def test_copies_come_from_corpus_as_well(settings, tmp_path):
    graded(tmp_path / "beir")
    (tmp_path / "more.csv").write_text("id,text\nnew,What does test animal 4 do\n")
    collection, counts = read_pairs(at(settings, tmp_path / "beir", corpus=str(tmp_path / "more.csv")))
    assert collection.copies == {"test/4": ["new"]}
    assert counts["passages with the text of a query, left out of its hits"] == 1


def beir(folder, qrels="query-id\tcorpus-id\tscore\n1\tb\t1\n1\ta\t0\n"):
    write_jsonl(folder / "corpus.jsonl", [{"_id": "a", "title": "A", "text": "first"}, {"_id": "b", "text": "second"},
                                          {"_id": 3, "title": None, "text": None, "source": "page 3"}])
    write_jsonl(folder / "queries.jsonl", [{"_id": 1, "text": "which?"}, {"_id": 2, "text": "what?"},
                                           {"_id": 3, "text": "\u200b"}])
    (folder / "qrels").mkdir(exist_ok=True)
    (folder / "qrels" / "test.tsv").write_text(qrels, encoding="utf-8")
    return folder


EXPECTED = Collection({"1": "which?"}, {"a": "A first", "b": "second", "3": ""}, {"1": {"b": 1, "a": 0}}, {"1": "test"},
                      {"3": "page 3"}, predefined=("test",))


def test_titles_stand_before_texts_and_queries_have_a_text_and_a_positive(tmp_path):
    found, counts = read_beir(beir(tmp_path, "1\tb\t1\n1\ta\t0\n2\ta\t0\n3\ta\t1\n"), 0)
    assert found == EXPECTED
    assert counts == {"queries read": 3, "queries without text or positive dropped": 2}
    assert [(row.positives, row.id, row.source) for row in read_beir_passages(tmp_path, 0, [])] == [
        (["A first"], "a", ""), (["second"], "b", ""), ([""], "3", "page 3")]


@pytest.mark.parametrize("qrels", [
    "1\tb\t1\n1\ta\t0\n\n", "qid\tpid\trelevance\r\n1\tb\t1\r\n1\ta\t0\r\n", "\ufeff1\tb\t1\n1\ta\t0\n",
    "\ufeffquery-id\tcorpus-id\tscore\n1\tb\t1.0\n\n1\ta\t-1\n  \n", "1 0 b 1\n1 Q0 a 0\n", "1\t0\tb\t1\n1\t0\ta\t0\n"])
def test_headers_blank_lines_byte_order_marks_and_trec_fields_cost_no_judgement(tmp_path, qrels):
    assert read_beir(beir(tmp_path, qrels), 0)[0] == EXPECTED


@pytest.mark.parametrize("line, reason", [
    ("1\tz\t1", "judges a passage that does not exist: 'z'"),
    ("9\tb\t1", "judges a query that does not exist: '9'"), ("1\tb\t0.5", "the grade is not a whole number: '0.5'"),
    ("1\tb\tnan", "the grade is not a whole number: 'nan'"), ("1\tb", "expected query-id, corpus-id and score")])
def test_few_broken_judgements_are_left_out_and_named_and_many_stop(tmp_path, capsys, line, reason):
    folder = beir(tmp_path, f"query-id\tcorpus-id\tscore\n1\tb\t1\n{line}\n1\ta\t0\n")
    assert read_beir(folder, 0.4)[0] == EXPECTED
    assert f"test.tsv: 1 of 3 rows are broken (line 3: {reason}" in capsys.readouterr().out
    with pytest.raises(UserError, match=f"line 3: {reason}.*MAX_BAD_ROWS allows a fraction of 0.3"):
        read_beir(folder, 0.3)


def test_the_higher_of_two_grades_counts_and_a_query_belongs_to_its_last_split(tmp_path, capsys):
    folder = beir(tmp_path, "1\tb\t1\n1\ta\t0\n1\tb\t0\n")
    (folder / "qrels" / "train.tsv").write_text("1\ta\t2\n2\ta\t1\n")
    (folder / "qrels" / "hard.tsv").write_text("1\ta\t2\n")
    found, counts = read_beir(folder, 0)
    assert found.qrels == {"1": {"b": 1, "a": 0}, "2": {"a": 1}} and found.splits == {"2": "train", "1": "test"}
    shared = "judgments dropped, since their query is also in a later split"
    repeated = "repeated judgments of a pair, of which the highest grade counts"
    assert counts == {"queries read": 3, "queries without text or positive dropped": 1, shared: 1, repeated: 1}
    said = capsys.readouterr().out
    assert f"1 {repeated}, 1 {shared}" in said and "not read: qrels/hard.tsv" in said


@pytest.mark.parametrize("row, reason", [
    ('{"_id": "c", "text": ["a", "b"]}', "its text is list, not text"), ('{"_id": "c"}', "has no `text`"),
    ('{"_id": "c", "title": 3, "text": ""}', "its title is int"), ('{"text": "c"}', "has no `_id`"),
    ('{"_id": null, "text": "c"}', "has no `_id`"), ('{"_id": true, "text": "c"}', "'_id' must be an id"),
    ('{"_id": "c", "text": "nan"}', "its text is a missing value written as text"),
    ('{"_id": "c", "text": "", "source": ["a"]}', "its source is list, not text"),
    ("[1]", "a list, not a JSON object"), ('"c"', "a text, not a JSON object"),
    ('{"_id": ', "not valid JSON"), ('{"_id": "b", "text": "second"}', "repeats a row with the same `_id`: 'b'")])
def test_broken_rows_are_left_out_and_named(tmp_path, capsys, row, reason):
    with (beir(tmp_path) / "corpus.jsonl").open("a") as file:
        file.write(f"\n{row}\n")
    assert read_beir(tmp_path, 0.25)[0] == EXPECTED
    assert f"corpus.jsonl: 1 of 4 rows are broken (line 5: {reason}" in capsys.readouterr().out
    with pytest.raises(UserError, match="corpus.jsonl: 1 of 4 rows are broken"):
        read_beir(tmp_path, 0.24)


def test_each_file_is_accounted_for(tmp_path):
    with (beir(tmp_path, "1\tb\t1\n1\ta\t0\n1\tz\t1\n") / "queries.jsonl").open("a") as file:
        file.write('{"_id": 4, "text": "why?", "metadata": {}}\n')
    sources = []
    read_beir(tmp_path, 0.5, sources)
    assert [(Path(source.name).name, source.rows, source.skipped) for source in sources] == [
        ("queries.jsonl", 4, {}), ("corpus.jsonl", 3, {}),
        ("test.tsv", 3, {"judges a passage that does not exist": {"rows": 1, "first": ["line 3"]}})]
    assert str(sources[0]).endswith("format JSON Lines; encoding utf-8; columns used: _id (id), text (text); not used: 'metadata'")
    assert str(sources[1]).endswith("columns used: _id (id), title (title), text (text), source (source)")


def test_an_id_of_two_texts_and_missing_files_are_named(tmp_path):
    with (beir(tmp_path) / "corpus.jsonl").open("a") as file:
        file.write('{"_id": "a", "text": "other"}\n')
    with pytest.raises(UserError, match="corpus has the `_id` 'a' twice, with different texts"):
        read_beir(tmp_path, 1)
    (tmp_path / "qrels" / "test.tsv").write_text("a\tb\tc\n")
    (beir(tmp_path) / "qrels" / "test.tsv").unlink()
    with pytest.raises(UserError, match="qrels has no judgements: it must hold test.tsv"):
        read_beir(tmp_path, 0)
    (tmp_path / "corpus.jsonl").unlink()
    with pytest.raises(UserError, match="corpus.jsonl does not exist"):
        read_beir(tmp_path, 0)


def test_a_compressed_corpus_is_read_and_files_of_another_kind_are_named(tmp_path):
    path = beir(tmp_path) / "corpus.jsonl"
    (tmp_path / "corpus.jsonl.gz").write_bytes(gzip.compress(path.read_bytes()))
    path.unlink()
    assert is_beir(tmp_path) and read_beir(tmp_path, 0)[0] == EXPECTED
    for content, message in (('{"_id": "a", "text": "问题与答案"}\n'.encode("gb18030") * 9, "not UTF-8 but probably gb"),
                             (b"version https://git-lfs.github.com/spec/v1\n", "is a pointer of Git LFS")):
        path.write_bytes(content)
        with pytest.raises(UserError, match=f"corpus.jsonl .*{message}"):
            read_beir(tmp_path, 0)


def mteb(folder, whole, place):
    """The layout of MTEB's datasets on the Hub, cloned: a folder for each configuration, with Parquet files."""
    def write(path, rows):
        path.parent.mkdir(parents=True, exist_ok=True)
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)

    rows = [{"_id": key, "title": "", "text": text} for key, text in whole.corpus.items()]
    write(folder / "corpus" / "corpus-00000-of-00002.parquet", rows[:50])
    write(folder / "corpus" / "corpus-00001-of-00002.parquet", rows[50:])
    write(folder / "queries" / "queries-00000-of-00001.parquet",
          [{"_id": key, "text": text} for key, text in whole.queries.items()])
    for part, name in (("train", "train"), ("dev", "validation"), ("test", "test")):
        write(folder / place / f"{name}-00000-of-00001.parquet",
              [{"query-id": query, "corpus-id": passage, "score": float(grade)} for query in whole.queries
               if whole.splits[query] == part for passage, grade in whole.qrels[query].items()])


@pytest.mark.parametrize("place", ["default", "data", "qrels"])
def test_the_layout_of_mteb_is_read(tmp_path, place):
    whole = graded(tmp_path / "beir")
    mteb(tmp_path / "mteb", whole, place)
    assert is_beir(tmp_path / "mteb") and not is_beir(tmp_path)
    found, _ = read_beir(tmp_path / "mteb", 0)
    assert found == dataclasses.replace(whole, predefined=("dev", "test", "train"))
    (tmp_path / "mteb" / place / "test-00000-of-00001.parquet").write_bytes(b"PAR1")
    with pytest.raises(UserError, match="cannot read .*test-00000-of-00001.parquet"):
        read_beir(tmp_path / "mteb", 0)


def test_trec_judgements_beside_csv_files_are_a_training_split(settings, tmp_path):
    pairs = tiny_pairs(80)
    for name, texts in (("queries.csv", [row["query"] for row in pairs]),
                        ("corpus.csv", [row["pos"][0] for row in pairs])):
        lines = [f'{number},"{text}"\n' for number, text in enumerate(texts)]
        (tmp_path / name).write_text("".join(["id,text\n", *lines]))
    (tmp_path / "qrels.txt").write_text("".join(f"{number} 0 {number} 1\n" for number in range(80)))
    collection = build(at(settings, tmp_path), labels=["neg10"])
    assert collection.predefined == ("train",) and set(collection.splits.values()) == {"train", "dev", "test"}
    assert all(collection.qrels[query] == {query: 1} for query in collection.queries)
    shutil.copy(tmp_path / "qrels.txt", tmp_path / "qrels.trec")
    assert read_beir(tmp_path, 0)[0].queries.keys() >= collection.queries.keys()
