"""Whether a file is still what was written: records with a hash of themselves, folders with a hash of each file."""

import json
import os
from pathlib import Path

from embedding_finetune.files import content_hash, read_json, sha256, write_json

CHECKSUM = "seal"  # in a JSON object: a hash of all else in it
MANIFEST = "complete.json"  # in a folder that was finished: the SHA-256 of each of its files
MODEL_CARD = "README.md"  # of a model, which an evaluation completes
COMPILED_RECORD = "compiled.json"  # of a compiled model: of what it was made, and how
NOT_IDENTITY = (MODEL_CARD, "training_log.jsonl")  # what no use of a model depends on


def write_checksummed(path, value):
    """Write a JSON object as `write_json` does, with a hash of itself, by which `read_sealed` sees any damage."""
    write_json(path, value | {CHECKSUM: _checksum(value)})


def read_checksummed(path, having=None):
    """The JSON object that `write_sealed` wrote; None where there is no such file, another content than it had, or
    another object than one with all that `having` (key -> type) says.

    One without a hash is of an earlier version of this package: it is taken where `having` says what it must have.
    """
    value = read_json(path)
    if not isinstance(value, dict):
        return None
    if not all(isinstance(value.get(key), kind) for key, kind in (having or {}).items()):
        return None
    if CHECKSUM in value:
        seal = value.pop(CHECKSUM)
        return value if seal == _checksum(value) else None
    return None if having is None else value


def _checksum(value):
    return content_hash(json.loads(json.dumps(value)))[:32]  # as it will be read: keys are texts, tuples lists


def write_manifest(folder):
    """Bring the files of a folder to the disk and write its marker: only then may it bear the name of something
    finished. A model's card and log are left out."""
    hashes = {}
    for file in sorted(folder.rglob("*")):
        name = str(file.relative_to(folder))
        if file.is_file() and name != MANIFEST and not file.name.startswith("."):  # that is of a process that was killed
            with open(file, "rb") as opened:
                os.fsync(opened.fileno())
            hashes |= {} if name in NOT_IDENTITY else {name: sha256(file)}
    write_checksummed(folder / MANIFEST, hashes)


def verify_manifest(folder, hashed=sha256):
    """The first file of a folder that is not as its marker says, or the marker; None where all are, or there is
    none. `hashed` gives a file's hash."""
    if not (folder / MANIFEST).exists():
        return None
    hashes = read_checksummed(folder / MANIFEST)
    if not hashes:
        return MANIFEST
    return next((name for name, known in hashes.items() if not (folder / name).is_file()
                 or hashed(folder / name) != known), None)


def file_stamp(path):
    """Size and time of change of a file: while these stay, so does the content; [] where there is none."""
    return [path.stat().st_size, path.stat().st_mtime_ns] if path.is_file() else []


def file_stamps(paths):
    """Path -> its stamp."""
    return {str(path): file_stamp(Path(path)) for path in paths}


def fingerprints(folder, known):
    """Name -> [stamp, SHA-256] of each file of a folder; `known`, the last ones, spare reading what is untouched."""
    found = {str(path.relative_to(folder)): file_stamp(path) for path in sorted(folder.rglob("*")) if path.is_file()}
    return {name: known[name] if known.get(name, [None])[0] == stamped else [stamped, sha256(folder / name)]
            for name, stamped in found.items()}


def has_same_stamps(folder, known):
    """Whether the files of `fingerprints` are there with their stamps."""
    return all(file_stamp(folder / name) == stamped for name, (stamped, _) in known.items())


def has_same_content(folder, known, read_all=False):
    """Whether the files of `fingerprints` are there with their content. Only those touched since are read, unless
    `read_all`."""
    return all(not read_all and file_stamp(folder / name) == stamped
               or file_stamp(folder / name) and sha256(folder / name) == digest for name, (stamped, digest) in known.items())
