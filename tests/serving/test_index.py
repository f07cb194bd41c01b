"""Saved indexes: they rank as the retrievers do, are found again without PyTorch, and are never taken for today's when
they are not."""

import dataclasses
import json
import os
import re
import shutil
import subprocess
import sys

import pytest
from stages import measured_stage

from embedding_finetune.artifacts.manifest import read_checksummed, write_checksummed
from embedding_finetune.data.collection import read_data
from embedding_finetune.evaluation.results import model_metadata, read_measured_run, save_result
from embedding_finetune.files import UserError, one_line, write_json
from embedding_finetune.models.encoder import Encoder
from embedding_finetune.models.encoder_config import load_encoder_config
from embedding_finetune.retrieval.bm25 import BM25
from embedding_finetune.retrieval.dense import Dense
from embedding_finetune.retrieval.fusion import weighted_sum_fusion
from embedding_finetune.serving import index
from embedding_finetune.serving.abstention import choose_threshold, is_answerable
from embedding_finetune.serving.available import default_label
from embedding_finetune.serving.index import exactness_line, open_index
from embedding_finetune.settings import ROOT

QUERIES = ["when does the otter of Bafo sleep", "twigs of willow", "月亮", "x"]


def hybrid(settings, label, weight=0.3):
    """A fusion with BM25 as an evaluation notebook saves it; returns its runs and the collection."""
    collection, encoder = read_data(settings), Encoder(load_encoder_config(settings, label))
    retrievers = BM25().index(collection.corpus), Dense(encoder).index(collection.corpus)
    runs = {}
    for part in ("test", "dev"):
        queries = collection.split(part).queries
        runs[part] = weighted_sum_fusion(*(retriever.search(queries) for retriever in retrievers), weight)
    of = model_metadata(settings, encoder)
    save_result(settings, collection, f"hybrid_{label}", runs, model="BM25 + it", weight=weight, hybrid_of=label,
                used=of["used"], content=of["content"])
    return runs, collection


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
    hybrid(built, "reference")
    assert open_index(there, "hybrid_reference").answer(QUERIES, 5) == answers(open_index(built, "hybrid_reference"))


def test_a_reranker_answers_as_it_was_measured(built):
    _, (_, fused) = measured_stage(built)
    run, test = read_measured_run(built, read_data(built), "hybrid_late_reference"), read_data(built).split("test")
    open_index(built, "hybrid_late_reference")
    again = open_index(built, "hybrid_late_reference")  # from the disk
    assert again.manifest["depth"] == fused["depth"] and (again.folder.parent.name) == "reference"
    for query, hits in zip(test.queries, again.answer(list(test.queries.values()), 5), strict=True):
        assert [hit["id"] for hit in hits] == list(run[query])[:5]
        assert [hit["score"] for hit in hits] == pytest.approx(list(run[query].values())[:5], abs=1e-3)


def test_a_fusion_answers_as_the_comparison_fused(built):
    runs, collection = hybrid(built, "reference")
    fused, test = open_index(built, "hybrid_reference"), collection.split("test").queries
    for query, hits in zip(test, fused.answer(list(test.values()), 5), strict=True):
        assert [hit["id"] for hit in hits] == list(runs["test"][query])[:5]
    assert "weight" in fused.manifest and len(fused.answer(["x"], 1000)[0]) <= 100
    result = built.output_dir / "results" / "hybrid_reference.json"
    write_checksummed(result, read_checksummed(result) | {"data": "of yesterday"})
    with pytest.raises(UserError, match="hybrid_reference was measured on other data or with another model"):
        open_index(built, "hybrid_reference")


def test_data_that_change_while_an_index_is_made_or_opened_are_not_mixed(built, monkeypatch):
    make, corpus = index._make, built.data_dir / "corpus.jsonl"
    def slow(*given):
        made = make(*given)
        os.utime(corpus)  # as if it were written again
        return made
    monkeypatch.setattr(index, "_make", slow)
    with pytest.raises(UserError, match="data or model of reference changed while its index was opened: try again"):
        open_index(built, "reference")
    monkeypatch.setattr(index, "_make", make)
    hybrid(built, "reference")
    fused = open_index(built, "hybrid_reference")
    parts = fused.manifest["facts"]["parts"]
    assert parts == [open_index(built, part).folder.name for part in ("bm25", "reference")]
    other = fused.manifest | {"facts": fused.manifest["facts"] | {"parts": [parts[0], "of yesterday"]}}
    with pytest.raises(UserError, match="hybrid_reference changed while its index was opened"):
        index._opened(built, fused.folder, other)


