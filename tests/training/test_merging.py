"""Merged weights: what they are, which weight is selected, and that the folder is a model like any other."""

import dataclasses
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny import tiny_bert, tiny_pairs, tiny_texts
from transformers import AutoModel, AutoTokenizer

from embedding_finetune.data.collection import Collection, read_collection, read_data, write_collection
from embedding_finetune.evaluation.metrics import measure
from embedding_finetune.files import UserError, write_json
from embedding_finetune.models.encoder import Encoder
from embedding_finetune.models.encoder_config import base_encoder_config, load_encoder_config
from embedding_finetune.recipes import find_recipe
from embedding_finetune.retrieval.dense import Dense
from embedding_finetune.training import train as finetuning
from embedding_finetune.training.export import export
from embedding_finetune.training.merging import WEIGHTS, average, best_weight
from embedding_finetune.training.provenance import RECORD, is_current, training_record
from embedding_finetune.training.train import finetune

RECIPES = """
[neg10]
file = "training_neg_10.json"
[third]
merge = "neg10"
merge_weight = 0.3
[chosen]
merge = "neg10"
"""


@pytest.fixture
def tuned(built, tmp_path):
    """The tiny experiment with a model neg10, which is another random BERT of the same shape, and merged recipes."""
    (tmp_path / "recipes.toml").write_text(RECIPES)
    base = tiny_bert(tmp_path / "base", tiny_texts(tiny_pairs(120)), initializer_range=0.2)  # no near ties
    settings = dataclasses.replace(built, base_model=str(base), recipe_file=tmp_path / "recipes.toml",
                                   dev_corpus_size=10**6)
    replace_source(settings, tmp_path / "other", seed=9)
    return settings


def replace_source(settings, folder, **changes):
    """Make the model neg10 of a random BERT."""
    tiny_bert(folder, tiny_texts(tiny_pairs(120)), initializer_range=0.2, **changes)
    shutil.rmtree(settings.output_dir / "neg10", ignore_errors=True)
    export(AutoModel.from_pretrained(folder), AutoTokenizer.from_pretrained(folder), settings.output_dir / "neg10",
           base_encoder_config(settings))
    write_json(settings.output_dir / "neg10" / RECORD, training_record(settings, find_recipe(settings, "neg10")))


def weights(folder):
    return load_file(Path(folder) / "model.safetensors")


def current(settings, label="third"):
    return is_current(settings, find_recipe(settings, label))


def test_the_weights_are_the_average_and_the_model_is_used_like_its_source(tuned, capsys):
    folder = finetune(tuned, "third")
    base, source = weights(base_encoder_config(tuned).name), weights(tuned.output_dir / "neg10")
    merged = weights(folder)
    assert merged.keys() == source.keys() == base.keys() and len(merged) > 20
    for name, weight in merged.items():
        torch.testing.assert_close(weight, 0.7 * base[name] + 0.3 * source[name])
    ids = average({"ids": torch.tensor([1, 2])}, {"ids": torch.tensor([3, 4])}, 0.25)["ids"]
    assert ids.tolist() == [3, 4]  # whole numbers are the fine-tuned model's
    one, other = (dataclasses.asdict(load_encoder_config(tuned, label)) for label in ("third", "neg10"))
    assert {name for name in one if one[name] != other[name]} == {"label", "title", "name"}
    assert "| merged from | 0.7 base + 0.3 neg10 |" in (folder / "README.md").read_text()
    assert "weight of neg10: 0.3\n" in capsys.readouterr().out and not (tuned.output_dir / "third.partial").exists()


def far_set(folder):
    """Another set in BEIR's layout: every second query is a dev query."""
    rows = [row for row in tiny_pairs(90, seed=8) if len(row["pos"]) == 1][::7]
    queries, corpus = ({f"{kind}{place}": text for place, text in enumerate(texts)} for kind, texts in (
        ("q", [row["query"] for row in rows]), ("p", [row["pos"][0] for row in rows])))
    write_collection(folder, Collection(queries, corpus, {f"q{place}": {f"p{place}": 1} for place in range(len(rows))},
                                        {f"q{place}": ("dev", "test")[place % 2] for place in range(len(rows))}))
    return folder


