"""Ports of this machine that nobody takes while a test needs them."""

from __future__ import annotations

import random
import socket

# Linux gives clients ports from 32768 on, other systems higher ones: no connection of another test takes one
# of these before its server listens.
PORTS_OF_SERVERS = range(20_000, 32_000)


def free_port() -> int:
    """Return a port on which a server can listen."""
    for port in random.sample(PORTS_OF_SERVERS, 50):
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise OSError("of 50 ports none was free")
