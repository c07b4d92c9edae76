"""Whatever a user's function does, the caller gets a typed error and the next call is answered.

Every case breaks its contract for the input "bad" and behaves for all others.
"""

from __future__ import annotations

import os
import signal
import textwrap
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from engine.errors import Cause, ExitCode, FunctionError, RlxError
from engine.functions.client import open_functions
from engine.functions.process import HostProcess
from engine.functions.sources import Limits, Sources

LIMITS = Limits(call_s=0.3, wall_s=120.0, memory=512 << 20)
"""However busy the machine, who burns CPU time runs into the limit of that, and not into the clock's."""
OF_A_SLEEPER = replace(LIMITS, wall_s=2.0)


@dataclass(frozen=True)
class Case:
    """What the function does for the input "bad" (its line 5), and what must be said about it."""

    body: str
    message: str
    line: int | None = 5
    setup: str = "pass"


CASES = {
    "loops in Python": Case("while True: pass", r"took more than 0.3 s of CPU time"),
    "loops and swallows every exception": Case(
        """
        while True:
            try:
                while True: pass
            except BaseException: pass
        """,
        "0.3 s",
        None,  # any line of the loop
    ),
    "loops in C": Case(
        "collections.deque(itertools.count(), maxlen=0)",
        r"used up its CPU time \(0.3 s\) where it cannot be interrupted",
        setup="import collections, itertools",
    ),
    "a catastrophic regex": Case("re.match(r'(a+)+$', 'a' * 40 + 'b')", "CPU time", setup="import re"),
    "a number without end": Case("9**9**9", "CPU time|memory"),
    "sleeps": Case("time.sleep(10**6)", r"did not return within 2 s", setup="import time"),
    "disarms the timer and loops": Case(
        "signal.setitimer(signal.ITIMER_PROF, 0); collections.deque(itertools.count(), maxlen=0)",
        "cannot be interrupted",
        setup="import collections, itertools, signal",
    ),
    "raises": Case("raise ValueError('no such language')", "raised ValueError: no such language"),
    "raises deep inside": Case("helper()", "ZeroDivisionError: division by zero", 2, "helper = lambda: 1 / 0"),
    "raises what cannot be shown": Case(
        "raise Mute()",
        r"raised Mute: \(its message cannot be shown\)",
        setup="Mute = type('Mute', (Exception,), {'__str__': lambda self: 1 / 0})",
    ),
    "raises an endless message": Case("raise ValueError('x' * 10**7)", "raised ValueError: x{500} "),
    "exits": Case("sys.exit(3)", "tried to exit; it must return instead", setup="import sys"),
    "exits at once": Case("os._exit(3)", "ended its process with status 3", None, "import os"),
    "exits as if all were well": Case("os._exit(0)", "ended its process with status 0", None, "import os"),
    "kills itself": Case("os.kill(os.getpid(), 9)", "crashed its process: SIGKILL", None, "import os"),
    "crashes": Case("ctypes.string_at(0)", "crashed its process: SIGSEGV", setup="import ctypes"),
    "calls itself without end": Case("done_fn(text)", "calls itself without end"),
    "overflows the C stack": Case(
        "sys.setrecursionlimit(10**9); deep() == deep()",
        "crashed its process: SIGSEGV",
        setup="import sys, functools; deep = lambda: functools.reduce(lambda x, _: [x], range(2 * 10**5), [])",
    ),
    "allocates 10 GB": Case("bytearray(10 * 2**30)", r"ran out of memory \(the functions may use 512 MiB\)"),
    "allocates in small pieces": Case("[bytes(10**6) for _ in range(10**6)]", "ran out of memory"),
    "prints 10 MB": Case("print('x' * 10**7)", "printed more than 65536 characters in one call"),
    "prints 10 MB in lines": Case("for _ in range(10**6): print('x' * 10)", "printed more than 65536 characters"),
    "prints and swallows": Case(
        """
        while True:
            try: print('x' * 10**7)
            except BaseException: pass
        """,
        "CPU time",
        None,
    ),
    "reads stdin": Case("input()", "raised EOFError"),
    "closes every descriptor": Case(
        "os.closerange(0, 1000)", "closed the file descriptors of its process", None, "import os"
    ),
    "closes every descriptor and stays": Case(
        "os.closerange(0, 1000); time.sleep(10**6)", "did not return|closed the file", None, "import os, time"
    ),
    "returns None": Case(
        "return None", r"returned None \(is a `return` missing\?\); done_fn must return True or False", 3
    ),
    "returns a string": Case("return 'yes'", "returned the str 'yes'; done_fn must return True or False", 3),
    "returns a number": Case("return 1", "returned the int 1; done_fn must", 3),
    "returns a match": Case("return re.match('b', text)", "returned a Match; done_fn must", 3, setup="import re"),
    "returns what lies about itself": Case(
        "return Liar()",
        "returned a Liar; done_fn must",
        3,
        setup="Liar = type('Liar', (), {'__eq__': lambda s, o: True, '__bool__': lambda s: True, '__class__': bool})",
    ),
}


