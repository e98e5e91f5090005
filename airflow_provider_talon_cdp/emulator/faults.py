"""Faults on demand: what the next calls meet instead of, or on top of, their answer."""

from __future__ import annotations

import math
import threading
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, TypedDict

from airflow_provider_talon_cdp.emulator.answers import (
    JSON,
    EmulatorAnswer,
    RefusedError,
    error_answer,
    phrase,
)
from airflow_provider_talon_cdp.emulator.exact_json import Json, dumps

STATUS = "status"
RESET_BEFORE = "reset_before"
RESET_AFTER = "reset_after"
SLOW = "slow"
DRIP = "drip"
CUT = "cut"
WRONG_SUCCESS = "wrong_success"
HTML = "html"
ENDLESS = "endless"
LARGE = "large"
GZIP_BOMB = "gzip_bomb"
# The options of every kind, beside those of the queue.
KINDS: dict[str, set[str]] = {
    STATUS: {"status", "retry_after", "body", "html"},
    RESET_BEFORE: set(),
    RESET_AFTER: set(),
    SLOW: {"seconds"},
    DRIP: {"seconds"},
    CUT: set(),
    WRONG_SUCCESS: set(),
    HTML: {"html"},
    ENDLESS: {"status"},
    LARGE: {"status", "megabytes"},
    GZIP_BOMB: {"status", "megabytes"},
}

_PAGE = "<!doctype html><title>Gateway</title><h1>This is not the page you are looking for</h1>"
_LAST_STATUS = 599
_BODYLESS = (204, 304)
_FIRST_ERROR = 400
_MEGABYTE = 1 << 20
_PIECE = b"0" * (1 << 16)
_OPEN, _CLOSE = b'{"effects": [], "padding": "', b'"}'


class FaultOptions(TypedDict, total=False):
    """What a fault may have beside its kind and its place in the queue; see :class:`Fault`."""

    status: int | None
    retry_after: int | str | None
    body: Json
    html: str | None
    seconds: float | None
    megabytes: int | None


@dataclass(frozen=True)
class Fault:
    """One fault.

    These kinds let the call take effect:

    - ``slow``: the answer comes late.
    - ``drip``: the answer comes one byte at a time, its head too.
    - ``cut``: the connection is closed in the middle of the answer.
    - ``reset_after``: the connection is reset instead of an answer.
    - ``endless``: the answer's body never ends.
    - ``large``: the answer's body has many megabytes.
    - ``gzip_bomb``: the body is small and has many megabytes once it is unpacked.

    With these, nothing happens but the answer:

    - ``status``: an error status; the same holds for ``endless``, ``large`` and ``gzip_bomb`` with a
      status of 400 or above.
    - ``reset_before``: the connection is reset.
    - ``wrong_success``: a 200 with an integration state.
    - ``html``: a 200 with a page.

    Args:
        kind: one of these.
        times: how many requests it hits; ``None`` for all until the faults are cleared.
        after: how many requests it lets pass first.
        only: the name of an operation, or a part of a profile ID (or, for the audience calls, of an
            audience's external ID); other requests are not counted.
        status: 200 to 599; by default 500 for ``status``, else 200.
        retry_after: for ``status``: the ``Retry-After`` header, seconds or an HTTP date.
        body: for ``status``: any JSON value instead of the usual error body; a string is sent as it is.
        html: for ``status`` and ``html``: an HTML body.
        seconds: for ``slow``: how late, for ``drip``: the time between two bytes; default 1.
        megabytes: for ``large`` and ``gzip_bomb``: the size of the body, unpacked; default 64.

    Raises:
        ValueError: an option that does not fit.
    """

    kind: str
    times: int | None = 1
    after: int = 0
    only: str | None = None
    status: int | None = None
    retry_after: int | str | None = None
    body: Json = None
    html: str | None = None
    seconds: float | None = None
    megabytes: int | None = None

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"unknown kind of fault {self.kind!r}: one of {', '.join(KINDS)}")
        for option in FaultOptions.__annotations__:
            if getattr(self, option) is not None and option not in KINDS[self.kind]:
                raise ValueError(f"{option} does not go with the kind {self.kind}")
        for wrong, rule in (
            (
                self.times is not None and not _whole(self.times, 1),
                "times must be a whole number above 0, or None",
            ),
            (not _whole(self.after, 0), "after must be a whole number"),
            (not _text(self.only), "only must be the name of an operation or a part of an ID"),
            (
                self.status is not None and not (_whole(self.status, 200) and self.status <= _LAST_STATUS),
                "status must be 200 to 599",
            ),
            (self.kind != STATUS and self.status in _BODYLESS, "a body needs another status"),
            (not _text(self.html), "html must be text"),
            (
                self.retry_after is not None and not _header_value(self.retry_after),
                "retry_after must be whole seconds or an HTTP date",
            ),
            (
                self.seconds is not None
                and not (_number(self.seconds) and 0 <= float(self.seconds) < math.inf),
                "seconds must be a number that is not negative",
            ),
            (
                self.megabytes is not None and not _whole(self.megabytes, 1),
                "megabytes must be a whole number above 0",
            ),
        ):
            if wrong:
                raise ValueError(rule)

    def applies_to(self, operation: str, ids: Iterable[str]) -> bool:
        """Whether it is meant for this operation or one of these IDs."""
        return self.only is None or self.only == operation or any(self.only in value for value in ids)

    @property
    def pause(self) -> float:
        """The seconds of ``slow`` and ``drip``."""
        return 1.0 if self.seconds is None else float(self.seconds)

    @property
    def takes_effect(self) -> bool:
        """Whether the call happens all the same."""
        return self.kind in (SLOW, DRIP, CUT, RESET_AFTER) or (
            self.kind in (ENDLESS, LARGE, GZIP_BOMB) and (self.status or 0) < _FIRST_ERROR
        )

    def answer(self, request_uuid: str) -> EmulatorAnswer | None:
        """What a request gets instead of its own answer; ``None`` where it gets its own, or a reset."""
        if self.kind == WRONG_SUCCESS:
            return EmulatorAnswer(200, b'{"effects": [], "createdCoupons": [], "createdReferrals": []}', JSON)
        if self.kind == HTML:
            return EmulatorAnswer(200, (self.html or _PAGE).encode("utf-8", "replace"), "text/html")
        if self.kind in (ENDLESS, LARGE, GZIP_BOMB):
            return self._much(200 if self.status is None else self.status)
        if self.kind != STATUS:
            return None
        status = 500 if self.status is None else self.status
        headers = {} if self.retry_after is None else {"Retry-After": str(self.retry_after)}
        if status in _BODYLESS:
            return EmulatorAnswer(status, headers=headers)
        if self.html is not None:
            return EmulatorAnswer(status, self.html.encode("utf-8", "replace"), "text/html", headers)
        if self.body is not None:
            text = self.body if isinstance(self.body, str) else dumps(self.body)
            return EmulatorAnswer(status, text.encode("utf-8", "replace"), JSON, headers)
        return error_answer(RefusedError(status, phrase(status), headers=headers), request_uuid)

    def _much(self, status: int) -> EmulatorAnswer:
        if self.kind == ENDLESS:
            return EmulatorAnswer(status, media_type=JSON, pieces=_padding(None))
        length = (64 if self.megabytes is None else self.megabytes) * _MEGABYTE
        if self.kind == LARGE:
            headers = {"Content-Length": str(len(_OPEN) + length + len(_CLOSE))}
            return EmulatorAnswer(status, media_type=JSON, headers=headers, pieces=_padding(length))
        headers = {"Content-Encoding": "gzip"}
        return EmulatorAnswer(status, media_type=JSON, headers=headers, pieces=_packed(_padding(length)))

    def as_dict(self) -> dict[str, Any]:
        """What was set, without the rest."""
        return {name: value for name, value in asdict(self).items() if value is not None}


