import json

import numpy as np
import pytest
import torch
from tiny import tiny_pairs, tiny_texts
from transformers import BertConfig, BertForSequenceClassification, BertTokenizer

from embedding_finetune.embedder import Embedder
from embedding_finetune.experiment import Experiment
from embedding_finetune.files import ExperimentError, read_jsonl
from embedding_finetune.mining import mine
from embedding_finetune.pairs import load_pairs, passage_id
from embedding_finetune.split import split
from embedding_finetune.training_files import read_pairs, read_training_file, training_path, write_eval_files, write_pairs

SETTINGS = {"HARD_SOURCE": "both", "HARD_FILTER": "none", "HARD_NEGATIVES": "4", "HARD_DEPTH": "20", "TEACHER_TEMPERATURE": "0.5"}


def set_up(monkeypatch, **settings):
    """The experiment under these settings, with its data built."""
    for name, value in (SETTINGS | settings).items():
        monkeypatch.setenv(name, value)
    experiment = Experiment.load()
    if not experiment.data_dir.exists():
        pairs, _ = load_pairs(experiment)
        parts = split(pairs, test_fraction=0.2, dev_fraction=0.1, seed=1)
        write_pairs(experiment, pairs, parts)
        write_eval_files(experiment, pairs, parts)
    return experiment


def test_rows_have_mined_negatives_and_their_sources_add_up(experiment, monkeypatch):
    experiment = set_up(monkeypatch)
    sources = mine(experiment, "hard")
    rows = read_training_file(training_path(experiment, "hard"))
    assert sum(sources.values()) == pytest.approx(1) and set(sources) == {"bm25", "model", "bm25 and model", "random"}
    assert sources["random"] < 0.1
    assert all(len(row["neg"]) == 4 and not {*map(passage_id, row["pos"])} & {*map(passage_id, row["neg"])} for row in rows)
    assert len(rows) == sum(row["part"] == "train" for row in read_jsonl(experiment.data_dir / "pairs.jsonl"))


def test_bm25_alone_finds_passages_that_share_words_with_the_query(experiment, monkeypatch):
    experiment = set_up(monkeypatch, HARD_SOURCE="bm25")
    assert set(mine(experiment, "hard")) == {"bm25", "random"}
    for row in read_training_file(training_path(experiment, "hard"))[:20]:
        assert set(row["query"].lower().split()) & set(row["neg"][0].lower().split())


def test_the_same_seed_mines_the_same_file_and_a_second_time_takes_it_as_it_is(experiment, monkeypatch):
    experiment = set_up(monkeypatch)
    mine(experiment, "hard")
    path = training_path(experiment, "hard")
    content, made = path.read_bytes(), path.stat().st_mtime_ns
    mine(experiment, "hard_seed43")
    assert path.stat().st_mtime_ns == made
    path.write_bytes(content[:-1])  # cut short: not the file that was made
    mine(experiment, "hard")
    assert path.read_bytes() == content and path.stat().st_mtime_ns != made
    mine(set_up(monkeypatch, HARD_SOURCE="model"), "hard")
    assert path.read_bytes() != content


def test_nothing_of_the_test_and_dev_part_is_used(experiment, monkeypatch):
    """Other texts in the test and dev part, but the same training part: the same training file, byte for byte."""
    experiment = set_up(monkeypatch)
    mine(experiment, "hard_kd")
    before = training_path(experiment, "hard_kd").read_bytes()
    rows, parts = read_pairs(experiment)
    for row, part in zip(rows, parts):
        if part != "train":
            row |= {"query": "another " + row["query"], "pos": [f"quite another passage, {text}" for text in row["pos"]]}
    write_pairs(experiment, rows, parts)
    write_eval_files(experiment, rows, parts)
    training_path(experiment, "hard_kd").unlink()
    mine(experiment, "hard_kd")
    assert training_path(experiment, "hard_kd").read_bytes() == before


def test_a_leak_is_noticed_before_anything_is_trained(experiment, monkeypatch):
    experiment = set_up(monkeypatch)
    monkeypatch.setattr("embedding_finetune.mining.of_part", lambda pairs, parts, part: pairs)
    with pytest.raises(ExperimentError, match="training_hard.json is not clean, a count above 0 is a leak"):
        mine(experiment, "hard")


def test_the_teachers_scores_are_cosines_over_the_temperature(experiment, monkeypatch):
    experiment = set_up(monkeypatch)
    mine(experiment, "hard_kd")
    mine(experiment, "hard")
    row, plain = (read_training_file(training_path(experiment, label))[0] for label in ("hard_kd", "hard"))
    assert row["neg"] == plain["neg"]
    embedder = Embedder(experiment.model("reference"))
    cosines = embedder.encode_passages([*row["pos"], *row["neg"]]) @ embedder.encode_queries([row["query"]])[0]
    assert np.allclose([*row["pos_scores"], *row["neg_scores"]], cosines / 0.5, atol=1e-5)


@pytest.fixture(scope="module")
def reranker(tmp_path_factory):
    """A tiny cross-encoder with one score."""
    folder = tmp_path_factory.mktemp("reranker")
    words = {word for text in tiny_texts(tiny_pairs(120)) for word in text.lower().split()}
    tokenizer = BertTokenizer(vocab={piece: n for n, piece in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *sorted(words)])})
    torch.manual_seed(5)
    model = BertForSequenceClassification(BertConfig(vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=1, num_attention_heads=2,
                                                     intermediate_size=32, num_labels=1, initializer_range=0.5))
    tokenizer.save_pretrained(folder)
    model.eval().save_pretrained(folder)
    return folder, tokenizer, model


def test_a_reranker_can_be_the_teacher(experiment, monkeypatch, reranker):
    folder, tokenizer, model = reranker
    experiment = set_up(monkeypatch, TEACHER=str(folder))
    mine(experiment, "hard_kd")
    for row in read_training_file(training_path(experiment, "hard_kd"), teacher=True)[:3]:
        texts = [*row["pos"], *row["neg"]]
        with torch.no_grad():
            logits = model(**tokenizer([row["query"]] * len(texts), texts, padding=True, return_tensors="pt")).logits[:, 0]
        assert np.allclose([*row["pos_scores"], *row["neg_scores"]], logits.numpy() / 0.5, atol=1e-4)


def test_a_teacher_that_is_no_reranker_is_refused(experiment, monkeypatch):
    experiment = set_up(monkeypatch, TEACHER=experiment.base_model)
    with pytest.raises(ExperimentError, match="is no reranker that gives one score a pair"):
        mine(experiment, "hard_kd")


def test_the_second_round_mines_with_the_model_of_the_first(experiment, monkeypatch):
    experiment = set_up(monkeypatch)
    with pytest.raises(ExperimentError, match="hard_round2 mines with the model hard, which is not in .* run `bash finetune_hard.sh hard` first"):
        mine(experiment, "hard_round2")
    experiment.output_dir.mkdir(exist_ok=True)
    (experiment.output_dir / "hard").symlink_to(experiment.base_model)
    mine(experiment, "hard_round2")
    record = json.loads((experiment.data_dir / "mining_hard_round2.json").read_text())
    assert "model.safetensors" in record["made_with"]["model"]