def source(case: Case) -> str:
    """`done_fn` with the offence at line 5."""
    body = textwrap.indent(textwrap.dedent(case.body).strip(), " " * 8)
    head = f"# the user's own source\n{case.setup}\ndef done_fn(text):\n    if text[-3:] == 'bad':\n"
    return f"{head}{body}\n    return text == 'ok'\n"


def check(error: FunctionError, case: Case) -> None:
    assert error.function == "done_fn"
    assert error.text == "bad" or "one of the calls up to this one" in error.message
    assert (error.exit_code, error.cause, error.retryable) == (ExitCode.BAD_INPUT, Cause.REWARD_ERROR, False)


@pytest.mark.parametrize("name", CASES)
def test_an_offence_is_a_typed_error_and_the_next_call_is_answered(name: str) -> None:
    case = CASES[name]
    limits = OF_A_SLEEPER if "time.sleep" in case.body else LIMITS
    with open_functions(Sources(done_fn=source(case)), limits) as host:
        with pytest.raises(FunctionError, match=case.message) as caught:
            host.done(["ok", "", "bad", "ok"])
        after = host.done(["ok", "x"])

    check(caught.value, case)
    if case.line is not None:
        assert caught.value.line == case.line
    assert after == [True, False]


@pytest.mark.parametrize("name", ["raises", "loops in C", "exits at once", "returns None", "allocates 10 GB"])
def test_the_other_rows_keep_their_texts_when_one_offends(name: str) -> None:
    case = CASES[name]
    sources = Sources(
        done_fn=source(case).replace("'ok'", "'context: abc'"),
        split_fn="def split_fn(output):\n    return output == 'abc'\n",
    )
    with open_functions(sources, LIMITS) as host:
        stops = host.stops()
        stops.open_many([0, 1, 2], "context: ")
        assert stops.extend([0, 1, 2], ["a", "ba", "a"]) == [(False, False)] * 3
        with pytest.raises(FunctionError, match=case.message) as caught:
            stops.extend([0, 1, 2], ["b", "d", "b"])
        stops.close([1])

        assert caught.value.text == "context: bad"
        assert stops.extend([0, 2], ["c", "x"]) == [(True, True), (False, False)]


@pytest.mark.parametrize(
    "value, shown",
    [
        ("float('nan')", "returned nan; score_fn must return a finite number"),
        ("-float('inf')", "returned -inf; score_fn must"),
        ("10 ** 400", "returned inf; score_fn must"),
        ("'1.0'", "returned the str '1.0'; score_fn must return a finite number"),
        ("None", "returned None"),
        ("[1.0]", "returned a list"),
        ("1j", "returned a complex"),
    ],
)
def test_a_score_is_a_finite_number(value: str, shown: str) -> None:
    code = f"def score_fn(text, answer):\n    return {value} if text == 'bad' else 0.5\n"
    with open_functions(Sources(score_fn=code)) as host:
        with pytest.raises(FunctionError) as caught:
            host.score(["good", "bad"], ["", ""])
        assert host.score(["good"], [""]) == [0.5]

    assert shown in str(caught.value)
    assert caught.value.text == "bad"


@pytest.mark.parametrize(
    "value, shown",
    [("1", "returned the int 1; reply_fn must return a str"), ("'x' * 10**6", "returned 1000000 characters")],
)
def test_a_reply_is_a_text_of_bounded_length(value: str, shown: str) -> None:
    code = f"def reply_fn(text, answer):\n    return {value} if text == 'bad' else answer\n"
    with open_functions(Sources(reply_fn=code)) as host:
        with pytest.raises(FunctionError, match=shown):
            host.reply(["bad"], [""])
        assert host.reply(["good"], ["a"]) == ["a"]


@pytest.mark.parametrize(
    "code, message, line",
    [
        ("x = 1\ndef done_fn(text) return True\n", "is not valid Python: expected ':'", 2),
        ("import no_such_module\n", "raised ModuleNotFoundError: No module named 'no_such_module'", 1),
        ("def done(text):\n    return True\n", "defines no function of the name done_fn", None),
        ("done_fn = 3\n", "defines no function of the name done_fn", None),
        ("\n\nraise SystemExit\n", "tried to exit", 3),
        ("import os\nos._exit(1)\n", "ended its process with status 1", None),
        ("while True: pass\n", "took more than 0.5 s of CPU time", 1),
        ("x = bytearray(10 * 2**30)\n", "ran out of memory", 1),
    ],
)
def test_sources_that_do_not_load(code: str, message: str, line: int | None) -> None:
    with pytest.raises(FunctionError, match=message) as caught:
        open_functions(Sources(done_fn=code), Limits(load_s=0.5, memory=512 << 20))

    assert (caught.value.function, caught.value.line) == ("done_fn", line)


