"""The report page: its numbers by hand and against pytrec_eval, its safety, and its use in a real browser."""

import json
import re
import shutil
import time
from html.parser import HTMLParser
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from embedding_finetune import explore, trec
from embedding_finetune.files import ExperimentError, write_json, write_jsonl
from embedding_finetune.pairs import containment, word_grams
from embedding_finetune.significance import add_significance

NASTY = "</script><script>window.hacked = 1</script><!-- <b>&amp; \u2028 caf\u00e2\x80\x99 \x00 \ud800"
PASSAGES = {  # p2 is p1 in other clothes, p7 shares words with p5, p3 is the second positive of q1; no run finds p0
    "p0": "nobody looks for this passage",
    "p1": "the capital of france is paris which lies on the river seine in the north",
    "p2": "Note: the capital of France is Paris, which lies on the river Seine in the north!",
    "p3": "paris has been the capital since the middle ages and is the seat of government",
    "p4": "bread is made of flour water yeast and salt and is baked in an oven until brown",
    "p5": "a completely unrelated passage about the orbits of the moons of the planet jupiter",
    "p6": NASTY,
    "p7": "a completely unrelated passage about the orbits of other things" + " and so on" * 150}
QUERIES = {"q1": "capital of france", "q2": "how is bread made", "q3": "moons of jupiter", "q4": f"nasty {NASTY}",
           "q5": "too hard"}
JUDGED = {"q1": {"p1", "p3"}, "q2": {"p4"}, "q3": {"p5"}, "q4": {"p6"}, "q5": {"p3"}}
RUNS = {"bm25": {"q1": "p2 p1 p4 p3", "q2": "p4 p1", "q3": "p4 p3 p5 p7", "q4": "p1 p2", "q5": "p1 p2"},
        "tuned": {"q1": "p1 p3 p2", "q2": "p5 p4", "q3": "p5 p1", "q4": "p6 p1", "q5": "p1"},
        "raw": {"q1": "p2 p5 p3", "q2": "p5 p1", "q3": "p4 p5", "q4": "p1 p6", "q5": "p1 p4"}}
METRICS = ["recall@1", "recall@10", "recall@100", "mrr@10", "ndcg@10"]


def comparison_rows(labels, values):
    """Rows as comparison.json has them, around random per-query values."""
    frames = {label: pd.DataFrame(value, columns=METRICS) for label, value in zip(labels, values)}
    rows = [{"label": label, "model": f"models/{label}", "dataset": "small", "metrics": frame.mean().to_dict()}
            for label, frame in frames.items()]
    return add_significance(rows, frames, resamples=200)


@pytest.fixture
def folders(tmp_path):
    """A test set, and a folder with the runs, the comparison and a training log."""
    qrels = {query: dict.fromkeys(sorted(passages), 1) for query, passages in JUDGED.items()}
    qrels["q2"]["p1"] = 0  # judged, but no answer
    for label, run in RUNS.items():
        scored = {query: {passage: 1 / rank for rank, passage in enumerate(passages.split(), 1)}
                  for query, passages in run.items()}
        trec.write_run(tmp_path / "runs" / f"{label}.trec", scored, label)
    values = np.random.default_rng(0).random((3, 400, 5)) / 2
    values[1] += 0.4  # tuned is distinguishably better than the two others
    rows = comparison_rows(RUNS, values)
    write_json(tmp_path / "results" / "comparison.json", rows)
    write_jsonl(tmp_path / "tuned" / "training_log.jsonl",
                [{"step": step, "loss": 2 / step, "learning_rate": 1e-5} for step in range(1, 1001)]
                + [{"step": step, "recall@10": 0.5 + step / 4000, "mrr@10": 0.4} for step in (500, 1000)])
    return SimpleNamespace(queries=QUERIES, corpus=PASSAGES, qrels=qrels), tmp_path


def test_ranks_and_curves_by_hand(folders):
    evidence = explore.load(*folders)
    ranks = evidence.first_ranks()
    assert ranks.T.to_numpy().tolist() == [[2, 1, 3, 101, 101], [1, 2, 1, 1, 101], [3, 101, 2, 2, 101]]
    assert evidence.rankings["bm25"][1, :4].tolist() == [4, 1, -1, -1]
    # bm25: q1 finds half at 2, the rest at 4; q2 at 1; q3 at 3; q4 and q5 never
    assert evidence.recall_curve("bm25")[:5] == pytest.approx([1 / 5, 1.5 / 5, 2.5 / 5, 3 / 5, 3 / 5])


