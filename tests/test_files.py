import os
import subprocess
import sys

import pytest

from embedding_finetune.artifacts.manifest import TRAINING_LOG
from embedding_finetune.files import (
    UserError,
    atomic_write,
    content_hash,
    is_disk_error,
    is_memory_error,
    may_overwrite,
    one_line,
    read_json,
    read_jsonl,
    run_command_line,
    sha256,
    write_json,
    write_jsonl,
)
from embedding_finetune.settings import ROOT
from embedding_finetune.training.log import read_log


def test_rows_come_back_as_written(tmp_path):
    rows = [{"text": "größer < 5 &\n"}, {"text": "第二"}]
    write_jsonl(tmp_path / "new" / "rows.jsonl", rows)
    assert read_jsonl(tmp_path / "new" / "rows.jsonl") == rows


@pytest.mark.parametrize("content, message", [
    ('{"query": "a"}\n\n{"query": \n', "rows.jsonl, line 3: not valid JSON"),
    ('{"query": "a"}\n{"pos": []}\n', "rows.jsonl, line 2: missing 'query'"),
    ('["query"]\n', "line 1: expected a JSON object, found list"),
    ("\n\n", "rows.jsonl is empty"),
    ('{"a": ' + "[" * 100_000 + "]" * 100_000 + "}\n", "rows.jsonl, line 1: not valid JSON .too deep.; fix or remove"),
])
def test_broken_rows_are_named_by_file_and_line(tmp_path, content, message):
    path = tmp_path / "rows.jsonl"
    path.write_text(content)
    with pytest.raises(UserError, match=message):
        read_jsonl(path, required=("query",))


def test_missing_and_undecodable_files_are_named(tmp_path):
    with pytest.raises(UserError, match="none.jsonl does not exist: it is made by the cook"):
        read_jsonl(tmp_path / "none.jsonl", made_by="the cook")
    (tmp_path / "latin.jsonl").write_bytes(b'{"a": "\xe9"}')
    with pytest.raises(UserError, match="latin.jsonl is not UTF-8"):
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
    code = ("import resource, sys; from embedding_finetune.files import *; "
            "resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000)); "
            "run_command_line(lambda: write_jsonl(sys.argv[1], [{'text': 'x' * 1000}] * 100))")
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "rows.jsonl")], capture_output=True, text=True,
                          env=os.environ | {"PYTHONPATH": str(ROOT)})
    assert done.returncode == 1 and done.stderr.startswith("error: cannot write") and done.stderr.count("\n") == 1
    assert [entry.name for entry in tmp_path.iterdir()] == ["rows.jsonl"]
    assert (tmp_path / "rows.jsonl").read_text() == "old"


def test_a_json_file_that_is_none_reads_as_nothing(tmp_path):
    write_json(tmp_path / "new" / "value.json", {"größer": [1, None]})
    assert read_json(tmp_path / "new" / "value.json") == {"größer": [1, None]}
    assert read_json(tmp_path / "none.json") is read_json(tmp_path) is None
    for content in (b"{", b"", b"\xff", b"[" * 100_000):
        (tmp_path / "broken.json").write_bytes(content)
        assert read_json(tmp_path / "broken.json") is None


def test_a_hash_of_content_depends_on_values_and_their_order_alone():
    assert content_hash({"a": 1, "b": 2}) == content_hash({"b": 2, "a": 1}) != content_hash({"a": 1, "b": 3})
    assert content_hash("a", "b") != content_hash("b", "a") != content_hash("ba") != content_hash(["b", "a"])
    assert len(content_hash(None, "\ud800")) == 64


def test_an_error_of_the_user_is_one_line_and_nothing_else_is_caught(capsys):
    def fail(error):
        raise error

    with pytest.raises(SystemExit, match="^error: fix this$"):
        run_command_line(lambda: fail(UserError("fix this")))
    with pytest.raises(KeyError):
        run_command_line(lambda: fail(KeyError("a bug")))
    assert one_line(ValueError("two\n  lines")) == "two lines" and one_line(OSError()) == "OSError"
    assert UserError("fix this")._render_traceback_() == ["error: fix this"]


@pytest.mark.parametrize("error, of_disk", [
    (OSError(28, "No space left on device"), True), (Exception("Permission denied (os error 13)"), True),
    (RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 64 vs 0"), True),
    (RuntimeError("write error in x/faiss.index: 0 != 1 (No space left on device)"), True),
    (RuntimeError("could not open x/faiss.index for writing: Read-only file system"), True),
    (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False), (KeyError("writing"), False)])
def test_what_the_disk_says_is_known_whoever_says_it(error, of_disk):
    assert is_disk_error(error) is of_disk
    outer = UserError("it cannot be")
    outer.__cause__ = error
    assert is_disk_error(outer) is of_disk


def test_a_failing_disk_is_one_line_and_other_errors_of_the_system_are_not_caught():
    def fail(number):
        raise OSError(number, "it says", "some/file")

    message = "^error: .*it says: 'some/file': fix the cause .* run the same command again$"
    with pytest.raises(SystemExit, match=message):
        run_command_line(lambda: fail(28))
    with pytest.raises(FileNotFoundError):
        run_command_line(lambda: fail(2))


def test_only_1_allows_to_overwrite(monkeypatch):
    for value, allowed in (("1", True), ("0", False), ("", False)):
        monkeypatch.setenv("OVERWRITE", value)
        assert may_overwrite() is allowed
    monkeypatch.delenv("OVERWRITE")
    assert not may_overwrite()


def test_sha256_of_a_known_text(tmp_path):
    (tmp_path / "abc").write_text("abc")
    with pytest.raises(UserError, match="is a folder, but a file is expected there"):
        sha256(tmp_path)
    assert sha256(tmp_path / "abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


@pytest.mark.skipif(not os.path.exists("/proc/self/mem"), reason="no file whose reading fails without a broken disk")
@pytest.mark.parametrize("read", [read_json, read_jsonl, sha256, lambda path: read_log(path.parent)])
def test_what_is_there_and_cannot_be_read_does_not_pass_for_missing(tmp_path, read):
    (tmp_path / TRAINING_LOG).symlink_to("/proc/self/mem")  # the first bytes of a process are mapped to nothing
    with pytest.raises(UserError, match=f"cannot read .*{TRAINING_LOG}: Input/output error"):
        read(tmp_path / TRAINING_LOG)


def test_too_little_memory_is_told_from_what_a_library_says():
    assert is_memory_error(MemoryError()) and is_memory_error(RuntimeError("can't start new thread"))
    assert is_memory_error(RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory"))
    error = UserError("it cannot be written as a graph")
    assert not is_memory_error(error)
    error.__cause__ = MemoryError()
    assert is_memory_error(error) and not is_memory_error(None)
    assert not is_memory_error(ValueError("its vectors are others"))
