"""Encoding in shares: any division gives what one process gives, and nothing is encoded twice."""

import subprocess
import sys

import numpy as np
import pytest
from forked import command, run_forked

from embedding_finetune.data.collection import read_data
from embedding_finetune.files import UserError
from embedding_finetune.models import parallel_encode
from embedding_finetune.models.encoder import Encoder, make_encoder
from embedding_finetune.models.encoder_config import load_encoder_config
from embedding_finetune.models.parallel_encode import encode_shard, parse_shard


def encoded(settings, encoder):
    collection = read_data(settings)
    return encoder.encode_passages(collection.corpus.values()), encoder.encode_queries(collection.queries.values())


def all_are_there(settings, monkeypatch):
    """What the cache gives for everything, without the model, beside an Encoder without a cache."""
    config = load_encoder_config(settings, "reference")
    expected = encoded(settings, Encoder(config))
    monkeypatch.setattr(Encoder, "_load", lambda self: pytest.fail("something was not encoded"))
    found = encoded(settings, make_encoder(settings, config))
    return all(np.allclose(one, other, atol=1e-6) for one, other in zip(found, expected, strict=True))


@pytest.mark.long
def test_two_processes_give_what_one_gives(built, monkeypatch, tmp_path):
    status, said = run_forked(command, "embedding_finetune", "encode", "reference", "--processes", "2",
                              log=tmp_path / "log")
    assert status == 0, said
    assert "shard 1 of 2" in said and "shard 2 of 2" in said
    assert all_are_there(built, monkeypatch)


def test_shares_may_be_others_the_next_time_and_nothing_is_encoded_twice(built, monkeypatch):
    computed, tokenise = [], Encoder._tokenise
    monkeypatch.setattr(Encoder, "_tokenise", lambda self, texts, *more: computed.extend(texts) or tokenise(
        self, texts, *more))
    encode_shard(built, ["reference"], 1, 3)  # the other two were killed
    for part in range(4):
        encode_shard(built, ["reference"], part, 4)
    collection = read_data(built)
    texts = [*dict.fromkeys(collection.corpus.values()), *dict.fromkeys(collection.queries.values())]
    assert sorted(computed) == sorted(texts)
    assert all_are_there(built, monkeypatch)


def test_a_process_that_fails_is_one_line(built, monkeypatch, capfd):
    begin = subprocess.Popen
    refusing = "import sys; sys.exit('error: ' + sys.argv[-1])"  # at once, as for a model that is gone by then
    monkeypatch.setattr(parallel_encode.subprocess, "Popen", lambda command, env: begin([sys.executable, "-c", refusing,
                                                                                *command[3:]], env=env))
    with pytest.raises(UserError, match=r"2 of 2 processes failed \(exit status 1\); their errors are above"):
        parallel_encode.encode_in_processes(["reference"], 2)
    assert sorted(capfd.readouterr().err.splitlines()) == ["error: 1/2", "error: 2/2"]


def test_a_cluster_is_asked_where_there_is_one(built, monkeypatch):
    asked = []
    monkeypatch.setattr("embedding_finetune.contrib.ray_encode.for_each_shard",
                        lambda settings, work, shares: asked.append(shares) or work(0))
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    monkeypatch.setattr(sys, "argv", ["encode", "reference", "--processes", "3"])
    monkeypatch.setattr(parallel_encode, "encode_shard",
                        lambda settings, labels, part, parts: asked.append((part, parts)))
    parallel_encode.main()
    assert asked == [3, (0, 3)]


@pytest.mark.parametrize("arguments, says", [
    (["nobody"], "holds no finished model"), (["reference", "--shard", "0/4"], "--shard 0/4 is no shard"),
    (["reference", "--shard", "5/4"], "no shard: give 1/8"), (["reference", "--shard", "half"], "--shard half is no"),
    (["reference", "--processes", "0"], "--processes 0: give 1 or more")])
def test_what_cannot_be_is_one_line(built, monkeypatch, arguments, says):
    monkeypatch.setattr(sys, "argv", ["encode", *arguments])
    with pytest.raises(UserError, match=says):
        parallel_encode.main()


def test_more_processes_than_gpus_are_refused(monkeypatch):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    with pytest.raises(UserError, match="--processes 3 is more than the 2 GPUs of this machine: give 2"):
        parallel_encode.encode_in_processes(["reference"], 3)
    assert parse_shard("2/8") == (1, 8)
