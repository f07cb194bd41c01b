import subprocess
import sys

import pytest

from embedding_finetune.files import ExperimentError, atomic_write, read_jsonl, sha256, write_jsonl


def test_rows_come_back_as_written(tmp_path):
    rows = [{"text": "größer < 5 &\n"}, {"text": "第二"}]
    write_jsonl(tmp_path / "new" / "rows.jsonl", rows)
    assert read_jsonl(tmp_path / "new" / "rows.jsonl") == rows


@pytest.mark.parametrize("content, message", [
    ('{"query": "a"}\n\n{"query": \n', "rows.jsonl, line 3: not valid JSON"),
    ('{"query": "a"}\n{"pos": []}\n', "rows.jsonl, line 2: no 'query'"),
    ('["query"]\n', "line 1: expected a JSON object, found list"),
    ("\n\n", "rows.jsonl is empty"),
])
def test_broken_rows_are_named_by_file_and_line(tmp_path, content, message):
    path = tmp_path / "rows.jsonl"
    path.write_text(content)
    with pytest.raises(ExperimentError, match=message):
        read_jsonl(path, required=("query",))


def test_missing_and_undecodable_files_are_named(tmp_path):
    with pytest.raises(ExperimentError, match="none.jsonl does not exist: it is made by the cook"):
        read_jsonl(tmp_path / "none.jsonl", made_by="the cook")
    (tmp_path / "latin.jsonl").write_bytes(b'{"a": "\xe9"}')
    with pytest.raises(ExperimentError, match="latin.jsonl is not UTF-8"):
        read_jsonl(tmp_path / "latin.jsonl")


def test_an_interrupted_write_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(KeyboardInterrupt), atomic_write(path) as file:
        file.write("new")
        raise KeyboardInterrupt
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"] and path.read_text() == "old"


def test_a_write_beyond_what_the_system_allows_keeps_the_old_file(tmp_path):
    """A limit on file sizes stands in for a full disk: the system refuses in the middle of the write."""
    (tmp_path / "rows.jsonl").write_text("old")
    code = ("import resource, sys; from embedding_finetune.files import *; resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000)); "
            "run_command_line(lambda: write_jsonl(sys.argv[1], [{'text': 'x' * 1000}] * 100))")
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "rows.jsonl")], capture_output=True, text=True)
    assert done.returncode == 1 and done.stderr.startswith("error: cannot write") and done.stderr.count("\n") == 1
    assert [entry.name for entry in tmp_path.iterdir()] == ["rows.jsonl"] and (tmp_path / "rows.jsonl").read_text() == "old"


def test_sha256_of_a_known_text(tmp_path):
    (tmp_path / "abc").write_text("abc")
    assert sha256(tmp_path / "abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
