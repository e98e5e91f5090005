"""Attributes of a row as one JSON object."""

from __future__ import annotations

import json
from datetime import UTC, date, datetime
from decimal import Decimal
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_provider_talon_cdp.api.values import AttributesEncoder
from airflow_provider_talon_cdp.emulator import attributes as emulated
from airflow_provider_talon_cdp.emulator.exact_json import loads
from airflow_provider_talon_cdp.exceptions import InvalidInputError
from tests.api.test_declared_values import TYPES, VALUES


def test_equal_attributes_are_equal_bytes_whatever_their_order():
    encode = AttributesEncoder()
    one, _ = encode({"b": {"y": 1, "x": 2}, "a": Decimal("19.990")})
    two, _ = encode({"a": Decimal("19.990"), "b": {"x": 2, "y": 1}})
    assert one == two == b'{"a":19.99,"b":{"x":2,"y":1}}'


def test_nulls_are_left_out_or_kept():
    row = {"a": None, "b": 1}
    assert AttributesEncoder()(row) == (b'{"b":1}', ("b",))
    assert AttributesEncoder(skip_nulls=False)(row) == (b'{"a":null,"b":1}', ("a", "b"))


@pytest.mark.parametrize("row", [{}, {"a": None}])
def test_without_a_value_there_is_nothing_to_send(row):
    assert AttributesEncoder()(row) == (b"", ())


def test_declared_types_convert_before_the_zone_is_applied():
    encode = AttributesEncoder(types={"born": "time", "score": "number"}, zone=ZoneInfo("Europe/Berlin"))
    body, _ = encode({"born": "1990-05-01", "score": "7.50", "since": date(2026, 1, 1)})
    assert body == b'{"born":"1990-04-30T22:00:00Z","score":7.5,"since":"2025-12-31T23:00:00Z"}'


def test_a_type_for_an_attribute_that_a_row_lacks_is_no_matter():
    assert AttributesEncoder(types={"born": "time"})({"score": 7}) == (b'{"score":7}', ("score",))


def test_what_does_not_fit_is_refused():
    with pytest.raises(
        InvalidInputError, match="'score' is declared as number, but its text is not a number"
    ):
        AttributesEncoder(types={"score": "number"})({"score": "high"})
    with pytest.raises(InvalidInputError, match="'score' is bytes"):
        AttributesEncoder()({"score": b"x"})


@given(value=VALUES, kind=st.sampled_from(sorted(TYPES)))
def test_what_is_not_refused_has_the_declared_type_on_the_wire(value, kind):
    encode = AttributesEncoder(types={"a": kind}, zone=UTC, skip_nulls=False)
    try:
        body, _ = encode({"a": value})
    except InvalidInputError:
        return
    sent = loads(body)["a"]
    assert sent is None or emulated.has_type(sent, kind), body


@given(st.datetimes(timezones=st.just(UTC)))
def test_times_stay_the_moment_that_they_are(moment):
    body, _ = AttributesEncoder()({"a": moment})
    assert datetime.fromisoformat(json.loads(body)["a"]) == moment
