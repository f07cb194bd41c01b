"""A fork server for trials: the parent imports and never computes, a child runs one step in the same small folder."""

import contextlib
import ctypes
import gc
import hashlib
import importlib
import json
import os
import re
import resource
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import traceback
from dataclasses import dataclass
from pathlib import Path

from embedding_finetune.files import UserError

HERE = Path(__file__).parent
OPEN, WRITE, FSYNC, RENAME, UNLINK, MKDIR, READ = (1 << bit for bit in range(7))
CHANGES = OPEN | WRITE | FSYNC | RENAME | UNLINK | MKDIR
WATCH, KILL, TEAR, FAIL, SIGNAL = range(5)
NAMES = {OPEN: "open", WRITE: "write", FSYNC: "fsync", RENAME: "rename", UNLINK: "unlink", MKDIR: "mkdir",
         READ: "read"}
DONE, REFUSED, RAISED, KILLED, HUNG = "done", "refused", "raised", "killed", "hung"
LEFTOVER = re.compile(r"\.(lock|turn)$|\.partial$|^\.tmp|^\.cache$")  # of a process that was killed; nothing reads it
VARYING = ("finished", "ms_per_query", "ms", "exact_ms", "p99_ms", "exact_p99_ms", "passages_per_second", "memory_gb",
           "files", "sources", "seal", "train_runtime", "train_samples_per_second", "train_steps_per_second", "seconds",
           "encode_seconds", "training_log.jsonl")  # the last is the log's hash in a manifest: it holds times
PATIENCE = 120  # seconds, after which a trial hangs


def preloaded():
    """Compile interpose.c and begin anew with it preloaded, unless that is so already."""
    library = Path(tempfile.gettempdir()) / f"interpose-{hashlib.sha256(_source()).hexdigest()[:12]}.so"
    if os.environ.get("LD_PRELOAD") != str(library):
        partial = library.with_suffix(f".{os.getpid()}")
        subprocess.run(["cc", "-O2", "-shared", "-fPIC", "-o", partial, HERE / "interpose.c", "-ldl"], check=True)
        partial.rename(library)
        threads = {name: "1" for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")}
        os.execve(sys.executable, sys.orig_argv, os.environ | threads | {
            "LD_PRELOAD": str(library), "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1",
            "HF_HUB_DISABLE_XET": "1", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))})


def _source():
    return (HERE / "interpose.c").read_bytes()


@dataclass(frozen=True)
class Fault:
    """What strikes at the `at`-th change below a path (see interpose.c); `lasting`: at all later ones, too."""

    action: int
    at: int = -1
    number: int = 0
    kinds: int = CHANGES
    lasting: bool = False
    power: bool = False  # what was not fsynced is gone afterwards
    below: str = ""  # the trial's folder


@dataclass
class Outcome:
    """How a child ended, and what it said; `events` are the changes that it made, `value` what the step returned."""

    how: str
    said: str = ""
    value: object = None
    events: tuple = ()


