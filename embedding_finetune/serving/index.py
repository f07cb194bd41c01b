"""Saved search indexes: built once per label, opened in a fraction of a second, rebuilt when model or data change.

Every system can be searched, fused and reranked ones with the weights and depths of their results. An index is stored
in OUTPUT_DIR/index/LABEL/IDENTITY, where LABEL is that of the system and IDENTITY the hash of everything it depends on:

    passages.jsonl, offsets.npy    passages (id, text, source), and the byte offset of each
    vectors.npy, bm25/, ..         data of the retriever or of the reranker, memory-mapped
    faiss.index, milvus.json       approximate index, if INDEX asks for one
    manifest.json                  inputs and abstention threshold; written last

While settings and input files are unchanged (by size and modification time), an index is opened as it is, without
PyTorch, transformers or requests to the Hugging Face Hub.
"""

import contextlib
import json
import re
import shutil
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np

from embedding_finetune.artifacts.manifest import (
    changed_file,
    file_stamps,
    fingerprints,
    has_same_stamps,
    read_checksummed,
    write_checksummed,
)
from embedding_finetune.artifacts.staging import lock
from embedding_finetune.files import (
    UserError,
    atomic_write,
    content_hash,
    is_disk_error,
    is_memory_error,
    one_line,
    parse_label,
)
from embedding_finetune.serving.abstention import choose_threshold
from embedding_finetune.settings import Settings, display_value

FORMAT = 3  # version of the index format: changing it rebuilds all indexes
CHANGING = "data or model of {} changed while its index was opened: try again"


class Index:
    """An open index; `manifest` describes what it was built from."""

    def __init__(self, folder, manifest, retriever):
        self.folder, self.manifest, self.retriever = folder, manifest, retriever
        self._offsets = np.load(folder / "offsets.npy", mmap_mode="r")
        self._passages = np.memmap(folder / "passages.jsonl", mode="r")

    def answer(self, queries, k):
        """Top `k` passages per query (list of texts): dicts of rank, score, id, text, and source if known.

        With an abstention threshold, each hit also has `above_threshold`.
        """
        threshold = self.manifest["abstention"]["threshold"]
        found = []
        for scores, positions in zip(*self.retriever.search_batch(queries, k)):
            hits = [{"rank": 0, "score": float(score), **self._passage(position)}
                    for score, position in zip(scores, positions) if position >= 0]
            for rank, hit in enumerate(hits, start=1):
                hit |= {"rank": rank} | ({} if threshold is None else {"above_threshold": hit["score"] >= threshold})
            found.append(hits)
        return found

    def _passage(self, position):
        start, end = self._offsets[position:position + 2]
        return json.loads(self._passages[start:end].tobytes())


def exactness_line(manifest):
    """Sentence on the recall of an approximate index compared with exact search; "" for an exact index."""
    if "recall_vs_exact" not in manifest:
        return ""
    return ("{index} finds {recall:.1%} of the exact top {depth} of {queries} dev queries, in {ms:.2f} ms per query "
            "compared with {exact_ms:.2f} ms for exact search".format(**manifest["recall_vs_exact"]))


def open_index(settings, label):
    """Open the Index of a label; builds it if missing, damaged or outdated, with a note on standard error.

    Raises UserError when there is no such model, or when its index cannot be built or read.
    """
    if not re.fullmatch(r"[\w-]+", label, re.ASCII):
        raise UserError(f"{label!r} is not a label: use letters, digits, _ and -")
    home = settings.paths.index(label)
    damaged = False
    for path in home.glob("*/manifest.json"):
        manifest = read_checksummed(path)
        if is_current(settings, manifest) and has_same_stamps(path.parent, manifest["files"]):
            index = _opened_if_whole(settings, path.parent, manifest)
            if index:
                return index
            damaged = True
    from embedding_finetune.retrieval.known_systems import find_system
    system = find_system(settings, label)
    try:
        with lock(home), contextlib.redirect_stdout(sys.stderr):  # stdout is for answers
            return _found_or_built(settings, system, home, read_all=damaged)
    except Exception as error:
        if isinstance(error, UserError) or not is_disk_error(error):
            raise
        raise UserError(f"cannot write {home}: {one_line(error)}; free some space and try again") from error


def is_current(settings, manifest):
    """Whether settings and input files are those that an index was built from."""
    return (isinstance(manifest, dict) and manifest.get("inputs", {}).get("format") == FORMAT
            and manifest["settings"] == settings.as_dict() and manifest["sources"] == file_stamps(manifest["sources"]))


