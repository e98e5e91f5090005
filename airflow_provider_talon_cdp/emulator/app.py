"""The ASGI application: reads a request, has it answered, sends the answer or cuts the connection."""

from __future__ import annotations

import socket
import struct
from urllib.parse import quote

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from airflow_provider_talon_cdp.emulator import admin, page, routes
from airflow_provider_talon_cdp.emulator.answers import Answer, RefusedError, error_answer, json_answer
from airflow_provider_talon_cdp.emulator.openapi import document
from airflow_provider_talon_cdp.emulator.service import Incoming, Service

TRANSPORT = "talon_emulator_transport"
"""Where the server leaves the connection's transport in the scope's state, for the faults that cut it."""

# Linger for no second: closing the socket then sends a TCP reset, where otherwise it would send a polite FIN.
_NO_LINGER = struct.pack("ii", 1, 0)


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
        answer = self._local(request, raw_path, body) or await self._service.handle(
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
            await _cut(scope, receive)
            return
        response = Response(answer.body, answer.status, dict(answer.headers), answer.media_type)
        await response(scope, receive, send)

    def _local(self, request: Request, raw_path: bytes, body: bytes) -> Answer | None:
        """The answer to what is the emulator's own; ``None`` for everything else."""
        if raw_path.startswith(b"/emulator/"):
            try:
                parts = routes.segments(raw_path)
            except RefusedError as refusal:
                return error_answer(refusal, "")
            if request.method not in ("GET", "HEAD") and "origin" in request.headers:
                # Only a browser sends it, and no page of ours does: some other site wants to change things here.
                return json_answer(403, {"error": "not from a web page"})
            return admin.handle(self._service, request.method, parts, request.query_params, body)
        if request.method not in ("GET", "HEAD"):
            return None
        if raw_path == b"/openapi.json":
            return json_answer(200, document(self._service.settings, self._url))
        return page.render(self._service, self._url, raw_path.decode("latin-1"), request.query_params)


async def _cut(scope: Scope, receive: Receive) -> None:
    """Reset the connection, and come back when the server has noticed, so that it does not miss an answer."""
    transport = scope["state"][TRANSPORT]
    connection: socket.socket | None = transport.get_extra_info("socket")
    if connection is not None:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NO_LINGER)
    transport.abort()
    message: Message = {}
    while message.get("type") != "http.disconnect":
        message = await receive()
