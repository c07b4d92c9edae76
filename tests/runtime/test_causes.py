"""From an exception, however deep and of whatever library, to its cause code; from last words to theirs."""

from __future__ import annotations

import concurrent.futures.process
import errno
import subprocess
from collections.abc import Callable
from types import SimpleNamespace

import httpx2
import huggingface_hub.errors as hub
import psycopg
import pydantic
import pytest
import redis
import requests
import torch
import urllib3
from kombu.exceptions import OperationalError
from safetensors import SafetensorError

from engine.errors import (
    Cause,
    DataError,
    DiskError,
    FunctionError,
    HungStage,
    ModelError,
    ResumeError,
    SpecError,
    Unreachable,
)
from engine.runtime import causes


class Config(pydantic.BaseModel):
    size: int


def raised(work: Callable[[], object]) -> BaseException:
    with pytest.raises(BaseException) as caught:
        work()
    return caught.value


def gloom(status: int) -> hub.HfHubHTTPError:
    """The hub's answer with a status, without a hub."""
    error = hub.HfHubHTTPError.__new__(hub.HfHubHTTPError)
    error.response = SimpleNamespace(status_code=status)  # type: ignore[assignment]
    return error


PLAIN = [
    (FunctionError("score_fn", "returned a str", 3, "hello"), Cause.REWARD_ERROR),
    (DataError("items.csv:2"), Cause.DATA_ERROR),
    (SpecError("no such key"), Cause.SPEC_ERROR),
    (ModelError("no such model"), Cause.SPEC_ERROR),
    (raised(lambda: Config(size="many")), Cause.SPEC_ERROR),  # type: ignore[arg-type]
    (Unreachable("no database"), Cause.SERVICE_DOWN),
    (ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused"), Cause.SERVICE_DOWN),
    (requests.ConnectionError("Max retries exceeded"), Cause.SERVICE_DOWN),
    (requests.ReadTimeout("Read timed out."), Cause.SERVICE_DOWN),
    (urllib3.exceptions.MaxRetryError(None, "/"), Cause.SERVICE_DOWN),  # type: ignore[arg-type]
    (httpx2.ConnectError("All connection attempts failed"), Cause.SERVICE_DOWN),
    (redis.ConnectionError("Error 111 connecting"), Cause.SERVICE_DOWN),
    (psycopg.OperationalError("server closed the connection"), Cause.SERVICE_DOWN),
    (OperationalError("[Errno 111]"), Cause.SERVICE_DOWN),
    (hub.LocalEntryNotFoundError("cannot find the requested files in the local cache"), Cause.SERVICE_DOWN),
    (gloom(503), Cause.SERVICE_DOWN),
    (gloom(429), Cause.SERVICE_DOWN),
    (gloom(404), Cause.INTERNAL),
    (OSError("We couldn't connect to 'https://hub.example' to load the files"), Cause.SERVICE_DOWN),
    (TimeoutError("timed out"), Cause.SERVICE_DOWN),
    (OSError(errno.EHOSTUNREACH, "No route to host"), Cause.SERVICE_DOWN),
    (ModuleNotFoundError("No module named 'peft'"), Cause.IMPORT),
    (OSError("libcudart.so.12: cannot open shared object file: No such file"), Cause.IMPORT),
    (MemoryError(), Cause.OOM),
    (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), Cause.OOM),
    (RuntimeError("CUDA error: out of memory"), Cause.OOM),
    (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), Cause.OOM),
    (raised(lambda: torch.empty(1 << 48)), Cause.OOM),
    (OSError(errno.ENOMEM, "Cannot allocate memory"), Cause.OOM),
    (DiskError("the disk is full"), Cause.DISK),
    (OSError(errno.ENOSPC, "No space left on device"), Cause.DISK),
    (OSError(errno.EDQUOT, "Disk quota exceeded"), Cause.DISK),
    (OSError(errno.EROFS, "Read-only file system"), Cause.DISK),
    (SafetensorError("Error while serializing: IoError(Os { code: 28, No space left on device })"), Cause.DISK),
    (concurrent.futures.process.BrokenProcessPool("A process in the pool was terminated abruptly"), Cause.LOST),
    (RuntimeError("DataLoader worker (pid(s) 4711) exited unexpectedly"), Cause.LOST),
    (RuntimeError("DataLoader worker (pid 4711) is killed by signal: Killed. "), Cause.LOST),
    (subprocess.CalledProcessError(-9, ["convert"]), Cause.LOST),
    (subprocess.CalledProcessError(1, ["convert"], stderr="tar: No space left on device"), Cause.DISK),
    (subprocess.CalledProcessError(1, ["convert"]), Cause.INTERNAL),
    (BrokenPipeError(errno.EPIPE, "Broken pipe"), Cause.LOST),
    (subprocess.TimeoutExpired(["convert"], 30), Cause.HANG),
    (HungStage("no progress"), Cause.HANG),
    (RuntimeError("[Rank 1] Watchdog caught collective operation timeout: WorkNCCL(SeqNum=3)"), Cause.HANG),
    (KeyboardInterrupt(), Cause.PREEMPTED),
    (ResumeError("damaged"), Cause.INTERNAL),
    (ZeroDivisionError("division by zero"), Cause.INTERNAL),
    (ValueError("the answer says: out of memory"), Cause.INTERNAL),
    (SystemExit(3), Cause.INTERNAL),
]


