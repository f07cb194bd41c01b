"""The log of a training, which is read while it goes on and afterwards."""

import contextlib
import json
from pathlib import Path

LOG_NAME = "training_log.jsonl"  # in the model's folder: rows of step and loss, or of step and the dev metrics


def read_log(folder):
    """The rows of a folder's training log, but for a line that was cut short; [] where there is none."""
    path, rows = Path(folder) / LOG_NAME, []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        with contextlib.suppress(ValueError):
            rows.append(json.loads(line))
    return rows


def duration(seconds):
    """Seconds for people: hours and minutes, or minutes and seconds."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {seconds} s"