def test_a_cold_search_loads_neither_pytorch_nor_transformers(built):
    open_index(built, "reference")
    script = ("import sys; from embedding_finetune.serving.index import *; "
              "from embedding_finetune.settings import Settings;"
              "print(len(open_index(Settings.load(), 'reference').answer(['otter'], 3)[0]), "
              "{'torch', 'transformers', 'huggingface_hub', 'pandas'} & set(sys.modules))")
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "3 set()\n" and "building" not in done.stderr


def test_a_model_that_is_no_graph_is_asked_with_pytorch(built, monkeypatch, capsys):
    expected = open_index(built, "reference").answer(["otter"], 3)
    shutil.rmtree(built.output_dir / "index")
    def refuse(*given, **more):
        raise RuntimeError("no such operator")
    monkeypatch.setattr("torch.onnx.export", refuse)
    for _ in range(2):
        [hits] = open_index(built, "reference").answer(["otter"], 3)
        assert [hit["id"] for hit in hits] == [hit["id"] for hit in expected[0]]
    assert capsys.readouterr().err.count("cannot be exported to ONNX (no such operator): PyTorch encodes") == 1


def test_queries_of_an_open_index_are_not_cached_on_disk(built, monkeypatch):
    """A search with a model that was not written as a graph neither reads nor writes the cache of vectors."""
    def refuse(*given, **more):
        raise RuntimeError("no such operator")

    def files():
        return {path: path.stat().st_mtime_ns for path in (built.output_dir / "cache").rglob("*")}

    def read(*given):
        raise AssertionError("a search has read the cache")

    with monkeypatch.context() as patch:
        patch.setattr("torch.onnx.export", refuse)
        open_index(built, "reference")
    cached = files()
    monkeypatch.setattr("embedding_finetune.models.embedding_cache.EmbeddingCache.read", read)
    opened = open_index(built, "reference")
    assert type(opened.retriever.encoder) is Encoder
    for query in QUERIES:
        assert len(opened.answer([query], 3)[0]) == 3
    assert files() == cached


def test_what_changed_is_rebuilt_and_said(built, capsys, monkeypatch):
    made = lambda: capsys.readouterr().err.count("building the index of reference")  # noqa: E731
    first = open_index(built, "reference")
    assert made() == 1
    assert open_index(built, "reference").folder == first.folder and made() == 0
    other = built.load().__class__(**(vars(built) | {"abstention_precision": 0.5, "epochs": 3.0}))
    again = open_index(other, "reference")  # settings that no vector depends on
    assert again.folder == first.folder and made() == 0 and again.manifest["abstention"]["precision"] == 0.5
    pooled = open_index(built.__class__(**(vars(built) | {"reference_pooling": "cls"})), "reference")
    assert pooled.folder != first.folder and made() == 1
    assert not first.folder.exists() and len(first.answer(["otter"], 3)[0]) == 3  # who has it open keeps it
    text = (built.data_dir / "corpus.jsonl").read_text()
    (built.data_dir / "corpus.jsonl").write_text(text.replace("otter", "other", 1))
    with pytest.raises(UserError, match="are not those that build_train_dataset.ipynb wrote"):
        open_index(built, "reference")


