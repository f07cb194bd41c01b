"""What a disk says: full, over quota, read-only, broken, no permission; at each change, once or from then on. And files
that cannot be read."""

import errno
from functools import partial
from pathlib import Path

from .bench import Trial
from .laboratory import FAIL, FSYNC, MKDIR, OPEN, READ, RENAME, UNLINK, WRITE, Fault

SAYS = {  # errno -> at which calls it is said, and whether it stays
    "disk full (ENOSPC)": (errno.ENOSPC, OPEN | WRITE | MKDIR, True),
    "over quota (EDQUOT)": (errno.EDQUOT, OPEN | WRITE | MKDIR, True),
    "read-only (EROFS)": (errno.EROFS, OPEN | RENAME | UNLINK | MKDIR, True),
    "no permission (EACCES)": (errno.EACCES, OPEN | RENAME | UNLINK | MKDIR, True),
    "input/output error (EIO)": (errno.EIO, WRITE | FSYNC, False)}
# Whose reader does not say that the disk failed: the index is made anew, and on a real disk lies elsewhere then.
MADE_ANEW = "queries.onnx"


def trials(bench):
    for step in bench.steps.values():
        for name, (number, kinds, lasting) in SAYS.items():
            for at in range(sum(bool(kind & kinds) for kind, *_ in bench.changes[step.name])):
                fault = Fault(FAIL, at, number, kinds, lasting)
                yield Trial(name, step.name, bench.where(step, at, kinds), partial(failed, bench, step, fault))
        for path in bench.reads(step):
            fault = Fault(FAIL, 0, errno.EIO, READ, lasting=not path.endswith(MADE_ANEW), below=path)
            name = path.removeprefix(f"{bench.laboratory.trial}/")
            # Vectors that are computed again may be stored in other files of their folder.
            aside = str(Path(name).parent) if name.startswith("output/cache/") else None
            yield Trial("unreadable (EIO)", step.name, name, partial(failed, bench, step, fault, aside))


def failed(bench, step, fault, aside=None):
    bench.laboratory.load(step.begins)
    return bench.verdict(step, bench.run(step, fault), aside)
