"""What is read, as targets for the fuzzer: settings, recipes, data in every form, our own files, a model's, requests."""

import asyncio
import dataclasses
import io
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import httpx
import numpy as np
import pyarrow
import pyarrow.parquet
from hypothesis import strategies as st

from embedding_finetune import settings as settings_module
from embedding_finetune.data.collection import read_collection, read_data
from embedding_finetune.data.sources import read_pairs, source_of
from embedding_finetune.evaluation.results import compare, load_results
from embedding_finetune.files import UserError, read_json
from embedding_finetune.index import default_label, open_index
from embedding_finetune.live import Shelf
from embedding_finetune.recipes import trained_labels
from embedding_finetune.retrieval.model_use import listed, use_of
from embedding_finetune.retrieval.runs import read_qrels, read_run
from embedding_finetune.retrieval.vectors import TokenStore, VectorCache, _hash
from embedding_finetune.seals import SEAL
from embedding_finetune.serve import Guarded, application
from embedding_finetune.settings import TABLE, Settings
from embedding_finetune.training.checkpoints import complete_checkpoints
from embedding_finetune.training.log import read_log
from embedding_finetune.training.records import check_trained, find_recipe, is_current, trained_by_us
from embedding_finetune.training.rows import make_training_file, read_training_file
from embedding_finetune.training.train import parse

from .fuzz import SCALARS, VALUES, broken, explored, otherwise


@dataclass(frozen=True)
class Target:
    """`prepare(folder)` gives (check, strategy) of the fuzzer in the trial's folder, which holds `state`."""

    name: str
    state: str
    weight: int
    prepare: Callable
    examples: tuple = ()

    def run(self, folder, cases):
        return explored(*self.prepare(folder), cases, self.examples)


TARGETS = []


def target(name, state, weight, *examples):
    def register(function):
        TARGETS.append(Target(name, state, weight, function, examples))
        return function
    return register


def written(path, read):
    """A check that writes its value, bytes or a JSON value, to a file, and reads it."""
    def check(value):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(value if isinstance(value, bytes) else json.dumps(value).encode())
        read()
    return check


def file(path, read):
    """(check, strategy): the bytes of a file, nearly as they are."""
    return written(path, read), broken(path.read_bytes())


def record(path, read):
    """(check, strategy): a JSON object of ours that a program has changed: without its seal it is taken as it is."""
    value = read_json(path)
    value.pop(SEAL, None)
    return written(path, read), otherwise(value)


@target("settings", "built", 60)
def _settings(folder):
    texts = SCALARS.map(str) | st.sampled_from(["", "auto", "none", "0", "-1", "1e999", "nan", "~", "~x", "a" * 5000, "/"])

    def check(changes):
        changes = {name: value.replace("\0", "0").encode("utf-8", "replace").decode() for name, value in changes.items()}
        before = dict(os.environ)
        os.environ.update(changes)
        try:
            Settings.load().as_dict()
        finally:
            os.environ.clear()
            os.environ.update(before)
    return check, st.dictionaries(st.sampled_from(sorted(TABLE)), texts, min_size=1, max_size=4)


@target("profile", "built", 60)
def _profile(folder):
    content = (settings_module.ROOT / "profiles" / "demo.env").read_bytes()
    settings_module.ROOT = folder
    return written(folder / "profiles" / "demo.env", Settings.load), broken(content)


@target("recipes", "built", 60)
def _recipes(folder):
    now = Settings.load()
    content, path = now.recipe_file.read_bytes(), folder / "recipes.toml"
    now = dataclasses.replace(now, recipe_file=path)
    return written(path, lambda: trained_labels(now)), broken(content) | broken(b'[a]\nnumber = 3\nsettings = {SEED = 1}\n')


@target("models.toml", "built", 30)
def _models(folder):
    now = dataclasses.replace(Settings.load(), model_file=folder / "models.toml")
    content = b'["a/b"]\npooling = "cls"\nquery_prompt = "q: "\nquery_max_len = 64\n'
    return written(folder / "models.toml", lambda: listed(now)), broken(content)


def pairs(folder, ending, content):
    path = folder / f"given{ending}"
    now = dataclasses.replace(Settings.load(), dataset=str(path), max_bad_rows=0.5)

    def read():
        read_pairs(now)
        source_of(now)
    return written(path, read), content if isinstance(content, st.SearchStrategy) else broken(content)


ROWS = [{"query": f"what is {word}", "pos": [f"{word} is a thing", f"{word}!"], "neg": ["no"], "id": f"q{number}"}
        for number, word in enumerate(("one", "two", "第二", "three four"))]
