"""Targets for the fuzzer that read what we have written ourselves, a model's files, and requests."""

import asyncio
import dataclasses
import json
from pathlib import Path

import httpx
import numpy as np
from hypothesis import strategies as st

from embedding_finetune.artifacts.staging import complete_checkpoints
from embedding_finetune.data.collection import read_collection, read_data
from embedding_finetune.data.row_store import read_rows
from embedding_finetune.evaluation.results import compare, load_results
from embedding_finetune.files import UserError, read_json
from embedding_finetune.models.embedding_cache import EmbeddingCache, TokenEmbeddingStore
from embedding_finetune.models.encoder_config import load_encoder_config
from embedding_finetune.retrieval.trec import read_run
from embedding_finetune.serving.available import default_label
from embedding_finetune.serving.index import open_index
from embedding_finetune.serving.registry import IndexRegistry
from embedding_finetune.serving.server import application
from embedding_finetune.settings import Settings
from embedding_finetune.training.arguments import SETTINGS, read_settings, write_settings
from embedding_finetune.training.log import read_log
from embedding_finetune.training.provenance import check_trained, find_recipe, is_current
from embedding_finetune.training.train import training_settings
from embedding_finetune.training.training_data import make_training_file

from .fuzz import VALUES, broken, otherwise
from .targets import file, record, target, written


def _rows(path):
    return list(read_rows(path))


def _training_file(path):
    now = Settings.load()
    make_training_file(now, find_recipe(now, "neg10"), read_data(now))


def _result(path):
    now = Settings.load()
    load_results(now)
    compare(now, read_data(now))


def _trained(path):
    now = Settings.load()
    is_current(now, find_recipe(now, "neg10"))
    check_trained(now, "neg10")
    load_encoder_config(now, "neg10")


def _index(path):
    open_index(Settings.load(), "neg10").answer(["otter"], 3)
    for other in path.parents[1].glob("*/manifest.json"):
        assert other.parent == path.parent


FILES = [  # name, state and weight of a target; the file, and what reads it
    ("corpus", "built", 60, "data/corpus.jsonl", lambda path: read_collection(path.parent)),
    ("queries", "built", 60, "data/queries.jsonl", lambda path: read_collection(path.parent)),
    ("judgements", "built", 60, "data/qrels/dev.tsv", lambda path: read_collection(path.parents[1])),
    ("rows in Arrow", "built", 60, "data/training_neg_10.arrow", _rows),
    ("passages in Arrow", "built", 60, "data/passages.arrow",
     lambda path: _rows(path.with_name("training_neg_10.arrow"))),
    ("runs", "measured", 80, "output/runs/neg10.trec", read_run),
    ("log of a training", "trained", 60, "output/neg10/training_log.jsonl", lambda path: read_log(path.parent))]
RECORDS = [
    ("dataset.json", "built", 80, "data/dataset.json", lambda path: read_data(Settings.load())),
    ("record of a training file", "built", 40, "data/training_neg_10.made.json", _training_file),
    ("results", "measured", 30, "output/results/neg10.json", _result),
    ("record of a training", "trained", 80, "output/neg10/training.json", _trained),
    ("marker of a checkpoint", "interrupted", 60, "output/neg10.partial/checkpoint-*/complete.json",
     lambda path: complete_checkpoints(path.parents[1])),
    ("index", "indexed", 10, "output/index/neg10/*/manifest.json", _index)]
for _form, _targets in ((file, FILES), (record, RECORDS)):
    for _name, _state, _weight, _pattern, _read in _targets:
        def _prepare(folder, form=_form, pattern=_pattern, read=_read):
            path = sorted(folder.glob(pattern))[0]
            return form(path, lambda: read(path))

        target(_name, _state, _weight)(_prepare)


@target("settings of a training", "built", 20)
def _settings(folder):
    now = Settings.load()
    write_settings(folder, training_settings(now, find_recipe(now, "neg10"), now, read_data(now)))
    return file(folder / SETTINGS, lambda: read_settings(folder))


