"""The whole experiment, small: every notebook and script, run as `make run` does, with a tiny random BERT."""

import dataclasses
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time

import nbformat
import pytest
import pytrec_eval
import whole_run
from forked import run_forked
from offline import ASK, SAID, offline, way
from tiny import tiny_pairs

from embedding_finetune import cli, pipeline
from embedding_finetune.data.collection import Collection, read_data, write_collection
from embedding_finetune.files import UserError, run_command_line
from embedding_finetune.models.encoder_config import load_encoder_config
from embedding_finetune.retrieval.trec import read_run
from embedding_finetune.settings import ROOT, Settings

TRAINED = ["neg10", "neg10_seed43", "neg50", "neg50_seed43", "hard_kd", "hard_kd_seed43"]
MODELS = ["raw", *TRAINED, "reference", "other"]  # in the order of the story
EVALUATED = ["raw", *TRAINED, "other", "reference"]  # in the order of the run
STAGES = ["late_reference", "late_hard_kd_on_neg10", "rerank_reranker_on_reference"]
MEASURED = ["bm25", *MODELS, *STAGES, *(f"hybrid_{label}" for label in [*MODELS, *STAGES])]


def call(*command, **environment):
    """Run a command as a user would; returns what it printed and its exit status."""
    return subprocess.run(command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
                          capture_output=True, text=True)


def far_set(folder):
    """A second test set in BEIR's layout."""
    rows = tiny_pairs(30, seed=8)[:6]
    corpus = {f"d{number}": row["pos"][0] for number, row in enumerate(rows)}
    qrels = {f"f{number}": {f"d{number}": 1} for number in range(len(rows))}
    queries = {f"f{number}": row["query"] for number, row in enumerate(rows)}
    write_collection(folder, Collection(queries, corpus, qrels, dict.fromkeys(queries, "test")))
    return str(folder)


@pytest.fixture(scope="module")
def environment(tiny_settings, tmp_path_factory):
    """The tiny experiment with a recipe of mined negatives, two seeds, one more model and one more test set."""
    more = {"RECIPES": "hard_kd reranker", "SEEDS": "2",
            "EXTRA_MODELS": f"other={tiny_settings['BASE_MODEL']},last_token",
            "OUT_OF_DOMAIN_SETS": far_set(tmp_path_factory.mktemp("far")), "OMP_NUM_THREADS": "1",
            "RERANKERS": " ".join(STAGES)}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (tiny_settings | more).items():
            patch.setenv(name, value)
        yield tiny_settings | more


@pytest.fixture(scope="module")
def finished(environment):
    """The experiment with everything run, and what the run printed."""
    done = call(*offline(sys.executable, "tests/whole_run.py"), MPLBACKEND="agg")
    assert done.returncode == 0, done.stdout + done.stderr
    return Settings.load(), done.stdout


def comparison(settings):
    return json.loads((settings.output_dir / "results" / "comparison.json").read_text())


def test_every_step_leaves_its_files(finished):
    settings, printed = finished
    titles = re.findall(r"^\[(\d+)/23\] (.*): done in", printed, re.MULTILINE)
    assert [int(number) for number, _ in titles] == list(range(1, 24))
    assert [title for _, title in titles] == [
        "build_train_dataset.ipynb", "build_eval_dataset.ipynb", "finetune_neg10.sh",
        "finetune_hard.sh for neg10_seed43", "finetune_neg50.sh", "finetune_hard.sh for neg50_seed43",
        "finetune_hard.sh for hard_kd", "finetune_hard.sh for hard_kd_seed43", "finetune_reranker.sh",
        "finetune_hard.sh for reranker_seed43", "eval_raw_bert.ipynb",
        "eval_train_neg10.ipynb", "evaluate for neg10_seed43", "eval_train_neg50.ipynb", "evaluate for neg50_seed43",
        "evaluate for hard_kd", "evaluate for hard_kd_seed43", "evaluate for other", "eval_bge_m3.ipynb",
        "rerank.ipynb", *(f"evaluate for {label}" for label in STAGES[1:]), "compare.ipynb"]
    data = ["corpus.jsonl", "queries.jsonl", *(f"qrels/{part}.tsv" for part in ("train", "dev", "test")),
            "dataset.json", "eval_dataset.json", "qrels.trec", "training_neg_10.json", "training_neg_50.json",
            "training_hard_kd.json", "passages.arrow", "training_neg_10.arrow", "training_neg_50.arrow",
            "training_hard_kd.arrow"]
    output = [*(f"runs/{label}.trec" for label in MEASURED), *(f"runs/dev/{label}.trec" for label in MEASURED),
              *(f"results/{label}.json" for label in MEASURED), *(f"results/comparison.{end}" for end in ("md", "png")),
              *(f"{label}/{name}" for label in TRAINED for name in ("model.safetensors", "modules.json", "README.md",
                                                                   "training.json", "training_log.jsonl")),
              "results/recommendation.json", "report.html"]
    for folder, names in ((settings.data_dir, data), (settings.output_dir, output)):
        assert [name for name in names if not (folder / name).is_file() or not (folder / name).stat().st_size] == []
    notebooks = {path.name for path in ROOT.glob("*.ipynb")} - {"eval_train_hard.ipynb", "learning_curve.ipynb"}
    assert {path.name for path in (settings.output_dir / "notebooks").iterdir()} == notebooks


