"""Names on the hub load through HF_ENDPOINT and from a filled cache, and a hub that fails is named in one line."""

import json
import shutil
import socket
import subprocess
import sys
import time

import httpx2
import pyarrow
import pyarrow.parquet
import pytest
from hub import commit_id, fill_hub_cache, hub, hub_environment
from huggingface_hub.errors import LocalEntryNotFoundError
from tiny import tiny_bert, tiny_msmarco, tiny_msmarco_corpus, tiny_pairs, tiny_texts, tiny_xlmr
from transformers import AutoModel

from embedding_finetune.artifacts.manifest import read_checksummed, write_checksummed
from embedding_finetune.files import UserError
from embedding_finetune.hub import check_hub, check_lengths, load, model_content, positions_of, read_model_file

BASE, REFERENCE = "bert-base-uncased", "BAAI/bge-m3"

@pytest.fixture(scope="module")
def pairs():
    return tiny_pairs(30)


@pytest.fixture(scope="module")
def repositories(pairs, tmp_path_factory):
    folder = tmp_path_factory.mktemp("hub")
    texts = tiny_texts(pairs)
    return {
        "models": {BASE: tiny_bert(folder / "base", texts), REFERENCE: tiny_xlmr(folder / "reference", texts)},
        "datasets": {"namespace-Pt/msmarco": tiny_msmarco(folder / "pairs", pairs),
                     "namespace-Pt/msmarco-corpus": tiny_msmarco_corpus(folder / "corpus", pairs)},
    }


@pytest.fixture
def refused():
    """An address that refuses connections: taken, but nobody listens."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{taken.getsockname()[1]}"


def check(monkeypatch, endpoint, *arguments, **options):
    """`check_hub` against `endpoint`: the one line it complains with, and the seconds it took."""
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", str(endpoint))
    start = time.time()
    with pytest.raises(UserError) as caught:
        check_hub(*arguments, **options)
    assert "\n" not in str(caught.value) and str(endpoint) in str(caught.value)
    return str(caught.value), time.time() - start


def test_what_the_hub_has_passes_the_check(repositories, monkeypatch):
    with hub(repositories) as endpoint:
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", endpoint)
        check_hub(BASE)
        check_hub("namespace-Pt/msmarco", "dataset")
        for name, kind in (("nobody/nothing", "model"), (BASE, "dataset"), ("namespace-Pt/msmarco", "model")):
            message, _ = check(monkeypatch, endpoint, name, kind)
            assert f"has no {kind} {name}" in message
    with pytest.raises(UserError, match="output/neg10/missing is neither a folder nor a valid name"):
        check_hub("output/neg10/missing")


def test_a_hub_that_does_not_answer_is_named_at_once(repositories, refused, monkeypatch):
    message, seconds = check(monkeypatch, refused, BASE)
    assert "does not answer" in message and "Connection refused" in message and seconds < 5
    with hub(repositories, status=503) as endpoint:
        message, seconds = check(monkeypatch, endpoint, "namespace-Pt/msmarco", "dataset")
        assert "does not answer" in message and "503" in message and seconds < 5
    with socket.create_server(("127.0.0.1", 0)) as silent:  # takes the connection, then says nothing
        endpoint = f"http://127.0.0.1:{silent.getsockname()[1]}"
        message, seconds = check(monkeypatch, endpoint, BASE, timeout=1)
        assert "does not answer" in message and seconds < 5


def test_no_hub_is_asked_for_a_folder_or_offline(repositories, refused, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", refused)
    check_hub(str(repositories["models"][BASE]))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    check_hub(BASE)


READING = f"""
from embedding_finetune.files import run_command_line
from embedding_finetune.hub import read_model_file
from embedding_finetune.models.own_config import from_files

def main():
    print(from_files("{BASE}", False), read_model_file("{BASE}", "config.json")["model_type"],
          read_model_file("{BASE}", "1_Pooling/config.json"))