def test_a_helper_in_another_source_does_not_lend_its_line() -> None:
    sources = Sources(
        score_fn="def score_fn(text, answer):\n    return helper()\n",
        done_fn="\n\n\n\ndef helper():\n    return 1 / 0\ndef done_fn(text):\n    return True\n",
    )
    with open_functions(sources) as host, pytest.raises(FunctionError) as caught:
        host.score([""], [""])

    assert (caught.value.function, caught.value.line) == ("score_fn", 2)


def test_nothing_can_be_written_to_a_file(tmp_path: Path) -> None:
    code = f"def done_fn(text):\n    with open({str(tmp_path / 'loot')!r}, 'w') as file:\n        file.write(text)\n"
    with (
        open_functions(Sources(done_fn=code)) as host,
        pytest.raises(FunctionError, match=r"raised OSError: .*too large"),
    ):
        host.done(["loot"])

    assert (tmp_path / "loot").read_bytes() == b""


def test_a_host_that_dies_between_calls_is_replaced_unnoticed() -> None:
    code = "import os, threading\ndef done_fn(text):\n    return text == 'ok'\n"
    with open_functions(Sources(done_fn=code)) as host:
        first = host.pid
        assert first is not None
        os.kill(first, 9)

        assert host.done(["ok"]) == [True]
        assert host.pid != first


def test_many_calls_may_take_longer_together_than_one_may() -> None:
    code = """
    import time
    def done_fn(text):
        start = time.process_time()
        while time.process_time() - start < 0.1:
            pass
        return True
    """
    with open_functions(Sources(done_fn=textwrap.dedent(code)), Limits(call_s=0.3)) as host:
        assert host.done(["x"] * 8) == [True] * 8


def test_an_offence_leaves_no_process_behind(until: Callable[[Callable[[], bool]], None], tmp_path: Path) -> None:
    with open_functions(Sources(done_fn=source(CASES["loops in C"])), LIMITS) as host:
        first = host.pid
        with pytest.raises(FunctionError):
            host.done(["bad"])

    until(lambda: not Path(f"/proc/{first}").exists())


def test_the_host_knows_nothing_of_us(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "secret")
    code = """
    import os, sys
    def reply_fn(text, answer):
        found = dict(os.environ), os.getcwd(), os.listdir('/proc/self/fd')
        found += ('torch' in sys.modules, 'secret' in open('/proc/self/environ').read())
        return repr(found)
    """
    with open_functions(Sources(reply_fn=textwrap.dedent(code))) as host:
        environment, folder, descriptors, torch, secret = eval(host.reply([""], [""])[0])

    assert environment == {}
    assert folder == "/"
    assert len(descriptors) <= 7  # the three standard ones, channel, progress, crash report, this listing
    assert not torch
    assert not secret


def test_what_is_printed_reaches_the_log_up_to_a_bound(caplog: pytest.LogCaptureFixture) -> None:
    code = "def done_fn(text):\n    print(text)\n    return True\n"
    with open_functions(Sources(done_fn=code), Limits(output=10)) as host, caplog.at_level("INFO"):
        host.done(["hello"])
        host.done(["world", "again"])

    texts = [record.__dict__["text"] for record in caplog.records if "printed by" in record.message]
    assert "".join(texts) == "hello\nworl"


def test_a_host_that_cannot_start_says_why() -> None:
    with pytest.raises(RlxError, match="does not start") as caught:
        open_functions(Sources(), Limits(memory=1 << 20))

    assert not isinstance(caught.value, FunctionError)
    # Nor does one that was started before it was wanted.
    with pytest.raises(RlxError, match="does not start"):
        open_functions(Sources(), host=HostProcess(Limits(memory=1 << 20)))


def test_the_layers_in_force_are_named() -> None:
    from engine.functions.sandbox import in_force

    layers = in_force()

    assert "no new privileges" in layers
    assert "memory 1024 MiB" in layers


def test_a_host_that_is_asked_where_it_stands_says_so_and_its_fault_is_found_all_the_same(
    capfd: pytest.CaptureFixture[str],
) -> None:
    """As a supervisor asks every process of a stage that hangs."""
    source = "def score_fn(text: str, answer: str):\n    import time\n    time.sleep(10**6)\n"
    with open_functions(Sources(score_fn=source), OF_A_SLEEPER) as functions:
        pid = functions.pid
        assert pid is not None
        over = threading.Event()

        def ask() -> None:
            while not over.wait(0.2):
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGUSR1)

        asking = threading.Thread(target=ask)
        asking.start()
        try:
            with pytest.raises(FunctionError, match="did not return within 2 s") as caught:
                functions.score(["a"], ["b"])
        finally:
            over.set()
            asking.join()
    assert caught.value.line == 3
    assert 'File "<score_fn>", line 3 in score_fn' in capfd.readouterr().err
