"""An ASGI application on a uvicorn server in a thread of its own, with the loop that goes with it."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Callable
from ipaddress import ip_address

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from airflow_provider_talon_cdp.emulator.app import TRANSPORT

_PATIENCE = 10.0


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
