"""The two READMEs say the same, and what they say can be typed."""

import json
import os
import re

import pytest
import walk

from embedding_finetune import cli
from embedding_finetune.settings import ROOT, Settings

ENGLISH, CHINESE = ROOT / "README.md", ROOT / "README.zh.md"
COMMANDS = ("make", "jupyter", "nohup", "tail", "source", "export", "python")


def code_blocks(page):
    """The commands of each code block."""
    return [[command for command, _ in block] for block in walk.code_blocks(page)]


def tables(page):
    """Each table row as the code spans and numbers of its cells."""
    rows = [line for line in page.read_text(encoding="utf-8").splitlines() if line.startswith("|")]
    cells = [re.split(r"(?<!\\)\|", row)[1:-1] for row in rows]
    return [[sorted(re.findall(r"`[^`]*`|\d+\.\d{3}", cell)) for cell in row] for row in cells]


def links(page):
    return re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8"))


def test_both_have_the_same_commands():
    assert code_blocks(ENGLISH) == code_blocks(CHINESE) and len(code_blocks(ENGLISH)) >= 3


def test_both_have_the_same_tables():
    assert tables(ENGLISH) == tables(CHINESE) and len(tables(ENGLISH)) > 20


def test_both_have_the_same_links_and_headings():
    others = {ENGLISH: CHINESE.name, CHINESE: ENGLISH.name}
    ours, theirs = ([link for link in links(page) if link != others[page]] for page in (ENGLISH, CHINESE))
    assert ours == theirs
    assert all(others[page] in links(page) for page in others)
    levels = [re.findall(r"^#+", page.read_text(encoding="utf-8"), flags=re.MULTILINE) for page in (ENGLISH, CHINESE)]
    assert levels[0] == levels[1]


@pytest.mark.parametrize("line", [line for block in code_blocks(ENGLISH) for line in block])
def test_commands_exist(line):
    """Each command is one we know; what it names is a target of the Makefile, a file, or a setting."""
    assert walk.expected(line) is not None
    for command in re.split(r" && | & ?$", line):
        words = command.split()
        settings = [word.partition("=")[0] for word in words if re.match(r"[A-Z_]+=", word)]
        assert set(settings) <= {"PROFILE", "ENV_FILE", *Settings.load("demo").as_dict()}
        words = [word for word in words if not re.match(r"[A-Z_]+=", word)]
        if not words:
            continue
        assert words[0] in COMMANDS, f"no test knows {words[0]}"
        if words[0] == "python":
            assert words[1:3] == ["-m", "embedding_finetune"] and words[3] in cli.COMMANDS
        if words[0] == "make":
            assert re.search(rf"^{words[1]}:", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
        for script in (word for word in words if word.endswith(".sh")):
            assert (ROOT / script).is_file()


def test_a_walk_waits_for_what_goes_on_and_reads_comments(tmp_path):
    (tmp_path / "page.md").write_text("text\n```bash\n# alone\nmake demo   # the demo\n\necho '#1' &\n```\n")
    assert walk.code_blocks(tmp_path / "page.md") == [[("make demo", "the demo"), ("echo '#1' &", "")]]
    assert walk.foreground("nohup x > x.log 2>&1 &") == "nohup x > x.log 2>&1 & wait $!"
    assert walk.foreground("tail -f x.log") == "tail x.log"
    with pytest.raises(LookupError, match="tests/walk.py does not know what `rm` is to print"):
        walk.expected("rm")


def test_a_walk_keeps_exports_and_stops_at_the_first_failure(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(walk, "EXPECTED", {"echo": "seen", "export": "", "false": ""})
    here = walk.Walk(tmp_path, {"PATH": os.environ["PATH"]})
    here.take("export NAME=seen", "")
    here.take("echo $NAME", "")
    assert "seen" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="does not have 'seen'"):
        here.take("echo something else", "")
    with pytest.raises(SystemExit, match="`false` failed"):
        here.take("false", "")


def test_every_script_and_notebook_is_in_the_table():
    text = ENGLISH.read_text(encoding="utf-8")
    for path in (*ROOT.glob("*.ipynb"), *ROOT.glob("*.sh")):
        assert f"`{path.name}`" in text


@pytest.mark.parametrize("page", [ENGLISH, CHINESE], ids=lambda page: page.name)
def test_the_readme_is_one_screen_long(page):
    lines = page.read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 130 and max(map(len, lines)) <= 120


def test_the_table_of_the_demo_is_that_of_the_notebook():
    """The rows are the numbers that compare.ipynb shows with its committed outputs."""
    shown = json.dumps(json.loads((ROOT / "compare.ipynb").read_text(encoding="utf-8"))["cells"], ensure_ascii=False)
    _, _, demo = ENGLISH.read_text(encoding="utf-8").partition("| model | recall@1 (95 % interval)")
    numbers = re.findall(r"\d+\.\d{3}", demo.partition("\n\n")[0])
    assert len(numbers) == 6 * 5
    for number in numbers:
        assert number in shown, number


@pytest.mark.parametrize("page", [ENGLISH, CHINESE], ids=lambda page: page.name)
def test_the_answered_questions_are_those_of_the_benchmark(page):
    measured = json.loads((ROOT / "benchmarks" / "results.json").read_text(encoding="utf-8"))["questions"]
    _, _, sentence = page.read_text(encoding="utf-8").replace("BM25", "").partition("(benchmarks/questions.jsonl)")
    numbers = [int(number) for number in re.findall(r"\d+", sentence)[:2]]
    assert numbers == [measured["recommended_hit@5"], measured["bm25_hit@5"]] and measured["questions"] == 30