@pytest.mark.parametrize(("error", "cause"), PLAIN, ids=lambda value: f"{type(value).__name__} {value}"[:60])
def test_an_exception_has_a_cause(error: BaseException, cause: Cause) -> None:
    assert causes.of_exception(error) is cause


def test_a_disk_that_is_full_under_torch_save() -> None:
    assert causes.of_exception(raised(lambda: torch.save({"weights": torch.zeros(1 << 20)}, "/dev/full"))) is Cause.DISK


def raise_from(outer: BaseException, inner: BaseException | None) -> BaseException:
    def work() -> None:
        raise outer from inner

    return raised(work)


def raise_while(outer: BaseException, inner: BaseException) -> BaseException:
    def work() -> None:
        try:
            raise inner
        except type(inner):
            raise outer  # noqa: B904 - the point

    return raised(work)


FULL, REFUSED = OSError(errno.ENOSPC, "No space left on device"), ConnectionRefusedError("refused")


@pytest.mark.parametrize(
    ("error", "cause"),
    [
        (raise_from(RuntimeError("training failed"), torch.OutOfMemoryError("CUDA out of memory")), Cause.OOM),
        (raise_while(KeyError("model"), torch.OutOfMemoryError("CUDA out of memory")), Cause.OOM),
        (raise_from(ResumeError("cannot be read"), OSError(errno.EIO, "Input/output error")), Cause.DISK),
        (raise_from(ValueError("a"), raise_from(ValueError("b"), raise_from(ValueError("c"), FULL))), Cause.DISK),
        # What was translated on purpose says what it is, unless the world is given as the reason.
        (raise_from(ModelError("cannot load the model"), REFUSED), Cause.SERVICE_DOWN),
        (raise_from(ModelError("cannot load the model"), raise_while(OSError("no"), REFUSED)), Cause.SPEC_ERROR),
        (raise_while(SpecError("no such host"), REFUSED), Cause.SPEC_ERROR),
        (raise_from(DataError("items.jsonl"), FileNotFoundError("items.jsonl")), Cause.DATA_ERROR),
        (raise_from(ModelError("cannot load it"), hub.OfflineModeIsEnabled("offline")), Cause.SPEC_ERROR),
        (
            raise_from(ModelError("no"), raise_from(hub.LocalEntryNotFoundError("no"), hub.OfflineModeIsEnabled("no"))),
            Cause.SPEC_ERROR,
        ),
        (raise_from(Unreachable("no database"), FULL), Cause.SERVICE_DOWN),
        (ExceptionGroup("two", [ValueError("a"), FULL]), Cause.DISK),
        (raise_from(ValueError("a"), None), Cause.INTERNAL),
    ],
)
def test_the_chain_is_looked_through(error: BaseException, cause: Cause) -> None:
    assert causes.of_exception(error) is cause


def test_a_chain_that_bites_its_tail_ends() -> None:
    first, second = ValueError("a"), ValueError("b")
    first.__cause__, second.__cause__ = second, first
    assert list(causes.chain(first)) == [first, second]


@pytest.mark.parametrize(
    ("text", "cause"),
    [
        ("terminate called after throwing an instance of 'std::bad_alloc'", Cause.OOM),
        ("OSError: [Errno 28] No space left on device", Cause.DISK),
        ("ModuleNotFoundError: No module named 'flash_attn'", Cause.IMPORT),
        ("ImportError: flash_attn, going on without\n…\ntorch.OutOfMemoryError: CUDA out of memory.", Cause.OOM),
        ("step 3, loss 0.2", None),
        ("", None),
    ],
)
def test_last_words_have_a_cause_and_the_last_one_counts(text: str, cause: Cause | None) -> None:
    assert causes.of_text(text) is cause
