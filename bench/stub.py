"""A stand-in for Talon.One that does nothing but answer, so that what is measured is the client.

Usage: ``python bench/stub.py [--service-time S] [--rate N [--burst N] [--retry-after S]]`` serves, and prints
its URL; ``python bench/stub.py --capacity URL [--seconds N]`` says what the stub at that URL sustains when a
raw client does nothing but send.

It reads heads, skips bodies, and answers 201 to a POST, 204 to a multi-profile call, 200 and a small
integration state to any other PUT, or 429 when its token bucket is empty. ``GET /`` answers, as JSON, its
requests, how many of them it answered 429, its CPU seconds, and when the first one since the last such
question came, by the machine's clock.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import re
import socket
import sys
import time
from urllib.parse import urlsplit

_AUDIENCE = (
    b'{"id":1,"created":"2026-01-01T00:00:00Z","accountId":1,'
    b'"name":"VIP","integration":"x","integrationId":"vip"}'
)
_STATE = b'{"effects":[],"createdCoupons":[],"createdReferrals":[]}'
_TOO_MANY = (
    b'{"StatusCode":429,"Error":"Too Many Requests","RequestUUID":"00000000-0000-4000-8000-000000000000"}'
)
# The CDP API's path in either spelling, and that of the Integration API, which the vendor's SDK uses.
_MULTI_PROFILE = re.compile(rb"P(UT|OST) \S*(customer_profiles?/audiences|/customer_audiences) ")
_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_CONNECTIONS = 16
_BODY = b"x" * 60_000
"""As long as a request of a thousand members."""


def response(status: bytes, body: bytes = b"", *headers: bytes) -> bytes:
    """Make the bytes of an HTTP response."""
    kind = b"Content-Type: application/json\r\nContent-Length: %d\r\n" % len(body) if body else b""
    return b"HTTP/1.1 %s\r\n%s%s\r\n%s" % (status, b"".join(headers), kind, body)


class Bucket:
    """A token bucket, full at first.

    Args:
        rate: Requests a second; 0 for no limit.
        burst: Requests that may come at once after a pause.
    """

    def __init__(self, rate: float, burst: float) -> None:
        self._rate = rate
        self._burst = self._tokens = burst
        self._at = time.monotonic()

    def take(self) -> bool:
        """Let a request pass, or not."""
        if not self._rate:
            return True
        now = time.monotonic()
        self._tokens = min(self._burst, self._tokens + (now - self._at) * self._rate)
        self._at = now
        passes = self._tokens >= 1
        self._tokens -= passes
        return passes


class Stub:
    """What all connections share.

    Args:
        bucket: The limit.
        service_time: Seconds from the end of a request to its answer; a 429 comes at once.
        retry_after: Seconds that a 429 asks to wait; 0 for no such header.
    """

    def __init__(self, bucket: Bucket, service_time: float, retry_after: int) -> None:
        self._bucket = bucket
        self._service_time = service_time
        retry = (b"Retry-After: %d\r\n" % retry_after,) if retry_after else ()
        self._refusal = response(b"429 Too Many Requests", _TOO_MANY, *retry)
        self._requests = 0
        self._throttled = 0
        self._first_at: float | None = None

    def answer(self, head: bytes, transport: asyncio.Transport) -> None:
        """Answer one request whose body has come."""
        if head.startswith(b"GET"):
            done = {
                "requests": self._requests,
                "throttled": self._throttled,
                "first_at": self._first_at,
                "cpu": time.process_time(),
            }
            self._first_at = None
            transport.write(response(b"200 OK", json.dumps(done).encode()))
            return
        self._first_at = self._first_at or time.monotonic()
        self._requests += 1
        if not self._bucket.take():
            self._throttled += 1
            transport.write(self._refusal)
        elif self._service_time:
            asyncio.get_running_loop().call_later(self._service_time, transport.write, _success(head))
        else:
            transport.write(_success(head))


_CREATED, _NO_CONTENT, _OK = (
    response(b"201 Created", _AUDIENCE),
    response(b"204 No Content"),
    response(b"200 OK", _STATE),
)


def _success(head: bytes) -> bytes:
    if _MULTI_PROFILE.match(head):
        return _NO_CONTENT
    return _CREATED if head.startswith(b"POST") else _OK


class Connection(asyncio.BufferedProtocol):
    """Reads heads, and lets bodies overwrite each other in one buffer."""

    def __init__(self, stub: Stub) -> None:
        self._stub = stub
        self._buffer = bytearray(1 << 18)
        self._view = memoryview(self._buffer)
        self._filled = 0
        self._head = b""
        self._body_left = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def get_buffer(self, sizehint: int) -> memoryview:  # noqa: ARG002 - asyncio's signature
        """Say where the next bytes go."""
        return self._view[self._filled :]

    def buffer_updated(self, nbytes: int) -> None:
        """Take what came."""
        if nbytes < self._body_left:
            self._body_left -= nbytes
            return
        start, end = 0, self._filled + nbytes
        while start < end:
            if not self._head:
                length = self._buffer.find(b"\r\n\r\n", start, end) + 4 - start
                if length < 4:
                    break
                self._head = bytes(self._view[start : start + length])
                found = _LENGTH.search(self._head)
                self._body_left = int(found[1]) if found else 0
                start += length
            if end - start < self._body_left:
                self._body_left -= end - start
                start = end
                break
            start += self._body_left
            self._body_left = 0
            head, self._head = self._head, b""
            self._stub.answer(head, self._transport)
        # The beginning of a head stays, in front.
        self._filled = end - start
        self._buffer[: self._filled] = self._buffer[start:end]


async def serve(stub: Stub, listener: int | None) -> None:
    """Serve until this process is ended, on a socket that listens or on a new one of the loopback."""
    loop = asyncio.get_running_loop()
    if listener is None:
        server = await loop.create_server(lambda: Connection(stub), "127.0.0.1")
    else:
        server = await loop.create_server(lambda: Connection(stub), sock=socket.socket(fileno=listener))
    print(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", flush=True)
    await server.serve_forever()


def capacity(url: str, seconds: float) -> float:
    """Measure how many requests a second, as long as those of a thousand members, a stub answers."""
    address = urlsplit(url).hostname, urlsplit(url).port
    head = b"PUT /cdp/v2/customer_profiles/audiences HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n"
    request = head % len(_BODY) + _BODY
    sockets = [socket.create_connection(address) for _ in range(_CONNECTIONS)]
    began, answered = time.monotonic(), 0
    while time.monotonic() < began + seconds:
        for each in sockets:
            each.sendall(request)
        for each in sockets:
            assert each.recv(4096) == _NO_CONTENT
        answered += len(sockets)
    took = time.monotonic() - began
    for each in sockets:
        each.close()
    return answered / took


def main() -> None:
    """Serve, or measure a stub that serves."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--listener", type=int, metavar="FD", help="of a socket that listens (a new one)")
    parser.add_argument("--service-time", type=float, default=0.0, help="seconds (%(default)s)")
    parser.add_argument("--rate", type=float, default=0.0, help="requests a second; 0 for any (%(default)s)")
    parser.add_argument("--burst", type=float, default=10.0, help="requests at once (%(default)s)")
    parser.add_argument("--retry-after", type=int, default=0, help="seconds that a 429 says; 0 for none")
    parser.add_argument("--capacity", metavar="URL", help="measure the stub there")
    parser.add_argument("--seconds", type=float, default=3.0, help="to measure it for (%(default)s)")
    options = parser.parse_args()
    if options.capacity:
        print(capacity(options.capacity, options.seconds))
        return
    # What is there stays; requests make no cycles.
    gc.freeze()
    gc.disable()
    stub = Stub(Bucket(options.rate, options.burst), options.service_time, options.retry_after)
    try:
        asyncio.run(serve(stub, options.listener))
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
