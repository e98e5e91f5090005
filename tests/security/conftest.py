"""The connection to the emulator with other fields, and a server that answers with what a test wants."""

from __future__ import annotations

import http.server
import json
import threading
from dataclasses import dataclass, field

import pytest

from airflow_provider_talon_cdp.hooks.talon_cdp import TalonCdpHook


@pytest.fixture
def connect(talon, monkeypatch):
    """Set the Airflow connection: the emulator's, with other fields."""

    def connect(extra=None, **fields):
        connection = talon.connection() | fields
        connection["extra"] = connection["extra"] | (extra or {})
        monkeypatch.setenv("AIRFLOW_CONN_TALON_CDP_DEFAULT", json.dumps(connection))
        return TalonCdpHook()

    return connect


@dataclass
class Server:
    """A plain server on loopback; ``answer`` is what it says, ``seen`` the requests it got."""

    port: int = 0
    status: int = 204
    headers: dict = field(default_factory=dict)
    body: bytes = b""
    seen: list = field(default_factory=list)

    @property
    def url(self):
        return f"http://127.0.0.1:{self.port}"


@pytest.fixture
def serve():
    """Start servers, and stop them at the end."""
    running = []

    def serve(**answer):
        server = Server(**answer)

        class Handler(http.server.BaseHTTPRequestHandler):
            def answer(self):
                self.rfile.read(int(self.headers.get("Content-Length") or 0))
                server.seen.append((self.command, self.path, dict(self.headers)))
                self.send_response(server.status)
                for name, value in server.headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(server.body)))
                self.end_headers()
                self.wfile.write(server.body)

            do_GET = do_PUT = do_POST = do_DELETE = answer  # noqa: N815 - http.server's names

            def log_message(self, *args):
                pass

        httpd = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        httpd.daemon_threads = True
        server.port = httpd.server_port
        thread = threading.Thread(target=httpd.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        running.append((httpd, thread))
        return server

    yield serve
    for httpd, thread in running:
        httpd.shutdown()
        thread.join()
        httpd.server_close()


@pytest.fixture
def everything_logged(caplog, capfd):
    """What any logger said at any level, and what went to the terminal, as one text."""
    caplog.set_level(0)

    def text():
        out, err = capfd.readouterr()
        records = [record.getMessage() + repr(record.__dict__) for record in caplog.records]
        return "\n".join([*records, caplog.text, out, err])

    return text