def _opened_if_whole(settings, folder, manifest):
    """Open the Index in a finished folder; returns None if a file differs from the manifest.

    Raises UserError when it cannot be opened for another reason, such as too little memory; the folder is kept.
    """
    try:
        return _opened(settings, folder, manifest)
    except UserError:
        raise
    except Exception as error:  # numpy, faiss, bm25s and ONNX Runtime raise different errors
        if changed_file(folder, manifest["files"], read_all=True):
            return None
        raise UserError(f"cannot read {display_value(folder)}: {one_line(error)}; fix the cause (memory, permissions, "
                        "disk), or remove this folder to rebuild it") from error


def _opened(settings, folder, manifest):
    """Open the Index in a finished folder."""
    from embedding_finetune.retrieval.base import make_retriever
    from embedding_finetune.retrieval.system import System
    system, parameters = System(**manifest["system"]), manifest["parameters"]
    if not system.is_single:
        bm25, dense = (open_index(settings, part) for part in ("bm25", system.encoder))
        if [bm25.folder.name, dense.folder.name] != manifest["inputs"]["parts"]:
            raise UserError(CHANGING.format(system.label))
        return Index(dense.folder, manifest, _combined(settings, folder, system, parameters, bm25, dense))
    if not system.has_model:
        return Index(folder, manifest, make_retriever(system.retriever, settings).load(folder))
    from embedding_finetune.models.query_encoder import GRAPH, QueryEncoder
    from embedding_finetune.retrieval.dense import Dense
    encoder = QueryEncoder(folder) if (folder / GRAPH).exists() else _encoder(settings, system, cached=False)
    return Index(folder, manifest, Dense(encoder, manifest["inputs"]["index"]).load(folder))


def _combined(settings, folder, system, parameters, bm25, dense):
    """The retriever of a fused or reranked system over its two open indexes."""
    from embedding_finetune.retrieval.fusion import HybridRetriever
    fused = HybridRetriever(bm25.retriever, dense.retriever, parameters["bm25_weight"])
    if not system.reranker:
        return fused
    from embedding_finetune.retrieval.rerank import RerankedRetriever
    from embedding_finetune.retrieval.rerankers import make_reranker
    reranker = make_reranker(settings, system.reranker, system.reranker_model).load(folder)
    return RerankedRetriever(fused, reranker, parameters["rerank_weight"], parameters["depth"])


def _encoder(settings, system, cached=True):
    from embedding_finetune.models.encoder import make_encoder
    from embedding_finetune.models.encoder_config import load_encoder_config
    return make_encoder(settings, load_encoder_config(settings, system.encoder), cached)


def _found_or_built(settings, system, home, read_all=False):
    """The Index of the current model and data: found by its inputs, or built.

    `read_all` verifies all files against the manifest, not only those with a new modification time.
    """
    from embedding_finetune.data.collection import read_data
    inputs, parameters, sources = _inputs(settings, system)
    collection, folder = read_data(settings), home / content_hash(inputs)[:16]
    manifest, damaged = read_checksummed(folder / "manifest.json"), folder.exists()
    if manifest is None or changed_file(folder, manifest["files"], read_all):
        why = ("it is damaged" if damaged else "model or data have changed" if any(home.glob("*/manifest.json"))
               else "there is none yet")
        print(f"building the index of {system.label}, {len(collection.corpus):,} passages: {why}", file=sys.stderr)
        partial = home / ".partial"
        for path in (partial, folder):
            shutil.rmtree(path, ignore_errors=True)
        partial.mkdir()
        manifest = {"label": system.label, "system": asdict(system), "parameters": parameters, "inputs": inputs,
                    "passages": len(collection.corpus), "abstention": {"threshold": None}}
        manifest |= _build(settings, system, partial, manifest, collection)
        if file_stamps(sources) != sources:
            raise UserError(CHANGING.format(system.label))
        partial.rename(folder)
        # Remove indexes of earlier models or data; a process that has one open can go on using it.
        for old in () if damaged else home.iterdir():
            if old.is_dir() and old != folder:
                shutil.rmtree(old, ignore_errors=True)
    abstention = choose_threshold(manifest["dev"], settings.abstention_precision)
    files = fingerprints(folder, manifest.get("files", {}))
    files.pop("manifest.json", None)
    manifest |= {"settings": settings.as_dict(), "sources": sources, "files": files, "abstention": abstention}
    write_checksummed(folder / "manifest.json", manifest)
    index = _opened_if_whole(settings, folder, manifest)
    if index is None and read_all:
        raise UserError(f"{display_value(folder)} is damaged right after it was written: check the disk")
    return index or _found_or_built(settings, system, home, read_all=True)


