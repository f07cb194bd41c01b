"""Reading and writing JSON lines: broken input is named by file and line, nothing is left half-written."""

import contextlib
import hashlib
import json
import os
import sys
from pathlib import Path


class ExperimentError(Exception):
    """Something the user can mend: one line that says what is wrong, where, and what to do."""

    def _render_traceback_(self):
        """IPython shows this instead of a stack of frames that would bury the message."""
        return [f"error: {self}"]


def run_command_line(main):
    """Call `main()`; turn an ExperimentError into one line on standard error and exit status 1."""
    try:
        main()
    except ExperimentError as error:
        sys.exit(f"error: {error}")


@contextlib.contextmanager
def atomic_write(path, mode="w"):
    """Open a file beside `path` for writing and rename it to `path` once it is complete.

    Raises ExperimentError when the disk is full or not writable; `path` then is as it was before.
    """
    path = Path(path)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(partial, mode, encoding=None if "b" in mode else "utf-8") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except OSError as error:
        raise ExperimentError(f"cannot write {path}: {error.strerror or error}; free some space or choose another "
                              "folder; the earlier content, if any, is untouched") from error
    finally:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)


def read_jsonl(path, *, required=(), made_by="the build notebooks"):
    """Read a file of JSON objects, one a line (blank lines are skipped).

    `required` names the keys each row must have; `made_by` says who writes the file, for the error message.
    Raises ExperimentError naming file and line when the file is missing, empty or broken.
    """
    path = Path(path)
    rows = []
    try:
        with open(path, encoding="utf-8") as file:
            for number, line in enumerate(file, start=1):
                if not line.strip():
                    continue
                try:
                    row = json.loads(line)
                except json.JSONDecodeError as error:
                    raise ExperimentError(f"{path}, line {number}: not valid JSON ({error.msg}); mend or remove it") from None
                if not isinstance(row, dict):
                    raise ExperimentError(f"{path}, line {number}: expected a JSON object, found {type(row).__name__}")
                missing = [key for key in required if key not in row]
                if missing:
                    raise ExperimentError(f"{path}, line {number}: no {missing[0]!r}; each row needs {', '.join(required)}")
                rows.append(row)
    except FileNotFoundError:
        raise ExperimentError(f"{path} does not exist: it is made by {made_by}") from None
    except UnicodeDecodeError as error:
        raise ExperimentError(f"{path} is not UTF-8 text ({error.reason} at byte {error.start})") from None
    except OSError as error:
        raise ExperimentError(f"cannot read {path}: {error.strerror}") from None
    if not rows:
        raise ExperimentError(f"{path} is empty: it is made by {made_by}")
    return rows


def write_jsonl(path, rows):
    """Write one JSON object a line, atomically."""
    with atomic_write(path) as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")


def write_json(path, value):
    """Write one JSON value with indentation, atomically."""
    with atomic_write(path) as file:
        file.write(json.dumps(value, ensure_ascii=False, indent=2) + "\n")


def sha256(path):
    """SHA-256 of a file's bytes, in hex."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
