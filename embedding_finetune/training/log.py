"""The training log, a JSON Lines file that may be read while it is written."""

import contextlib
import json
from pathlib import Path

from embedding_finetune.files import reading

LOG_NAME = "training_log.jsonl"  # in the model's folder; a row has step and loss, or step and dev metrics


def read_log(folder: str | Path) -> list[dict]:
    """Rows of a folder's training log, without damaged or truncated lines; [] if there is no log."""
    path, rows = Path(folder) / LOG_NAME, []
    with reading(path):
        text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    for line in text.splitlines():
        with contextlib.suppress(ValueError, RecursionError):
            rows.append(json.loads(line))
    return [row for row in rows if isinstance(row, dict) and isinstance(row.get("step"), int)]


def duration(seconds: float) -> str:
    """Format seconds as hours and minutes, or minutes and seconds."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{minutes} min {rest} s"
