"""A set in BEIR's layout as DATASET: parts, ids and grades as given, and no negative that gives the test away."""

import dataclasses
import json

import pytest
from tiny import build, tiny_pairs
from tiny_training import changed_rows

from embedding_finetune.data.cleaning import read_pairs
from embedding_finetune.data.collection import Collection, read_data, write_collection
from embedding_finetune.data.leakage import check_leakage
from embedding_finetune.data.negatives import negative_candidates
from embedding_finetune.files import UserError

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


def test_parts_ids_and_grades_stay_and_what_crosses_is_said(settings, tmp_path, capsys):
    whole = graded(tmp_path / "beir")
    settings = at(settings, tmp_path / "beir")
    collection = build(settings, labels=["neg10"])
    assert (collection.queries, collection.qrels, collection.splits) == (whole.queries, whole.qrels, whole.splits)
    assert collection.corpus == whole.corpus and collection.predefined == ("dev", "test", "train")
    assert read_data(settings) == collection
    said = capsys.readouterr().out
    assert ("beir: 1 dev and test queries that are also train queries, 1 dev and test positives that are also train "
            "positives") in said
    assert "2 negatives that came with training queries are left out" in said
    assert check_leakage(settings, collection, ["training_neg_10.arrow"])["positives"].tolist() == [0, 1]


def test_no_negative_is_a_test_positive_or_nearly_one(settings, tmp_path):
    whole = graded(tmp_path / "beir")
    collection = build(at(settings, tmp_path / "beir"), labels=["neg10", "neg50"])
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
    collection = build(at(settings, tmp_path / "beir"), labels=["neg10"])
    path = settings.data_dir / "training_neg_10.arrow"
    changed_rows(path, lambda rows: rows[7]["neg"].__setitem__(3, collection.corpus["far"]) or rows)
    with pytest.raises(UserError, match='"test", "queries": 0, "positives": 1, "negatives": 0, "near-dup.*": 1'):
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
    assert set(again.values()) == {"train", *missing} and len(again) == 40


def test_a_set_without_training_judgements_is_for_out_of_domain_sets(settings, tmp_path):
    graded(tmp_path / "beir", without=["train"])
    message = "no qrels/train.tsv, so there is nothing to train on; OUT_OF_DOMAIN_SETS=.*beir evaluates on it"
    with pytest.raises(UserError, match=message):
        read_pairs(at(settings, tmp_path / "beir"))


def test_max_queries_is_for_the_training_part_and_corpus_adds_to_the_corpus(settings, tmp_path):
    whole = graded(tmp_path / "beir")
    (tmp_path / "more.csv").write_text("id,text\nnew,a new one\nother,ANSWERS nothing\n")
    collection, counts = read_pairs(at(settings, tmp_path / "beir", max_queries=10, corpus=str(tmp_path / "more.csv")))
    assert len(collection.split("train").queries) == 10 and counts["train queries left out by MAX_QUERIES"] == 30
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
