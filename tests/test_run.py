"""The whole experiment, small: every notebook and both scripts, run as `make run` does, with a tiny random BERT."""

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

from embedding_finetune import trec
from embedding_finetune.experiment import ROOT, Experiment
from embedding_finetune.run import plan

STEPS = plan(dataclasses.replace(Experiment.load("demo"), recipes="hard_kd"))
NOTEBOOKS = [step for step, _ in STEPS if step.endswith(".ipynb")]
EVALUATIONS = [step for step in NOTEBOOKS if step.startswith("eval_")]


def call(*command, **settings):
    """Run a command as a user would, settings in the environment; returns what it printed and its exit status."""
    return subprocess.run(command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT), "TOKENIZERS_PARALLELISM": "false", **settings},
                          capture_output=True, text=True)


@pytest.fixture(scope="module")
def finished(tiny_settings):
    """The experiment with everything run, one recipe of mined negatives included, and what the run printed."""
    done = call(sys.executable, "-m", "embedding_finetune.run", **tiny_settings, RECIPES="hard_kd")
    assert done.returncode == 0, done.stdout + done.stderr
    with pytest.MonkeyPatch.context() as environment:
        for name, value in tiny_settings.items():
            environment.setenv(name, value)
        return Experiment.load(), done.stdout


def test_every_step_leaves_its_files(finished):
    experiment, printed = finished
    titles = [step + (f" for {label}" if label else "") for step, label in STEPS]
    assert [f"[{number}/10] {title}: done" in printed for number, title in enumerate(titles, start=1)] == [True] * 10
    for name in ("training_neg_10.json", "training_neg_50.json", "training_hard_kd.json", "eval_dataset.json", "corpus.jsonl", "qrels.trec"):
        assert (experiment.data_dir / name).stat().st_size
    labels = ("bm25", "raw", "neg10", "neg50", "hard_kd", "reference")
    comparison = json.loads((experiment.output_dir / "results" / "comparison.json").read_text())
    assert [row["label"] for row in comparison] == [*labels, *sorted(f"hybrid_{label}" for label in labels[1:])]
    for name in ("comparison.md", "comparison.png", *(f"{label}.json" for label in labels)):
        assert (experiment.output_dir / "results" / name).stat().st_size
    assert sorted(path.name for path in (experiment.output_dir / "notebooks").iterdir()) == sorted(
        name.replace("train_hard", "hard_kd") for name in NOTEBOOKS)


def test_metrics_can_be_recomputed_from_the_run_files(finished):
    experiment, _ = finished
    qrels = trec.read_qrels(experiment.data_dir / "qrels.trec")
    evaluator = pytrec_eval.RelevanceEvaluator(qrels, {"recall.1,10,100", "ndcg_cut.10", "recip_rank"})
    for row in json.loads((experiment.output_dir / "results" / "comparison.json").read_text()):
        run = trec.read_run(experiment.output_dir / "runs" / f"{row['label']}.trec")
        assert set(run) == set(qrels) and all(len(ranking) == min(100, row["corpus"]) for ranking in run.values())
        values = evaluator.evaluate(run).values()
        first_ten = evaluator.evaluate({query: dict(list(ranking.items())[:10]) for query, ranking in run.items()}).values()
        theirs = {"recall@1": [v["recall_1"] for v in values], "recall@10": [v["recall_10"] for v in values],
                  "recall@100": [v["recall_100"] for v in values], "ndcg@10": [v["ndcg_cut_10"] for v in values],
                  "mrr@10": [v["recip_rank"] for v in first_ten]}
        assert row["metrics"] == pytest.approx({name: sum(column) / len(qrels) for name, column in theirs.items()})


def test_fine_tuning_changed_the_model(finished):
    experiment, _ = finished
    metrics = {row["label"]: row["metrics"] for row in json.loads((experiment.output_dir / "results" / "comparison.json").read_text())}
    assert metrics["neg10"] != metrics["raw"] and metrics["neg10"]["mrr@10"] > metrics["raw"]["mrr@10"]