def test_what_is_only_said_of_a_model_rebuilds_no_index(built, tmp_path, capsys):
    """The name of MODEL_FILE, and what results and the indexes of earlier versions say; its entries do."""
    models = tmp_path / "models.toml"
    models.write_text(f'["{built.reference_model}"]\npassage_prompt = "text: "\n')
    named = dataclasses.replace(built, model_file=models)
    measured_stage(named)
    folders = [open_index(named, label).folder for label in ("reference", "hybrid_late_reference")]
    assert capsys.readouterr().err.count("building the index of") == 3  # and bm25
    renamed = dataclasses.replace(built, model_file=models.rename(tmp_path / "renamed.toml"))
    assert open_index(renamed, "reference").folder == folders[0] and "building" not in capsys.readouterr().err

    result = renamed.output_dir / "results" / "hybrid_late_reference.json"
    saved = read_checksummed(result)
    saved["second"]["used"] |= {"title": "another", "note": "said otherwise"}
    write_checksummed(result, saved)
    open_index(renamed, "hybrid_late_reference")
    assert "building" not in capsys.readouterr().err

    of_old = renamed.output_dir / "index" / "reference" / "of_an_earlier_version"
    open_index(renamed, "reference").folder.rename(of_old)
    manifest = read_checksummed(of_old / "manifest.json")
    manifest["facts"]["use"] |= {"note": f"passage_prompt from {models}"}
    write_checksummed(of_old / "manifest.json", manifest | {"settings": named.as_dict()})
    assert open_index(renamed, "reference").folder == of_old and "building" not in capsys.readouterr().err

    renamed.model_file.write_text(renamed.model_file.read_text().replace("text: ", "another page: "))
    assert open_index(renamed, "reference").folder != of_old
    assert "building the index of reference" in capsys.readouterr().err


def test_a_damaged_index_and_an_interrupted_build_are_repaired(built, capsys):
    folder = open_index(built, "bm25").folder
    (folder / "tie_rank.npy").write_bytes(b"")
    (folder.parent / ".partial").mkdir()
    assert len(open_index(built, "bm25").answer(["otter"], 3)[0]) == 3
    assert "is damaged" in capsys.readouterr().err and not (folder.parent / ".partial").exists()
    (folder / "manifest.json").write_text("[")
    assert len(open_index(built, "bm25").answer(["otter"], 3)[0]) == 3
    path = open_index(built, "bm25").folder / "passages.jsonl"
    before, answer = path.read_bytes(), open_index(built, "bm25").answer(["otter"], 3)
    path.write_bytes(before.replace(b"otter", b"ottar"))  # as long as it was
    assert open_index(built, "bm25").answer(["otter"], 3) == answer and path.read_bytes() == before
    assert "it is damaged" in capsys.readouterr().err
    path.touch()  # who copies an index does not damage it
    assert open_index(built, "bm25").answer(["otter"], 3) == answer and "building" not in capsys.readouterr().err
    for name in ("queries.onnx", "passages.jsonl"):
        path = open_index(built, "reference").folder / name
        path.write_bytes(b"{" * (name != "passages.jsonl"))
        assert len(open_index(built, "reference").answer(["otter"], 3)[0]) == 3, name
        assert "is damaged" in capsys.readouterr().err, name


@pytest.mark.parametrize("label, message", [
    ("nope", "there is no model 'nope' to search with; available: bm25, raw, reference"), ("../raw", "is not a label"),
    ("", "is not a label"), ("hybrid_raw", "there is no model")])
def test_labels_that_are_none(built, label, message):
    with pytest.raises(UserError, match=message):
        open_index(built, label)
    assert not (built.output_dir / "index").exists()


def test_the_default_is_the_best_on_dev(built, monkeypatch):
    with pytest.raises(UserError, match="no fine-tuned model has a current result .* --model bm25, raw, reference"):
        default_label(built)
    rows = [{"label": "neg10"}, {"label": "neg50"}]
    monkeypatch.setattr("embedding_finetune.evaluation.results.load_results", lambda settings: (rows, []))
    monkeypatch.setattr("embedding_finetune.evaluation.results.best_fine_tuned", lambda results: results[-1])
    assert default_label(built) == "neg50"
    rows.pop()
    assert default_label(built) == "neg50"  # remembered, as long as no result changes
    write_json(built.output_dir / "results" / "neg10.json", {})
    assert default_label(built) == "neg10"


