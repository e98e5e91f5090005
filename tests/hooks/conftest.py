"""Both ways to Talon.One (single calls, bulk), a TLS server and a forward proxy on this machine."""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import http.server
import ipaddress
import json
import os
import select
import socket
import socketserver
import ssl
import threading
from dataclasses import dataclass, field, replace
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from airflow_provider_talon_cdp.api import calls
from airflow_provider_talon_cdp.api.client import AsyncTalonCdpClient, TalonCdpClient, Transport, open_client
from airflow_provider_talon_cdp.hooks.talon_cdp import TalonCdpHook


def once(hook):
    """Settings of the hook's connection, for one attempt."""
    return replace(hook.settings, call_retry_seconds=0, bulk_retry_seconds=0)


@pytest.fixture(autouse=True)
def _plain_environment(monkeypatch, tmp_path):
    """No proxy, CA bundle or ``.netrc`` of the machine that runs the tests."""
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.delenv("REQUESTS_CA_BUNDLE", raising=False)
    monkeypatch.delenv("CURL_CA_BUNDLE", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "no-netrc"))


@pytest.fixture
def connect(talon, monkeypatch):
    """Set the Airflow connection: the emulator's, with other fields; an extra of None is left out."""

    def connect(extra=None, **fields):
        connection = talon.connection() | fields
        merged = connection["extra"] | (extra or {})
        connection["extra"] = {name: value for name, value in merged.items() if value is not None}
        monkeypatch.setenv("AIRFLOW_CONN_TALON_CDP_DEFAULT", json.dumps(connection))
        return TalonCdpHook()

    return connect


def _send_single(hook, request):
    with hook.get_conn() as session:
        return TalonCdpClient(once(hook), session).send(request)


def _send_bulk(hook, request):
    with hook.get_conn() as session:
        transport = Transport.of(session, hook.settings.base_url)

    async def send():
        async with open_client(once(hook), transport, AsyncTalonCdpClient) as client:
            return await client.send(request)

    return asyncio.run(send())


@pytest.fixture(params=[_send_single, _send_bulk], ids=["single", "bulk"])
def send(request):
    """Send one request, one attempt, the way single calls go or the way bulk goes."""
    return request.param


@dataclass
class Served:
    """A server on loopback and what it saw."""

    port: int
    seen: list = field(default_factory=list)

    @property
    def url(self):
        return f"http://{self.authority}"

    @property
    def authority(self):
        return f"127.0.0.1:{self.port}"


@contextlib.contextmanager
def _serving(server, served):
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield served
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class _Quiet(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request, client_address):
        """A client that hangs up during a TLS handshake is what some tests want."""


@dataclass(frozen=True)
class Authority:
    """A certificate authority and the files of what it signed."""

    ca: Path
    server: Path
    client: Path
    expired: Path
    elsewhere: Path


def _certificate(name, issuer=None, *, until=1, address="127.0.0.1"):
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    now = dt.datetime.now(dt.UTC)
    issuer_name, issuer_key = (issuer[0].subject, issuer[1]) if issuer else (subject, key)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer_name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(days=2))
        .not_valid_after(now + dt.timedelta(days=until))
        .add_extension(x509.BasicConstraints(ca=issuer is None, path_length=None), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key()), critical=False
        )
        .add_extension(
            x509.KeyUsage(
                digital_signature=True,
                key_cert_sign=issuer is None,
                crl_sign=issuer is None,
                content_commitment=False,
                key_encipherment=False,
                data_encipherment=False,
                key_agreement=False,
                encipher_only=False,
                decipher_only=False,
            ),
            critical=True,
        )
    )
    if issuer:
        names = [x509.IPAddress(ipaddress.ip_address(address))]
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    return builder.sign(issuer_key, hashes.SHA256()), key


def _pem(path, certificate, key):
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    path.write_bytes(certificate.public_bytes(serialization.Encoding.PEM) + private)
    return path


@pytest.fixture(scope="session")
def authority(tmp_path_factory):
    """A CA that no machine trusts, with a server's and a client's certificate."""
    folder = tmp_path_factory.mktemp("tls")
    root = _certificate("talon test CA")
    (folder / "ca.pem").write_bytes(root[0].public_bytes(serialization.Encoding.PEM))
    server = _pem(folder / "server.pem", *_certificate("127.0.0.1", root))
    client = _pem(folder / "client.pem", *_certificate("warehouse", root))
    expired = _pem(folder / "expired.pem", *_certificate("127.0.0.1", root, until=-1))
    elsewhere = _pem(folder / "elsewhere.pem", *_certificate("10.0.0.1", root, address="10.0.0.1"))
    return Authority(folder / "ca.pem", server, client, expired, elsewhere)


def _tls_server(authority, *, client_certificate=False, certificate=None):
    served = Served(0)

    class Handler(http.server.BaseHTTPRequestHandler):
        def handle(self):
            try:
                super().handle()
            except ssl.SSLError:
                # To close before all is read would reset the connection, and the alert might be lost.
                with (
                    socket.socket(fileno=os.dup(self.connection.fileno())) as plain,
                    contextlib.suppress(OSError),
                ):
                    plain.settimeout(2)
                    plain.shutdown(socket.SHUT_WR)
                    while plain.recv(65536):
                        """Until the client hangs up."""
                raise

        def do_PUT(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            certificate = self.connection.getpeercert() or {}
            names = [value for pairs in certificate.get("subject", ()) for _, value in pairs]
            served.seen.append((self.path, names, body))
            self.send_response(204)
            self.end_headers()

        def log_message(self, *args):
            pass

    server = _Quiet(("127.0.0.1", 0), Handler)
    served.port = server.server_port
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate or authority.server)
    if client_certificate:
        context.load_verify_locations(authority.ca)
        context.verify_mode = ssl.CERT_REQUIRED
    # Handshakes happen in the thread of each connection, not in the one that accepts.
    server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    return _serving(server, served)


