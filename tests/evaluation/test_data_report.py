import json
from dataclasses import replace
from statistics import NormalDist

import numpy as np
import pytest
import transformers
from tiny import tiny_bert

from embedding_finetune.data.collection import Collection, read_data
from embedding_finetune.evaluation import data_report as module
from embedding_finetune.evaluation.data_report import (
    MEASURED,
    length_advice,
    minimum_detectable_effect,
    report_data,
    summary_sentences,
    suspicious_pairs,
    token_lengths,
)
from embedding_finetune.evaluation.plots import plot_lengths
from embedding_finetune.files import UserError, content_hash
from embedding_finetune.models.encoder_config import base_encoder_config
from embedding_finetune.settings import ROOT

PAIRS = {
    "equal": ("Where does the otter sleep?", "where does  the otter SLEEP?"),
    "inside": ("how otters sleep", "Read how otters sleep: they rest in dens under willows."),
    "two words": ("otter den", "An otter den has two entrances, one of them under water."),
    "part of a word": ("how otters sleep", "Somehow otters sleepwalk; nobody has ever found out why they do."),
    "chinese": ("水獭的洞", "我们在河边找到了水獭的洞，里面铺着干草。"),
    "other way": ("an otter sleeps in its den, is that true?", "otter sleeps in its den"),
    "tags": ("who was here", "<p>The otter slept here for a week, then it left.</p>"),
    "no tags": ("is a < b and b > a",
                "Here a < b holds, and List<T> is a type of Java; fish & chips; ask &otter; him."),
    "entities": ("the otter&#39;s den", "The otter&#x27;s den &mdash; by the river &amp; under a willow."),
    "entity": ("what is here", "It&#x27;s the otter."),
    "broken": ("what do people say", "They said itâ€™s a lovely den, and the river wasn\u2019t far from it."),
    "lost": ("what was lost", "This den had a na\ufffdme that nobody can read any more."),
    "image": ("what does the den look like", "It looks like ![den](data:image/png;base64,iVBORw0KGgo=) this."),
    "short": ("what is it", "an otter"),
    "fine": ("Wo schläft der Otter?", "Bei Tag ruht er in einer Höhle am Ufer, wie die Flößer oft erzählten."),
}


def collection_of(pairs):
    queries = {name: query for name, (query, _) in pairs.items()}
    return Collection(queries, {f"p-{name}": passage for name, (_, passage) in pairs.items()},
                      {name: {f"p-{name}": 1} for name in queries}, dict.fromkeys(queries, "train"))


def test_suspicious_pairs_are_told_by_kind():
    found = suspicious_pairs(collection_of(PAIRS), np.random.default_rng(0))
    assert found.pop("of") == len(PAIRS)
    assert {kind: own["queries"] for kind, own in found.items()} == {
        "query and passage are equal": ["equal"], "query occurs in the passage": ["inside", "chinese"],
        "passage occurs in the query": ["other way"], "HTML tags": ["tags"], "HTML entities": ["entities", "entity"],
        "images within the text (data: URIs)": ["image"], "mojibake": ["broken", "lost"],
        "passage of fewer than 3 words": ["short"]}
    assert found["HTML entities"] == {"pairs": 2, "share": 2 / len(PAIRS), "queries": ["entities", "entity"],
                                      "share of texts": 3 / (2 * len(PAIRS))}


def test_of_very_many_pairs_a_seeded_sample_is_looked_at(monkeypatch):
    monkeypatch.setattr(module, "TEXTS", 4)
    found = [suspicious_pairs(collection_of(PAIRS), np.random.default_rng(seed)) for seed in (1, 1, 2)]
    assert found[0] == found[1] != found[2] and found[0]["of"] == 4


