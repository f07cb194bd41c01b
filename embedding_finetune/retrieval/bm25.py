"""BM25: lexical retrieval with bm25s."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import bm25s
import numpy as np
from tqdm.auto import tqdm

from embedding_finetune.files import read_json, write_json
from embedding_finetune.retrieval.analyzer import Analyzer
from embedding_finetune.retrieval.base import FEW, Hits, Retriever, best, padded, retriever


@retriever("bm25")
class BM25(Retriever):
    """BM25 in Lucene's variant (bm25s), with k1 = 1.5 and b = 0.75.

    The analyzer depends on the languages of the corpus (see analyzer.Analyzer), which are recorded in `config`.
    """

    description = "BM25"

    def build(self, texts: list[str]) -> None:
        self._cut_by(Analyzer.of(self.language, texts))
        self.bm25 = bm25s.BM25(k1=1.5, b=0.75)  # frees a previous index before the words take memory
        self.size, vocabulary = len(texts), {}  # word -> number in order of first occurrence, the same in each process
        numbers = [[vocabulary.setdefault(word, len(vocabulary)) for word in words] for words in self.words(texts)]
        self.empty = not vocabulary  # bm25s cannot index an empty vocabulary
        if not self.empty:
            self.bm25.index((numbers, vocabulary), show_progress=False)

    def _cut_by(self, words: Analyzer) -> None:
        self.words, self.config = words, {"language": str(words), "k1": 1.5, "b": 0.75}

    def save(self, folder: Path) -> None:
        write_json(folder / "words.json", {"languages": self.words.languages, "passages": self.size})
        if not self.empty:
            self.bm25.save(folder / "bm25", show_progress=False)

    def load(self, folder: Path) -> Self:
        saved: Any = read_json(folder / "words.json")
        self._cut_by(Analyzer(saved["languages"]))
        self.size, self.empty = saved["passages"], not (folder / "bm25").exists()
        if not self.empty:
            self.bm25 = bm25s.BM25.load(folder / "bm25", mmap=True, show_progress=False)
        return self

    def search_batch(self, texts: list[str], depth: int) -> Hits:
        depth = min(depth, self.size)
        return padded(self._search(texts, depth), len(texts), depth)

    def _search(self, texts: list[str], depth: int) -> Iterator[Hits]:
        for words in tqdm(self.words(texts), desc="BM25", unit="query", disable=len(texts) < FEW):
            scores = np.zeros(self.size, np.float32) if self.empty or not words else self.bm25.get_scores(words)
            last_wanted = max(np.partition(scores, -depth)[-depth], np.nextafter(np.float32(0), np.float32(1)))
            matching = np.flatnonzero(scores >= last_wanted)  # a score of 0 means no common word
            yield best(scores[matching], matching, depth)
