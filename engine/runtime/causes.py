"""From an exception, or the last lines of a log, to the cause code of a failure.

Libraries are told by the names of their exceptions, so that none has to be imported. What is done about a cause is
`store.retries`' business, what the user is told that of `autopsy`.
"""

from __future__ import annotations

import errno
import re
import subprocess
from collections.abc import Iterator

from engine.errors import OWN_FAULT, Cause, RlxError

SURROUNDINGS = frozenset({Cause.OOM, Cause.DISK, Cause.SERVICE_DOWN, Cause.LOST})
"""What the world does to a stage. Underneath an error that blames the spec or the data, it is what went wrong."""

_ERRNOS = {
    errno.ENOSPC: Cause.DISK,
    errno.EDQUOT: Cause.DISK,
    errno.EROFS: Cause.DISK,
    errno.EIO: Cause.DISK,
    errno.EFBIG: Cause.DISK,
    errno.ENOMEM: Cause.OOM,
    errno.ENETDOWN: Cause.SERVICE_DOWN,
    errno.ENETUNREACH: Cause.SERVICE_DOWN,
    errno.EHOSTDOWN: Cause.SERVICE_DOWN,
    errno.EHOSTUNREACH: Cause.SERVICE_DOWN,
}

_NAMED = {
    "OutOfMemoryError": ({"torch", "jax", "triton"}, Cause.OOM),
    "ConnectionError": ({"builtins", "requests", "redis", "elasticsearch"}, Cause.SERVICE_DOWN),
    "TimeoutError": ({"builtins", "redis", "kombu"}, Cause.SERVICE_DOWN),
    "Timeout": ({"requests"}, Cause.SERVICE_DOWN),
    "gaierror": ({"socket"}, Cause.SERVICE_DOWN),
    "URLError": ({"urllib"}, Cause.SERVICE_DOWN),
    "HTTPException": ({"http"}, Cause.SERVICE_DOWN),
    "MaxRetryError": ({"urllib3"}, Cause.SERVICE_DOWN),
    "ProtocolError": ({"urllib3"}, Cause.SERVICE_DOWN),
    "TransportError": ({"httpx", "httpx2"}, Cause.SERVICE_DOWN),
    "ClientConnectionError": ({"aiohttp"}, Cause.SERVICE_DOWN),
    "ClientConnectorError": ({"aiohttp"}, Cause.SERVICE_DOWN),
    "APIConnectionError": ({"openai"}, Cause.SERVICE_DOWN),
    "InternalServerError": ({"openai"}, Cause.SERVICE_DOWN),
    "RateLimitError": ({"openai"}, Cause.SERVICE_DOWN),
    "LocalEntryNotFoundError": ({"huggingface_hub"}, Cause.SERVICE_DOWN),
    "OperationalError": ({"psycopg", "kombu", "amqp"}, Cause.SERVICE_DOWN),
    "EndpointConnectionError": ({"botocore"}, Cause.SERVICE_DOWN),
    "BrokenProcessPool": ({"concurrent"}, Cause.LOST),
    "BrokenExecutor": ({"concurrent"}, Cause.LOST),
    "BrokenPipeError": ({"builtins"}, Cause.LOST),
    "TimeoutExpired": ({"subprocess"}, Cause.HANG),
    "DatasetNotFoundError": ({"datasets"}, Cause.DATA_ERROR),
    "DatasetGenerationError": ({"datasets"}, Cause.DATA_ERROR),
    "ValidationError": ({"pydantic_core", "pydantic"}, Cause.SPEC_ERROR),
    "KeyboardInterrupt": ({"builtins"}, Cause.PREEMPTED),
    "MemoryError": ({"builtins"}, Cause.OOM),
    "ImportError": ({"builtins"}, Cause.IMPORT),
}
"""Class names, with the packages that mean this by them; a subclass counts as its base."""

