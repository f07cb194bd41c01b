"""What the score of a first hit says: how often dev queries with similar scores were answered correctly.

Scores of different systems mean different things, so each index keeps those of its own first hits on dev queries.
"""

from collections.abc import Sequence

SIMILAR = 20  # dev queries that a score is compared with
FEWEST = 10  # with fewer dev queries, nothing is said


def judge_score(hits: list[dict], dev: Sequence[Sequence]) -> tuple[bool | None, str]:
    """Whether the score of the first of `hits` is usual for a correct answer, and a sentence that says so.

    `dev` has (score, whether it is correct) of the first hit of each dev query. A score is usual if at least half of
    the SIMILAR first hits with the nearest scores are correct, and unusual if it is below all of them. A passage
    without a judgment counts as wrong. With too few dev queries, the result is None and "".
    """
    if not hits:
        return False, "no passage was found"
    if len(dev) < FEWEST:
        return None, ""
    score = hits[0]["score"]
    if score < min(other for other, _ in dev):
        return False, f"score unusual for a correct answer: lower than those of all {len(dev)} dev queries"
    similar = sorted(dev, key=lambda pair: abs(pair[0] - score))[:SIMILAR]
    correct = sum(right for _, right in similar)
    usual = 2 * correct >= len(similar)
    return usual, (f"score {'usual' if usual else 'unusual'} for a correct answer: the first hit was correct for "
                   f"{correct} of {len(similar)} dev queries with similar scores")


def at_least(hits: list[dict], min_score: float | None) -> tuple[list[dict], str]:
    """The hits with a score of at least `min_score` (None: all), and a sentence if there are none left."""
    kept = [hit for hit in hits if min_score is None or hit["score"] >= min_score]
    if kept or not hits:
        return kept, ""
    return [], f"no passage has a score of {min_score:g} or more; the best has {hits[0]['score']:.4g}"
