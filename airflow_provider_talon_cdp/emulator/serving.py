"""The emulator over HTTP: an ASGI application, and a uvicorn server for it in a thread of its own."""

from __future__ import annotations

import asyncio
import socket
import struct
import threading
import time
from collections.abc import Callable
from ipaddress import ip_address
from urllib.parse import quote

import uvicorn
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from airflow_provider_talon_cdp.emulator import admin, calls, page
from airflow_provider_talon_cdp.emulator.answers import (
    EmulatorAnswer,
    RefusedError,
    error_answer,
    json_answer,
    phrase,
)
from airflow_provider_talon_cdp.emulator.faults import CUT, DRIP
from airflow_provider_talon_cdp.emulator.service import Incoming, Service

TRANSPORT = "talon_emulator_transport"
"""Where the server leaves the connection's transport in the scope's state, for the faults that cut it."""

# Linger for no second: closing the socket then sends a TCP reset, where otherwise it would send a polite FIN.
_NO_LINGER = struct.pack("ii", 1, 0)
_PATIENCE = 10.0
# Between two pieces of a body that is made while it is sent: some 60 megabytes a second.
_BREATH = 0.001


class App:
    """The emulator as an ASGI application.

    Whatever is not its own page or read-back is taken for a call of the API.

    Args:
        url: where it listens, for the page.
    """

    def __init__(self, service: Service, url: str) -> None:
        self._service = service
        self._url = url

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        if scope["type"] != "http":
            raise RuntimeError(f"the emulator speaks HTTP only, not {scope['type']}")
        request = Request(scope, receive)
        # Not every ASGI server passes the raw path on; without it an escaped slash looks like
        # a real one.
        raw_path: bytes = scope.get("raw_path") or quote(scope["path"]).encode("ascii")
        try:
            body = await request.body()
        except ClientDisconnect:
            return
        local = self._local(request, raw_path, body)
        if local is not None:
            await _response(local)(scope, receive, send)
            return
        answer, fault = await self._service.handle(
            Incoming(
                method=request.method,
                path=raw_path,
                query=request.url.query,
                headers=request.headers,
                skip_unknown=request.query_params.getlist("skipNonExistingAttributes"),
                body=body,
            )
        )
        if answer is None:
            await _reset(scope, receive)
        elif fault is not None and fault.kind in (CUT, DRIP):
            raw = _raw(answer)
            if fault.kind == CUT:
                # Without a body, in the status: clients take a head that ends too early for a whole one.
                raw = raw[: len(raw) - len(answer.body) // 2 if answer.body else len(b"HTTP/1.1 2")]
            await self._drip(scope, receive, raw, fault.pause if fault.kind == DRIP else 0)
        elif answer.pieces is not None:
            await self._stream(answer, scope, receive, send)
        else:
            await _response(answer)(scope, receive, send)

    async def _drip(self, scope: Scope, receive: Receive, raw: bytes, pause: float) -> None:
        """Send bytes one by one, past the server, and close the connection."""
        transport: asyncio.Transport = scope["state"][TRANSPORT]
        for place in range(len(raw)):
            if transport.is_closing():
                break
            transport.write(raw[place : place + 1])
            await self._service.pause(pause)
        transport.close()
        await _gone(receive)

    async def _stream(self, answer: EmulatorAnswer, scope: Scope, receive: Receive, send: Send) -> None:
        """Send a body while it is made, until the client or the emulator has had enough."""
        transport: asyncio.Transport = scope["state"][TRANSPORT]
        head = _response(answer).raw_headers
        if "Content-Length" not in answer.headers:
            # Starlette takes the body, which is not made yet, for an empty one.
            head = [(name, value) for name, value in head if name != b"content-length"]
        await send({"type": "http.response.start", "status": answer.status, "headers": head})
        for piece in answer.pieces or ():
            if transport.is_closing() or self._service.stopping.is_set():
                await _reset(scope, receive)
                return
            await send({"type": "http.response.body", "body": piece, "more_body": True})
            await asyncio.sleep(_BREATH)
        await send({"type": "http.response.body"})

    def _local(self, request: Request, raw_path: bytes, body: bytes) -> EmulatorAnswer | None:
        """The answer to what is the emulator's own; ``None`` for everything else."""
        if raw_path.startswith(b"/emulator/"):
            try:
                parts = calls.segments(raw_path)
            except RefusedError as refusal:
                return error_answer(refusal, "")
            if request.method not in ("GET", "HEAD") and "origin" in request.headers:
                # Only a browser sends it, and no page of ours does: another site wants to change something.
                return json_answer(403, {"error": "not from a web page"})
            return admin.handle(self._service, request.method, parts, request.query_params, body)
        if request.method not in ("GET", "HEAD"):
            return None
        if raw_path == b"/openapi.json":
            return admin.openapi(self._service.settings, self._url)
        return page.render(self._service, self._url, raw_path.decode("latin-1"), request.query_params)


def _response(answer: EmulatorAnswer) -> Response:
    return Response(answer.body, answer.status, dict(answer.headers), answer.media_type)


def _raw(answer: EmulatorAnswer) -> bytes:
    """An answer as it goes over the wire."""
    head = [f"HTTP/1.1 {answer.status} {phrase(answer.status)}".encode("ascii")]
    head += [name + b": " + value for name, value in _response(answer).raw_headers]
    return b"\r\n".join((*head, b"", answer.body))


async def _reset(scope: Scope, receive: Receive) -> None:
    """Reset the connection."""
    transport: asyncio.Transport = scope["state"][TRANSPORT]
    connection: socket.socket | None = transport.get_extra_info("socket")
    if connection is not None and not transport.is_closing():
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NO_LINGER)
    transport.abort()
    await _gone(receive)


