from __future__ import annotations

import uuid

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_provider_talon_cdp.exceptions import InvalidInputError
from airflow_provider_talon_cdp.sync.changes import (
    Batch,
    Change,
    Entry,
    Ids,
    Mixed,
    Rejection,
    read_change,
    read_ids,
)

CHANGES = st.lists(
    st.builds(Change, st.sampled_from("abc"), st.sampled_from("xyz"), st.sampled_from(["add", "remove"])),
    min_size=2,
    unique=True,
)


class Name(str):
    """A subclass, as some drivers return."""

    __slots__ = ()


@pytest.mark.parametrize(
    "value, text",
    [
        ("Anna ", "Anna "),
        (Name("a"), "a"),
        (42, "42"),
        (uuid.UUID(int=1), "00000000-0000-0000-0000-000000000001"),
    ],
)
def test_text_integers_and_uuids_are_ids(value, text):
    change = read_change(value, "vip", "add", "external")
    assert change == Change(text, "vip", "add")
    assert type(change.profile_id) is str


@pytest.mark.parametrize(
    "value, reason",
    [
        (None, "profile ID null"),
        ("", "profile ID empty"),
        ("x" * 1001, "profile ID longer than 1000 characters"),
        ("\udcff", "profile ID not valid Unicode (a lone surrogate)"),
    ],
)
def test_a_record_without_a_usable_id_is_rejected_for_a_reason_that_does_not_quote_it(value, reason):
    # The ID itself, where there is one, is for the dead letters.
    assert read_change(value, "vip", "add", "external") == Rejection(reason, value or None)


@pytest.mark.parametrize(
    "audience, reason",
    [
        (None, "audience ID null"),
        ("", "audience ID empty"),
        ("x" * 1001, "audience ID longer than 1000 characters"),
        ("\udcff", "audience ID not valid Unicode (a lone surrogate)"),
    ],
)
def test_a_record_without_a_usable_audience_is_rejected(audience, reason):
    assert read_change("anna", audience, "add", "external") == Rejection(reason, "anna")


@pytest.mark.parametrize("value", [1.0, b"x", True, ["a"], object()])
def test_a_column_of_another_type_is_an_error_of_the_query(value):
    with pytest.raises(InvalidInputError, match="Cast it to text"):
        read_change(value, "vip", "add", "external")


@pytest.mark.parametrize(
    "audience, id_type", [(7, "external"), ("7", "internal"), (True, "internal"), (b"x", "external")]
)
def test_an_audience_of_the_wrong_type_is_an_error_of_the_query(audience, id_type):
    with pytest.raises(InvalidInputError, match="audience ID"):
        read_change("anna", audience, "add", id_type)


def test_a_profile_travels_in_one_entry():
    changes = [
        Change("a", "x", "add"),
        Change("b", "x", "remove"),
        Change("a", "y", "add"),
        Change("a", "z", "remove"),
    ]
    assert Batch(changes).entries() == [Entry("a", ("x", "y"), ("z",)), Entry("b", (), ("x",))]


@given(CHANGES)
def test_the_halves_hold_what_the_batch_held(changes):
    batch = Batch(changes)
    left, right = batch.halves()
    assert [*left.changes, *right.changes] == changes
    assert left.changes
    assert right.changes
    spread = [(e.profile_id, a, "add") for e in batch.entries() for a in e.adds]
    spread += [(e.profile_id, a, "remove") for e in batch.entries() for a in e.removes]
    assert sorted(spread) == sorted(change[:3] for change in changes)


@pytest.mark.parametrize(
    "quick, actions",
    [
        (Ids(["a", "b", "c"], "vip", "remove"), ["remove", "remove", "remove"]),
        (Mixed(["a", "b", "c"], "vip", b"\0\1\0"), ["remove", "add", "remove"]),
        (Mixed(["a", "b", "c"], "vip", b"\1\1\1"), ["add", "add", "add"]),
    ],
)
def test_a_batch_in_a_quick_form_is_the_same_batch(quick, actions):
    spelt = [Change(each, "vip", action) for each, action in zip("abc", actions, strict=True)]
    batches = Batch(quick), Batch(spelt)
    for batch in batches:
        assert list(batch.changes) == spelt
        assert len(batch) == 3
        assert batch.profiles == {"a", "b", "c"}
        assert [list(half.changes) for half in batch.halves()] == [spelt[:1], spelt[1:]]
    assert batches[0].entries() == batches[1].entries()
    groups, others = (sorted(group for group in batch.groups() if group.ids) for batch in batches)
    assert groups == others


@given(st.lists(st.one_of(st.text(max_size=2), st.none(), st.integers(), st.uuids(), st.just("x" * 1001))))
def test_many_ids_are_read_as_one_is(values):
    records = list(read_ids(values, "vip", "add", "external"))
    spelt = [
        each for record in records for each in (record.changes() if isinstance(record, Ids) else [record])
    ]
    singly = [read_change(each, "vip", "add", "external") for each in values]
    for kind in (Change, Rejection):
        assert [each for each in spelt if isinstance(each, kind)] == [
            each for each in singly if isinstance(each, kind)
        ]


def test_an_id_that_cannot_be_written_is_found_among_many():
    assert list(read_ids(["a", "\udcff", "b"], "vip", "add", "external")) == [
        Ids(["a", "b"], "vip", "add"),
        Rejection("profile ID not valid Unicode (a lone surrogate)", "\udcff"),
    ]


def test_a_batch_in_which_a_profile_has_two_changes_has_no_groups():
    two = [Change("a", "vip", "add"), Change("b", "vip", "add"), Change("a", "gold", "remove")]
    assert Batch(two).groups() is None
    assert Batch(two[1:]).groups() == [(["b"], "vip", "add"), (["a"], "gold", "remove")]
