"""Who has to wait: the rate limit, and profiles that are in another request."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from airflow_provider_talon_cdp.emulator.answers import RefusedError


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
            429, "Too Many Requests", headers={"Retry-After": str(wait)} if self._send_retry_after else {}
        )


class InFlight:
    """The profiles that are in a request now. For one event loop: it takes no lock."""

    def __init__(self) -> None:
        self._profiles: set[str] = set()

    @contextmanager
    def hold(self, profiles: frozenset[str]) -> Iterator[None]:
        """Keep these profiles to oneself for a while.

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
