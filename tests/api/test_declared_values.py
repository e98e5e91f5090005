"""Values of a warehouse as the types that attributes were declared with."""

from __future__ import annotations

import uuid
from datetime import UTC, date, datetime, time
from decimal import Decimal
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_provider_talon_cdp.api.values import declared_value
from airflow_provider_talon_cdp.contract import AttributeType
from airflow_provider_talon_cdp.emulator import attributes as emulated
from airflow_provider_talon_cdp.exceptions import InvalidInputError

TYPES = get_args(AttributeType)
DEEP = "[" * 100_000 + "]" * 100_000


def convert(value, kind):
    return declared_value(value, kind, "a")


NOON = datetime(2026, 6, 30, 12, tzinfo=UTC)


@pytest.mark.parametrize(
    "kind, value, converted",
    [
        ("string", "x", "x"),
        ("string", 7, "7"),
        ("string", 0.5, "0.5"),
        ("string", Decimal("1E+3"), "1000"),
        ("string", Decimal("19.990"), "19.990"),
        ("string", True, "true"),
        ("string", uuid.UUID(int=5), "00000000-0000-0000-0000-000000000005"),
        ("string", date(2026, 6, 30), "2026-06-30"),
        ("string", NOON, "2026-06-30T12:00:00Z"),
        ("number", 7, 7),
        ("number", 0.5, 0.5),
        ("number", Decimal("19.990"), Decimal("19.990")),
        ("number", " 19.990 ", Decimal("19.990")),
        ("number", "-7", Decimal(-7)),
        ("number", "1e3", Decimal("1E+3")),
        ("boolean", False, False),
        ("boolean", 1, True),
        ("boolean", Decimal(0), False),
        ("boolean", "TRUE", True),
        ("boolean", "f", False),
        ("time", NOON, NOON),
        ("time", date(2026, 6, 30), date(2026, 6, 30)),
        ("time", "2026-06-30T12:00:00Z", NOON),
        ("time", "2026-06-30 12:00:00+00", NOON),
        ("time", "2026-06-30", date(2026, 6, 30)),
        ("location", [52.5, 13], [52.5, 13]),
        ("location", {"lat": Decimal("52.5"), "lng": 13}, {"lat": Decimal("52.5"), "lng": 13}),
        ("location", "[52.50, 13]", [Decimal("52.50"), 13]),
        ("(list string)", ["a", 7], ["a", "7"]),
        ("(list string)", (), []),
        ("(list number)", '["1.50", 2.50]', [Decimal("1.50"), Decimal("2.50")]),
        ("(list time)", ["2026-06-30T12:00:00Z"], [NOON]),
        ("(list location)", [[1, 2], {"x": 1, "y": 2}], [[1, 2], {"x": 1, "y": 2}]),
    ],
)
def test_a_value_becomes_its_declared_type_where_nothing_is_lost(kind, value, converted):
    result = convert(value, kind)
    assert (result, type(result)) == (converted, type(converted))


@pytest.mark.parametrize(
    "kind, value, says",
    [
        ("string", [1], "of type list"),
        ("string", b"x", "of type bytes"),
        ("string", time(12), "of type time"),
        ("string", float("nan"), "not a finite number"),
        ("string", Decimal("1E+1000000"), "a number of more than 10,000 digits"),
        ("string", Decimal("1E-1000000"), "a number of more than 10,000 digits"),
        pytest.param("string", 10**10_000, "a number of more than 10,000 digits", id="long integer"),
        ("(list string)", ["a", float("nan")], "not a finite number"),
        ("number", True, "of type bool"),
        ("number", NOON, "of type datetime"),
        ("number", "", "its text is not a number"),
        ("number", "NaN", "its text is not a number"),
        ("number", "1_000", "its text is not a number"),
        ("number", "1,5", "its text is not a number"),
        ("number", "٣", "its text is not a number"),
        ("number", "1e99999", "its text is not a number"),
        ("number", Decimal("Infinity"), "not a finite number"),
        ("number", Decimal("sNaN"), "not a finite number"),
        ("boolean", 2, "a number other than 0 and 1"),
        ("boolean", "yes", "neither true nor false"),
        ("boolean", NOON, "of type datetime"),
        ("boolean", Decimal("sNaN"), "not a finite number"),
        ("time", 1_782_820_800, "of type int"),
        ("time", "30.06.2026", "not a date or time"),
        ("location", [1], "not two numbers"),
        ("location", "52.5", "not two numbers"),
        ("location", "here", "not two numbers"),
        ("location", ["1", 2], "one of its two parts is not a number"),
        ("location", [True, 2], "one of its two parts is not a number"),
        ("(list string)", "a", "its text is not a JSON array"),
        ("(list string)", '"a"', "its text is not a JSON array"),
        ("(list number)", 5, "not a list"),
        ("(list number)", [1, None], "contains a null"),
        ("(list number)", [1, "x"], "its text is not a number"),
        pytest.param("(list number)", DEEP, "its text is not a JSON array", id="deep list"),
        ("(list number)", "[1E99999999999999999999]", "its text is not a JSON array"),
        pytest.param("location", DEEP, "not two numbers", id="deep location"),
        ("(list time)", [5], "of type int"),
    ],
)
def test_what_does_not_fit_is_refused_with_the_attributes_name_and_without_the_value(kind, value, says):
    with pytest.raises(InvalidInputError, match=says) as refusal:
        convert(value, kind)
    assert f"Attribute 'a' is declared as {kind}" in str(refusal.value)


@pytest.mark.parametrize("kind", TYPES)
def test_what_its_reader_could_not_read_says_why(kind):
    values = [InvalidInputError("holds what it cannot")]
    if kind.startswith("(list "):
        values.append(values[:1])
    for value in values:
        with pytest.raises(InvalidInputError, match="is declared as .*, but it holds what it cannot.$"):
            convert(value, kind)


@pytest.mark.parametrize("kind", TYPES)
def test_null_stays_null(kind):
    assert convert(None, kind) is None


def test_the_types_are_those_that_the_api_knows():
    assert set(TYPES) == set(emulated.TYPES)


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.decimals()
    | st.text(max_size=12)
    | st.dates()
    | st.datetimes(timezones=st.none() | st.timezones())
    | st.uuids(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)


@given(value=VALUES, kind=st.sampled_from(sorted(TYPES)))
def test_any_value_is_converted_or_refused_without_a_word_of_it(value, kind):
    said = ""
    try:
        convert(value, kind)
    except InvalidInputError as refusal:
        said = str(refusal)
    assert "\n" not in said
    assert len(said) < 140
