"""Shares by the workers of a Ray cluster, made on this machine: what processes write, whoever is killed on the way."""

import dataclasses
import functools
import os
import shutil
import signal
import subprocess
import sys

import pytest

from embedding_finetune import cluster
from embedding_finetune.cluster import check_machine, for_each_share, machine, resources
from embedding_finetune.encode import encode_share
from embedding_finetune.files import UserError
from embedding_finetune.retrieval.vectors import VectorCache
from embedding_finetune.settings import ROOT


def encode(*arguments):
    return subprocess.run([sys.executable, "-m", "embedding_finetune.encode", "reference", *arguments], cwd=ROOT,
                          capture_output=True, text=True)


def files(settings):
    """What the cache holds; a file is named by the hash of its bytes."""
    found = {path.relative_to(settings.output_dir) for path in (settings.output_dir / "cache").rglob("*")}
    return {str(path) for path in found if path.suffix}


@pytest.fixture
def one_thread(built, monkeypatch):
    """The experiment with RAY_ADDRESS=local; a share takes a core, and has a thread as the tests have."""
    monkeypatch.setattr(cluster, "resources", lambda machines, shares: ({"num_cpus": 1}, 1))
    return dataclasses.replace(built, ray_address="local")


def test_workers_write_the_files_that_processes_write(built, monkeypatch):
    monkeypatch.setenv("RAY_USE_MULTIPROCESSING_CPU_COUNT", "1")  # as many cores as the processes take
    assert encode("--processes", "2").returncode == 0
    expected = files(built)
    shutil.rmtree(built.output_dir)
    monkeypatch.setenv("RAY_ADDRESS", "local")
    done = encode("--processes", "2")
    assert done.returncode == 0 and done.stdout == "", done.stdout + done.stderr
    assert files(built) == expected and len(expected) == 6  # two of passages, two of queries, and what each kind is
    assert "2/2" in done.stderr and {line.count("share") for line in done.stderr.splitlines()} == {1}, done.stderr


def test_a_share_whose_worker_is_killed_is_made_again(one_thread, tmp_path):
    settings, killed = one_thread, tmp_path / "killed"

    def killed_once(part):
        write = VectorCache.write

        def write_and_die(*arguments):
            write(*arguments)
            if part == 1 and not killed.exists():
                killed.touch()
                os.kill(os.getpid(), signal.SIGKILL)

        VectorCache.write = write_and_die
        encode_share(settings, ["reference"], part, 2)

    for part in range(2):
        encode_share(settings, ["reference"], part, 2)
    expected = files(settings)
    shutil.rmtree(settings.output_dir)
    for_each_share(settings, killed_once, 2)
    assert killed.exists() and files(settings) == expected


def test_a_share_that_kills_every_worker_is_one_line(one_thread, tmp_path):
    def die(part):
        (tmp_path / f"{part}.{os.getpid()}").touch()
        os.kill(os.getpid(), signal.SIGKILL)

    with pytest.raises(UserError, match="Ray at RAY_ADDRESS=local gave up .*; the same command goes on from"):
        for_each_share(one_thread, die, 1)
    assert len(list(tmp_path.glob("0.*"))) == 1 + cluster.RETRIES


def test_what_a_worker_says_is_one_line(built, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "local")
    monkeypatch.setenv("DATASET", "elsewhere")  # the data are of another set: each worker refuses
    done = encode("--processes", "2")
    assert done.returncode == 1 and "Traceback" not in done.stderr
    line = done.stderr.splitlines()[-1]
    assert line.startswith("error: share ") and "was made with other settings" in line, done.stderr
    assert not list(built.output_dir.rglob(".seen-*"))


def test_a_machine_must_see_the_same(built, tmp_path, monkeypatch):
    monkeypatch.setattr(cluster, "LAG", 0)
    here = machine(built)
    check_machine(built, tmp_path, here)
    with pytest.raises(UserError, match="OUTPUT_DIR must be on a disk that all machines share"):
        check_machine(built, tmp_path / "absent", here)
    with pytest.raises(UserError, match="has torch .*, and the first machine 1.0: DATA_DIR, this package and what it"):
        check_machine(built, tmp_path, here | {"torch": "1.0"})
    (built.data_dir / "dataset.json").unlink()
    with pytest.raises(UserError, match=f"has data .*, and the first machine {here['data'][:12]}: DATA_DIR, this"):
        check_machine(built, tmp_path, here)


@pytest.mark.parametrize("machines, shares, wanted, threads", [
    ([{"CPU": 8.0}], 2, {"num_cpus": 4}, 4), ([{"CPU": 8.0}], 3, {"num_cpus": 2}, 2),
    ([{"CPU": 8.0}], 20, {"num_cpus": 1}, 1),  # they wait for each other
    ([{"CPU": 16.0}, {"CPU": 8.0}, {"CPU": 8.0}], 4, {"num_cpus": 4}, 4),  # two on a machine
    ([{"CPU": 16.0}, {"CPU": 32.0, "GPU": 4.0}], 9, {"num_gpus": 1}, 8),
    ([{"CPU": 2.0, "GPU": 4.0}], 1, {"num_gpus": 1}, 1)])
def test_a_share_has_a_gpu_or_its_part_of_the_cores(machines, shares, wanted, threads):
    assert resources(machines, shares) == (wanted, threads)


def test_without_ray_one_line_says_what_to_install(built, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match="the package ray is not installed, and RAY_ADDRESS=auto needs it: pip install "):
        for_each_share(dataclasses.replace(built, ray_address="auto"), functools.partial(print), 2)
    assert any(line.split(" #")[0].strip() == cluster.REQUIREMENT
               for line in (ROOT / "requirements.txt").read_text().splitlines())


def test_without_a_cluster_one_line_says_so(built):
    with pytest.raises(UserError, match="no Ray cluster at RAY_ADDRESS=nowhere .*or give local for one on this machine"):
        for_each_share(dataclasses.replace(built, ray_address="nowhere"), print, 2)
