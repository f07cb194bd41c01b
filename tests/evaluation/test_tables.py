"""Tables and plots: that they follow the numbers, whatever these are."""

import json
from dataclasses import asdict

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from embedding_finetune.artifacts.manifest import TRAINING_LOG, write_manifest
from embedding_finetune.data.collection import Collection
from embedding_finetune.evaluation import plots, tables
from embedding_finetune.evaluation.conclusion import conclusion
from embedding_finetune.evaluation.results import finalists, planned_pairs
from embedding_finetune.evaluation.significance import add_significance
from embedding_finetune.files import write_jsonl
from embedding_finetune.retrieval.system import System

METRICS = ["recall@1", "recall@10", "mrr@10"]


@pytest.fixture(autouse=True)
def no_figure_stays_open():
    yield
    plt.close("all")


def pair(difference, p, half=0.02, planned=True, **more):
    """What `against` says of two models, the interval reaching `half` to each side."""
    return {"recall@1": {"difference": difference, "ci95": [difference - half, difference + half], "p_value": p,
                         "planned": planned, "wins": 30, "ties": 950, "losses": 20, **more}}


def row(label, recall, **against):
    return {"label": label, "metrics": {"recall@1": recall}, "ci95": {"recall@1": [recall - 0.03, recall + 0.03]},
            "against": against}


def mirrored(rows):
    """Rows with `against` filled in from the other side."""
    for one in rows:
        for other in rows:
            if other["label"] in one["against"]:
                seen = one["against"][other["label"]]["recall@1"]
                other["against"][one["label"]] = {"recall@1": seen | {
                    "difference": -seen["difference"], "ci95": [-end for end in seen["ci95"][::-1]],
                    "wins": seen["losses"], "losses": seen["wins"]}}
    return rows


ROWS = mirrored([
    row("raw", 0.40, bm25=pair(-0.3, 0.001, planned=False), neg10=pair(-0.31, 0.001), neg50=pair(-0.3, 0.001)),
    row("bm25", 0.70, neg10=pair(-0.01, 0.2, queries_needed=12345), neg50=pair(0.0, 1.0, planned=False)),
    row("neg10", 0.71, neg50=pair(0.01, 0.04, half=0.005, planned=False)), row("neg50", 0.70)])


def test_the_best_model_comes_first_with_its_interval():
    assert list(tables.comparison_table(ROWS, ["recall@1"])["recall@1"].items()) == [
        ("neg10", "0.710 [0.680, 0.740]"), ("bm25", "0.700 [0.670, 0.730]"), ("neg50", "0.700 [0.670, 0.730]"),
        ("raw", "0.400 [0.370, 0.430]")]


def test_only_planned_pairs_may_be_called_better():
    pairs = tables.pairs_table(ROWS).set_index("pair")
    assert pairs["verdict"].to_dict() == {
        "bm25 - raw": "exploration: interval excludes 0", "neg10 - raw": "neg10 is better",
        "neg50 - raw": "neg50 is better", "neg10 - bm25": "not distinguishable; about 12,000 queries would be needed",
        "bm25 - neg50": "exploration: interval includes 0", "neg10 - neg50": "exploration: interval excludes 0"}
    assert pairs.loc["neg10 - bm25"].tolist()[:4] == ["+0.010", "[-0.010, +0.030]", "0.2000 (Holm)", "20 / 950 / 30"]
    assert pairs.loc["neg10 - neg50", "p"] == "0.0400 (uncorrected)"


@pytest.mark.parametrize("how, expected", [
    ({"of": "raw"}, ["bm25 - raw", "neg10 - raw", "neg50 - raw"]),
    ({"of": "raw", "against": ["bm25", "neg10", "absent"]}, ["bm25 - raw", "neg10 - raw"]),
    ({"of": "neg10", "against": ["bm25", "neg10"]}, ["neg10 - bm25"]),  # not all pairs of neg10
    ({"of": "bm25", "against": ["bm25"]}, []), ({"of": "absent"}, []),
    ({"planned": False}, ["bm25 - raw", "bm25 - neg50", "neg10 - neg50"]),
    ({"planned": True}, ["neg10 - raw", "neg50 - raw", "neg10 - bm25"])])
def test_pairs_can_be_picked(how, expected):
    table = tables.pairs_table(ROWS, **how)
    assert (list(table["pair"]) if len(table) else []) == expected


def test_queries_with_passages_seen_in_training_stand_apart():
    parts = {"seen": {"queries": 2, "recall@1": 1.0}, "unseen": {"queries": 3, "recall@1": 0.5}}
    table = tables.seen_table([{**row("neg10", 0.7), "by_training": parts}, {**row("bm25", 0.7), "by_training": {}}])
    assert table.to_dict("records") == [{"model": "neg10", "recall@1 of 2 seen queries": "1.000",
                                         "recall@1 of 3 unseen queries": "0.500"}]
    assert not len(tables.seen_table([row("neg10", 0.7)]))


