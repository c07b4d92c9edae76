"""Under which address other hosts reach this one, and which network interface has it."""

from __future__ import annotations

import fcntl
import ipaddress
import socket
import struct
from contextlib import suppress
from pathlib import Path
from urllib.parse import urlsplit

from engine.runtime.gate import NodeUnreachable
from engine.settings import Settings
from engine.store.members import Gang

LOOPBACK = "127.0.0.1"
_SIOCGIFADDR = 0x8915


def announced(settings: Settings, gang: Gang) -> str:
    """Where the first node waits for the others.

    What the setting says; this host alone, where all of them are on it; else the address that we have on the way to
    the database or the broker, which the others reach too. Raises NodeUnreachable where that says nothing.
    """
    if settings.address:
        try:
            return str(socket.getaddrinfo(settings.address, None, type=socket.SOCK_STREAM)[0][4][0])
        except OSError as error:
            raise NodeUnreachable(f"RLX_ADDRESS={settings.address} on {gang.nodes[0].host}: {error}") from error
    if len({node.host for node in gang.nodes}) == 1:
        return LOOPBACK
    for url in (settings.database_url, settings.broker_url):
        server = urlsplit(url).hostname
        if server and (found := _on_the_way_to(server)) is not None:
            return found
    raise NodeUnreachable(
        f"{gang.name(0)} does not know at which address {gang.name(1)} reaches it: its database and its broker are on "
        "its own host. Set RLX_ADDRESS where that worker runs"
    )


def interface_of(address: str) -> str:
    """The network interface with this address. Raises NodeUnreachable."""
    wanted = ipaddress.ip_address(address)
    if wanted.version == 6:
        for line in Path("/proc/net/if_inet6").read_text().splitlines():
            fields = line.split()
            if int(fields[0], 16) == int(wanted):
                return fields[-1]
    else:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            for _, name in socket.if_nameindex():
                with suppress(OSError):  # it has none
                    answer = fcntl.ioctl(probe, _SIOCGIFADDR, struct.pack("256s", name.encode()))
                    if answer[20:24] == wanted.packed:
                        return name
    raise NodeUnreachable(
        f"no network interface of this host has the address {address}: name the one that other nodes reach with "
        "GLOO_SOCKET_IFNAME, where its worker runs"
    )


def _on_the_way_to(server: str) -> str | None:
    """Our address on the way there; None where it is this host, or not to be found."""
    with suppress(OSError):
        family, _, _, _, place = socket.getaddrinfo(server, 9, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect(place)  # nothing is sent
            found = str(probe.getsockname()[0])
            return None if ipaddress.ip_address(found).is_loopback else found
    return None
