"""The log of a training, which is read while it goes on and afterwards."""

import contextlib
import json
from pathlib import Path

from embedding_finetune.files import reading

LOG_NAME = "training_log.jsonl"  # in the model's folder: rows of step and loss, or of step and the dev metrics


def read_log(folder):
    """The rows of a folder's training log, but for what is damaged, as a line cut short; [] where there is none."""
    path, rows = Path(folder) / LOG_NAME, []
    with reading(path):
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else ()
    for line in lines:
        with contextlib.suppress(ValueError, RecursionError):
            rows.append(json.loads(line))
    return [row for row in rows if isinstance(row, dict) and isinstance(row.get("step"), int)]


def duration(seconds):
    """Seconds for people: hours and minutes, or minutes and seconds."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {seconds} s"
