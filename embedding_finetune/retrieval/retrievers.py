"""Retrievers: what turns queries into a run. Everything after a run knows nothing of models.

`Retriever` does what all have in common; a new one is a class with `build` and `top`, and `@retriever("label")` makes
it one that RETRIEVERS can name. Equal scores are ranked by id everywhere and moved apart by the smallest step a
32-bit number allows: faiss promises no order among them, and every evaluation tool has one of its own.
"""

import tempfile

import bm25s
import numpy as np
from tqdm.auto import tqdm

from embedding_finetune.files import UserError, read_json, write_json
from embedding_finetune.retrieval.vector_index import FLAT, Exact, beside_exact, vector_index
from embedding_finetune.retrieval.words import Words

DEPTH = 100  # recall@100 needs no more
FEW = 100  # queries that need no progress bar
PART = 1 << 20  # passages whose vectors are in memory together

RETRIEVERS = {}  # label -> class, of those that need no model


def retriever(label):
    """Register the decorated class, so that RETRIEVERS can name it."""
    def register(kind):
        RETRIEVERS[label] = kind
        return kind
    return register


def retriever_of(label, language="auto"):
    """A retriever that needs no model, by its label; `language` is for those that look at words (see words.Words).

    Raises UserError when there is none.
    """
    if label not in RETRIEVERS:
        raise UserError(f"RETRIEVERS={label} is unknown: it must list some of {', '.join(RETRIEVERS)}")
    found = RETRIEVERS[label]()
    found.language = language
    return found


class Retriever:
    """Finds passages for queries: `index` a corpus once, then `search` it."""

    about, used = "", {}  # what ranks, and how, for people
    language = "auto"

    def index(self, corpus):
        """Take in the corpus (id -> text); returns the retriever."""
        self.ids = np.array(list(corpus), dtype=object)
        self.tie_rank = np.empty(len(self.ids), dtype=np.int64)
        self.tie_rank[np.argsort(self.ids)] = np.arange(len(self.ids))
        self.build(list(corpus.values()))
        return self

    def search(self, queries, depth=DEPTH):
        """The run of the queries (id -> text): the `depth` best passages of each, or fewer where fewer match at all.

        A passage with the id of the query is the query itself (as in ArguAna or Quora) and is left out, as BEIR does.
        """
        if not queries:
            return {}
        own = {identity: position for position, identity in enumerate(self.ids) if identity in queries}
        scores, positions = self.top(list(queries.values()), depth + 1)
        run = {}
        for query, row_scores, row in zip(queries, spread(scores), positions):
            kept = np.flatnonzero((row >= 0) & (row != own.get(query, -1)))[:depth]
            run[query] = dict(zip(self.ids[row[kept]].tolist(), row_scores[kept].tolist()))
        return run

    def save(self, folder):
        """Write to `folder` what `restore` maps into memory there. Raises UserError where a retriever has no such form.
        """
        if type(self).restore is Retriever.restore:
            raise UserError(f"{self.about or type(self).__name__} cannot be kept on disk: it lacks `restore`, see "
                            "BM25")
        np.save(folder / "tie_rank.npy", self.tie_rank)

    def restore(self, folder):
        """Take up what `save` wrote, without the passages: for `top`, not for `search`. Returns the retriever."""
        self.tie_rank = np.load(folder / "tie_rank.npy", mmap_mode="r")
        return self

    def build(self, texts):
        """Make whatever `top` needs of the passages' texts, in the order of `self.ids`."""
        raise NotImplementedError

    def top(self, texts, depth):
        """Scores (float32) and positions (int) of the best passages for texts, both (queries, depth or fewer columns).

        Best first, equal scores in the order of `self.tie_rank`; position -1 where fewer passages match.
        """
        raise NotImplementedError


def spread(scores):
    """Descending scores along the last axis in 32 bits, equal ones moved apart by the smallest steps there are."""
    scores = np.array(scores, np.float32)
    for place in range(1, scores.shape[-1]):
        below = np.nextafter(scores[..., place - 1], np.float32(-np.inf))
        scores[..., place] = np.minimum(scores[..., place], below)
    return scores


