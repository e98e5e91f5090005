"""A proxy before an S3 API that answers with errors, late, in part, or not at all, as a seed says."""

from __future__ import annotations

import http.client
import random
import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

_SLOW_DOWN = b"<Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"
_DENIED = b"<Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>"
_NONE_DELETED = b"<DeleteResult><Error><Key>k</Key><Code>AccessDenied</Code></Error></DeleteResult>"
_NOT_PASSED_ON = ("connection", "transfer-encoding", "content-length", "date", "server")


class FaultyProxy:
    """Serves in a thread for the length of a ``with`` block.

    Args:
        url: The S3 API.
        seed: Of the faults.
        share: Of requests that meet one.

    Attributes:
        met: Faults so far.
        denies_deletions: Whether it answers as S3 does if the key may not delete.
    """

    kinds = ("503", "500 after", "late", "cut", "reset before", "reset after")

    def __init__(self, url, seed, share=0.12):
        self.target = urlsplit(url).netloc
        self.chance = random.Random(seed)
        self.share = share
        self.lock = threading.Lock()
        self.met = 0
        self.denies_deletions = False
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def __enter__(self):
        threading.Thread(target=self.server.serve_forever, args=(0.1,), daemon=True).start()
        return self

    def __exit__(self, *_):
        self.server.shutdown()
        self.server.server_close()

    def draw(self):
        with self.lock:
            fault = self.chance.choice(self.kinds) if self.chance.random() < self.share else None
            self.met += fault is not None
            return fault

    def _handler(self):
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self):
                fault = proxy.draw()
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                if proxy.denies_deletions and self.command == "DELETE":
                    return self.answer(403, [("Content-Type", "application/xml")], _DENIED)
                if proxy.denies_deletions and self.command == "POST" and self.path.endswith("?delete"):
                    return self.answer(200, [("Content-Type", "application/xml")], _NONE_DELETED)
                if fault == "503":
                    return self.answer(503, [("Content-Type", "application/xml")], _SLOW_DOWN)
                if fault == "reset before":
                    return self.cut()
                if fault == "late":
                    time.sleep(0.4)
                connection = http.client.HTTPConnection(proxy.target, timeout=60)
                try:
                    connection.request(self.command, self.path, body, dict(self.headers))
                    answer = connection.getresponse()
                    data = answer.read()
                finally:
                    connection.close()
                if fault == "500 after":
                    return self.answer(
                        500,
                        [("Content-Type", "application/xml")],
                        b"<Error><Code>InternalError</Code></Error>",
                    )
                if fault == "reset after":
                    return self.cut()
                return self.answer(answer.status, answer.getheaders(), data, cut=fault == "cut")

            do_PUT = do_POST = do_DELETE = do_HEAD = do_GET  # noqa: N815 - the server's names

            def answer(self, status, headers, body, *, cut=False):
                length = next((v for n, v in headers if n.lower() == "content-length"), None)
                length = length if self.command == "HEAD" and length else str(len(body))
                self.send_response(status)
                for name, value in headers:
                    if name.lower() not in _NOT_PASSED_ON:
                        self.send_header(name, value)
                self.send_header("Content-Length", length)
                self.end_headers()
                if self.command == "HEAD":
                    return
                self.wfile.write(body[: len(body) // 2] if cut else body)
                if cut:
                    self.cut()

            def cut(self):
                self.close_connection = True
                self.wfile.flush()
                self.connection.shutdown(socket.SHUT_RDWR)

            def log_message(self, *_):
                """Say nothing."""

        return Handler
