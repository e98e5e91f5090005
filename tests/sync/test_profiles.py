"""Profiles of a source: sorted, each once."""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal

import pytest
from airflow_provider_talon_cdp.sync.changes import Rejection
from airflow_provider_talon_cdp.sync.diff import OutOfOrderError, PlanCounts
from hypothesis import given
from hypothesis import strategies as st

from airflow_provider_talon_cdp.exceptions import InvalidInputError
from airflow_provider_talon_cdp.sync.profiles import Profile, one_each, sorted_on_disk


def profile(profile_id, body="1", order=None, fault=None):
    return Profile(profile_id, b"" if fault else f'{{"a":{body}}}'.encode(), ("a",), order, fault)


def each(records, **arguments):
    counts, rejected = PlanCounts(), []
    found = list(one_each(records, counts, on_rejected=rejected.append, **arguments))
    return found, counts, rejected


def test_distinct_profiles_pass():
    rows = [profile("a"), profile("b")]
    found, counts, rejected = each(rows)
    assert (found, counts.read, counts.duplicate, rejected) == (rows, 2, 0, [])


def test_several_rows_of_one_profile_are_an_error_with_numbers_and_no_ids():
    rows = [profile(each) for each in ("anna", "anna", "anna", "bo", "cem", "cem")]
    with pytest.raises(
        InvalidInputError, match=r"^2 profile\(s\) have more than one row \(5 rows\)"
    ) as error:
        each(rows)
    assert "anna" not in str(error.value)


def test_an_equal_row_is_one_too_many_as_well():
    with pytest.raises(InvalidInputError, match="1 profile"):
        each([profile("a"), profile("a")])


@pytest.mark.parametrize(
    "orders, last",
    [
        ([1, 2], 1),
        ([2, 1], 0),
        ([None, 1], 1),
        ([1, None], 0),
        ([float("nan"), 1], 1),
        ([Decimal("NaN"), Decimal(1)], 1),
        ([datetime(2026, 1, 2, tzinfo=UTC), datetime(2026, 1, 1, tzinfo=UTC)], 0),
        (["b", "a", "c"], 2),
    ],
)
def test_the_last_row_of_a_profile_wins(orders, last):
    rows = [profile("a", position, order) for position, order in enumerate(orders)]
    found, counts, _ = each([*rows, profile("b")], on_duplicate="last")
    assert found == [rows[last], profile("b")]
    assert counts.duplicate == len(rows) - 1


def test_of_rows_with_one_order_the_same_wins_however_they_come():
    rows = [profile("a", body, 1) for body in (1, 3, 2)]
    assert each(rows, on_duplicate="last")[0] == each(rows[::-1], on_duplicate="last")[0]


def test_orders_that_cannot_be_compared_are_an_error():
    with pytest.raises(InvalidInputError, match="of the types int and str"):
        each([profile("a", 1, "x"), profile("a", 1, 5)], on_duplicate="last")


def test_rows_that_cannot_be_sent_are_counted_and_keep_their_place():
    faulty = profile("b", fault="Attribute 'a' is bytes")
    found, counts, rejected = each([Rejection("profile ID null"), profile("a"), faulty])
    assert found == [profile("a"), faulty]
    assert counts.read == 3
    assert dict(counts.rejected) == {"profile ID null": 1, "Attribute 'a' is bytes": 1}
    assert rejected == [Rejection("profile ID null"), Rejection("Attribute 'a' is bytes", "b")]


def test_an_earlier_row_with_a_fault_gives_way():
    rows = [profile("a", order=1, fault="bad"), profile("a", order=2)]
    found, counts, rejected = each(rows, on_duplicate="last")
    assert (found, counts.duplicate, rejected) == ([rows[1]], 1, [])


def test_a_source_that_is_not_sorted_is_told():
    with pytest.raises(OutOfOrderError):
        each([profile("b"), profile("a")])
    # By code points, not as people sort.
    with pytest.raises(OutOfOrderError):
        each([profile("a"), profile("B")])


IDS = st.text(st.sampled_from("aAá\n\0\t\\😀\uffff"), min_size=1, max_size=2)
ORDERS = st.none() | st.integers(0, 3)
ROWS = st.lists(
    st.builds(profile, IDS, st.integers(0, 3), ORDERS) | st.builds(profile, IDS, fault=st.just("bad")),
    max_size=30,
)


@given(rows=ROWS, run=st.integers(1, 2000))
def test_sorting_on_disk_and_taking_the_last_is_what_a_dictionary_does(rows, run):
    records = [*rows, Rejection("profile ID null")]
    found, counts, rejected = each(sorted_on_disk(records, run=run), on_duplicate="last")
    wanted = {}
    for row in sorted(
        rows, key=lambda row: (row.order is not None, row.order or 0, row.attributes, row.fault or "")
    ):
        wanted[row.profile_id] = row
    assert found == [wanted[profile_id] for profile_id in sorted(wanted)]
    assert counts.read == len(records)
    assert counts.read == len(wanted) + counts.duplicate + 1
    assert len(rejected) == 1 + sum(row.fault is not None for row in wanted.values())


def test_runs_on_disk_are_closed_when_the_reader_stops(recwarn):
    stream = sorted_on_disk(iter([profile(str(number)) for number in range(9)]), run=1)
    next(stream)
    stream.close()  # type: ignore[attr-defined]
    assert not recwarn.list
