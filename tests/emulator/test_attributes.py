"""Declared attributes: which values fit which type."""

import pytest

from airflow_provider_talon_cdp.emulator.answers import RefusedError
from airflow_provider_talon_cdp.emulator.attributes import TYPES, accept, declare, has_type
from airflow_provider_talon_cdp.emulator.exact_json import loads

SAMPLES = {
    "string": "Gold",
    "number": 3,
    "boolean": True,
    "time": "2026-02-28T23:59:59.123456789+01:00",
    "location": [13.4, 52],
    "(list string)": ["a", "b"],
    "(list number)": [1, 2],
    "(list time)": ["2026-02-28T00:00:00Z"],
    "(list location)": [{"lon": 13, "lat": 52}],
}


def parsed(value):
    return loads(repr(value).replace("'", '"').replace("True", "true").encode())


@pytest.mark.parametrize("kind", TYPES)
def test_a_type_takes_its_own_values_and_no_others(kind):
    fitting = {name for name, value in SAMPLES.items() if has_type(parsed(value), kind)}
    # Two numbers can be a place or a list of numbers: JSON does not tell.
    alike = {"location", "(list number)"} if kind == "(list number)" else {kind}
    alike = {"location", "(list number)"} if kind == "location" else alike
    alike = {"(list string)", "(list time)"} if kind == "(list string)" else alike
    alike = {"string", "time"} if kind == "string" else alike
    assert fitting == alike


@pytest.mark.parametrize(
    "text",
    [
        "2026-02-29T00:00:00Z",
        "2026-02-28",
        "2026-02-28T00:00:00",
        "2026-02-28 00:00:00Z",
        "2026-02-28t00:00:00z",
        "20260228T000000Z",
        "2026-02-28T24:00:00Z",
        "2026-02-28T00:00:60Z",
        "2026-02-28T00:00:00+0100",
        "2026-02-28T00:00:00Z\n",
        "٢٠٢٦-02-28T00:00:00Z",
        "",
        0,
    ],
)
def test_a_time_is_rfc_3339(text):
    assert not has_type(text, "time")


@pytest.mark.parametrize(
    "value", [[1], [1, 2, 3], [1, "2"], [True, False], {"lat": 1}, {"lat": 1, "lon": "2"}, "1,2"]
)
def test_a_location_is_two_numbers(value):
    assert not has_type(value, "location")


def test_a_boolean_is_no_number():
    value = True
    assert not has_type(value, "number")


def test_every_wrong_attribute_is_pointed_at():
    with pytest.raises(RefusedError) as caught:
        accept({"a/b": 1, "Tier": 2, "fine": 3}, {"Tier": "string", "fine": "number"}, skip_unknown=False)
    pointers = [error.as_json()["source"] for error in caught.value.errors]
    assert pointers == [{"pointer": "/attributes/a~1b"}, {"pointer": "/attributes/Tier"}]


def test_unknown_attributes_are_left_out_on_request():
    assert accept({"unknown": 1, "Tier": "x"}, {"Tier": "string"}, skip_unknown=True) == {"Tier": "x"}


def test_null_fits_every_type():
    declared = {kind: kind for kind in TYPES}
    assert accept(dict.fromkeys(TYPES), declared, skip_unknown=False) == dict.fromkeys(TYPES)


def test_anything_goes_when_nothing_is_declared():
    assert accept({"a": object}, {}, skip_unknown=False) == {"a": object}


@pytest.mark.parametrize(
    ("types", "error"), [([], TypeError), ({"a": "text"}, ValueError), ({"a": 1}, ValueError)]
)
def test_a_declaration_that_is_none_is_refused(types, error):
    with pytest.raises(error):
        declare(types)