def many_rows(number=31):
    """Rows as compare makes them, of bm25, raw, reference, fine-tuned models and their repetitions."""
    rng, skill = np.random.default_rng(0), np.random.default_rng(1).random(60)
    labels = ["bm25", "raw", "reference", *(f"neg{place}" for place in range(10, 10 + number - 3))]
    last = "reference", labels[-1]
    frames = {label: pd.DataFrame({metric: (rng.random(60) < skill).astype(float) for metric in METRICS})
              for label in labels}
    rows = [{"label": label, "model": label, "metrics": frame.mean().to_dict(), "dev": {"mrr@10": place},
             "chosen": False, "system": asdict(System(label)),
             "finalist": {"queries": 60, "stability": 1, "is_default": False, "on": "dev"} if label in last else None,
             "by_corpus_size": [{"passages": size, "recall@1": place / size} for size in (100, 200)],
             **({"recipe": label} if label.startswith("neg") else {})}
            for place, (label, frame) in enumerate(frames.items())]
    rows[-1]["chosen"] = True
    return add_significance(rows, frames, planned_pairs(rows), resamples=200)


def test_thirty_one_models_have_tables_and_pictures(settings, monkeypatch):
    monkeypatch.setattr(tables, "recommendation", lambda *_: {"sentence": conclusion(rows)})
    rows = many_rows()
    assert tables.comparison_table(rows).shape == (31, 3) and len(tables.pairs_table(rows)) == 31 * 30 // 2
    assert len(tables.planned_table(rows)) == 3 + 27  # the chosen one against three rivals, the others against neg10
    assert [row["label"] for row in finalists(rows)] == ["reference", "neg37"]  # which is one of the three
    tables.write_comparison(settings, None, rows)
    folder = settings.output_dir / "results"
    assert json.loads((folder / "comparison.json").read_text()) == rows
    text = (folder / "comparison.md").read_text()
    planned, exploration = text.index("**Planned comparisons**"), text.index("**Exploration: all other pairs**")
    assert text.index("| neg20 ") < planned < exploration < text.index(conclusion(rows))
    assert "(Holm)" not in text[exploration:] and "exploration" not in text[planned:exploration]
    assert (folder / "comparison.png").read_bytes().startswith(b"\x89PNG")
    lines = plots.plot_by_corpus_size([*rows, {"label": "hybrid"}]).axes[0].lines  # which has not been measured so
    assert len({(line.get_color(), line.get_linestyle()) for line in lines}) == 31
    assert lines[4].get_xydata().tolist() == [[100, 0.04], [200, 0.02]]


def test_the_plot_marks_the_best_and_the_fine_tuned():
    figure = plots.plot(many_rows(4), names=("recall@1", "mrr@10"))
    axis = figure.axes[0]
    values = {text.get_text(): text.get_fontweight() for text in axis.texts}
    assert [text for text, weight in values.items() if weight == "bold"] == [f"{max(map(float, values)):.3f}"]
    assert [label.get_text() for label in axis.get_yticklabels()] == ["bm25", "raw", "reference", "neg10"]
    assert [line.get_color() for line in axis.lines] == [plots.GREY] * 3 + [plots.ORANGE]


def test_training_curves_are_drawn_and_a_damaged_log_is_named(settings, capsys):
    for label, loss in (("neg10", 1.5), ("neg50", 2.5)):
        write_jsonl(settings.output_dir / label / TRAINING_LOG,
                    [{"step": 0, "mrr@10": 0.1, "recall@10": 0.2}, {"step": 5, "loss": loss, "learning_rate": 1e-5},
                     {"step": 10, "loss": 1.0, "learning_rate": 0.0}])
        write_manifest(settings.output_dir / label)
    losses, recall, mrr = plots.plot_training(settings, ["raw", "neg10", "neg50"]).axes
    assert [line.get_xydata().tolist() for line in losses.lines] == [[[5, 1.5], [10, 1]], [[5, 2.5], [10, 1]]]
    assert recall.lines[0].get_xydata().tolist() == [[0, 0.2]] and mrr.get_title() == "mrr@10 on dev"
    assert [line.get_color() for line in losses.lines] == [line.get_color() for line in mrr.lines]
    assert not plots.plot_training(settings, ["raw"]).axes[0].lines and not capsys.readouterr().out
    path = settings.output_dir / "neg50" / TRAINING_LOG
    path.write_text(path.read_text().replace("2.5", "9.5"))
    plots.plot_training(settings, ["neg10", "neg50"])
    assert capsys.readouterr().out == f"{path} is missing or damaged, so the curves of this training may be wrong\n"


