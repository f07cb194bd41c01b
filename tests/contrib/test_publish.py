"""What is published says what was measured, names nothing private, and reaches a hub only when that is asked for."""

import json
import re
from dataclasses import replace

import pytest
from finished import evaluate, finish
from hub import hub
from huggingface_hub import ModelCard, snapshot_download
from sentence_transformers import SentenceTransformer

from embedding_finetune.artifacts.manifest import MANIFEST
from embedding_finetune.contrib import publish
from embedding_finetune.contrib.publish import prepare, public
from embedding_finetune.data.collection import read_data
from embedding_finetune.evaluation.results import compare
from embedding_finetune.files import UserError, read_json, write_json
from embedding_finetune.settings import ROOT, Settings


@pytest.fixture(scope="module")
def measured(tiny_settings, built_once, tmp_path_factory):
    """The settings of an experiment in which bm25, raw and neg10 were measured; in the environment, too."""
    folders = {"DATA_DIR": str(built_once), "OUTPUT_DIR": str(tmp_path_factory.mktemp("publish") / "output")}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (tiny_settings | folders).items():
            patch.setenv(name, value)
        settings = Settings.load()
        finish(settings)
        evaluate(settings, "bm25", "raw", "neg10")
        yield settings


def test_the_card_says_what_was_measured_and_its_head_is_valid(measured):
    folder = prepare(replace(measured, model_license="apache-2.0", model_language="en zh"), "neg10", "me/mine")
    card = ModelCard((folder / "README.md").read_text())
    rows, _ = compare(measured, read_data(measured))
    row = next(row for row in rows if row["label"] == "neg10")
    assert card.data.license == "apache-2.0" and card.data.language == ["en", "zh"]
    assert card.data.library_name == "sentence-transformers" and card.data.datasets is None  # the pairs are a file
    assert {found.metric_type: found.metric_value for found in card.data.eval_results} == {
        name: round(value, 4) for name, value in row["metrics"].items()}
    text = card.text
    low, high = row["ci95"]["recall@1"]
    assert f"{row['metrics']['recall@1']:.3f} [{low:.3f}, {high:.3f}]" in text
    assert re.search(r"\| (neg10 - bm25|bm25 - neg10) .*\(Holm\)", text)
    assert f"{row['queries']} test queries, {row['corpus']} passages" in text and "## Metrics" not in text
    assert "neg10 is 10 random negatives a query" in text and "raw is a local folder" in text
    assert "| LEARNING_RATE | 0.001 |" in text and "| BASE_MODEL | a local folder |" in text
    assert text.count("```python") == 3 and text.count("'me/mine'") == 4 and "PATH" not in text
    facts = read_json(folder / "results.json")
    assert facts["metrics"] == row["metrics"] and facts["inputs"] == row["inputs"]
    assert SentenceTransformer(str(folder), device="cpu").encode_query(["a"]).shape == (1, 64)
    assert not {"training.json", "training_log.jsonl"} & {path.name for path in folder.iterdir()}


def test_the_head_of_the_card_names_repositories_without_revision(measured, monkeypatch):
    rows, _ = compare(measured, read_data(measured))
    row = next(row for row in rows if row["label"] == "neg10")
    monkeypatch.setattr(publish, "read_json", lambda path: {"settings": {"BASE_MODEL": "some/model@refs/pr/1"}})
    head = ModelCard(publish.card(measured, "neg10", "", rows, row | {"dataset": "some/pairs@v1:de"})).data
    assert head.base_model == "some/model" and head.datasets == ["some/pairs"]


def test_nothing_of_the_machine_or_of_the_texts_is_in_it(measured, monkeypatch):
    monkeypatch.setenv("OVERWRITE", "1")
    config = measured.output_dir / "neg10" / "tokenizer_config.json"
    before = config.read_text()
    (measured.output_dir / "neg10" / MANIFEST).unlink()  # so that the folder may be changed
    write_json(config, json.loads(before) | {"name_or_path": measured.base_model})
    evaluate(measured, "neg10")
    everything = b"".join(path.read_bytes() for path in prepare(measured, "neg10").rglob("*")
                          if path.is_file() and path.suffix != ".safetensors")
    for path in (measured.base_model, measured.data_dir, measured.output_dir, measured.dataset, ROOT):
        assert str(path).encode() not in everything
    collection = read_data(measured)
    assert not any(text.encode() in everything for text in (*collection.queries.values(), *collection.corpus.values()))
    write_json(config, json.loads(before) | {"note": f"see {measured.data_dir}/x"})
    evaluate(measured, "neg10")
    with pytest.raises(UserError, match="tokenizer_config.json contains .*data, a path of this machine"):
        prepare(measured, "neg10")
    config.write_text(before)
    evaluate(measured, "neg10")
    assert "see /" not in (prepare(measured, "neg10") / "tokenizer_config.json").read_text()
    assert not list((measured.output_dir / "publish").glob("*.partial"))


def test_a_licence_is_never_invented(measured, monkeypatch, capsys):
    monkeypatch.setenv("OVERWRITE", "1")
    card = ModelCard((prepare(measured, "neg10") / "README.md").read_text())
    assert card.data.license == "unknown" and "unknown (not stated by its owner)" in card.text
    assert card.data.language is None and "licence unknown" in capsys.readouterr().out
    monkeypatch.setenv("MODEL_LICENSE", "a licence of mine")
    with pytest.raises(UserError, match="MODEL_LICENSE=a licence of mine is impossible"):
        Settings.load()


