"""Lengths in training that follow the data: their size, their limits, and where the model keeps its own."""

import dataclasses
from types import SimpleNamespace

import pytest
from tiny import tiny_bert, tiny_pairs, tiny_texts
from tiny_training import dev, prepared, rows_of
from transformers import AutoTokenizer

from embedding_finetune.data.collection import Collection, read_collection, read_data
from embedding_finetune.files import UserError, write_json
from embedding_finetune.models.encoder_config import base_encoder_config, load_encoder_config
from embedding_finetune.recipes import find_recipe
from embedding_finetune.training.arguments import read_settings, stock_flags, training_arguments
from embedding_finetune.training.lengths import activation_bytes, affordable_length, fitting_length, resolve_lengths
from embedding_finetune.training.provenance import same_training, training_record
from embedding_finetune.training.train import prepare, training_settings
from embedding_finetune.training.worker import make_trainer

AUTO = {"query_max_len": "auto", "passage_max_len": "auto"}


@pytest.fixture
def automatic(built):
    """The tiny experiment with automatic lengths; its model reads 512 tokens."""
    return dataclasses.replace(built, **AUTO)


def words(*counts):
    """Texts of as many one-letter words, each of which is a token; [CLS] and [SEP] are two more."""
    return [" ".join("a" * count) for count in counts]


@pytest.mark.parametrize("sizes, limit, expected", [
    ([*range(1, 100), 400], 512, 104),  # 95 of 100 texts have at most 95 + 2 tokens
    ([6] * 19 + [500], 512, 8), ([7] * 19 + [500], 512, 16), ([60] * 20, 50, 50), ([300], 512, 304)])
def test_a_length_fits_95_percent_of_the_texts_and_is_a_multiple_of_8(settings, sizes, limit, expected):
    assert fitting_length(base_encoder_config(settings), words(*sizes), limit) == expected


def test_the_texts_are_those_of_the_training_split_with_their_prompts(automatic, capsys):
    config = dataclasses.replace(base_encoder_config(automatic), query_prompt="a a a ", passage_prompt="a ")
    texts = {"1": "a a", "2": "a " * 100, "3": "a " * 200}
    collection = Collection(dict(zip("xyz", texts.values())), texts, {"x": {"1": 1}, "y": {"2": 1}, "z": {"3": 1}},
                            {"x": "train", "y": "test", "z": "dev"})
    assert resolve_lengths(automatic, config, collection) == {"query_max_len": 8, "passage_max_len": 8}
    assert "QUERY_MAX_LEN=auto: 8 tokens in training (95% of the training texts are not longer); the finished model " \
           "reads 512" in capsys.readouterr().out
    given = dataclasses.replace(automatic, passage_max_len=40)
    assert resolve_lengths(given, dataclasses.replace(config, passage_max_len=40), collection) == {
        "query_max_len": 8, "passage_max_len": 40}
    assert "PASSAGE_MAX_LEN" not in capsys.readouterr().out


def test_the_memory_of_a_step_is_that_of_the_published_formula():
    """Korthikanti et al.: s b h (34 + 5 a s / h) bytes per layer in half precision; here one text of one layer."""
    shape = SimpleNamespace(num_hidden_layers=1, hidden_size=384, num_attention_heads=12)
    assert activation_bytes(shape, 256, 2) == 256 * 384 * (34 + 5 * 12 * 256 / 384)
    assert activation_bytes(shape, 256, 4) == 2 * activation_bytes(shape, 256, 2)


def test_a_step_of_the_longest_texts_fits_the_memory_budget(automatic, capsys):
    """Two layers of width 64 with two heads; a step has 4 queries and 8 passages."""
    config = base_encoder_config(automatic)

    def needed(passage, queries=4):
        return sum(texts * 2 * length * (17 * 64 + 2.5 * 2 * length) * 4
                   for texts, length in ((8, passage), (queries, 16)))

    for length in (48, 200):
        tuned = dataclasses.replace(automatic, memory_budget=needed(length) / 1e9)
        assert affordable_length(tuned, config, 16, 300, pairs=False) == length
        chunked = dataclasses.replace(tuned, grad_cache_chunk=8)  # no query is kept beside the 8 passages
        assert length <= affordable_length(chunked, config, 16, 300, pairs=False) < length + 16
    assert affordable_length(automatic, config, 16, 300, pairs=False) == 300
    tight = dataclasses.replace(automatic, memory_budget=1e-6)
    assert resolve_lengths(tight, config, read_data(tight))["passage_max_len"] == 8
    assert "longer texts could take more than MEMORY_BUDGET=1e-06" in capsys.readouterr().out


