"""When a request may leave, and when again after a failure. Pure: clock and randomness are arguments.

Talon.One does not publish the rate limit of its CDP endpoints, so the pacer sends evenly at a set ceiling,
slows with every 429, and climbs back along a cubic curve: quickly at first, slowly near the rate that was too
much, and quickly again once that rate has proved fine. Its reference documents 409, 429 and 5xx, but no
``Retry-After``, so back-off goes without it where it is absent.
"""

from __future__ import annotations

from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import urlsplit

from airflow_provider_talon_cdp.api.calls import IntegrationState, Operation, Request, Result
from airflow_provider_talon_cdp.contract import OnUnclear
from airflow_provider_talon_cdp.exceptions import (
    AudienceExistsError,
    NotFoundError,
    RequestError,
    TransientError,
    UnclearError,
)

_SLOWER = 0.92
_MOST_PER_ROUND = 0.5
_PLATEAU_AFTER = 8.0
_SLOWEST = 0.2
_CATCH_UP = 0.02


class Pacer:
    """Spaces requests evenly; not thread-safe.

    Args:
        ceiling: Requests a second that are never exceeded.
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
        """Seconds until the next request may leave; 0 when it may leave now."""
        return max(0.0, self._next - now)

    def left(self, now: float) -> None:
        """Note that a request leaves now."""
        # Slots keep their own time, so that a late timer does not lower the rate; what may be caught up is
        # bounded.
        self._next = max(self._next, now - _CATCH_UP) + 1 / self.rate(now)

    def throttled(self, now: float, *, left_at: float, retry_after: float | None = None) -> None:
        """Note a 429: slow down, and send nothing before ``retry_after`` seconds have passed.

        Args:
            now: When the answer came.
            left_at: When its request left. All that left before the first cut of a round belong to one round,
                which halves the rate at the most: with many requests in flight, one overload has many 429s.
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
    """The attempts of one call: says after a failure when the next one may leave, or that there is none.

    Args:
        request: The call.
        base_url: Where it goes, for the last error.
        budget: Seconds from the first attempt after which no other one starts. A ``Retry-After`` beyond it
            ends the retries at once.
        began: When the first attempt began.
        on_unclear: What to do when a call that runs rules gets no clear answer: ``fail`` or ``retry``.

    Attributes:
        made: Attempts so far, with the one that is under way.
        unclear: Whether one of them may have had its effect without a clear answer.
    """

    request: Request[Any]
    base_url: str
    budget: float
    began: float
    on_unclear: OnUnclear = "fail"
    made: int = 1
    unclear: bool = False

    def succeeded(self, result: Result) -> Result:
        """Return the result, with a note where rules may have run twice."""
        if isinstance(result, IntegrationState):
            result.may_have_run_twice = self.unclear and self.request.runs_rules
        return result

    def failed(self, error: RequestError, now: float, random: float) -> float:
        """Return the seconds until the next attempt.

        Args:
            error: Why the last attempt failed; only a ``TransientError`` is followed by another attempt.
            now: When it failed.
            random: A number from 0 to 1 that spreads the back-off.

        Raises:
            RequestError: There is no other attempt.
        """
        elapsed = now - self.began
        may_have_run = self.request.runs_rules and error.is_unclear
        if may_have_run and self.on_unclear == "fail" and isinstance(error, TransientError):
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
            "So it was not sent again. Look at the profile in the Campaign Manager first.\n"
            'If it does no harm when the rules run twice, set on_unclear="retry".',
        )
        unclear.repeated = self.unclear
        return unclear

    def _explain_end(self, error: TransientError, elapsed: float) -> None:
        host = urlsplit(self.base_url).netloc
        tried = f"Gave up on {host} after {self.made} attempt(s) in {elapsed:.0f} s"
        if error.retry_after is not None:
            tried += f"; the answer asks to wait {error.retry_after:,.0f} s"
        error.explain(
            f"{tried}.\nIt is tried for {self.budget:,.0f} s: see 'Retry ... for' on the connection."
        )


def back_off(attempt: int, left: float, retry_after: float | None, random: float) -> float | None:
    """Seconds to wait before the next attempt, or None to give up: exponential, capped, with full jitter.

    Args:
        attempt: How many attempts were made, from 1.
        left: Seconds in which an attempt may still start. The last attempt starts at their end.
        retry_after: Seconds that the answer asks to wait, or None.
        random: A number from 0 to 1 that spreads the wait.
    """
    if left <= 0 or (retry_after is not None and retry_after > left):
        return None
    if retry_after is not None:
        return retry_after + _FIRST_WAIT * random
    # The exponent is bounded: 2.0 ** 1100 overflows.
    return min(left, min(_LONGEST_WAIT, _FIRST_WAIT * 2.0 ** min(attempt - 1, 60)) * random)


class RepeatedLines:
    """Lets a line about failures of one kind through once in ten seconds, and counts the others."""

    def __init__(self) -> None:
        self._next: dict[str, float] = {}
        self._held_back: dict[str, int] = {}

    def line(self, reason: str, text: str, now: float) -> str | None:
        """Return the line to log for a failure, or None.

        Args:
            reason: Which kind of failure; there are few kinds.
            text: The line.
            now: When it happened.
        """
        if now < self._next.get(reason, now):
            self._held_back[reason] = self._held_back.get(reason, 0) + 1
            return None
        self._next[reason] = now + _SECONDS_BETWEEN_LINES
        others = self._held_back.pop(reason, 0)
        return f"{text} ({others:,} more of these since the last such line.)" if others else text


def parse_retry_after(value: str | None, now: float) -> float | None:
    """Read a ``Retry-After`` header: seconds, or an HTTP date (RFC 9110, section 10.2.3).

    Args:
        value: The header, or None.
        now: Seconds since the epoch.

    Returns:
        Seconds to wait, at least 0; None when the header is absent or makes no sense.
    """
    if value is None:
        return None
    text = value.strip()
    if text.isascii() and text.isdigit():
        return float(text)
    try:
        return max(0.0, parsedate_to_datetime(text).timestamp() - now)
    except (ValueError, OverflowError):
        return None
