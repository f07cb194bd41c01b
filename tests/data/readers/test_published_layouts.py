"""Small files of the form of ten published datasets, as DATASET: which pairs, negatives and splits they give."""

import dataclasses
import json

import pyarrow
import pyarrow.parquet
import pytest

from embedding_finetune.data.cleaning import read_pairs
from embedding_finetune.files import UserError
from embedding_finetune.settings import Settings


def lines(*rows):
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def parquet(*rows):
    sink = pyarrow.BufferOutputStream()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(list(rows)), sink)
    return sink.getvalue().to_pybytes()


def read(folder, files, name="", **given):
    """The collection of `files` (name -> content) in a folder, with the texts in place of the ids; and the counts."""
    for path, content in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(content if isinstance(content, bytes) else content.encode())
    settings = dataclasses.replace(Settings.load("demo"), max_queries=0, dataset=str(folder / name), **given)
    collection, counts = read_pairs(settings)
    return {collection.queries[query]: {collection.corpus[passage]: grade for passage, grade in judged.items()}
            for query, judged in collection.qrels.items()}, collection, counts


SQUAD = [{"id": identity, "title": "Otter", "context": "Otters rest at night. They eat fish.", "question": question,
          "answers": {"text": answers, "answer_start": [12] * len(answers)}} for identity, question, answers in (
              ("56a", "When do they rest?", ["at night"]), ("56b", "What do they eat?", ["fish", "fish"]),
              ("56c", "Do they sing?", []))]
NESTED = {"version": "v2.0", "data": [{"title": "Otter", "paragraphs": [{"context": SQUAD[0]["context"], "qas": [
    {"id": row["id"], "question": row["question"], "is_impossible": not row["answers"]["text"],
     "answers": [{"text": text, "answer_start": 0} for text in row["answers"]["text"]]} for row in SQUAD]}]}]}
ANSWERED = {row["question"]: {row["context"]: 1} for row in SQUAD[:2]}
PAIRS = {"when do otters rest?": {"Otters rest at night.": 1}, "what do owls eat?": {"Owls eat mice, \"always\".": 1}}
(OTTER, NIGHT), (OWL, MICE) = ((query, *judged) for query, judged in PAIRS.items())
WITH_NEGATIVES = {OTTER: {NIGHT: 1, "Owls sleep by day.": 0}, OWL: {MICE: 1, "Owls fly.": 0}}
LLAMA_INDEX = {"queries": {"a1": OTTER, "a2": OWL}, "corpus": {"node-1": NIGHT, "node-2": MICE},
               "relevant_docs": {"a1": ["node-1"], "a2": ["node-2"]}, "mode": "text"}