run_command_line(main)
"""


def test_a_file_that_a_model_does_not_have_is_empty(repositories, refused, tmp_path):
    """Through the hub, from a folder, and offline from a filled cache; a hub that fails is no such answer."""
    def run(environment):
        return subprocess.run([sys.executable, "-c", READING], env=environment, capture_output=True, text=True)

    with hub(repositories) as endpoint:
        assert run(hub_environment(endpoint, tmp_path / "asked")).stdout == "{} bert {}\n"
    fill_hub_cache(tmp_path / "filled", repositories["models"])
    offline = run(hub_environment(refused, tmp_path / "filled", HF_HUB_OFFLINE="1"))
    assert offline.stdout == "{} bert {}\n", offline.stderr
    started = time.time()
    failed = run(hub_environment(refused, tmp_path / "empty"))
    assert failed.returncode == 1
    assert failed.stderr.splitlines()[-1].startswith(f"error: the Hugging Face Hub at {refused} does not")
    assert time.time() - started < 30
    assert read_model_file(str(repositories["models"][BASE]), "modules.json") == {}


@pytest.mark.parametrize("error", [LocalEntryNotFoundError("gone"), ConnectionError("gone"), ValueError("gone")])
def test_a_hub_that_goes_away_in_between_does_not_pass_for_a_missing_file(monkeypatch, error):
    def fail(*arguments):
        raise error

    monkeypatch.setattr("embedding_finetune.hub.hf_hub_download", fail)
    with pytest.raises(UserError, match="cannot load some/model .gone.; check its name"):
        read_model_file("some/model", "modules.json")


@pytest.mark.parametrize("error", [httpx2.RemoteProtocolError("gone"), httpx2.ReadTimeout("gone"), OSError("gone")])
def test_a_hub_that_goes_away_while_a_model_is_loaded_is_one_line(monkeypatch, error):
    def fail(*arguments, **options):
        raise error

    monkeypatch.setattr(AutoModel, "from_pretrained", fail)
    with pytest.raises(UserError, match="cannot load some/model .gone.; check its name"):
        load("AutoModel", "some/model", trusted=False)


def test_a_broken_file_of_a_model_is_named(tmp_path):
    (tmp_path / "modules.json").write_text("[")
    with pytest.raises(UserError, match="has a modules.json that is not JSON: fix or remove it"):
        read_model_file(str(tmp_path), "modules.json")
    (tmp_path / "config.json").write_text('{"model_type": "bert", "hidden_size": "wide"}')
    with pytest.raises(UserError, match="cannot load .*hidden_size"):
        load("AutoConfig", str(tmp_path), trusted=False)


def test_a_hub_model_is_known_by_its_commit(monkeypatch, tmp_path):
    commits = iter(["1" * 40, "2" * 40])
    monkeypatch.setattr("embedding_finetune.hub.check_hub", lambda name: next(commits))
    assert model_content("some/model") != model_content("some/model")
    monkeypatch.setattr("embedding_finetune.hub.check_hub", lambda name: None)  # offline
    snapshot = tmp_path / "models--some--model" / "snapshots" / ("3" * 40) / "config.json"
    monkeypatch.setattr("embedding_finetune.hub.try_to_load_from_cache", lambda name, file: str(snapshot))
    assert model_content("some/model") == "3" * 40
    monkeypatch.setattr("embedding_finetune.hub.try_to_load_from_cache", lambda name, file: None)
    with pytest.raises(UserError, match="offline mode, and this model was not downloaded"):
        model_content("some/model")


def test_the_content_of_a_folder_are_its_files(repositories, tmp_path):
    folder = shutil.copytree(repositories["models"][BASE], tmp_path / "model")
    before = model_content(str(folder))
    assert before == model_content(str(repositories["models"][BASE])) and "model.safetensors" in before
    (folder / "README.md").write_text("no part of the model")
    assert model_content(str(folder)) == before
    (folder / "config.json").write_text((folder / "config.json").read_text() + "\n")
    assert {name for name, value in model_content(str(folder)).items() if value != before[name]} == {"config.json"}


def test_positions_are_counted_as_the_architecture_counts_them(repositories):
    """XLM-R's begin behind the padding token's number: of 514 a text can have 512."""
    for name in (BASE, REFERENCE):
        assert positions_of(str(repositories["models"][name]), trusted=False) == 512
    base = str(repositories["models"][BASE])
    check_lengths(base, 512, 512, trusted=False)
    with pytest.raises(UserError, match="passage_max_len is 513, but .* has only 512 positions"):
        check_lengths(base, 512, 513, trusted=False)
    with pytest.raises(UserError, match="cannot load no-such-folder/model"):
        positions_of("no-such-folder/model", trusted=False, local_files_only=True)


LOADING = """
from dataclasses import replace
from embedding_finetune.data.cleaning import read_pairs
from embedding_finetune.files import run_command_line
from embedding_finetune.settings import Settings

