"""Twelve data sets as people have them, each all the way: read, split, train a tiny model, evaluate, search with it."""

import csv
import dataclasses
import json
from pathlib import Path

import pandas as pd
import pyarrow
import pyarrow.parquet
import pytest
from finished import evaluate
from tiny import build, tiny_bert, tiny_pairs

from embedding_finetune.evaluation.results import compare, read_measured_run
from embedding_finetune.serving.index import open_index
from embedding_finetune.training.train import finetune

pytestmark = pytest.mark.usefixtures("unchecked")

QUESTIONS = Path(__file__).parent / "questions"
ROWS = tiny_pairs(100)


def questions(language):
    return [json.loads(line) for line in (QUESTIONS / f"{language}.jsonl").read_text(encoding="utf-8").splitlines()]


def table(path, rows, separator=",", broken=0, **writing):
    """A table of one answer a line, its columns named as people name them; `broken` lines have a field too many."""
    with open(path, "w", newline="", **{"encoding": "utf-8"} | writing) as file:
        writer = csv.writer(file, delimiter=separator)
        writer.writerow(["Nr", "Question", "Answer"])
        writer.writerows([number, row["query"], text] for number, row in enumerate(rows) for text in row["pos"][:1])
        writer.writerows([["x", "a", "b", "one field too many"]] * broken)
    return {"dataset": path, "query_column": "Question", "positive_column": "Answer"}


def lines(path, rows):
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return {"dataset": path}


def parquet(path, rows, **columns):
    pyarrow.parquet.write_table(pyarrow.table(columns or {
        "anchor": [row["query"] for row in rows], "positives": [row["pos"] for row in rows],
        "negatives": [[rows[number - 9]["pos"][0]] for number in range(len(rows))]}), path)
    return {"dataset": path, "query_column": "anchor", "positive_column": "positives", "negative_column": "negatives"}


def beir(folder, rows):
    """A set with parts of its own, and grades 2, 1 and 0."""
    (folder / "qrels").mkdir(parents=True)
    lines(folder / "corpus.jsonl", [{"_id": f"d{number}", "title": f"Title {number}", "text": row["pos"][0]}
                                    for number, row in enumerate(rows)])
    lines(folder / "queries.jsonl", [{"_id": f"q{number}", "text": row["query"]} for number, row in enumerate(rows)])
    for part, numbers in (("train", range(70)), ("dev", range(70, 80)), ("test", range(80, len(rows)))):
        judged = [f"q{number}\td{(number + step) % len(rows)}\t{2 - step}\n" for number in numbers for step in range(3)]
        (folder / "qrels" / f"{part}.tsv").write_text("query-id\tcorpus-id\tscore\n" + "".join(judged))
    return {"dataset": folder}


def documents(folder):
    folder.mkdir()
    for number, row in enumerate(ROWS[:60]):
        words = row["pos"][0].split()
        text = f"# Animals of place {number}\n\n## {row['query']}\n\n{' '.join(words)}\n\n## Plants there\n\n"
        (folder / f"page {number}.md").write_text(text + " ".join(reversed(words)) + "\n", encoding="utf-8")
    return {"dataset": folder}


def with_corpus(folder, rows):
    corpus = folder / "corpus.parquet"
    parquet(corpus, rows, id=[f"doc-{number}" for number in range(len(rows))], text=[row["pos"][0] for row in rows])
    return table(folder / "faq.csv", rows[:70]) | {"corpus": corpus}


UNIQUE = [row for number, row in enumerate(tiny_pairs(150)) if number % 10 not in (5, 7, 9)]
INPUTS = {
    "JSONL with ids and lists": lambda at: lines(at / "pairs.jsonl", tiny_pairs(120)),
    "JSON, one list": lambda at: (at / "pairs.json").write_text(json.dumps(ROWS)) and {"dataset": at / "pairs.json"},
    "100 pairs": lambda at: lines(at / "few.jsonl", UNIQUE[:100]),
    "CSV with a mark and Windows lines": lambda at: table(at / "faq.csv", UNIQUE, encoding="utf-8-sig"),
    "CSV with 5 broken rows": lambda at: table(at / "faq.csv", tiny_pairs(120), broken=5),
    "TSV": lambda at: table(at / "faq.tsv", UNIQUE, "\t"),
    "Parquet with negatives": lambda at: parquet(at / "pairs.parquet", UNIQUE),
    "Chinese CSV": lambda at: table(at / "问答 集.csv", questions("zh")),
    "Arabic JSONL": lambda at: lines(at / "ar.jsonl", questions("ar")),
    "documents": lambda at: documents(at / "pages"),
    "BEIR with grades": lambda at: beir(at / "set", UNIQUE[:100]),
    "CSV and a corpus with ids": lambda at: with_corpus(at, UNIQUE[:100]),
}


@pytest.mark.parametrize("name", INPUTS)
def test_from_the_data_to_an_answer(name, settings, tmp_path, monkeypatch):
    given = INPUTS[name](tmp_path)
    texts = [text for row in (*UNIQUE, *questions("zh"), *questions("ar")) for text in (row["query"], *row["pos"])]
    given |= {"base_model": str(tiny_bert(tmp_path / "model", texts)), "epochs": 1.0}
    for key, value in given.items():
        monkeypatch.setenv(key.upper(), str(value))
    settings = dataclasses.replace(settings.load(), max_queries=0)
    monkeypatch.setenv("MAX_QUERIES", "0")

    collection = build(settings, labels=["neg10"])
    finetune(settings, "neg10", one_process=True)
    evaluate(settings, "bm25", "neg10")
    rows, left_out = compare(settings, collection)
    assert [row["label"] for row in rows] == ["bm25", "neg10", "hybrid_neg10"] and not left_out
    assert pd.Series(rows[0]["metrics"]).between(0, 1).all() and rows[0]["metrics"]["recall@10"] > 0.3

    test = collection.split("test")
    query, text = next(iter(test.queries.items()))
    hits = open_index(settings, "neg10").answer([text], 5)[0]
    assert [hit["rank"] for hit in hits] == [1, 2, 3, 4, 5]
    measured = list(read_measured_run(settings, collection, "neg10")[query].values())
    assert [hit["score"] for hit in hits] == pytest.approx(measured[:5], abs=1e-4)
    if name == "BEIR with grades":
        assert set(collection.splits.values()) == {"train", "dev", "test"} and hits[0]["id"].startswith("d")
        assert sorted(set(collection.qrels[query].values())) == [0, 1, 2]
    if name == "CSV and a corpus with ids":
        assert all(hit["id"].startswith("doc-") for hit in hits) and len(collection.corpus) == 100
    if name == "documents":
        assert hits[0]["source"].startswith("page ")
