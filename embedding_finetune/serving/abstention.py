"""Abstention: the score threshold from which a first hit is likely to answer, tuned on dev queries."""

from collections.abc import Sequence

import numpy as np


def is_answerable(hits: list[dict]) -> bool:
    """Whether the best hit of a query reaches the threshold. Without a threshold, any hit counts."""
    return bool(hits) and hits[0].get("above_threshold", True)


def choose_threshold(best: Sequence[Sequence], precision: float) -> dict:
    """Lowest score threshold at which the best hits have the given precision.

    `best` has (score, whether it is right) for the best hit of each dev query. Returns a dict of threshold (None if no
    score has that precision), answered (queries that reach it), right, right_below (right first hits of the other
    queries), queries, precision. A correct passage without a label counts as wrong.
    """
    scores, right = np.array([score for score, _ in best]), np.array([hit for _, hit in best], bool)
    chosen = {"threshold": None, "answered": 0, "right": 0, "right_below": int(right.sum()), "queries": len(best),
              "precision": precision}
    for threshold in sorted(set(scores.tolist())):
        answered = scores >= threshold
        if right[answered].mean() >= precision:
            counts = {"answered": int(answered.sum()), "right": int(right[answered].sum()),
                      "right_below": int(right[~answered].sum())}
            return chosen | counts | {"threshold": threshold}
    return chosen


def low_score_note(hits: list[dict], abstention: dict) -> str:
    """What the score of the best hit says where it is below the threshold of `choose_threshold`; "" where it is not."""
    if not hits:
        return "no passage was found"
    if is_answerable(hits):
        return ""
    below = abstention["queries"] - abstention["answered"]
    return (f"the score is unusual for a correct answer: of {below} dev queries with such low scores, the first hit is "
            f"right for {abstention['right_below']}")


def threshold_line(abstention: dict) -> str:
    """Sentence that describes a result of `choose_threshold`."""
    values = abstention | {"percent": f"{abstention['precision']:.0%}"}
    if values["threshold"] is None:
        return ("no threshold: at no minimum score is the first hit right for {percent} of the queries that reach it "
                "({queries} dev queries)".format(**values))
    return ("a first hit is likely to answer from a score of {threshold:.4g}: {answered} of {queries} dev queries "
            "reach it, and the first hit is right for {right} of them (target: {percent})".format(**values))
