"""Warehouse values on the wire."""

from __future__ import annotations

import json
import numbers
import subprocess
import sys
import uuid
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from enum import StrEnum
from pathlib import Path
from typing import NamedTuple
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_provider_talon_cdp.api.values import AttributesEncoder, attribute_values, encode_json
from airflow_provider_talon_cdp.exceptions import InvalidInputError

ROOT = Path(__file__).parents[2]
BERLIN = ZoneInfo("Europe/Berlin")


def wire(value, zone=None):
    return (
        encode_json(attribute_values({"a": value}, zone=zone))
        .decode()
        .removeprefix('{"a":')
        .removesuffix("}")
    )


class IntervalYM(NamedTuple):
    """Like that of oracledb."""

    years: int
    months: int


class NotATime(datetime):
    """Like pandas.NaT: a datetime that does not equal itself."""

    __hash__ = None

    def __eq__(self, other):
        return False

    def __ne__(self, other):
        return True


class NaTType(datetime):
    """Like pandas.NaT: a datetime whose methods raise."""

    def isoformat(self, *arguments):
        raise ValueError("NaTType does not support isoformat")

    utcoffset = astimezone = timetuple = __str__ = isoformat


class Timestamp(datetime):
    """Like pandas.Timestamp.max: it has no room for a zone's offset."""

    def replace(self, *_, **__):
        raise OverflowError("too big to convert")


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
        (Decimal("19.990"), "19.99"),
        (Decimal("12345678901234567890.123456789"), "12345678901234567890.123456789"),
        (Decimal("1E+3"), "1000"),
        ("Zürich \U0001f600 \"'\\\n", '"Zürich \U0001f600 \\"\'\\\\\\n"'),
        (Tier.GOLD, '"gold"'),
        (uuid.UUID(int=5), '"00000000-0000-0000-0000-000000000005"'),
        (datetime(2026, 3, 1, 12, 0, 0, 5, tzinfo=UTC), '"2026-03-01T12:00:00.000005Z"'),
        (datetime(2026, 3, 1, tzinfo=timezone(timedelta(hours=-5))), '"2026-03-01T05:00:00Z"'),
        ([1, Decimal("2.50"), None, [3]], "[1,2.5,null,[3]]"),
        (("a", "b"), '["a","b"]'),
        ({"lat": Decimal("52.5"), "lng": 13.4}, '{"lat":52.5,"lng":13.4}'),
    ],
)
def test_a_value_becomes_the_json_that_talon_one_takes(value, text):
    assert wire(value) == text


@pytest.mark.parametrize(
    "value, text",
    [
        (datetime(2026, 7, 1, 12), '"2026-07-01T10:00:00Z"'),
        (datetime(2026, 1, 1, 12), '"2026-01-01T11:00:00Z"'),
        (date(1990, 5, 1), '"1990-04-30T22:00:00Z"'),
        # Berlin's mean time was 53 minutes and 28 seconds ahead.
        (date(1890, 1, 1), '"1889-12-31T23:06:32Z"'),
    ],
)
def test_naive_times_get_the_zone_that_was_set(value, text):
    assert wire(value, BERLIN) == text


def test_the_first_day_of_the_calendar_is_refused_where_the_zone_has_it_before_the_year_1_in_utc():
    with pytest.raises(InvalidInputError, match="'a' is a time before the year 1.*Send null"):
        wire(date(1, 1, 1), BERLIN)
    assert wire(date(1, 1, 1), UTC) == '"0001-01-01T00:00:00Z"'


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
        (IntervalYM(1, 2), "of type IntervalYM"),
        ({1, 2}, "of type set"),
        (object(), "of type object"),
        ("\ud800", "not valid Unicode"),
        ({1: 2}, "a key that is not a string"),
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
def test_every_decimal_keeps_its_value(number):
    text = wire(number)
    assert Decimal(text) == number
    assert isinstance(json.loads(text), int | float)