def test_recall_curve_agrees_with_pytrec_eval():
    import pytrec_eval
    rng = np.random.default_rng(1)
    rankings = np.stack([rng.permutation(300)[:100] for _ in range(50)]).astype(np.int32)
    judged = np.array([(query, passage) for query in range(50)
                       for passage in rng.choice(300, rng.integers(1, 5), replace=False)])
    evidence = explore.Evidence([{"label": "m"}], list(range(50)), [""] * 50, [""] * 300, judged, {"m": rankings})
    qrels = {f"q{q}": {f"d{p}": 1 for p in judged[judged[:, 0] == q, 1]} for q in range(50)}
    run = {f"q{q}": {f"d{p}": 1 / (rank + 1) for rank, p in enumerate(row)} for q, row in enumerate(rankings)}
    for k in (1, 5, 10, 100):
        values = pytrec_eval.RelevanceEvaluator(qrels, {f"recall_{k}"}).evaluate(run).values()
        assert evidence.recall_curve("m")[k - 1] == pytest.approx(np.mean([value[f"recall_{k}"] for value in values]))


def test_containment_by_hand():
    grams = word_grams("One, two three: four five six")
    assert grams == {"one two three four five", "two three four five six"}
    assert containment(grams, word_grams("zero one two three four five")) == 0.5
    assert containment(grams, word_grams("x one two three four five six y z")) == 1
    assert word_grams("two words") == {"two words"}


def test_doubtful_errors_by_hand(folders):
    evidence = explore.load(*folders)
    near, liked = explore.near_duplicates(evidence), explore.favourites(evidence)
    assert near == [[2], [], [], [], []]  # p2 for p1; p7 has 4 of the 10 word 5-grams of p5
    assert liked.tolist() == [2, 5, 4, 1, 1]  # p2, p4, p1 by bm25 and raw, p5 by tuned and raw, p1 by all
    assert explore.doubtful_errors(evidence, near, liked).loc["bm25"].tolist() == [4, 1, 4]  # all but q2
    assert explore.doubtful_errors(evidence, near, liked).loc["tuned"].tolist() == [2, 0, 2]  # q2 and q5
    evidence.rankings = {label: evidence.rankings[label] for label in ("bm25", "tuned")}
    assert explore.favourites(evidence).tolist() == [-1, -1, -1, -1, 1]  # one of two is not most


def test_exemplary_cases_show_where_one_model_beats_another(folders):
    cases = explore.exemplary_cases(explore.load(*folders), "tuned", "bm25")
    deepest_first = [QUERIES["q4"].replace("\ud800", "?"), QUERIES["q3"], QUERIES["q1"]]
    assert cases["query"].tolist() == deepest_first
    assert cases["positive under bm25"].tolist() == ["not among the first 100", "rank 3", "rank 2"]
    assert cases["first of bm25"].tolist() == [PASSAGES["p1"], PASSAGES["p4"], PASSAGES["p2"]]
    assert cases["first of tuned (a positive)"][1] == PASSAGES["p5"]
    assert explore.exemplary_cases(explore.load(*folders), "tuned", "tuned").empty


def test_training_curves_are_thinned_and_optional(folders):
    curves = explore.training_curves(folders[1], list(RUNS))
    assert set(curves) == {"tuned"} and len(curves["tuned"]["loss"]) == 250  # means of 4 steps each
    assert curves["tuned"]["loss"][0] == pytest.approx([2.5, (2 + 1 + 2 / 3 + 0.5) / 4], abs=1e-5)
    assert curves["tuned"]["recall@10"] == [[500, 0.625], [1000, 0.75]]


@pytest.mark.parametrize("file, content, message", [
    ("results/comparison.json", None, "made by the evaluation notebooks"),
    ("runs/raw.trec", None, "made by the evaluation notebooks"),
    ("runs/raw.trec", "q1 Q0 p9 1 1.0 raw\n", "raw.trec does not belong to this test set .'p9'"),
    ("runs/raw.trec", "q1 Q0 p1 1 1.0 raw\n", "raw.trec does not belong to this test set .'q2'"),
])
def test_what_does_not_fit_together_is_named(folders, file, content, message):
    test_set, output = folders
    (output / file).unlink() if content is None else (output / file).write_text(content)
    with pytest.raises(ExperimentError, match=message):
        explore.write_report(test_set, output)


