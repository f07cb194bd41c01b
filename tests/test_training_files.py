import dataclasses
import json

import pytest

from embedding_finetune import training_files
from embedding_finetune.files import ExperimentError, read_jsonl, write_jsonl
from embedding_finetune.pairs import load_pairs, passage_id
from embedding_finetune.split import split
from embedding_finetune.training_files import (TestSet, audit, of_part, read_beir, read_dev_set, read_pairs, read_test_set, read_training_file,
                                               training_path, write_eval_files, write_pairs, write_training_file)


@pytest.fixture
def data(experiment):
    """The experiment's data as the build notebooks write it."""
    pairs, _ = load_pairs(experiment)
    parts = split(pairs, test_fraction=experiment.test_fraction, dev_fraction=experiment.dev_fraction, seed=experiment.seed)
    write_pairs(experiment, pairs, parts)
    for number in training_files.NEGATIVES:
        write_training_file(experiment, pairs, parts, number)
    write_eval_files(experiment, pairs, parts)
    return experiment


def test_training_rows_have_what_flagembedding_reads(data):
    pairs, parts = read_pairs(data)
    train = {pair["id"]: pair for pair in of_part(pairs, parts, "train")}
    pool = {text for pair in train.values() for text in pair["pos"]}
    for number in (10, 50):
        rows = read_training_file(training_path(data, f"neg{number}"))
        assert {row["id"] for row in rows} == set(train)
        for row in rows:
            assert row["pos"] == train[row["id"]]["pos"] and row["prompt"] == data.query_instruction
            assert len(set(row["neg"])) == number and set(row["neg"]) <= pool - set(row["pos"])


def test_the_test_set_is_the_test_part_and_the_corpus_everything(data):
    pairs, parts = read_pairs(data)
    test_set = read_test_set(data)
    assert test_set.queries == {pair["id"]: pair["query"] for pair in of_part(pairs, parts, "test")}
    assert test_set.corpus == {passage_id(text): text for pair in pairs for text in pair["pos"]}
    assert list(test_set.corpus) == sorted(test_set.corpus)
    assert test_set.qrels == {pair["id"]: {passage_id(text): 1 for text in pair["pos"]} for pair in of_part(pairs, parts, "test")}
    assert any(len(judged) > 1 for judged in test_set.qrels.values()), "a query with two positives must be in the test part"


def test_the_dev_set_is_the_dev_part_on_the_same_corpus(data):
    pairs, parts = read_pairs(data)
    dev_set = read_dev_set(data)
    assert dev_set.queries == {pair["id"]: pair["query"] for pair in of_part(pairs, parts, "dev")}
    assert dev_set.corpus == read_test_set(data).corpus and not set(dev_set.queries) & set(read_test_set(data).queries)
    assert dev_set.qrels == {pair["id"]: {passage_id(text): 1 for text in pair["pos"]} for pair in of_part(pairs, parts, "dev")}


def test_the_same_settings_give_the_same_bytes(data):
    before = {path.name: path.read_bytes() for path in data.data_dir.iterdir()}
    pairs, parts = read_pairs(data)
    write_pairs(data, pairs, parts)
    write_training_file(data, pairs, parts, 10)
    write_eval_files(data, pairs, parts)
    assert before == {path.name: path.read_bytes() for path in data.data_dir.iterdir()}


def test_the_audit_finds_nothing_in_clean_files(data):
    assert audit(data).to_numpy().sum() == 0 and len(audit(data)) == 4


@pytest.mark.parametrize("leak", ["query", "pos", "neg", "own positive", "repeated"])
def test_the_audit_finds_each_kind_of_leak(data, leak):
    path = training_path(data, "neg10")
    rows, test = read_jsonl(path), read_jsonl(data.data_dir / "eval_dataset.json")[0]
    row = rows[3]
    if leak == "query":
        row["query"] = test["query"].upper()
    elif leak == "pos":
        row["pos"].append(f" {test['pos'][0]}\n")
    else:
        row["neg"][0] = {"neg": test["pos"][0], "own positive": row["pos"][0], "repeated": row["neg"][1]}[leak]
    write_jsonl(path, rows)
    with pytest.raises(ExperimentError, match="not clean"):
        audit(data)


