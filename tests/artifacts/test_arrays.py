"""An array comes back as it was written, or its damage shows."""

import numpy as np
import pytest

from embedding_finetune.artifacts.arrays import read_array, write_array

ARRAY = np.arange(12, dtype=np.int32).reshape(3, 4)


@pytest.mark.parametrize("key", ["", "abc", "a-b"])
def test_what_is_written_is_read_under_its_key(tmp_path, key):
    path = write_array(tmp_path / "new", ARRAY, key)
    assert np.array_equal(read_array(path, "again"), ARRAY) and path.parent == tmp_path / "new"
    assert path.name.startswith(f"{key}-" if key else "") and write_array(tmp_path / "new", ARRAY, key) == path
    assert write_array(tmp_path / "new", ARRAY + 1, key) != path


@pytest.mark.parametrize("damage", [
    lambda path: path.write_bytes(path.read_bytes()[:-1]), lambda path: path.write_bytes(b""),
    lambda path: path.unlink() or (path / "inside").mkdir(parents=True),
])
def test_what_is_damaged_is_reported_and_removed(tmp_path, capsys, damage):
    path = write_array(tmp_path, ARRAY, "key")
    damage(path)
    assert read_array(path, "it is computed again") is None and not path.exists()
    assert capsys.readouterr().err == f"{path} is damaged: removed, it is computed again\n"