def test_lengths_are_those_of_the_tokenizer(tmp_path, settings):
    collection = collection_of(PAIRS)
    model = tiny_bert(tmp_path / "bert", [*collection.queries.values(), *collection.corpus.values()][:6])
    config = replace(base_encoder_config(settings), name=str(model), query_prompt="ask: ", query_max_len=10,
                     passage_max_len=20)
    found = token_lengths(config, collection, np.random.default_rng(0))
    tokenizer = transformers.AutoTokenizer.from_pretrained(model)
    for side, texts, prompt, limit in (("queries", collection.queries, "ask: ", 10),
                                       ("passages", collection.corpus, "", 20)):
        ids = [tokenizer(prompt + text)["input_ids"] for text in texts.values()]
        sizes = np.array([len(row) for row in ids])
        own = found[side]
        assert own["cut"] == np.mean(sizes > limit) and own["longest"] == sizes.max() and own["limit"] == limit
        assert own["median"] == np.sort(sizes)[len(PAIRS) // 2] and sum(own["histogram"]) == own["of"] == len(PAIRS)
        assert own["unknown"] == sum(row.count(tokenizer.unk_token_id) for row in ids) / sizes.sum()
    assert found["passages"]["unknown"] > 0 and found["most"] == 512 and 0 < found["passages"]["cut"] < 1
    figure = plot_lengths(found)
    assert [axis.get_title() for axis in figure.axes][1] == f"passages, {found['passages']['cut']:.1%} truncated at 20"


def test_the_test_set_is_measured_by_the_formula():
    """Among 3 comparisons, at 5 %, with probability 0.8: z of 1 - 0.05 / 6 and of 0.8."""
    quantile, share, gap = NormalDist().inv_cdf, 0.3, 0.05
    wanted = (quantile(1 - 0.05 / 6) * share**0.5 + quantile(0.8) * (share - gap**2) ** 0.5) ** 2 / gap**2
    found = minimum_detectable_effect(400, {"disagree": share})
    assert found["needed"]["0.05"] == pytest.approx(wanted, rel=0.001)
    assert list(found["needed"].values()) == sorted(found["needed"].values(), reverse=True)
    for size in (400, 2000):
        tells = minimum_detectable_effect(size, {"disagree": share})["tells"]
        assert [(quantile(1 - 0.05 / 6) * share**0.5 + quantile(0.8) * (share - step**2) ** 0.5) ** 2 / step**2 <= size
                for step in (tells, tells - 0.01)] == [True, False]
    assert minimum_detectable_effect(3)["tells"] is None and minimum_detectable_effect(400)["disagree"] == 0.2
    assert minimum_detectable_effect(400, {"disagree": 0.0})["tells"] < 0.05  # as many disagree as the gap needs


def test_a_report_says_what_is_there_and_is_the_same_again(built):
    collection = read_data(built)
    report = report_data(built, collection, {"rows read": 120})
    path = built.data_dir / "dataset_report.json"
    assert json.loads(path.read_text(encoding="utf-8")) == report and report["reading"] == {"rows read": 120}
    counts = report["counts"]
    of_parts = sum(counts[f"{part} queries"] for part in ("train", "dev", "test"))
    assert counts["queries"] == len(collection.queries) == of_parts
    uses = {passage: sum(passage in own for own in collection.qrels.values()) for passage in collection.corpus}
    assert counts["passages that answer several queries"] == sum(count > 1 for count in uses.values()) > 0
    assert counts["pairs"] == sum(uses.values()) and counts["passages that answer nothing"] == 0
    look = report["first_look"]
    assert look["queries"] == counts["dev queries"] and look["passages"] == len(collection.corpus)
    assert look["bm25"]["recall@1"] > 0.5 and 0 <= look["base"]["recall@1"] <= 1 and look["bm25_language"]
    assert report["test_set"]["disagree"] == look["disagree"]
    pair = look["bm25_to_base"]
    assert pair["difference"] == pytest.approx(look["bm25"]["recall@1"] - look["base"]["recall@1"])
    assert pair["ci95"][0] <= pair["difference"] <= pair["ci95"][1] and 0 < pair["p_value"] <= 1
    assert pair["wins"] + pair["ties"] + pair["losses"] == look["queries"]
    first = content_hash(report)
    assert content_hash(report_data(built, collection, {"rows read": 120})) == first
    without = report_data(built, collection, {}, baseline_check=False)
    assert "first_look" not in without and without["test_set"]["disagree"] == 0.2


def test_the_baseline_check_is_small_whatever_the_size(built, monkeypatch):
    monkeypatch.setattr(module, "CHECK_QUERIES", 2)
    monkeypatch.setattr(module, "CHECK_PASSAGES", 20)
    look = report_data(built, read_data(built), {})["first_look"]
    assert (look["queries"], look["passages"]) == (2, 20)


def report_of(**changes):
    """A report without a fault, but for the changes."""
    fine = {"of": 100, "limit": 48, "cut": 0.0, "unknown": 0.0, "95 %": 30}
    none = {"pairs": 0, "share": 0.0, "queries": [], "share of texts": 0.0}
    kinds = dict.fromkeys([*module.PAIR_PROBLEMS, *module.TEXT_PROBLEMS], none)
    return {"tokens": {"queries": fine, "passages": fine | {"limit": 96} | changes.pop("passages", {}), "model": "bert",
                       "most": 512},
            "suspicious": {"of": 100, **kinds, **changes.pop("suspicious", {})},
            "near_duplicates": {"of": 100, "passages": 0, "share": 0.0}, "languages": {"queries": {"en (Latin)": 1.0},
                                                                                     "passages": {"en (Latin)": 1.0}},
            "test_set": minimum_detectable_effect(1000)} | changes


def test_the_sentences_say_the_most_frequent_first():
    assert summary_sentences(report_of()) == [
        "No problems found.",
        "The 1000 test queries can detect a difference of 0.05 in recall@1 or more (at 95%, if two models disagree on "
        "20% of the queries); queries needed: about 21,000 for 0.01, 5,200 for 0.02, 840 for 0.05, 210 for 0.1."]
    said = summary_sentences(report_of(
        passages={"cut": 0.3, "95 %": 700, "unknown": 0.4},
        suspicious={"HTML entities": {"pairs": 35, "share": 0.35, "queries": ["a", "b"], "share of texts": 0.2},
                    "mojibake": {"pairs": 0, "share": 0.009, "queries": ["c"], "share of texts": 0.005}},
        near_duplicates={"of": 50, "passages": 4, "share": 0.08},
        languages={"queries": {"en (Latin)": 1.0}, "passages": {"zh (CJK)": 0.9, "en (Latin)": 0.1}}))
    starts = ["Fix first: the queries are in en (Latin), the passages in zh (CJK), en (Latin): they share few",
              "Then: bert has no vocabulary entry for 40.0% of the tokens of the passages",
              "Then: HTML entities: 35 of 100 pairs (20.0% of the texts), such as query a, b; decode them",
              "Then: PASSAGE_MAX_LEN=96 truncates 30.0% of the passages: raise it to 512, the most that",
              "Then: 4 of 50 passages are near-duplicates of another one"]
    assert len(said) == 6 and all(one.startswith(start) for one, start in zip(said, starts))


@pytest.mark.parametrize("limit, sizes, most, advice", [
    (96, (97, 120, 200), 512, "raise it to 97, which fits 95 %"),
    (96, (96, 120, 200), 512, "raise it to 120, which fits 99 %"),
    (96, (36, 40, 97), 512, "raise it to 97, which fits all"),
    (96, (36, 96, 600), 512, "raise it to 512, the most that"),
    (96, (97, 120, 200), 97, "raise it to 97, which fits 95 %"),
    (96, (98, 120, 200), 97, "raise it to 97, the most that"),
    (96, (97, 120, 200), 96, "the model reads no more than 96 tokens"),
    (96, (36, 40, 97), 96, "the model reads no more")])
def test_no_advice_is_below_the_present_limit(limit, sizes, most, advice):
    assert length_advice({"limit": limit} | dict(zip(("95 %", "99 %", "longest"), sizes)), most).startswith(advice)


def test_two_times_nothing_is_no_lead():
    said = summary_sentences(report_of(first_look=look_of(0.0, 0.0, 0.0, 1.0)))[1]
    assert said == ("Neither BM25 nor the untrained base model ranks a positive first for any of 80 dev queries: check "
                    "that the queries belong to the passages.")


def look_of(bm25, base, half=0.01, p=0.001):
    """A baseline check with these values of recall@1; the interval of the difference has the half-width `half`."""
    pair = {"difference": bm25 - base, "ci95": [bm25 - base - half, bm25 - base + half], "p_value": p}
    return {"queries": 80, "passages": 900, "bm25": {"recall@1": bm25}, "base": {"recall@1": base},
            "bm25_to_base": pair}


@pytest.mark.parametrize("bm25, base, half, p, hint", [
    (0.95, 0.5, 0.01, 0.001, "little to gain"), (0.6, 0.5, 0.01, 0.001, "BM25 is ahead: fine-tuning"),
    (0.5, 0.6, 0.01, 0.001, "the base model is already ahead: fine"),
    (0.6, 0.5, 0.2, 0.3, "no significant difference"), (0.5, 0.6, 0.2, 0.3, "no significant difference"),
    (0.5, 0.5, 0.0, 1.0, "no significant difference"),
    (0.6, 0.5, 0.2, 0.01, "BM25 is ahead, though the interval includes 0: fine-tuning")])
def test_the_baseline_check_is_put_into_words(bm25, base, half, p, hint):
    said = summary_sentences(report_of(first_look=look_of(bm25, base, half, p)))[1]
    assert said.startswith(f"Of 80 dev queries over 900 passages, BM25 ranks a positive first for {bm25:.1%}")
    assert hint in said


@pytest.mark.parametrize("bm25, base, told", [
    (0.50, 0.58, "On MS MARCO, where the base model was 0.09 ahead, single-vector fine-tuning gained +0.00"),
    (0.50, 0.52, "On docstrings, where the base model was 0.02 ahead, single-vector fine-tuning gained +0.07"),
    (0.50, 0.28, "On COVID-QA, where the base model was 0.20 behind, single-vector fine-tuning gained +0.14"),
    (0.80, 0.02, ""), (0.30, 0.60, "")])
def test_what_training_brought_where_it_was_alike_stands_beside_the_baseline_check(bm25, base, told):
    said = summary_sentences(report_of(first_look=look_of(bm25, base)))[1]
    assert told in said and ("where the base model was" in said) == bool(told)


def test_what_training_brought_is_what_was_measured():
    rows = {(row["claim"], row["label"]): row["metrics"].get("recall@1") for row in json.loads(
        (ROOT / "benchmarks" / "claims" / "results.json").read_text())}
    names = {"MS MARCO": "msmarco", "docstrings": "docstrings", "COVID-QA": "covidqa"}
    for name, (lead, gain) in MEASURED.items():
        bm25, base, tuned = (rows[names[name], label] for label in ("bm25", "reference", "single"))
        assert (lead, gain) == pytest.approx((base - bm25, tuned - base), abs=0.005)


def test_a_base_that_cannot_be_had_is_one_line(built):
    with pytest.raises(UserError):
        report_data(replace(built, base_model="./nowhere"), read_data(built), {})