def _inputs(settings, system):
    """What the index of a system depends on, its tuned parameters, and the stamps of all files that these depend on.

    Raises UserError when a model or the result of a fused or reranked system is missing or outdated.
    """
    from embedding_finetune.evaluation.results import inputs_of, read_result, result_stale_reason
    from embedding_finetune.training.provenance import check_trained
    inputs = {"format": FORMAT} | inputs_of(settings, system)
    del inputs["metrics"]
    if not system.is_single:
        result = read_result(settings, system.label)
        if reason := result_stale_reason(settings, result):
            raise UserError(f"{system.label}: {reason}; evaluate it again")
        bm25, dense = (open_index(settings, part) for part in ("bm25", system.encoder))
        inputs |= {"parts": [bm25.folder.name, dense.folder.name], "parameters": result["parameters"]}
        own = [settings.paths.result(system.label), *_model_files(settings, system.reranker_model)]
        return inputs, result["parameters"], bm25.manifest["sources"] | dense.manifest["sources"] | file_stamps(own)
    names = "dataset.json", "corpus.jsonl", "queries.jsonl", "qrels/dev.tsv"
    sources = [settings.paths.data / name for name in names]
    if system.has_model:
        check_trained(settings, system.encoder)
        sources += _model_files(settings, system.encoder)
        inputs |= {"index": settings.index}
    return inputs, {}, file_stamps(sources)


def _model_files(settings, label):
    """The files on this machine that the model of a label depends on; none for an empty label."""
    from embedding_finetune.hub import MODEL_FILES
    from embedding_finetune.models.encoder_config import model_path, pretrained
    if not label:
        return []
    models = pretrained(settings)  # a Hub model has no such folder
    folder = Path(model_path(models[label][0])) if label in models else settings.paths.model(label)
    return [settings.model_file, *(file for file in sorted(folder.rglob("*")) if file.suffix in MODEL_FILES)]


def _build(settings, system, folder, manifest, collection):
    """Write an index to an empty folder; returns what is measured on dev queries, for the manifest."""
    from embedding_finetune.retrieval.ann import FLAT
    from embedding_finetune.retrieval.base import make_retriever
    from embedding_finetune.retrieval.dense import Dense
    if system.reranker:
        from embedding_finetune.retrieval.rerankers import make_reranker
        make_reranker(settings, system.reranker, system.reranker_model).index(collection.corpus).save(folder)
    if system.is_single:
        retriever = (Dense(_encoder(settings, system), settings.index) if system.has_model else
                     make_retriever(system.retriever, settings))
        retriever.index(collection.corpus).save(folder)
        _write_passages(folder, collection)
        if system.has_model and system.runtime == "pytorch":
            _save_query_encoder(folder, retriever.encoder)
    index, dev, found = _opened(settings, folder, manifest), collection.split("dev"), {}
    if manifest["inputs"].get("index", FLAT) != FLAT and dev.queries:
        found["recall_vs_exact"] = index.retriever.recall_vs_exact(list(dev.queries.values()))
    number = 1 + max(map(len, dev.copies.values()), default=0)
    answers = index.answer(list(dev.queries.values()), number) if dev.queries else ()
    best = {query: [hit for hit in hits if hit["id"] not in dev.copies.get(query, ())][:1]
            for query, hits in zip(dev.queries, answers)}
    scored = [(query, hits[0]) for query, hits in best.items() if hits]
    return found | {"dev": [[hit["score"], hit["id"] in dev.positives(query)] for query, hit in scored]}


def _write_passages(folder, collection):
    """Write the passages of the corpus and the byte offset of each."""
    offsets, sources = [0], collection.source
    with atomic_write(folder / "passages.jsonl", "wb") as file:
        for identity, text in collection.corpus.items():
            row = {"id": identity, "text": text} | ({"source": sources[identity]} if identity in sources else {})
            offsets.append(offsets[-1] + file.write(json.dumps(row, ensure_ascii=False).encode() + b"\n"))
    np.save(folder / "offsets.npy", np.array(offsets))


def _save_query_encoder(folder, encoder):
    """Export the encoder for queries; if the model cannot be exported, PyTorch encodes them, and a note says so."""
    from embedding_finetune.models.query_encoder import save_query_encoder
    try:
        save_query_encoder(folder, encoder)
    except UserError as error:
        if is_disk_error(error) or is_memory_error(error):  # not caused by the model, and perhaps temporary
            raise
        print(f"{error}: PyTorch encodes its queries, so a search takes some seconds longer", file=sys.stderr)


def main():
    label = parse_label("index", "Build the search index of a system, unless it is current.")
    index = open_index(Settings.load(), label)
    print(f"{label}: {index.manifest['passages']:,} passages in {display_value(index.folder)}")
