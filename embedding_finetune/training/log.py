"""The training log, a JSON Lines file that may be read while it is written."""

import contextlib
import json
from pathlib import Path

from embedding_finetune.files import reading

LOG_NAME = "training_log.jsonl"  # in the model's folder; a row has step and loss, or step and dev metrics


def read_log(folder):
    """Rows of a folder's training log, without damaged or truncated lines; [] if there is no log."""
    path, rows = Path(folder) / LOG_NAME, []
    with reading(path):
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else ()
    for line in lines:
        with contextlib.suppress(ValueError, RecursionError):
            rows.append(json.loads(line))
    return [row for row in rows if isinstance(row, dict) and isinstance(row.get("step"), int)]


def duration(seconds):
    """Format seconds as hours and minutes, or minutes and seconds."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {seconds} s"
