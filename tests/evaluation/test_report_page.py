"""The report page: its numbers by hand, its safety, and its use in a real browser."""

import json
import re
import time
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest

from embedding_finetune.artifacts.manifest import (
    MANIFEST,
    TRAINING_LOG,
    write_checksummed,
    write_manifest,
)
from embedding_finetune.data.collection import Collection
from embedding_finetune.evaluation import report_page as report
from embedding_finetune.evaluation.conclusion import conclusion, verdict
from embedding_finetune.evaluation.plots import training_logs
from embedding_finetune.evaluation.results import RESULT
from embedding_finetune.evaluation.significance import add_significance
from embedding_finetune.evaluation.tables import planned_table
from embedding_finetune.files import UserError, sha256, write_jsonl
from embedding_finetune.retrieval.trec import write_run

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
QRELS = {query: dict.fromkeys(sorted(passages), 1) for query, passages in JUDGED.items()}
QRELS["q2"]["p1"] = 0  # judged, but no answer
COLLECTION = Collection(QUERIES | {"q6": "a training query"}, PASSAGES, QRELS | {"q6": {"p0": 1}},
                        dict.fromkeys(QUERIES, "test") | {"q6": "train"})


def comparison_rows(labels, values, chosen, planned):
    """Rows as results.compare makes them, around random per-query values."""
    frames = {label: pd.DataFrame(value, columns=METRICS) for label, value in zip(labels, values)}
    ready = max((label for label in labels if label != "tuned"), key=lambda label: frames[label]["mrr@10"].mean())
    finalist = {"queries": 400, "stability": 1, "is_default": False, "on": "dev"}
    rows = [{"label": label, "model": f"models/{label}", "system": {"retriever": label}, "dataset": "small",
             "finalist": finalist if label in ("tuned", ready) else None,
             "metrics": frame.mean().to_dict(), "dev": frame.mean().to_dict(),
             **({"recipe": label} if label == "tuned" else {}),
             "chosen": label == chosen, **({} if label == "bm25" else {"note": "read much; or little"})}
            for label, frame in frames.items()]
    return add_significance(rows, frames, planned, resamples=200)


def write_result(settings, label):
    """The part of a result that belongs to the run file as it is now."""
    result = {name: kind() for name, kind in RESULT.items()}
    result |= {"system": {"retriever": label}, "runs": {"test": sha256(settings.paths.run(label))}}
    write_checksummed(settings.paths.result(label), result)


@pytest.fixture
def evidence(settings):
    """A test set with the runs of three models, a comparison and a training log, loaded."""
    for label, run in RUNS.items():
        scored = {query: {passage: 1 / rank for rank, passage in enumerate(passages.split(), 1)}
                  for query, passages in run.items()}
        write_run(settings.paths.run(label), scored, label)
        write_result(settings, label)
    values = np.random.default_rng(0).random((3, 400, 5)) / 2
    values[1] += 0.4  # tuned is distinguishably better than the two others
    write_jsonl(settings.output_dir / "tuned" / "training_log.jsonl",
                [{"step": step, "loss": 2 / step, "learning_rate": 1e-5} for step in range(1, 1001)]
                + [{"step": step, "recall@10": 0.5 + step / 4000, "mrr@10": 0.4} for step in (500, 1000)])
    rows = comparison_rows(RUNS, values, "tuned", [("tuned", "raw"), ("tuned", "bm25")])
    return report.load(settings, COLLECTION, rows)


def test_ranks_and_curves_by_hand(evidence):
    ranks = evidence.first_ranks()
    assert evidence.query_ids == list(QUERIES)  # the test part alone
    assert ranks.T.to_numpy().tolist() == [[2, 1, 3, 101, 101], [1, 2, 1, 1, 101], [3, 101, 2, 2, 101]]
    assert evidence.rankings["bm25"][1, :4].tolist() == [4, 1, -1, -1]
    # bm25: q1 finds half at 2, the rest at 4; q2 at 1; q3 at 3; q4 and q5 never
    assert evidence.recall_curve("bm25")[:5] == pytest.approx([1 / 5, 1.5 / 5, 2.5 / 5, 3 / 5, 3 / 5])