@pytest.mark.skipif(not way(), reason="a network namespace cannot be made here: unshare -n is refused, or missing")
def test_not_one_request_leaves_the_machine(finished):
    assert finished[1].splitlines()[-1] == f"{SAID}0"
    asked = call(*offline(sys.executable, "-c", ASK))
    assert "Network is unreachable" in asked.stderr and asked.stdout == f"{SAID}1\n"


def test_a_run_ends_with_the_recommendation_and_the_commands_that_follow(finished, settings, tmp_path, monkeypatch):
    done, printed = finished
    found = json.loads((done.output_dir / "results" / "recommendation.json").read_text())
    assert found["system"] in MEASURED and found["sentence"] in printed
    end = printed[printed.index(found["sentence"]):]
    assert re.search(r"^report +\S+/report.html$", end, re.MULTILINE) and 'embedding_finetune search "' in end
    monkeypatch.setenv("PROFILE", "demo")
    given = dataclasses.replace(settings, profile="demo", dataset="my pairs.csv",
                                sources=(("DATASET", "environment"), ("SEED", ".env")))
    assert "PROFILE=demo DATASET='my pairs.csv' python -m embedding_finetune serve" in pipeline.summary(given)
    monkeypatch.setattr(pipeline, "ROOT", tmp_path)
    (tmp_path / ".env").write_text("PROFILE=laptop\n")  # whose settings were not read
    assert "DATASET='my pairs.csv' ENV_FILE=none python" in pipeline.summary(given).replace("PROFILE=demo ", "")


def test_the_comparison_has_everything_measured(finished):
    settings, _ = finished
    rows = comparison(settings)
    labels = [row["label"] for row in rows]
    assert isinstance(rows, list) and sorted(labels) == sorted(MEASURED) and labels[:9] == MEASURED[:9]
    for row in rows:
        assert set(row["ci95"]) == set(row["metrics"]) and set(row["against"]) == set(MEASURED) - {row["label"]}
    chosen, = (row for row in rows if row["chosen"])
    tuned = [row for row in rows if row["label"] in ("neg10", "neg50", "hard_kd")]
    assert chosen["dev"]["mrr@10"] == max(row["dev"]["mrr@10"] for row in tuned) and chosen in tuned
    planned = {other for other, pair in chosen["against"].items() if pair["recall@1"]["planned"]}
    last = {row["label"] for row in rows if row["finalist"]}
    expected = {"bm25", "raw", "reference"} | ({"neg10"} if chosen["label"] != "neg10" else {"neg50", "hard_kd"})
    assert planned == expected | (last - {chosen["label"]} if chosen["label"] in last else set()) and len(last) == 2
    page = (settings.output_dir / "report.html").read_text()
    assert all(f'"{label}"' in page for label in MEASURED)


