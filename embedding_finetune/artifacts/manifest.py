"""Checksummed JSON records, and per-folder manifests of SHA-256 hashes."""

import json
import os
from pathlib import Path

from embedding_finetune.files import content_hash, read_json, sha256, write_json

CHECKSUM = "seal"  # key in a JSON object: hash of its other entries
MANIFEST = "complete.json"  # manifest of a finished folder: SHA-256 of each file
MODEL_CARD = "README.md"  # of a model; an evaluation adds its metrics
COMPILED_RECORD = "compiled.json"  # of a compiled model: its source and the export options
NOT_IDENTITY = (MODEL_CARD, "training_log.jsonl")  # files that do not affect what a model computes


def write_checksummed(path, value):
    """Write a JSON object with a checksum of itself, which `read_checksummed` verifies."""
    write_json(path, value | {CHECKSUM: _checksum(value)})


def read_checksummed(path, having=None):
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


def write_manifest(folder):
    """Sync the files of a folder to disk and write its manifest, after which the folder may be renamed into place.

    The model card and the training log are synced but not hashed.
    """
    hashes = {}
    for file in sorted(folder.rglob("*")):
        name = str(file.relative_to(folder))
        if file.is_file() and name != MANIFEST and not file.name.startswith("."):  # left by a killed process
            with open(file, "rb") as opened:
                os.fsync(opened.fileno())
            hashes |= {} if name in NOT_IDENTITY else {name: sha256(file)}
    write_checksummed(folder / MANIFEST, hashes)


def verify_manifest(folder, hashed=sha256):
    """The name of the first file of a folder that differs from its manifest, or None.

    Returns None as well if there is no manifest, and the manifest's own name if it is damaged. `hashed` maps a file to
    its hash.
    """
    if not (folder / MANIFEST).exists():
        return None
    hashes = read_checksummed(folder / MANIFEST)
    if not hashes:
        return MANIFEST
    return next((name for name, known in hashes.items() if not (folder / name).is_file()
                 or hashed(folder / name) != known), None)


def file_stamp(path):
    """[size, modification time in ns] of a file, [] if it does not exist; a change of content changes the stamp."""
    return [path.stat().st_size, path.stat().st_mtime_ns] if path.is_file() else []


def file_stamps(paths):
    """Path -> file_stamp."""
    return {str(path): file_stamp(Path(path)) for path in paths}


def fingerprints(folder, known):
    """Name -> [stamp, SHA-256] of each file of a folder.

    `known` are earlier fingerprints; a file whose stamp is unchanged is not read again.
    """
    found = {str(path.relative_to(folder)): file_stamp(path) for path in sorted(folder.rglob("*")) if path.is_file()}
    return {name: known[name] if known.get(name, [None])[0] == stamp else [stamp, sha256(folder / name)]
            for name, stamp in found.items()}


def has_same_stamps(folder, known):
    """Whether all files of `known` (see fingerprints) exist with the same stamps."""
    return all(file_stamp(folder / name) == stamp for name, (stamp, _) in known.items())


def has_same_content(folder, known, read_all=False):
    """Whether all files of `known` (see fingerprints) exist with the same content.

    Only files with a changed stamp are read, unless `read_all`.
    """
    return all(not read_all and file_stamp(folder / name) == stamp
               or file_stamp(folder / name) and sha256(folder / name) == digest
               for name, (stamp, digest) in known.items())
