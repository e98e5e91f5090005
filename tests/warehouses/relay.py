"""Passes TCP connections on, counts what it passes, and may break them in the middle."""

from __future__ import annotations

import socket
import socketserver
import threading
from contextlib import suppress

# Of each socket of the relay: what waits there counts as passed, though no client has read it.
_BUFFER = 65536


class Relay:
    """Listens on loopback before a server; use it as a context manager.

    Args:
        port: The server's port on loopback.
        most: Bytes of answers after which all connections are broken; None for never.

    Attributes:
        passed: Bytes of answers so far.
        is_broken: Whether connections are broken.
    """

    def __init__(self, port, most=None):
        relay = self
        self.passed = 0
        self.is_broken = False
        self._most = most

        class Handler(socketserver.BaseRequestHandler):
            def handle(self):
                if relay.is_broken:
                    return
                self.request.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _BUFFER)
                self.request.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                with socket.socket() as server:
                    server.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER)
                    server.connect(("127.0.0.1", port))
                    threading.Thread(target=_pass_on, args=(self.request, server), daemon=True).start()
                    relay._answer(server, self.request)

        self._server = socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.port = self._server.server_address[1]

    def _answer(self, server, client):
        with suppress(OSError):
            while data := server.recv(65536):
                self.passed += len(data)
                if self._most is not None and self.passed > self._most:
                    self.is_broken = True
                    break
                client.sendall(data)
        for each in (server, client):
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)

    def __enter__(self):
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_):
        self._server.shutdown()
        self._server.server_close()


def _pass_on(source, target):
    with suppress(OSError):
        while data := source.recv(65536):
            target.sendall(data)
    with suppress(OSError):
        target.shutdown(socket.SHUT_WR)
