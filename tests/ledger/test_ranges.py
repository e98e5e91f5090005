"""Ranges against Python's sets."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from airflow_provider_talon_cdp.ledger.format import Ranges

NUMBERS = st.integers(0, 60)


@given(st.lists(NUMBERS), st.lists(st.tuples(NUMBERS, st.integers(0, 9))))
def test_ranges_hold_the_numbers_and_are_as_few_as_can_be(singles, spans):
    ranges, expected = Ranges(), set(singles)
    for number in singles:
        ranges.add(number)
    for first, length in spans:
        ranges.add(first, first + length)
        expected |= set(range(first, first + length + 1))
    assert [each for first, last in ranges.pairs for each in range(first, last + 1)] == sorted(expected)
    assert all(after[0] > before[1] + 1 for before, after in pairwise(ranges.pairs))
    assert len(ranges) == len(expected)
    assert {each for each in range(90) if each in ranges} == expected
    assert Ranges(ranges.pairs).pairs == ranges.pairs


@given(st.sets(NUMBERS), st.integers(61, 70))
def test_gaps_are_the_numbers_that_are_not_there(numbers, end):
    ranges = Ranges((each, each) for each in numbers)
    gaps = [each for start, stop in ranges.gaps(end) for each in range(start, stop)]
    assert gaps == sorted(set(range(end)) - numbers)


def test_numbers_side_by_side_take_the_memory_of_one():
    ranges = Ranges()
    for number in range(400_000):
        ranges.add(number)
    assert ranges.pairs == [[0, 399_999]]
