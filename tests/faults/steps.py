"""The steps of the tiny experiment, as a person would run them, and the states that they begin with."""

import hashlib
import json
import sys
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import dataclass, field
from io import StringIO
from pathlib import Path
from tempfile import TemporaryDirectory

from finished import evaluate
from hub import TOKEN, hub
from huggingface_hub import constants
from starlette.testclient import TestClient
from tiny import build, build_collection, tiny_bert, tiny_pairs, tiny_texts

from embedding_finetune.contrib import publish
from embedding_finetune.data.collection import read_data, write_test_files
from embedding_finetune.evaluation.report_page import load, write_page
from embedding_finetune.evaluation.results import compare
from embedding_finetune.evaluation.tables import write_comparison
from embedding_finetune.files import UserError, run_command_line
from embedding_finetune.models import parallel_encode
from embedding_finetune.models.encoder_config import base_encoder_config
from embedding_finetune.recipes import find_recipe
from embedding_finetune.retrieval.known_systems import make_reranker
from embedding_finetune.serving import search
from embedding_finetune.serving.index import open_index
from embedding_finetune.serving.registry import IndexRegistry
from embedding_finetune.serving.server import application
from embedding_finetune.training.mining import Miner
from embedding_finetune.training.train import finetune
from embedding_finetune.training.training_data import make_training_file

QUERY = "when does the otter sleep"


@dataclass(frozen=True)
class Step:
    """`run(settings)` begins with the state `begins`; what it leaves is the state `leaves`, if that has a name."""

    name: str
    begins: str
    run: Callable
    leaves: str = ""
    environment: dict = field(default_factory=dict)


def environment(folder):
    """The settings of the tiny experiment in a folder; its training takes three steps, with a checkpoint at each."""
    model = str(folder / "model")
    return {"PROFILE": "demo", "DATASET": str(folder / "pairs.jsonl"), "DATA_DIR": str(folder / "data"),
            "OUTPUT_DIR": str(folder / "output"), "BASE_MODEL": model, "REFERENCE_MODEL": model,
            "REFERENCE_POOLING": "mean", "BASE_POOLING": "mean", "DEV_FRACTION": "0.2", "OUT_OF_DOMAIN_SETS": "",
            "BATCH_SIZE": "16", "LOGGING_STEPS": "1", "LEARNING_RATE": "1e-3", "PRECISION": "fp32",
            "QUERY_MAX_LEN": "24", "PASSAGE_MAX_LEN": "48"}


def begin(folder):
    """The state `given`: pairs and a random BERT."""
    rows = tiny_pairs(120)
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    tiny_bert(folder / "model", tiny_texts(rows))


def make_data(settings):
    build_collection(settings)  # a step returns nothing that cannot be written as JSON


def test_data(settings):
    write_test_files(settings, read_data(settings), base_encoder_config(settings).query_prompt)
    evaluate(settings, "bm25")


def rows(settings):
    collection = read_data(settings)
    return [make_training_file(settings, find_recipe(settings, label), collection) for label in ("neg10", "neg50")]


def mine(settings):
    recipe = find_recipe(settings, "hard_kd")
    return make_training_file(settings, recipe, read_data(settings), Miner(settings, recipe))


def train(settings, label="neg10"):
    run_command_line(lambda: finetune(settings, label, one_process=True))


def measure(settings):
    evaluate(settings, "bm25", "raw", "neg10")


def compared(settings):
    collection = read_data(settings)
    found, left_out = compare(settings, collection)
    if left_out:  # which the notebook shows
        raise UserError("; ".join(left_out))
    write_comparison(settings, collection, found)
    write_page(settings, load(settings, collection, found))
    return [[row["label"], row["metrics"], row["ci95"]] for row in found]


def tokens(settings):
    stage = make_reranker(settings, "late", "reference").index(read_data(settings).corpus)
    return [scores.tolist() for scores in stage.scores([QUERY], [[0, 1, 2]])]


def ask(settings, label):
    return open_index(settings, label).answer([QUERY], 5)


def searched(settings):
    sys.argv = ["search", QUERY, "--json"]
    with redirect_stdout(StringIO()) as said:
        said.reconfigure = lambda **_: None
        run_command_line(search.main)
    return json.loads(said.getvalue())


def encoded(settings):
    run_command_line(lambda: parallel_encode.encode_shard(settings, ["neg10", "raw"], 0, 1))


def published(settings):
    run_command_line(lambda: publish.prepare(settings, "neg10", "me/mine"))


def served(settings):
    """An answer of the server, and a mark of whether it is right."""
    with TestClient(application(settings, IndexRegistry(settings, "neg10"))) as client:
        hits = _said(client.get("/search", params={"q": QUERY}))["hits"]
        mark = {"query": QUERY, "id": hits[0]["id"], "right": True}
        return hits, _said(client.post("/marks", json=mark))


def _said(answer):
    if answer.status_code != 200:
        raise UserError(answer.json()["detail"])
    return answer.json()


def uploaded(settings):
    """What a stand-in hub holds after the upload."""
    constants.HF_HUB_OFFLINE = False
    with TemporaryDirectory() as store, hub({"models": {}}, uploads=store) as constants.ENDPOINT:
        run_command_line(lambda: publish.upload(publish.prepare(settings, "neg10", "me/mine"), "me/mine"))
        return {path.name: hashlib.sha256(path.read_bytes()).hexdigest()
                for path in sorted(Path(store).rglob("*")) if path.is_file()}


STEPS = [
    Step("data", "given", make_data, "data"),
    Step("rows", "data", rows, "rows"),
    Step("test data", "rows", test_data, "built"),
    Step("build again", "built", build),
    Step("build over", "built", build, environment={"OVERWRITE": "1", "SEED": "7"}),
    Step("mine", "built", mine),
    Step("train", "built", train, "trained"),
    Step("resume", "interrupted", train),
    Step("train over", "trained", train, environment={"OVERWRITE": "1"}),
    Step("merge", "trained", lambda settings: train(settings, "neg10_merged")),
    Step("encode", "trained", encoded, "encoded"),
    Step("tokens", "trained", tokens),
    Step("evaluate", "encoded", measure, "measured"),
    Step("compare", "measured", compared, "compared"),
    Step("index", "compared", lambda settings: ask(settings, "neg10"), "indexed"),
    Step("index of words", "compared", lambda settings: ask(settings, "bm25")),
    Step("index of both", "compared", lambda settings: ask(settings, "hybrid_neg10")),
    Step("faiss", "compared", lambda settings: ask(settings, "neg10"), environment={"INDEX": "HNSW8,SQ8"}),
    Step("search", "indexed", searched),
    Step("serve", "indexed", served),
    Step("publish", "compared", published, "published"),
    Step("upload", "published", uploaded, environment={"HF_TOKEN": TOKEN}),
]
