"""Commands of one step each, `.env`, and how a command line ends."""

import os
import shlex
import subprocess
import sys

import nbformat
import pytest
from finished import finish

from embedding_finetune import cli, commands, pipeline
from embedding_finetune.data.collection import read_data
from embedding_finetune.evaluation.evaluate import evaluate
from embedding_finetune.evaluation.report_page import load, write_page
from embedding_finetune.evaluation.results import compare
from embedding_finetune.files import UserError, write_json
from embedding_finetune.profiles import from_env_file
from embedding_finetune.retrieval import ann
from embedding_finetune.serving.index import open_index
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


@pytest.mark.parametrize("text, shown", [
    ("milvus:http://me:secret@host:19530", "milvus:http://me:***@host:19530"),
    ("milvus:http://me:sec@ret@host/db", "milvus:http://me:***@host/db"),
    ("milvus:http://host:19530", "milvus:http://host:19530"), ("me@host:1", "me@host:1")])
def test_passwords_are_not_shown(text, shown):
    assert display_value(text) == shown


def test_no_secret_is_printed_or_written(built, monkeypatch, capfd):
    for name, value in {"HF_TOKEN": "s3cret", "MILVUS_TOKEN": "s3cret", "INDEX": "milvus:http://me:s3cret@127.0.0.1:1",
                        "RAY_ADDRESS": "ray://me:s3cret@127.0.0.1:1"}.items():
        monkeypatch.setenv(name, value)
    settings = Settings.load()
    finish(settings)
    with pytest.raises(UserError, match=r"^Milvus at http://me:\*\*\*@127.0.0.1:1 failed") as failed:
        open_index(settings, "neg10")
    monkeypatch.setattr("embedding_finetune.retrieval.dense.make_index", lambda _: ann.ExactIndex())
    open_index(settings, "neg10").answer(["otter"], 3)
    for words in (["evaluate", "bm25"], ["evaluate", "neg10"], ["compare"], ["search", "otter"], ["settings"],
                  ["publish", "neg10"]):
        run(monkeypatch, *words)
    write_page(settings, load(settings, read_data(settings), compare(settings, read_data(settings))[0]))
    said = capfd.readouterr()
    assert "me:***@127.0.0.1:1" in said.out and "s3cret" not in said.out + said.err + str(failed.value)
    files = [path for folder in (settings.data_dir, settings.output_dir) for path in folder.rglob("*")]
    assert {"manifest.json", "training.json", "comparison.json", "report.html"} <= {path.name for path in files}
    assert [path for path in files if path.is_file() and b"s3cret" in path.read_bytes()] == []


def run(monkeypatch, *words):
    monkeypatch.setattr(sys, "argv", sys.argv)
    cli.run(list(words))


