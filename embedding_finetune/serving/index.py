"""A saved index of a label: made, found again in a fraction of a second, and asked.

LABEL is a model's (raw, reference, a recipe's ..), bm25, or hybrid_LABEL as the comparison fused it, with a second
stage where LABEL is that of one. In OUTPUT_DIR/index/LABEL/IDENTITY, where IDENTITY is the hash of everything that the
index was made from:

    passages.jsonl, offsets.npy    the passages (id, text, source), and at which byte each begins
    vectors.npy, bm25/, ..         what the retriever or second stage keeps, mapped into memory rather than read
    faiss.index, milvus.json       where INDEX says so
    manifest.json                  what it was made from, and from which score on it answers; written last

As long as settings and files are those that an index was made from (by size and time of change), it is taken as it is,
without PyTorch, transformers or a question to the hub.
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

FUSION = "hybrid_of", "weight", "rerank_weight", "depth"  # of a result, what its index needs to know
FORMAT = 2  # of an index: another number makes all of them anew
CHANGING = "data or model of {} changed while its index was opened: ask again"


class Index:
    """An index that is open: `answer` queries; `manifest` says what it was made from."""

    def __init__(self, folder, manifest, retriever):
        self.folder, self.manifest, self.retriever = folder, manifest, retriever
        self._offsets = np.load(folder / "offsets.npy", mmap_mode="r")
        self._passages = np.memmap(folder / "passages.jsonl", mode="r")

    def answer(self, queries, k):
        """For each query (a list of texts) its `k` best passages: dicts of rank, score, id, text, and source where
        there is one.

        Where a threshold is known, `above_threshold` says on which side of it the score lies.
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
    """How much of an exact search an index finds, in a sentence; "" of an exact one."""
    return ("{index} finds {recall:.1%} of the exact first {depth} of {queries} dev queries, in {ms:.2f} ms a query "
            "beside {exact_ms:.2f}".format(**manifest["recall_vs_exact"]) if "recall_vs_exact" in manifest else "")


def open_index(settings, label):
    """The Index of a label, made anew where model or data have changed since, which is said on standard error.

    Raises UserError when there is no such model, or when its index cannot be made.
    """
    if not re.fullmatch(r"[\w-]+", label, re.ASCII):
        raise UserError(f"{label!r} is no label: it has letters, digits, _ and -")
    home = settings.output_dir / "index" / label
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
            fcntl.flock(lock, fcntl.LOCK_EX)  # of two that want to make it, the second finds it made
            return _renewed(settings, label, home, read_all=damaged)
    except Exception as error:
        if isinstance(error, UserError) or not is_disk_error(error):
            raise
        raise UserError(f"cannot write {home}: {one_line(error)}; free some space and ask again") from error


def is_current(settings, manifest):
    """Whether settings and files are still those that an index was made from."""
    return (isinstance(manifest, dict) and manifest["settings"] == settings.as_dict()
            and manifest["files"] == file_stamps(manifest["files"]))


def _opened_if_whole(settings, folder, manifest):
    """The Index in a finished folder, or None where a file of it is not as the manifest says.

    Raises UserError when it cannot be opened for any other reason, such as too little memory: the folder stays.
    """
    try:
        return _opened(settings, folder, manifest)
    except UserError:
        raise
    except Exception as error:  # each of the readers has errors of its own
        if not has_same_content(folder, manifest.get("own", {}), read_all=True):
            return None
        raise UserError(f"cannot read {display_value(folder)}: {one_line(error)}; mend that (memory, permission, the disk), "
                        "or remove this folder: it is made anew") from error


def _opened(settings, folder, manifest):
    """The Index in a finished folder."""
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
        return Index(dense.folder, manifest, _reordered(settings, folder, manifest, fused))
    if label in RETRIEVERS:
        return Index(folder, manifest, make_retriever(label, settings.bm25_language).load(folder))
    encoder = QueryEncoder(folder) if (folder / GRAPH).exists() else _encoder(settings, label, cached=False)
    return Index(folder, manifest, Dense(encoder, manifest["facts"]["index"]).load(folder))


def _reordered(settings, folder, manifest, fused):
    """The fused retriever with the second stage of an index, if it has one."""
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


