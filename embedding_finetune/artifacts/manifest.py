"""Checksums: JSON records that name what an artifact was made from, and manifests of finished folders."""

import json
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from embedding_finetune.files import content_hash, read_json, sha256, write_json

CHECKSUM = "seal"  # key in a JSON object: hash of its other entries
MANIFEST = "complete.json"  # manifest of a finished folder: SHA-256 of each file
MODEL_CARD = "README.md"  # of a model; an evaluation adds its metrics
COMPILED_RECORD = "compiled.json"  # of a compiled model: its inputs and the export options
TRAINING_LOG = "training_log.jsonl"  # in a model's folder; it does not affect what the model computes


def write_record(path: Path, inputs: dict, files: Iterable[str] = (), **more: object) -> None:
    """Write the record of an artifact, a checksummed JSON object.

    `inputs` is what the artifact was made from (see artifacts.provenance). `files` are names in the record's folder;
    the record has their hashes. `more` is added unchanged.
    """
    write_checksummed(path, {"inputs": inputs, "files": file_hashes(path.parent, files), **more})


def read_record(path: Path, having: Iterable[str] = ()) -> dict | None:
    """The record written by `write_record`, or None if it is missing, damaged, or that of another kind of artifact.

    `having` are names of inputs that every artifact of this kind has.
    """
    record = read_checksummed(path)
    inputs = record.get("inputs") if record else None
    return record if isinstance(inputs, dict) and inputs.keys() >= set(having) else None


def write_checksummed(path: Path, value: dict) -> None:
    """Write a JSON object with a checksum of itself, which `read_checksummed` verifies."""
    write_json(path, value | {CHECKSUM: _checksum(value)})


def read_checksummed(path: Path, having: dict[str, type] | None = None) -> dict | None:
    """The JSON object written by `write_checksummed`, or None if it is missing, damaged or of another kind.

    `having` (key -> type) lists the entries that the object must have. Records of earlier versions have no checksum;
    they are accepted only if `having` is given.
    """
    value = read_json(path)
    if not isinstance(value, dict):
        return None
    if not all(isinstance(value.get(key), kind) for key, kind in (having or {}).items()):
        return None
    if CHECKSUM in value:
        checksum = value.pop(CHECKSUM)
        return value if checksum == _checksum(value) else None
    return None if having is None else value


def _checksum(value):
    return content_hash(json.loads(json.dumps(value)))[:32]  # as it is read back: keys are strings, tuples are lists


def write_manifest(folder: Path) -> None:
    """Sync the files of a folder to disk and write its manifest, after which the folder may be renamed into place.

    The model card, to which an evaluation adds metrics, is synced but not hashed.
    """
    names = [str(file.relative_to(folder)) for file in sorted(folder.rglob("*"))
             if file.is_file() and not file.name.startswith(".")]  # left by a killed process
    for name in names:
        with open(folder / name, "rb") as file:
            os.fsync(file.fileno())
    hashed = [name for name in names if name not in (MANIFEST, MODEL_CARD)]
    write_checksummed(folder / MANIFEST, file_hashes(folder, hashed))


def verify_manifest(folder: Path, hashed: Callable[[Path], str] = sha256) -> str | None:
    """The name of the first file of a folder that differs from its manifest, or None; the training log does not count.

    Returns None as well if there is no manifest, and the manifest's own name if it is damaged. `hashed` maps a file to
    its hash.
    """
    if not (folder / MANIFEST).exists():
        return None
    hashes = read_checksummed(folder / MANIFEST)
    if not hashes:
        return MANIFEST
    hashes.pop(TRAINING_LOG, None)
    return changed_file(folder, hashes, hashed=hashed)


def file_hashes(folder: Path, names: Iterable[str]) -> dict[str, str]:
    """Name -> SHA-256 of those files of a folder that exist."""
    return {name: sha256(folder / name) for name in names if (folder / name).is_file()}


def changed_file(folder: Path, files: dict[str, Any], hashed: Callable[[Path], str] = sha256) -> str | None:
    """The name of the first file that is missing or has another content, or None.

    `files` is name -> SHA-256, or name -> [stamp, SHA-256]; `hashed` maps a file to its hash.
    """
    return next((name for name, known in files.items() if not (folder / name).is_file()
                 or hashed(folder / name) != (known[1] if isinstance(known, list) else known)), None)


def file_stamp(path: Path) -> list[int]:
    """[size, modification time in ns] of a file, [] if it does not exist; a change of content changes the stamp."""
    return [path.stat().st_size, path.stat().st_mtime_ns] if path.is_file() else []


def file_stamps(paths: Iterable[str | Path]) -> dict[str, list[int]]:
    """Path -> file_stamp."""
    return {str(path): file_stamp(Path(path)) for path in paths}
