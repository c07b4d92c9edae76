"""The user's functions are judged by their source alone, which never runs."""

from __future__ import annotations

import pytest

from engine.spec.dataset import Dataset, Item
from engine.spec.signatures import ARGUMENTS, check_functions, check_source

GOOD = {
    "recurve's score_fn": ("score_fn", "def score_fn(text: str, answer: str):\n  return answer in text\n"),
    "helpers and imports": (
        "done_fn",
        "import re\nP = re.compile('x')\ndef ok(t): return P.search(t)\ndef done_fn(t):\n  return bool(ok(t))\n",
    ),
    "lambda": ("split_fn", "split_fn = lambda output: '\\n' in output"),
    "defaults beyond the call": ("score_fn", "def score_fn(text, answer, strict=False, *, weight=1.0): return 1.0"),
    "star": ("score_fn", "def score_fn(*args): return float(args[1] in args[0])"),
    "positional only": ("done_fn", "def done_fn(text, /): return True"),
    "imported": ("split_fn", "from operator import truth as split_fn"),
    "made by a call": ("done_fn", "import functools\ndone_fn = functools.partial(print, 1)"),
    "decorated": ("score_fn", "import functools\n@functools.cache\ndef score_fn(*a, k): return 1"),
    "under try": (
        "done_fn",
        "try:\n  import re\n  def done_fn(t): return True\nexcept ImportError:\n  done_fn = lambda t: False",
    ),
    "defined twice": ("done_fn", "def done_fn(): return 1\ndef done_fn(text): return True"),
    "inner generator": ("score_fn", "def score_fn(t, a):\n  def inner():\n    yield 1\n  return sum(inner())"),
    "odd escapes": ("done_fn", "def done_fn(t): return '\\d' in t"),
}
BAD = {
    "syntax": ("score_fn", "def score_fn(text, answer)\n  return 1", 1, "expected ':'"),
    "indentation": ("score_fn", "def score_fn(text, answer):\nreturn 1", 2, "indented block"),
    "return outside": ("done_fn", "def done_fn(t): return 1\nreturn 2", 2, "outside function"),
    "null byte": ("done_fn", "def done_fn(t): return 1\0", 1, "null"),
    "misspelt": ("score_fn", "\ndef scorefn(text, answer): return 1", 2, "Rename 'scorefn'"),
    "other name": ("done_fn", "def finished(text): return True", 1, "Rename 'finished'"),
    "nothing": ("split_fn", "x = 1", 1, "def split_fn(output)"),
    "empty": ("split_fn", "", 1, "def split_fn(output)"),
    "only inside another": ("done_fn", "def outer():\n  def done_fn(t): return 1\n  return done_fn", 1, "no function"),
    "no answer": ("score_fn", "def score_fn(text): return 1", 1, "takes no answer"),
    "no arguments": ("reply_fn", "def reply_fn(): return ''", 1, "takes no text, answer"),
    "extra": ("done_fn", "def done_fn(text,\n            limit): return True", 2, "'limit'"),
    "answer where there is none": ("split_fn", "split_fn = lambda output, answer: True", 1, "'answer'"),
    "keyword without default": ("score_fn", "def score_fn(text, answer, *, k): return 1", 1, "'k' needs a default"),
    "class": ("score_fn", "class score_fn:\n  pass", 1, "is a class"),
    "async": ("score_fn", "async def score_fn(text, answer): return 1", 1, "async"),
    "generator": ("score_fn", "def score_fn(text, answer):\n  yield 1", 2, "generator"),
    "returns nothing": ("done_fn", "def done_fn(text):\n  '.' in text", 1, "never returns"),
    "returns without a value": ("done_fn", "def done_fn(text):\n  return", 1, "never returns"),
    "deep": ("done_fn", "x = " + "(" * 5000 + ")" * 5000, 1, "not Python"),
    "long": ("done_fn", "x = " + "-" * 200_000 + "1", 1, "not Python"),
}


@pytest.mark.parametrize("case", GOOD)
def test_accepted(case: str) -> None:
    assert check_source(*GOOD[case]) == []


@pytest.mark.parametrize("case", BAD)
def test_refused(case: str) -> None:
    name, source, line, words = BAD[case]

    findings = check_source(name, source)

    assert [finding.line for finding in findings] == [line]
    assert words in findings[0].message


def test_nothing_runs() -> None:
    source = "raise SystemExit\nimport os\nos._exit(3)\ndef done_fn(text): return True"

    assert check_source("done_fn", source) == []


def test_every_function_of_a_dataset_is_checked() -> None:
    dataset = Dataset(items=(Item(prompt="x"),), **dict.fromkeys(ARGUMENTS, "x = 1"))  # type: ignore[arg-type]

    assert [problem.path for problem in check_functions(dataset)] == [f"dataset.{name}" for name in ARGUMENTS]
