"""BM25 over a list of passages, by the package `bm25s` (the extra `retrieval`)."""

from __future__ import annotations

from collections.abc import Sequence

import bm25s

from engine.retrieval.retriever import Hit, Passage


class BM25:
    """Lucene's variant:

        score(q, d) = Σ_{t in q} ln(1 + (N − n_t + ½) / (n_t + ½)) · f / (f + k1 (1 − b + b |d| / avg|d|))

    with N passages, n_t of which hold the word t, f times in d. A word is two letters or more, in lower case; English
    stop words are left out. A passage is searched with its title; one that shares no word with a query is no hit.
    """

    def __init__(self, passages: Sequence[Passage], *, k1: float = 1.5, b: float = 0.75) -> None:
        self._passages = list(passages)
        self._index = bm25s.BM25(k1=k1, b=b)
        texts = [f"{passage.title} {passage.text}" for passage in passages]
        self._index.index(bm25s.tokenize(texts, show_progress=False), show_progress=False)

    def search(self, queries: Sequence[str], k: int) -> list[list[Hit]]:
        """For each query at most `k` hits, best first."""
        if not queries or k == 0:
            return [[] for _ in queries]
        words = bm25s.tokenize(list(queries), show_progress=False)
        numbers, scores = self._index.retrieve(words, k=min(k, len(self._passages)), show_progress=False)
        return [
            [Hit(self._passages[number], float(score)) for number, score in zip(found, said, strict=True) if score > 0]
            for found, said in zip(numbers, scores, strict=True)
        ]
