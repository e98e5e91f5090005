"""Whole numbers that mostly stand side by side, in memory that does not grow with how many they are."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable


class Ranges:
    """A set of whole numbers, kept as ranges.

    Args:
        pairs: First and last number of each range.
    """

    __slots__ = ("_firsts", "_lasts")

    def __init__(self, pairs: Iterable[Iterable[int]] = ()) -> None:
        self._firsts: list[int] = []
        self._lasts: list[int] = []
        for first, last in pairs:
            self.add(first, last)

    def add(self, first: int, last: int | None = None) -> None:
        """Put in a number, or all from a first to a last one."""
        last = first if last is None else last
        # Ranges that touch the new one become one with it.
        left = bisect_left(self._lasts, first - 1)
        right = bisect_right(self._firsts, last + 1)
        if left < right:
            first, last = min(first, self._firsts[left]), max(last, self._lasts[right - 1])
        self._firsts[left:right] = [first]
        self._lasts[left:right] = [last]

    def __contains__(self, number: int) -> bool:
        at = bisect_right(self._firsts, number) - 1
        return at >= 0 and number <= self._lasts[at]

    def __len__(self) -> int:
        return sum(self._lasts) - sum(self._firsts) + len(self._firsts)

    @property
    def pairs(self) -> list[list[int]]:
        """First and last number of each range, ascending."""
        return [[first, last] for first, last in zip(self._firsts, self._lasts, strict=True)]

    def gaps(self, end: int) -> list[tuple[int, int]]:
        """First number of each gap below an end, and the number after its last, ascending."""
        starts, stops = [0, *(last + 1 for last in self._lasts)], [*self._firsts, end]
        return [(start, stop) for start, stop in zip(starts, stops, strict=True) if start < stop]
