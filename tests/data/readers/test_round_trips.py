"""A sample of the round trips; `make faults` does ten thousand."""

import round_trips
from hypothesis import HealthCheck, given
from hypothesis import settings as effort
from hypothesis import strategies as st

from embedding_finetune.data.readers import json_files
from embedding_finetune.settings import Settings

SETTINGS = Settings.load("demo")


@effort(max_examples=150, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
@given(writer=st.sampled_from(sorted(round_trips.WRITERS)), rows=round_trips.ROWS)
def test_what_is_read_is_what_was_written(tmp_path, monkeypatch, writer, rows):
    monkeypatch.setattr(json_files, "PEEK", 2)  # so that columns arrive late
    round_trips.check(tmp_path, SETTINGS, writer, rows)
