"""The command line of search: what it prints, for people and as JSON, and its errors in one line."""

import json
import subprocess
import sys
from functools import partial

import pytest

from embedding_finetune.data.collection import read_data
from embedding_finetune.files import UserError
from embedding_finetune.serving import search
from embedding_finetune.serving.index import open_index
from embedding_finetune.settings import ROOT


def searched(monkeypatch, capsys, *words):
    """Standard output and error of a search."""
    monkeypatch.setattr(sys, "argv", ["search", *words])
    search.main()
    return capsys.readouterr()


def test_as_json_for_a_program_and_as_text_for_people(built, monkeypatch, capsys):
    dev = read_data(built).split("dev")
    query, right = next(iter(dev.queries.values())), dev.positives(next(iter(dev.queries)))
    found = searched(monkeypatch, capsys, query, "--system", "bm25", "-k", "3", "--json")
    hits = json.loads(found.out)
    assert [hit["rank"] for hit in hits] == [1, 2, 3] and hits[0]["id"] in right
    assert {"rank", "score", "id", "text"} <= hits[0].keys() and hits[0]["text"] == dev.corpus[hits[0]["id"]]
    shown = searched(monkeypatch, capsys, query, "--system", "bm25", "-k", "1").out
    assert hits[0]["id"] in shown and hits[0]["text"][:50] in shown and "bm25, " in shown
    nothing = searched(monkeypatch, capsys, "zzzz", "--system", "bm25", "--json")
    assert json.loads(nothing.out) == [] and "no passage was found" in nothing.err
    assert "no passage was found" in searched(monkeypatch, capsys, "zzzz", "--model", "bm25").out  # its old name


def test_a_minimum_score_leaves_out_what_is_below(built, monkeypatch, capsys):
    ask = partial(searched, monkeypatch, capsys, "otter", "--system", "bm25", "--json", "--min-score")
    every = json.loads(ask("-1").out)
    middle = every[1]["score"]
    assert json.loads(ask(str(middle)).out) == [hit for hit in every if hit["score"] >= middle]
    nothing = ask("1e9")
    assert json.loads(nothing.out) == [] and "no passage has a score of 1e+09 or more; the best has" in nothing.err


@pytest.mark.parametrize("value", ["much", "nan", "inf", ""])
def test_a_minimum_score_is_a_number(monkeypatch, capsys, value):
    with pytest.raises(UserError, match="argument --min-score: invalid score value"):
        searched(monkeypatch, capsys, "otter", "--min-score", value)


def test_the_note_of_a_score_is_printed_and_with_json_only_if_it_is_unusual(built, monkeypatch, capsys):
    for usual in (True, False):
        monkeypatch.setattr(search, "judge_score", lambda hits, dev, usual=usual: (usual, "what the score says"))
        assert searched(monkeypatch, capsys, "otter", "--system", "bm25").out.splitlines()[1] == "what the score says"
        assert ("what the score says" in searched(monkeypatch, capsys, "otter", "--system", "bm25", "--json").err
                ) is not usual


def test_passages_cannot_speak_to_the_terminal(capsys):
    class Index:
        manifest = {"label": "bm25", "passages": 1}

    hit = {"rank": 1, "score": 1.0, "id": "p", "text": "red \x1b[31m \r\n text " + "x" * 1000, "source": "page 3"}
    search._show(Index, [hit], "")
    shown = capsys.readouterr().out
    assert "\x1b" not in shown and "\r" not in shown and "page 3" in shown and len(shown) < 700


def test_a_full_disk_is_one_line(built):
    open_index(built, "bm25")
    with open("/dev/full", "w") as full:
        command = [sys.executable, "-m", "embedding_finetune", "search", "otter", "--system", "bm25", "--json"]
        done = subprocess.run(command, cwd=ROOT, stdout=full, stderr=subprocess.PIPE, text=True)
    assert done.returncode and done.stderr.splitlines()[-1] == "error: cannot write the answer: No space left on device"
