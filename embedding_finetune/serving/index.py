"""Saved search indexes: built once per label, opened in a fraction of a second, rebuilt when model or data change.

LABEL is a model (raw, reference, a recipe), bm25, or hybrid_LABEL with the evaluated fusion weight, and with reranking
if LABEL is a reranker. An index is stored in OUTPUT_DIR/index/LABEL/IDENTITY, where IDENTITY is the hash of everything
it depends on:

    passages.jsonl, offsets.npy    passages (id, text, source), and the byte offset of each
    vectors.npy, bm25/, ..         data of the retriever or reranker, memory-mapped
    faiss.index, milvus.json       approximate index, if INDEX asks for one
    manifest.json                  inputs and abstention threshold; written last

While settings and input files are unchanged (by size and modification time), an index is opened as it is, without
PyTorch, transformers or requests to the Hugging Face Hub.
"""

import contextlib
import fcntl
import json
import re
import shutil
import sys
from pathlib import Path

import numpy as np

from embedding_finetune.artifacts.manifest import (
    file_stamps,
    fingerprints,
    has_same_content,
    has_same_stamps,
    read_checksummed,
    write_checksummed,
)
from embedding_finetune.files import UserError, atomic_write, content_hash, is_disk_error, is_memory_error, one_line
from embedding_finetune.serving.abstention import choose_threshold
from embedding_finetune.serving.available import check_label
from embedding_finetune.settings import display_value

FUSION = "hybrid_of", "weight", "rerank_weight", "depth"  # keys of a result that its index depends on
FORMAT = 2  # version of the index format: changing it rebuilds all indexes
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
        if is_current(settings, manifest) and has_same_stamps(path.parent, manifest.get("own", {})):
            index = _opened_if_whole(settings, path.parent, manifest)
            if index:
                return index
            damaged = True
    check_label(settings, label)
    try:
        home.mkdir(parents=True, exist_ok=True)
        with open(home / ".lock", "w") as lock, contextlib.redirect_stdout(sys.stderr):  # stdout is for answers
            fcntl.flock(lock, fcntl.LOCK_EX)  # a second process waits, then finds the index built
            return _found_or_built(settings, label, home, read_all=damaged)
    except Exception as error:
        if isinstance(error, UserError) or not is_disk_error(error):
            raise
        raise UserError(f"cannot write {home}: {one_line(error)}; free some space and try again") from error


def is_current(settings, manifest):
    """Whether settings and input files are those that an index was built from."""
    return (isinstance(manifest, dict) and manifest["settings"] == settings.as_dict()
            and manifest["files"] == file_stamps(manifest["files"]))


def _opened_if_whole(settings, folder, manifest):
    """Open the Index in a finished folder; returns None if a file differs from the manifest.

    Raises UserError when it cannot be opened for another reason, such as too little memory; the folder is kept.
    """
    try:
        return _opened(settings, folder, manifest)
    except UserError:
        raise
    except Exception as error:  # numpy, faiss, bm25s and ONNX Runtime raise different errors
        if not has_same_content(folder, manifest.get("own", {}), read_all=True):
            return None
        raise UserError(f"cannot read {display_value(folder)}: {one_line(error)}; fix the cause (memory, permissions, "
                        "disk), or remove this folder to rebuild it") from error


def _opened(settings, folder, manifest):
    """Open the Index in a finished folder."""
    from embedding_finetune.retrieval.base import RETRIEVERS, make_retriever
    from embedding_finetune.retrieval.dense import Dense
    from embedding_finetune.retrieval.fusion import HybridRetriever
    from embedding_finetune.serving.query_encoder import GRAPH, QueryEncoder
    label = manifest["label"]
    if "weight" in manifest:
        bm25, dense = (open_index(settings, part) for part in ("bm25", manifest["hybrid_of"]))
        if [bm25.folder.name, dense.folder.name] != manifest["facts"]["parts"]:
            raise UserError(CHANGING.format(label))
        fused = HybridRetriever(bm25.retriever, dense.retriever, manifest["weight"])
        return Index(dense.folder, manifest, _with_reranker(settings, folder, manifest, fused))
    if label in RETRIEVERS:
        return Index(folder, manifest, make_retriever(label, settings.bm25_language).load(folder))
    encoder = QueryEncoder(folder) if (folder / GRAPH).exists() else _encoder(settings, label, cached=False)
    return Index(folder, manifest, Dense(encoder, manifest["facts"]["index"]).load(folder))