def main():
    settings = Settings.load("msmarco")
    collection, counts = read_pairs(settings)
    print("queries", len(collection.queries), counts["rows read"])
    more, _ = read_pairs(replace(settings, corpus="namespace-Pt/msmarco-corpus"))
    print("of the corpus", len(more.corpus) - len(collection.corpus), more.queries == collection.queries)
    from embedding_finetune.models.encoder import Encoder  # takes seconds to import
    from embedding_finetune.models.encoder_config import load_encoder_config
    for label in ("raw", "reference", "raw_mean"):
        config = load_encoder_config(settings, label)
        vectors = Encoder(config).encode_queries(list(collection.queries.values())[:1])
        print(label, config.name, config.pooling, vectors.shape)

run_command_line(main)
"""


def test_the_tutorials_experiment_loads_from_the_hub(repositories, pairs, tmp_path):
    """The package's own loading, under the very settings of profiles/msmarco.env."""
    with hub(repositories) as endpoint:
        done = subprocess.run([sys.executable, "-c", LOADING], env=hub_environment(endpoint, tmp_path),
                              capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    distinct = len({pair["query"] for pair in pairs})
    said = done.stdout.splitlines()
    assert "namespace-Pt/msmarco-corpus: guessed from the column names: CORPUS_TEXT_COLUMN=content" in said
    assert [line for line in said if not line.startswith("namespace-Pt/")] == [
        f"queries {distinct} 30",
        "of the corpus 0 True", "raw bert-base-uncased cls (1, 64)", "reference BAAI/bge-m3 cls (1, 64)",
        "raw_mean bert-base-uncased mean (1, 64)"]


# Each line is an environment; the answer is a line, too.
SERIES = """
import json, os, sys
from embedding_finetune.data.collection import write_data
from embedding_finetune.data.cleaning import read_pairs, source_of
from embedding_finetune.data.out_of_domain import out_of_domain_sets
from embedding_finetune.files import UserError
from embedding_finetune.hub import model_content, model_size, snapshot
from embedding_finetune.models.encoder import Encoder
from embedding_finetune.models.encoder_config import load_encoder_config
from embedding_finetune.settings import Settings

def data(settings):
    collection, _ = read_pairs(settings)
    write_data(settings, collection, source_of(settings))
    return len(collection.queries), len(collection.corpus)

def model(settings):
    encoder = Encoder(load_encoder_config(settings, "raw"))
    return encoder.revision, encoder.encode_queries(["when does the otter of Jukalom hunt"]).tolist()

def source(settings):
    return source_of(settings)

def collection(settings):
    found, _ = read_pairs(settings)
    held_out = out_of_domain_sets(settings)[settings.out_of_domain_sets].split("test")
    return found.splits, found.qrels, found.corpus, held_out.queries, source_of(settings)

def folder(settings):
    return snapshot(settings.base_model), model_size(settings.base_model)["weights"]

for line in sys.stdin:
    step, environment = json.loads(line)
    for name in ("DATASET", "CORPUS", "BASE_MODEL", "OVERWRITE", "OUT_OF_DOMAIN_SETS"):
        os.environ.pop(name, None)
    os.environ.update(environment)
    try:
        answer = globals()[step](Settings.load("msmarco"))
    except UserError as error:
        answer = f"error: {error}"
    print("ANSWER", json.dumps(answer), flush=True)
"""
PAIRS, CORPUS = "namespace-Pt/msmarco", "namespace-Pt/msmarco-corpus"


@pytest.fixture(scope="module")
def revised(repositories, tmp_path_factory):
    """The same names with two revisions each: what was there before, as v1, and what is there now."""
    folder, rows = tmp_path_factory.mktemp("revised"), tiny_pairs(20, seed=9)
    newer = {"models": {BASE: tiny_bert(folder / "base", tiny_texts(rows), seed=9)},
             "datasets": {PAIRS: tiny_msmarco(folder / "pairs", rows),
                          CORPUS: tiny_msmarco_corpus(folder / "corpus", rows)}}
    return {kind: {name: {"main": now, "v1": repositories[kind][name]} for name, now in names.items()}
            for kind, names in newer.items()}


@pytest.fixture
def series(tmp_path):
    """`ask(step, **environment)` of a process that runs SERIES; it is started by `start(endpoint, **environment)`."""
    started = []

    def start(endpoint, **environment):
        process = subprocess.Popen([sys.executable, "-c", SERIES], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                   env=hub_environment(endpoint, tmp_path / "home", **environment), text=True)
        started.append(process)

        def ask(step, **environment):
            process.stdin.write(json.dumps([step, environment]) + "\n")
            process.stdin.flush()
            answers = (line.partition(" ")[2] for line in process.stdout if line.startswith("ANSWER "))
            return json.loads(next(answers))

        return ask

    yield start
    for process in started:
        process.communicate()


def made_with(folder):
    return json.loads((folder / "dataset.json").read_text())["inputs"]["source"]


def test_a_new_revision_of_a_hub_data_set_is_another_data_set(repositories, revised, series, tmp_path):
    """It used to overwrite the data without a word; a record that has no revision, of an earlier version, is still
    good."""
    folder, (now, before) = tmp_path / "data", ({name: commit_id(revised["datasets"][name][revision])
                                                 for name in (PAIRS, CORPUS)} for revision in ("main", "v1"))
    with hub(repositories) as endpoint:
        ask = series(endpoint, DATA_DIR=str(folder))
        first = ask("data", DATASET="msmarco", CORPUS=CORPUS)
        assert made_with(folder)["revision"] == before[PAIRS]
        assert made_with(folder)["corpus_revision"] == before[CORPUS]
        assert ask("data", DATASET="msmarco", CORPUS=CORPUS) == first
        endpoint.server.repositories = revised
        refused = ask("data", DATASET="msmarco", CORPUS=CORPUS)
        assert f"(revision: {before[PAIRS]}, now {now[PAIRS]})" in refused
        assert "OVERWRITE=1" in refused and made_with(folder)["revision"] == before[PAIRS]
        second = ask("data", DATASET="msmarco", CORPUS=CORPUS, OVERWRITE="1")
        assert second != first and made_with(folder)["revision"] == now[PAIRS]
        record = read_checksummed(folder / "dataset.json", having={})
        for name in ("revision", "corpus_revision"):
            del record["inputs"]["source"][name]
        write_checksummed(folder / "dataset.json", record)
        assert ask("data", DATASET="msmarco", CORPUS=CORPUS) == second and made_with(folder)["revision"] == now[PAIRS]
        endpoint.server.repositories = repositories  # what was read is recorded, whatever the hub has by then
        assert ask("source", DATASET="msmarco", CORPUS=CORPUS) == {"revision": now[PAIRS],
                                                                   "corpus_revision": now[CORPUS]}


def test_a_data_set_in_mtebs_layout_is_read_with_its_splits_and_ids(series, refused, tmp_path):
    layout = {"corpus/corpus-00000-of-00001.parquet": [
                  {"_id": f"d{number}", "title": f"T{number}", "text": f"passage {number}"} for number in range(6)],
              "queries/queries-00000-of-00001.parquet": [
                  {"_id": f"q{number}", "text": f"query {number}"} for number in range(5)]}
    layout |= {f"data/{split}-00000-of-00001.parquet": [
        {"query-id": f"q{number}", "corpus-id": f"d{number}", "score": 1.0} for number in numbers]
        for split, numbers in (("train", range(3)), ("test", range(3, 5)))}
    for path, rows in layout.items():
        (tmp_path / "set" / path).parent.mkdir(parents=True, exist_ok=True)
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "set" / path)
    (tmp_path / "set" / "README.md").write_text("---\nconfigs:\n- config_name: corpus\n- config_name: default\n---\n")
    with hub({"datasets": {"mteb/tiny": tmp_path / "set"}}) as endpoint:
        ask = series(endpoint)
        found = ask("collection", DATASET="mteb/tiny", CORPUS="mteb/tiny", OUT_OF_DOMAIN_SETS="mteb/tiny")
    ask = series(refused, HF_HUB_OFFLINE="1")
    assert ask("collection", DATASET="mteb/tiny", CORPUS="mteb/tiny", OUT_OF_DOMAIN_SETS="mteb/tiny") == found
    splits, qrels, corpus, held_out, source = found
    assert splits == dict.fromkeys(["q0", "q1", "q2"], "train") | dict.fromkeys(["q3", "q4"], "test")
    assert qrels == {f"q{number}": {f"d{number}": 1} for number in range(5)}
    assert corpus["d0"] == "T0 passage 0" and len(corpus) == 6 and held_out == {"q3": "query 3", "q4": "query 4"}
    commit = commit_id(tmp_path / "set")
    assert source == {"revision": commit, "corpus_revision": commit}


