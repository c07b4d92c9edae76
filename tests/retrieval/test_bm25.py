"""BM25 against its formula, computed word by word; corpora that are wrong; the server's answers."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from pathlib import Path

import pytest

from engine.errors import DataError
from engine.retrieval.bm25 import BM25
from engine.retrieval.retriever import Hit, Passage, read_corpus
from engine.retrieval.server import retriever_of, search
from engine.runtime.json_server import Rejected

WORDS = ["cat", "dog", "bird", "likes", "purr", "flies", "sky", "tree"]


def brute_force(texts: Sequence[str], query: str, k1: float, b: float) -> list[float]:
    """The formula of the class, a word at a time."""
    split = [text.lower().split() for text in texts]
    mean = sum(map(len, split)) / len(split)
    scores = []
    for words in split:
        score = 0.0
        for word in query.lower().split():
            n = sum(word in other for other in split)
            f = words.count(word)
            idf = math.log(1 + (len(split) - n + 0.5) / (n + 0.5))
            score += idf * f / (f + k1 * (1 - b + b * len(words) / mean))
        scores.append(score)
    return scores


@pytest.mark.parametrize(("k1", "b"), [(1.5, 0.75), (0.9, 0.4)])
def test_scores_are_those_of_the_formula(k1: float, b: float) -> None:
    draw = random.Random(0)
    texts = [" ".join(draw.choices(WORDS, k=draw.randint(1, 12))) for _ in range(30)]
    retriever = BM25([Passage(str(i), text) for i, text in enumerate(texts)], k1=k1, b=b)

    (hits,) = retriever.search(["cat sky"], 30)

    expected = brute_force(texts, "cat sky", k1, b)
    found = {int(hit.passage.id): hit.score for hit in hits}
    assert found == pytest.approx({i: score for i, score in enumerate(expected) if score > 0}, rel=1e-5)
    assert [hit.score for hit in hits] == sorted(found.values(), reverse=True)


def test_a_title_is_searched_and_a_stranger_to_all_finds_nothing() -> None:
    retriever = BM25([Passage("a", "it purrs", title="Cats"), Passage("b", "it barks", title="Dogs")])

    cats, nothing, both = retriever.search(["CATS!", "zebra", "cats dogs"], 1)

    assert [hit.passage.id for hit in cats] == ["a"]
    assert nothing == []
    assert len(both) == 1
    assert retriever.search([], 3) == []


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ('{"text": "a"}\nnonsense', ":2: no JSON"),
        ('{"txt": "a"}', ":1: a passage is an object with a `text`"),
        ('{"text": "a", "id": 1}\n\n{"text": "b", "id": "1"}', ":3: the id '1' was given to line 1 already"),
        ("\n", "has no passage"),
    ],
)
def test_a_corpus_that_is_wrong_says_where(tmp_path: Path, lines: str, said: str) -> None:
    (tmp_path / "c.jsonl").write_text(lines)
    with pytest.raises(DataError) as caught:
        read_corpus(tmp_path / "c.jsonl")
    assert said in str(caught.value)


class Own:
    def search(self, queries: Sequence[str], k: int) -> list[list[Hit]]:
        return [[Hit(Passage(str(n), query), 1.0) for n in range(k)] for query in queries]


def test_the_server_answers_by_whatever_retriever_it_has() -> None:
    answer = search(Own(), {"queries": ["a", "b"], "k": 2})
    assert [[found["text"] for found in hits] for hits in answer["passages"]] == [["a", "a"], ["b", "b"]]
    assert answer["passages"][0][1] == {"id": "1", "title": "", "text": "a", "score": 1.0}


@pytest.mark.parametrize("request_", [{}, {"queries": "a"}, {"queries": ["a"], "k": 0}, {"queries": ["a"], "k": True}])
def test_requests_that_are_wrong(request_: object) -> None:
    with pytest.raises(Rejected):
        search(Own(), request_)


def test_a_function_of_the_users_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine.py").write_text(
        "class R:\n    def search(self, queries, k): return [[]]\ndef make(): return R()\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert retriever_of({"function": "mine:make"}).search(["a"], 1) == [[]]