def test_metrics_can_be_recomputed_from_the_run_files(finished):
    """The dev run of a system without training has training queries as well: 5 dev queries are few."""
    settings, _ = finished
    collection, test = read_data(settings), pytrec_eval.parse_qrel((settings.data_dir / "qrels.trec").open())
    for part, folder in (("metrics", "runs"), ("dev", "runs/dev")):
        for row in comparison(settings):
            ranked = read_run(settings.output_dir / folder / f"{row['label']}.trec")
            qrels = test if part == "metrics" else {query: collection.qrels[query] for query in ranked}
            queries = collection.split("dev").queries if part == "dev" else test
            assert set(ranked) == set(qrels) >= set(queries) and (part == "dev" or len(ranked) == len(test))
            evaluator = pytrec_eval.RelevanceEvaluator(qrels, {"recall.1,10,100", "ndcg_cut.10", "recip_rank",
                                                               "success.1,5,10"})
            assert all(len(ranking) >= min(100, row["corpus"]) for ranking in ranked.values())
            values = evaluator.evaluate(ranked).values()
            first_ten = {query: dict(list(ranking.items())[:10]) for query, ranking in ranked.items()}
            theirs = {"recall@1": [v["recall_1"] for v in values], "recall@10": [v["recall_10"] for v in values],
                      "recall@100": [v["recall_100"] for v in values], "ndcg@10": [v["ndcg_cut_10"] for v in values],
                      **{f"hit@{k}": [v[f"success_{k}"] for v in values] for k in (1, 5, 10)},
                      "mrr@10": [v["recip_rank"] for v in evaluator.evaluate(first_ten).values()]}
            means = {name: sum(column) / len(qrels) for name, column in theirs.items()}
            assert row[part] == pytest.approx(means, abs=1e-6)
            if part == "metrics" and "by_corpus_size" in row:
                assert row["by_corpus_size"][-1] == pytest.approx({"passages": row["corpus"], **means}, abs=1e-6)


def test_recipes_and_seeds_give_models_of_their_own(finished):
    folders = [finished[0].output_dir / label for label in TRAINED]
    assert len({(folder / "model.safetensors").read_bytes() for folder in folders}) == len(TRAINED)
    assert len({json.dumps(row["metrics"]) for row in comparison(finished[0]) if row["label"] in MODELS}) > 5


def test_every_model_is_used_as_it_says(finished):
    """The base model is evaluated with the pooling of its training, whatever the reference uses of the same weights."""
    settings, _ = finished
    used = {row["label"]: row["inputs"]["models"][row["label"]]["config"] for row in comparison(settings)
            if row["label"] in MODELS}
    assert {label: config["pooling"] for label, config in used.items()} == dict.fromkeys(MODELS, "cls") | {
        "reference": "mean", "other": "last_token"}
    assert used == {label: load_encoder_config(settings, label).identity for label in MODELS}


def code_cells(path):
    return [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]


def shown(settings, name):
    """All that the outputs of an executed notebook say, as text."""
    outputs = [output for cell in code_cells(settings.output_dir / "notebooks" / name) for output in cell.outputs]
    return "\n".join(output.get("text") or output.get("data", {}).get("text/plain", "") for output in outputs)


def test_other_test_sets_and_seeds_are_shown(finished, environment):
    settings, _ = finished
    name, text = environment["OUT_OF_DOMAIN_SETS"], shown(finished[0], "compare.ipynb")
    rows = {row["label"]: row for row in comparison(settings)}
    assert {label for label, row in rows.items() if row.get("eval_sets")} == {"bm25", *MODELS}
    assert rows["bm25"]["eval_sets"][name]["recall@1"] > 0.5  # its words are the places' names
    assert re.search("^ +in-domain ", text, re.MULTILINE) and re.search("seeds +mean +std", text)
    against = rows["neg10"]["eval_sets"][name]["against"]
    assert against.keys() == {"raw", "reference"} and "each" not in rows["neg10"]["eval_sets"][name]


