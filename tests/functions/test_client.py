"""The user's functions answer as if called directly, whole or in increments."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engine.errors import DataError, FunctionError
from engine.functions.client import FunctionHost, open_functions
from engine.functions.process import HostProcess
from engine.functions.sources import Limits, Sources
from engine.runtime.context import Functions

SOURCES = Sources(
    score_fn="def score_fn(text, answer):\n    return count(text, answer) / 10\n",
    done_fn="def count(text, word):\n    return text.count(word)\n"
    "def done_fn(text):\n    return count(text, 'end') > 0\n",
    split_fn="import re\ndef split_fn(output):\n    return re.search(r'\\n$', output) is not None\n",
    reply_fn="def reply_fn(text, answer):\n    return f'{count(text, answer)} so far'\n",
)


@pytest.fixture(scope="module")
def functions() -> Iterator[FunctionHost]:
    with open_functions(SOURCES) as host:
        typed: Functions = host
        assert typed is host
        yield host


def test_it_is_what_stages_know_as_functions(functions: Functions) -> None:
    assert functions.has_reply
    assert functions.stops().extend([], []) == []


def test_each_function_answers_for_each_input_in_order(functions: FunctionHost) -> None:
    assert functions.score(["a b a", "none"], ["a", "x"]) == [0.2, 0.0]
    assert functions.done(["the end", "the"]) == [True, False]
    assert functions.split(["a\n", "a\nb"]) == [True, False]
    assert functions.reply(["yes yes"], ["yes"]) == ["2 so far"]


def test_more_texts_than_one_message_takes(functions: FunctionHost) -> None:
    texts = ["x" * n for n in range(1300)]

    assert functions.score(texts, ["x"] * 1300) == [n / 10 for n in range(1300)]


def test_a_text_larger_than_a_message_should_be(functions: FunctionHost) -> None:
    assert functions.score(["x" * (20 << 20), "x"], ["x", "x"]) == [(20 << 20) / 10, 0.1]


def test_booleans_and_integers_are_scores() -> None:
    source = "def score_fn(text, answer):\n    return text == answer if text != '3' else 3\n"
    with open_functions(Sources(score_fn=source)) as host:
        scores = host.score(["a", "b", "3"], ["a", "a", ""])

    assert scores == [1.0, 0.0, 3.0]
    assert all(type(score) is float for score in scores)


def test_answers_of_any_json_type_arrive_unchanged() -> None:
    answers = ["text", 1, 2.5, None, True, [1, [2]], {"a": {"b": []}}, "\ud800 lone surrogate"]
    source = "def score_fn(text, answer):\n    return repr(answer) == text\n"
    with open_functions(Sources(score_fn=source)) as host:
        assert host.score([repr(answer) for answer in answers], answers) == [1.0] * len(answers)


def test_an_integer_too_large_to_send_is_a_data_error(functions: FunctionHost) -> None:
    with pytest.raises(DataError, match="beyond 64 bits"):
        functions.score(["a"], [10**30])
    assert functions.score(["a"], ["a"]) == [0.1]


def test_without_done_and_split_nothing_ever_stops() -> None:
    with open_functions(Sources()) as host:
        stops = host.stops()
        stops.open(0, "context")

        assert host.done(["a"]) == [False]
        assert host.split(["a\n"]) == [False]
        assert stops.extend([0], ["a\n"]) == [(False, False)]
        with pytest.raises(FunctionError, match="score_fn: the dataset has no such function"):
            host.score(["a"], ["b"])


def test_reply_redefines_nothing_for_the_others() -> None:
    sources = Sources(
        score_fn="def value():\n    return 1.0\ndef score_fn(text, answer):\n    return value()\n",
        reply_fn="def value():\n    return 'mine'\ndef reply_fn(text, answer):\n    return value()\n",
    )
    with open_functions(sources) as host:
        assert host.reply([""], [""]) == ["mine"]
        assert host.score([""], [""]) == [1.0]


def test_split_sees_the_utterance_and_done_the_conversation() -> None:
    sources = Sources(
        split_fn="def split_fn(output):\n    return output == 'xy'\n",
        done_fn="def done_fn(text):\n    return text == 'context: xy' or text == 'other: z'\n",
    )
    with open_functions(sources) as host:
        stops = host.stops()
        stops.open_many([7, 3], "context: ")
        stops.open(5, "other: ")

        assert stops.extend([3, 5, 7], ["x", "z", "x"]) == [(False, False), (False, True), (False, False)]
        assert stops.extend([7], ["y"]) == [(True, True)]
        assert stops.extend([3], ["z"]) == [(False, False)]


def test_a_row_opened_again_begins_anew_and_users_of_one_host_do_not_meet(functions: FunctionHost) -> None:
    one, other = functions.stops(), functions.stops()
    one.open(0, "the ")
    other.open(0, "e")
    assert one.extend([0], ["en"]) == [(False, False)]
    assert other.extend([0], ["nd\n"]) == [(True, True)]
    one.close([0])
    other.open(1, "")
    assert other.extend([1, 0], ["d", "x"]) == [(False, False), (False, True)]
    one.open(0, "")
    assert one.extend([0], ["d"]) == [(False, False)]
    other.open(0, "")
    assert other.extend([0], ["\n"]) == [(True, False)]


ROWS = st.integers(0, 4)
STEP: st.SearchStrategy[tuple[str, list[int], str]] = st.one_of(
    st.tuples(st.just("open"), st.lists(ROWS, unique=True, min_size=1), st.text("end \n", max_size=8)),
    st.tuples(st.just("close"), st.lists(ROWS, unique=True), st.just("")),
    st.tuples(st.just("extend"), st.lists(ROWS, unique=True), st.text("end \n", max_size=3)),
    st.tuples(st.just("kill"), st.just([]), st.just("")),
)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=st.lists(STEP, max_size=12))
def test_increments_equal_whole_texts_whatever_happens_to_the_host(
    functions: FunctionHost, steps: list[tuple[str, list[int], str]]
) -> None:
    stops = functions.stops()
    texts: dict[int, tuple[str, str]] = {}
    for action, rows, text in steps:
        if action == "open":
            stops.open_many(rows, text)
            texts |= dict.fromkeys(rows, (text, ""))
        elif action == "close":
            stops.close(rows)
            texts = {row: value for row, value in texts.items() if row not in rows}
        elif action == "kill" and functions.pid is not None:
            os.kill(functions.pid, signal.SIGKILL)
        elif action == "extend":
            known = [row for row in rows if row in texts]
            texts |= {row: (texts[row][0], texts[row][1] + text) for row in known}
            expected = [(texts[row][1][-1:] == "\n", "end" in "".join(texts[row])) for row in known]
            assert stops.extend(known, [text] * len(known)) == expected
    stops.close(list(texts))


def test_rows_and_pieces_must_pair_up(functions: FunctionHost) -> None:
    stops = functions.stops()
    stops.open(0, "")
    with pytest.raises(ValueError, match="1 rows but 2 pieces"):
        stops.extend([0], ["a", "b"])
    with pytest.raises(ValueError, match="2 texts but 1 answers"):
        functions.score(["a", "b"], ["c"])


def test_the_hash_is_the_version_of_the_reward() -> None:
    changed = Sources(**{**vars(SOURCES), "split_fn": "def split_fn(output):\n    return False\n"})

    assert len(SOURCES.hash) == 64
    assert changed.hash != SOURCES.hash
    assert Sources.of({**vars(SOURCES), "items": []}).hash == SOURCES.hash


def test_sets_of_words_have_one_order_in_every_host() -> None:
    source = "def reply_fn(text, answer):\n    return ' '.join(set(text.split()))\n"
    text = "one two three four five six seven eight"
    orders = set()
    for _ in range(3):
        with open_functions(Sources(reply_fn=source)) as host:
            orders |= set(host.reply([text], [""]))

    assert len(orders) == 1


def test_a_closed_host_is_gone_and_says_so() -> None:
    host = open_functions(SOURCES)
    pid = host.pid
    host.close()
    host.close()

    assert pid is not None
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    with pytest.raises(RuntimeError, match="closed"):
        host.done(["x"])


def test_a_host_that_was_started_earlier_is_taken_once() -> None:
    spare = HostProcess(Limits())
    with open_functions(SOURCES, host=spare) as host:
        assert host.pid == spare.pid
        assert host.confinement == spare.confinement()
        os.kill(spare.pid, signal.SIGKILL)
        assert host.done(["the end"]) == [True]
        assert host.pid != spare.pid


@pytest.mark.parametrize("busy", [False, True], ids=["idle", "in a loop that no signal handler interrupts"])
def test_a_host_dies_with_its_parent(busy: bool, until: Callable[[Callable[[], bool]], None]) -> None:
    program = """
        import os, signal, threading
        from engine.functions.client import open_functions
        from engine.functions.sources import Limits, Sources
        source = '''
        import collections, itertools
        def done_fn(text):
            print(text)
            return collections.deque(itertools.count(), maxlen=0)
        '''
        import textwrap
        host = open_functions(Sources(done_fn=textwrap.dedent(source)), Limits(call_s=60))
        print(host.pid, flush=True)
        if BUSY:
            threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGKILL)).start()
            host.done(["x"])
        os.kill(os.getpid(), signal.SIGKILL)
    """
    code = textwrap.dedent(program).replace("BUSY", str(busy))
    parent = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)

    pid = int(parent.stdout)
    assert parent.returncode == -signal.SIGKILL
    until(lambda: not _runs(pid))


def test_forgetting_to_close_is_quiet_and_a_fork_ends_nothing_of_ours() -> None:
    program = """
        import os
        from engine.functions.client import open_functions
        from engine.functions.sources import Sources
        host = open_functions(Sources(done_fn="def done_fn(text):\\n    return True"))
        child = os.fork()
        if child == 0:
            del host
            os._exit(0)
        os.waitpid(child, 0)
        pid = host.pid
        assert host.done(["x"]) == [True] and host.pid == pid
    """
    command = [sys.executable, "-c", textwrap.dedent(program)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)

    assert (result.returncode, result.stderr) == (0, "")


def _runs(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rsplit(")", 1)[1].split()[0] not in ("Z", "X")
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_scores_are_the_numbers_that_python_computed(functions: FunctionHost) -> None:
    source = "import math\ndef score_fn(text, answer):\n    return math.sqrt(answer)\n"
    with open_functions(Sources(score_fn=source)) as host:
        assert host.score([""] * 50, list(range(50))) == [math.sqrt(n) for n in range(50)]
