"""The threshold, by hand."""

from embedding_finetune.serving.abstention import choose_threshold, low_score_note, threshold_line


def test_threshold_by_hand():
    best = [[0.9, True], [0.8, True], [0.7, False], [0.6, True], [0.6, True], [0.5, False], [0.4, False]]
    assert choose_threshold(best, 0.8) == {
        "threshold": 0.6, "answered": 5, "right": 4, "right_below": 0, "queries": 7, "precision": 0.8}
    assert choose_threshold(best, 0.81)["right_below"] == 2  # those of 0.6
    assert choose_threshold(best, 0.81)["threshold"] == 0.8
    assert choose_threshold(best, 0.5)["threshold"] == 0.4 and choose_threshold(best, 0.5)["right"] == 4
    assert choose_threshold([[0.9, False], [0.5, True]], 0.9)["threshold"] is None
    assert choose_threshold([], 0.9)["queries"] == 0
    line = threshold_line(choose_threshold(best, 0.8))
    assert line == ("a first hit is likely to answer from a score of 0.6: 5 of 7 dev queries reach it, and the first "
                    "hit is right for 4 of them (target: 80%)")
    assert threshold_line(choose_threshold([], 0.8)).startswith("no threshold")


def test_a_low_score_comes_with_its_share_of_right_hits():
    found = choose_threshold([[0.9, True], [0.8, True], [0.7, False], [0.6, True], [0.5, False]], 0.9)
    assert low_score_note([{"above_threshold": True}], found) == low_score_note([{}], found) == ""
    assert low_score_note([{"above_threshold": False}], found) == (
        "the score is unusual for a correct answer: of 3 dev queries with such low scores, the first hit is right for "
        "1")
    assert low_score_note([], found) == "no passage was found"