def _with_reranker(settings, folder, manifest, fused):
    """The fused retriever, with the reranker of the index if it has one."""
    if "second" not in manifest:
        return fused
    from embedding_finetune.retrieval.rerank import RerankedRetriever
    from embedding_finetune.retrieval.rerankers import make_reranker
    stage = make_reranker(settings, manifest["second"]["stage"]).load(folder)
    return RerankedRetriever(fused, stage, manifest["rerank_weight"], manifest["depth"])


def _encoder(settings, label, cached=True):
    from embedding_finetune.models.encoder import make_encoder
    from embedding_finetune.models.encoder_config import load_encoder_config
    return make_encoder(settings, load_encoder_config(settings, label), cached)


def _found_or_built(settings, label, home, read_all=False):
    """The Index of the current model and data: found by its identity, or built.

    `read_all` verifies all files against the manifest, not only those with a new modification time.
    """
    from embedding_finetune.data.collection import read_data
    facts, files = _source(settings, label)
    collection = read_data(settings)
    made = {path.parent: (read_checksummed(path) or {}).get("facts", {}) for path in home.glob("*/manifest.json")}
    folder = next((folder for folder, of in made.items() if _identity(of) == facts), home / content_hash(facts)[:16])
    manifest, damaged = read_checksummed(folder / "manifest.json"), folder.exists()
    if manifest is None or not has_same_content(folder, manifest.get("own", {}), read_all):
        why = ("it is damaged" if damaged else "model or data have changed" if any(home.glob("*/manifest.json"))
               else "there is none yet")
        print(f"building the index of {label}, {len(collection.corpus):,} passages: {why}", file=sys.stderr)
        partial = home / ".partial"
        for path in (partial, folder):
            shutil.rmtree(path, ignore_errors=True)
        partial.mkdir()
        manifest = _make(settings, label, partial, facts, collection)
        if file_stamps(files) != files:
            raise UserError(CHANGING.format(label))
        partial.rename(folder)
        # Remove indexes of earlier models or data; a process that has one open can go on using it.
        for old in () if damaged else home.iterdir():
            if old.is_dir() and old != folder:
                shutil.rmtree(old, ignore_errors=True)
    abstention = choose_threshold(manifest["dev"], settings.abstention_precision)
    own = fingerprints(folder, manifest.get("own", {}))
    own.pop("manifest.json", None)
    manifest |= {"settings": settings.as_dict(), "files": files, "own": own, "abstention": abstention}
    write_checksummed(folder / "manifest.json", manifest)
    index = _opened_if_whole(settings, folder, manifest)
    if index is None and read_all:
        raise UserError(f"{display_value(folder)} is damaged right after it was written: check the disk")
    return index or _found_or_built(settings, label, home, read_all=True)