def test_doubtful_errors_by_hand(evidence):
    near, liked = evidence.suspected_false_negatives, evidence.favourites
    assert near == [[2], [], [], [], []]  # p2 for p1; p7 has 4 of the 10 word 5-grams of p5
    assert liked.tolist() == [2, 5, 4, 1, 1]  # p2, p4, p1 by bm25 and raw, p5 by tuned and raw, p1 by all
    doubts = report.suspected_label_errors(evidence)
    assert doubts.loc["bm25"].tolist() == [4, 1, 4] and doubts.loc["tuned"].tolist() == [2, 0, 2]  # all but q2; q2, q5
    two = replace(evidence, rankings={label: evidence.rankings[label] for label in ("bm25", "tuned")})
    assert two.favourites.tolist() == [-1, -1, -1, -1, 1]  # one of two is not most


def test_training_curves_are_thinned_and_optional(evidence, settings):
    logs, damaged = training_logs(settings, list(RUNS))
    curves = report.training_curves(logs)
    assert set(curves) == {"tuned"} and len(curves["tuned"]["loss"]) == 250  # means of 4 steps each
    assert curves["tuned"]["loss"][0] == pytest.approx([2.5, (2 + 1 + 2 / 3 + 0.5) / 4], abs=1e-5)
    assert curves["tuned"]["recall@10"] == [[500, 0.625], [1000, 0.75]] and not damaged


def test_a_damaged_training_log_is_named_on_the_page(evidence, settings, open_page):
    """Of a finished model, by its manifest."""
    path, record = settings.output_dir / "tuned" / TRAINING_LOG, settings.output_dir / "tuned" / MANIFEST
    said = f"{path} is missing or damaged, so the curves of this training may be wrong."
    whole = path.read_text()

    def named(content):
        path.write_text(whole)
        write_manifest(path.parent)
        path.write_text(content) if content is not None else path.unlink()
        return open_page(report.write_page(settings, evidence)).locator("#damaged").inner_text()

    for damaged in (whole.replace("0.5", "0.6"), whole[:-200], "", None):
        assert named(damaged) == said
    assert named(whole) == ""
    record.unlink()  # unfinished: the last line may be incomplete
    path.write_text(whole[:-3])
    assert training_logs(settings, RUNS)[1] == []


def test_a_run_of_another_corpus_is_named(evidence, settings):
    settings.paths.run("raw").write_text("".join(f"{query} Q0 p9 1 1.0 raw\n" for query in QUERIES))
    write_result(settings, "raw")
    with pytest.raises(UserError, match="the run of raw ranks the passage 'p9', which is not in the corpus"):
        report.load(settings, COLLECTION, evidence.rows)


def test_the_page_says_of_each_pair_what_the_notebooks_say(evidence):
    rows = {row["label"]: row for row in report.page_data(evidence, {}, [])["rows"]}

    def seen(one, other):
        return rows[one]["against"][other]["mrr@10"]

    assert seen("tuned", "raw")["verdict"] == seen("raw", "tuned")["verdict"] == "tuned is better"
    assert seen("bm25", "raw")["verdict"] == seen("raw", "bm25")["verdict"] == verdict("either", seen("raw", "bm25"))
    assert seen("bm25", "raw")["verdict"].startswith("exploration: ")
    assert seen("tuned", "raw")["significant"] is seen("raw", "tuned")["significant"] is True
    assert seen("bm25", "raw")["significant"] is False  # no planned comparison


class Scripts(HTMLParser):
    def __init__(self):
        super().__init__()
        self.found = []

    def handle_starttag(self, tag, attributes):
        self.found += [[dict(attributes), ""]] if tag == "script" else []

    def handle_data(self, data):
        if self.found and self.cdata_elem == "script":
            self.found[-1][1] += data


