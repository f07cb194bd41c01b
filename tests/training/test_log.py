"""The log of a training is read while it is written, and its times are for people."""

import pytest

from embedding_finetune.artifacts.manifest import TRAINING_LOG
from embedding_finetune.training.log import duration, read_log


def test_a_line_that_was_cut_short_is_passed_over(tmp_path):
    assert read_log(tmp_path) == []
    (tmp_path / TRAINING_LOG).write_text('{"step": 5, "loss": 2.5}\n{"step": 10, "lo')
    assert read_log(tmp_path) == [{"step": 5, "loss": 2.5}]


def test_what_is_damaged_is_passed_over(tmp_path):
    lines = [b'{"step": 1}', b'{"step": 2, "loss": "\xf3"}', b"[" * 5000, b"[3]", b'{"loss": 1}', b'{"step": 4}']
    (tmp_path / TRAINING_LOG).write_bytes(b"\n".join(lines))
    assert [row["step"] for row in read_log(tmp_path)] == [1, 2, 4]


@pytest.mark.parametrize("seconds, said", [(0.4, "0 min 0 s"), (59.6, "1 min 0 s"), (754, "12 min 34 s"),
                                           (3600, "1 h 0 min"), (3 * 3600 + 5 * 60 + 59, "3 h 5 min")])
def test_times_are_minutes_and_seconds_or_hours_and_minutes(seconds, said):
    assert duration(seconds) == said
