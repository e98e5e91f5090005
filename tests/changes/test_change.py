"""Reading IDs, and the operations of a chunk against those of a list of changes."""

from __future__ import annotations

import uuid
from collections import Counter
from decimal import Decimal
from itertools import groupby
from numbers import Integral

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_provider_talon_cdp.changes.change import (
    Change,
    Chunk,
    Rejection,
    one_or_all,
    read_members,
    read_memberships,
    read_profile_id,
)
from airflow_provider_talon_cdp.exceptions import InvalidInputError


class Name(str):
    """A subclass, as some drivers return."""

    __slots__ = ()


class Int64:
    """Like numpy's integers: registered as an integer, and not an ``int``."""

    def __init__(self, value):
        self.value = value

    def __int__(self):
        return self.value

    def __str__(self):
        return f"Int64({self.value})"


Integral.register(Int64)


class NAType:
    """Like pandas' NA."""


class NaTType:
    """Like pandas' NaT."""


def test_subclasses_of_text_become_text():
    """They cannot be written to a disk as such."""
    (chunk,) = read_members([Name("anna"), Name("bert")], "vip", "add")
    assert [type(profile_id) for profile_id in chunk.ids] == [str, str]


@pytest.mark.parametrize(
    "value, text",
    [
        ("Anna ", "Anna "),
        ("é", "é"),
        (Name("a"), "a"),
        (42, "42"),
        (-7, "-7"),
        (Int64(2**62), str(2**62)),
        (Decimal(10**25 + 1), str(10**25 + 1)),
        (uuid.UUID(int=1), "00000000-0000-0000-0000-000000000001"),
    ],
)
def test_text_integers_integral_decimals_and_uuids_are_ids(value, text):
    read = read_profile_id(value)
    assert read == text
    assert type(read) is str


NULL = "profile ID null"
NOTHING = [None, float("nan"), Decimal("NaN"), NAType(), NaTType()]


@pytest.mark.parametrize("value", NOTHING, ids=lambda value: type(value).__name__)
def test_what_databases_and_data_frames_have_instead_of_null_is_null(value):
    assert read_profile_id(value) == Rejection(NULL)
    assert list(read_members([value, "a"], "vip", "add")) == [Rejection(NULL), Chunk(["a"], "vip")]


@pytest.mark.parametrize(
    "value, reason",
    [
        ("", "profile ID empty"),
        ("x" * 1001, "profile ID longer than 1000 characters"),
        ("\udcff", "profile ID not valid Unicode (a lone surrogate)"),
    ],
)
def test_a_record_without_a_usable_id_is_rejected_for_a_reason_that_does_not_quote_it(value, reason):
    # The ID itself, where there is one, is for the dead letters.
    assert read_profile_id(value) == Rejection(reason, value or None)


def test_an_id_that_a_reader_could_not_read_is_rejected_for_the_readers_reason():
    """Other rows have IDs of the right type, so the query is not wrong."""
    error = InvalidInputError("holds text that is not UTF-8")
    profile = Rejection("profile ID holds text that is not UTF-8")
    assert list(read_members(["a", error], "vip", "add")) == [profile, Chunk(["a"], "vip")]
    audience = Rejection("audience ID holds text that is not UTF-8", "anna")
    for kind in ("external", "internal"):
        assert list(read_memberships([["anna", error]], "add", kind)) == [audience]


@pytest.mark.parametrize(
    "audience, reason",
    [
        (None, "audience ID null"),
        ("None", "audience ID null"),
        ("nan", "audience ID null"),
        ("", "audience ID empty"),
        ("x" * 1001, "audience ID longer than 1000 characters"),
        ("\udcff", "audience ID not valid Unicode (a lone surrogate)"),
    ],
)
def test_a_record_without_a_usable_audience_is_rejected(audience, reason):
    assert list(read_memberships([["anna", audience]], "add", "external")) == [Rejection(reason, "anna")]