LINES = "".join(json.dumps(row) + "\n" for row in ROWS).encode()
TABLE_ROWS = "id,query,text\n" + "".join(f'{row["id"]},{row["query"]},"{row["pos"][0]}, ""x"""\n' for row in ROWS)


@target("jsonl", "built", 120)
def _jsonl(folder):
    values = st.lists(otherwise(ROWS[0]), min_size=1, max_size=4)
    changed = values.map(lambda rows: "".join(json.dumps(row) + "\n" for row in rows).encode())
    return pairs(folder, ".jsonl", broken(LINES) | changed)


@target("json", "built", 120)
def _json(folder):
    return pairs(folder, ".json", broken(json.dumps(ROWS).encode()) | otherwise(ROWS).map(json.dumps).map(str.encode))


@target("csv", "built", 120)
def _csv(folder):
    return pairs(folder, ".csv", broken(TABLE_ROWS.encode()) | broken(TABLE_ROWS.encode("utf-16")))


@target("tsv", "built", 40)
def _tsv(folder):
    return pairs(folder, ".tsv", TABLE_ROWS.replace(",", "\t").encode())


@target("parquet", "built", 80)
def _parquet(folder):
    content = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), content)
    columns = st.dictionaries(st.sampled_from(["query", "pos", "neg", "id", "x"]), st.sampled_from(
        [pyarrow.array(values) for values in ([1, 2], [None, "a"], [["a"], None], [[1], []], [b"\xff", b"a"], [1.5, None],
                                              [{"a": 1}, {"a": 2}], [[["a"]], [["b"]]], [None, None], ["a b", "c"])]),
        min_size=1)

    def tabled(columns):
        other = io.BytesIO()
        pyarrow.parquet.write_table(pyarrow.table(columns), other)
        return other.getvalue()
    return pairs(folder, ".parquet", broken(content.getvalue()) | columns.map(tabled))


@target("documents", "built", 60)
def _documents(folder):
    texts = ["# Title\n\nA passage of some words.\n\n## Second\n\nMore words here.\n", "Chapter 1\n=====\n\nText.\n",
             "<html><head><title>T</title></head><body><h1>One</h1><p>Words &amp; more<br>x</p></body></html>"]
    now = dataclasses.replace(Settings.load(), dataset=str(folder / "documents"))

    def check(value):
        ending, content = value
        written(folder / "documents" / f"page{ending}", lambda: read_pairs(now))(content)
        (folder / "documents" / f"page{ending}").unlink()
    return check, st.tuples(st.sampled_from([".md", ".txt", ".html"]),
                            st.sampled_from(texts).flatmap(lambda text: broken(text.encode())))


@target("pdf", "built", 20)
def _pdf(folder):
    import pypdf
    content, writer = io.BytesIO(), pypdf.PdfWriter()
    writer.add_blank_page(200, 200)
    writer.add_outline_item("first", 0)
    writer.write(content)
    now = dataclasses.replace(Settings.load(), dataset=str(folder / "documents"))
    return written(folder / "documents" / "page.pdf", lambda: read_pairs(now)), broken(content.getvalue())


@target("corpus", "built", 60)
def _corpus(folder):
    return file(folder / "data" / "corpus.jsonl", lambda: read_collection(folder / "data"))


@target("queries", "built", 60)
def _queries(folder):
    return file(folder / "data" / "queries.jsonl", lambda: read_collection(folder / "data"))


@target("judgements", "built", 60)
def _judgements(folder):
    return file(folder / "data" / "qrels" / "dev.tsv", lambda: read_collection(folder / "data"))


@target("dataset.json", "built", 80)
def _dataset(folder):
    now = Settings.load()
    return record(folder / "data" / "dataset.json", lambda: read_data(now))


@target("training file", "built", 60)
def _training(folder):
    path = folder / "data" / "training_neg_10.json"
    return file(path, lambda: read_training_file(path, teacher=True))


@target("record of a training file", "built", 40)
def _made(folder):
    now = Settings.load()
    collection, recipe = read_data(now), find_recipe(now, "neg10")
    return record(folder / "data" / "training_neg_10.made.json", lambda: make_training_file(now, recipe, collection))


@target("flags", "built", 20)
def _flags(folder):
    flags = ["--model_name_or_path", str(folder / "model"), "--train_data", str(folder / "data" / "training_neg_10.json"),
             "--output_dir", str(folder / "output" / "x"), "--use_cpu"]
    words = st.sampled_from(["--learning_rate", "--seed", "--save_steps", "--dev_steps", "--fp16", "--bf16", "--nope",
                             "--temperature", "--passage_max_len", "--train_group_size"]) | SCALARS.map(str)
    return lambda given: parse([*flags, *given]), st.lists(words, min_size=1, max_size=3)