LAYOUTS = {
    "MS MARCO triples": (WITH_NEGATIVES, "triples.train.small.tsv", "".join(
        f"{query}\t{passage}\t{other}\n" for query, (passage, other) in WITH_NEGATIVES.items()),
        {"query_column": "1", "positive_column": "2", "negative_column": "3"}),
    "SQuAD, nested": (ANSWERED, "train-v2.0.json", json.dumps(NESTED), {}),
    "SQuAD, nested and indented": (ANSWERED, "train-v2.0.json", json.dumps(NESTED, indent=1), {}),
    "SQuAD, as on the Hub": (ANSWERED, "train-00000-of-00001.parquet", parquet(*SQUAD), {}),
    "SQuAD, as on the Hub, exported as JSON": (ANSWERED, "squad.jsonl", lines(*SQUAD), {}),
    "FlagEmbedding with scores": (WITH_NEGATIVES, "toy_finetune_data.jsonl", lines(*(
        {"query": query, "pos": [passage], "neg": [other], "pos_scores": [0.9], "neg_scores": [0.1], "prompt": "p",
         "type": "normal"} for query, (passage, other) in WITH_NEGATIVES.items())), {}),
    "sentence-transformers triplets": (WITH_NEGATIVES, "triplets.jsonl", lines(*(
        {"anchor": query, "positive": passage, "negative": other}
        for query, (passage, other) in WITH_NEGATIVES.items())), {}),
    "sentence-transformers scored pairs": (WITH_NEGATIVES, "pairs.csv", "sentence1,sentence2,score\n" + "".join(
        '"{}","{}",{}\n'.format(query, passage.replace('"', '""'), 0.5 + grade / 4)
        for query, judged in WITH_NEGATIVES.items() for passage, grade in judged.items()),
        {"label_column": "score>=0.75"}),
    "LlamaIndex": (PAIRS, "qa_finetune_train_dataset.json", json.dumps(LLAMA_INDEX, indent=4), {}),
    "an FAQ of a spreadsheet": (PAIRS, "faq.csv", '\ufeffNr;Question;Answer;;\r\n1;when do otters rest?;"Otters rest at '
                                'night.";;\r\n;;;;\r\n2;what do owls eat?;"Owls eat mice, ""always"".";;\r\n', {}),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_published_layout_is_read(tmp_path, layout):
    wanted, name, content, given = LAYOUTS[layout]
    found, collection, counts = read(tmp_path, {name: content}, name, **given)
    assert found == wanted
    assert counts.sources[0].skipped == {}
    if layout.startswith("SQuAD, nested"):
        assert set(collection.source.values()) == {"Otter"}
    if layout.startswith("SQuAD"):
        assert list(collection.queries) == ["56a", "56b"] and counts["rows of queries without a positive dropped"] == 1


def test_answers_that_occur_in_their_context_are_no_passages(tmp_path, capsys):
    """What is searched is the context. A setting goes first; where answers are texts of their own, one is needed."""
    rows = [{"question": "a", "context": "x y z", "answer": "y"}, {"question": "b", "context": "z", "answer": None}]
    assert read(tmp_path, {"qa.jsonl": lines(*rows)}, "qa.jsonl")[0] == {"a": {"x y z": 1}}
    assert "QUERY_COLUMN=question; POSITIVE_COLUMN=context; LABEL_COLUMN=answer\n" in capsys.readouterr().out
    for given, wanted in (({"positive_column": "answer", "max_bad_rows": 0.5}, {"a": {"y": 1}}),
                          ({"label_column": "none"}, {"a": {"x y z": 1}, "b": {"z": 1}})):
        assert read(tmp_path, {}, "qa.jsonl", **given)[0] == wanted
    for answer in ("of its own", "{'text': array(['y']), 'answer_start': array([0])}", None):
        with pytest.raises(UserError, match="has the columns 'question', 'context', 'answer': set POSITIVE_COLUMN"):
            read(tmp_path, {"qa.jsonl": lines(rows[0] | {"answer": answer}, rows[1])}, "qa.jsonl")


def test_beir_with_a_dangling_judgment_and_a_blank_last_line(tmp_path):
    files = {"corpus.jsonl": lines(*({"_id": str(number), "title": "", "text": text, "metadata": {}}
                                     for number, text in enumerate([NIGHT, MICE]))) + "\n",
             "queries.jsonl": lines(*({"_id": str(number), "text": text, "metadata": {}}
                                      for number, text in enumerate(PAIRS))) + "\n",
             "qrels/train.tsv": "query-id\tcorpus-id\tscore\n0\t0\t1\n\n", "qrels/test.tsv":
             "query-id\tcorpus-id\tscore\n1\t1\t1\n1\tPLAIN-9\t1\n\n"}
    found, collection, counts = read(tmp_path, files, max_bad_rows=0.5)
    assert found == PAIRS and collection.splits == {"0": "train", "1": "test"} and collection.copies == {}
    assert [source.skipped for source in counts.sources if source.skipped] == [
        {"judges a passage that does not exist": {"rows": 1, "first": ["line 3"]}}]


def test_markdown_with_pasted_images(tmp_path):
    image = "![a plan](data:image/png;base64," + "iVBORw0KGgoAAAANSUhEUgAA" * 300 + ")"
    files = {"guide/install.md": f"# Otters\n\n## Where they rest\n\n{NIGHT} In the reeds, by the river.\n\n{image}\n",
             "guide/plan.png": b"\x89PNG"}
    _, collection, _ = read(tmp_path, files, base_model="bundled")
    assert list(collection.corpus.values()) == [
        f"Otters > Where they rest\n{NIGHT} In the reeds, by the river.\n\n![a plan]()"]
