"""The command line: each command has a help, and whatever goes wrong is one line on standard error."""

import re
import shutil
import signal
import subprocess
import sys

import pytest

from embedding_finetune import cli, hints, profiles
from embedding_finetune.extras import EXTRAS
from embedding_finetune.settings import ROOT, Settings

LABELLED = "mine", "train", "evaluate", "index", "export", "publish", "encode"  # commands that take a label
SMALLEST = {name: [name, "neg10"] for name in LABELLED} | {"init": ["init", "docs"], "search": ["search", "otter"]}
SMALLEST = {name: SMALLEST.get(name, [name]) for name in cli.COMMANDS}  # a complete command line of each command
NO_SYSTEM = "there is no system 'nope': it must be LABEL, hybrid_LABEL"
NO_MODEL = "/output/neg10 holds no finished model"
NO_RECIPE = "there is no recipe 'nope' in "


@pytest.fixture
def command(built, monkeypatch, capsys):
    """Function that runs a command in the tiny experiment: (exit status, standard output, lines of standard error)."""
    def run(*words):
        monkeypatch.setattr("embedding_finetune.commands.ROOT", built.output_dir)  # for .env
        monkeypatch.setattr(sys, "argv", ["embedding_finetune", *words])
        capsys.readouterr()
        try:
            cli.main()
            status = 0
        except SystemExit as ended:
            if isinstance(ended.code, str):  # as Python itself ends
                print(ended.code, file=sys.stderr)
            status = 1 if isinstance(ended.code, str) else ended.code or 0
        shown = capsys.readouterr()
        return status, shown.out, shown.err.splitlines()

    return run


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_each_command_has_a_help_and_refuses_what_it_does_not_know(command, name):
    status, shown, said = command(name, "--help")
    assert (status, said) == (0, []) and shown.startswith(f"usage: python -m embedding_finetune {name} [-h]")
    assert len(shown.split("\n\n")[1]) > 20 and max(map(len, shown.splitlines())) <= 120
    status, _, said = command(*SMALLEST[name], "--nope")
    assert (status, len(said)) == (1, 1) and said[0].startswith("error: unrecognized arguments: --nope: `python -m ")


@pytest.mark.parametrize("words, message", [
    (["serach", "otter"], "^there is no command 'serach': did you mean search.$"),
    (["nope"], "^there is no command 'nope': choose one of init, settings, "),
    (["choose-index", "neg10", "--memory", "8"], "^the command choose-index was removed: set INDEX to flat up to"),
    (["search"], "required: QUERY"), (["search", "x", "--js"], "unrecognized arguments: --js:"),
    (["search", "x", "-k", "many"], "argument -k: invalid int value: 'many'"),
    (["search", "x", "-k", "0"], "-k must be 1 or more"), (["search", "  "], "the query is empty"),
    (["search", "x"], "^no fine-tuned model has a current result .none has been evaluated.: .* --system bm25, raw"),
    (["search", "x", "--system", "nope"], NO_SYSTEM), (["search", "x", "--system", "neg10"], NO_MODEL),
    (["serve", "--port", "80000"], "argument --port: invalid port value: '80000'"),
    (["serve", "--port", "http"], "argument --port: invalid port value: 'http'"),
    (["serve"], "no fine-tuned model has a current result"), (["serve", "--system", "nope"], NO_SYSTEM),
    (["index", "nope"], NO_SYSTEM), (["index", "neg10"], NO_MODEL), (["index"], "required: LABEL"),
    (["evaluate", "nope"], NO_SYSTEM), (["evaluate", "neg10"], NO_MODEL), (["compare"], "has no result for"),
    (["mine", "nope"], NO_RECIPE), (["mine"], "required: LABEL"), (["train", "nope"], NO_RECIPE),
    (["train"], "give exactly one recipe label"), (["train", "neg10", "neg50"], "give exactly one recipe label"),
    (["encode", "nope"], "/output/nope holds no finished model"), (["encode", "neg10"], NO_MODEL),
    (["encode", "raw", "--processes", "two"], "argument --processes: invalid int value: 'two'"),
    (["encode", "raw", "--processes", "0"], "--processes 0: give 1 or more"),
    (["encode", "raw", "--shard", "3"], "--shard 3 is no shard"), (["encode"], "required: LABEL"),
    (["export", "nope"], NO_RECIPE), (["export", "neg10"], NO_MODEL), (["export"], "required: LABEL"),
    (["export", "neg10", "gguf"], "there is no form 'gguf': choose from onnx, "),
    (["publish", "nope"], "/output/nope holds no finished model"), (["publish", "neg10"], NO_MODEL),
    (["publish", "neg10", "--to", "x"], "--to x is not a valid"), (["publish"], "required: LABEL"),
    (["clean", "nope"], "there is no 'nope' in "), (["run", "all"], "unrecognized arguments: all"),
    (["settings", "EPOCHS"], "unrecognized arguments: EPOCHS"), (["init"], "required: DATASET"),
    (["init", "faq.csv"], "^faq.csv does not exist: name a file, a folder"),
    (["init", "tests", "--profile", "nope"], "there is no profile 'nope'")])