def test_page_is_one_file_and_no_text_escapes_its_data(evidence, settings):
    path = report.write_page(settings, evidence)
    page, scripts = path.read_text(encoding="utf-8"), Scripts()
    scripts.feed(page)
    assert path == settings.output_dir / "report.html"
    assert len(scripts.found) == 2  # the data and the program, nothing from a passage
    data = json.loads(scripts.found[0][1])
    assert data["passages"][data["positives"][3][0]] == NASTY.replace("\ud800", "?")
    truncated = [text for text in data["passages"] if text.endswith(" … (truncated)")]
    assert [len(text) for text in truncated] == [report.PASSAGE_CHARACTERS + 14]
    assert PASSAGES["p0"] not in data["passages"] and data["passages"][data["near"][0][0]] == PASSAGES["p2"]
    assert not re.search(r"""(src|href)=["'](?!data:)|url\(|@import|https?://(?!www\.w3\.org/2000/svg)""", page)


# In a browser ---------------------------------------------------------------------------------------------------------

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


@pytest.fixture
def page(evidence, settings, open_page):
    return open_page(report.write_page(settings, evidence))


def shown_queries(page):
    return page.locator("#table tbody tr td:first-child").all_inner_texts()


def test_filter_search_sort_and_open_a_query_by_keyboard_alone(page):
    press, count = page.keyboard.press, page.locator("#count").inner_text
    focused = lambda: page.evaluate("document.activeElement.id || document.activeElement.dataset.label")  # noqa: E731
    assert count() == "5 of 5 queries"
    press("/")
    assert focused() == "search"
    page.keyboard.type("MOONS q3")
    assert shown_queries(page) == [QUERIES["q3"]]
    for _ in "MOONS q3":
        press("Backspace")
    for _ in range(30):  # on to the condition of bm25
        press("Tab")
        if focused() == "bm25":
            break
    press("w")  # "wrong"
    assert count() == "4 of 5 queries" and page.locator("#active").inner_text() == "bm25 wrong"
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
    page.locator("tr.row[data-at='0']:focus").wait_for(timeout=5000)  # the row looked at last, once the event came
    assert not page.locator("dialog").is_visible()
    assert page.evaluate("window.hacked") is None


def test_presets(page):
    for cut, expected in (("1", {"right": 0, "wrong": 1, "disagree": 4, "several": 1, "doubt": 5}),
                          ("3", {"right": 2, "wrong": 1, "disagree": 2})):  # beyond rank 3: q4 in bm25, q2 in raw
        page.select_option("#cut", cut)
        for preset, number in expected.items():
            page.select_option("#preset", preset)
            assert page.locator("#count").inner_text() == f"{number} of 5 queries", (cut, preset)


def table(page, name):
    """The rows of a table of pairs as they read; the minus sign as a hyphen."""
    rows = page.locator(f"#{name} tbody tr").all()
    return [[" ".join(cell.split()).replace("−", "-") for cell in row.locator("th, td").all_inner_texts()]
            for row in rows]


def test_planned_comparisons_are_those_of_the_notebooks(page, evidence):
    for metric in METRICS:
        page.select_option("#metric", metric)
        expected = [[line["pair"], line["difference"] + " " + line["95 % interval"][1:-1].replace(", ", " … "),
                     line["p"].replace("(", "").replace(")", ""), line["wins / ties / losses"], line["verdict"]]
                    for line in planned_table(evidence.rows, metric).to_dict("records")]
        assert table(page, "planned") == expected and len(expected) == 2
    assert "Best on dev queries: tuned." in page.locator("#planned caption").inner_text()
    assert page.locator("#planned .win").count() == 2 and page.locator("#pairs .loss").count() == 0


def test_one_model_is_shown_against_all_others(page, evidence):
    assert page.locator("#model").input_value() == "tuned"  # the one that dev chose
    assert [row[0] for row in table(page, "pairs")] == sorted(
        ("bm25", "raw"), key=lambda label: -evidence.rows[list(RUNS).index(label)]["metrics"]["recall@1"])
    assert page.locator("#pairs .win").count() == 2
    page.focus("#model")
    page.keyboard.type("bm25")
    against = evidence.rows[0]["against"]
    rows = {row[0].replace(" best on dev", ""): row[1:] for row in table(page, "pairs")}
    assert set(rows) == {"tuned", "raw"} and page.locator("#pairs .loss").count() == 1
    for label, (difference, p, wins, said) in rows.items():
        pair = against[label]["recall@1"]
        low, high = pair["ci95"]
        assert difference == f"{pair['difference']:+.3f} {low:+.3f} … {high:+.3f}"
        assert p == f"{pair['p_value']:.4f} {'Holm' if label == 'tuned' else 'uncorrected'}"
        assert wins == f"{pair['wins']} / {pair['ties']} / {pair['losses']}"
        assert said == ("tuned is better" if label == "tuned" else verdict("raw", pair))
    assert rows["raw"][3].startswith("exploration: ")


