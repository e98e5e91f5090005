"""Answers without end, too large or too slow, on both ways to Talon.One."""

from __future__ import annotations

import itertools
import resource
import ssl
import time
import zlib

import pytest

from airflow_provider_talon_cdp.exceptions import TransientError, UnexpectedAnswerError

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
PIECE = b" " * 65536


def peak():
    """The most memory that this process ever had, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def endless():
    return itertools.repeat(PIECE)


def chunked():
    return itertools.repeat(b"10000\r\n" + PIECE + b"\r\n")


def bomb():
    """A kilobyte of each megabyte."""
    compressor = zlib.compressobj(wbits=zlib.MAX_WBITS | 16)
    # After a full flush the same bytes stand for the same megabyte again.
    head, block = (
        b"".join([*map(compressor.compress, [PIECE] * 16), compressor.flush(zlib.Z_FULL_FLUSH)])
        for _ in range(2)
    )
    return itertools.chain([head], itertools.repeat(block * 20))


@pytest.mark.parametrize(
    "head, body",
    [
        (HEAD + b"Content-Length: 1000000000\r\n\r\n", endless),
        (HEAD + b"\r\n", endless),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\n", chunked),
        (HEAD + b"Content-Encoding: gzip\r\n\r\n", bomb),
        (HEAD.replace(b"200", b"500") + b"Content-Length: 1000000000\r\n\r\n", endless),
    ],
    ids=["1 GB", "without end", "chunks without end", "gzip bomb", "error of 1 GB"],
)
def test_at_most_a_megabyte_of_an_answer_is_read(connect, send, request_one, answer_raw, head, body):
    hook = connect({"timeout": 20}, host=f"http://127.0.0.1:{answer_raw(head, body)}")
    _ = hook.settings
    before, began = peak(), time.monotonic()
    with pytest.raises((UnexpectedAnswerError, TransientError)) as error:
        send(hook, request_one)
    assert error.value.status in (200, 500)
    assert len(error.value.body) <= 1_000_000
    assert time.monotonic() - began < 5
    assert peak() - before < 30


@pytest.mark.parametrize(
    "pieces",
    [
        (lambda: (b"%c" % each for each in HEAD + b"\r\n"),),
        (HEAD + b"Content-Length: 1000\r\n\r\n", lambda: itertools.repeat(b" ", 1000)),
        (HEAD + b"Transfer-Encoding: chunked\r\n\r\n", lambda: itertools.repeat(b"1\r\n \r\n", 1000)),
    ],
    ids=["head", "body", "chunks"],
)
@pytest.mark.parametrize("is_tls", [False, True], ids=["plain", "tls"])
def test_an_attempt_has_one_time_limit_however_slowly_the_answer_comes(
    connect, send, request_one, answer_raw, authority, pieces, is_tls
):
    """A byte now and then keeps each wait for the next one short."""
    context = None
    if is_tls:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(authority.server)
    port = answer_raw(*pieces, pause=0.1, tls=context)
    extra = {"timeout": 0.5, "verify": str(authority.ca)}
    hook = connect(extra, host=f"http{'s' * is_tls}://127.0.0.1:{port}")
    _ = hook.settings
    began = time.monotonic()
    with pytest.raises(TransientError, match="timed out") as error:
        send(hook, request_one)
    # Half a second to connect, and half a second to answer.
    assert 0.4 < time.monotonic() - began < 3
    assert error.value.is_unclear


def test_an_answer_that_comes_in_pieces_within_the_time_is_read(connect, send, request_one, answer_raw):
    head = b"HTTP/1.1 204 No Content\r\n\r\n"
    port = answer_raw(lambda: (b"%c" % each for each in head), pause=0.01)
    send(connect({"timeout": 5}, host=f"http://127.0.0.1:{port}"), request_one)
