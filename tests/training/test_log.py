"""The log of a training is read while it is written, and its times are for people."""

import pytest

from embedding_finetune.training.log import LOG_NAME, duration, read_log


def test_a_line_that_was_cut_short_is_passed_over(tmp_path):
    assert read_log(tmp_path) == []
    (tmp_path / LOG_NAME).write_text('{"step": 5, "loss": 2.5}\n{"step": 10, "lo')
    assert read_log(tmp_path) == [{"step": 5, "loss": 2.5}]


@pytest.mark.parametrize("seconds, said", [(0.4, "0 min 0 s"), (59.6, "1 min 0 s"), (754, "12 min 34 s"),
                                           (3600, "1 h 0 min"), (3 * 3600 + 5 * 60 + 59, "3 h 5 min")])
def test_times_are_minutes_and_seconds_or_hours_and_minutes(seconds, said):
    assert duration(seconds) == said