@target("files of a model", "trained", 100)
def _model(folder):
    now, model = Settings.load(), folder / "output" / "neg10"
    (model / "complete.json").unlink()
    names = ["config.json", "modules.json", "1_Pooling/config.json", "sentence_bert_config.json",
             "config_sentence_transformers.json", "tokenizer_config.json"]
    contents = {name: read_json(model / name) for name in names}

    def check(value):
        name, content = value
        written(model / name, lambda: load_encoder_config(now, "neg10"))(content)
        written(model / name, lambda: None)(contents[name])
    return check, st.sampled_from(names).flatmap(lambda name: st.tuples(st.just(name), otherwise(contents[name])))


@target("cache", "encoded", 60)
def _cache(folder):
    home = next(path.parent for path in sorted((folder / "output" / "cache").rglob("*.npy")))
    cache = EmbeddingCache(home.parent, read_json(home / "identity.json"))
    path = next(home.glob("*.npy"))
    content = path.read_bytes()

    def check(value):
        path.write_bytes(value)
        for keys, vectors in cache.read():
            assert len(keys) == len(vectors) and vectors.dtype == np.float32
    return check, broken(content)


@target("token vectors", "built", 30)
def _tokens(folder):
    store = TokenEmbeddingStore(folder / "cache", {"model": "m"}, ["a", "b"])
    store.write([[np.ones((2, 3), np.float16), np.ones((1, 3), np.float16)]])

    def read():
        if store.complete():
            store.read()
    return record(store.folder / "identity.json", read)


@target("default of a search", "indexed", 20)
def _default(folder):
    now = Settings.load()
    default_label(now)
    return record(folder / "output" / "index" / "default.json", lambda: default_label(now))


@target("search", "indexed", 40)
def _search(folder):
    index = open_index(Settings.load(), "neg10")

    def check(value):
        queries, k = value
        assert all(len(hits) <= k for hits in index.answer(queries, k))
    return check, st.tuples(st.lists(st.text(max_size=60), min_size=1, max_size=3), st.integers(1, 300))


@target("requests", "indexed", 120)
def _requests(folder):
    now = dataclasses.replace(Settings.load(), data_dir=Path(folder / "data"))
    app, loop = application(now, IndexRegistry(now, "neg10")), asyncio.new_event_loop()
    client = httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost")
    text = st.text(max_size=40) | st.sampled_from(["otter", "../" * 5, "<script>", "%00", "a" * 3000, "\0", "neg10"])
    asked = st.dictionaries(st.sampled_from(["q", "k", "system", "model", "x"]), text | st.integers(-3, 300).map(str),
                            max_size=4)
    optional = {name: VALUES | text for name in ("query", "id", "system", "right")}
    body = VALUES | st.fixed_dictionaries({}, optional=optional)
    headers = st.dictionaries(st.sampled_from(["Origin", "Content-Type", "Host", "Range", "X-A"]), st.sampled_from(
        ["", "null", "http://evil", "application/json", "text/plain", "http://localhost", "bytes=0-"]), max_size=2)

    def check(value):
        method, path, query, content, header = value
        try:
            request = client.build_request(method, path, params=query, content=content, headers=header)
        except (httpx.InvalidURL, UnicodeEncodeError, ValueError):
            return  # no client can ask so
        answer = loop.run_until_complete(client.send(request))
        assert answer.status_code < 500 or answer.status_code == 503, (answer.status_code, answer.text)
        if header.get("Origin") in ("null", "http://evil") and method == "POST":
            assert answer.status_code != 200, "another site's page may mark"
        if answer.status_code != 200:
            raise UserError(answer.text)
    paths = st.sampled_from("/search /marks /systems /models /healthz / /openapi.json /../x // /docs".split())
    bodies = body.map(json.dumps).map(str.encode) | broken(b'{"query": "otter", "id": "x"}')
    return check, st.tuples(st.sampled_from(["GET", "POST", "PUT", "HEAD", "OPTIONS"]), paths | text.map("/{}".format),
                            asked, bodies, headers)
