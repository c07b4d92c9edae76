"""`rlx dashboard`: start the web pages on this machine."""

from __future__ import annotations

from typing import Annotated

import typer

from engine.cli.output import answer, talk
from engine.cli.quick import QuickCommand

DEFAULT_PORT = 8501


def register(root: typer.Typer) -> None:
    """Add `dashboard` to `rlx`."""
    root.command("dashboard", cls=QuickCommand)(dashboard)


def dashboard(
    port: Annotated[
        int | None, typer.Option(min=1, max=65535, help=f"By default {DEFAULT_PORT}, or the next that is free.")
    ] = None,
    host: Annotated[
        str, typer.Option(help="Address to listen on; the default keeps it on this machine.")
    ] = "127.0.0.1",
    browser: Annotated[bool, typer.Option(help="Open a browser, where there is one.")] = True,
) -> None:
    """Serve the dashboard on this machine; prints its address."""
    import os
    import sys
    from importlib.util import find_spec
    from pathlib import Path

    from engine.cli.places import store, the_settings
    from engine.errors import NotFound

    found = find_spec("dashboard")
    if find_spec("streamlit") is None or found is None or not found.submodule_search_locations:
        raise NotFound("the dashboard is not installed: `pip install rlx` brings it and streamlit along")
    chosen = free_port(host, port)
    store()  # the pages read only: what has to be made is made here
    answer(f"http://{host}:{chosen}")
    if host not in ("127.0.0.1", "localhost", "::1"):
        talk(f"Listening on {host}: whoever reaches this machine can read every run.")
    command = [
        *(sys.executable, "-m", "streamlit", "run", str(Path(next(iter(found.submodule_search_locations))) / "app.py")),
        *("--server.address", host, "--server.port", str(chosen)),
        *("--server.headless", "false" if browser and os.environ.get("DISPLAY") else "true"),
        *("--browser.gatherUsageStats", "false"),
    ]
    sys.stdout.flush()
    os.execve(sys.executable, command, {**os.environ, **the_settings().environment()})


def free_port(host: str, port: int | None) -> int:
    """`port` if it can be had, or the first free one from the default on. Raises Refused."""
    from engine.errors import Refused

    for candidate in [port] if port is not None else range(DEFAULT_PORT, DEFAULT_PORT + 50):
        if _free(host, candidate):
            return candidate
    wanted = f"port {port}" if port is not None else f"every port from {DEFAULT_PORT} to {DEFAULT_PORT + 49}"
    raise Refused(f"{wanted} on {host} is taken, or {host} is no address of this machine; `--port` names another")


def _free(host: str, port: int) -> bool:
    import socket

    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError:
        return False
    return True
