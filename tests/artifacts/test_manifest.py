"""Damage shows: in a record by its own hash, in a finished folder by those of its files."""

import os

import pytest

from embedding_finetune.artifacts.manifest import (
    MANIFEST,
    MODEL_CARD,
    changed_file,
    file_hashes,
    file_stamp,
    file_stamps,
    read_checksummed,
    read_record,
    verify_manifest,
    write_checksummed,
    write_manifest,
    write_record,
)
from embedding_finetune.files import read_json, sha256, write_json


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "model"
    (folder / "deeper").mkdir(parents=True)
    for name in ("weights", "deeper/layer", "deeper/README.md", MODEL_CARD):
        (folder / name).write_text(name)
    return folder


def test_a_record_comes_back_until_any_character_has_changed(tmp_path):
    path, value = tmp_path / "record.json", {"b": [1, None, {"größer": 0.1}], "a": "x"}
    write_checksummed(path, value | {"tuple": (1, 2), "keys": {2: 3, 10: 4}})
    assert read_checksummed(path) == value | {"tuple": [1, 2], "keys": {"2": 3, "10": 4}}
    text = path.read_text()
    for before, after in (("0.1", "0.2"), ('"x"', '"y"'), ('"b"', '"c"'), ('"seal": "', '"seal": "0')):
        path.write_text(text.replace(before, after))
        assert path.read_text() != text and read_checksummed(path) is None
    path.write_text(text[:-3])
    assert read_checksummed(path) is None


def test_a_record_of_an_earlier_version_has_no_checksum(tmp_path):
    (tmp_path / "record.json").write_text('{"a": 1}')
    for having in ({}, {"a": int}):
        assert read_checksummed(tmp_path / "record.json", having) == {"a": 1}
    for having in (None, {"a": str}, {"b": int}):
        assert read_checksummed(tmp_path / "record.json", having) is None
    (tmp_path / "record.json").write_text("[1]")
    assert read_checksummed(tmp_path / "record.json") is read_checksummed(tmp_path / "none.json", {}) is None


def test_a_whole_record_of_another_kind_is_none(tmp_path):
    write_checksummed(tmp_path / "record.json", {"a": 1})
    assert read_checksummed(tmp_path / "record.json", {"a": int}) == {"a": 1}
    for having in ({"a": str}, {"b": int}):
        assert read_checksummed(tmp_path / "record.json", having) is None


def test_the_record_of_an_artifact_has_its_inputs_and_the_hashes_of_its_files(folder):
    write_record(folder / "record.json", {"data": "x"}, ["weights", "none"], rows=3)
    written = read_record(folder / "record.json")
    assert written == {"inputs": {"data": "x"}, "files": {"weights": sha256(folder / "weights")}, "rows": 3}
    assert changed_file(folder, written["files"]) is None and file_hashes(folder, ["deeper"]) == {}
    (folder / "weights").write_text("WEIGHTS")
    assert changed_file(folder, written["files"]) == "weights"
    (folder / "record.json").write_text((folder / "record.json").read_text().replace('"x"', '"y"'))
    assert read_record(folder / "record.json") is read_record(folder / "none.json") is None
    for write, record in ((write_json, {"inputs": {}}), (write_checksummed, {"made_of": {}}),
                          (write_checksummed, {"inputs": [1]})):
        write(folder / "record.json", record)
        assert read_record(folder / "record.json") is None


def test_a_folder_with_a_manifest_names_its_first_damaged_file(folder):
    assert verify_manifest(folder) is None
    write_manifest(folder)
    assert verify_manifest(folder) is None and read_json(folder / MANIFEST).keys() == {
        "weights", "deeper/layer", "deeper/README.md", "seal"}
    (folder / MODEL_CARD).write_text("with metrics")
    (folder / "more").write_text("something beside it")
    assert verify_manifest(folder) is None
    (folder / "deeper" / "layer").write_text("deeper/lazer")
    assert verify_manifest(folder) == "deeper/layer"
    (folder / "deeper" / "layer").unlink()
    assert verify_manifest(folder) == "deeper/layer"
    (folder / MANIFEST).write_text("{}")
    assert verify_manifest(folder) == MANIFEST


def test_files_are_on_the_disk_before_their_manifest(folder, monkeypatch):
    synced, real = [], os.fsync
    monkeypatch.setattr("os.fsync", lambda fd: synced.append(os.readlink(f"/proc/self/fd/{fd}")) or real(fd))
    write_manifest(folder)
    names = [os.path.relpath(path, folder) for path in synced]
    assert set(names[:-1]) == {"weights", "deeper/layer", "deeper/README.md", MODEL_CARD} and MANIFEST in names[-1]


def test_a_stamp_changes_with_time_and_size(folder):
    path = folder / "weights"
    assert file_stamps([path, folder / "none"]) == {str(path): file_stamp(path), str(folder / "none"): []}
    os.utime(path, ns=(1, 1))
    assert file_stamp(path) == [7, 1]
