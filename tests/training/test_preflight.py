"""What the finished model needs is tried before the first step."""

import dataclasses
import json
import shutil

import pytest
import torch
from tiny import tiny_bert, tiny_pairs, tiny_texts
from transformers import AutoTokenizer, GPT2Config, GPT2Model

from embedding_finetune.data.collection import Collection
from embedding_finetune.files import UserError
from embedding_finetune.recipes import find_recipe
from embedding_finetune.training import train
from embedding_finetune.training.preflight import check_disk, preflight
from embedding_finetune.training.train import training_settings


def of(settings, label="neg10", **changes):
    """The TrainingSettings of a recipe."""
    settings = dataclasses.replace(settings, **changes)
    recipe = find_recipe(settings, label)
    return training_settings(settings, recipe, settings.with_overrides(recipe.settings), Collection({}, {}, {}))


@pytest.mark.parametrize("changes", [{}, {"architecture": "both"}, {"lora_rank": 2}])
def test_each_check_is_one_line_and_leaves_nothing(settings, capsys, changes):
    left_by_a_kill = settings.paths.preflight("neg10") / "model"
    left_by_a_kill.mkdir(parents=True)
    (left_by_a_kill / "model.safetensors").write_bytes(b"half of it")
    preflight(of(settings, **changes), settings.paths.preflight("neg10"))
    said = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in said] == ["preflight"] * 3
    assert "pads with [PAD]" in said[0] and "GB are free" in said[1] and "is exported and loads" in said[2]
    assert not list(settings.output_dir.iterdir())


def test_a_reranker_is_tried_as_well(settings, tmp_path, capsys):
    (tmp_path / "recipes.toml").write_text('[pairs]\nkind = "cross_encoder"\nnegatives = "random"\nnum_negatives = 2')
    preflight(of(settings, "pairs", recipe_file=tmp_path / "recipes.toml"), settings.paths.preflight("neg10"))
    assert "is exported and loads" in capsys.readouterr().out


def without_padding(folder, model):
    """A GPT-2 whose tokenizer, that of `model`, has no padding token."""
    tokenizer = AutoTokenizer.from_pretrained(model)
    tokenizer.save_pretrained(folder)
    GPT2Model(GPT2Config(vocab_size=len(tokenizer), n_positions=128, n_embd=32, n_layer=1, n_head=2)).save_pretrained(
        folder)
    path = folder / "tokenizer_config.json"
    values = json.loads(path.read_text())
    path.write_text(json.dumps({key: value for key, value in values.items() if not key.endswith("_token")}
                               | {"eos_token": "[SEP]", "tokenizer_class": "PreTrainedTokenizerFast"}))
    (folder / "special_tokens_map.json").unlink(missing_ok=True)


def test_a_tokenizer_that_cannot_pad_is_refused_before_anything_is_made(built, tmp_path, monkeypatch):
    without_padding(tmp_path / "gpt", built.base_model)
    monkeypatch.setattr(train, "mine", None)  # would be called next
    with pytest.raises(UserError, match=r'has no padding token.*add "pad_token": "\[SEP\]" to its tokenizer_config'):
        train.finetune(dataclasses.replace(built, base_model=str(tmp_path / "gpt"), base_pooling="last_token"), "neg10")
    assert not (built.output_dir / "neg10.partial").exists()


def test_a_tokenizer_of_another_model_is_refused(settings, tmp_path):
    shutil.copytree(tiny_bert(tmp_path / "few", tiny_texts(tiny_pairs(5))), tmp_path / "mixed")
    AutoTokenizer.from_pretrained(settings.base_model).save_pretrained(tmp_path / "mixed")
    with pytest.raises(UserError, match="token ids up to .* token embeddings: they do not belong together"):
        preflight(of(settings, base_model=str(tmp_path / "mixed")), settings.paths.preflight("neg10"))


def test_a_model_that_cannot_be_exported_is_refused_in_one_line(settings, monkeypatch):
    def fails(*args, **more):
        raise ValueError("no such\nlayer")

    monkeypatch.setattr("embedding_finetune.training.preflight.export", fails)
    with pytest.raises(UserError, match=r"cannot be exported \(no such layer\): .* choose another base model"):
        preflight(of(settings), settings.paths.preflight("neg10"))
    assert not list(settings.output_dir.iterdir())


def test_the_disk_space_of_three_checkpoints_and_a_model(settings):
    """10**9 weights: 4 GB, and 12 GB of a checkpoint with two moments of Adam each."""
    model = torch.nn.Linear(10**5, 10**4, bias=False, device="meta")
    training = of(settings)
    assert check_disk(training, model, 50 * 10**9).startswith("about 40.0 GB of disk space are needed, and 50.0 GB")
    with pytest.raises(UserError, match="about 40.0 GB .* 39.0 GB are free: free some, or choose another OUTPUT_DIR"):
        check_disk(training, model, 39 * 10**9)
    assert check_disk(dataclasses.replace(training, lora_rank=8), model, 50 * 10**9).startswith("about 16.0 GB")
