"""A short soak: every answer is right, whatever is done to the server; and a server that mixes old and new is found."""

import sys

import pytest
from forked import run_forked

from faults import soak
from faults.report import put


def soaked(*words):
    """`python -m faults soak WORDS`"""
    sys.exit(soak.main(words))


@pytest.mark.long
def test_every_answer_is_right_and_a_planted_bug_is_found(tmp_path):
    status, said = run_forked(soaked, "--quick", "--plant", log=tmp_path / "log")
    sound, _, planted = said.partition("## Soak of the server")
    assert status == 0 and "WRONG" not in sound and "| answered wrongly, cut off, or against the rules | 0 |" in planted
    assert "WRONG hybrid_reference: " in planted and "planted: old and new are mixed: found" in planted, said


def test_a_section_takes_the_place_of_its_like(tmp_path):
    page = tmp_path / "page.md"
    for text in ("# Faults\n\none\n", "## Soak\n\nfirst\n", "## Last\n\nstays\n", "## Soak\n\nsecond\n",
                 "# Faults\n\ntwo\n"):
        put(page, text)
    assert page.read_text() == "# Faults\n\ntwo\n\n## Soak\n\nsecond\n\n## Last\n\nstays\n"
