"""Reading and writing: broken input is named by file and line, nothing is left half-written."""

import argparse
import contextlib
import errno
import hashlib
import json
import os
import re
import sys
from pathlib import Path

FILE_VISIBILITY_LAG = 60  # seconds until a file is seen on all machines: as long as NFS keeps what a folder held (acdirmax)
DISK_ERRNOS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO)
# What libraries in Rust, PyTorch and faiss say of these, who have no OSError for it.
DISK_ERROR_MESSAGE = re.compile(r"\(os error \d+\)|inline_container|iostream error|write error in|for writing: ")
MEMORY_ERROR_MESSAGE = re.compile("memory|bad_alloc|can't start new thread", re.IGNORECASE)


class UserError(Exception):
    """Something the user can mend: one line that says what is wrong, where, and what to do."""

    def _render_traceback_(self):
        """IPython shows this instead of a stack of frames that would bury the message."""
        return [f"error: {self}"]


class CommandLine(argparse.ArgumentParser):
    """The arguments of `python -m embedding_finetune COMMAND`; a wrong one is a UserError, not argparse's two lines."""

    def __init__(self, command, description):
        super().__init__(prog=f"python -m embedding_finetune {command}", description=description,
                         formatter_class=argparse.RawDescriptionHelpFormatter)

    def error(self, message):
        raise UserError(f"{message}: `{self.prog} --help` lists the arguments")


def run_command_line(main):
    """Call `main()`; turn an UserError, and what the disk has against a file, into one line on standard error and exit
    status 1."""
    try:
        main()
    except UserError as error:
        sys.exit(f"error: {error}")
    except OSError as error:
        if error.errno not in DISK_ERRNOS:
            raise
        sys.exit(f"error: {one_line(error)}: mend that (space, permission, the disk) and run the same command again")


def one_line(error):
    """The message of an exception on one line, or its type where it has none."""
    return " ".join(str(error).split())[:300] or type(error).__name__


def one_letter_off(name, known):
    """The name among `known` (of five letters or more) that `name` misses by one letter added, left out or replaced;
    None where there is none, or where `name` is known itself."""
    for other in known if name not in known else ():
        same = len(os.path.commonprefix([name, other]))
        rest, wanted = name[same:], other[same:]
        if len(other) > 4 and (rest[1:] in (wanted, wanted[1:]) or rest == wanted[1:]):
            return other
    return None


def is_disk_error(error):
    """Whether an exception of whatever type, or what has led to it, says that a file could not be written."""
    return _matches(error, OSError, DISK_ERROR_MESSAGE)


def is_memory_error(error):
    """Whether an exception of whatever type, or what has led to it, says that there was too little memory."""
    return _matches(error, MemoryError, MEMORY_ERROR_MESSAGE)


def _matches(error, kind, words):
    return error is not None and (isinstance(error, kind) or words.search(str(error)) is not None
                                  or _matches(error.__cause__, kind, words))


@contextlib.contextmanager
def reading(path):
    """Around what reads a file. Raises UserError when it is there and cannot be read; that it is not there, or is a
    folder, is for the caller to say."""
    try:
        yield
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        raise
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}; mend that (permission, the disk), or put a "
                        "copy in its place") from None


def may_overwrite():
    """Whether OVERWRITE=1 allows what is finished to be replaced."""
    return os.environ.get("OVERWRITE") == "1"


@contextlib.contextmanager
def atomic_write(path, mode="w"):
    """Open a file beside `path` for writing and rename it to `path` once it is complete. It bears the names of process
    and machine: several may write into a folder that they share.

    Raises UserError when the disk is full or not writable; `path` then is as it was before.
    """
    path = Path(path)
    partial = path.with_name(f".{path.name}.{os.uname().nodename}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(partial, mode, encoding=None if "b" in mode else "utf-8") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}; free some space or choose another "
                        "folder; the earlier content, if any, is untouched") from error
    finally:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)


def read_lines(path, made_by):
    """Yield (number, line) of a UTF-8 text file; raises UserError when it is missing or not such a file."""
    try:
        with reading(path), open(path, encoding="utf-8") as file:
            yield from enumerate(file, start=1)
    except FileNotFoundError:
        raise UserError(f"{path} does not exist: it is made by {made_by}") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text ({error.reason} at byte {error.start})") from None
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None


def read_jsonl(path, *, required=(), made_by="the build notebooks"):
    """The rows that `iter_jsonl` yields, as a list."""
    return list(iter_jsonl(path, required=required, made_by=made_by))


def iter_jsonl(path, *, required=(), made_by="the build notebooks"):
    """Yield the JSON objects of a file that has one a line (blank lines are skipped).

    `required` names the keys each row must have; `made_by` says who writes the file, for the error message.
    Raises UserError naming file and line when the file is missing, empty or broken.
    """
    found = False
    for number, line in read_lines(path, made_by):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{path}, line {number}: not valid JSON ({getattr(error, 'msg', 'too deep')}); mend or "
                            "remove it") from None
        if not isinstance(row, dict):
            raise UserError(f"{path}, line {number}: expected a JSON object, found {type(row).__name__}")
        missing = [key for key in required if key not in row]
        if missing:
            raise UserError(f"{path}, line {number}: no {missing[0]!r}; each row needs {', '.join(required)}")
        found = True
        yield row
    if not found:
        raise UserError(f"{path} is empty: it is made by {made_by}")


def write_jsonl(path, rows):
    """Write one JSON object a line, atomically."""
    with atomic_write(path) as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def read_json(path):
    """The JSON value of a file, or None where there is no such file, or no JSON in it. Raises UserError when it cannot
    be read: what it says is not known then, and nothing may be made anew for that."""
    try:
        with reading(path):
            return json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):  # the last: brackets in brackets without end
        return None


def write_json(path, value):
    """Write one JSON value with indentation, atomically."""
    with atomic_write(path) as file:
        file.write(json.dumps(value, ensure_ascii=False, indent=2) + "\n")


def sha256(path):
    """SHA-256 of a file's bytes, in hex. Raises UserError when a folder stands in its place, or it cannot be read."""
    if os.path.isdir(path):
        raise UserError(f"{path} is a folder, where a file must be: move it away")
    with reading(path), open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def content_hash(*values):
    """SHA-256 of JSON values, in hex: what two makings must have in common to be the same."""
    digest = hashlib.sha256()
    for value in values:
        digest.update(json.dumps(value, sort_keys=True).encode() + b"\n")
    return digest.hexdigest()