def test_cosines_of_queries_and_their_positives_and_of_random_passages():
    test = Collection({"q1": "", "q2": ""}, {"a": "", "b": ""}, {"q1": {"b": 1}, "q2": {"a": 1}})
    passages = np.array([[1, 0], [0, 1]], np.float32)
    axis = plots.plot_cosines(test, passages[::-1], passages, seed=0).axes[0]  # q1 is b, q2 is a
    highest = [max(bars, key=lambda bar: bar.get_height()).get_x() for bars in axis.containers]
    assert highest == pytest.approx([0.98, 0])
    assert [text.get_text() for text in axis.get_legend().texts] == ["query and positive", "two random passages"]


TEST = Collection({"q1": "first", "q2": "second", "q3": "third", "q4": "none"}, {"a": "passage a", "b": "word " * 40},
                  {"q1": {"a": 1}, "q2": {"a": 0, "b": 1}, "q3": {"b": 1}, "q4": {"a": 1}})
RUN = {"q1": {"a": 0.9, "b": 0.1}, "q2": {"a": 0.9, "b": 0.1}, "q3": {"a": 0.5}, "q4": {}}
BETTER = {"q1": {"b": 0.9, "a": 0.1}, "q2": {"b": 0.9}, "q3": {"b": 0.5}, "q4": {"a": 0.5}}
LONG = "word " * 28 + "…"


def test_examples_show_right_and_wrong_hits():
    right, wrong = (tables.examples(TEST, RUN, right=right) for right in (True, False))
    assert right.to_dict("records") == [
        {"query": "first", "first hit": "passage a", "positive": "passage a", "rank of positive": "1"}]
    assert wrong.to_numpy().tolist() == [["second", "passage a", LONG, "2"], ["third", "passage a", LONG, "beyond 1"],
                                         ["none", "none", "passage a", "beyond 0"]]


def test_changed_queries_are_those_that_one_run_answers_and_the_other_does_not_the_farthest_first():
    changed = tables.changed_queries(TEST, wrong=RUN, right=BETTER)
    assert list(changed) == ["query", "right", "wrong", "rank of positive"]
    assert changed.to_numpy().tolist() == [["third", LONG, "passage a", "beyond 1"],
                                           ["none", "passage a", "none", "beyond 0"],
                                           ["second", LONG, "passage a", "2"]]
    assert tables.changed_queries(TEST, wrong=BETTER, right=RUN)["query"].tolist() == ["first"]
    assert len(tables.changed_queries(TEST, RUN, BETTER, number=2)) == 2
    assert tables.changed_queries(TEST, RUN, RUN).empty


def test_seeds_are_summed_up_with_the_interval_of_one():
    def repeated(label, value, recipe=None):
        return {"label": label, "metrics": {"recall@1": value}, "ci95": {"recall@1": [value - 0.1, value + 0.1]},
                **({"recipe": recipe} if recipe else {})}

    rows = [repeated("raw", 0.3), repeated("neg10", 0.5, "neg10"), repeated("neg10_seed43", 0.6, "neg10"),
            repeated("neg10_seed44", 0.7, "neg10"), repeated("neg50", 0.9, "neg50")]
    table = tables.seeds_table(rows)
    assert list(table.index) == ["neg10"] and table.loc["neg10", "interval of first seed"] == "[0.400, 0.600]"
    assert table.loc["neg10", ["seeds", "mean", "std"]].tolist() == pytest.approx([3, 0.6, 0.1])
    assert tables.seeds_table(rows[:2]).empty


def test_out_of_domain_results_stand_with_the_own_ones_and_their_differences():
    far = {"recall@1": 0.4, "against": {"raw": {"recall@1": {"difference": -0.1, "ci95": [-0.15, -0.05]}}}}
    rows = [{"label": "bm25", "metrics": {"recall@1": 0.5}, "eval_sets": {"far": far}},
            {"label": "raw", "metrics": {"recall@1": 0.4}, "eval_sets": {"far": {"recall@1": 0.5}}},
            {"label": "hybrid", "metrics": {"recall@1": 0.6}, "eval_sets": {}}]
    assert tables.out_of_domain_table(rows).to_dict("index") == {
        "bm25": {"in-domain": "0.500", "far": "0.400", "far, difference to raw": "-0.100 [-0.150, -0.050]"},
        "raw": {"in-domain": "0.400", "far": "0.500", "far, difference to raw": ""}}
    assert tables.out_of_domain_table(rows[2:]).empty