def test_a_wrong_command_line_is_one_line(command, words, message):
    status, _, said = command(*words)
    assert status == 1 and len(said) == 1 and re.search(message, said[0].removeprefix("error: ")), said
    assert said[0].startswith("error: ")


@pytest.mark.parametrize("name", sorted({*cli.COMMANDS} - {"init", "settings", "clean", "run"}))
def test_missing_data_are_one_line_with_a_hint(command, built, monkeypatch, name, tmp_path):
    """It names another profile with results, or the dataset if that does not exist."""
    shutil.rmtree(built.data_dir)
    status, _, said = command(*SMALLEST[name])
    assert status == 1 and len(said) == 1 and "PROFILE" not in said[0], said
    (tmp_path / "profiles").mkdir()
    (tmp_path / "theirs" / "results").mkdir(parents=True)
    (tmp_path / "theirs" / "results" / "bm25.json").touch()
    monkeypatch.setattr(profiles, "ROOT", tmp_path)
    monkeypatch.setattr(hints, "ROOT", tmp_path)
    for profile, folder in (("demo", "output"), ("other", "theirs")):
        content = (ROOT / "profiles" / "demo.env").read_text().replace("output/demo", str(tmp_path / folder))
        (tmp_path / "profiles" / f"{profile}.env").write_text(content)
    monkeypatch.delenv("OUTPUT_DIR")
    status, _, said = command(*SMALLEST[name])
    assert status == 1 and len(said) == 1, said
    assert said[0].endswith("; profile other has results: set PROFILE=other to use them"), said
    (tmp_path / "faq.csv").touch()
    monkeypatch.setenv("DATASET", str(tmp_path / "fag.csv"))
    status, _, said = command(*SMALLEST[name])
    assert said[0].endswith(f"; DATASET={tmp_path}/fag.csv does not exist: did you mean {tmp_path}/faq.csv?"), said


@pytest.mark.parametrize("name, said", [
    ("faq.csv", ""), ("msmarco", ""), ("docs", ""), ("no_such_folder", ""), ("NAMESPACE/name.v2", ""), ("*.csv", ""),
    ("fag.csv", "fag.csv does not exist: did you mean faq.csv?"),
    ("faq.csv:other.csv", "other.csv does not exist: name a file"),
    ("docs/fag.csv", "docs/fag.csv does not exist: name a file"), ("a/b/fag.csv", "a/b/fag.csv does not exist: name"),
    ("~nobody/x.csv", "")])
def test_a_file_that_does_not_exist_is_told_from_other_datasets(monkeypatch, tmp_path, name, said):
    monkeypatch.setattr("embedding_finetune.settings.ROOT", tmp_path)
    (tmp_path / "docs").mkdir()
    (tmp_path / "faq.csv").touch()
    assert hints.missing_file(name).startswith(said) and bool(hints.missing_file(name)) == bool(said)


@pytest.mark.parametrize("words, module, changed", [
    (["export", "raw", "openvino"], "openvino", {}), (["encode", "raw"], "ray", {"RAY_ADDRESS": "local"}),
    (["search", "x", "--system", "raw"], "pymilvus", {"INDEX": "milvus:http://127.0.0.1:1"}),
    (["init", "docs"], "markdown_it", {})])
def test_a_missing_extra_is_the_last_line(command, monkeypatch, words, module, changed):
    monkeypatch.setitem(sys.modules, module, None)
    for name, value in changed.items():
        monkeypatch.setenv(name, value)
    status, _, said = command(*words)
    assert status == 1 and "Traceback" not in "".join(said)
    assert said[-1].startswith(f"error: `{EXTRAS[module][0]}` is not installed: pip install -r requirements/"), said


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_ctrl_c_is_one_line(command, monkeypatch, name):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(Settings, "load", interrupted)
    assert command(*SMALLEST[name]) == (130, "", ["interrupted: the same command continues"])


def test_ctrl_c_ends_a_server_in_a_process_of_its_own(built):
    command = [sys.executable, "-m", "embedding_finetune", "serve", "--system", "bm25", "--port", "0"]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) as server:
        for line in server.stderr:
            if "running on" in line:
                server.send_signal(signal.SIGINT)
        assert server.wait(20) == 130 and line == "interrupted: the same command continues\n"
