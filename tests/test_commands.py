"""Commands of one step each, `.env`, and how a command line ends."""

import os
import shlex
import signal
import sys

import nbformat
import pytest

from embedding_finetune import cli, commands, pipeline
from embedding_finetune.evaluation.evaluate import evaluate
from embedding_finetune.files import UserError, run_command_line
from embedding_finetune.profiles import from_env_file
from embedding_finetune.settings import Settings, display_value


@pytest.fixture
def env_file(tmp_path, monkeypatch):
    """An empty file of settings that is read as `.env`."""
    path = tmp_path / "own.env"
    path.write_text("")
    monkeypatch.setenv("ENV_FILE", str(path))
    return path


def test_the_environment_wins_over_the_file_and_the_file_over_the_profile(env_file, monkeypatch):
    monkeypatch.delenv("PROFILE", raising=False)
    env_file.write_text("# my data\nPROFILE=demo\nEPOCHS=3\nBATCH_SIZE=7\nQUERY_PROMPT='query: '\n")
    monkeypatch.setenv("BATCH_SIZE", "9")
    settings = Settings.load()
    assert (settings.profile, settings.epochs, settings.batch_size, settings.query_prompt) == ("demo", 3, 9, "query: ")
    sources = dict(settings.sources)
    assert (sources["EPOCHS"], sources["BATCH_SIZE"]) == (str(env_file), "environment")
    assert sources["LEARNING_RATE"] == "profiles/demo.env" and "SEED" not in sources
    monkeypatch.setenv("PROFILE", "msmarco")
    assert Settings.load().profile == "msmarco"
    assert Settings.load("demo").profile == "demo"


def test_a_removed_command_is_one_line_of_advice(capsys):
    with pytest.raises(UserError, match="^the command choose-index was removed: set INDEX to flat up to"):
        cli.run(["choose-index", "neg10", "--memory", "8"])
    cli.run([])
    assert "choose-index" not in capsys.readouterr().out


@pytest.mark.parametrize("line, message", [
    ("EPOCH=3", "own.env: unknown setting EPOCH; did you mean EPOCHS?"), ("EPOCHS", "own.env, line 1: expected one"),
    ("COLOUR=blue", "own.env: unknown setting COLOUR"), ("EPOCHS=many", "EPOCHS='many' is not a number")])
def test_a_wrong_line_in_the_file_is_named(env_file, line, message):
    env_file.write_text(line + "\n")
    with pytest.raises(UserError) as stopped:
        Settings.load("demo")
    assert message in str(stopped.value)


def test_a_missing_file_is_an_error_only_if_it_was_named(monkeypatch, tmp_path):
    monkeypatch.setenv("ENV_FILE", str(tmp_path / "nowhere"))
    with pytest.raises(UserError, match="nowhere does not exist"):
        from_env_file(())
    monkeypatch.setattr("embedding_finetune.profiles.ROOT", tmp_path)
    monkeypatch.delenv("ENV_FILE")
    assert from_env_file(()) == {}


def test_passwords_are_not_shown():
    assert display_value("milvus:http://me:secret@host:19530") == "milvus:http://me:***@host:19530"
    assert display_value("milvus:http://host:19530") == "milvus:http://host:19530"


def run(monkeypatch, *words):
    monkeypatch.setattr(sys, "argv", sys.argv)
    cli.run(list(words))