class Scripts(HTMLParser):
    def __init__(self):
        super().__init__()
        self.found = []

    def handle_starttag(self, tag, attributes):
        self.found += [[dict(attributes), ""]] if tag == "script" else []

    def handle_data(self, data):
        if self.found and self.cdata_elem == "script":
            self.found[-1][1] += data


def test_page_is_one_file_and_no_text_escapes_its_data(folders):
    page = explore.write_report(*folders).read_text(encoding="utf-8")
    scripts = Scripts()
    scripts.feed(page)
    assert len(scripts.found) == 2  # the data and the program, nothing from a passage
    data = json.loads(scripts.found[0][1])
    assert data["passages"][data["positives"][3][0]] == NASTY.replace("\ud800", "?")
    assert [len(text) for text in data["passages"] if text.endswith(" … (cut)")] == [explore.PASSAGE_CHARACTERS + 8]
    assert PASSAGES["p0"] not in data["passages"] and data["passages"][data["near"][0][0]] == PASSAGES["p2"]
    assert not re.search(r"""(src|href)=["'](?!data:)|url\(|@import|https?://(?!www\.w3\.org/2000/svg)""", page)


# In a browser ---------------------------------------------------------------------------------------------------------

FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
         "--disable-component-update", "--disable-sync"]


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api", reason="the package playwright is not installed")
    executable = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if executable is None:
        pytest.skip("no browser found (chromium, chromium-browser or google-chrome)")
    with playwright.sync_playwright() as driver:
        with driver.chromium.launch(executable_path=executable, args=FLAGS) as chromium:
            yield chromium


@pytest.fixture
def open_page(browser):
    """Opens a page file; at the end of the test, fails if the browser had anything to complain about."""
    complaints, contexts = [], []

    def opened(path, **options):
        contexts.append(browser.new_context(**options))
        page = contexts[-1].new_page()
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", lambda request: complaints.append(request.url) if request.url.startswith("http") else None)
        page.goto(path.as_uri())
        return page

    yield opened
    for context in contexts:
        context.close()
    assert complaints == []


def shown_queries(page):
    return page.locator("#table tbody tr td:first-child").all_inner_texts()


def test_filter_search_sort_and_open_a_query_by_keyboard_alone(folders, open_page):
    page = open_page(explore.write_report(*folders))
    press, count = page.keyboard.press, page.locator("#count").inner_text
    focused = lambda: page.evaluate("document.activeElement.id || document.activeElement.dataset.label")  # noqa: E731
    assert count() == "5 of 5 queries"
    press("/")
    assert focused() == "search"
    page.keyboard.type("MOONS q3")
    assert shown_queries(page) == [QUERIES["q3"]]
    for _ in "MOONS q3":
        press("Backspace")
    for _ in range(20):  # on to the condition of bm25
        press("Tab")
        if focused() == "bm25":
            break
    press("w")  # "wrong"
    assert count() == "4 of 5 queries"
    page.select_option("#conditions [data-label=tuned]", "right")
    assert [text[:9] for text in shown_queries(page)] == ["capital o", "moons of ", "nasty </s"]
    page.focus("#table thead [data-key=bm25]")
    press("Enter"), press("Enter")  # twice: descending
    assert [text[:5] for text in shown_queries(page)] == ["nasty", "moons", "capit"]
    assert page.locator("th[aria-sort=descending]").inner_text() == "bm25 ↓"
    page.focus("#search")
    press("ArrowDown"), press("ArrowDown"), press("ArrowDown"), press("Enter")
    assert page.locator("dialog #query").inner_text() == QUERIES["q1"]
    assert page.locator("#position").inner_text() == "3 of 3 · id q1"
    bm25 = page.locator(".side section", has=page.locator("h3", has_text="bm25"))
    first, second = bm25.locator("li").all_inner_texts()[:2]
    assert "≈ near-duplicate of a positive" in first and "✓" not in first
    assert "✓ positive" in second and PASSAGES["p1"] in second
    press("ArrowLeft"), press("ArrowLeft")
    assert page.locator("#query").inner_text().startswith("nasty </script><script>window.hacked")
    press("Escape")
    page.locator("tr.row[data-at='0']:focus").wait_for(timeout=5000)  # the row looked at last; the close event comes a moment later
    assert not page.locator("dialog").is_visible()
    assert page.evaluate("window.hacked") is None


def test_presets(folders, open_page):
    page = open_page(explore.write_report(*folders))
    for cut, expected in (("1", {"right": 0, "wrong": 1, "disagree": 4, "several": 1, "doubt": 5}),
                          ("3", {"right": 2, "wrong": 1, "disagree": 2})):  # beyond rank 3: q4 in bm25, q2 in raw
        page.select_option("#cut", cut)
        for preset, number in expected.items():
            page.select_option("#preset", preset)
            assert page.locator("#count").inner_text() == f"{number} of 5 queries", (cut, preset)