def passage_vectors(encoder, texts):
    """Vectors of a list of passages; those of more than PART are encoded so many at a time, into a file beside the
    cache that is mapped into memory and gone with the process."""
    if len(texts) <= PART:
        return encoder.encode_passages(texts)
    try:
        with tempfile.TemporaryFile(dir=encoder.cache) as file:
            for start in range(0, len(texts), PART):
                some = encoder.encode_passages(texts[start:start + PART])
                file.write(some.data)
            file.flush()
            return np.memmap(file, np.float32, "r", shape=(len(texts), some.shape[1]))
    except OSError as error:
        raise UserError(f"cannot write the vectors of {len(texts):,} passages to {encoder.cache or 'a temporary file'} "
                        f"({error.strerror}): free some space") from None


class Dense(Retriever):
    """Nearest vectors by inner product; `encoder` gives the vectors (see encoder.Encoder).

    A corpus just indexed is searched exactly; what was saved and restored as `where` says (see vector_index).
    """

    def __init__(self, encoder, where=FLAT):
        self.encoder, self.where = encoder, where
        self.about = encoder.use.title

    def build(self, texts):
        self.vectors = self.nearest = None  # those of a corpus before leave before the next ones come
        self.vectors = passage_vectors(self.encoder, texts)
        self.nearest = Exact(self.vectors)

    def save(self, folder):
        super().save(folder)
        np.save(folder / "vectors.npy", self.vectors)
        vector_index(self.where).build(self.vectors, folder)

    def restore(self, folder):
        self.vectors = np.load(folder / "vectors.npy", mmap_mode="r")
        self.nearest = vector_index(self.where).restore(self.vectors, folder)
        return super().restore(folder)

    def top(self, texts, depth):
        return self.nearest.top(self.encoder.encode_queries(texts), depth, self.tie_rank)

    def beside_exact(self, texts):
        """What a restored index loses and gains beside an exact search: see vector_index.beside_exact."""
        return {"index": self.where} | beside_exact(self.nearest, self.encoder.encode_queries(texts), self.tie_rank)


@retriever("bm25")
class BM25(Retriever):
    """BM25: shared words, the rare ones weigh more (bm25s, Lucene's variant, k1 1.5, b 0.75).

    What a word is, is decided by the corpus (see words.Words), and stands in `used`.
    """

    about = "BM25"

    def build(self, texts):
        self._cut_by(Words.of(self.language, texts))
        self.bm25 = bm25s.BM25(k1=1.5, b=0.75)  # that of a corpus before leaves before the words come
        self.size, vocabulary = len(texts), {}  # word -> number by where it is met first: the same in each process
        numbers = [[vocabulary.setdefault(word, len(vocabulary)) for word in words] for words in self.words(texts)]
        self.empty = not vocabulary  # bm25s cannot index nothing
        if not self.empty:
            self.bm25.index((numbers, vocabulary), show_progress=False)

    def _cut_by(self, words):
        self.words, self.used = words, {"language": str(words), "k1": 1.5, "b": 0.75}

    def save(self, folder):
        super().save(folder)
        write_json(folder / "words.json", self.words.languages)
        if not self.empty:
            self.bm25.save(folder / "bm25", show_progress=False)

    def restore(self, folder):
        super().restore(folder)
        self._cut_by(Words(read_json(folder / "words.json")))
        self.size, self.empty = len(self.tie_rank), not (folder / "bm25").exists()
        if not self.empty:
            self.bm25 = bm25s.BM25.load(folder / "bm25", mmap=True, show_progress=False)
        return self

    def top(self, texts, depth):
        depth = min(depth, self.size)
        scores = np.zeros((len(texts), depth), np.float32)
        positions = np.full((len(texts), depth), -1, np.int32)
        for row, words in enumerate(tqdm(self.words(texts), desc="BM25", unit="query", disable=len(texts) < FEW)):
            found = np.zeros(self.size, np.float32) if self.empty or not words else self.bm25.get_scores(words)
            last_wanted = max(np.partition(found, -depth)[-depth], np.nextafter(np.float32(0), np.float32(1)))
            some = np.flatnonzero(found >= last_wanted)  # a score of 0 means that no word is shared
            some = some[np.lexsort((self.tie_rank[some], -found[some]))][:depth]
            positions[row, :len(some)], scores[row, :len(some)] = some, found[some]
        return scores, positions


