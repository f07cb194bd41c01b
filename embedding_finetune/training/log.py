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
    path, rows = Path(folder) / TRAINING_LOG, []
    with reading(path):
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else ()
    for line in lines:
        with contextlib.suppress(ValueError, RecursionError):
            rows.append(json.loads(line))
    return [row for row in rows if isinstance(row, dict) and isinstance(row.get("step"), int)]


def damaged_log(folder: Path | str) -> Path | None:
    """The path of a finished model's training log if it is damaged, else None.

    It is compared with the model's manifest. An unfinished model has none, and its last line may be incomplete.
    """
    path, manifest = Path(folder) / TRAINING_LOG, read_checksummed(Path(folder) / MANIFEST) or {}
    known = {TRAINING_LOG: manifest[TRAINING_LOG]} if TRAINING_LOG in manifest else {}
    return path if changed_file(path.parent, known) else None


def duration(seconds: float) -> str:
    """Format seconds as hours and minutes, or minutes and seconds."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{minutes} min {rest} s"
