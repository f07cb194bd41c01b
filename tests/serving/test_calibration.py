"""What a score says, by hand."""

import pytest

from embedding_finetune.serving.calibration import FEWEST, at_least, judge_score

# 20 dev queries with scores around 0.8, of which 15 were answered correctly, and 20 around 0.2, of which 4 were.
DEV = [[0.8 + 0.001 * place, place < 15] for place in range(20)] + [[0.2 + 0.001 * place, place < 4]
                                                                   for place in range(20)]


@pytest.mark.parametrize("score, usual, said", [
    (0.81, True, "score usual for a correct answer: the first hit was correct for 15 of 20 dev queries with similar "
                 "scores"),
    (5.0, True, "15 of 20"),  # above all of them
    (0.21, False, "score unusual for a correct answer: the first hit was correct for 4 of 20 dev queries"),
    (0.19, False, "score unusual for a correct answer: lower than those of all 40 dev queries")])
def test_the_wording_follows_the_dev_queries_with_similar_scores(score, usual, said):
    found, sentence = judge_score([{"score": score}, {"score": 0.1}], DEV)
    assert found is usual and said in sentence


def test_a_tie_is_usual_and_too_few_queries_say_nothing():
    dev = [[0.5, place % 2 == 0] for place in range(FEWEST)]
    assert judge_score([{"score": 0.5}], dev)[0] is True
    assert judge_score([{"score": 0.5}], dev[1:]) == (None, "")
    assert judge_score([], dev) == (False, "no passage was found")


def test_hits_below_the_minimum_score_are_left_out():
    hits = [{"score": 0.5}, {"score": 0.25}]
    assert at_least(hits, None) == at_least(hits, 0.25) == (hits, "")
    assert at_least(hits, 0.3) == (hits[:1], "") and at_least([], 0.3) == ([], "")
    assert at_least(hits, 0.6) == ([], "no passage has a score of 0.6 or more; the best has 0.5")