def test_the_threshold_comes_from_dev_and_parts_the_hits(built):
    bm25, dev = open_index(built, "bm25"), read_data(built).split("dev")
    run = BM25().index(dev.corpus).search(dev.queries)
    best = [[score, passage in dev.positives(query)] for query, ranking in run.items()
            for passage, score in list(ranking.items())[:1]]
    assert bm25.manifest["abstention"] == choose_threshold(best, built.abstention_precision)
    threshold = bm25.manifest["abstention"]["threshold"]
    good, bad = bm25.answer([next(iter(dev.queries.values())), "willow"], 3)
    assert [hit["above_threshold"] for hit in bad] == [hit["score"] >= threshold for hit in bad]
    assert is_answerable(good) and not is_answerable(bad) and not is_answerable([])
    assert is_answerable([{"score": 0.1}])  # no threshold is known


def test_sources_of_passages_come_back(built, monkeypatch):
    collection = read_data(built)
    first = next(iter(collection.corpus))
    sourced = dataclasses.replace(collection, source={first: "manual.md, line 3"})
    monkeypatch.setattr("embedding_finetune.data.collection.read_data", lambda settings: sourced)
    hits = open_index(built, "bm25").answer([collection.corpus[first]], 2)[0]
    assert hits[0]["source"] == "manual.md, line 3" and "source" not in hits[1]
    assert json.dumps(hits) and index.FORMAT


@pytest.mark.skipif(not os.path.exists("/proc/self/mem"), reason="no file whose reading fails without a broken disk")
def test_an_index_that_the_disk_does_not_give_is_not_thrown_away(built, monkeypatch):
    folder, loaded = open_index(built, "bm25").folder, index.np.load
    before = sorted(path.name for path in folder.iterdir())
    monkeypatch.setattr(index.np, "load", lambda path, **more: loaded("/proc/self/mem" if path.name == "offsets.npy"
                                                                      else path, **more))
    with pytest.raises(UserError, match=r"cannot read .*index.bm25.*Input/output error; fix the cause"):
        open_index(built, "bm25")
    assert sorted(path.name for path in folder.iterdir()) == before


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("the graph is of a newer version")])
def test_an_index_that_cannot_be_opened_and_is_undamaged_is_kept(built, monkeypatch, error):
    folder = open_index(built, "bm25").folder
    shutil.copytree(folder, folder.with_name("of_other_data"))
    files = lambda: {path: path.read_bytes() for path in folder.parent.glob("*/**/*") if path.is_file()}  # noqa: E731
    before = files()

    def fail(*_):
        raise error

    with monkeypatch.context() as patch, pytest.raises(UserError, match="cannot read .*index.bm25") as caught:
        patch.setattr(BM25, "load", fail)
        open_index(built, "bm25")
    assert one_line(error) in str(caught.value) and "\n" not in str(caught.value)
    assert files() == before
    assert len(open_index(built, "bm25").answer(["otter"], 3)[0]) == 3


@pytest.mark.parametrize("settings_changed", [False, True])
def test_only_the_index_that_is_damaged_is_rebuilt(built, capsys, settings_changed):
    folder = open_index(built, "bm25").folder
    expected = open_index(built, "bm25").answer(["otter"], 3)
    other, path = folder.with_name("of_other_data"), folder / "tie_rank.npy"
    shutil.copytree(folder, other)
    (other / "manifest.json").unlink()
    times, before = path.stat(), path.read_bytes()
    path.write_bytes(bytes(len(before)))
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))  # as a failing disk leaves it
    if settings_changed:
        built = dataclasses.replace(built, epochs=3.0)
    assert open_index(built, "bm25").answer(["otter"], 3) == expected and path.read_bytes() == before
    assert "building the index of bm25" in (said := capsys.readouterr().err) and "it is damaged" in said
    assert (other / "passages.jsonl").exists()


def test_an_index_that_memory_was_too_short_for_is_not_kept_without_its_graph(built, monkeypatch):
    def short(*_):
        raise UserError("it cannot be written as a graph") from MemoryError()

    with monkeypatch.context() as patch, pytest.raises(UserError, match="cannot be written as a graph"):
        patch.setattr("embedding_finetune.models.query_encoder.save_query_encoder", short)
        open_index(built, "reference")
    assert (open_index(built, "reference").folder / "queries.onnx").exists()