def _renewed(settings, label, home, read_all=False):
    """The Index of today's model and data: found by its identity, or made. `read_all` compares all of its files with
    its manifest, not only those touched since."""
    from embedding_finetune.data.collection import read_data
    facts, files = _source(settings, label)
    collection = read_data(settings)
    made = {path.parent: (read_checksummed(path) or {}).get("facts", {}) for path in home.glob("*/manifest.json")}
    folder = next((folder for folder, of in made.items() if _identity(of) == facts), home / content_hash(facts)[:16])
    manifest, damaged = read_checksummed(folder / "manifest.json"), folder.exists()
    if manifest is None or not has_same_content(folder, manifest.get("own", {}), read_all):
        why = ("it is damaged" if damaged else "model or data have changed" if any(home.glob("*/manifest.json"))
               else "there was none")
        print(f"making the index of {label}, {len(collection.corpus):,} passages: {why}", file=sys.stderr)
        partial = home / ".partial"
        for path in (partial, folder):
            shutil.rmtree(path, ignore_errors=True)
        partial.mkdir()
        manifest = _make(settings, label, partial, facts, collection)
        if file_stamps(files) != files:
            raise UserError(CHANGING.format(label))
        partial.rename(folder)
        for other in () if damaged else home.iterdir():  # of earlier models or data; who has one open keeps it
            if other.is_dir() and other != folder:
                shutil.rmtree(other, ignore_errors=True)
    abstention = choose_threshold(manifest["dev"], settings.abstention_precision)
    own = fingerprints(folder, manifest.get("own", {}))
    own.pop("manifest.json", None)
    manifest |= {"settings": settings.as_dict(), "files": files, "own": own, "abstention": abstention}
    write_checksummed(folder / "manifest.json", manifest)
    index = _opened_if_whole(settings, folder, manifest)
    if index is None and read_all:
        raise UserError(f"{display_value(folder)} is damaged as soon as it is written: check the disk")
    return index or _renewed(settings, label, home, read_all=True)


def _source(settings, label):
    """What the index of a label depends on: a dict of facts, and the stamps of the files behind them."""
    from embedding_finetune.data.collection import data_identity
    from embedding_finetune.hub import MODEL_FILES, model_content
    from embedding_finetune.models.encoder_config import load_encoder_config
    from embedding_finetune.retrieval.base import RETRIEVERS
    from embedding_finetune.training.provenance import check_trained
    names = ("dataset.json", "corpus.jsonl", "queries.jsonl", "qrels/dev.tsv")
    files = file_stamps(settings.data_dir / name for name in names)
    facts = {"format": FORMAT, "data": data_identity(settings)}
    path = settings.output_dir / "results" / f"{label}.json"
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
    own = (file for file in sorted(Path(config.name).rglob("*")) if file.suffix in MODEL_FILES)
    files |= file_stamps([settings.model_file, *own])
    return facts | {"use": config.identity, "content": model_content(config.name), "index": settings.index}, files


def _identity(facts):
    """Facts without what is only said of the models in them, which results and earlier versions have in them."""
    from embedding_finetune.models.encoder_config import identity_of
    facts = facts | ({"use": identity_of(facts["use"])} if "use" in facts else {})
    second = facts.get("second")
    return facts | ({"second": second | {"used": identity_of(second["used"])}} if second else {})


def _make(settings, label, folder, facts, collection):
    """Write an index to an empty folder; returns its manifest, without the part that follows from today's settings."""
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
            if label not in RETRIEVERS and not compiled_format(retriever.encoder.config.name):  # a compiled model has a graph
                save_query_encoder(folder, retriever.encoder)
        except UserError as error:
            if is_disk_error(error) or is_memory_error(error):  # which is no fault of the model, and may be over next time
                raise
            print(f"{error}: PyTorch encodes its queries, and a search takes some seconds more", file=sys.stderr)
    index, dev = _opened(settings, folder, manifest), collection.split("dev")
    if facts.get("index", FLAT) != FLAT and dev.queries:
        manifest["recall_vs_exact"] = index.retriever.recall_vs_exact(list(dev.queries.values()))
    best = {query: [hit for hit in hits if hit["id"] != query][:1]  # such a passage is the query itself, as in ArguAna
            for query, hits in zip(dev.queries, index.answer(list(dev.queries.values()), 2) if dev.queries else ())}
    scored = [(query, hits[0]) for query, hits in best.items() if hits]
    return manifest | {"dev": [[hit["score"], hit["id"] in dev.positives(query)] for query, hit in scored]}