@given(st.decimals(allow_nan=False, allow_infinity=False), st.integers(0, 60))
def test_equal_numbers_are_equal_bytes_whatever_their_scale(number, zeros):
    sign, digits, exponent = number.as_tuple()
    padded = Decimal((sign, digits + (0,) * zeros, exponent - zeros))
    assert padded == number
    assert wire(padded) == wire(number)


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_a_float_is_written_as_the_decimal_that_it_shows(number):
    assert wire(number) == wire(Decimal(repr(number)))
    assert float(wire(number)) == number


@given(st.integers())
def test_an_integer_is_written_as_the_equal_decimal(number):
    assert wire(number) == wire(Decimal(number)) == wire(Decimal(f"{number}.00"))


@given(st.datetimes(timezones=st.timezones()), st.timezones())
def test_equal_instants_are_equal_bytes_whatever_their_offset(moment, zone):
    try:
        other = moment.astimezone(UTC).astimezone(zone)
    except OverflowError:
        return
    text = json.loads(wire(moment))
    assert text == json.loads(wire(other))
    assert text.endswith("Z")
    assert datetime.fromisoformat(text) == moment.astimezone(UTC)


@pytest.mark.parametrize(
    "moment, says",
    [
        (datetime(2026, 10, 25, 2, 30), "happens twice"),
        (datetime(2026, 3, 29, 2, 30), "does not exist"),
    ],
)
def test_a_local_time_that_clocks_skip_or_repeat_is_refused(moment, says):
    with pytest.raises(InvalidInputError, match=f"'a' is a local time that {says}.*connection's zone"):
        wire(moment, BERLIN)
    assert wire(moment, UTC).endswith(':30:00Z"')
    assert wire(moment.replace(tzinfo=BERLIN)).endswith(':30:00Z"')


def test_a_date_whose_midnight_clocks_skip_is_that_days_first_moment():
    assert wire(date(2018, 11, 4), ZoneInfo("America/Sao_Paulo")) == '"2018-11-04T03:00:00Z"'
    assert wire(date(2020, 11, 1), ZoneInfo("America/Havana")) == '"2020-11-01T04:00:00Z"'


@pytest.mark.parametrize(
    "value, text",
    [
        (1.0, "1"),
        (-0.0, "0"),
        (1e15, "1000000000000000"),
        (1e22, "10000000000000000000000"),
        (1e-7, "0.0000001"),
        (Decimal("0.00"), "0"),
        (Decimal("-0.10"), "-0.1"),
        (Decimal("1E+39"), "1" + "0" * 39),
        (Decimal("1E+40"), "1E+40"),
        (Decimal("1.50E-45"), "1.5E-45"),
        (10**50, "1E+50"),
    ],
)
def test_a_number_has_one_spelling(value, text):
    assert wire(value) == text


class Foreign:
    """Like a scalar of numpy or pandas, which are not installed with the provider."""

    def __init__(self, value):
        self.value = value

    def __int__(self):
        return int(self.value)

    def __float__(self):
        return float(self.value)


class NAType:
    """Like pandas.NA, whose comparisons have no truth."""

    def __eq__(self, other):
        raise TypeError

    __hash__ = None


def test_foreign_numbers_and_na_are_what_they_stand_for():
    integer, real = type("int64", (Foreign,), {}), type("float32", (Foreign,), {})
    numbers.Integral.register(integer)
    numbers.Real.register(real)
    assert wire(integer(7)) == "7"
    assert wire([integer(7), real(0.5), NAType()]) == "[7,0.5,null]"
    encode = AttributesEncoder(types={"a": "(list number)", "b": "string"})
    assert encode({"a": [integer(7)], "b": integer(8), "c": NAType()}) == (b'{"a":[7],"b":"8"}', ("a", "b"))
    with pytest.raises(InvalidInputError, match="'a' is declared as .list number., but it contains a null"):
        encode({"a": [NAType()]})


