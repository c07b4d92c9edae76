"""One host process: started, asked, watched, and buried with a diagnosis.

Knows the host as a process with limits; what is asked of it, and what is to be rebuilt in the next one after it
dies, is the client's business.
"""

from __future__ import annotations

import io
import mmap
import os
import re
import select
import signal
import socket
import struct
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgpack

from engine.errors import RlxError
from engine.functions import host, wire
from engine.functions.sources import Limits

_ROOT = Path(__file__).resolve().parents[2]
_BOOT = (
    "import sys\n"
    "own, root, *sites = sys.path[:], *sys.argv[1].split('\\n')\n"
    "sys.path[:0] = [root, *sites]\n"
    "from engine.functions import host\n"
    "sys.path[:] = own + sites\n"
    "host.main(sys.argv[2:])\n"
)
_ENVIRONMENT = {"PYTHONHASHSEED": "0", "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
"""All that a host is given: a fixed order of sets, and no threads where none are allowed."""

_WATCH_S = 0.1
_GRACE = 1.5
"""The host ends an overrunning call itself where it can; past this many times the limit it is killed."""

_CRASH = "Fatal Python error"
_FRAME = re.compile(r'File "<(\w+)>", line (\d+)')


@dataclass(eq=False)
class Died(Exception):
    """The host is gone: why, during which call (the progress word; 0 for none), at which line of which source."""

    message: str
    serial: int
    function: str | None = None
    line: int | None = None
    report: str = ""


class HostProcess:
    """A host that was started; `confinement` waits until it is up, and comes before anything else.

    `ask` either returns its answer or raises Died, after which the object is of no more use.
    """

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        ours, theirs = socket.socketpair()
        progress_fd = os.memfd_create("rlx-functions")
        os.ftruncate(progress_fd, mmap.PAGESIZE)
        self._shared = mmap.mmap(progress_fd, mmap.PAGESIZE)
        self._progress = memoryview(self._shared).cast("Q")
        reports, reports_fd = os.pipe()
        os.set_blocking(reports, False)
        self._reports = io.FileIO(reports)
        self._told = ""
        self._owner = os.getpid()
        try:
            self._process = subprocess.Popen(
                [
                    *(sys.executable, "-P", "-s", "-S", "-B", "-X", "utf8", "-c", _BOOT),
                    "\n".join([str(_ROOT), *_site_folders()]),
                    *map(str, (theirs.fileno(), progress_fd, reports_fd, os.getpid(), limits.memory)),
                    *map(str, (limits.call_s, limits.load_s, limits.output)),
                ],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=reports_fd,  # until it is up
                pass_fds=(theirs.fileno(), progress_fd, reports_fd),
                env=_ENVIRONMENT,
                cwd="/",
                start_new_session=True,
            )
        finally:
            theirs.close()
            os.close(progress_fd)
            os.close(reports_fd)
        self._channel = ours
        # The kernel's own timeouts: a call that is answered in time costs no system call beyond recv.
        for option, seconds in ((socket.SO_RCVTIMEO, _WATCH_S), (socket.SO_SNDTIMEO, limits.wall_s)):
            whole = int(seconds)
            ours.setsockopt(socket.SOL_SOCKET, option, struct.pack("ll", whole, int((seconds - whole) * 1e6)))
        self._reader = wire.Reader(ours)
        self._cpu_clock = (~self._process.pid << 3) | 2  # clock_getcpuclockid(3), which Python does not offer
        self._confinement: tuple[str, ...] | None = None

    @property
    def pid(self) -> int:
        return self._process.pid

    def confinement(self) -> tuple[str, ...]:
        """What confines the host, in words, once it is up. Raises RlxError where it does not start."""
        if self._confinement is None:
            try:
                self._confinement = tuple(self._receive(self._limits.load_s))
            except Died as death:
                raise RlxError(
                    f"the host of the user's functions does not start: {death.message}\n{death.report}"
                ) from None
        return self._confinement

    def ask(self, request: list[Any]) -> Any:
        """One round trip: [ok, result or report, printed]."""
        self._progress[0] = 0  # by us, lest a host that dies right after an answer seem to die during its last call
        try:
            wire.send(self._channel, request)
        except OSError:
            raise self._bury() from None
        return self._receive(self._limits.load_s if request[0] == "load" else self._limits.call_s)

    def close(self) -> None:
        """End the host and whatever it has started."""
        if self._process.returncode is None:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, signal.SIGKILL)
            with suppress(ProcessLookupError):
                self._process.kill()
            self._process.wait()
            self._channel.close()
            self._reports.close()

    def __del__(self) -> None:
        # A process forked from ours holds a copy of this object, but the host is not its to end.
        if hasattr(self, "_cpu_clock") and self._owner == os.getpid():
            self.close()

    def _receive(self, allowed_s: float) -> Any:
        """The next message, unless one call takes more CPU or clock time than it may."""
        serial, cpu, wall = -1, 0.0, time.monotonic()
        while True:
            try:
                return self._reader.read()
            except BlockingIOError:
                self._hand_on()
                now = self._progress[0]
                if now != serial:
                    serial, cpu, wall = now, self._cpu(), time.monotonic()
                elif self._cpu() - cpu > _GRACE * allowed_s:
                    raise self._abort(
                        f"used up its CPU time ({allowed_s:g} s) where it cannot be interrupted"
                    ) from None
                elif time.monotonic() - wall > self._limits.wall_s:
                    raise self._abort(f"did not return within {self._limits.wall_s:g} s") from None
            except (EOFError, OSError, ValueError, msgpack.UnpackException):
                raise self._bury() from None

    def _cpu(self) -> float:
        try:
            return time.clock_gettime(self._cpu_clock)
        except OSError:  # it has just ended; the channel will say so
            return 0.0

    def _abort(self, message: str) -> Died:
        """Have the host write down where it is, then kill it."""
        serial = self._progress[0]
        os.kill(self._process.pid, signal.SIGABRT)
        self._ended(timeout_s=2)
        report = self._report()
        found = _FRAME.search(report)
        where = (found[1], int(found[2]), report) if found else (None, None, report)
        self.close()
        return Died(message, serial, *where)

    def _bury(self) -> Died:
        """The channel is closed: find out how the host ended."""
        by_itself = self._ended(timeout_s=2)
        serial = self._progress[0]
        report = self._report()
        found = _FRAME.search(report)
        where = (found[1], int(found[2]), report) if found else (None, None, report)
        self.close()
        if not by_itself or self._process.returncode == host.LOST_CHANNEL:
            message = "closed the file descriptors of its process (one of the calls up to this one did)"
            return Died(message, serial, *where)
        if self._process.returncode < 0:
            name = signal.Signals(-self._process.returncode).name
            hint = " (the kernel does this where memory runs out)" if name == "SIGKILL" else ""
            return Died(f"crashed its process: {name}{hint}", serial, *where)
        return Died(f"ended its process with status {self._process.returncode}", serial, *where)

    def _ended(self, timeout_s: float) -> bool:
        """Whether the host ends by itself in time. It stays a zombie, so that its process group is still its own."""
        try:
            pidfd = os.pidfd_open(self._process.pid)
        except ProcessLookupError:
            return True
        try:
            poller = select.poll()
            poller.register(pidfd, select.POLLIN)
            return bool(poller.poll(timeout_s * 1000))
        finally:
            os.close(pidfd)

    def _hand_on(self) -> None:
        """What the host wrote about itself, such as its stack when asked, to the stage's log; a crash report stays."""
        told = self._report()
        if _CRASH in told:
            self._told = told
        elif told:
            print(f"the process of the user's functions:\n{told}", file=sys.stderr, flush=True)  # noqa: T201 - see above

    def _report(self) -> str:
        """What the host wrote that nobody has read."""
        told, self._told = self._told + (self._reports.read(1 << 16) or b"").decode(errors="replace"), ""
        return told


def _site_folders() -> list[str]:
    """Where installed packages lie; what `.pth` files add is not for the user's functions."""
    own = str(Path(msgpack.__file__).resolve().parent.parent)
    found = [path for path in sys.path if Path(path).name in ("site-packages", "dist-packages") and Path(path).is_dir()]
    return list(dict.fromkeys([*found, own]))
