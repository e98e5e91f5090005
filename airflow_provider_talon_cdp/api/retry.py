"""Which failure is retried, and after how long. Pure: clock and randomness are arguments.

Source: Talon.One's Third-party API reference documents 409, 429 and 5xx; it does not document ``Retry-After``, so
back-off goes without it where it is absent.
"""

from __future__ import annotations

from dataclasses import dataclass
from email.utils import parsedate_to_datetime

from airflow_provider_talon_cdp.exceptions import TransientError


@dataclass(frozen=True, kw_only=True)
class RetryPolicy:
    """Capped exponential back-off with full jitter, within a total time.

    Args:
        first_wait: Seconds of the first back-off, before jitter.
        longest_wait: Seconds of the longest back-off, before jitter.
        budget: Seconds from the first attempt after which no other one starts. A ``Retry-After`` beyond it
            ends the retries at once.
        attempts: How often one request is sent at the most.
    """

    first_wait: float = 0.5
    longest_wait: float = 30.0
    budget: float = 600.0
    attempts: int = 30

    def wait(self, error: Exception, *, attempt: int, elapsed: float, random: float) -> float | None:
        """Seconds to wait before the next attempt, or None to give up.

        Args:
            error: Why the last attempt failed; only a ``TransientError`` is retried.
            attempt: How many attempts were made, from 1.
            elapsed: Seconds since the first attempt began.
            random: A number from 0 to 1 that spreads the back-off.
        """
        if not isinstance(error, TransientError) or attempt >= self.attempts:
            return None
        # The exponent is bounded: 2.0 ** 1100 overflows.
        back_off = min(self.longest_wait, self.first_wait * 2.0 ** min(attempt - 1, 60)) * random
        wait = back_off if error.retry_after is None else error.retry_after + self.first_wait * random
        return wait if elapsed + wait <= self.budget else None


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