@pytest.mark.parametrize("kind", ["string", "time", "number", "boolean"])
def test_nat_of_pandas_fits_no_declared_type(kind):
    """Its methods raise ValueError, which would end the task."""
    with pytest.raises(InvalidInputError, match=rf"'a' is declared as {kind}, but it is NaT, .* Send null"):
        AttributesEncoder(types={"a": kind})({"a": NaTType(2026, 1, 1)})


@pytest.mark.parametrize("kind", ["string", "time"])
def test_nat_of_pandas_fits_no_declared_list(kind):
    with pytest.raises(InvalidInputError, match="'a' is declared as .* NaT, "):
        AttributesEncoder(types={"a": f"(list {kind})"})({"a": [NaTType(2026, 1, 1)]})


@pytest.mark.parametrize("types", [{}, {"a": "time"}])
@pytest.mark.parametrize("zone, text", [("America/New_York", "12T03"), ("Europe/Berlin", "11T21")])
def test_the_last_time_of_pandas_is_in_the_connections_zone(zone, text, types):
    """Its own methods end where a zone's offset would take it out of its range."""
    body, _ = AttributesEncoder(zone=ZoneInfo(zone), types=types)(
        {"a": Timestamp(2262, 4, 11, 23, 47, 16, 854775)}
    )
    assert body == f'{{"a":"2262-04-{text}:47:16.854775Z"}}'.encode()


class NamedRowTuple(tuple):  # noqa: SLOT001 - names are attributes of the driver's, too
    """Like a ROW of Trino's driver: the names are beside the values, and any other attribute is None."""

    def __new__(cls, values, names):
        return super().__new__(cls, values)

    def __init__(self, values, names):
        self.__annotations__ = {"names": names, "types": ["double"] * len(names)}

    def __getattr__(self, name):
        return None


def test_a_row_of_trino_is_an_object_of_its_names():
    place = NamedRowTuple([Decimal("52.50"), 13], ["lat", "lng"])
    assert wire(place) == '{"lat":52.5,"lng":13}'
    assert wire([place]) == '[{"lat":52.5,"lng":13}]'
    assert wire({"home": NamedRowTuple([place, None], ["at", "since"])}) == (
        '{"home":{"at":{"lat":52.5,"lng":13},"since":null}}'
    )
    body, _ = AttributesEncoder(types={"a": "location"})({"a": place})
    assert body == b'{"a":{"lat":52.5,"lng":13}}'


@pytest.mark.parametrize("names", [[None, None], ["lat", None], ["x", "x"]])
def test_a_row_of_trino_whose_names_do_not_tell_its_values_apart_is_an_array(names):
    assert wire(NamedRowTuple([52.5, 13], names)) == "[52.5,13]"


def test_what_a_reader_could_not_read_is_said_with_the_attributes_name():
    unreadable = InvalidInputError("holds a time that Python cannot hold")
    with pytest.raises(InvalidInputError, match="^Attribute 'a' holds a time that Python cannot hold"):
        wire([unreadable])
    with pytest.raises(InvalidInputError, match="^Attribute 'a' is declared as time, but it holds a time"):
        AttributesEncoder(types={"a": "time"})({"a": unreadable})


def test_a_body_that_is_kept_holds_no_buffer():
    """In a process of its own, as the peak counts: a buffer would be a kilobyte and more for each body."""
    code = (
        "from airflow_provider_talon_cdp.api.values import AttributesEncoder as E; e = E()\n"
        # Not ru_maxrss, which begins with what the parent process had.
        "peak = lambda: int(open('/proc/self/status').read().split('VmHWM:')[1].split()[0]) // 1024\n"
        "before = peak(); kept = [e({'score': each}) for each in range(100_000)]; print(peak() - before)"
    )
    grown = subprocess.check_output([sys.executable, "-c", code], cwd=ROOT, text=True)
    assert int(grown) < 40