def test_init_writes_the_settings_of_a_dataset(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(commands, "ROOT", tmp_path)
    (tmp_path / "faq.csv").write_text("question,answer\nwhat is it,it is this\nwho is it,it is she\n")
    monkeypatch.setattr("embedding_finetune.commands.has_gpu", lambda: False)
    run(monkeypatch, "init", str(tmp_path / "faq.csv"))
    written = (tmp_path / ".env").read_text()
    assert f"PROFILE=laptop\nDATASET={tmp_path / 'faq.csv'}\nDATA_DIR=ft_data/faq\nOUTPUT_DIR=output/faq\n" in written
    said = capsys.readouterr().out
    assert "QUERY_COLUMN=question" in said and "'what is it'" in said and "next: make run" in said
    with pytest.raises(UserError, match=".env exists: OVERWRITE=1 replaces it"):
        run(monkeypatch, "init", "other.csv")


def test_init_of_several_files_keeps_the_settings_that_read_them(monkeypatch, tmp_path):
    monkeypatch.setattr(commands, "ROOT", tmp_path)
    (tmp_path / "my data").mkdir()
    for number in range(2):
        (tmp_path / "my data" / f"part{number}.csv").write_text("question,answer,score\nwhat is it,it is this,0.2\n")
    monkeypatch.setenv("LABEL_COLUMN", "score>=0.5")
    run(monkeypatch, "init", str(tmp_path / "my data" / "*.csv"), "--profile", "demo")
    assert shlex.split((tmp_path / ".env").read_text(), comments=True) == [
        "PROFILE=demo", f"DATASET={tmp_path / 'my data' / '*.csv'}", "DATA_DIR=ft_data/my data",
        "OUTPUT_DIR=output/my data", "QUERY_MAX_LEN=auto", "PASSAGE_MAX_LEN=auto", "LABEL_COLUMN=score>=0.5"]


def test_init_writes_nothing_for_a_file_that_cannot_be_read(monkeypatch, tmp_path):
    monkeypatch.setattr(commands, "ROOT", tmp_path)
    (tmp_path / "table.csv").write_text("a,b\n1,2\n")
    with pytest.raises(UserError, match="set QUERY_COLUMN and POSITIVE_COLUMN to the right ones"):
        run(monkeypatch, "init", str(tmp_path / "table.csv"), "--profile", "demo")
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


def test_clean_removes_all_that_belongs_to_a_label_and_nothing_else(built, monkeypatch, capsys):
    finish(built)
    write_json(finish(built, "neg50") / "another.json", {})  # the models differ
    for label in ("bm25", "neg10", "neg50", "reference"):
        evaluate(built, label)
    evaluate(built, "late_neg10_on_reference")
    for label in ("neg10", "hybrid_neg10", "reference"):
        open_index(built, label)
    for name in ("neg10.partial/checkpoint-3", "neg10.20260101-120000", "neg10-onnx", "publish/neg10", "neg10.d"):
        (built.output_dir / name).mkdir(parents=True)
    everything = {path for folder in (built.output_dir, built.data_dir) for path in folder.rglob("*") if path.is_file()}
    run(monkeypatch, "clean")
    shown = capsys.readouterr().out
    assert shown.index("of these, with all that belongs to a label") < shown.rindex("neg10 ")
    run(monkeypatch, "clean", "neg10")
    left = {path for path in everything if path.exists()}
    assert not [path for path in left if "neg10" in str(path.relative_to(built.output_dir.parent))]
    assert [path.name for path in built.output_dir.glob("neg10*")] == ["neg10.d"]  # not one of ours
    assert not (built.data_dir / "training_neg_10.arrow").exists() and (built.data_dir / "passages.arrow").exists()
    for label in ("bm25", "neg50", "hybrid_neg50", "reference", "hybrid_reference"):
        assert built.paths.result(label).exists() and built.paths.run(label).exists()
    gone = {path.parent.name for path in everything - left if path.name == "identity.json"}
    kept = {path.parent.name for path in left if path.name == "identity.json"}
    assert gone and kept and not gone & kept
    assert "removed neg10" in capsys.readouterr().out
    with pytest.raises(UserError, match="there is no 'neg10' in"):
        run(monkeypatch, "clean", "neg10")
    open_index(built, "reference")  # it is whole


def test_a_running_training_is_not_removed(built, monkeypatch):
    folder = built.output_dir / "neg10.partial"
    code = ("import sys, pathlib\nfrom embedding_finetune.artifacts.staging import lock\n"
            "with lock(pathlib.Path(sys.argv[1])):\n    print(flush=True)\n    sys.stdin.read()")
    with subprocess.Popen([sys.executable, "-c", code, folder], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                          env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}) as other:
        other.stdout.readline()
        with pytest.raises(UserError, match=f"another training .process {other.pid}. is writing to"):
            run(monkeypatch, "clean", "neg10")
        other.kill()
    run(monkeypatch, "clean", "neg10")
    assert not folder.exists()


def test_an_interrupted_notebook_is_one_line(tmp_path, capfd):
    cell = nbformat.v4.new_code_cell("import os, signal, time\nos.kill(os.getppid(), signal.SIGINT)\ntime.sleep(60)")
    nbformat.write(nbformat.v4.new_notebook(cells=[cell]), tmp_path / "slow.ipynb")
    with pytest.raises(UserError, match="slow.ipynb stopped: its kernel has ended, by Ctrl-C or for lack of memory"):
        pipeline.run_notebook(tmp_path / "slow.ipynb", tmp_path / "copies")
    assert [path.name for path in (tmp_path / "copies").iterdir()] == ["slow.failed.ipynb"]
    assert "Traceback" not in capfd.readouterr().err
