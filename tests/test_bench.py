"""All benchmarks in one file: figures come to their place, what fails changes nothing, the page says what is there."""

import json
import re
import shutil
import subprocess
import sys
from unittest import mock

import numpy as np
import pytest

from embedding_finetune.files import UserError
from embedding_finetune.models.encoder import Encoder
from embedding_finetune.models.encoder_config import EncoderConfig
from embedding_finetune.settings import ROOT

with mock.patch.object(sys, "path", [str(ROOT / "benchmarks"), *sys.path]):
    import bench
    import bench_index
    import bench_million
    import bench_questions
    import bench_rows


def test_figures_are_merged_into_their_section_with_when_and_where(tmp_path, monkeypatch):
    monkeypatch.setattr(bench, "RESULTS", tmp_path / "results.json")
    monkeypatch.setattr(bench, "PAGE", tmp_path / "results.md")
    found = {"search": {"time_ratio_bare_search": 0.5}, "index": {"ann_recall@10": 0.96, "ann_gb": 0.6}}
    monkeypatch.setattr(bench, "measure", found.get)
    monkeypatch.setattr(sys, "argv", ["bench.py", "search", "index"])
    bench.main()
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["search"] == found["search"] | found["index"] and set(results["measured"]) == {"search", "index"}
    assert "cores" in results["measured"]["index"]
    page = (tmp_path / "results.md").read_text()
    assert "| approximate search: share of the exact first ten | 0.96 |" in page and "encoding" not in page


def test_without_names_all_are_measured_but_what_needs_something_first(tmp_path, monkeypatch):
    measured = []
    for name, value in {"RESULTS": tmp_path / "results.json", "PAGE": tmp_path / "page", "measure": (
            lambda section: measured.append(section) or {})}.items():
        monkeypatch.setattr(bench, name, value)
    monkeypatch.setattr(sys, "argv", ["bench.py"])
    bench.main()
    assert set(bench.SECTIONS) - set(measured) == {*bench.WHERE_NAMED} and len(measured) == len(set(measured)) == 11
    monkeypatch.setattr(sys, "argv", ["bench.py", "tea"])
    with pytest.raises(SystemExit):
        bench.main()


def test_a_benchmark_that_fails_is_one_line_and_changes_nothing(tmp_path, monkeypatch):
    (tmp_path / "bench_encode.py").write_text("print('half'); raise SystemExit(3)")
    (tmp_path / "results.json").write_text('{"encode": {"share_of_limit": 0.5}}')
    for name, value in {"HERE": tmp_path, "RESULTS": tmp_path / "results.json", "PAGE": tmp_path / "page"}.items():
        monkeypatch.setattr(bench, name, value)
    monkeypatch.setattr(sys, "argv", ["bench.py", "encode"])
    with pytest.raises(UserError, match=r"the benchmark encode failed \(exit status 3\)"):
        bench.main()
    assert json.loads((tmp_path / "results.json").read_text()) == {"encode": {"share_of_limit": 0.5}}


def test_random_negatives_are_measured_beside_the_loop():
    done = subprocess.run([sys.executable, ROOT / "benchmarks" / "bench_negatives.py", "--queries", "300",
                           "--rounds", "1"], capture_output=True, text=True, check=True)
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["ratio_tutorial_loop"] > 10 and found["ratio_tutorial_loop_50"] > 10
    assert set(bench.SAID["negatives"]) <= set(found)


def test_rows_by_id_are_measured_beside_json_lines(tmp_path):
    def measured(name, folder, label):
        return bench_rows.task(name, settings, label, queries=100, words=12)

    settings = bench_rows.settings_of(tmp_path)
    found = bench_rows.figures(measured, tmp_path)
    assert set(bench.SAID["rows"]) <= set(found) and found["write_gb"] >= found["collection_gb"]
    assert found["mb"] < found["mb_50"] < 2 * found["mb"] < found["mb_export"]
    assert {path.name for path in tmp_path.glob("*.json")} == {
        "training_neg_10.json", "training_neg_10.made.json", "training_neg_50.made.json"}