class Laboratory:
    """Folders of one series of trials: `trial`, where all steps run, and `states`, copies of it to begin with."""

    def __init__(self, folder=None):
        # Beside each other in memory, as far as there is such a file system.
        base = folder or ("/dev/shm" if os.access("/dev/shm", os.W_OK) else None)
        self.home = Path(tempfile.mkdtemp(prefix="faults-", dir=base))
        self.trial, self.states, self.notes = self.home / "trial", self.home / "states", self.home / "notes"
        self.trial.mkdir()
        self.states.mkdir()
        self.library, self.closing = ctypes.CDLL(None), contextlib.ExitStack()

    def close(self):
        self.closing.close()
        shutil.rmtree(self.home, ignore_errors=True)

    # -- states --

    def keep(self, name):
        """Keep what is in the trial's folder as the state `name`."""
        shutil.copytree(self.trial, self.states / name, symlinks=True)

    def kept(self):
        return {path.name for path in self.states.iterdir()}

    def load(self, name):
        """Put a state into the trial's folder, times included."""
        shutil.rmtree(self.trial, ignore_errors=True)
        shutil.copytree(self.states / name, self.trial, symlinks=True)

    # -- children --

    def run(self, function, fault=Fault(WATCH), environment=(), patience=PATIENCE):
        """Run `function()` in a child, under a fault; returns the Outcome."""
        [outcome] = self.together([(function, fault)], environment, patience)
        return outcome

    def together(self, jobs, environment=(), patience=PATIENCE):
        """Run several functions at once, each in a child; the Outcomes, in their order."""
        sys.stdout.flush()
        children = []
        for number, (function, fault) in enumerate(jobs):
            notes, report = Path(f"{self.notes}.{number}"), Path(f"{self.notes}.{number}.report")
            notes.unlink(missing_ok=True)
            report.unlink(missing_ok=True)
            pid = os.fork()
            if not pid:
                self._child(function, fault, dict(environment), notes, report)
            children.append((pid, notes, report))
        return [self._awaited(*child, patience) for child in children]

    def _child(self, function, fault, environment, notes, report):
        try:
            os.setpgid(0, 0)
            signal.signal(signal.SIGHUP, signal.SIG_DFL)  # under nohup it is ignored
            signal.signal(signal.SIGINT, signal.default_int_handler)
            os.environ.update(environment)
            silent = os.open(f"{report}.output", os.O_CREAT | os.O_TRUNC | os.O_RDWR)
            os.dup2(silent, 1)
            os.dup2(silent, 2)
            note = os.open(notes, os.O_CREAT | os.O_APPEND | os.O_WRONLY)
            known = set(sys.modules)
            self.library.arm((fault.below or str(self.trial)).encode(), note, ctypes.c_long(fault.at), fault.action,
                             fault.number, fault.kinds, fault.lasting)
            how, said, value = _ended(function)
            self.library.disarm()
            imported = sorted(set(sys.modules) - known)
            report.write_text(json.dumps([how, said, value, imported], default=str))
        finally:
            os._exit(0)

    def _awaited(self, pid, notes, report, patience):
        handle = os.pidfd_open(pid)
        ready = select.select([handle], [], [], patience)[0]
        os.close(handle)
        with contextlib.suppress(OSError):
            os.killpg(pid, signal.SIGKILL)
        _, status = os.waitpid(pid, 0)
        events = tuple(line.split("\t") for line in notes.read_text(errors="replace").splitlines()
                       ) if notes.exists() else ()
        events = tuple((int(kind), int(inode), int(size), path) for kind, inode, size, path, *_ in events)
        if not ready:
            return Outcome(HUNG, f"after {patience} s", None, events)
        if not report.exists():
            return Outcome(KILLED, f"status {status}", None, events)
        how, said, value, imported = json.loads(report.read_text())
        self.to_import = imported
        return Outcome(how, said, value, events)

    def import_what_was_missed(self):
        """Import here what the last child imported, so that the next ones need not."""
        for name in self.to_import:
            with contextlib.suppress(Exception):
                importlib.import_module(name)
        gc.collect()
        gc.freeze()

    # -- what is there --

    def snapshot(self, folder=None):
        """Path -> hash of the content, without what varies between two equal runs, of each file in the trial."""
        folder, found = Path(folder or self.trial), {}
        for path in sorted(folder.rglob("*")):
            name = re.sub(r"\d{8}-\d{6}", "TIME", str(path.relative_to(folder)))
            if not any(LEFTOVER.search(part) for part in Path(name).parts) and not path.is_dir():
                found[name] = hashlib.sha256(_steady(path)).hexdigest()
        return found

    def inodes(self):
        return {path.stat().st_ino: path.stat().st_size for path in self.trial.rglob("*") if path.is_file()}

    def cut_power(self, events, before):
        """Take away what the events have not brought to the disk: a file keeps the length that it had when it was
        last synced, or before (`before`: inode -> length). That is what a file system may leave behind."""
        kept, dirty = dict(before), set()
        for kind, inode, size, _ in events:
            if kind == WRITE:
                dirty.add(inode)
            elif kind == FSYNC:
                kept[inode] = size
                dirty.discard(inode)
        for path in self.trial.rglob("*"):
            if path.is_file() and (about := path.stat()).st_ino in dirty:
                os.truncate(path, min(about.st_size, kept.get(about.st_ino, 0)))


def memory_taken():
    """Bytes of address space that this process has."""
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()


def _ended(function):
    """(how, what was said, what was returned) of a step, as its command line would have it."""
    try:
        return DONE, "", function()
    except UserError as error:
        return REFUSED, str(error), None
    except SystemExit as error:
        if isinstance(error.code, str) and error.code.startswith("error: "):
            return REFUSED, error.code.removeprefix("error: "), None
        return (DONE, "", None) if not error.code else (RAISED, f"exit status {error.code}", None)
    except BaseException:
        return RAISED, traceback.format_exc()[-3000:], None


def _steady(path):
    try:
        content = path.read_bytes()
    except OSError as error:
        return repr(error).encode()
    if path.suffix == ".json":
        with contextlib.suppress(ValueError, RecursionError):
            return json.dumps(_without(json.loads(content)), sort_keys=True).encode()
    if path.suffix == ".jsonl" and path.name.startswith("training_log"):
        with contextlib.suppress(ValueError):
            return json.dumps([_without(json.loads(line)) for line in content.splitlines()]).encode()
    return content


def _without(value):
    if isinstance(value, dict):
        return {key: _without(other) for key, other in value.items() if key not in VARYING}
    return [_without(other) for other in value] if isinstance(value, list) else value
