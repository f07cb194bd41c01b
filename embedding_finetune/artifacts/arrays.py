"""Stored NumPy arrays: each file is named by a hash of its content, which reveals damage."""

import contextlib
import hashlib
import io
import os
import shutil
import sys
from pathlib import Path

import numpy as np

from embedding_finetune.files import atomic_write, reading


def write_array(folder: Path, array: np.ndarray, key: str = "") -> Path:
    """Write an array into a folder, as KEY-HASH.npy or, without a key, as HASH.npy; returns the path."""
    content = io.BytesIO()
    np.save(content, array)
    path = folder / f"{key}{'-' if key else ''}{short_hash(content.getbuffer())}.npy"
    with atomic_write(path, "wb") as file:
        file.write(content.getbuffer())
    return path


def read_array(path: Path, remedy: str) -> np.ndarray | None:
    """The array of a file, or None if it is damaged: then it is removed, with a message that ends in `remedy`."""
    with reading(path):
        content = path.read_bytes() if path.is_file() else b""
    if short_hash(content) == path.stem.rpartition("-")[2]:
        return np.load(io.BytesIO(content))
    print(f"{path} is damaged: removed, {remedy}", file=sys.stderr)
    shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    return None


def short_hash(content: bytes | memoryview) -> str:
    """The first half of the SHA-256 of bytes, in hex."""
    return hashlib.sha256(content).hexdigest()[:32]


def link_or_write(array: np.ndarray, path: Path) -> None:
    """Write the values of an array to a new file, or make the file a hard link if the array is a memory-mapped file.

    A linked file takes no space of its own. That is safe because stored arrays are never changed in place.
    """
    source = getattr(array, "filename", None)
    if source and array.nbytes == os.path.getsize(source):
        with contextlib.suppress(OSError):  # another file system, or one without hard links
            os.link(source, path)
            return
    with open(path, "wb") as file:
        array.tofile(file)
