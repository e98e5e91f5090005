"""Faults on demand: what the next calls meet instead of, or on top of, their answer."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from airflow_provider_talon_cdp.emulator.answers import JSON, Answer, RefusedError, error_answer, phrase
from airflow_provider_talon_cdp.emulator.exact_json import Json, dumps

STATUS = "status"
RESET_BEFORE = "reset_before"
RESET_AFTER = "reset_after"
SLOW = "slow"
WRONG_SUCCESS = "wrong_success"
HTML = "html"
KINDS = (STATUS, RESET_BEFORE, RESET_AFTER, SLOW, WRONG_SUCCESS, HTML)

_PAGE = "<!doctype html><title>Gateway</title><h1>This is not the page you are looking for</h1>"
_LAST_STATUS = 599
_BODYLESS = (204, 304)
_OPTIONS = {
    STATUS: {"status", "retry_after", "body", "html"},
    SLOW: {"seconds"},
    HTML: {"html"},
}


@dataclass(frozen=True)
class Fault:
    """One fault.

    Args:
        kind: ``status`` (an error instead of the call), ``reset_before`` (the connection is reset and
            nothing happened), ``reset_after`` (it happened, and the connection is reset instead of an
            answer), ``slow`` (the answer comes late), ``wrong_success`` (a 200 with an integration
            state, and nothing happened), ``html`` (a 200 with a page, and nothing happened).
        times: how many requests it hits; ``None`` for all until the faults are cleared.
        after: how many requests it lets pass first.
        only: the name of an operation, or a part of a profile ID (or, for the audience calls, of an
            audience's external ID); other requests are not counted.
        status: for ``status``: 200 to 599, default 500.
        retry_after: for ``status``: the ``Retry-After`` header, seconds or an HTTP date.
        body: for ``status``: any JSON value instead of the usual error body; a string is sent as it is.
        html: for ``status`` and ``html``: an HTML body.
        seconds: for ``slow``: how late, default 1.

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

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"unknown kind of fault {self.kind!r}: one of {', '.join(KINDS)}")
        for option in ("status", "retry_after", "body", "html", "seconds"):
            if getattr(self, option) is not None and option not in _OPTIONS.get(self.kind, set()):
                raise ValueError(f"{option} does not go with the kind {self.kind}")
        if self.times is not None and not _whole(self.times, at_least=1):
            raise ValueError("times must be a whole number above 0, or None")
        if not _whole(self.after, at_least=0):
            raise ValueError("after must be a whole number")
        if self.only is not None and not _text(self.only):
            raise ValueError("only must be the name of an operation or a part of an ID")
        if self.status is not None and not (
            _whole(self.status, at_least=200) and self.status <= _LAST_STATUS
        ):
            raise ValueError("status must be 200 to 599")
        if self.html is not None and not _text(self.html):
            raise ValueError("html must be text")
        if self.retry_after is not None and not _header_value(self.retry_after):
            raise ValueError("retry_after must be whole seconds or an HTTP date")
        if self.seconds is not None and not (_number(self.seconds) and 0 <= float(self.seconds) < math.inf):
            raise ValueError("seconds must be a number that is not negative")

    def applies_to(self, operation: str, ids: Iterable[str]) -> bool:
        """Whether it is meant for this operation or one of these IDs."""
        return self.only is None or self.only == operation or any(self.only in value for value in ids)

    @property
    def delay(self) -> float:
        """By how many seconds it makes an answer late."""
        if self.kind != SLOW:
            return 0.0
        return 1.0 if self.seconds is None else float(self.seconds)

    def answer(self, request_uuid: str) -> Answer:
        """What a request gets instead of its own answer; for ``status``, ``wrong_success`` and ``html``."""
        if self.kind == WRONG_SUCCESS:
            return Answer(200, b'{"effects": [], "createdCoupons": [], "createdReferrals": []}', JSON)
        if self.kind == HTML:
            return Answer(200, (self.html or _PAGE).encode("utf-8", "replace"), "text/html")
        status = 500 if self.status is None else self.status
        headers = {} if self.retry_after is None else {"Retry-After": str(self.retry_after)}
        if status in _BODYLESS:
            return Answer(status, headers=headers)
        if self.html is not None:
            return Answer(status, self.html.encode("utf-8", "replace"), "text/html", headers)
        if self.body is not None:
            text = self.body if isinstance(self.body, str) else dumps(self.body)
            return Answer(status, text.encode("utf-8", "replace"), JSON, headers)
        return error_answer(RefusedError(status, phrase(status), headers=headers), request_uuid)

    def as_dict(self) -> dict[str, Any]:
        """What was set, without the rest."""
        return {name: value for name, value in asdict(self).items() if value is not None}


def from_json(data: dict[str, Json]) -> Fault:
    """A fault from its JSON object, named as the parameters of :class:`Fault`.

    Raises:
        ValueError: a name or a value that does not fit.
    """
    unknown = set(data) - {entry.name for entry in fields(Fault)}
    if unknown or "kind" not in data:
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


def _number(value: object) -> bool:
    return hasattr(value, "__float__") and not isinstance(value, (bool, str))


def _text(value: object) -> bool:
    return isinstance(value, str) and value != ""


def _whole(value: object, *, at_least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= at_least


def _header_value(value: object) -> bool:
    if isinstance(value, str):
        return value.isascii() and value.isprintable() and value.strip() != ""
    return _whole(value, at_least=0)