def test_the_weight_is_selected_on_dev_queries_in_and_out_of_domain(tuned, tmp_path, capsys):
    """What is printed of a weight is what the merged model of that weight has by another way."""
    far = str(far_set(tmp_path / "far"))
    settings = dataclasses.replace(tuned, out_of_domain_sets=far)
    finetune(settings, "third")
    capsys.readouterr()
    folder = finetune(settings, "chosen")
    printed = capsys.readouterr().out
    looks = {float(share): (float(own), float(other)) for share, own, other in re.findall(
        rf"^weight ([\d.]+) of neg10: mrr@10 own dev ([\d.]+), {re.escape(far)} ([\d.]+)$", printed, re.MULTILINE)}
    assert tuple(looks) == WEIGHTS
    dense = Dense(Encoder(load_encoder_config(settings, "third")))
    for value, found in zip(looks[0.3], (read_data(settings), read_collection(tmp_path / "far"))):
        dev = found.split("dev")
        run = dense.index(dev.corpus).search(dev.queries)
        assert value == pytest.approx(measure(dev, run)["mrr@10"], abs=6e-5)
    best = max(looks, key=lambda share: sum(looks[share]))
    assert f"weight of neg10: {best}\n" in printed and f"+ {best} neg10" in (folder / "README.md").read_text()


@pytest.mark.parametrize("looks, share", [
    ([(0.1, 0.5, 0.6), (0.2, 0.8, 0.4), (0.3, 0.9, 0.2)], 0.2),
    ([(0.1, 0.5, 0.5), (0.2, 0.6, 0.4), (0.3, 0.4, 0.6)], 0.1),  # of equals the one that stays nearer to the base
    ([(0.1, 0.5), (1.0, 0.6)], 1.0)])
def test_each_dev_set_counts_alike(looks, share):
    assert best_weight({first: values for first, *values in looks}) == share


def test_a_merged_model_is_kept_until_one_of_its_models_or_the_recipe_has_changed(tuned, tmp_path):
    assert not current(tuned)
    finetune(tuned, "third")
    assert current(tuned) and not current(tuned, "chosen")
    assert current(dataclasses.replace(tuned, out_of_domain_sets="general"))  # which chooses nothing here
    (tmp_path / "base").rename(tmp_path / "moved")
    assert current(dataclasses.replace(tuned, base_model=str(tmp_path / "moved")))
    (tmp_path / "moved").rename(tmp_path / "base")
    with pytest.raises(UserError, match="third holds a finished model; OVERWRITE=1"):
        finetune(tuned, "third")
    recipe = find_recipe(tuned, "third")
    assert not is_current(tuned, dataclasses.replace(recipe, merge_weight=0.4))
    replace_source(tuned, tmp_path / "third one", seed=10)
    assert not current(tuned)
    finetune(tuned, "chosen")
    assert current(tuned, "chosen") and not current(dataclasses.replace(tuned, out_of_domain_sets="general"), "chosen")


def test_what_cannot_be_merged_is_refused_and_leaves_nothing(tuned, tmp_path):
    with pytest.raises(UserError, match="neg10 was fine-tuned from .*base, but BASE_MODEL is .*other: set BASE_MODEL "
                                        "to the former"):
        finetune(dataclasses.replace(tuned, base_model=str(tmp_path / "other")), "third")
    replace_source(tuned, tmp_path / "smaller", intermediate_size=64)
    with pytest.raises(UserError, match="the parameters of the fine-tuned model and BASE_MODEL differ"):
        finetune(tuned, "third")
    shutil.rmtree(tuned.output_dir / "neg10")
    with pytest.raises(UserError, match="neg10 holds no finished model: run `bash finetune_neg10.sh` first"):
        finetune(tuned, "third")
    assert not (tuned.output_dir / "third").exists()


def test_of_two_that_merge_at_once_the_second_waits(tuned, monkeypatch):
    turn = f"import fcntl; fcntl.lockf(open({str(tuned.output_dir / '.lock')!r}, 'a'), fcntl.LOCK_EX | fcntl.LOCK_NB)"

    def merge(*_):
        raise UserError(subprocess.run([sys.executable, "-c", turn], capture_output=True, text=True).stderr)

    monkeypatch.setattr(finetuning, "merge", merge)
    with pytest.raises(UserError, match="BlockingIOError"):
        finetune(tuned, "third")
    assert subprocess.run([sys.executable, "-c", turn]).returncode == 0
