"""The public results: a small claim runs from its data to its rows; the committed rows are complete, and on pages."""

import importlib.util
import json
import sys
import tomllib
from functools import partial
from unittest import mock

import pytest
from datasets import Dataset

from embedding_finetune.files import UserError
from embedding_finetune.settings import ROOT
from embedding_finetune.training.train import finetune


def imported(folder, name):
    with mock.patch.object(sys, "path", [str(ROOT / folder), *sys.path]):
        spec = importlib.util.spec_from_file_location(name, ROOT / folder / f"{name}.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    return module


claims, result_tables = imported("benchmarks", "claims"), imported("docs", "result_tables")
NAMES = claims.claim_names()
ROWS = json.loads(claims.RESULTS.read_text(encoding="utf-8"))
OURS = [row for row in ROWS if not row.get("published")]


@pytest.mark.parametrize("name", NAMES)
def test_each_claim_is_valid_and_its_published_rows_are_those_of_the_results(name):
    claim = claims.read_claim(name)
    assert len(claim["first_test_query"]) == 64 and claim["baseline"] in claim["systems"]
    assert claims.published_rows(claim) == [row for row in ROWS if row["claim"] == name and row.get("published")]


def test_each_row_is_complete_and_within_its_interval():
    keys = {"claim", "system", "label", "trained", "parameters", "metrics", "ci95", "seeds", "minutes", "hardware",
            "leak_free", "commit", "date", "queries", "corpus", "by_training"}
    assert len({(row["claim"], row["label"], row["leak_free"]) for row in OURS}) == len(OURS)
    for row in OURS:
        assert keys <= set(row) and row["trained"] == (row["seeds"] > 0), row["label"]
        assert all(low <= row["metrics"][name] <= high for name, (low, high) in row["ci95"].items())
        groups = row["by_training"].values()
        assert sum(group["queries"] for group in groups) in (0, row["queries"])


@pytest.mark.parametrize("page", result_tables.PAGES)
def test_the_tables_of_a_page_are_the_rows(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    assert result_tables.filled(text) == text, "run python docs/result_tables.py"


def test_a_split_is_that_of_datasets(tmp_path):
    rows = [{"query": f"q{number}", "pos": [f"p{number}"]} for number in range(23)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    path = claims.with_split(tmp_path / "rows.jsonl", tmp_path / "split.jsonl", {"seed": 42, "test": 0.2})
    found = [json.loads(line) for line in path.read_text().splitlines()]
    theirs = Dataset.from_list(rows).train_test_split(test_size=0.2, train_size=0.8, seed=42)
    for part in ("train", "test"):
        assert {row["query"] for row in found if row["split"] == part} >= set(theirs[part]["query"])
    assert found[0]["query"] == theirs["test"]["query"][0] and found[4]["split"] == "test" != found[5]["split"]


@pytest.fixture
def small(built, tiny_settings, tmp_path, monkeypatch):
    """A claim on 40 pairs with a random BERT; returns its folder of claims and the function that runs it."""
    rows = [json.loads(line) for line in (tmp_path / "data" / "queries.jsonl").read_text().splitlines()]
    texts = {row["_id"]: row["text"] for row in rows}
    data, folder = tmp_path / "published" / "small", tmp_path / "claims"
    (data / "qrels").mkdir(parents=True)
    folder.mkdir()
    for name in ("corpus.jsonl", "queries.jsonl"):
        (data / name).write_text((tmp_path / "data" / name).read_text())
    judged = {part: (tmp_path / "data" / "qrels" / f"{part}.tsv").read_text().splitlines()[1:]
              for part in ("train", "dev", "test")}
    leak = f"{judged['train'][0].split(chr(9))[0]}\t{judged['test'][0].split(chr(9))[1]}\t1"
    for part, lines in {"train": [*judged["train"], *judged["dev"], leak], "test": judged["test"]}.items():
        (data / "qrels" / f"{part}.tsv").write_text("\n".join(["query-id\tcorpus-id\tscore", *lines]) + "\n")
    first = texts[judged["test"][0].split("\t")[0]]
    claim = {"title": "A small claim", "source": "a page", "license": "none", "folder": "small", "rows": len(texts),
             "passages": len((data / "corpus.jsonl").read_text().splitlines()), "baseline": "bm25",
             "first_test_query": claims.hashlib.sha256(first.encode()).hexdigest(),
             "settings": {"BASE_MODEL": tiny_settings["BASE_MODEL"], "REFERENCE_MODEL": tiny_settings["BASE_MODEL"],
                          "BASE_POOLING": "mean", "REFERENCE_POOLING": "mean", "DEV_FRACTION": 0.2},
             "systems": {"bm25": "BM25", "single": "tiny BERT", "hybrid_single": "tiny BERT + BM25"},
             "published": [{"system": "theirs", "trained": True, "parameters": 5, "metrics": {"ndcg@10": 0.5}}]}
    (folder / "recipes.toml").write_text('[single]\nsettings = { BATCH_SIZE = 8, EPOCHS = 1 }\n')
    monkeypatch.setattr(claims, "CLAIMS", folder)
    monkeypatch.setattr(claims, "RESULTS", folder / "results.json")
    monkeypatch.setattr(claims, "ROOT", tmp_path)
    monkeypatch.setattr(claims, "commit", lambda: "abc")
    monkeypatch.setattr(claims, "finetune", partial(finetune, one_process=True))
    monkeypatch.setenv("CLAIMS_DATA", str(tmp_path / "published"))

    def run(*words, **changes):
        (folder / "small.toml").write_text(toml(claim | changes))
        monkeypatch.setattr("sys.argv", ["claims.py", "small", *words])
        claims.main()
        return {(row["label"], row.get("leak_free")): row for row in json.loads(claims.RESULTS.read_text())}
    return folder, run


def toml(claim):
    """The text of a claim file: JSON's values are TOML's."""
    plain = [f"{key} = {json.dumps(value)}" for key, value in claim.items() if not isinstance(value, dict | list)]
    tables = [f"[{key}]\n" + "\n".join(f"{name} = {json.dumps(value)}" for name, value in claim[key].items())
              for key in ("settings", "systems")]
    inline = [", ".join(f"{json.dumps(name)} = {json.dumps(value)}" for name, value in row["metrics"].items())
              for row in claim["published"]]
    published = [f'[[published]]\nsystem = "{row["system"]}"\ntrained = true\nparameters = 5\nmetrics = {{ {metrics} }}'
                 for row, metrics in zip(claim["published"], inline)]
    text = "\n".join([*plain, *tables, *published])
    tomllib.loads(text)
    return text


def test_a_claim_goes_from_its_data_to_rows_and_a_table(small):
    folder, run = small
    rows = run("--seeds", "2")
    assert set(rows) == {(None, None), ("bm25", True), ("single", True), ("hybrid_single", True)}
    row = rows["single", True]
    assert row["seeds"] == 2 and row["trained"] and row["parameters"] > 0 and row["minutes"] >= 0
    assert row["against"]["ndcg@10"]["difference"] == pytest.approx(
        row["metrics"]["ndcg@10"] - rows["bm25", True]["metrics"]["ndcg@10"], abs=1e-6)
    rows = run("bm25", "--published-split")
    assert set(rows) >= {("bm25", True), ("bm25", False)}  # the rows before stay
    groups = rows["bm25", False]["by_training"]
    assert groups["seen"]["queries"] + groups["unseen"]["queries"] == rows["bm25", False]["queries"]
    table = result_tables._claim([rows[None, None]],
                                 [row for row in rows.values() if row.get("leak_free")])
    assert "| published: theirs | 0 M | 0.500 | | |" in table and "| BM25 | |" in table


def test_test_queries_take_no_part_in_a_claim(small, monkeypatch):
    """A run whose test queries are answered by nothing selects and trains the same."""
    folder, run = small
    first = run()
    output = folder.parent / "output" / "claims" / "small" / "leak_free"
    weights = (output / "single" / "model.safetensors").read_bytes()
    results = json.loads((output / "results" / "hybrid_single.json").read_text())
    assert first["single", True]["dev"] == json.loads((output / "results" / "single.json").read_text())["dev"]["mrr@10"]
    output.rename(folder.parent / "before")
    data = folder.parent / "published" / "small"
    test = {line.split("\t")[0] for line in (data / "qrels" / "test.tsv").read_text().splitlines()[1:]}
    rows = [json.loads(line) for line in (data / "queries.jsonl").read_text().splitlines()]
    wrong = [row | {"text": f"zzz {row['_id']}"} if row["_id"] in test else row for row in rows]
    (data / "queries.jsonl").write_text("".join(json.dumps(row) + "\n" for row in wrong))
    first_test = next(row["text"] for row in wrong if row["_id"] == next(iter(
        line.split("\t")[0] for line in (data / "qrels" / "test.tsv").read_text().splitlines()[1:])))
    run(first_test_query=claims.hashlib.sha256(first_test.encode()).hexdigest())
    assert (output / "single" / "model.safetensors").read_bytes() == weights
    again = json.loads((output / "results" / "hybrid_single.json").read_text())
    assert again["parameters"] == results["parameters"] and again["dev"] == results["dev"]
    assert again["metrics"] != results["metrics"]


@pytest.mark.parametrize("changes, message", [
    ({"rows": 7}, "is not the data of small: rows is"), ({"passages": 7}, "passages is"),
    ({"first_test_query": "0" * 64}, "first_test_query is"), ({"folder": "nowhere"}, "set CLAIMS_DATA to the folder"),
    ({"title": 5}, "title is missing, or not a str"),
    ({"published": [{"system": "theirs", "metrics": {"map@100": 0.5}}]}, "the runs do not provide map@100"),
])
def test_a_claim_without_its_data_is_one_line(small, changes, message):
    with pytest.raises(UserError, match=message):
        small[1]("bm25", **changes)
    assert not claims.RESULTS.exists()


def test_an_unknown_claim_or_system_is_one_line(small, monkeypatch):
    with pytest.raises(UserError, match="small has no system nonsense"):
        small[1]("nonsense")
    monkeypatch.setattr("sys.argv", ["claims.py", "large"])
    with pytest.raises(UserError, match="there is no claim 'large': choose one of small"):
        claims.main()
