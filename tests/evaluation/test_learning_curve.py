"""The learning curve against arithmetic by hand and scipy's bootstrap, and what is said of it."""

import dataclasses

import matplotlib.pyplot as plt
import nbformat
import numpy as np
import pytest
import scipy.stats

from embedding_finetune.data.collection import Collection, write_data
from embedding_finetune.evaluation import results
from embedding_finetune.evaluation.learning_curve import follow, learning_curve, plot_curve, summary
from embedding_finetune.evaluation.results import save_result
from embedding_finetune.evaluation.significance import interval
from embedding_finetune.files import UserError
from embedding_finetune.retrieval.system import System
from embedding_finetune.settings import ROOT

TEST, TRAIN = 100, 160
PARTS = {f"q{place}": "test" if place < TEST else "dev" if place < TEST + 5 else "train"
         for place in range(TEST + 5 + TRAIN)}
CORPUS = {f"p{place}": f"passage {place}" for place in range(9)}
DATA = Collection({query: f"question {query}" for query in PARTS}, CORPUS, {query: {"p0": 1} for query in PARTS}, PARTS)
STEADY = {"neg10_eighth": 20, "neg10_quarter": 30, "neg10_half": 40, "neg10": 50}  # test queries that are right


@pytest.fixture
def measured(settings, monkeypatch):
    """The experiment with this data; no model is needed for a result to be current."""
    monkeypatch.setattr(results, "_identity", lambda *_: "its content")
    write_data(settings, DATA, {"source": "synthetic"})
    return settings


@pytest.fixture(autouse=True)
def no_figure_stays_open():
    yield
    plt.close("all")


def save(settings, right, first=0, **more):
    """Results of recipes that have so many test queries right, from the query `first` on."""
    for label, number in right.items():
        runs = {part: {query: {"p0" if first <= place < first + number else "p1": 1.0}
                       for place, query in enumerate(DATA.split(part).queries)} for part in ("test", "dev")}
        save_result(settings, DATA, System(label), runs, model=label,
                    inputs=results.inputs_of(settings, System(label)), **{"recipe": label} | more)


def test_a_curve_that_lies_on_the_line(measured):
    save(measured, {**STEADY, "neg50": 99, "bm25": 40})
    curve = learning_curve(measured, DATA)
    assert list(curve.index) == list(STEADY) and list(curve["queries"]) == [20, 40, 80, 160]
    assert list(curve["value"]) == pytest.approx([0.2, 0.3, 0.4, 0.5]) and list(curve["seeds"]) == [1] * 4
    there, gain = follow(curve, 320)
    assert (there[0], gain[0]) == pytest.approx((0.6, 0.1))
    assert follow(curve, 40)[0][0] == pytest.approx(0.3)
    assert summary(curve).startswith("Each doubling of the training queries gained +0.100 [+0.0")
    assert ("to 4 points from 20 to 160 queries). Twice as many, 320, are expected to reach 0.600 ["
            in summary(curve))
    assert "The last point differs from the line through the others by +0.000 [" in summary(curve)
    assert "no evidence against the line" in summary(curve)


def test_the_interval_of_the_gain_is_that_of_the_queries_own_gains(measured):
    """The gain is linear in the values: each test query has one of its own, and scipy resamples these."""
    save(measured, STEADY)
    right = np.array([[place < number for place in range(TEST)] for number in STEADY.values()], float)
    centred = np.arange(4) - 1.5
    own = centred @ right / (centred**2).sum()
    expected = scipy.stats.bootstrap((own,), np.mean, method="percentile", rng=1).confidence_interval
    _, gain = follow(learning_curve(measured, DATA), 1)
    assert interval(gain[1:]) == pytest.approx([expected.low, expected.high], abs=0.003)
    assert gain[0] == pytest.approx(own.mean()) and gain[1:].std() == pytest.approx(own.std() / 10, rel=0.05)


@pytest.mark.parametrize("right, expected", [
    ({"neg10_half": 40, "neg10": 41}, "too noisy to predict"),
    ({"neg10_half": 40, "neg10": 20}, "More queries made it worse"),
    ({"neg10_quarter": 10, "neg10_half": 50, "neg10": 52}, "the curve flattens, expect less"),
    ({"neg10_quarter": 10, "neg10_half": 12, "neg10": 60}, "no evidence against the line"),
    (STEADY | {"neg10_half_long": 30}, "the remaining queries add +0.200 [+0.1"),
    (STEADY | {"neg10_half_long": 30}, "more pairs help"),
    (STEADY | {"neg10_half_long": 50}, "train longer before you collect more pairs"),
    (STEADY | {"neg10_half_long": 60}, "train longer before you collect more pairs")])
def test_what_is_said_follows_the_numbers(measured, right, expected):
    save(measured, right)
    text = summary(learning_curve(measured, DATA))
    assert expected in text
    assert sum(words in text for words in ("are expected to reach", "too noisy", "made it worse")) == 1
    assert ("the line through the others" in text) == (len(right) > 2) and "\n" not in text


def test_as_many_steps_as_with_all_is_no_point_of_the_line(measured):
    save(measured, STEADY | {"neg10_half_long": 90})
    curve = learning_curve(measured, DATA)
    assert curve["same_steps"].sum() == 1 and curve.loc["neg10_half_long", "queries"] == 80
    assert "are expected to reach 0.600" in summary(curve)


def test_seeds_are_averaged_and_widen_the_interval(measured):
    settings = dataclasses.replace(measured, seeds=2)
    save(settings, STEADY)
    alone = learning_curve(settings, DATA).loc["neg10"]
    save(settings, {"neg10_seed43": 70}, recipe="neg10")
    both = learning_curve(settings, DATA).loc["neg10"]
    assert (both["seeds"], both["value"]) == (2, pytest.approx(0.6))
    assert both["low"] < 0.5 and both["high"] > 0.7 and both["high"] - both["low"] > alone["high"] - alone["low"]


def test_too_few_fractions_are_refused_by_name(measured):
    save(measured, {"neg10": 50, "neg10_half_long": 40, "neg50": 60})
    message = "the learning curve of neg10 needs results for at least two fractions .* `make curve`"
    with pytest.raises(UserError, match=message):
        learning_curve(measured, DATA)
    with pytest.raises(UserError, match="there is no recipe 'nothing'"):
        learning_curve(measured, DATA, "nothing")


def test_the_picture_has_the_points_the_line_and_the_levels(measured):
    save(measured, STEADY | {"neg10_half_long": 45})
    axis, = plot_curve(learning_curve(measured, DATA), [{"label": "raw", "metrics": {"recall@1": 0.1}}]).axes
    drawn = [line.get_xydata().tolist() for line in axis.lines if line.get_marker() == "o"]
    assert drawn == [pytest.approx(np.array(points)) for points in (
        [[20, 0.2], [40, 0.3], [80, 0.4], [160, 0.5]], [[80, 0.45]])]
    assert axis.lines[0].get_xydata()[[0, -1]] == pytest.approx(np.array([[20, 0.2], [320, 0.6]]))
    assert [text.get_text() for text in axis.texts] == ["raw"]


def test_the_notebook_shows_it(measured, capsys):
    save(measured, STEADY)
    notebook = nbformat.read(ROOT / "learning_curve.ipynb", as_version=4)
    names = {}
    for cell in notebook.cells:
        if cell.cell_type == "code":
            exec(cell.source, names)
    assert "Each doubling of the training queries gained +0.100" in capsys.readouterr().out
    assert len(names["curve"]) == 4 and plt.get_fignums()