@pytest.mark.parametrize(
    "value, cast",
    [
        (1.0, "an integer and then to text"),
        (Decimal("1.5"), "an integer and then to text"),
        (Decimal("1E+2"), "an integer and then to text"),
        (Decimal("1.0"), "an integer and then to text"),
        (Decimal("Infinity"), "an integer and then to text"),
        (float("inf"), "an integer and then to text"),
        (b"x", "text"),
        (True, "text"),
        (["a"], "text"),
        (object(), "text"),
    ],
)
def test_a_column_of_another_type_is_an_error_of_the_query(value, cast):
    said = rf"of type {type(value).__name__}, .*\nConvert it to {cast} \(with CAST in SQL\)"
    with pytest.raises(InvalidInputError, match=said):
        read_profile_id(value)
    with pytest.raises(InvalidInputError, match="Convert it"):
        list(read_members(["a", value], "vip", "add"))


@pytest.mark.parametrize(
    "audience, id_type", [(7, "external"), ("7", "internal"), (True, "internal"), (b"x", "external")]
)
def test_an_audience_of_the_wrong_type_is_an_error_of_the_query(audience, id_type):
    with pytest.raises(InvalidInputError, match="audience ID"):
        list(read_memberships([["anna", audience]], "add", id_type))


def test_records_with_audiences_become_one_chunk_and_their_rejections():
    rows = [("a", "vip", "more"), (None, "vip"), (7, "gold"), ("b", None)]
    assert list(read_memberships(rows, "remove", "external")) == [
        Rejection(NULL),
        Rejection("audience ID null", "b"),
        Chunk(["a", "7"], ["vip", "gold"], "remove"),
    ]
    assert list(read_memberships([("a", 7), ("b", 7)], "add", "internal")) == [Chunk(["a", "b"], "7")]
    assert list(read_memberships([], "add", "external")) == []


@given(st.lists(st.one_of(st.text(max_size=2), st.none(), st.integers(), st.uuids(), st.just("x" * 1001))))
def test_many_ids_are_read_as_one_is(values):
    records = list(read_members(values, "vip", "add"))
    singly = [read_profile_id(each) for each in values]
    chunks = [each for each in records if isinstance(each, Chunk)]
    assert [each for chunk in chunks for each in chunk.ids] == [e for e in singly if isinstance(e, str)]
    assert [each for each in records if isinstance(each, Rejection)] == [
        each for each in singly if isinstance(each, Rejection)
    ]
    assert all(chunk.ids and (chunk.keys, chunk.verbs) == ("vip", "add") for chunk in chunks)


def test_an_id_that_cannot_be_written_is_found_among_many():
    assert list(read_members(("a", "\udcff", "b"), "vip", "add")) == [
        Rejection("profile ID not valid Unicode (a lone surrogate)", "\udcff"),
        Chunk(["a", "b"], "vip"),
    ]


CHANGES = st.lists(
    st.builds(
        Change,
        st.sampled_from("abc"),
        st.sampled_from(["vip", "vip", "gold"]),
        st.sampled_from(["add", "remove"]),
        st.booleans(),
    ),
    max_size=8,
)
PLACES = st.integers(-9, 9) | st.none()


def bodies(changes):
    return [str(at).encode() for at, _ in enumerate(changes)]


@given(CHANGES)
def test_changes_come_back_from_a_chunk(changes):
    chunk = Chunk.of(iter(changes))
    assert list(chunk.changes()) == changes
    assert len(chunk) == len(changes)
    assert chunk.profiles == {change.profile_id for change in changes}
    # What is the same for all is there once.
    for column, values in (
        (chunk.keys, {each.key for each in changes}),
        (chunk.verbs, {e[2:] for e in changes}),
    ):
        assert isinstance(column, str) == (len(values) == 1)


