"""A proxy that makes a real PostgreSQL look like Amazon Redshift to its driver, redshift_connector."""

from __future__ import annotations

import re
import socket
import socketserver
import struct
import threading
from contextlib import suppress

_SSL = 80877103
# What PostgreSQL knows in the message that begins a session; the driver says more of itself.
_KNOWN = {b"user", b"database", b"application_name", b"client_encoding", b"options"}


def _read(stream, count):
    data = b""
    while len(data) < count:
        more = stream.recv(count - len(data))
        if not more:
            raise ConnectionError
        data += more
    return data


def _startup(stream):
    """Read the first message; TLS is refused."""
    while True:
        (length,) = struct.unpack("!i", _read(stream, 4))
        body = _read(stream, length - 4)
        if struct.unpack("!i", body[:4])[0] != _SSL:
            break
        stream.sendall(b"N")
    words = body[4:].split(b"\0")
    pairs = [pair for pair in zip(words[::2], words[1::2], strict=False) if pair[0] in _KNOWN]
    body = body[:4] + b"".join(key + b"\0" + value + b"\0" for key, value in pairs) + b"\0"
    return struct.pack("!i", len(body) + 4) + body


_JSON, _SUPER = 114, 4000


def _described(body):
    """Describe a result's columns as Redshift does, which calls JSON by another type."""
    (count,) = struct.unpack("!h", body[:2])
    at = 2
    for _ in range(count):
        at = body.index(b"\0", at) + 1 + 6
        if struct.unpack("!i", body[at : at + 4])[0] == _JSON:
            body = body[:at] + struct.pack("!i", _SUPER) + body[at + 4 :]
        at += 12
    return body


def _pump(source, target, fetches):
    with suppress(OSError):
        while data := source.recv(65536):
            fetches += map(int, re.findall(rb"FETCH FORWARD (\d+)", data))
            # Redshift knows no collation of this name.
            target.sendall(data.replace(b'COLLATE "C"', b'COLLATE "?"'))
    for each in (source, target):
        with suppress(OSError):
            each.shutdown(socket.SHUT_RDWR)


def _answers(server, client, proxy):
    """Pass answers on, and count rows; PostgreSQL's version becomes the one that Redshift tells."""
    try:
        while True:
            kind = _read(server, 1)
            (length,) = struct.unpack("!i", _read(server, 4))
            body = _read(server, length - 4)
            if kind == b"S" and body.startswith(b"server_version\0"):
                body = b"server_version\x008.0.2\0"
            if kind == b"D":
                proxy.rows += 1
            if kind == b"T":
                body = _described(body)
            client.sendall(kind + struct.pack("!i", len(body) + 4) + body)
    except OSError:
        client.close()
        server.close()


class FakeRedshift:
    """Listens on loopback before a PostgreSQL whose socket is in a folder; use it as a context manager.

    Attributes:
        fetches: How many rows clients asked for at once.
        rows: How many rows went to clients so far.
    """

    def __init__(self, folder, port=5432):
        path = f"{folder}/.s.PGSQL.{port}"
        fetches = self.fetches = []
        self.rows = 0
        proxy = self

        class Handler(socketserver.BaseRequestHandler):
            def handle(self):
                # Messages are sent one by one, and without it some would wait for an acknowledgement.
                self.request.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                with socket.socket(socket.AF_UNIX) as server:
                    server.connect(path)
                    server.sendall(_startup(self.request))
                    threading.Thread(target=_pump, args=(self.request, server, fetches), daemon=True).start()
                    _answers(server, self.request, proxy)

        self._server = socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.port = self._server.server_address[1]

    def __enter__(self):
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_):
        self._server.shutdown()
        self._server.server_close()