@target("runs", "measured", 80)
def _runs(folder):
    path = folder / "output" / "runs" / "neg10.trec"
    return file(path, lambda: read_run(path))


@target("judgements of TREC", "built", 60)
def _qrels(folder):
    path = folder / "data" / "qrels.trec"
    return file(path, lambda: read_qrels(path))


@target("results", "measured", 30)
def _results(folder):
    now = Settings.load()
    collection = read_data(now)

    def read():
        load_results(now)
        compare(now, collection)
    return record(folder / "output" / "results" / "neg10.json", read)


@target("record of a training", "trained", 80)
def _trained(folder):
    now = Settings.load()

    def read():
        is_current(now, find_recipe(now, "neg10"))
        trained_by_us(now)
        check_trained(now, "neg10")
        use_of(now, "neg10")
    return record(folder / "output" / "neg10" / "training.json", read)


@target("marker of a checkpoint", "interrupted", 60)
def _marker(folder):
    output = folder / "output" / "neg10.partial"
    path = sorted(output.glob("checkpoint-*"))[0] / "complete.json"
    check, strategy = record(path, lambda: complete_checkpoints(output))
    return check, strategy | broken(path.read_bytes())


@target("log of a training", "trained", 60)
def _log(folder):
    return file(folder / "output" / "neg10" / "training_log.jsonl", lambda: read_log(folder / "output" / "neg10"))


@target("files of a model", "trained", 100)
def _model(folder):
    now, model = Settings.load(), folder / "output" / "neg10"
    (model / "complete.json").unlink()
    names = ["config.json", "modules.json", "1_Pooling/config.json", "sentence_bert_config.json",
             "config_sentence_transformers.json", "tokenizer_config.json"]
    contents = {name: read_json(model / name) for name in names}

    def check(value):
        name, content = value
        written(model / name, lambda: use_of(now, "neg10"))(content)
        written(model / name, lambda: None)(contents[name])
    return check, st.sampled_from(names).flatmap(lambda name: st.tuples(st.just(name), otherwise(contents[name])))


@target("cache", "encoded", 60)
def _cache(folder):
    """A file under the name that its bytes have: as if something else had written it."""
    home = next(path.parent for path in sorted((folder / "output" / "cache").rglob("*.npy")))
    cache = VectorCache(home.parent, read_json(home / "identity.json"))
    content = next(home.glob("*.npy")).read_bytes()

    def check(value):
        for path in home.glob("*.npy"):
            path.unlink()
        (home / f"{_hash(value)}.npy").write_bytes(value)
        for keys, vectors in cache.read():
            assert len(keys) == len(vectors) and vectors.dtype == np.float32
    return check, broken(content) | broken(content[:200])


@target("token vectors", "built", 30)
def _tokens(folder):
    store = TokenStore(folder / "cache", {"model": "m"}, ["a", "b"])
    store.write([[np.ones((2, 3), np.float16), np.ones((1, 3), np.float16)]])

    def read():
        if store.complete():
            store.read()
    return record(store.folder / "identity.json", read)


@target("index", "indexed", 10)
def _index(folder):
    now = Settings.load()
    path = next((folder / "output" / "index" / "neg10").glob("*/manifest.json"))

    def read():
        open_index(now, "neg10").answer(["otter"], 3)
        for other in path.parents[1].glob("*/manifest.json"):
            assert other.parent == path.parent
    return record(path, read)


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
    app, loop = Guarded(application(now, Shelf(now, "neg10"))), asyncio.new_event_loop()
    client = httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost")
    text = st.text(max_size=40) | st.sampled_from(["otter", "../" * 5, "<script>", "%00", "a" * 3000, "\0", "neg10"])
    asked = st.dictionaries(st.sampled_from(["q", "k", "model", "x"]), text | st.integers(-3, 300).map(str), max_size=4)
    body = VALUES | st.fixed_dictionaries({}, optional={name: VALUES | text for name in ("query", "id", "model", "right")})
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
    paths = st.sampled_from(["/search", "/marks", "/models", "/healthz", "/", "/openapi.json", "/../x", "//", "/docs"])
    return check, st.tuples(st.sampled_from(["GET", "POST", "PUT", "HEAD", "OPTIONS"]), paths | text.map("/{}".format),
                            asked, body.map(json.dumps).map(str.encode) | broken(b'{"query": "otter", "id": "x"}'), headers)


