"""When a request may be sent, and when again after a failure. Pure: clock and randomness are arguments.

Talon.One does not publish the rate limit of its CDP endpoints. So the pacer sends evenly at a set ceiling,
and slows down with every 429. The rate rises again along a cubic curve: quickly at first, slowly near the
rate that was too high, and quickly again above it. The reference documents 409, 429 and 5xx, but no
``Retry-After``, so back-off does not need it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import urlsplit

from airflow_provider_talon_cdp.api.calls import IntegrationState, Operation, Request, Result
from airflow_provider_talon_cdp.contract import ON_UNCLEAR, OnUnclear
from airflow_provider_talon_cdp.exceptions import (
    AudienceExistsError,
    NotFoundError,
    RequestError,
    TransientError,
    UnclearError,
)

# Factor on the rate for one 429, and the smallest factor for all 429s of one round.
_SLOWER = 0.92
_MOST_PER_ROUND = 0.5
# Seconds until the rate is again what it was before the cut.
_PLATEAU_AFTER = 8.0
# Requests a second.
_SLOWEST = 0.2
# Seconds that may be made up for after a late timer.
_CATCH_UP = 0.02


class Pacer:
    """Spaces requests evenly; not thread-safe.

    Args:
        ceiling: The highest rate, in requests a second.
    """

    def __init__(self, ceiling: float) -> None:
        self._ceiling = ceiling
        self._next = float("-inf")
        self._low = ceiling
        self._plateau = ceiling
        self._cut_at = float("-inf")
        self._round_began = float("-inf")
        self._floor = 0.0

    def rate(self, now: float) -> float:
        """Requests a second at this moment."""
        if self._low >= self._ceiling:
            return self._ceiling
        depth = self._plateau - self._low
        climb = depth * ((now - self._cut_at) / _PLATEAU_AFTER - 1) ** 3
        return min(self._ceiling, self._plateau + climb)

    def wait(self, now: float) -> float:
        """Seconds until the next request may be sent; 0 if it may be sent now."""
        return max(0.0, self._next - now)

    def left(self, now: float) -> None:
        """Note that a request is sent now."""
        # The next slot is counted from the last one, so that a late timer does not lower the rate.
        self._next = max(self._next, now - _CATCH_UP) + 1 / self.rate(now)

    def throttled(self, now: float, *, left_at: float, retry_after: float | None = None) -> None:
        """Note a 429: slow down, and send nothing before ``retry_after`` seconds have passed.

        Args:
            now: When the answer came.
            left_at: When its request was sent. Requests sent before the first cut of a round belong to it,
                and a round at most halves the rate: with many in flight, one overload has many 429s.
            retry_after: Seconds that the answer asks to wait, or None.
        """
        rate = self.rate(now)
        if left_at >= self._round_began:
            self._round_began = now
            self._floor = max(_SLOWEST, rate * _MOST_PER_ROUND)
            self._plateau = rate
        self._low = max(self._floor, rate * _SLOWER)
        self._cut_at = now
        self._next = max(self._next, now + (retry_after or 1 / self._low))


_FIRST_WAIT = 0.5
_LONGEST_WAIT = 30.0
_SECONDS_BETWEEN_LINES = 10.0


@dataclass
class Attempts:
    """The attempts of one call: whether and when there is another one after a failure.

    Args:
        request: The request.
        base_url: The base URL, for the text of the last error.
        budget: Seconds since the first attempt after which no other one starts. A ``Retry-After`` beyond it
            ends the retries at once.
        began: When the first attempt began.
        on_unclear: What to do if a call that runs rules gets no clear answer: ``fail`` or ``retry``.

    Attributes:
        made: Number of attempts, including the present one.
        unclear: Whether an attempt may have had its effect without a clear answer.
    """

    request: Request[Any]
    base_url: str
    budget: float
    began: float
    on_unclear: OnUnclear = ON_UNCLEAR
    made: int = 1
    unclear: bool = False

    def succeeded(self, result: Result) -> Result:
        """Return the result, and note in it if rules may have run twice."""
        if isinstance(result, IntegrationState):
            result.may_have_run_twice = self.unclear and self.request.runs_rules
        return result

    def failed(self, error: RequestError, now: float, random: float) -> float:
        """Return the seconds until the next attempt; only a ``TransientError`` is followed by one.

        Raises:
            RequestError: There is no other attempt.
        """
        elapsed = now - self.began
        may_have_run = self.request.runs_rules and error.is_unclear
        if may_have_run and self.on_unclear != "retry" and isinstance(error, TransientError):
            raise self._unclear_error(error) from error
        if isinstance(error, TransientError):
            self.unclear |= error.is_unclear
            wait = back_off(self.made, self.budget - elapsed, error.retry_after, random)
            if wait is not None:
                self.made += 1
                return wait
            if self.budget:
                self._explain_end(error, elapsed)
        error.repeated = self.unclear
        if may_have_run or (self.unclear and self.request.runs_rules):
            error.explain("This call runs rules, and they may have run.")
        elif self.unclear and isinstance(error, AudienceExistsError):
            error.explain(
                "An earlier attempt of this call got no clear answer: it may have created the audience."
            )
        elif (
            self.unclear
            and isinstance(error, NotFoundError)
            and self.request.operation is Operation.DELETE_AUDIENCE
        ):
            error.explain(
                "An earlier attempt of this call got no clear answer: it may have deleted the audience."
            )
        raise error

    def _unclear_error(self, error: TransientError) -> UnclearError:
        unclear = error.become(
            UnclearError,
            f"{self.request.operation.value}: no clear answer ({error.reason}), and this call runs rules.\n"
            "The rules may have run: they may have given coupons, points or rewards.\n"
            "The call was not repeated. Look at the profile in the Campaign Manager first.\n"
            'If the rules may run twice without harm, set on_unclear="retry".'
            + (f"\nRequestUUID {error.request_uuid}." if error.request_uuid else ""),
        )
        unclear.repeated = self.unclear
        return unclear

    def _explain_end(self, error: TransientError, elapsed: float) -> None:
        host = urlsplit(self.base_url).netloc
        tried = f"Gave up on {host} after {self.made} attempt(s) in {elapsed:.0f} s"
        if error.retry_after is not None:
            tried += f"; the answer asks to wait {error.retry_after:,.0f} s"
        error.explain(f"{tried}.\nThe limit is {self.budget:,.0f} s: see 'Retry ... for' on the connection.")


def back_off(attempt: int, left: float, retry_after: float | None, random: float) -> float | None:
    """Seconds to wait before the next attempt, or None to give up: exponential, capped, with full jitter.

    Args:
        attempt: Number of attempts so far, from 1.
        left: Seconds until the budget's end. The last attempt starts then at the latest.
        retry_after: Least seconds to wait, as the answer asks, or None. Some servers ask for 0.
        random: A random number from 0 to 1 for the jitter.
    """
    if left <= 0 or (retry_after is not None and retry_after > left):
        return None
    # The exponent is bounded: 2.0 ** 1100 overflows.
    wait = min(_LONGEST_WAIT, _FIRST_WAIT * 2.0 ** min(attempt - 1, 60)) * random
    if retry_after is not None:
        wait = max(wait, retry_after + _FIRST_WAIT * random)
    return min(left, wait)


class RepeatedLines:
    """Limits the log to one line in ten seconds for each kind of failure, and counts the others."""

    def __init__(self) -> None:
        self._next: dict[str, float] = {}
        self._omitted: dict[str, int] = {}

    def line(self, reason: str, text: str, now: float) -> str | None:
        """Return the line to log for a failure, or None."""
        if now < self._next.get(reason, now):
            self._omitted[reason] = self._omitted.get(reason, 0) + 1
            return None
        self._next[reason] = now + _SECONDS_BETWEEN_LINES
        others = self._omitted.pop(reason, 0)
        return f"{text} ({others:,} more of these since the last such line.)" if others else text


def parse_retry_after(value: str | None, now: float) -> float | None:
    """Read a ``Retry-After`` header: seconds, or an HTTP date (RFC 9110, section 10.2.3).

    Returns:
        Seconds to wait, at least 0; None if the header is absent or invalid.
    """
    if value is None:
        return None
    text = value.strip()
    if text.isascii() and text.isdigit():
        return float(text) if math.isfinite(float(text)) else None
    try:
        return max(0.0, parsedate_to_datetime(text).timestamp() - now)
    except (ValueError, OverflowError):
        return None