def test_a_difference_leads_to_the_queries_behind_it(page):
    ways = page.locator("#planned")
    count, active = page.locator("#count").inner_text, page.locator("#active").inner_text
    ways.get_by_role("button", name=re.compile("queries that tuned answers and bm25 does not")).press("Enter")
    assert count() == "3 of 5 queries" and set(active().split(", ")) == {"tuned right", "bm25 wrong"}
    assert page.evaluate("document.activeElement.dataset.at") == "0"
    ways.get_by_role("button", name=re.compile("queries that bm25 answers and tuned does not")).press("Enter")
    assert count() == "1 of 5 queries" and shown_queries(page) == [QUERIES["q2"]]
    page.select_option("#metric", "recall@10")  # then an answer is a positive among the first 10
    ways.get_by_role("button", name=re.compile("queries that tuned answers and raw does not")).press("Enter")
    assert shown_queries(page) == [QUERIES["q2"]]
    ways.get_by_role("button", name=re.compile("queries that raw answers and tuned does not")).press("Enter")
    assert count() == "0 of 5 queries" and page.evaluate("document.activeElement.ariaLabel") == "Table: queries"


def test_numbers_of_the_page_are_those_of_the_comparison(page, evidence):
    ranked = sorted(evidence.rows, key=lambda row: -row["metrics"]["recall@1"])
    shown = page.locator("#comparison tbody tr").all_inner_texts()
    for row, text in zip(ranked, shown, strict=True):  # best first
        assert row["label"] in text and ("best on dev" in text) == (row["label"] == "tuned")
        for metric in METRICS:
            low, high = row["ci95"][metric]
            assert f"{row['metrics'][metric]:.3f}" in text and f"{low:.3f} – {high:.3f}" in text
    assert page.locator("#doubts tbody tr", has_text="bm25").inner_text().split() == ["bm25", "4", "1", "4"]
    assert "1 of 5 test queries have several positives" in page.locator("#several").inner_text()
    assert page.locator("#training svg[role=img]").count() == 3
    said = page.locator("#take").inner_text()
    assert said == conclusion(evidence.rows) and said.startswith("Use models/tuned (tuned, fine-tuned)")
    assert page.locator("#notes dd").all_inner_texts() == ["read much; or little"]  # once, with its labels
    assert set(page.locator("#notes dt").inner_text().split(", ")) == {"tuned", "raw"}


def test_a_model_alone_is_compared_with_nothing(evidence, settings, open_page):
    evidence.rows = comparison_rows(["bm25"], np.random.default_rng(0).random((1, 9, 5)), None, [])
    page = open_page(report.write_page(settings, evidence))
    assert page.locator("#one").is_hidden() and table(page, "planned") == []
    assert "None yet: evaluate a fine-tuned model" in page.locator("#planned caption").inner_text()
    assert page.locator("#count").inner_text() == "5 of 5 queries"


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    """A page of 31 models with long labels, a note each, and a training curve."""
    rng, queries, passages = np.random.default_rng(3), 60, 200
    labels = [f"hybrid_hard_kd_round{number}_seed{number}" for number in range(31)]
    values = (rng.random((31, queries, 5)) < np.linspace(0.3, 0.7, 31)[:, None, None]).astype(float)
    chosen, planned = labels[7], [(labels[7], label) for label in labels[:9] if label != labels[7]]
    rows = comparison_rows(labels, values, chosen, planned)
    judged = np.stack([np.arange(queries), rng.integers(0, passages, queries)], axis=1)
    rankings = {label: np.stack([rng.permutation(passages)[:100] for _ in range(queries)]) for label in labels}
    evidence = report.ReportData(rows, list(map(str, range(queries))), [f"what is {word}" for word in range(queries)],
                               [f"passage {number}" for number in range(passages)], judged, rankings)
    logs = {label: pd.DataFrame({"loss": 1 / np.arange(1, 9)}, np.arange(1, 9)) for label in labels}
    path = tmp_path_factory.mktemp("many") / "report.html"
    path.write_bytes(report.render(report.page_data(evidence, logs, [])))
    return path, labels


