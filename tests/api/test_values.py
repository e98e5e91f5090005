"""Warehouse values on the wire."""

from __future__ import annotations

import json
import uuid
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from enum import StrEnum
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_provider_talon_cdp.api.values import attribute_values, encode_json
from airflow_provider_talon_cdp.exceptions import InvalidInputError

BERLIN = ZoneInfo("Europe/Berlin")


def wire(value, zone=None):
    return (
        encode_json(attribute_values({"a": value}, zone=zone))
        .decode()
        .removeprefix('{"a":')
        .removesuffix("}")
    )


class NotATime(datetime):
    """Like pandas.NaT: a datetime that does not equal itself."""

    __hash__ = None

    def __eq__(self, other):
        return False

    def __ne__(self, other):
        return True


def nested(depth, inside=()):
    for _ in range(depth):
        inside = [inside]
    return inside


class Tier(StrEnum):
    GOLD = "gold"


@pytest.mark.parametrize(
    "value, text",
    [
        (None, "null"),
        (True, "true"),
        (7, "7"),
        (2**64, "18446744073709551616"),
        (-(2**63) - 1, "-9223372036854775809"),
        (0.1, "0.1"),
        (Decimal("19.990"), "19.990"),
        (Decimal("12345678901234567890.123456789"), "12345678901234567890.123456789"),
        (Decimal("1E+3"), "1E+3"),
        ("Zürich \U0001f600 \"'\\\n", '"Zürich \U0001f600 \\"\'\\\\\\n"'),
        (Tier.GOLD, '"gold"'),
        (uuid.UUID(int=5), '"00000000-0000-0000-0000-000000000005"'),
        (datetime(2026, 3, 1, 12, 0, 0, 5, tzinfo=UTC), '"2026-03-01T12:00:00.000005+00:00"'),
        (datetime(2026, 3, 1, tzinfo=timezone(timedelta(hours=-5))), '"2026-03-01T00:00:00-05:00"'),
        ([1, Decimal("2.50"), None, [3]], "[1,2.50,null,[3]]"),
        (("a", "b"), '["a","b"]'),
        ({"lat": Decimal("52.5"), "lng": 13.4}, '{"lat":52.5,"lng":13.4}'),
    ],
)
def test_a_value_becomes_the_json_that_talon_one_takes(value, text):
    assert wire(value) == text


@pytest.mark.parametrize(
    "value, text",
    [
        (datetime(2026, 7, 1, 12), '"2026-07-01T12:00:00+02:00"'),
        (datetime(2026, 1, 1, 12), '"2026-01-01T12:00:00+01:00"'),
        (date(1990, 5, 1), '"1990-05-01T00:00:00+02:00"'),
        # Berlin's mean time was 53 minutes and 28 seconds ahead, which RFC 3339 cannot write.
        (date(1890, 1, 1), '"1889-12-31T23:06:32+00:00"'),
    ],
)
def test_naive_times_get_the_zone_that_was_set(value, text):
    assert wire(value, BERLIN) == text


def test_the_first_day_of_the_calendar_is_refused_where_the_zone_has_it_before_the_year_1_in_utc():
    with pytest.raises(InvalidInputError, match="'a' is a time at the edge of the calendar.*Send null"):
        wire(date(1, 1, 1), BERLIN)
    assert wire(date(1, 1, 1), UTC) == '"0001-01-01T00:00:00+00:00"'


def test_what_is_nested_as_deep_as_a_value_may_be_can_be_written():
    assert wire(nested(199)) == "[" * 200 + "]" * 200


@pytest.mark.parametrize("value", [datetime(2026, 7, 1), date(2026, 7, 1), [date(2026, 7, 1)]])
def test_naive_times_without_a_zone_are_refused(value):
    with pytest.raises(InvalidInputError, match="'a' is a date or a timestamp without a time zone"):
        wire(value)


@pytest.mark.parametrize(
    "value, says",
    [
        (b"x", "bytes"),
        (memoryview(b"x"), "bytes"),
        (float("nan"), "no number"),
        (float("inf"), "no number"),
        (Decimal("NaN"), "no number"),
        (Decimal("-Infinity"), "no number"),
        (NotATime(2026, 1, 1), "NaT"),
        (time(12), "of type time"),
        (timedelta(1), "of type timedelta"),
        ({1, 2}, "of type set"),
        (object(), "of type object"),
        ("\ud800", "not valid Unicode"),
        ({1: 2}, "a key that is no string"),
        ([b"x"], "bytes"),
        (datetime(1, 1, 1, tzinfo=BERLIN), "before the year 1"),
        (datetime(9999, 12, 31, 23, 59, 59, tzinfo=timezone(timedelta(seconds=-1))), "after the year 9999"),
        (nested(200), "nested more than 200 levels deep"),
        (nested(100_000), "nested more than 200 levels deep"),
        ({"b": nested(600)}, "nested more than 200 levels deep"),
    ],
)
def test_what_no_attribute_can_hold_is_refused_with_the_attributes_name(value, says):
    with pytest.raises(InvalidInputError, match=says) as refusal:
        wire(value)
    assert "'a'" in str(refusal.value)


@pytest.mark.parametrize("row", [["a"], {5: 1}, {"": 1}])
def test_attributes_are_a_mapping_of_names(row):
    with pytest.raises(InvalidInputError):
        attribute_values(row)


def test_a_body_with_something_else_than_json_is_refused():
    with pytest.raises(InvalidInputError, match=r"not JSON.*object"):
        encode_json({"a": object()})


@given(st.decimals(allow_nan=False, allow_infinity=False))
def test_every_decimal_keeps_its_digits(number):
    text = wire(number)
    assert Decimal(text) == number
    assert Decimal(text).as_tuple() == number.as_tuple()
    json.loads(text)


@given(st.datetimes(timezones=st.timezones()))
def test_every_zoned_time_is_rfc_3339_for_the_same_moment(moment):
    text = json.loads(wire(moment))
    back = datetime.fromisoformat(text)
    assert back == moment or back.astimezone(UTC) == moment.astimezone(UTC)
    assert len(text.rpartition("T")[2].replace("+", "-").rpartition("-")[2]) == 5