def test_running_again_keeps_models_and_gives_the_same(finished, tiny_settings):
    experiment, _ = finished
    files = [*experiment.data_dir.iterdir(), *(experiment.output_dir / "runs").iterdir(), experiment.output_dir / "neg10" / "model.safetensors"]
    before = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in files if path.is_file()}
    for notebook in ("build_train_dataset.ipynb", "build_eval_dataset.ipynb", "eval_train_neg10.ipynb"):
        code = ("import sys; from embedding_finetune.run import *; "
                "run_notebook(ROOT / sys.argv[1], Experiment.load().output_dir / 'notebooks'); run_script(Experiment.load(), 'finetune_neg10.sh', 'neg10')")
        again = call(sys.executable, "-c", code, notebook, **tiny_settings)
        assert again.returncode == 0 and "neg10 is trained with these settings and this file already: kept" in again.stdout, again.stderr
    assert {path: path.read_bytes() for path in before} == {path: content for path, (content, _) in before.items()}
    model = experiment.output_dir / "neg10" / "model.safetensors"
    assert model.stat().st_mtime_ns == before[model][1]


def test_a_training_survives_its_terminal_and_gives_the_same_weights(finished, tiny_settings, tmp_path):
    """What closing a terminal does is a SIGHUP to everything started in it; nohup must be enough against it."""
    with open(tmp_path / "log", "w") as log:
        training = subprocess.Popen(["nohup", "bash", "finetune_neg10.sh"], cwd=ROOT, stdout=log, stderr=log, start_new_session=True,
                                    env={**os.environ, **tiny_settings, "OUTPUT_DIR": str(tmp_path)})
        deadline = time.monotonic() + 120
        while "step 0/" not in (tmp_path / "log").read_text() and time.monotonic() < deadline:
            time.sleep(0.1)
        os.killpg(training.pid, signal.SIGHUP)
        assert training.wait(timeout=120) == 0, (tmp_path / "log").read_text()
    experiment, _ = finished
    assert (tmp_path / "log").read_text().splitlines()[-1] == f"finished: {tmp_path / 'neg10'}"
    assert (tmp_path / "neg10" / "model.safetensors").read_bytes() == (experiment.output_dir / "neg10" / "model.safetensors").read_bytes()


def test_flagembeddings_own_trainer_gives_a_model_that_is_evaluated_alike(finished, tiny_settings, tmp_path):
    done = call("bash", "finetune_neg10.sh", TRAINER="flagembedding", **{**tiny_settings, "OUTPUT_DIR": str(tmp_path)})
    assert done.returncode == 0, done.stderr
    assert {"training.json", "model.safetensors", "modules.json", "1_Pooling"} <= {path.name for path in (tmp_path / "neg10").iterdir()}


def test_a_finished_model_is_refused_and_stays(finished, tiny_settings):
    refused = call("bash", "finetune_neg10.sh", **tiny_settings)
    assert refused.returncode != 0 and "neg10 holds a finished model; OVERWRITE=1" in refused.stderr
    assert (finished[0].output_dir / "neg10" / "model.safetensors").exists()


def test_the_log_is_lines(finished):
    """What `tail -f` shows: no redrawn bars in the trainings' part, and a line with the loss each logging step."""
    printed = finished[1]
    training = printed[printed.index("finetune_neg10.sh"):printed.index("eval_raw_bert.ipynb")]
    assert "\r" not in training and "\x1b" not in training
    assert len(re.findall(r"loss", training)) >= 10


