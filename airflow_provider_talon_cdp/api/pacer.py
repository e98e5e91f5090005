"""When the next request may leave. Pure: the clock is an argument, in seconds from any fixed point.

Talon.One does not publish the rate limit of its CDP endpoints, so the pacer sends evenly at a set ceiling, slows with
every 429, and climbs back along a cubic curve: quickly at first, slowly near the rate that was too much, and quickly
again once that rate has proved fine.
"""

from __future__ import annotations

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
        # Slots keep their own time, so that a late timer does not lower the rate; what may be caught up is bounded.
        self._next = max(self._next, now - _CATCH_UP) + 1 / self.rate(now)

    def throttled(self, now: float, *, left_at: float, retry_after: float | None = None) -> None:
        """Note a 429: slow down, and send nothing before ``retry_after`` seconds have passed.

        Args:
            now: When the answer came.
            left_at: When its request left. All that left before the first cut of a round belong to one round, which
                halves the rate at the most: with many requests in flight, one overload has many 429s.
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