async def _gone(receive: Receive) -> None:
    """Come back when the server knows that the connection is closed, so that it misses no answer."""
    message: Message = {}
    while message.get("type") != "http.disconnect":
        message = await receive()


class ServerThread:
    """A server for one start and one stop. It listens, but does not answer, before it is started.

    Args:
        host: address of this machine.
        port: 0 for any that is free.

    Raises:
        OSError: the port is in use, or the address is not of this machine.
        OverflowError: there is no such port.
    """

    def __init__(self, host: str, port: int) -> None:
        self._listener = _listen(host, port)
        self.url = _url(host, self._listener.getsockname()[1])

    def start(self, app: ASGIApp) -> None:
        """Start, and come back when it answers.

        Raises:
            RuntimeError: it did not start in time.
        """
        self._loop = asyncio.new_event_loop()
        self._server = uvicorn.Server(
            uvicorn.Config(
                app,
                http=_Protocol,
                loop="asyncio",
                ws="none",
                lifespan="off",
                # The process belongs to the user, and so does its logging.
                log_config=None,
                log_level="error",
                access_log=False,
                proxy_headers=False,
                server_header=False,
                # Idle connections of a test's client should not go stale in the middle of the test.
                timeout_keep_alive=75,
                timeout_graceful_shutdown=2,
            )
        )
        self._thread = threading.Thread(target=self._run, name="talon-emulator", daemon=True)
        self._thread.start()
        deadline = time.monotonic() + _PATIENCE
        while not self._server.started:
            if not self._thread.is_alive() or time.monotonic() > deadline:
                self._server.should_exit = True
                raise RuntimeError("the emulator did not start")
            time.sleep(0.002)

    def stop(self, before: Callable[[], object]) -> None:
        """Stop, and come back when every connection is closed and the thread has ended.

        Args:
            before: called on the event loop first, to end what would wait.
        """
        self._server.should_exit = True
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._hurry, before)
        self._thread.join(_PATIENCE)

    def _hurry(self, before: Callable[[], object]) -> None:
        before()
        for connection in self._open():
            # A client that is not done with its request: nobody knows whether it ever will be.
            if connection.cycle is not None and connection.cycle.more_body:
                connection.transport.abort()

    def _open(self) -> list[_Protocol]:
        return [each for each in self._server.server_state.connections if isinstance(each, _Protocol)]

    def _run(self) -> None:
        with self._listener:
            try:
                self._loop.run_until_complete(self._serve())
            finally:
                self._loop.run_until_complete(self._loop.shutdown_asyncgens())
                self._loop.close()

    async def _serve(self) -> None:
        await self._server.serve(sockets=[self._listener])
        # Whatever is still open after the server's patience; nobody else would close it.
        for connection in self._open():
            connection.transport.abort()
        await asyncio.sleep(0)


class _Protocol(H11Protocol):
    """HTTP/1.1 that shows the application its transport, which plain ASGI has no way to do."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.app_state = {**self.app_state, TRANSPORT: transport}


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # With the protocol named, asyncio sets TCP_NODELAY; without it an answer with a body takes 40 ms longer.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
    except (OSError, OverflowError):
        listener.close()
        raise
    return listener


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach an address."""
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


def _url(host: str, port: int) -> str:
    """Where a client on this machine reaches it: an address that means "all of them" becomes the loopback."""
    shown = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104 - compared, not bound
    return f"http://[{shown}]:{port}" if ":" in shown else f"http://{shown}:{port}"
