"""From which score on an answer is likely, by the dev queries."""

import numpy as np


def is_answerable(hits):
    """Whether the best of the hits of a query reaches the threshold; without a threshold any hit does."""
    return bool(hits) and hits[0].get("above_threshold", True)


def choose_threshold(best, precision):
    """The lowest score from which on a best hit is right often enough: dict of threshold (None if there is none),
    answered, right, queries.

    `best` has (score, right or wrong) of the best hit of each dev query; of those that reach the threshold at least the
    share `precision` is right. All are judged by the labels, so that a right answer without a label counts as wrong.
    """
    scores, right = np.array([score for score, _ in best]), np.array([hit for _, hit in best], bool)
    chosen = {"threshold": None, "answered": 0, "right": 0, "queries": len(best), "precision": precision}
    for threshold in sorted(set(scores.tolist())):
        answered = scores >= threshold
        if right[answered].mean() >= precision:
            counts = {"answered": int(answered.sum()), "right": int(right[answered].sum())}
            return chosen | counts | {"threshold": threshold}
    return chosen


def threshold_line(abstention):
    """What `choose_threshold` found, in a sentence."""
    said = abstention | {"percent": f"{abstention['precision']:.0%}"}
    if said["threshold"] is None:
        return ("no threshold: from no score on is the first hit right for {percent} of the {queries} dev queries"
                .format(**said))
    return ("an answer is likely from a score of {threshold:.4g} on: of {queries} dev queries {answered} reach it, and "
            "the first hit is right for {right} of them (wanted: {percent})".format(**said))