@pytest.fixture
def tls(authority):
    """A server that answers every PUT with 204 over TLS, under a certificate of ``authority``."""
    with _tls_server(authority) as served:
        yield served


@pytest.fixture
def expired_tls(authority):
    """The same, under a certificate that is not valid any more."""
    with _tls_server(authority, certificate=authority.expired) as served:
        yield served


@pytest.fixture
def wrong_address_tls(authority):
    """The same, under a certificate for another address."""
    with _tls_server(authority, certificate=authority.elsewhere) as served:
        yield served


@pytest.fixture
def mutual_tls(authority):
    """The same, for clients with a certificate alone."""
    with _tls_server(authority, client_certificate=True) as served:
        yield served


@pytest.fixture
def proxy():
    """A forward proxy; ``seen`` holds the first line and the headers of every request to it."""
    served = Served(0)

    class Handler(socketserver.StreamRequestHandler):
        def handle(self):
            first = self.rfile.readline().decode().split()
            if not first:
                return
            headers = []
            while (line := self.rfile.readline()) not in (b"\r\n", b""):
                headers.append(line)
            served.seen.append((" ".join(first[:2]), b"".join(headers).decode()))
            method, target, version = first
            url = urlsplit(f"//{target}" if method == "CONNECT" else target)
            with socket.create_connection((url.hostname, url.port), 5) as upstream:
                if method == "CONNECT":
                    self.wfile.write(b"HTTP/1.1 200 Connected\r\n\r\n")
                else:
                    path = target.split(url.netloc, 1)[1] or "/"
                    upstream.sendall(f"{method} {path} {version}\r\nConnection: close\r\n".encode())
                    upstream.sendall(
                        b"".join(each for each in headers if b"onnection:" not in each) + b"\r\n"
                    )
                    length = next(
                        (int(h.split(b":")[1]) for h in headers if h.lower().startswith(b"content-length")), 0
                    )
                    upstream.sendall(self.rfile.read(length))
                self._pump(upstream)

        def _pump(self, upstream):
            pair = {self.connection: upstream, upstream: self.connection}
            while True:
                for source in select.select(list(pair), [], [], 5)[0] or [None]:
                    data = source.recv(65536) if source else b""
                    if not data:
                        return
                    pair[source].sendall(data)

    class Server(socketserver.ThreadingTCPServer):
        daemon_threads = True
        allow_reuse_address = True

        def handle_error(self, request, client_address):
            """A client may hang up at any time."""

    server = Server(("127.0.0.1", 0), Handler)
    served.port = server.server_address[1]
    with _serving(server, served):
        yield served


def _read_request(client):
    """Read a whole request: closing a connection before that resets it, and the answer may be lost."""
    with client.makefile("rb") as file:
        length = 0
        while (line := file.readline()) not in (b"", b"\r\n"):
            name, _, value = line.partition(b":")
            if name.lower() == b"content-length":
                length = int(value)
        file.read(length)


@pytest.fixture
def answer_raw():
    """Start servers that read a request and send pieces: bytes, or functions that yield them."""
    closing = threading.Event()
    with contextlib.ExitStack() as stack:

        def answer_raw(*pieces, pause=0.0, tls=None):
            server = stack.enter_context(socket.create_server(("127.0.0.1", 0)))

            def serve():
                with contextlib.suppress(OSError):
                    while not closing.is_set():
                        client, _ = server.accept()
                        with client, contextlib.suppress(OSError, ssl.SSLError):
                            client.settimeout(5)
                            with tls.wrap_socket(client, server_side=True) if tls else client as spoken:
                                _read_request(spoken)
                                for piece in pieces:
                                    for part in [piece] if isinstance(piece, bytes) else piece():
                                        spoken.sendall(part)
                                        if pause and closing.wait(pause):
                                            return

            thread = threading.Thread(target=serve, daemon=True)
            thread.start()
            stack.callback(thread.join, 5)
            stack.callback(server.shutdown, socket.SHUT_RDWR)
            return server.getsockname()[1]

        yield answer_raw
        closing.set()


@pytest.fixture
def request_one():
    """A membership update of one profile."""
    return calls.update_customer_profiles_audiences([("anna", ["vip"], [])])


@pytest.fixture
def closed_port():
    """A port of this machine where nothing listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        # Bound, it stays free: nobody else can listen on it.
        yield probe.getsockname()[1]


@pytest.fixture
def echo():
    """A plain server that answers every PUT with 204 and keeps the headers it got."""
    served = Served(0)

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_PUT(self):
            served.seen.append(dict(self.headers))
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(204)
            self.end_headers()

        def log_message(self, *args):
            pass

    server = _Quiet(("127.0.0.1", 0), Handler)
    served.port = server.server_port
    with _serving(server, served):
        yield served