@pytest.mark.parametrize("width", [360, 1300, 1900])
def test_thirty_one_models_never_make_the_page_scroll_sideways(many, open_page, width):
    path, labels = many
    page = open_page(path, viewport={"width": width, "height": 900})
    assert len(table(page, "pairs")) == 30 and len(table(page, "planned")) == 8
    for summary in page.locator("summary").all():
        summary.click()
    assert page.locator("#histograms svg").count() == 31 and page.locator("#conditions select").count() == 31
    assert page.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0
    inside = "nodes => nodes.every(node => node.getBoundingClientRect().right <= innerWidth + 1)"
    for name in ("planned", "pairs", "comparison"):  # whole, without scrolling in their regions either
        assert page.locator(f"#{name} td").evaluate_all(inside), name
    assert page.locator("#recall text").evaluate_all("""nodes => nodes.every(node => {
        const box = node.getBoundingClientRect(), card = node.closest('.card').getBoundingClientRect();
        return box.right <= card.right && box.bottom <= card.bottom && box.top >= card.top;
    })""")
    if width > 640:  # columns that do not fit are reached by scrolling their region, the query stays in sight
        region = page.get_by_role("region", name="Table: queries")
        region.evaluate("node => node.scrollLeft = 9999")
        last, first = (page.locator(f"tr.row td >> nth={place}").bounding_box() for place in (31, 0))
        assert last["x"] + last["width"] <= width and first["x"] >= 0
    page.locator("tr.row").first.click()
    assert page.locator(".side section").count() == 31
    assert page.evaluate("document.getElementById('body').scrollWidth - innerWidth") <= 0


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_no_two_models_look_alike(many, open_page, scheme):
    page = open_page(many[0], viewport={"width": 1300, "height": 900}, color_scheme=scheme)
    lines = page.locator("#recall polyline").evaluate_all("""lines => lines.map(line => {
        const canvas = document.createElement('canvas').getContext('2d');
        canvas.fillStyle = getComputedStyle(line).stroke;
        canvas.fillRect(0, 0, 1, 1);
        return [line.getAttribute('stroke-dasharray') ?? '', ...canvas.getImageData(0, 0, 1, 1).data.slice(0, 3)];
    })""")
    assert len(set(map(tuple, lines))) == len({tuple(line[1:]) for line in lines}) == 31
    ground = 250 if scheme == "light" else 27
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert max(abs(int(value) - ground) for value in re.findall(r"\d+", background)) < 12
    for dash in {line[0] for line in lines}:
        colours = np.array([line[1:] for line in lines if line[0] == dash], float)
        assert 7 <= len(colours) <= 8  # so few share a dash, and are far apart
        apart = np.abs(colours[:, None] - colours[None]).sum(axis=2)
        assert apart[~np.eye(len(colours), dtype=bool)].min() > 60
        assert min(_contrast(colour, ground) for colour in colours) > 3  # what WCAG asks of graphics


def _contrast(colour, ground):
    def luminance(rgb):
        channels = np.array(rgb) / 255
        channels = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
        return channels @ [0.2126, 0.7152, 0.0722]

    darker, lighter = sorted([luminance(colour), luminance([ground] * 3)])
    return (lighter + 0.05) / (darker + 0.05)


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
    rows = comparison_rows(labels, rng.random((8, 100, 5)), "model3", [("model3", "model0")])
    evidence = report.ReportData(rows, list(map(str, range(queries))), asked, texts, judged, rankings)
    path, start = tmp_path / "report.html", time.perf_counter()
    path.write_bytes(report.render(report.page_data(evidence, {}, [])))
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