def test_init_writes_the_settings_of_a_dataset(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(commands, "ROOT", tmp_path)
    (tmp_path / "faq.csv").write_text("question,answer\nwhat is it,it is this\nwho is it,it is she\n")
    with monkeypatch.context() as patch:
        patch.setattr(os, "environ", dict(os.environ))
        run(patch, "init", str(tmp_path / "faq.csv"), "--profile", "demo")
    written = (tmp_path / ".env").read_text()
    assert f"PROFILE=demo\nDATASET={tmp_path / 'faq.csv'}\nDATA_DIR=ft_data/faq\nOUTPUT_DIR=output/faq\n" in written
    said = capsys.readouterr().out
    assert "QUERY_COLUMN=question" in said and "'what is it'" in said and "next: make run" in said
    with pytest.raises(UserError, match=".env exists: OVERWRITE=1 replaces it"):
        run(monkeypatch, "init", "other.csv")


def test_init_of_several_files_keeps_the_settings_that_read_them(monkeypatch, tmp_path):
    monkeypatch.setattr(commands, "ROOT", tmp_path)
    (tmp_path / "my data").mkdir()
    for number in range(2):
        (tmp_path / "my data" / f"part{number}.csv").write_text("question,answer,score\nwhat is it,it is this,0.2\n")
    with monkeypatch.context() as patch:
        patch.setattr(os, "environ", os.environ | {"LABEL_COLUMN": "score>=0.5"})
        run(patch, "init", str(tmp_path / "my data" / "*.csv"), "--profile", "demo")
    assert shlex.split((tmp_path / ".env").read_text(), comments=True) == [
        "PROFILE=demo", f"DATASET={tmp_path / 'my data' / '*.csv'}", "DATA_DIR=ft_data/my data",
        "OUTPUT_DIR=output/my data", "LABEL_COLUMN=score>=0.5"]


def test_init_writes_nothing_for_a_file_that_cannot_be_read(monkeypatch, tmp_path):
    monkeypatch.setattr(commands, "ROOT", tmp_path)
    (tmp_path / "table.csv").write_text("a,b\n1,2\n")
    with monkeypatch.context() as patch:
        patch.setattr(os, "environ", dict(os.environ))
        with pytest.raises(UserError, match="set QUERY_COLUMN and POSITIVE_COLUMN to the right ones"):
            run(patch, "init", str(tmp_path / "table.csv"), "--profile", "demo")
    assert not (tmp_path / ".env").exists()


def test_each_step_is_a_command(built, monkeypatch, capsys):
    run(monkeypatch, "mine", "neg10")
    assert "training_neg_10.arrow: negatives 100.0% random" in capsys.readouterr().out
    for label in ("bm25", "raw"):
        run(monkeypatch, "evaluate", label)
    assert "hybrid_raw" in capsys.readouterr().out
    run(monkeypatch, "compare")
    assert (built.output_dir / "results" / "comparison.json").exists()
    assert "Nothing to recommend yet" in capsys.readouterr().out
    run(monkeypatch, "index", "bm25")
    assert " passages in " in capsys.readouterr().out
    with pytest.raises(UserError, match="there is no system 'neg1'"):
        run(monkeypatch, "evaluate", "neg1")


def test_clean_shows_sizes_and_removes_what_is_named_alone(built, monkeypatch, capsys):
    evaluate(built, "bm25")
    run(monkeypatch, "clean")
    said = capsys.readouterr().out
    assert "results" in said and "data/corpus.jsonl" in said and "removed" not in said
    run(monkeypatch, "clean", "results")
    assert not (built.output_dir / "results").exists() and (built.output_dir / "runs").exists()
    with pytest.raises(UserError, match="there is no '../x' in"):
        run(monkeypatch, "clean", "../x")


def test_an_interruption_is_one_line(capsys):
    def interrupted():
        os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(SystemExit) as stopped:
        run_command_line(interrupted)
    assert stopped.value.code == 130 and capsys.readouterr().err == "interrupted: the same command continues\n"


def test_an_interrupted_notebook_is_one_line(tmp_path, capfd):
    cell = nbformat.v4.new_code_cell("import os, signal, time\nos.kill(os.getppid(), signal.SIGINT)\ntime.sleep(60)")
    nbformat.write(nbformat.v4.new_notebook(cells=[cell]), tmp_path / "slow.ipynb")
    with pytest.raises(UserError, match="slow.ipynb stopped: its kernel has ended, by Ctrl-C or for lack of memory"):
        pipeline.run_notebook(tmp_path / "slow.ipynb", tmp_path / "copies")
    assert [path.name for path in (tmp_path / "copies").iterdir()] == ["slow.failed.ipynb"]
    assert "Traceback" not in capfd.readouterr().err
