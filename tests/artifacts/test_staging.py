"""A checkpoint is there whole or not at all, and a folder has one training at a time."""

import contextlib
import multiprocessing
import os
import subprocess
import sys

import pytest

from embedding_finetune.artifacts.manifest import MANIFEST, verify_manifest, write_manifest
from embedding_finetune.artifacts.staging import (
    complete_checkpoints,
    is_complete,
    lock,
    remove_checkpoint,
    staged_dir,
)
from embedding_finetune.files import UserError
from embedding_finetune.hub import model_content


def committed(output, step):
    folder = output / f"checkpoint-{step}"
    (folder / "deeper").mkdir(parents=True)
    (folder / "weights").write_bytes(b"1234")
    (folder / "deeper" / "state").write_bytes(b"")
    write_manifest(folder)
    return folder


def test_a_checkpoint_with_a_manifest_is_complete(tmp_path):
    folder = committed(tmp_path, 5)
    assert is_complete(folder) and sorted(path.name for path in folder.iterdir()) == [MANIFEST, "deeper", "weights"]


@pytest.mark.parametrize("damage", [
    lambda folder: (folder / MANIFEST).unlink(),
    lambda folder: (folder / MANIFEST).write_text('{"weights": 4'),
    lambda folder: (folder / MANIFEST).write_text("{}"),
    lambda folder: (folder / MANIFEST).write_text("[1]"),
    lambda folder: (folder / "weights").write_bytes(b"123"),
    lambda folder: (folder / "weights").write_bytes(b"1233"),  # as long as it was
    lambda folder: (folder / MANIFEST).write_text((folder / MANIFEST).read_text().replace("deeper", "deepen")),
    lambda folder: (folder / "deeper" / "state").unlink(),
])
def test_what_is_damaged_is_passed_over(tmp_path, capsys, damage):
    folders = [committed(tmp_path, step) for step in (5, 10, 9)]
    assert complete_checkpoints(tmp_path) == [folders[1], folders[2], folders[0]]  # by number, not by letters
    damage(folders[1])
    assert complete_checkpoints(tmp_path) == [folders[2], folders[0]]
    assert capsys.readouterr().err == f"skipping {folders[1]}: the checkpoint is incomplete\n"


def test_what_is_removed_goes_with_its_manifest_first(tmp_path, monkeypatch):
    """A process killed in between leaves nothing that passes for a checkpoint."""
    folder = committed(tmp_path, 5)
    monkeypatch.setattr("shutil.rmtree", lambda *args, **kwargs: None)
    remove_checkpoint(folder)
    assert (folder / "weights").exists() and not is_complete(folder)
    monkeypatch.undo()
    remove_checkpoint(folder)
    remove_checkpoint(folder)
    assert not folder.exists()


def test_a_folder_without_checkpoints_has_none(tmp_path):
    (tmp_path / "checkpoints.txt").write_text("")
    assert complete_checkpoints(tmp_path) == complete_checkpoints(tmp_path / "missing") == []


@pytest.mark.parametrize("error", [OSError(28, "No space left"), Exception("No space left (os error 28)")])
def test_a_model_that_cannot_be_written_is_one_line_and_what_is_there_stays(tmp_path, error):
    (tmp_path / "config.json").write_text("old")
    with pytest.raises(UserError, match="cannot write the model to .*No space left.*run the same command again"):
        with staged_dir(tmp_path) as partial:
            partial.mkdir()
            (partial / "config.json").write_text("new")
            raise error
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]
    assert (tmp_path / "config.json").read_text() == "old"
    with pytest.raises(KeyError), staged_dir(tmp_path):
        raise KeyError("a bug")


def test_a_finished_model_carries_the_hashes_of_its_files(tmp_path):
    with staged_dir(tmp_path / "model") as partial:
        partial.mkdir(parents=True)
        (partial / "model.safetensors").write_bytes(b"1234")
    assert verify_manifest(tmp_path / "model") is None and (tmp_path / "model" / MANIFEST).exists()
    (tmp_path / "model" / "model.safetensors").write_bytes(b"1235")
    assert verify_manifest(tmp_path / "model") == "model.safetensors"
    with pytest.raises(UserError, match="model.safetensors has changed since it was written: restore it or build the"):
        model_content(str(tmp_path / "model"))


def test_a_folder_is_replaced_as_a_whole_or_not_at_all(tmp_path):
    folder = tmp_path / "model"
    for text in ("old", "new"):
        with staged_dir(folder, replace=True) as partial:
            (partial / text).write_text(text)
            assert not (folder / "new").exists()
        assert {path.name for path in folder.iterdir()} == {text, MANIFEST} and verify_manifest(folder) is None
    for error in (KeyError("a bug"), UserError("no"), OSError(28, "No space left")):
        with pytest.raises(UserError if isinstance(error, OSError) else type(error)):
            with staged_dir(folder, replace=True) as partial:
                (partial / "newer").touch()
                raise error
        assert {path.name for path in folder.iterdir()} == {"new", MANIFEST} and list(tmp_path.iterdir()) == [folder]


def test_only_one_process_at_a_time_is_in_a_folder(tmp_path):
    code = ("import sys, pathlib\n"
            "from embedding_finetune.artifacts.staging import lock\n"
            "with lock(pathlib.Path(sys.argv[1]), wait=False):\n"
            "    print('in', flush=True)\n"
            "    sys.stdin.read()")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen([sys.executable, "-c", code, tmp_path / "new"], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                          env=environment, text=True) as other:
        assert other.stdout.readline() == "in\n"
        with pytest.raises(UserError, match=f"another training .process {other.pid}. is writing to .*new: wait for it"):
            with lock(tmp_path / "new", wait=False):
                pass
        other.kill()
        other.wait()
    with lock(tmp_path / "new", wait=False):  # the lock ended with the process
        assert (tmp_path / "new" / ".lock").read_text() == str(os.getpid())


def test_nodes_take_turns(tmp_path):
    """Another process waits until the block is left, by an error, too."""
    def enter():
        with lock(tmp_path):
            (tmp_path / "entered").touch()

    other = multiprocessing.get_context("fork").Process(target=enter)
    with contextlib.suppress(KeyError), lock(tmp_path):
        other.start()
        other.join(0.5)
        assert other.is_alive() and not (tmp_path / "entered").exists()
        raise KeyError
    other.join(20)
    assert other.exitcode == 0 and (tmp_path / "entered").exists()