def test_running_again_keeps_models_and_data(finished, tmp_path, capsys):
    """A notebook in a kernel of its own, as `make run` does it; the models are looked at by the same `run`."""
    settings, _ = finished
    files = [path for folder in (settings.data_dir, settings.output_dir / "runs") for path in folder.rglob("*")
             if path.is_file()]
    files += [settings.output_dir / label / "model.safetensors" for label in TRAINED]
    before = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in files}
    compared = [row | {"finished": None} for row in comparison(settings)]
    copies = settings.output_dir / "notebooks"
    pipeline.run_notebook(ROOT / "build_train_dataset.ipynb", copies)
    for name in ("eval_train_neg10.ipynb", "compare.ipynb"):
        status, said = run_forked(whole_run.notebook, ROOT / name, copies, log=tmp_path / "log", MPLBACKEND="agg")
        assert status == 0, said
    assert [row | {"finished": None} for row in comparison(settings)] == compared
    for script, label in pipeline.plan(settings):
        if script.endswith(".sh"):
            pipeline.run_script(settings, script, label)
    kept = capsys.readouterr().out.count(" is already trained with these settings and this file: kept")
    assert kept == len(TRAINED) + 2  # and the rerankers
    assert {path: path.read_bytes() for path in before} == {path: content for path, (content, _) in before.items()}
    for path in (settings.output_dir / label / "model.safetensors" for label in TRAINED):
        assert path.stat().st_mtime_ns == before[path][1]


def test_a_dataset_with_test_queries_only_is_compared_without_training(settings, tmp_path, monkeypatch, capsys):
    rows = tiny_pairs(60, seed=8)[:40:2]
    corpus = {f"d{number}": row["pos"][0] for number, row in enumerate(rows)}
    queries = {f"f{number}": row["query"] for number, row in enumerate(rows)}
    qrels = {f"f{number}": {f"d{number}": 1} for number in range(len(rows))}
    write_collection(tmp_path / "beir", Collection(queries, corpus, qrels, dict.fromkeys(queries, "test")))
    for part in ("train", "dev"):
        (tmp_path / "beir" / "qrels" / f"{part}.tsv").unlink()
    settings = dataclasses.replace(settings, dataset=str(tmp_path / "beir"), dev_fraction=0.25, recipes="", seeds=1,
                                   rerankers="late_reference", extra_models="", out_of_domain_sets="")
    monkeypatch.setattr(pipeline, "run_notebook", lambda *args: pytest.fail("a notebook needs training files"))
    pipeline.run_pipeline(settings)
    said = capsys.readouterr().out
    assert "[6/6] compare: done in" in said and "There are no training queries, so nothing was fine-tuned." in said
    collection = read_data(settings)
    assert collection.predefined == ("test",) and not collection.split("train").queries
    assert 0 < len(collection.split("dev").queries) <= 5 and set(collection.splits.values()) == {"dev", "test"}
    labels = [row["label"] for row in comparison(settings)]
    assert labels == ["bm25", "raw", "reference", "hybrid_late_reference", "hybrid_raw", "hybrid_reference",
                      "late_reference"]
    assert settings.paths.report.exists() and (settings.data_dir / "eval_dataset.json").exists()
    assert list(settings.output_dir.glob("neg*")) == []


def scripts(folder, monkeypatch, then):
    """Scripts that note the label that they are called with, and do what `then` says; returns where they note it."""
    monkeypatch.setattr(pipeline, "ROOT", folder)
    for name in ("finetune_neg10.sh", "finetune_hard.sh"):
        (folder / name).write_text(f'echo "$0 $1" >> {folder}/calls; {then}')
    return folder / "calls"


def test_a_model_of_other_settings_is_trained_again_by_the_script(finished, tmp_path, monkeypatch):
    settings, _ = finished
    calls = scripts(tmp_path, monkeypatch, "exit 0")
    pipeline.run_script(dataclasses.replace(settings, learning_rate=1e-4), "finetune_neg10.sh", "neg10")
    monkeypatch.setenv("OVERWRITE", "1")
    pipeline.run_script(settings, "finetune_hard.sh", "hard_kd")
    assert calls.read_text().split() == [
        str(tmp_path / "finetune_neg10.sh"), "neg10", str(tmp_path / "finetune_hard.sh"), "hard_kd"]


