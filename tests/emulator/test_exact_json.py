"""JSON keeps every digit, and what cannot be kept is refused."""

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_provider_talon_cdp.emulator.exact_json import JsonError, depth, dumps, loads

plain = st.none() | st.booleans() | st.integers() | st.text(st.characters(exclude_categories=["Cs"]))
trees = st.recursive(
    plain, lambda inner: st.lists(inner) | st.dictionaries(plain.filter(lambda x: isinstance(x, str)), inner)
)


@pytest.mark.parametrize(
    "text", ["19.990", "1e5", "1E+5", "0.1", "-0.0", "1e-400", "123456789012345678901234567890", "0"]
)
def test_a_number_is_written_as_it_came(text):
    assert dumps(loads(text.encode())) == text


def test_a_plain_decimal_is_written_too():
    assert dumps({"a": [Decimal("1.50")]}) == '{"a": [1.50]}'


def test_numbers_compare_by_value():
    assert loads(b'{"a": 19.990, "b": 3}') == {"a": Decimal("19.99"), "b": 3}


@given(trees)
def test_what_is_written_is_read_back(tree):
    assert loads(dumps(tree).encode()) == tree


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"", "at character 0"),
        (b"{", "at character 1"),
        (b"\xff{}", "not UTF-8 at byte 0"),
        (b'{"a": 1, "a": 1}', "twice"),
        (b"[NaN]", "NaN"),
        (b"-Infinity", "Infinity"),
        (rb'"\ud800"', "surrogate"),
        (rb'{"\uDFFF": 1}', "surrogate"),
        (b"9" * 5000, "digits"),
        (b"1e99999999999999999999999", "exponent"),
        (b"[" * 100_000, "deeply"),
    ],
)
def test_what_is_no_json_is_refused_with_a_reason(body, reason):
    with pytest.raises(JsonError, match=reason):
        loads(body)


def test_a_whole_surrogate_pair_is_a_character():
    assert loads(rb'"\ud83d\ude00"') == "\N{GRINNING FACE}"


def test_a_refusal_does_not_quote_the_body():
    with pytest.raises(JsonError) as caught:
        loads(b'{"secret": hush}')
    assert "hush" not in str(caught.value)


@pytest.mark.parametrize(("value", "expected"), [(1, 0), ([], 1), ([[1], {"a": []}], 3), ([[[[[]]]]], 4)])
def test_depth_counts_nesting_up_to_its_limit(value, expected):
    assert depth(value, 4) == expected
