"""Blocks of computed values: NumPy arrays in files whose names have a hash of the content, which reveals damage."""

import hashlib
import io
import shutil
import sys

import numpy as np

from embedding_finetune.files import atomic_write, reading


def write_block(folder, array, key=""):
    """Write an array into a folder, as KEY-HASH.npy or, without a key, as HASH.npy; returns the path."""
    content = io.BytesIO()
    np.save(content, array)
    path = folder / f"{key}{'-' if key else ''}{block_hash(content.getbuffer())}.npy"
    with atomic_write(path, "wb") as file:
        file.write(content.getbuffer())
    return path


def read_block(path, remedy):
    """The array of a block, or None if it is damaged, which is reported with the `remedy`; the file is then removed."""
    with reading(path):
        content = path.read_bytes() if path.is_file() else b""
    if block_hash(content) == path.stem.rpartition("-")[2]:
        return np.load(io.BytesIO(content))
    print(f"{path} is damaged: removed, {remedy}", file=sys.stderr)
    shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    return None


def block_hash(content):
    """The hash in the name of a block with these bytes."""
    return hashlib.sha256(content).hexdigest()[:32]