def test_a_script_that_fails_is_named_and_a_stopped_one_is_waited_for(built, tmp_path, monkeypatch):
    """Ctrl-C goes to both: the training says how to continue, and its processes must not go on without the run."""
    scripts(tmp_path, monkeypatch, "exit 1")
    with pytest.raises(UserError, match="finetune_neg10.sh failed; see its messages above"):
        pipeline.run_script(built, "finetune_neg10.sh", "neg10")
    waiting = tmp_path / "waiting"

    class Waiting(subprocess.Popen):
        """Says when it is waited for: an earlier Ctrl-C would meet the start of the script instead of its run."""

        def wait(self, timeout=None):
            waiting.touch()
            return super().wait(timeout)

    monkeypatch.setattr(pipeline.subprocess, "Popen", Waiting)
    scripts(tmp_path, monkeypatch, f"until [ -e {waiting} ]; do sleep 0.05; done; kill -INT $PPID; sleep 0.6; "
                                   f"touch {tmp_path}/ended; exit 1")
    with pytest.raises(SystemExit) as stopped:
        run_command_line(lambda: pipeline.run_script(built, "finetune_neg10.sh", "neg10"))
    assert stopped.value.code == 130 and (tmp_path / "ended").exists()


def test_the_log_is_lines(finished):
    """What `tail -f` shows: no redrawn bars in the trainings' part, and a line with the loss each logging step."""
    printed = finished[1]
    training = printed[printed.index("finetune_neg10.sh"):printed.index("eval_raw_bert.ipynb")]
    assert "\r" not in training and "\x1b" not in training
    assert len(re.findall(r"loss", training)) >= 10


def test_a_training_survives_its_terminal_and_gives_the_same_weights(finished, tmp_path):
    """What closing a terminal does is a SIGHUP to everything started in it; nohup must be enough against it."""
    with open(tmp_path / "log", "w") as log:
        training = subprocess.Popen(["nohup", "bash", "finetune_neg10.sh"], cwd=ROOT, stdout=log, stderr=log,
                                    start_new_session=True, env={**os.environ, "OUTPUT_DIR": str(tmp_path)})
        deadline = time.monotonic() + 120
        while "step 0/" not in (tmp_path / "log").read_text() and time.monotonic() < deadline:
            time.sleep(0.1)
        os.killpg(training.pid, signal.SIGHUP)
        assert training.wait(timeout=120) == 0, (tmp_path / "log").read_text()
    weights = [folder / "neg10" / "model.safetensors" for folder in (tmp_path, finished[0].output_dir)]
    assert (tmp_path / "log").read_text().splitlines()[-1] == f"finished: {tmp_path / 'neg10'}"
    assert weights[0].read_bytes() == weights[1].read_bytes()


def test_a_notebook_stops_with_one_line(finished, monkeypatch, tmp_path):
    """In a kernel of its own, whose last output is that line alone."""
    monkeypatch.setenv("DATASET", "nowhere.jsonl")
    with pytest.raises(UserError) as stopped:
        pipeline.run_notebook(ROOT / "build_train_dataset.ipynb", tmp_path)
    text, message = str(stopped.value), "DATASET=nowhere.jsonl does not exist"
    assert text.startswith("build_train_dataset.ipynb stopped: ") and message in text and "\n" not in text
    [copy] = tmp_path.glob("*.ipynb")
    assert copy.name == "build_train_dataset.failed.ipynb"
    errors = [output for cell in code_cells(copy) for output in cell.outputs if output.output_type == "error"]
    assert len(errors) == 1 and message in errors[0].traceback[0] and len(errors[0].traceback) == 1


