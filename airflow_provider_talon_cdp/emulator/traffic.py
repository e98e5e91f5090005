"""The requests that pass: how many a second, on which profiles at once, and a log of the last ones."""

from __future__ import annotations

import math
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

from airflow_provider_talon_cdp.emulator.answers import TEXTS, RefusedError

KEPT = 1000
NO_ANSWER = "none"


class RateLimit:
    """A token bucket.

    Args:
        rate: requests a second, above 0.
        burst: how many may come at once, at least 1; ``None`` for one second's worth.
        send_retry_after: whether a 429 says when to come back (whole seconds, rounded up).
        clock: seconds, monotonic.

    Raises:
        ValueError: a rate or a burst that no request would ever pass.
    """

    def __init__(
        self,
        rate: float,
        burst: float | None = None,
        *,
        send_retry_after: bool = True,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if not 0 < rate < math.inf:
            raise ValueError("requests_per_second must be above 0")
        self._burst = max(1.0, rate) if burst is None else float(burst)
        if not 1 <= self._burst < math.inf:
            raise ValueError("burst must be at least 1")
        self._rate = rate
        self._send_retry_after = send_retry_after
        self._clock = clock
        self._lock = threading.Lock()
        self.refill()

    def refill(self) -> None:
        """Start with a full bucket again."""
        with self._lock:
            self._tokens, self._at = self._burst, self._clock()

    def take(self) -> None:
        """Let one request pass.

        Raises:
            RefusedError: 429.
        """
        with self._lock:
            now = self._clock()
            self._tokens = min(self._burst, self._tokens + (now - self._at) * self._rate)
            self._at = now
            if self._tokens >= 1:
                self._tokens -= 1
                return
            wait = max(1, math.ceil((1 - self._tokens) / self._rate))
        raise RefusedError(
            429, TEXTS[429], headers={"Retry-After": str(wait)} if self._send_retry_after else {}
        )


class InFlight:
    """The profiles that are in a request now. For one event loop: it takes no lock."""

    def __init__(self) -> None:
        self._profiles: set[str] = set()

    @contextmanager
    def hold(self, profiles: frozenset[str]) -> Iterator[None]:
        """Keep these profiles from other requests for a while.

        Raises:
            RefusedError: 409, another request has one of them.
        """
        if not self._profiles.isdisjoint(profiles):
            raise RefusedError(409, "Conflict: another request on the same customer profile is in flight")
        self._profiles |= profiles
        try:
            yield
        finally:
            self._profiles -= profiles


@dataclass(frozen=True)
class LoggedRequest:
    """One request.

    ``time`` is when its answer was ready (RFC 3339, UTC), ``path`` and ``query`` are as sent
    (percent-encoded), ``operation`` is empty for a path that is not a call, ``status`` is ``None`` when
    the connection was cut instead of an answer, ``changes`` counts what was asked for: memberships to
    add and delete, attributes to set and delete. ``run_rule_engine`` is what Talon.One does, not
    what was asked: true as soon as audiences of a single profile change; ``None`` for what is not a call.
    ``environment`` is that of the key, empty where there is one only, ``None`` for a refused key.
    """

    time: str
    method: str
    path: str
    query: str
    operation: str
    status: int | None
    request_uuid: str
    changes: int
    run_rule_engine: bool | None
    environment: str | None
    fault: str | None

    def as_dict(self) -> dict[str, Any]:
        """The same as a plain dict."""
        return asdict(self)


class RequestLog:
    """The last :data:`KEPT` requests, and counters over all. Holds no header, no body and no API key."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.clear()

    def clear(self) -> None:
        """Forget every request and start counting at zero."""
        with self._lock:
            self._last: deque[LoggedRequest] = deque(maxlen=KEPT)
            self._total = 0
            self._by_status: Counter[str] = Counter()
            self._by_operation: Counter[str] = Counter()

    def add(self, request: LoggedRequest) -> None:
        """Log one request."""
        with self._lock:
            self._last.append(request)
            self._total += 1
            self._by_status[NO_ANSWER if request.status is None else str(request.status)] += 1
            self._by_operation[request.operation or NO_ANSWER] += 1

    def last(self) -> list[LoggedRequest]:
        """The requests that are kept, oldest first."""
        with self._lock:
            return list(self._last)

    def counters(self) -> dict[str, Any]:
        """``total``, ``by_status`` (``"none"`` where a connection was cut) and ``by_operation``."""
        with self._lock:
            return {
                "total": self._total,
                "by_status": dict(sorted(self._by_status.items())),
                "by_operation": dict(sorted(self._by_operation.items())),
            }
