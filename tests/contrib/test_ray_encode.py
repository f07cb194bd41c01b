"""Shards by the workers of a Ray cluster, made on this machine: what processes write, whoever is killed on the way."""

import dataclasses
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from embedding_finetune.contrib import ray_encode
from embedding_finetune.contrib.ray_encode import check_machine, for_each_shard, machine, resources
from embedding_finetune.data.collection import read_data
from embedding_finetune.files import UserError
from embedding_finetune.models.embedding_cache import EmbeddingCache
from embedding_finetune.models.parallel_encode import encode_shard
from embedding_finetune.settings import ROOT


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    """HOST:PORT of a cluster of two cores that the tests share, of no more processes than it must have."""
    log = tmp_path_factory.mktemp("ray") / "log"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_AUTH_MODE", "token")
        patch.setenv("RAY_AUTH_TOKEN", secrets.token_hex(32))
        for name in ("RAY_prestart_worker_first_driver", "RAY_enable_worker_prestart"):
            patch.setenv(name, "0")  # each worker takes seconds to start, and none of these would be used
        for _ in range(2):
            with socket.create_server(("", 0)) as one, socket.create_server(("", 0)) as other:
                port, clients = one.getsockname()[1], other.getsockname()[1]
            command = [Path(sys.executable).with_name("ray"), "start", "--head", "--block", "--num-cpus=2",
                       f"--port={port}", f"--ray-client-server-port={clients}", "--include-dashboard=false",
                       "--no-monitor", "--include-log-monitor=false", "--disable-usage-stats"]
            with open(log, "w") as output:
                running = subprocess.Popen(command, cwd=ROOT, stdout=output, stderr=subprocess.STDOUT,
                                           start_new_session=True)
            while running.poll() is None and "Ray runtime started" not in log.read_text():
                time.sleep(0.5)
            if running.poll() is None:
                break
            assert "The current node timed out during startup" in log.read_text(), log.read_text()
        else:
            pytest.skip("Ray allows its own processes 15 s to start, and this machine is too busy for that")
        yield re.search(r"Local node IP: (\S+)", log.read_text())[1] + f":{port}"
        os.killpg(running.pid, signal.SIGKILL)  # asked kindly, they take half a minute
        running.wait()


@pytest.fixture
def clustered(built, address, monkeypatch):
    """The experiment with that RAY_ADDRESS; a shard takes a core, and has one thread, as the tests have."""
    monkeypatch.setenv("RAY_ADDRESS", address)
    monkeypatch.setattr(ray_encode, "resources", lambda machines, shares: ({"num_cpus": 1}, 1))
    return built.load()


def files(settings):
    """What the cache holds; a file is named by the hash of its bytes."""
    found = {path.relative_to(settings.output_dir) for path in (settings.output_dir / "cache").rglob("*")}
    return {str(path) for path in found if path.suffix}


@pytest.mark.long
def test_workers_write_what_processes_write_though_one_is_killed(clustered, tmp_path, capsys):
    settings, killed = clustered, tmp_path / "killed"

    def killed_once(part):
        write = EmbeddingCache.write

        def write_and_die(*arguments):
            write(*arguments)
            if part == 1 and not killed.exists():
                killed.touch()
                os.kill(os.getpid(), signal.SIGKILL)

        EmbeddingCache.write = write_and_die
        encode_shard(settings, ["reference"], part, 2)

    for part in range(2):
        encode_shard(settings, ["reference"], part, 2)  # what each of two processes does
    expected = files(settings)
    shutil.rmtree(settings.output_dir)
    for_each_shard(settings, killed_once, 2)
    assert killed.exists() and files(settings) == expected
    assert len(expected) == 5  # two files of passages, two of queries, and what they are
    assert "2/2" in capsys.readouterr().err


@pytest.mark.long
def test_a_shard_that_kills_every_worker_is_one_line(clustered, tmp_path, monkeypatch):
    def die(part):
        (tmp_path / f"{part}.{os.getpid()}").touch()
        os.kill(os.getpid(), signal.SIGKILL)

    monkeypatch.setattr(ray_encode, "RETRIES", 1)
    with pytest.raises(UserError, match="Ray at RAY_ADDRESS=.* failed .*; run the same command again to continue"):
        for_each_shard(clustered, die, 1)
    assert len(list(tmp_path.glob("0.*"))) == 2


@pytest.mark.long
def test_what_a_worker_says_is_one_line(clustered):
    settings = dataclasses.replace(clustered, dataset="elsewhere")  # the data are of another set: each worker refuses
    with pytest.raises(UserError, match="shard [12] of 2, on .*was made with other settings .*; run the same command"):
        for_each_shard(settings, lambda part: read_data(settings), 2)
    assert not list(clustered.output_dir.rglob(".seen-*"))


def test_a_machine_must_see_the_same(built, tmp_path, monkeypatch):
    monkeypatch.setattr(ray_encode, "FILE_VISIBILITY_LAG", 0)
    here = machine(built)
    check_machine(built, tmp_path, here)
    with pytest.raises(UserError, match="OUTPUT_DIR must be on a disk that all machines share"):
        check_machine(built, tmp_path / "absent", here)
    with pytest.raises(UserError, match="has torch .*, but the first machine 1.0: DATA_DIR, this package and its dep"):
        check_machine(built, tmp_path, here | {"torch": "1.0"})
    (built.data_dir / "dataset.json").unlink()
    with pytest.raises(UserError, match=f"has data .*, but the first machine {here['data'][:12]}: DATA_DIR, this"):
        check_machine(built, tmp_path, here)


@pytest.mark.parametrize("machines, shares, wanted, threads", [
    ([{"CPU": 8.0}], 2, {"num_cpus": 4}, 4), ([{"CPU": 8.0}], 3, {"num_cpus": 2}, 2),
    ([{"CPU": 8.0}], 20, {"num_cpus": 1}, 1),  # they wait for each other
    ([{"CPU": 16.0}, {"CPU": 8.0}, {"CPU": 8.0}], 4, {"num_cpus": 4}, 4),  # two on a machine
    ([{"CPU": 16.0}, {"CPU": 32.0, "GPU": 4.0}], 9, {"num_gpus": 1}, 8),
    ([{"CPU": 2.0, "GPU": 4.0}], 1, {"num_gpus": 1}, 1)])
def test_a_shard_has_a_gpu_or_its_part_of_the_cores(machines, shares, wanted, threads):
    assert resources(machines, shares) == (wanted, threads)


@pytest.mark.parametrize("address", ["nowhere", "127.0.0.1:9", "ray://127.0.0.1:9", ":9", "127.0.0.1:port"])
def test_without_a_cluster_one_line_says_so(built, address):
    pytest.importorskip("ray.data")  # whose import is not what is timed
    began = time.monotonic()
    message = f"no Ray cluster at RAY_ADDRESS={address} .*or set it to local for one on this"
    with pytest.raises(UserError, match=message):
        for_each_shard(dataclasses.replace(built, ray_address=address), print, 2)
    assert time.monotonic() - began < 15
