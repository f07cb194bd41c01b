"""Checkpoints that are whole or absent, and the lock of the folder they are in."""

import contextlib
import fcntl
import os
import shutil
import sys
from pathlib import Path

from embedding_finetune.artifacts.manifest import MANIFEST, verify_manifest, write_manifest
from embedding_finetune.files import UserError, is_disk_error, one_line


def is_complete(folder):
    """Whether the folder carries its marker and every file that the marker lists, as it was written."""
    try:
        return (folder / MANIFEST).exists() and verify_manifest(folder) is None
    except OSError:
        return False


def complete_checkpoints(output):
    """The complete checkpoints in a folder, the one with the most steps first; others are passed over."""
    folders = sorted(Path(output).glob("checkpoint-[0-9]*"), key=lambda folder: -int(folder.name.rpartition("-")[2]))
    complete = [folder for folder in folders if is_complete(folder)]
    for folder in folders:
        if folder not in complete:
            print(f"passing over {folder}: it was not written to its end", file=sys.stderr)
    return complete


def commit(written, folder):
    """Give a checkpoint that was written beside its name, once its files are on the disk and its marker lists them."""
    write_manifest(written)
    written.rename(folder)


def remove_checkpoint(folder):
    """Remove a checkpoint; its marker first, so that no half of it passes for the whole."""
    (folder / MANIFEST).unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def staged_dir(folder, what="model"):
    """A path to write a finished model to: what is there when the block ends moves into `folder`, the weights last, so
    that a folder without them was never finished. Raises UserError when the disk has no room.
    """
    partial = folder / ".export.partial"
    try:
        shutil.rmtree(partial, ignore_errors=True)
        yield partial
        write_manifest(partial)
        for file in sorted(partial.iterdir(), key=lambda file: file.suffix == ".safetensors"):
            if (folder / file.name).is_dir():
                shutil.rmtree(folder / file.name)
            os.replace(file, folder / file.name)
    except Exception as error:
        if isinstance(error, UserError) or not is_disk_error(error):
            raise
        raise UserError(f"cannot write the {what} to {folder}: {one_line(error)}; free some space and run the same "
                        "command again") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


@contextlib.contextmanager
def try_lock(folder):
    """Hold the folder's lock; raises UserError when another training does. The lock ends with the process."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / ".lock", "a+", encoding="utf-8") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            file.seek(0)
            raise UserError(f"another training (process {file.read().strip() or 'unknown'}) is writing to {folder}: "
                            "wait for it, end it, or choose another --output_dir") from None
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


@contextlib.contextmanager
def lock(folder):
    """Wait until no other process, of this machine or of one that shares the disk, is in such a block of the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / ".turn", "a", encoding="utf-8") as file:
        fcntl.lockf(file, fcntl.LOCK_EX)
        yield