_TOLD = (
    (
        Cause.OOM,
        r"out of memory|can't allocate memory|cannot allocate memory|bad_alloc|_STATUS_ALLOC_FAILED"
        r"|out of shared memory|oom-kill",
    ),
    (
        Cause.DISK,
        r"no space left on device|disk quota exceeded|read-only file system|disk is full"
        # What torch.save says where the disk refuses a write: the first while it writes, the other as it closes.
        r"|PytorchStreamWriter failed|inline_container\.cc\S*\] \. unexpected pos|basic_ios::clear: iostream error",
    ),
    (Cause.HANG, r"watchdog caught collective operation timeout|collective operation timeout"),
    (
        Cause.SERVICE_DOWN,
        r"connection refused|connection reset by peer|temporary failure in name resolution|we couldn't connect to"
        r"|name or service not known|network is unreachable|no route to host",
    ),
    (Cause.LOST, r"dataloader worker \(pid\S* [^)]*\) (?:is killed by signal|exited unexpectedly)"),
    (Cause.IMPORT, r"cannot open shared object file|undefined symbol|modulenotfounderror|importerror"),
)
_PATTERNS = tuple((cause, re.compile(pattern, re.IGNORECASE)) for cause, pattern in _TOLD)


def of_exception(error: BaseException) -> Cause:
    """Why `error` came to be, by the first of it and of what led to it that says so."""
    told = next((own for one in chain(error) if (own := _own(one)) is not None), Cause.INTERNAL)
    if told not in OWN_FAULT or _stays_offline(error):
        return told
    # "Cannot load the model", from a connection that was refused: what was given as the reason is the reason.
    below = (_own(one) for one in chain(error, implicit=False))
    return next((own for own in below if own in SURROUNDINGS), told)


def of_text(text: str) -> Cause | None:
    """What the last words of a process that left no outcome say; None where they say nothing known."""
    last: tuple[int, Cause] | None = None
    for cause, pattern in _PATTERNS:
        for match in pattern.finditer(text):
            if last is None or match.start() > last[0]:
                last = match.start(), cause
    return None if last is None else last[1]


def chain(error: BaseException, *, implicit: bool = True) -> Iterator[BaseException]:
    """The error, then what it was raised from, each once; with `implicit` also what was being handled meanwhile."""
    seen: set[int] = set()
    waiting = [error]
    while waiting:
        one = waiting.pop(0)
        if id(one) in seen:
            continue
        seen.add(id(one))
        yield one
        if isinstance(one, BaseExceptionGroup):
            waiting += one.exceptions
        if one.__cause__ is not None:
            waiting.append(one.__cause__)
        elif implicit and one.__context__ is not None and not one.__suppress_context__:
            waiting.append(one.__context__)


def _own(error: BaseException) -> Cause | None:
    """What this one exception says by itself; None for one that may mean anything."""
    if isinstance(error, RlxError):
        return None if error.cause is Cause.INTERNAL else error.cause
    if _named(error, "OfflineModeIsEnabled"):
        return None  # nothing is down: somebody forbade to ask
    if isinstance(error, OSError) and error.errno in _ERRNOS:
        return _ERRNOS[error.errno]
    if isinstance(error, subprocess.CalledProcessError):
        return Cause.LOST if error.returncode == -9 else of_text(str(error.stderr or ""))
    if _named(error, "HfHubHTTPError") or _named(error, "HTTPStatusError"):
        status = getattr(getattr(error, "response", None), "status_code", None) or 0
        return Cause.SERVICE_DOWN if status >= 500 or status == 429 else None
    for base in type(error).__mro__:
        packages, cause = _NAMED.get(base.__name__, ((), None))
        if base.__module__.partition(".")[0] in packages:
            return cause
    # Native libraries say it in words alone. A ValueError's words may be the user's own.
    return of_text(str(error)) if isinstance(error, RuntimeError | OSError) or _foreign(error) else None


def _foreign(error: BaseException) -> bool:
    """Whether the class is a library's own: `safetensors`, `tokenizers` and others tell errno in words alone."""
    return type(error).__module__.partition(".")[0] not in ("builtins", "engine", "workers")


def _named(error: BaseException, name: str) -> bool:
    return any(base.__name__ == name for base in type(error).__mro__)


def _stays_offline(error: BaseException) -> bool:
    """Whether the hub was not asked because HF_HUB_OFFLINE says so: no outage, and trying again helps nobody."""
    return any(_named(one, "OfflineModeIsEnabled") for one in chain(error))