@pytest.mark.parametrize("changes, notebook, message", [
    ({"DATA_DIR": "{empty}"}, "build_eval_dataset.ipynb", "dataset.json does not exist: it is made by build_train"),
    ({"OUTPUT_DIR": "{empty}"}, "eval_train_neg10.ipynb", "run `bash finetune_neg10.sh` first"),
    ({"EPOCHS": "0"}, "eval_raw_bert.ipynb", "EPOCHS=0 is impossible"),
])
def test_what_a_notebook_lacks_is_said_in_one_line(finished, tmp_path, changes, notebook, message):
    changes = {name: value.format(empty=tmp_path / "empty") for name, value in changes.items()}
    status, said = run_forked(whole_run.notebook, ROOT / notebook, tmp_path, log=tmp_path / "log", **changes)
    last = said.splitlines()[-1]
    assert status == 1 and last.startswith(f"error: {notebook} stopped: ") and message in last
    assert [path.name for path in tmp_path.glob("*.ipynb")] == [notebook.replace(".ipynb", ".failed.ipynb")]


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_help_shows_the_usage_and_an_unknown_argument_is_one_line(command, monkeypatch, capsys):
    """Neither starts anything: no command gets as far as reading the settings."""
    monkeypatch.setattr(Settings, "load", lambda: pytest.fail("it was started"))
    with pytest.raises(SystemExit) as stopped:
        run_command_line(lambda: cli.run([command, "--help"]))
    assert not stopped.value.code and capsys.readouterr().out.startswith("usage: ")
    for words in (["--colour"], ["neg10", "--colour"]):
        with pytest.raises(SystemExit) as stopped:
            run_command_line(lambda words=words: cli.run([command, *words]))
        assert str(stopped.value.code).startswith("error: ") and "\n" not in stopped.value.code
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("words, called", [([], "run_pipeline"), (["--notebooks"], "keep_outputs")])
def test_the_command_line_of_the_run(settings, monkeypatch, words, called):
    calls = []
    for name in ("run_pipeline", "keep_outputs"):
        monkeypatch.setattr(pipeline, name, lambda settings, name=name: calls.append((name, settings)))
    monkeypatch.setattr(sys, "argv", ["run", *words])
    pipeline.main()
    assert calls == [(called, settings)]


def test_a_failed_copy_shows_no_outputs_of_an_earlier_run(tmp_path):
    """Below the failing cell stood the notebook's committed outputs, which are of another experiment."""
    new = nbformat.v4
    old = {"outputs": [new.new_output("stream", name="stdout", text="recall@1 0.999")], "execution_count": 9}
    notebook = new.new_notebook(cells=[new.new_code_cell(source, **old) for source in
                                       ("print('new')", "raise ValueError('stop')", "print('never')")])
    nbformat.write(notebook, tmp_path / "some.ipynb")
    status, said = run_forked(whole_run.notebook, tmp_path / "some.ipynb", tmp_path / "copies", log=tmp_path / "log")
    assert status == 1 and "some.ipynb stopped: stop" in said
    cells = code_cells(tmp_path / "copies" / "some.failed.ipynb")
    assert [[output.text for output in cell.outputs] for cell in (cells[0], cells[2])] == [["new\n"], []]
    assert cells[2].execution_count is None and "recall@1" not in json.dumps(cells)
    assert "recall@1" in (tmp_path / "some.ipynb").read_text()


def test_the_plan_repeats_seeds_and_adds_models(settings):
    more = {"seeds": 2, "recipes": "hard hard_round2", "extra_models": "mean=bundled,mean other=some/model,cls"}
    steps = pipeline.plan(dataclasses.replace(settings, **more))
    trained = [f"{label}{again}" for label in ("neg10", "neg50", "hard", "hard_round2") for again in ("", "_seed43")]
    assert [label for step, label in steps if step.endswith(".sh")] == trained
    assert {step for step, label in steps if label == "neg50_seed43"} == {"finetune_hard.sh", "evaluate"}
    evaluated = [label for step, label in steps if step == "evaluate"]
    assert evaluated[:7] == ["neg10_seed43", trained[3], *trained[5:], "mean", "other"]
    assert [step for step, label in steps if label == "hard"] == ["finetune_hard.sh", "eval_train_hard.ipynb"]
    assert steps[-1] == ("compare.ipynb", None)
    steps = pipeline.plan(dataclasses.replace(settings, recipes="neg10_half"))
    assert steps[-2:] == [("compare.ipynb", None), ("learning_curve.ipynb", None)]
    with pytest.raises(UserError, match="there is no recipe 'harder'"):
        pipeline.plan(dataclasses.replace(settings, recipes="harder"))


