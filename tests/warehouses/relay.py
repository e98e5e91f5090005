"""Passes a TCP connection on, and breaks it in the middle."""

from __future__ import annotations

import socket
import socketserver
import threading
from contextlib import suppress


class BreakingRelay:
    """Listens on loopback before a server; use it as a context manager.

    Args:
        port: The server's port on loopback.
        most: Bytes of answers after which all connections are broken.

    Attributes:
        is_broken: Whether that has happened.
    """

    def __init__(self, port, most):
        relay = self
        self.is_broken = False
        self._left = most

        class Handler(socketserver.BaseRequestHandler):
            def handle(self):
                if relay.is_broken:
                    return
                with socket.create_connection(("127.0.0.1", port)) as server:
                    threading.Thread(target=_pass_on, args=(self.request, server), daemon=True).start()
                    relay._answer(server, self.request)

        self._server = socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.port = self._server.server_address[1]

    def _answer(self, server, client):
        with suppress(OSError):
            while data := server.recv(65536):
                self._left -= len(data)
                if self._left < 0:
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