def test_a_folder_is_kept_with_its_edits_until_something_changes(measured, monkeypatch):
    monkeypatch.setenv("OVERWRITE", "1")
    card = prepare(measured, "neg10") / "README.md"
    monkeypatch.delenv("OVERWRITE")
    card.write_text(card.read_text() + "\nMine.\n")
    prepare(measured, "neg10")
    with pytest.raises(UserError, match="other results or another name .published_as: not set, now me/mine.; OVERW"):
        prepare(measured, "neg10", "me/mine")
    assert card.read_text().endswith("\nMine.\n")


def test_a_model_without_results_or_with_stale_ones_is_refused(measured, monkeypatch):
    finish(measured, "neg50")
    with pytest.raises(UserError, match="neg50 has no results: evaluate it first"):
        prepare(measured, "neg50")
    for label in ("bm25", "raw", "nothing"):
        with pytest.raises(UserError, match=f"{label} holds no finished model"):
            prepare(measured, label)
    evaluate(measured, "neg50")
    config = measured.output_dir / "neg50" / "config.json"
    config.write_text(config.read_text() + " ")
    with pytest.raises(UserError, match="config.json has changed since it was written: restore it or build the model "
                                        "again"):
        prepare(measured, "neg50")
    (config.parent / MANIFEST).unlink()
    with pytest.raises(UserError, match="neg50 is left out: .*other inputs .config.json of neg50.*; evaluate it again"):
        prepare(measured, "neg50")
    assert not (measured.output_dir / "publish" / "neg50").exists()
    with pytest.raises(UserError, match="neg50.* left out: .*; evaluate them again, or move the results out of "):
        prepare(measured, "neg10")  # whose card would compare it with fewer
    for label in ("neg50", "hybrid_neg50"):
        measured.paths.result(label).unlink()


def test_what_was_changed_since_is_not_sent_but_for_the_card(measured, monkeypatch):
    monkeypatch.setenv("OVERWRITE", "1")
    folder = prepare(measured, "neg10", "me/mine")
    monkeypatch.delenv("OVERWRITE")
    (folder / "README.md").write_text("mine")
    assert prepare(measured, "neg10", "me/mine") == folder
    (folder / "modules.json").write_text("[]")
    message = "neg10/modules.json has changed since it was made; OVERWRITE=1 rebuilds the folder"
    with pytest.raises(UserError, match=message):
        prepare(measured, "neg10", "me/mine")


@pytest.mark.parametrize("value, said", [
    ("bundled", "bundled"), ("BAAI/bge-m3", "BAAI/bge-m3"), ("/home/me/model", "a local folder"), (5e-5, "5e-05"),
    ("~/model", "a local folder"), ("tests/data", "a local folder"), ("README.md", "a local folder"), ("auto", "auto")])
def test_a_path_is_no_value_to_publish(value, said):
    assert public(value) == said


@pytest.fixture
def main(measured, monkeypatch, tmp_path):
    """Calls the command in this process with a hub at `endpoint`, its words, and what is set beside them."""
    def call(endpoint, *words, **able):
        with monkeypatch.context() as patch:
            patch.setattr("huggingface_hub.constants.ENDPOINT", str(endpoint))
            patch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
            patch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "no token"))
            patch.setattr("sys.argv", ["publish", "neg10", *words])
            patch.delenv("HF_TOKEN", raising=False)
            for name, value in ({"OVERWRITE": "1"} | able).items():
                patch.setenv(name, value)
            publish.main()
    return call


def files(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_only_upload_uploads_and_what_arrives_loads_by_its_name(measured, main, tmp_path, capsys):
    able = {"MODEL_LICENSE": "mit", "HF_TOKEN": "hf_good"}
    with hub({"models": {}}, uploads=tmp_path / "store") as endpoint:
        main(endpoint, "--to", "me/mine", **able)
        assert endpoint.requests == [] and "before you publish it" in capsys.readouterr().out
        main(endpoint, "--to", "me/mine", "--upload", **able)
        assert f"uploaded: {endpoint}/me/mine/commit/" in capsys.readouterr().out
        sent = files(tmp_path / "store" / "me" / "mine")
        made = files(measured.output_dir / "publish" / "neg10")
        assert made.pop(MANIFEST) and sent == made and len(sent["model.safetensors"]) > 100_000
        loaded = snapshot_download("me/mine", endpoint=endpoint, cache_dir=tmp_path / "cache")
        assert SentenceTransformer(loaded, device="cpu").encode_query(["a"]).shape == (1, 64)


@pytest.mark.parametrize("words, able, message", [
    (["--to", "me/mine"], {"HF_TOKEN": "hf_good"}, r"--upload needs MODEL_LICENSE \(or MODEL_LICENSE=unknown\)$"),
    ([], {}, r"--upload needs --to NAMESPACE/NAME, MODEL_LICENSE .*, HF_TOKEN$"),
    (["--to", "mine"], {}, "--to mine is not a valid repository name: give NAMESPACE/NAME$"),
    (["--to", "me/mine"], {"MODEL_LICENSE": "mit", "HF_TOKEN": "hf_bad"},
     "the Hugging Face Hub at .* does not accept me/mine .*401"),
])
def test_an_upload_that_cannot_be_is_one_line(main, tmp_path, words, able, message):
    with hub({"models": {}}, uploads=tmp_path / "store") as endpoint, pytest.raises(UserError, match=message) as caught:
        main(endpoint, "--upload", *words, **able)
    assert "\n" not in str(caught.value) and not (tmp_path / "store").exists()


def test_a_hub_that_is_not_there_is_one_line(main):
    message = "the Hugging Face Hub at http://127.0.0.1:1 does not accept me/mine .*is complete: run the same"
    with pytest.raises(UserError, match=message):
        main("http://127.0.0.1:1", "--upload", "--to", "me/mine", MODEL_LICENSE="mit", HF_TOKEN="hf_good")