@given(CHANGES, PLACES, PLACES, st.booleans())
def test_a_slice_of_a_chunk_is_that_of_its_list(changes, start, end, has_bodies):
    chunk = Chunk.of(changes)
    chunk = Chunk(chunk.ids, chunk.keys, chunk.verbs, bodies(changes) if has_bodies else None)
    part = chunk[start:end]
    assert list(part.changes()) == changes[start:end]
    assert part.bodies == (bodies(changes)[start:end] if has_bodies else None)


@given(CHANGES, st.sets(st.integers(0, 7)), st.booleans())
def test_changes_are_taken_and_left_out_by_position(changes, places, has_bodies):
    places = sorted(each for each in places if each < len(changes))
    chunk = Chunk.of(changes)
    chunk = Chunk(chunk.ids, chunk.keys, chunk.verbs, bodies(changes) if has_bodies else None)
    taken, rest = chunk.at(places), chunk.without(places)
    assert list(taken.changes()) == [changes[each] for each in places]
    assert list(rest.changes()) == [each for at, each in enumerate(changes) if at not in places]
    if has_bodies:
        assert sorted([*taken.bodies, *rest.bodies]) == sorted(bodies(changes))
        assert taken.bodies == [bodies(changes)[each] for each in places]


@given(st.lists(CHANGES, min_size=1, max_size=4))
def test_chunks_are_joined_in_order(some):
    chunk = Chunk.joined([Chunk.of(each) for each in some])
    assert list(chunk.changes()) == [change for each in some for change in each]


def test_joined_chunks_of_one_kind_stay_of_one_kind():
    assert Chunk.joined([Chunk(["a"], "vip"), Chunk(["b"], "vip")]) == Chunk(["a", "b"], "vip")
    assert Chunk.joined([Chunk(["a"], "vip"), Chunk(["b"], "gold", "remove")]) == Chunk(
        ["a", "b"], ["vip", "gold"], ["add", "remove"]
    )


@given(CHANGES)
def test_the_parts_by_key_hold_what_the_chunk_held(changes):
    parts = list(Chunk.of(changes).by_key())
    assert all(part.keys == key and len(part) for key, part in parts)
    assert len({key for key, _ in parts}) == len(parts)
    assert {key: list(part.changes()) for key, part in parts} == {
        key: list(some) for key, some in groupby(sorted(changes, key=lambda e: e.key), lambda e: e.key)
    }


def test_a_profile_travels_in_one_entry():
    chunk = Chunk(["a", "b", "a", "a"], ["x", "x", "y", "z"], ["add", "remove", "add?", "remove?"])
    assert chunk.entries() == [("a", ["x", "y"], ["z"]), ("b", [], ["x"])]


@given(CHANGES)
def test_entries_and_groups_hold_what_the_chunk_held(changes):
    chunk = Chunk.of(changes)
    wanted = Counter(each[:3] for each in changes)
    spread = [(profile, key, "add") for profile, added, _ in chunk.entries() for key in added]
    spread += [(profile, key, "remove") for profile, _, removed in chunk.entries() for key in removed]
    assert Counter(spread) == wanted
    assert len(chunk.entries()) == len(chunk.profiles)
    groups = chunk.groups()
    if groups is not None:
        assert Counter((each, key, action) for ids, key, action in groups for each in ids) == wanted


def test_a_chunk_in_which_a_profile_has_two_changes_has_no_groups():
    two = Chunk(["a", "b", "a"], ["vip", "vip", "gold"], ["add", "add", "remove"])
    assert two.groups() is None
    assert two[1:].groups() == [(["b"], "vip", "add"), (["a"], "gold", "remove")]
    assert Chunk(["a", "b"], "vip", "remove?").groups() == [(["a", "b"], "vip", "remove")]
    assert Chunk(["a", "b"], "vip", ["add", "add?"]).groups() == [(["a", "b"], "vip", "add")]


def test_equal_texts_become_one():
    assert one_or_all(["a", "a"]) == "a"
    assert one_or_all(["a", "b"]) == ["a", "b"]
    assert one_or_all([]) == []