def test_index_types_are_measured_by_size_and_recall():
    vectors = np.random.default_rng(1).normal(size=(3000, 32)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    exact, codes = (bench_index.measure(where, vectors, vectors[:30]) for where in ("flat", "SQ8"))
    assert exact["recall"] == 1 and exact["GB"] == pytest.approx(3000 * 32 * 4 / 1e9)
    assert codes["recall"] > 0.95 and codes["GB"] == pytest.approx(3000 * 32 / 1e9, rel=0.05)
    found = bench_index.candidates(1_000_000, 32)
    assert found["IVF, scalar-quantised"] == "IVF4096,SQ8 nprobe=256" and found["flat"] == "flat"


def test_recombined_passages_are_made_of_sentences_and_each_is_another():
    texts = [f"This is {name} of them. Another one says {name}? And {name} ends it." for name in "abcdefgh"]
    made = list(bench_million.recombined([{"pos": texts[:5]}, {"pos": texts[5:]}], 13_000))  # of 24 ** 3
    assert len(set(made)) == 13_000 and made == list(bench_million.recombined([{"pos": texts}], 13_000))
    assert all(len(re.findall(r"(This|Another|And) .*?[.?]", text)) == 3 for text in made)


def test_a_random_model_has_vectors_of_the_dimensions_wanted(tiny_settings, tmp_path, monkeypatch):
    monkeypatch.setenv("PAIRS", tiny_settings["DATASET"])
    bench_million.make_model(tmp_path / "model", 48)
    config = EncoderConfig("raw", "random", str(tmp_path / "model"), "mean", "", "", 32, 32, dense="2_Dense")
    assert Encoder(config).encode_queries(["when does the otter sleep"]).shape == (1, 48)


def test_steps_that_were_killed_end_as_those_that_were_not(tiny_settings, built_once, tmp_path):
    names = ["search bm25"]
    commands = {name: bench_million.steps("when does the otter sleep")[name] for name in names}
    here, there = tmp_path / "undisturbed", tmp_path / "interrupted"
    for folder in (here, there):
        shutil.copytree(built_once, folder / "data")
    seconds, memory = bench_million.undisturbed(here, tiny_settings, commands)
    assert set(seconds) == set(names) and 0.05 < max(memory.values()) < 3
    while_it_starts = {"search bm25": 0.3}
    died = bench_million.interrupted(there, tiny_settings, commands, while_it_starts, 2)
    assert sum(died.values()) == 2
    assert json.loads((there / "output" / "search bm25.answer").read_text())[0]["rank"] == 1
    assert bench_million.differences(here, there) == []
    (there / "data" / "queries.jsonl").write_text("")
    (there / "output" / "search bm25.answer").unlink()
    assert bench_million.differences(here, there) == ["data/queries.jsonl", "output/search bm25.answer"]


def test_questions_count_as_answered_at_the_rank_of_a_right_function():
    class Index:
        def answer(self, queries, k):
            sources = {"a": ["other (x 1)", "f (x 1)"], "b": ["g (x 1)"], "c": [None, *["other (x 1)"] * 5, "h (x 1)"]}
            return [[{"rank": rank, **({"source": source} if source else {})} for rank, source in
                     enumerate(sources.get(query, []), start=1)][:k] for query in queries]

    questions = [{"query": "a", "names": ["f"]}, {"query": "b", "names": ["f", "g"]}, {"query": "c", "names": ["h"]},
                 {"query": "d", "names": ["f"]}]
    assert bench_questions.answered(Index(), questions) == {"hit@1": 1, "hit@5": 2, "hit@10": 3}


def test_there_are_thirty_questions_which_the_package_does_not_read():
    questions = [json.loads(line) for line in bench_questions.QUESTIONS.read_text(encoding="utf-8").splitlines()]
    assert len({row["query"] for row in questions}) == len(questions) == 30 and all(row["names"] for row in questions)
    read = [path for path in (ROOT / "embedding_finetune").rglob("*.py") if "questions.jsonl" in path.read_text()]
    assert not read, "a system that was selected on these questions is not measured by them"


def test_the_committed_figures_are_those_of_the_page():
    if not bench.RESULTS.exists():
        pytest.skip("no figures are committed")
    results = json.loads(bench.RESULTS.read_text())
    assert bench.PAGE.read_text() == bench.page(results)
    places = {place for _, place in bench.SECTIONS.values()}
    assert set(results) <= places | {"measured"}
