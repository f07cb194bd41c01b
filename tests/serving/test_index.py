"""Saved indexes: they rank as the retrievers do, are found again without PyTorch, and are never taken for today's when
they are not."""

import dataclasses
import errno
import json
import os
import re
import shutil
import subprocess
import sys

import pytest
from finished import evaluate

from embedding_finetune.artifacts.manifest import read_checksummed, write_checksummed
from embedding_finetune.data.collection import read_data
from embedding_finetune.evaluation.results import read_measured_run
from embedding_finetune.files import UserError, one_line, reading, write_json
from embedding_finetune.models.encoder import Encoder
from embedding_finetune.models.encoder_config import load_encoder_config
from embedding_finetune.retrieval.bm25 import BM25
from embedding_finetune.retrieval.dense import Dense
from embedding_finetune.serving import index
from embedding_finetune.serving.available import default_label
from embedding_finetune.serving.index import open_index
from embedding_finetune.serving.search import exactness_line
from embedding_finetune.settings import ROOT


def times(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


QUERIES = ["when does the otter of Bafo sleep", "twigs of willow", "月亮", "x"]


@pytest.mark.parametrize("label, made", [("bm25", lambda config: BM25()),
                                         ("reference", lambda config: Dense(Encoder(config)))])
def test_an_index_answers_as_the_retriever_does(built, label, made):
    collection, config = read_data(built), load_encoder_config(built, "reference")
    retriever = made(config).index(collection.corpus)
    queries = dict(enumerate(QUERIES)) | collection.split("test").queries
    expected = retriever.search(queries, depth=7)
    open_index(built, label)
    again = open_index(built, label)  # from the disk
    for query, hits in zip(queries, again.answer(list(queries.values()), 7), strict=True):
        assert [hit["id"] for hit in hits] == list(expected[query])
        assert [hit["score"] for hit in hits] == pytest.approx(list(expected[query].values()), abs=1e-5)
        assert [hit["rank"] for hit in hits] == list(range(1, len(hits) + 1))
        assert all(hit["text"] == collection.corpus[hit["id"]] for hit in hits)


@pytest.mark.parametrize("where", ["HNSW8 efSearch=200", "milvus:{folder}/milvus.db"])
def test_vectors_may_be_searched_approximately_and_what_that_costs_is_said(built, where, tmp_path, capsys):
    def answers(index):
        return [[hit | {"score": pytest.approx(hit["score"], abs=1e-5)} for hit in hits]
                for hits in index.answer(QUERIES, 5)]

    exact = open_index(built, "reference")
    there = built.__class__(**vars(built) | {"index": where.format(folder=tmp_path)})
    found = open_index(there, "reference")
    assert capsys.readouterr().err.count("building the index of reference") == 2 and found.folder != exact.folder
    assert found.answer(QUERIES, 5) == open_index(there, "reference").answer(QUERIES, 5) == answers(exact)
    assert exactness_line(exact.manifest) == ""
    assert re.fullmatch(re.escape(there.index) + r" finds 100.0% of the exact top 10 of \d+ dev queries, in "
                        r"\d+\.\d\d ms per query compared with \d+\.\d\d ms for exact search",
                        exactness_line(found.manifest))
    evaluate(built, "bm25", "reference")
    assert open_index(there, "hybrid_reference").answer(QUERIES, 5) == answers(open_index(built, "hybrid_reference"))


@pytest.mark.parametrize("label", ["hybrid_reference", "late_reference", "hybrid_late_reference"])
def test_a_fused_or_reranked_system_answers_as_it_was_measured(built, label, capsys):
    found, collection = evaluate(built, "bm25", "reference", "late_reference"), read_data(built)
    run, test = read_measured_run(built, collection, label), collection.split("test").queries
    open_index(built, label)
    again = open_index(built, label)  # from the disk
    assert again.manifest["parameters"] == found[label]["parameters"] and again.folder.parent.name == "reference"
    assert len(again.answer(["x"], 1000)[0]) <= 100
    for query, hits in zip(test, again.answer(list(test.values()), 5), strict=True):
        assert [hit["id"] for hit in hits] == list(run[query])[:5]
        assert [hit["score"] for hit in hits] == pytest.approx(list(run[query].values())[:5], abs=1e-3)
    path, _ = built.paths.result(label), capsys.readouterr()
    result = read_checksummed(path)
    changed = result["parameters"] | {"bm25_weight": result["parameters"]["bm25_weight"] + 0.5}
    write_checksummed(path, result | {"parameters": changed})  # as if it were tuned again
    assert open_index(built, label).manifest["parameters"] == changed
    assert f"building the index of {label}" in capsys.readouterr().err


def test_a_fused_or_reranked_system_needs_a_current_result(built):
    def refused(label, message, settings=built):
        with pytest.raises(UserError, match=message) as caught:
            open_index(settings, label)
        assert "\n" not in str(caught.value)

    for label in ("hybrid_reference", "late_reference"):
        refused(label, f"the result of {label}, .*results/{label}.json, does not exist: evaluate {label}")
    evaluate(built, "bm25", "reference", "late_reference")
    german = dataclasses.replace(built, bm25_language="de")
    other = dataclasses.replace(built, reference_prompt="otherwise: ")
    for label in ("hybrid_reference", "late_reference"):
        refused(label, f"{label}: it was measured with other inputs .BM25_LANGUAGE: auto, now de.; evaluate", german)
        refused(label, f"{label}: it was measured with other inputs .query_prompt of .*; evaluate it again", other)
        write_checksummed(built.paths.result(label), {"label": label, "hybrid_of": "reference", "weight": 0.3})
        refused(label, f"{label}.json, was written by an earlier version: evaluate {label} again")
        built.paths.result(label).write_text("{")
        refused(label, f"{label}.json, is damaged: evaluate {label} again")


def test_data_that_change_while_an_index_is_made_or_opened_are_not_mixed(built, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(index, "_measure", lambda *_: os.utime(built.data_dir / "corpus.jsonl") or {})  # as if rewritten
        with pytest.raises(UserError, match="data or model of reference changed while its index was opened: try again"):
            open_index(built, "reference")
    evaluate(built, "bm25", "reference")
    fused = open_index(built, "hybrid_reference")
    parts = fused.manifest["inputs"]["parts"]
    assert parts == [open_index(built, part).folder.name for part in ("bm25", "reference")]
    other = fused.manifest | {"inputs": fused.manifest["inputs"] | {"parts": [parts[0], "of yesterday"]}}
    with pytest.raises(UserError, match="hybrid_reference changed while its index was opened"):
        index._open(built, fused.folder, other)


def test_a_cold_search_loads_neither_pytorch_nor_transformers(built):
    open_index(built, "reference")
    script = ("import sys; from embedding_finetune.serving.index import *; "
              "from embedding_finetune.settings import Settings;"
              "print(len(open_index(Settings.load(), 'reference').answer(['otter'], 3)[0]), "
              "{'torch', 'transformers', 'huggingface_hub', 'pandas'} & set(sys.modules))")
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "3 set()\n" and "building" not in done.stderr


def test_a_model_that_is_no_graph_is_asked_with_pytorch_and_without_the_cache_of_vectors(built, monkeypatch, capsys):
    def refuse(*given, **more):
        raise RuntimeError("no such operator")

    expected = open_index(built, "reference").answer(QUERIES, 3)
    shutil.rmtree(built.output_dir / "index")
    monkeypatch.setattr("torch.onnx.export", refuse)
    open_index(built, "reference")
    before = times(built.output_dir / "cache")
    monkeypatch.setattr("embedding_finetune.models.embedding_cache.EmbeddingCache.read", None)
    opened = open_index(built, "reference")
    assert type(opened.retriever.encoder) is Encoder
    for query, hits in zip(QUERIES, expected):
        assert [hit["id"] for hit in opened.answer([query], 3)[0]] == [hit["id"] for hit in hits]
    assert times(built.output_dir / "cache") == before
    assert capsys.readouterr().err.count("cannot be exported to ONNX (no such operator): PyTorch encodes") == 1


def test_a_disk_that_fails_during_the_export_is_no_property_of_the_model(built, monkeypatch):
    """Otherwise the index would be saved without its graph, and each search would take seconds."""
    def refuse(*given, **more):
        with reading("vectors.npy"):
            raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr("torch.onnx.export", refuse)
    with pytest.raises(UserError, match="cannot read vectors.npy: Input/output error"):
        open_index(built, "reference")
    assert not list((built.output_dir / "index").glob("*/*/manifest.json"))


def test_what_changed_is_rebuilt_and_said(built, capsys):
    def opened(**changes):
        """The Index of `reference` under other settings, and how often it was built."""
        found = open_index(dataclasses.replace(built, **changes), "reference")
        return found, capsys.readouterr().err.count("building the index of reference")

    first, made = opened()
    assert made == 1 and opened()[1] == 0
    again, made = opened(encode_batch_size=5, epochs=3.0)  # settings that no vector depends on
    assert again.folder == first.folder and made == 0 and again.manifest["settings"]["EPOCHS"] == 3
    pooled, made = opened(reference_pooling="cls")
    assert pooled.folder != first.folder and made == 1
    assert not first.folder.exists() and len(first.answer(["otter"], 3)[0]) == 3  # who has it open keeps it
    text = (built.data_dir / "corpus.jsonl").read_text()
    (built.data_dir / "corpus.jsonl").write_text(text.replace("otter", "other", 1))
    with pytest.raises(UserError, match="are not those that build_train_dataset.ipynb wrote"):
        opened()


def test_what_is_only_said_of_a_model_rebuilds_no_index(built, tmp_path, capsys):
    """The name of MODEL_FILE does not, its entries do."""
    models = tmp_path / "models.toml"
    models.write_text(f'["{built.reference_model}"]\npassage_prompt = "text: "\n')
    named = dataclasses.replace(built, model_file=models)
    evaluate(named, "bm25", "reference", "late_reference")
    folders = [open_index(named, label).folder for label in ("reference", "hybrid_late_reference")]
    assert capsys.readouterr().err.count("building the index of") == 3  # and bm25
    renamed = dataclasses.replace(built, model_file=models.rename(tmp_path / "renamed.toml"))
    assert open_index(renamed, "reference").folder == folders[0] and "building" not in capsys.readouterr().err

    renamed.model_file.write_text(renamed.model_file.read_text().replace("text: ", "another page: "))
    assert open_index(renamed, "reference").folder != folders[0]
    assert "building the index of reference" in capsys.readouterr().err


def test_an_index_of_an_earlier_version_is_rebuilt_with_a_note(built, capsys):
    folder = open_index(built, "bm25").folder
    answer = open_index(built, "bm25").answer(["otter"], 3)
    manifest = read_checksummed(folder / "manifest.json")
    old = {name: manifest[name] for name in manifest.keys() - {"system", "inputs", "parameters"}}
    write_checksummed(folder / "manifest.json", old | {"facts": manifest["inputs"] | {"format": 2}})
    folder.rename(folder.with_name("of_an_earlier_version"))
    capsys.readouterr()
    assert open_index(built, "bm25").answer(["otter"], 3) == answer
    assert "building the index of bm25, " in (said := capsys.readouterr().err) and "have changed" in said
    assert not folder.with_name("of_an_earlier_version").exists()


def in_place(path):
    """Other content of the same length and time, as a failing disk leaves it."""
    times = path.stat()
    path.write_bytes(bytes(times.st_size))
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


@pytest.mark.parametrize("label, name, damage", [
    ("bm25", "offsets.npy", lambda path: path.write_bytes(b"")), ("bm25", "offsets.npy", in_place),
    ("bm25", "manifest.json", lambda path: path.write_text("[")),
    ("bm25", "passages.jsonl", lambda path: path.write_bytes(path.read_bytes().replace(b"otter", b"ottar"))),
    ("bm25", "passages.jsonl", lambda path: path.write_bytes(b"")),
    ("reference", "queries.onnx", lambda path: path.write_bytes(b"{"))])
@pytest.mark.parametrize("settings_changed", [False, True])
def test_only_a_damaged_index_is_rebuilt_and_an_interrupted_build_is_removed(built, capsys, label, name, damage,
                                                                             settings_changed):
    first = open_index(built, label)
    expected, other = first.answer(["otter"], 3), first.folder.with_name("of_other_data")
    shutil.copytree(first.folder, other)
    (other / "manifest.json").unlink()
    (first.folder.parent / ".partial").mkdir()
    damage(first.folder / name)
    capsys.readouterr()
    settings = dataclasses.replace(built, epochs=3.0) if settings_changed else built
    again = open_index(settings, label)
    assert [hit["id"] for hit in again.answer(["otter"], 3)[0]] == [hit["id"] for hit in expected[0]]
    assert f"building the index of {label}" in (said := capsys.readouterr().err) and "it is damaged" in said
    assert not (first.folder.parent / ".partial").exists() and (other / "passages.jsonl").exists()
    (again.folder / name).touch()  # who copies an index does not damage it
    open_index(settings, label)
    assert "building" not in capsys.readouterr().err


@pytest.mark.parametrize("label, message", [
    ("nope", "there is no system 'nope': it must be LABEL, hybrid_LABEL, .* one of bm25, raw, reference"),
    ("../raw", "is not a label"), ("", "is not a label"), ("hybrid_bm25", "there is no system 'hybrid_bm25'")])
def test_labels_that_are_none(built, label, message):
    with pytest.raises(UserError, match=message):
        open_index(built, label)
    assert not (built.output_dir / "index").exists()


def test_the_default_is_the_recommended_system_or_the_best_on_dev(built, monkeypatch):
    with pytest.raises(UserError, match="no fine-tuned model has a current result .* --system bm25, raw, reference"):
        default_label(built)
    rows = [{"label": "neg10"}, {"label": "neg50"}]
    monkeypatch.setattr("embedding_finetune.evaluation.results.load_results", lambda settings: (rows, {}))
    monkeypatch.setattr("embedding_finetune.evaluation.results.best_fine_tuned", lambda results: results[-1])
    assert default_label(built) == "neg50"
    rows.pop()
    assert default_label(built) == "neg50"  # remembered, as long as no result changes
    write_json(built.output_dir / "results" / "neg10.json", {})
    assert default_label(built) == "neg10"
    rows.append({"label": "hybrid_raw"})
    write_json(built.output_dir / "results" / "recommendation.json", {"system": "hybrid_raw"})
    assert default_label(built) == "hybrid_raw"  # the recommended one, as long as its result is current
    rows.pop()
    write_json(built.output_dir / "results" / "neg10.json", {"changed": True})
    assert default_label(built) == "neg10"


def test_the_first_hits_of_dev_queries_are_kept_with_their_scores(built):
    bm25, dev = open_index(built, "bm25"), read_data(built).split("dev")
    run = BM25().index(dev.corpus).search(dev.queries)
    assert bm25.manifest["dev"] == [[score, passage in dev.positives(query)] for query, ranking in run.items()
                                    for passage, score in list(ranking.items())[:1]]


def test_sources_of_passages_come_back(built, monkeypatch):
    collection = read_data(built)
    first = next(iter(collection.corpus))
    sourced = dataclasses.replace(collection, source={first: "manual.md, line 3"})
    monkeypatch.setattr("embedding_finetune.data.collection.read_data", lambda settings: sourced)
    hits = open_index(built, "bm25").answer([collection.corpus[first]], 2)[0]
    assert hits[0]["source"] == "manual.md, line 3" and "source" not in hits[1]
    assert json.dumps(hits) and index.FORMAT


@pytest.mark.parametrize("error", [OSError(5, "Input/output error"), MemoryError(), RuntimeError("of a newer version")])
def test_an_index_that_cannot_be_opened_and_is_undamaged_is_kept(built, monkeypatch, error):
    folder = open_index(built, "bm25").folder
    shutil.copytree(folder, folder.with_name("of_other_data"))
    before = times(folder.parent)

    def fail(*_):
        raise error

    with monkeypatch.context() as patch, pytest.raises(UserError, match="cannot read .*index.bm25") as caught:
        patch.setattr(BM25, "load", fail)
        open_index(built, "bm25")
    assert one_line(error) in str(caught.value) and "\n" not in str(caught.value)
    assert times(folder.parent) == before
    assert len(open_index(built, "bm25").answer(["otter"], 3)[0]) == 3


def test_an_index_that_memory_was_too_short_for_is_not_kept_without_its_graph(built, monkeypatch):
    def short(*_):
        raise UserError("it cannot be written as a graph") from MemoryError()

    with monkeypatch.context() as patch, pytest.raises(UserError, match="cannot be written as a graph"):
        patch.setattr("embedding_finetune.models.query_encoder.save_query_encoder", short)
        open_index(built, "reference")
    assert (open_index(built, "reference").folder / "queries.onnx").exists()
