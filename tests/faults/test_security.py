"""Program code that is planted where weights, states and arrays are read is not run."""

import os
import pickle
import shutil

import numpy as np
import pytest
import torch

from embedding_finetune.artifacts.arrays import short_hash
from embedding_finetune.artifacts.manifest import MANIFEST, write_manifest
from embedding_finetune.files import UserError
from embedding_finetune.models.embedding_cache import EmbeddingCache
from embedding_finetune.models.modeling import load_encoder
from embedding_finetune.serving.index import open_index
from embedding_finetune.training import worker


class Malicious:
    """What makes a folder when it is unpickled."""

    def __init__(self, folder):
        self.folder = str(folder)

    def __reduce__(self):
        return os.mkdir, (self.folder,)


def plant(path, trap):
    """Put the trap where a tensor was, whatever the form of the file."""
    if path.suffix == ".npy":
        np.save(path, np.array([Malicious(trap)], dtype=object), allow_pickle=True)
    else:
        torch.save({"state": Malicious(trap), "python": Malicious(trap)}, path)


def test_the_trap_works(tmp_path):
    with pytest.raises(Exception, match="."):
        pickle.loads(pickle.dumps(Malicious(tmp_path / "a")))
        pickle.loads(pickle.dumps(Malicious(tmp_path / "a")))  # the second time the folder is there
    assert (tmp_path / "a").is_dir()


@pytest.mark.parametrize("name", ["optimizer.pt", "scheduler.pt", "rng_state.pth", "pytorch_model.bin"])
def test_a_checkpoint_that_is_continued_runs_nothing(tiny, tmp_path, monkeypatch, name):
    output = tmp_path / "output"
    flags = ["--model_name_or_path", str(tiny / "bert"), "--train_data", str(tiny / "train.json"), "--output_dir",
             str(output), "--query_max_len", "16", "--passage_max_len", "48", "--train_group_size", "2",
             "--per_device_train_batch_size", "20", "--max_steps", "3", "--save_strategy", "steps", "--save_steps", "1",
             "--report_to", "none", "--use_cpu", "--sentence_pooling_method", "cls", "--dataloader_drop_last", "True"]

    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(worker, "finish", stop)
    with pytest.raises(KeyboardInterrupt):
        worker.train(flags)
    last = output / "checkpoint-3"
    if name == "pytorch_model.bin":
        (last / "model.safetensors").unlink()
    plant(last / name, tmp_path / "trap")
    (last / MANIFEST).unlink()
    write_manifest(last)  # whoever plants it knows how a checkpoint is completed
    with pytest.raises(BaseException, match="."):
        worker.train([*flags, "--max_steps", "4"])
    assert not (tmp_path / "trap").exists()


def test_a_model_runs_nothing(tiny, tmp_path):
    shutil.copytree(tiny / "bert", tmp_path / "model")
    (tmp_path / "model" / "model.safetensors").unlink()
    plant(tmp_path / "model" / "pytorch_model.bin", tmp_path / "trap")
    with pytest.raises(UserError, match="cannot load"):
        load_encoder(str(tmp_path / "model"))
    assert not (tmp_path / "trap").exists()


def test_a_cache_runs_nothing(tmp_path):
    cache = EmbeddingCache(tmp_path / "cache", {"model": "m"})
    cache.write([b"k" * 16], np.ones((1, 2), np.float32))
    plant(cache.folder / "x.npy", tmp_path / "trap")
    content = (cache.folder / "x.npy").read_bytes()
    (cache.folder / "x.npy").rename(cache.folder / f"{short_hash(content)}.npy")
    with pytest.raises(ValueError, match="allow_pickle=False"):
        list(cache.read())
    assert not (tmp_path / "trap").exists()


def test_an_index_runs_nothing(built):
    index = open_index(built, "bm25")
    for path in sorted(index.folder.rglob("*.npy")):
        plant(path, built.output_dir / "trap")
        assert len(open_index(built, "bm25").answer(["otter"], 3)[0]) == 3
    assert not (built.output_dir / "trap").exists()
