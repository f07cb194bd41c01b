"""Targets for the fuzzer: how one is made, and those that read what the user gives."""

import dataclasses
import io
import json
import os
from collections.abc import Callable
from dataclasses import dataclass

import pyarrow
import pyarrow.parquet
import round_trips
from hypothesis import strategies as st

from embedding_finetune import settings as settings_module
from embedding_finetune.artifacts.manifest import CHECKSUM
from embedding_finetune.data.cleaning import read_pairs, source_of
from embedding_finetune.data.readers import json_files
from embedding_finetune.files import read_json
from embedding_finetune.models.encoder_config import from_registry
from embedding_finetune.recipes import trained_labels
from embedding_finetune.settings import TABLE, Settings

from .fuzz import SCALARS, broken, explored, otherwise


@dataclass(frozen=True)
class Target:
    """`prepare(folder)` gives (check, strategy) of the fuzzer in the trial's folder, which holds `state`."""

    name: str
    state: str
    weight: int
    prepare: Callable
    share: float = 0.0  # of the number of cases, beside those that the others share by weight

    def run(self, folder, cases):
        return explored(*self.prepare(folder), cases)


TARGETS = []


def target(name, state, weight, share=0.0):
    def register(function):
        TARGETS.append(Target(name, state, weight, function, share))
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
    """(check, strategy): a JSON object of ours: changed under its seal, its bytes broken, or one of an earlier version,
    which has no seal and lacks something."""
    value = read_json(path)
    assert value[CHECKSUM]
    older = st.sampled_from(sorted(value)).map(lambda gone: {
        key: other for key, other in value.items() if key not in (gone, CHECKSUM)})
    changed = otherwise(value).map(
        lambda other: other | {CHECKSUM: value[CHECKSUM]} if isinstance(other, dict) else other)
    return written(path, read), changed | broken(path.read_bytes()) | older


@target("settings", "built", 60)
def _settings(folder):
    texts = SCALARS.map(str) | st.sampled_from(["", "auto", "none", "0", "-1", "1e999", "nan", "~", "~x", "a" * 5000])

    def check(changes):
        changes = {name: value.replace("\0", "0").encode("utf-8", "replace").decode()
                   for name, value in changes.items()}
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
    small = b'[a]\nnumber = 3\nsettings = {SEED = 1}\n'
    return written(path, lambda: trained_labels(now)), broken(content) | broken(small)


@target("models.toml", "built", 30)
def _models(folder):
    now = dataclasses.replace(Settings.load(), model_file=folder / "models.toml")
    content = b'["a/b"]\npooling = "cls"\nquery_prompt = "q: "\nquery_max_len = 64\n'
    return written(folder / "models.toml", lambda: from_registry(now)), broken(content)


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
        [pyarrow.array(values) for values in ([1, 2], [None, "a"], [["a"], None], [[1], []], [b"\xff", b"a"],
                                              [1.5, None], [{"a": 1}, {"a": 2}], [[["a"]], [["b"]]], [None, None],
                                              ["a b", "c"])]),
        min_size=1)

    def tabled(columns):
        other = io.BytesIO()
        pyarrow.parquet.write_table(pyarrow.table(columns), other)
        return other.getvalue()
    return pairs(folder, ".parquet", broken(content.getvalue()) | columns.map(tabled))


@target("round trips", "built", 0, share=1.0)
def _round_trips(folder):
    json_files.PEEK, now = 2, Settings.load()  # so that columns arrive late

    def check(value):
        round_trips.check(folder, now, *value)
    return check, st.tuples(st.sampled_from(sorted(round_trips.WRITERS)), round_trips.ROWS)


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
