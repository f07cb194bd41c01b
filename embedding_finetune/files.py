"""Reading and writing files: errors name the file and line, writes are atomic."""

import argparse
import contextlib
import errno
import hashlib
import json
import os
import re
import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

FILE_VISIBILITY_LAG = 60  # seconds until every node sees a new file: NFS caches directories that long (acdirmax)
DISK_ERRNOS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO)
# Messages of Rust libraries, PyTorch and faiss, which report disk errors without an OSError.
DISK_ERROR_MESSAGE = re.compile(r"\(os error \d+\)|inline_container|iostream error|write error in|for writing: ")
MEMORY_ERROR_MESSAGE = re.compile("memory|bad_alloc|can't start new thread", re.IGNORECASE)


class UserError(Exception):
    """An error that the user can fix: one line that says what is wrong, where, and how to fix it."""

    def _render_traceback_(self):
        """Hook of IPython: show the message in place of a traceback, which would bury it."""
        return [f"error: {self}"]


class CommandLine(argparse.ArgumentParser):
    """Argument parser of `python -m embedding_finetune COMMAND`; errors are UserErrors, of one line."""

    def __init__(self, command: str, description: str | None):
        super().__init__(prog=f"python -m embedding_finetune {command}", description=description, allow_abbrev=False,
                         formatter_class=argparse.RawDescriptionHelpFormatter)

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}: `{self.prog} --help` lists the arguments")


def parse_label(command: str, description: str, labels: str) -> str:
    """The LABEL argument of a command that has no other; `labels` says for --help which there are."""
    parser = CommandLine(command, description)
    parser.add_argument("label", metavar="LABEL", help=labels)
    return parser.parse_args().label


def run_command_line(main: Callable[[], object]) -> None:
    """Call `main()`; a UserError, a disk error or Ctrl-C becomes one line on standard error and exit status 1 or 130.

    Other exceptions pass through.
    """
    try:
        main()
    except UserError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        print("interrupted: the same command continues", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:  # the reader, such as `head`, has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # so that flushing at exit does not fail again
    except OSError as error:
        if error.errno not in DISK_ERRNOS:
            raise
        sys.exit(f"error: {one_line(error)}: fix the cause (disk space, permissions, a failing disk) "
                 "and run the same command again")


def one_line(error: BaseException | str) -> str:
    """The message of an exception on one line of at most 300 characters, or its type if it has no message."""
    return " ".join(str(error).split())[:300] or type(error).__name__


def one_letter_off(name: str, known: Collection[str]) -> str | None:
    """The name in `known` that differs from `name` by one added, missing or replaced letter, or None.

    Only known names of five letters or more are considered. A name that is itself in `known` gives None.
    """
    for other in known if name not in known else ():
        same = len(os.path.commonprefix([name, other]))
        rest, wanted = name[same:], other[same:]
        if len(other) > 4 and (rest[1:] in (wanted, wanted[1:]) or rest == wanted[1:]):
            return other
    return None


def is_disk_error(error: BaseException | None) -> bool:
    """Whether an exception, or one of its causes, reports that reading or writing failed."""
    return _matches(error, OSError, DISK_ERROR_MESSAGE)


def is_memory_error(error: BaseException | None) -> bool:
    """Whether an exception, or one of its causes, reports that memory ran out."""
    return _matches(error, MemoryError, MEMORY_ERROR_MESSAGE)


def _matches(error, kind, pattern):
    return error is not None and (isinstance(error, kind) or pattern.search(str(error)) is not None
                                  or _matches(error.__cause__, kind, pattern))


@contextlib.contextmanager
def writing(what: object, remedy: str = "free some space and try again") -> Iterator[None]:
    """Context manager around writing with any library: a disk error becomes a UserError; others pass through."""
    try:
        yield
    except Exception as error:
        if isinstance(error, UserError) or not is_disk_error(error):
            raise
        raise UserError(f"cannot write {what}: {one_line(error)}; {remedy}") from error


@contextlib.contextmanager
def reading(path: str | Path) -> Iterator[None]:
    """Context manager around reading a file: raises UserError if the file exists but cannot be read.

    A missing file, or a folder in its place, raises as usual and is left to the caller.
    """
    try:
        yield
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        raise
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}; fix the cause (permissions, a failing disk) "
                        "or replace the file with a copy") from error


