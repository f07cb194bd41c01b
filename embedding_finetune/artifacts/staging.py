"""Staging folders that are committed by renaming, checkpoints, and the locks of folders."""

import contextlib
import fcntl
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

from embedding_finetune.artifacts.manifest import MANIFEST, verify_manifest, write_manifest
from embedding_finetune.files import UserError, writing


def is_complete(folder: Path) -> bool:
    """Whether the folder has a manifest and all of its files match it."""
    try:
        return (folder / MANIFEST).exists() and verify_manifest(folder) is None
    except OSError:
        return False


def complete_checkpoints(output: str | Path) -> list[Path]:
    """The complete checkpoints in a folder, most steps first; prints the incomplete ones, which are skipped."""
    folders = sorted(Path(output).glob("checkpoint-[0-9]*"), key=lambda folder: -int(folder.name.rpartition("-")[2]))
    complete = [folder for folder in folders if is_complete(folder)]
    for folder in folders:
        if folder not in complete:
            print(f"skipping {folder}: the checkpoint is incomplete", file=sys.stderr)
    return complete


def remove_checkpoint(folder: Path) -> None:
    """Remove a checkpoint, its manifest first, so that a partly removed one does not count as complete."""
    (folder / MANIFEST).unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def staged_dir(folder: Path, what: str = "model", replace: bool = False) -> Iterator[Path]:
    """Context manager: yields a staging folder whose content moves into `folder` at the end of the block.

    Its manifest is written before. With `replace`, the staging folder exists and takes the place of `folder` as a
    whole. Otherwise the block makes it, the other files of `folder` stay, and the weights move last, so that a folder
    without weights is unfinished. Raises UserError when the disk is full.
    """
    partial = folder.with_name(f"{folder.name}.partial") if replace else folder / ".export.partial"
    try:
        with writing(f"the {what} to {folder}", "free some space and run the same command again"):
            shutil.rmtree(partial, ignore_errors=True)
            if replace:
                partial.mkdir(parents=True)
            yield partial
            write_manifest(partial)
            if replace:
                shutil.rmtree(folder, ignore_errors=True)
                partial.rename(folder)
            else:
                _move_files(partial, folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _move_files(partial, folder):
    for file in sorted(partial.iterdir(), key=lambda file: file.suffix == ".safetensors"):
        if (folder / file.name).is_dir():
            shutil.rmtree(folder / file.name)
        os.replace(file, folder / file.name)


@contextlib.contextmanager
def lock(folder: Path, wait: bool = True) -> Iterator[None]:
    """Context manager: holds the lock of a folder, which ends with the process.

    It works between processes of this machine and of others that share the disk, not between threads. With `wait`,
    other processes are waited for; otherwise raises UserError, which names the process, if one holds the lock.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / ".lock", "a+", encoding="utf-8") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except (BlockingIOError, PermissionError):
            file.seek(0)
            raise UserError(f"another training (process {file.read().strip() or 'unknown'}) is writing to {folder}: "
                            "wait for it or end it") from None
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield
