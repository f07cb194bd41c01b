"""Saved search indexes: built once per label, opened in a fraction of a second, rebuilt when model or data change.

Every system can be searched, fused and reranked ones with the weights and depths of their results. An index is stored
in OUTPUT_DIR/index/LABEL/IDENTITY, where LABEL is that of the system and IDENTITY the hash of everything it depends on:

    passages.jsonl, offsets.npy    passages (id, text, source), and the byte offset of each
    vectors.npy, bm25/, ..         data of the retriever or of the reranker, memory-mapped
    faiss.index, milvus.json       approximate index, if INDEX asks for one
    manifest.json                  inputs, and scores of first hits on dev queries; written last

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
from typing import Any

import numpy as np

from embedding_finetune.artifacts.manifest import (
    changed_file,
    file_hashes,
    file_stamp,
    file_stamps,
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
    writing,
)
from embedding_finetune.labels import SYSTEM_LABELS
from embedding_finetune.settings import Settings, display_value

FORMAT = 5  # version of the index format: changing it rebuilds all indexes
DATA_FILES = ("dataset.json", "corpus.jsonl", "queries.jsonl", "qrels/dev.tsv")
CHANGING = "data or model of {} changed while its index was opened: try again"


class Index:
    """An open index; `manifest` describes what it was built from."""

    def __init__(self, folder: Path, manifest: dict, retriever):
        self.folder, self.manifest, self.retriever = folder, manifest, retriever
        self._offsets = np.load(folder / "offsets.npy", mmap_mode="r")
        self._passages = np.memmap(folder / "passages.jsonl", mode="r")

    def answer(self, queries: list[str], k: int) -> list[list[dict]]:
        """Top `k` passages per query (list of texts): dicts of rank, score, id, text, and source if known."""
        return [[{"rank": rank, "score": float(score), **self._passage(position)}
                 for rank, (score, position) in enumerate(zip(scores, positions), start=1) if position >= 0]
                for scores, positions in zip(*self.retriever.search_batch(queries, k))]

    def _passage(self, position):
        start, end = self._offsets[position:position + 2]
        return json.loads(self._passages[start:end].tobytes())


def open_index(settings: Settings, label: str) -> Index:
    """Open the Index of a label; builds it if missing, damaged or outdated, with a note on standard error.

    Raises UserError when there is no such model, or when its index cannot be built or read.
    """
    if not re.fullmatch(r"[\w-]+", label, re.ASCII):
        raise UserError(f"{label!r} is not a label: use letters, digits, _ and -")
    home = settings.paths.index(label)
    for path in home.glob("*/manifest.json"):
        manifest = read_checksummed(path)
        if manifest and is_current(settings, manifest) and _is_untouched(path.parent, manifest) and (
                index := _open_undamaged(settings, path.parent, manifest)):
            return index
    from embedding_finetune.retrieval.known_systems import find_system
    system = find_system(settings, label)
    with writing(home), lock(home), contextlib.redirect_stdout(sys.stderr):  # stdout is for answers
        folder, manifest = _find_or_build(settings, system, home)
        if index := _open_undamaged(settings, folder, manifest):
            return index
    raise UserError(f"{display_value(folder)} is damaged right after it was written: check the disk")


def is_current(settings: Settings, manifest: dict) -> bool:
    """Whether settings and input files are those that an index was built from."""
    return (manifest.get("inputs", {}).get("format") == FORMAT and manifest["settings"] == settings.as_dict()
            and manifest["sources"] == file_stamps(manifest["sources"]))


def _is_untouched(folder, manifest):
    return all(file_stamp(folder / name) == stamp for name, (stamp, _) in manifest["files"].items())


def _open_undamaged(settings, folder, manifest):
    """Open the Index in a finished folder; returns None if a file differs from the manifest.

    Raises UserError when it cannot be opened for another reason, such as too little memory; the folder is kept.
    """
    try:
        return _open(settings, folder, manifest)
    except UserError:
        raise
    except Exception as error:  # numpy, faiss, bm25s and ONNX Runtime raise different errors
        if changed_file(folder, manifest["files"]):
            return None
        raise UserError(f"cannot read {display_value(folder)}: {one_line(error)}; fix the cause (memory, permissions, "
                        "disk), or remove this folder to rebuild it") from error


def _open(settings, folder, manifest):
    """Open the Index in a finished folder."""
    from embedding_finetune.retrieval.system import System
    system = System(**manifest["system"])
    if not system.is_single:
        return _open_combined(settings, folder, manifest, system)
    if not system.has_model:
        from embedding_finetune.retrieval.base import make_retriever
        return Index(folder, manifest, make_retriever(system.retriever, settings).load(folder))
    from embedding_finetune.models.query_encoder import GRAPH, QueryEncoder
    from embedding_finetune.retrieval.dense import Dense
    encoder: Any = QueryEncoder(folder) if (folder / GRAPH).exists() else _encoder(settings, system, cached=False)
    return Index(folder, manifest, Dense(encoder, settings.index).load(folder))


def _open_combined(settings, folder, manifest, system):
    """Open the Index of a fused or reranked system, over those of BM25 and of the model."""
    from embedding_finetune.retrieval.fusion import HybridRetriever
    bm25, dense = _parts(settings, system)
    if [bm25.folder.name, dense.folder.name] != manifest["inputs"]["parts"]:
        raise UserError(CHANGING.format(system.label))
    parameters = manifest["parameters"]
    retriever = HybridRetriever(bm25.retriever, dense.retriever, parameters["bm25_weight"])
    if system.reranker:
        from embedding_finetune.retrieval.known_systems import make_reranker
        from embedding_finetune.retrieval.rerank import RerankedRetriever
        reranker = make_reranker(settings, system.reranker, system.reranker_model).load(folder)
        retriever = RerankedRetriever(retriever, reranker, parameters["rerank_weight"], parameters["depth"])
    return Index(dense.folder, manifest, retriever)


def _parts(settings, system):
    """The open indexes of BM25 and of the model of a fused or reranked system."""
    return [open_index(settings, part) for part in ("bm25", system.encoder)]


def _encoder(settings, system, cached):
    from embedding_finetune.models.encoder import make_encoder
    from embedding_finetune.models.encoder_config import load_encoder_config
    return make_encoder(settings, load_encoder_config(settings, system.encoder), cached)


def _find_or_build(settings, system, home):
    """The folder and the manifest of the index of the current model and data: found by its inputs, or built.

    Its files are verified against the manifest, which then gets the current settings and stamps.
    """
    inputs, parameters, sources = _inputs(settings, system)
    folder = home / content_hash(inputs)[:16]
    manifest = read_checksummed(folder / "manifest.json")
    if manifest is None or changed_file(folder, manifest["files"]):
        manifest = {"label": system.label, "system": asdict(system), "parameters": parameters, "inputs": inputs}
        manifest |= _build(settings, system, folder, manifest, sources)
    files = {name: [file_stamp(folder / name), digest] for name, (_, digest) in manifest["files"].items()}
    manifest |= {"settings": settings.as_dict(), "sources": sources, "files": files}
    write_checksummed(folder / "manifest.json", manifest)
    return folder, manifest


def _inputs(settings, system):
    """What the index of a system depends on, its tuned parameters, and the stamps of all files that these depend on.

    Raises UserError when a model or the result of a fused or reranked system is missing or outdated.
    """
    from embedding_finetune.evaluation.results import inputs_of, read_result, result_stale_reason
    from embedding_finetune.models.encoder_config import model_files
    from embedding_finetune.training.provenance import check_trained
    inputs = {"format": FORMAT} | inputs_of(settings, system)
    del inputs["metrics"]
    if not system.is_single:
        result = read_result(settings, system.label)
        if reason := result_stale_reason(settings, result):
            raise UserError(f"{system.label}: {reason}; evaluate it again")
        bm25, dense = _parts(settings, system)
        inputs |= {"parts": [bm25.folder.name, dense.folder.name], "parameters": result["parameters"]}
        own = [settings.paths.result(system.label), *model_files(settings, system.reranker_model)]
        return inputs, result["parameters"], bm25.manifest["sources"] | dense.manifest["sources"] | file_stamps(own)
    sources = [settings.paths.data / name for name in DATA_FILES]
    if system.has_model:
        check_trained(settings, system.encoder)
        sources += model_files(settings, system.encoder)
        inputs |= {"index": display_value(settings.index)}
    return inputs, {}, file_stamps(sources)


def _build(settings, system, folder, manifest, sources):
    """Write an index to `folder`, which appears as a whole; returns what the manifest says of its passages and queries.

    Raises UserError when a file of `sources` changes meanwhile.
    """
    from embedding_finetune.data.collection import read_data
    collection, home, partial, damaged = read_data(settings), folder.parent, folder.parent / ".partial", folder.exists()
    why = ("it is damaged" if damaged else "model or data have changed" if any(home.glob("*/manifest.json"))
           else "there is none yet")
    print(f"building the index of {system.label}, {len(collection.corpus):,} passages: {why}", file=sys.stderr)
    for path in (partial, folder):
        shutil.rmtree(path, ignore_errors=True)
    partial.mkdir()
    _write(settings, system, partial, collection)
    index = _open(settings, partial, manifest)
    found: dict = {"passages": len(collection.corpus)} | _measure(index, collection.split("dev"))
    if file_stamps(sources) != sources:
        raise UserError(CHANGING.format(system.label))
    names = [str(path.relative_to(partial)) for path in sorted(partial.rglob("*"))]
    found["files"] = {name: ["", digest] for name, digest in file_hashes(partial, names).items()}
    partial.rename(folder)
    # Remove indexes of earlier models or data; a process that has one open can go on using it.
    for old in () if damaged else home.iterdir():
        if old.is_dir() and old != folder:
            shutil.rmtree(old, ignore_errors=True)
    return found


def _write(settings, system, folder, collection):
    """Write the passages, and the data of retriever and reranker, to an empty folder.

    If the model cannot be exported for queries, a note says that PyTorch encodes them.
    """
    from embedding_finetune.models.query_encoder import save_query_encoder
    from embedding_finetune.retrieval.base import make_retriever
    from embedding_finetune.retrieval.dense import Dense
    if system.reranker:
        from embedding_finetune.retrieval.known_systems import make_reranker
        make_reranker(settings, system.reranker, system.reranker_model).index(collection.corpus).save(folder)
    if not system.is_single:
        return
    encoder = _encoder(settings, system, cached=True) if system.has_model else None
    retriever = Dense(encoder, settings.index) if encoder else make_retriever(system.retriever, settings)
    retriever.index(collection.corpus).save(folder)
    _write_passages(folder, collection)
    if encoder and system.runtime == "pytorch":
        try:
            save_query_encoder(folder, encoder)
        except UserError as error:
            if is_disk_error(error) or is_memory_error(error):  # not caused by the model, and perhaps temporary
                raise
            print(f"{error}: PyTorch encodes its queries, so a search takes some seconds longer", file=sys.stderr)


def _measure(index, dev):
    """Score of the best hit of each dev query and whether it is right, and the recall of an approximate index."""
    from embedding_finetune.retrieval.ann import FLAT
    queries, found, scored = list(dev.queries.values()), {}, []
    if index.manifest["inputs"].get("index", FLAT) != FLAT and queries:
        found["recall_vs_exact"] = index.retriever.recall_vs_exact(queries)
    number = 1 + max(map(len, dev.copies.values()), default=0)
    for query, hits in zip(dev.queries, index.answer(queries, number) if queries else []):
        others = [hit for hit in hits if hit["id"] not in dev.copies.get(query, ())]
        scored += [[hit["score"], hit["id"] in dev.positives(query)] for hit in others[:1]]
    return found | {"dev": scored}


def _write_passages(folder, collection):
    """Write the passages of the corpus and the byte offset of each."""
    offsets, sources = [0], collection.source
    with atomic_write(folder / "passages.jsonl", "wb") as file:
        for identity, text in collection.corpus.items():
            row = {"id": identity, "text": text} | ({"source": sources[identity]} if identity in sources else {})
            offsets.append(offsets[-1] + file.write(json.dumps(row, ensure_ascii=False).encode() + b"\n"))
    np.save(folder / "offsets.npy", np.array(offsets))


def main() -> None:
    """Run the `index` command."""
    label = parse_label("index", "Build the search index of a system, unless it is current.", SYSTEM_LABELS)
    index = open_index(Settings.load(), label)
    print(f"{label}: {index.manifest['passages']:,} passages in {display_value(index.folder)}")
