"""What the server is to answer, computed without server and index: products of vectors, BM25 by its library, fusion."""

import bm25s
import numpy as np

from embedding_finetune.data.collection import read_data
from embedding_finetune.evaluation.results import read_result
from embedding_finetune.models.encoder import Encoder
from embedding_finetune.models.encoder_config import load_encoder_config
from embedding_finetune.retrieval.analyzer import Analyzer

LABELS = "bm25", "reference", "hybrid_reference"
DEPTH, FUSED = 5, 100  # passages of an answer, and of each ranking that enters the fusion
TOLERANCE = 1e-5


def exact_answers(settings, queries):
    """label -> query -> [(id, text, score), ..], best first, from data and model as they are now. None where two of the
    scores lie so near to each other that either order may be right."""
    corpus = read_data(settings).corpus
    ids, texts = list(corpus), list(corpus.values())
    by_id = np.argsort(np.argsort(np.array(ids, dtype=object)))
    weight = read_result(settings, "hybrid_reference")["parameters"]["bm25_weight"]
    encoder = Encoder(load_encoder_config(settings, "reference"))
    cosines = encoder.encode_queries(queries) @ encoder.encode_passages(texts).T
    words, bm25 = Analyzer.of("auto", texts), bm25s.BM25(k1=1.5, b=0.75)
    bm25.index(words(texts), show_progress=False)
    found = {label: {} for label in LABELS}
    for query, dense, said in zip(queries, cosines, words(queries), strict=True):
        lexical = bm25.get_scores(said)
        all_scores = np.where(lexical > 0, lexical, -np.inf), dense, fused(lexical, dense, weight)
        for label, scores in zip(LABELS, all_scores):
            best = np.lexsort((by_id, -scores))[:DEPTH + 1]
            best = best[np.isfinite(scores[best])]
            clear = label == "bm25" or (-np.diff(scores[best]) > 3 * TOLERANCE).all()  # equal ones of BM25 are equal
            hits = [(ids[one], texts[one], float(scores[one])) for one in best[:DEPTH]]
            found[label][query] = hits if clear else None
    return found


def fused(lexical, cosines, weight):
    """Cosine plus `weight` times the share of the best BM25 score; beyond the first FUSED of a ranking a passage gets
    its last score, and is not fused at all where it is in neither."""
    first = [(scores > floor) & (scores >= np.sort(scores)[-min(FUSED, len(scores))])
             for scores, floor in ((lexical, 0), (cosines, -np.inf))]
    shares = weight * lexical / (lexical.max() or 1)
    beyond = shares[first[0]].min() if first[0].sum() >= FUSED else 0
    return np.where(first[0] | first[1], np.where(first[0], shares, beyond)
                    + np.where(first[1], cosines, cosines[first[1]].min()), -np.inf)


def same(hits, expected):
    """Whether hits of the server are these: ids, texts and ranks equal, scores within TOLERANCE."""
    return ([(hit["id"], hit["text"], hit["rank"]) for hit in hits]
            == [(identity, text, rank) for rank, (identity, text, _) in enumerate(expected, start=1)]
            and all(abs(hit["score"] - score) <= TOLERANCE for hit, (*_, score) in zip(hits, expected)))
