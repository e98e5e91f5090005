"""The counts of a sync: they add up, stage by stage."""

from __future__ import annotations

from collections import Counter
from dataclasses import fields

from hypothesis import given
from hypothesis import strategies as st

from airflow_provider_talon_cdp.changes.counts import Counts

NUMBERS = st.integers(0, 9)
COUNTERS = st.dictionaries(st.sampled_from("abc"), st.integers(1, 9)).map(Counter)
COUNTS = st.builds(
    Counts, **{each.name: NUMBERS if each.type == "int" else COUNTERS for each in fields(Counts)}
)


@given(COUNTS, COUNTS)
def test_counts_of_two_stages_are_added_field_by_field(one, other):
    expected = {each.name: getattr(one, each.name) + getattr(other, each.name) for each in fields(Counts)}
    total = Counts()
    held = total.rejected
    total += one
    total += other
    assert {each.name: getattr(total, each.name) for each in fields(Counts)} == expected
    # Whoever holds one of the counters goes on counting in it, and those that were added stay as they were.
    assert total.rejected is held
    assert expected["rejected"] == one.rejected + other.rejected


def test_what_follows_from_the_counts():
    counts = Counts(
        read=10,
        duplicate=1,
        rejected=Counter(null=2),
        unchanged=3,
        additions=Counter(vip=3, gold=1),
        removals=Counter(vip=2),
        resumed=5,
        added=Counter(vip=6, gold=1),
        removed=Counter(vip=2),
        unsent=2,
    )
    assert (counts.changes, counts.audiences) == (6, ["gold", "vip"])
    assert (counts.sent, counts.total) == (9, 17)
    assert counts.balances


@given(COUNTS, st.sampled_from(["read", "duplicate", "unchanged", "resumed", "unclear", "unsent"]))
def test_a_record_too_many_anywhere_is_out_of_balance(counts, name):
    ends = counts.unchanged + counts.sent + counts.duplicate + counts.rejected.total()
    counts.read += ends + counts.unclear + counts.unsent - counts.total
    balanced = counts.balances
    setattr(counts, name, getattr(counts, name) + 1)
    assert balanced
    assert not counts.balances