def test_a_data_set_can_be_pinned_to_a_revision(revised, series, refused, tmp_path):
    now, before = (commit_id(revised["datasets"][PAIRS][revision]) for revision in ("main", "v1"))
    with hub(revised) as endpoint:
        ask, sizes = series(endpoint), {}
        for revision, commit in (("v1", before), (before, before), ("main", now), (now, now)):
            folder = tmp_path / revision
            sizes[revision] = ask("data", DATASET=f"{PAIRS}@{revision}:default", DATA_DIR=str(folder))
            assert made_with(folder)["revision"] == commit
        assert sizes["v1"] == sizes[before] != sizes["main"] == sizes[now]
        assert f"no revision v2 of the dataset {PAIRS}" in ask("data", DATASET=f"{PAIRS}@v2")
        assert f"no revision v2 of the dataset {CORPUS}" in ask("data", DATASET=PAIRS, CORPUS=f"{CORPUS}@v2")
    ask = series(refused, HF_HUB_OFFLINE="1")  # of what is in the cache, the last was loaded last
    assert ask("data", DATASET=f"{PAIRS}@{now}", DATA_DIR=str(tmp_path / "offline")) == sizes[now]
    assert made_with(tmp_path / "offline")["revision"] == now
    other = ask("data", DATASET=f"{PAIRS}@{before}", DATA_DIR=str(tmp_path / "other"))
    assert f"has the revision {now}, not {before}" in other and not (tmp_path / "other").exists()


def test_a_model_can_be_pinned_to_a_revision(repositories, revised, series, refused):
    now, before = (commit_id(revised["models"][BASE][revision]) for revision in ("main", "v1"))
    with hub(revised) as endpoint:
        ask = series(endpoint)
        (content, latest), (pinned_content, pinned) = ask("model"), ask("model", BASE_MODEL=f"{BASE}@v1")
        assert (content, pinned_content) == (now, before)
        assert ask("model", BASE_MODEL=f"{BASE}@{before}") == [before, pinned]
        folder, size = ask("folder", BASE_MODEL=f"{BASE}@v1")
        weights = repositories["models"][BASE] / "model.safetensors"
        assert folder.endswith(f"/{before}") and size == weights.stat().st_size
        assert f"no revision v2 of the model {BASE}" in ask("model", BASE_MODEL=f"{BASE}@v2")
        endpoint.server.repositories = repositories  # v1 under its other name
        assert ask("model") == [before, pinned] and pinned != latest
    ask = series(refused, HF_HUB_OFFLINE="1")
    assert ask("model", BASE_MODEL=f"{BASE}@v1") == [before, pinned]
    assert ask("model", BASE_MODEL=f"{BASE}@{now}") == [now, latest]