def fuse_ranks(bm25, dense, constant=60, depth=DEPTH):
    """Reciprocal rank fusion of two runs: a passage scores the sum of 1 / (constant + rank) over the runs that have it.

    Cormack, Clarke and Büttcher, "Reciprocal Rank Fusion outperforms Condorcet and individual Rank Learning Methods",
    SIGIR 2009. BM25 scores of 0 or less (see runs.padded) say that no word is shared: they count as absent.
    """
    fused = {}
    for query in dense:
        scores = {}
        for ranking in (_matching(bm25, query), dense[query]):
            for rank, passage in enumerate(ranking, start=1):
                scores[passage] = scores.get(passage, 0) + 1 / (constant + rank)
        fused[query] = ranked(scores, depth)
    return fused


def fuse_scores(bm25, dense, weight, depth=DEPTH):
    """Cosine plus `weight` times the BM25 score over the query's best BM25 score.

    A passage beyond the depth of a run gets that run's lowest score, which is as high as it can have been; in a BM25
    run that found fewer than `depth` passages all others share no word with the query and get 0.
    """
    fused = {}
    for query, cosines in dense.items():
        words = _matching(bm25, query)
        scale = max(words.values(), default=1)
        lexical = {passage: weight * score / scale for passage, score in words.items()}
        lowest = min(cosines.values(), default=0.0), min(lexical.values()) if len(lexical) >= depth else 0.0
        fused[query] = ranked({passage: cosines.get(passage, lowest[0]) + lexical.get(passage, lowest[1])
                                for passage in cosines | lexical}, depth)
    return fused


class Fused(Retriever):
    """BM25 and a dense retriever over the same corpus, by `fuse_scores` of their first DEPTH passages."""

    def __init__(self, bm25, dense, weight):
        self.bm25, self.dense, self.weight, self.tie_rank = bm25, dense, weight, dense.tie_rank
        self.about = f"{bm25.about} + {dense.about}"

    def top(self, texts, depth):
        bm25, dense = (self._run(part, texts) for part in (self.bm25, self.dense))
        depth = min(depth, DEPTH, len(self.tie_rank))
        scores, positions = np.zeros((len(texts), depth), np.float32), np.full((len(texts), depth), -1, np.int32)
        for row, fused in self.fused(texts, bm25, dense).items():
            found = list(fused.items())[:depth]
            positions[row, :len(found)] = [position for (_, position), _ in found]
            scores[row, :len(found)] = [score for _, score in found]
        return scores, positions

    def fused(self, texts, bm25, dense):
        """The run of both runs, whose queries are the numbers of the texts."""
        return fuse_scores(bm25, dense, self.weight)

    def _run(self, part, texts):
        """A run of row numbers and of (tie rank, position) in place of ids, which sort as the ids do."""
        scores, positions = part.top(texts, DEPTH)
        return {row: {(int(self.tie_rank[position]), int(position)): float(score)
                      for score, position in zip(spread(scores[row]), positions[row]) if position >= 0}
                for row in range(len(texts))}


def _matching(bm25, query):
    return {passage: score for passage, score in bm25[query].items() if score > 0}


def ranked(scores, depth=None):
    """The `depth` best of the scores (passage id -> score) by (-score, id), in 32 bits, equal ones moved apart."""
    ranking = sorted(scores.items(), key=lambda item: (-np.float32(item[1]), item[0]))[:depth]
    return dict(zip((passage for passage, _ in ranking), spread([score for _, score in ranking]).tolist()))
