"""The training log, a JSON Lines file that may be read while it is written."""

import contextlib
import json
from pathlib import Path

from embedding_finetune.artifacts.manifest import MANIFEST, TRAINING_LOG, changed_file, read_checksummed
from embedding_finetune.files import reading


def read_log(folder: Path | str) -> list[dict]:
    """Rows of a folder's training log, without damaged or truncated lines; [] if there is no log.

    A row has `step` and `loss`, or `step` and dev metrics.
    """
    return [row for row in _rows(Path(folder) / TRAINING_LOG) if row is not None]


def damaged_log(folder: Path | str) -> Path | None:
    """The path of a finished model's training log if it is damaged, else None.

    It is compared with the model's manifest. Manifests of earlier versions do not list it; then the log is damaged if a
    line cannot be read. An unfinished model has no manifest, and its last line may be incomplete.
    """
    path, manifest = Path(folder) / TRAINING_LOG, read_checksummed(Path(folder) / MANIFEST)
    if manifest is None:
        return None
    if TRAINING_LOG in manifest:
        return path if changed_file(path.parent, {TRAINING_LOG: manifest[TRAINING_LOG]}) else None
    return path if None in _rows(path) else None


def _rows(path: Path) -> list[dict | None]:
    """A row per line, None for a line that is not one."""
    with reading(path):
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else ()
    rows = []
    for line in lines:
        row = None
        with contextlib.suppress(ValueError, RecursionError):
            row = json.loads(line)
        rows.append(row if isinstance(row, dict) and isinstance(row.get("step"), int) else None)
    return rows


def duration(seconds: float) -> str:
    """Format seconds as hours and minutes, or minutes and seconds."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{minutes} min {rest} s"