def may_overwrite() -> bool:
    """Whether OVERWRITE=1 allows finished outputs to be replaced."""
    return os.environ.get("OVERWRITE") == "1"


@contextlib.contextmanager
def atomic_write(path: str | Path, mode: str = "w") -> Iterator[Any]:
    """Context manager: write to a temporary file next to `path`, synced and renamed to `path` at the end.

    The temporary name contains the host and the process id, since several processes may share the folder. Raises
    UserError when the disk is full or not writable; `path` is then unchanged.
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
                        "folder; an existing file is unchanged") from error
    finally:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)


def read_lines(path: str | Path, made_by: str) -> Iterator[tuple[int, str]]:
    """Yield (line number, line) of a UTF-8 text file, without a byte order mark.

    Raises UserError when it is missing or not UTF-8.
    """
    try:
        with reading(path), open(path, encoding="utf-8-sig") as file:
            yield from enumerate(file, start=1)
    except FileNotFoundError:
        raise UserError(f"{path} does not exist: it is made by {made_by}") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text ({error.reason} at byte {error.start})") from None
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None


def read_jsonl(path: str | Path, *, required: Sequence[str] = (), made_by: str = "the build notebooks") -> list[dict]:
    """The rows of `iter_jsonl` as a list."""
    return list(iter_jsonl(path, required=required, made_by=made_by))


def iter_jsonl(path: str | Path, *, required: Sequence[str] = (),
               made_by: str = "the build notebooks") -> Iterator[dict]:
    """Yield the objects of a JSON Lines file; blank lines are skipped.

    `required` lists the keys that each row must have. `made_by` names the writer of the file in error messages.
    Raises UserError naming file and line when the file is missing, empty or malformed.
    """
    found = False
    for number, line in read_lines(path, made_by):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{path}, line {number}: not valid JSON ({getattr(error, 'msg', 'too deep')}); fix or "
                            "remove the line") from None
        if not isinstance(row, dict):
            raise UserError(f"{path}, line {number}: expected a JSON object, found {type(row).__name__}")
        missing = [key for key in required if key not in row]
        if missing:
            raise UserError(f"{path}, line {number}: missing {missing[0]!r}; each row needs {', '.join(required)}")
        found = True
        yield row
    if not found:
        raise UserError(f"{path} is empty: it is made by {made_by}")


def write_jsonl(path: str | Path, rows: Iterable[dict]) -> None:
    """Write a JSON Lines file atomically."""
    with atomic_write(path) as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def read_json(path: str | Path) -> Any:
    """The JSON value of a file, or None if the file is missing or not valid JSON.

    Raises UserError when the file exists but cannot be read: its content is unknown, so nothing may be rebuilt because
    of it.
    """
    try:
        with reading(path):
            return json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):  # RecursionError: nested too deeply
        return None


def write_json(path: str | Path, value: object) -> None:
    """Write a JSON value atomically, indented."""
    with atomic_write(path) as file:
        file.write(json.dumps(value, ensure_ascii=False, indent=2) + "\n")


def sha256(path: str | Path) -> str:
    """SHA-256 of a file, in hex. Raises UserError when it is a folder or cannot be read."""
    if os.path.isdir(path):
        raise UserError(f"{path} is a folder, but a file is expected there: move the folder away")
    with reading(path), open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def content_hash(*values: object) -> str:
    """SHA-256 of JSON values, in hex; the order of keys in an object does not matter."""
    digest = hashlib.sha256()
    for value in values:
        digest.update(json.dumps(value, sort_keys=True).encode() + b"\n")
    return digest.hexdigest()