def test_a_recipe_that_would_repeat_another_is_skipped_in_one_line(settings, monkeypatch, capsys):
    ran = []
    monkeypatch.setattr(pipeline, "same_as_earlier", lambda _, label: {"neg50": "neg10"}.get(label))
    for name in ("run_notebook", "run_evaluation", "run_script", "summary"):
        monkeypatch.setattr(pipeline, name, lambda *given: ran.append(str(given[-1])))
    monkeypatch.setitem(pipeline.FUNCTIONS, "evaluate", lambda *given: ran.append(str(given[-1])))
    pipeline.run_pipeline(dataclasses.replace(settings, seeds=1, recipes=""))
    assert "neg10" in ran and "neg50" not in ran and not any("train_neg50" in step for step in ran)
    skipped = [line for line in capsys.readouterr().out.splitlines() if "neg50" in line]
    reason = "skipped, because the training split has no more negatives for neg50 than for neg10"
    assert [line.partition("] ")[2] for line in skipped] == [f"finetune_neg50.sh: {reason}",
                                                             f"eval_train_neg50.ipynb: {reason}"]


# Outputs in the notebooks themselves ----------------------------------------------------------------------------------


@pytest.fixture
def root(tmp_path, monkeypatch):
    """A copy of the notebooks that may be written to."""
    for path in ROOT.glob("*.ipynb"):
        shutil.copy(path, tmp_path)
    monkeypatch.setattr(pipeline, "ROOT", tmp_path)
    return tmp_path


def test_outputs_of_the_last_run_are_put_into_the_notebooks(finished, root, capsys):
    before = {path.name: path.read_bytes() for path in root.glob("*.ipynb")}
    pipeline.keep_outputs(finished[0])
    said = capsys.readouterr().out
    for name in ("eval_train_hard.ipynb", "learning_curve.ipynb"):
        assert f"{name}: no executed copy in" in said
        assert (root / name).read_bytes() == before.pop(name)
    for name in before:
        cells = code_cells(root / name)
        assert [cell.source for cell in cells] == [cell.source for cell in code_cells(ROOT / name)]
        assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
        assert all(cell.metadata["outputs_of"] == pipeline.source_hash(cell.source) for cell in cells)
        assert sum(bool(cell.outputs) for cell in cells) > 4
        outputs = [output for cell in cells for output in cell.outputs]
        assert all(output.get("name") != "stderr" and pipeline.WIDGET not in output.get("data", {})
                   for output in outputs)
        nbformat.validate(nbformat.read(root / name, as_version=4))
    kept = {path.name: path.read_bytes() for path in root.glob("*.ipynb")}
    pipeline.keep_outputs(finished[0])
    assert {path.name: path.read_bytes() for path in root.glob("*.ipynb")} == kept


def test_progress_bars_and_warnings_are_left_out_and_other_cells_are_refused(settings, root):
    for path in root.glob("*.ipynb"):
        path.unlink()
    new = nbformat.v4
    notebook = new.new_notebook(cells=[new.new_markdown_cell("# Title"), new.new_code_cell("one"),
                                       new.new_code_cell("two", metadata={"tags": ["x"]})])
    nbformat.write(notebook, root / "some.ipynb")
    bar, warning = {pipeline.WIDGET: {}, "text/plain": "0%"}, new.new_output("stream", name="stderr", text="careful")
    notebook.cells[1].outputs = [new.new_output("display_data", data=bar), warning,
                                 new.new_output("stream", name="stdout", text="said"),
                                 new.new_output("execute_result", data={"text/plain": "1"}, execution_count=7)]
    notebook.cells[1].metadata["execution"] = {"iopub.status.busy": "2025-01-01T00:00:00Z"}
    copies = settings.output_dir / "notebooks"
    copies.mkdir(parents=True)
    nbformat.write(notebook, copies / "some.ipynb")
    pipeline.keep_outputs(settings)
    one, two = code_cells(root / "some.ipynb")
    assert [output.get("text") or output["data"]["text/plain"] for output in one.outputs] == ["said", "1"]
    assert one.outputs[1].execution_count == one.execution_count == 1 and "execution" not in one.metadata
    assert two.outputs == [] and two.metadata["tags"] == ["x"]
    changed = nbformat.read(root / "some.ipynb", as_version=4)
    changed.cells[1].source = "one more"
    nbformat.write(changed, root / "some.ipynb")
    with pytest.raises(UserError, match="some.ipynb was executed from other cells than some.ipynb has now"):
        pipeline.keep_outputs(settings)