def test_training_truncates_and_the_finished_model_reads_what_its_base_reads(automatic, monkeypatch, capsys):
    monkeypatch.setattr("embedding_finetune.training.train.preflight", lambda training, output: None)
    _, folder = prepare(automatic, find_recipe(automatic, "neg10"))
    recipe, collection = find_recipe(automatic, "neg10"), read_data(automatic)
    training = training_settings(automatic, recipe, automatic, collection)
    train, tokenizer = collection.split("train"), AutoTokenizer.from_pretrained(automatic.base_model)
    sizes = sorted(len(tokenizer(base_encoder_config(automatic).query_prompt + text)["input_ids"])
                   for text in train.queries.values())
    fits = sizes[-(-95 * len(sizes) // 100) - 1]
    assert training.query_max_len == -(-fits // 8) * 8 < 512
    assert (training.encoder.query_max_len, training.encoder.passage_max_len) == (512, 512)
    assert training.encoder_in_training.identity == training.encoder.identity | {
        "query_max_len": training.query_max_len, "passage_max_len": training.passage_max_len}
    flags = stock_flags(training, folder, "x")
    assert flags[flags.index("--query_max_len") + 1] == str(training.query_max_len)
    record = training_record(automatic, recipe)
    assert record["base model"]["config"]["query_max_len"] == 512 and "lengths" not in record
    written = {"lengths": [training.query_max_len, training.passage_max_len]} | record
    assert same_training(written, record) and not same_training(written, written | {"lengths": [8, 8]})
    assert not same_training(record, training_record(dataclasses.replace(automatic, query_max_len=512), recipe))
    assert "QUERY_MAX_LEN=auto" in capsys.readouterr().out


def test_evaluation_reads_what_the_models_files_say(automatic, tmp_path):
    base = tiny_bert(tmp_path / "published", tiny_texts(tiny_pairs(20)))
    write_json(base / "modules.json", [{"type": "sentence_transformers.models.Transformer", "path": ""}])
    write_json(base / "sentence_bert_config.json", {"max_seq_length": 128})
    settings = dataclasses.replace(automatic, base_model=str(base), base_pooling="mean", query_max_len=24, of_others=())
    raw = load_encoder_config(settings, "raw")
    assert (raw.query_max_len, raw.passage_max_len) == (24, 128)


def test_query_and_passage_of_a_reranker_share_the_positions_of_its_model(automatic):
    recipe = dataclasses.replace(find_recipe(automatic, "reranker"), settings={"QUERY_MAX_LEN": 100})
    training = training_settings(automatic, recipe, automatic.with_overrides(recipe.settings), read_data(automatic))
    assert (training.encoder.query_max_len, training.encoder.passage_max_len) == (100, 412)
    assert (training.query_max_len, training.passage_max_len < 412) == (100, True)


def test_batches_are_truncated_and_dev_evaluations_are_not(tiny, tmp_path):
    """Without lengths of their own, as in settings of earlier versions, trainings have those of the encoder."""
    for given, expected in (({}, (16, 48)), ({"query_max_len": 8, "passage_max_len": 24}, (8, 24))):
        training = dataclasses.replace(read_settings(prepared(tiny, tmp_path, **dev(tiny))), **given)
        args = training_arguments(training, tmp_path, dev=True)
        trainer = make_trainer(training, rows_of(tiny), args, read_collection(tiny / "data").split("dev"), True)
        batch = trainer.data_collator([trainer.train_dataset[0, row] for row in range(20)])
        assert max(sub["input_ids"].shape[1] for sub in batch["texts"]) == min(43, expected[1])
        config = trainer.train_dataset.config
        assert (config.query_max_len, config.passage_max_len) == expected
        assert max(sub["input_ids"].shape[1] for sub in trainer.dev.corpus[0]) > 24


@pytest.mark.parametrize("text, message", [
    ("7", "must be auto, or 8 or more"), ("long", "is not a whole number or auto")])
def test_a_length_is_a_number_or_auto(settings, text, message):
    with pytest.raises(UserError, match=message):
        settings.with_overrides({"PASSAGE_MAX_LEN": text})
    assert settings.with_overrides({"PASSAGE_MAX_LEN": "auto"}).as_dict()["PASSAGE_MAX_LEN"] == "auto"