@pytest.mark.parametrize("changes, notebook, message", [
    ({"DATASET": "nowhere.jsonl"}, "build_train_dataset.ipynb", "DATASET=nowhere.jsonl is neither"),
    ({"DATA_DIR": "{empty}"}, "build_eval_dataset.ipynb", "pairs.jsonl does not exist: it is made by build_train_dataset.ipynb"),
    ({"OUTPUT_DIR": "{empty}"}, "eval_train_neg10.ipynb", "run `bash finetune_neg10.sh` first"),
    ({"EPOCHS": "0"}, "eval_raw_bert.ipynb", "EPOCHS=0.0 is impossible"),
])
def test_a_notebook_stops_with_one_line(finished, tiny_settings, tmp_path, changes, notebook, message):
    settings = {**tiny_settings, **{name: value.format(empty=tmp_path / "empty") for name, value in changes.items()}}
    code = (f"from pathlib import Path; from embedding_finetune.run import *; "
            f"run_command_line(lambda: run_notebook(ROOT / '{notebook}', Path('{tmp_path}')))")
    stopped = call(sys.executable, "-c", code, **settings)
    assert stopped.returncode == 1 and message in stopped.stderr
    assert len([line for line in stopped.stderr.splitlines() if line.startswith("error: ")]) == 1 and "Traceback" not in stopped.stderr
    copy = nbformat.read(tmp_path / notebook.replace(".ipynb", ".failed.ipynb"), as_version=4)
    shown = [output for cell in copy.cells if cell.cell_type == "code" for output in cell.outputs if output.output_type == "error"]
    assert len(shown) == 1 and message in shown[0].traceback[0] and len(shown[0].traceback) == 1


@pytest.mark.parametrize("breaking, message", [
    ("rows.pop('neg')", "line 1: no 'neg'"),
    ("rows.update(neg=[])", "row 1: 'neg' must be a list of at least one text"),
])
def test_a_broken_training_file_stops_the_script_before_any_model(finished, tiny_settings, tmp_path, breaking, message):
    shutil.copytree(finished[0].data_dir, tmp_path / "data")
    path = tmp_path / "data" / "training_neg_10.json"
    rows = json.loads(path.read_text().splitlines()[0])
    exec(breaking)
    path.write_text(json.dumps(rows) + "\n")
    stopped = call("bash", "finetune_neg10.sh", **{**tiny_settings, "DATA_DIR": str(tmp_path / "data"), "OUTPUT_DIR": str(tmp_path / "out")})
    assert stopped.returncode != 0 and message in stopped.stderr and "Traceback" not in stopped.stderr
    assert not (tmp_path / "out").exists()


def test_the_plan_repeats_seeds_and_adds_models(experiment):
    steps = plan(dataclasses.replace(experiment, seeds=2, recipes="hard hard_round2", extra_models="mean=bundled,mean other=some/model,cls"))
    assert [label for step, label in steps if step == "finetune_hard.sh"] == ["hard", "hard_round2"]
    repeats = ["neg10_seed43", "neg50_seed43", "hard_seed43", "hard_round2_seed43"]
    assert [label for step, label in steps if step == "embedding_finetune/finetune.sh"] == repeats
    assert [label for step, label in steps if step.startswith("eval_")] == [
        None, None, None, "hard", "hard_round2", *repeats, "mean", "other", None]


def test_the_evaluation_notebooks_differ_in_one_cell():
    sources = [[cell.source for cell in nbformat.read(ROOT / name, as_version=4).cells] for name in EVALUATIONS]
    assert len({len(cells) for cells in sources}) == 1
    assert sum(len(set(cells)) > 1 for cells in zip(*sources)) == 1


def test_notebooks_are_clean_and_short():
    for name in NOTEBOOKS:
        notebook = nbformat.read(ROOT / name, as_version=4)
        code = [cell for cell in notebook.cells if cell.cell_type == "code"]
        assert "parameters" in code[0].metadata.tags and "PROFILE = None" in code[0].source
        for cell in code:
            assert not cell.outputs and cell.execution_count is None, f"{name} has outputs: clear them before committing"
            assert len(cell.source.splitlines()) <= 10, f"{name}: a long cell\n{cell.source}"


def test_settings_that_differ_only_in_use_share_no_result(finished):
    """The base model is evaluated with the pooling of its training, whatever the reference uses of the same weights."""
    experiment, _ = finished
    used = {label: json.loads((experiment.output_dir / "results" / f"{label}.json").read_text())["used"] for label in ("raw", "neg10", "reference")}
    assert used["raw"]["pooling"] == used["neg10"]["pooling"] == "cls" and used["reference"]["pooling"] == "mean"
    assert used == {label: dataclasses.asdict(experiment.model(label)) for label in used}