def test_a_difference_leads_to_the_queries_behind_it(folders, open_page):
    page = open_page(explore.write_report(*folders))
    page.get_by_role("button", name=re.compile("tuned − bm25: p = ")).press("Enter")
    assert page.locator("#count").inner_text() == "3 of 5 queries"
    assert page.evaluate("document.activeElement.dataset.at") == "0"


def test_numbers_of_the_page_are_those_of_the_comparison(folders, open_page):
    page = open_page(explore.write_report(*folders))
    for row in json.loads((folders[1] / "results" / "comparison.json").read_text()):
        text = page.locator("#comparison tbody tr", has_text=f"models/{row['label']}").inner_text()
        for metric in METRICS:
            low, high = row["ci95"][metric]
            assert f"{row['metrics'][metric]:.3f}" in text and f"{low:.3f} – {high:.3f}" in text
    assert page.locator("#comparison tbody tr sup").all_inner_texts() == ["bc"] * 5 + [""] * 10
    assert page.locator("#pairs .win").count() == page.locator("#pairs .loss").count() == 2
    assert page.locator("#pairs tbody tr").first.locator(".win").count() == 2
    assert page.locator("#doubts tbody tr", has_text="bm25").inner_text().split() == ["bm25", "4", "1", "4"]
    assert "1 of 5 test queries have several positives" in page.locator("#several").inner_text()
    assert page.locator("#training svg").count() == 3


@pytest.mark.parametrize("options", [{"viewport": {"width": 360, "height": 740}, "is_mobile": True, "has_touch": True},
                                     {"viewport": {"width": 1280, "height": 800}, "color_scheme": "dark"}])
def test_fits_a_phone_and_a_dark_screen(folders, open_page, options):
    page = open_page(explore.write_report(*folders), **options)
    assert page.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0
    page.locator("tr.row").first.click()
    assert page.evaluate("document.getElementById('body').scrollWidth - innerWidth") <= 0
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, re.findall(r"\d+", background))) < 200) == (options.get("color_scheme") == "dark")


def test_seven_thousand_queries_and_eight_models(tmp_path, open_page):
    rng, queries, passages, labels = np.random.default_rng(2), 7000, 8000, [f"model{i}" for i in range(8)]
    words = np.array([f"w{i}" for i in range(3000)])
    texts = [" ".join(words[rng.integers(0, 3000, 55)]) for _ in range(passages)]
    judged = np.stack([np.arange(queries), rng.integers(0, passages, queries)], axis=1)
    rankings = {}
    for label in labels:
        rankings[label] = rng.integers(0, passages, (queries, 100), dtype=np.int32)
        hit = rng.random(queries) < 0.9
        rankings[label][np.flatnonzero(hit), rng.geometric(0.6, hit.sum()) - 1] = judged[hit, 1]
    asked = [" ".join(words[rng.integers(0, 3000, 6)]) for _ in range(queries)]
    evidence = explore.Evidence(comparison_rows(labels, rng.random((8, 100, 5))), list(map(str, range(queries))), asked,
                                texts, judged, rankings)
    path, start = tmp_path / "report.html", time.perf_counter()
    path.write_bytes(explore.render(explore.page_data(evidence, {})))
    assert time.perf_counter() - start < 20 and path.stat().st_size < 12e6
    start = time.perf_counter()
    page = open_page(path)
    page.wait_for_selector("tr.row")
    assert time.perf_counter() - start < 20  # half a second on two idle cores
    milliseconds = page.evaluate("""() => {
        const start = performance.now(), node = document.querySelector('#conditions select');
        node.value = 'wrong';
        node.dispatchEvent(new Event('change', {bubbles: true}));
        sort('model3');
        document.getElementById('search').value = 'w1';
        select();
        document.body.offsetHeight;  // waits for the layout
        return performance.now() - start;
    }""")
    ranks = evidence.first_ranks()
    wrong = np.flatnonzero(ranks[page.locator("#conditions select").first.get_attribute("data-label")] > 1)
    expected = sum("w1" in f"{evidence.queries[query]} {query}" for query in wrong)
    assert page.locator("#count").inner_text() == f"{expected:,} of 7,000 queries" and milliseconds < 3000
    assert page.locator("tr.row").count() == 50  # one page of the table, whatever was found