def _source(settings, label):
    """What the index of a label depends on: a dict of facts, and the stamps of their files."""
    from embedding_finetune.data.collection import data_identity
    from embedding_finetune.hub import MODEL_FILES, model_content
    from embedding_finetune.models.encoder_config import load_encoder_config
    from embedding_finetune.retrieval.base import RETRIEVERS
    from embedding_finetune.training.provenance import check_trained
    names = ("dataset.json", "corpus.jsonl", "queries.jsonl", "qrels/dev.tsv")
    files = file_stamps(settings.paths.data / name for name in names)
    facts = {"format": FORMAT, "data": data_identity(settings)}
    path = settings.paths.result(label)
    result = read_checksummed(path, having={"label": str}) or {}
    if path.exists() and not result:
        raise UserError(f"{display_value(path)} is damaged: evaluate {label} again")
    if "second_weight" in result:
        raise UserError(f"{label} was measured by an earlier version: evaluate it again")
    if "hybrid_of" in result:
        bm25, dense = (open_index(settings, part) for part in ("bm25", result["hybrid_of"]))
        if (result["data"], result["content"]) != (facts["data"], dense.manifest["facts"]["content"]):
            raise UserError(f"{label} was measured on other data or with another model: evaluate "
                            f"{result['hybrid_of']} again")
        parts = [part.folder.name for part in (bm25, dense)]
        facts |= {name: result[name] for name in (*FUSION, "second") if name in result} | {"parts": parts}
        return _identity(facts), file_stamps([path]) | bm25.manifest["files"] | dense.manifest["files"]
    if label in RETRIEVERS:
        return facts | {"language": settings.bm25_language}, files
    check_trained(settings, label)
    config = load_encoder_config(settings, label)
    model_files = (file for file in sorted(Path(config.name).rglob("*")) if file.suffix in MODEL_FILES)
    files |= file_stamps([settings.model_file, *model_files])
    return facts | {"use": config.identity, "content": model_content(config.name), "index": settings.index}, files


def _identity(facts):
    """Facts without descriptive fields of models (titles, notes), which results and older indexes contain."""
    from embedding_finetune.models.encoder_config import identity_of
    facts = facts | ({"use": identity_of(facts["use"])} if "use" in facts else {})
    second = facts.get("second")
    return facts | ({"second": second | {"used": identity_of(second["used"])}} if second else {})


def _make(settings, label, folder, facts, collection):
    """Write an index to an empty folder; returns its manifest, without the part that depends on settings alone."""
    from embedding_finetune.models.compiled_model import compiled_format
    from embedding_finetune.retrieval.ann import FLAT
    from embedding_finetune.retrieval.base import RETRIEVERS, make_retriever
    from embedding_finetune.retrieval.dense import Dense
    from embedding_finetune.serving.query_encoder import save_query_encoder
    manifest = {"label": label, "passages": len(collection.corpus), "facts": facts, "abstention": {"threshold": None}}
    manifest |= {name: facts[name] for name in (*FUSION, "second") if name in facts}
    if "second" in facts:
        from embedding_finetune.retrieval.rerankers import make_reranker
        make_reranker(settings, facts["second"]["stage"]).index(collection.corpus).save(folder)
    if "weight" not in facts:
        retriever = (make_retriever(label, settings.bm25_language) if label in RETRIEVERS else
                     Dense(_encoder(settings, label), settings.index))
        retriever.index(collection.corpus).save(folder)
        offsets, sources = [0], collection.source
        with atomic_write(folder / "passages.jsonl", "wb") as file:
            for identity, text in collection.corpus.items():
                row = {"id": identity, "text": text} | ({"source": sources[identity]} if identity in sources else {})
                offsets.append(offsets[-1] + file.write(json.dumps(row, ensure_ascii=False).encode() + b"\n"))
        np.save(folder / "offsets.npy", np.array(offsets))
        try:
            # A compiled model is a graph already.
            if label not in RETRIEVERS and not compiled_format(retriever.encoder.config.name):
                save_query_encoder(folder, retriever.encoder)
        except UserError as error:
            if is_disk_error(error) or is_memory_error(error):  # not caused by the model, and perhaps temporary
                raise
            print(f"{error}: PyTorch encodes its queries, so a search takes some seconds longer", file=sys.stderr)
    index, dev = _opened(settings, folder, manifest), collection.split("dev")
    if facts.get("index", FLAT) != FLAT and dev.queries:
        manifest["recall_vs_exact"] = index.retriever.recall_vs_exact(list(dev.queries.values()))
    # A passage with the id of the query is the query itself, as in ArguAna.
    best = {query: [hit for hit in hits if hit["id"] != query][:1]
            for query, hits in zip(dev.queries, index.answer(list(dev.queries.values()), 2) if dev.queries else ())}
    scored = [(query, hits[0]) for query, hits in best.items() if hits]
    return manifest | {"dev": [[hit["score"], hit["id"] in dev.positives(query)] for query, hit in scored]}