@pytest.mark.parametrize("change, message", [
    ({"neg": []}, "row 2: 'neg' must be a list of at least one text"),
    ({"pos": []}, "row 2: 'pos' must be a list of at least one text"),
    ({"neg": ["a", None]}, "row 2: 'neg' must be"),
])
def test_a_row_that_cannot_be_trained_on_is_named(tmp_path, change, message):
    row = {"query": "a", "pos": ["x"], "neg": ["y"]}
    write_jsonl(tmp_path / "training.json", [row, {**row, **change}])
    with pytest.raises(ExperimentError, match=message):
        read_training_file(tmp_path / "training.json")


def test_data_of_other_settings_is_neither_overwritten_nor_read(data, monkeypatch):
    other = dataclasses.replace(data, seed=7)
    pairs, parts = read_pairs(data)
    with pytest.raises(ExperimentError, match="holds the data of other settings .SEED=42, now 7."):
        write_pairs(other, pairs, parts)
    with pytest.raises(ExperimentError, match="was made with other settings .SEED=42, now 7.: run build_train_dataset.ipynb again"):
        read_test_set(other)
    monkeypatch.setenv("OVERWRITE", "1")
    write_pairs(other, pairs, parts)
    assert json.loads((data.data_dir / "dataset.json").read_text())["SEED"] == 7


def test_files_that_do_not_belong_together_are_refused(data):
    rows = read_jsonl(data.data_dir / "corpus.jsonl")
    judged = next(iter(next(iter(read_test_set(data).qrels.values()))))
    write_jsonl(data.data_dir / "corpus.jsonl", [row for row in rows if row["id"] != judged])
    with pytest.raises(ExperimentError, match="do not belong together: run build_eval_dataset.ipynb again"):
        read_test_set(data)


def test_the_corpus_grows_from_the_positives_to_everything():
    whole = TestSet({"q": "query"}, {f"p{number}": f"passage {number}" for number in range(9)}, {"q": {"p8": 1}})
    subsets = list(whole.subsets(steps=3))
    assert [list(subset.corpus) for subset, _ in subsets] == [["p8"], ["p0", "p1", "p2", "p3", "p8"], list(whole.corpus)]
    assert [positions for _, positions in subsets][1] == [0, 1, 2, 3, 8] and all(subset.qrels == whole.qrels for subset, _ in subsets)


def test_distractors_enter_the_corpus_and_nothing_else(data, tmp_path):
    """Passages that are there already are no distractors; of the others a sample is taken."""
    known = read_test_set(data)
    rows = [{"text": text.upper()} for text in known.corpus.values()] + [{"text": f"distractor {number}"} for number in range(50)]
    write_jsonl(tmp_path / "more.jsonl", rows)
    experiment = dataclasses.replace(data, distractors=str(tmp_path / "more.jsonl"), max_distractors=20, data_dir=tmp_path / "other")
    pairs, parts = read_pairs(data)
    write_pairs(experiment, pairs, parts)
    write_eval_files(experiment, pairs, parts)
    harder = read_test_set(experiment)
    added = {passage: text for passage, text in harder.corpus.items() if passage not in known.corpus}
    assert len(added) == 20 and all(text.startswith("distractor ") and passage_id(text) == passage for passage, text in added.items())
    assert harder.qrels == known.qrels and known.corpus.items() <= harder.corpus.items()


def beir(folder, qrels="query-id\tcorpus-id\tscore\n1\tb\t1\n1\ta\t0\n"):
    write_jsonl(folder / "corpus.jsonl", [{"_id": "a", "title": "A", "text": "first"}, {"_id": "b", "text": "second"}])
    write_jsonl(folder / "queries.jsonl", [{"_id": 1, "text": "which?"}, {"_id": 2, "text": "not judged"}])
    (folder / "qrels").mkdir()
    (folder / "qrels" / "test.tsv").write_text(qrels)
    return str(folder)


def test_a_set_in_beirs_layout_is_read(tmp_path):
    assert read_beir(beir(tmp_path)) == TestSet({"1": "which?"}, {"a": "A first", "b": "second"}, {"1": {"b": 1}})


@pytest.mark.parametrize("qrels, message", [
    ("head\n1 b 1\n", "test.tsv, line 2: expected query-id, corpus-id and score"),
    ("head\n1\tz\t1\n", "judges queries or passages that .* does not have"),
])
def test_a_broken_beir_set_is_named(tmp_path, qrels, message):
    with pytest.raises(ExperimentError, match=message):
        read_beir(beir(tmp_path, qrels))


def test_missing_files_say_who_makes_them(experiment):
    with pytest.raises(ExperimentError, match="pairs.jsonl does not exist: it is made by build_train_dataset.ipynb"):
        read_test_set(experiment)