def from_json(data: dict[str, Json]) -> Fault:
    """A fault from its JSON object, named as the parameters of :class:`Fault`.

    Raises:
        ValueError: a name or a value that does not fit.
    """
    unknown = set(data) - {entry.name for entry in fields(Fault)}
    if unknown or not isinstance(data.get("kind"), str):
        raise ValueError(
            f"a fault has a kind and, optionally, {', '.join(e.name for e in fields(Fault)[1:])}"
        )
    arguments: dict[str, Any] = data
    return Fault(**arguments)


class Faults:
    """The faults that are still to come, in order: the first one that a request matches decides about it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._queue: list[Fault] = []

    def add(self, fault: Fault) -> None:
        """Put a fault behind those that are waiting."""
        with self._lock:
            self._queue.append(fault)

    def clear(self) -> None:
        """Forget every fault."""
        with self._lock:
            self._queue.clear()

    def pending(self) -> list[dict[str, Any]]:
        """What is still to come; ``times`` and ``after`` are what is left of them."""
        with self._lock:
            return [fault.as_dict() for fault in self._queue]

    def take(self, operation: str, ids: Iterable[str]) -> Fault | None:
        """The fault for a request, counted off, or ``None``."""
        with self._lock:
            for place, fault in enumerate(self._queue):
                if not fault.applies_to(operation, ids):
                    continue
                if fault.after > 0:
                    self._queue[place] = replace(fault, after=fault.after - 1)
                    return None
                if fault.times == 1:
                    del self._queue[place]
                elif fault.times is not None:
                    self._queue[place] = replace(fault, times=fault.times - 1)
                return fault
            return None


def _padding(length: int | None) -> Iterator[bytes]:
    """A JSON object with a string of this many bytes, a whole number of pieces; without end for ``None``."""
    yield _OPEN
    sent = 0
    while length is None or sent < length:
        yield _PIECE
        sent += len(_PIECE)
    yield _CLOSE


def _packed(pieces: Iterable[bytes]) -> Iterator[bytes]:
    gzip = zlib.compressobj(wbits=16 + zlib.MAX_WBITS)
    for piece in pieces:
        if packed := gzip.compress(piece):
            yield packed
    yield gzip.flush()


def _number(value: object) -> bool:
    return hasattr(value, "__float__") and not isinstance(value, (bool, str))


def _text(value: object) -> bool:
    return value is None or (isinstance(value, str) and value != "")


def _whole(value: object, at_least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= at_least


def _header_value(value: object) -> bool:
    if isinstance(value, str):
        return value.isascii() and value.isprintable() and value.strip() != ""
    return _whole(value, 0)
