"""What a ledger remembers of a profile's attributes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_provider_talon_cdp.changes import fingerprint as module
from airflow_provider_talon_cdp.changes.fingerprint import (
    Names,
    digest_of,
    fingerprint,
    following,
    forgotten,
    holds,
    marked_uncertain,
    mask_of,
    may_have_values,
    was_acknowledged,
)
from airflow_provider_talon_cdp.exceptions import InvalidInputError

NAMES = ["tier", "score", "a/b", "ü"]


def test_equal_attributes_of_two_profiles_do_not_look_alike_in_the_ledger():
    assert digest_of("a", b"{}") != digest_of("b", b"{}")
    assert digest_of("a", b"b") != digest_of("ab", b"")


def test_names_get_the_next_numbers_in_order():
    names = Names(["a"])
    assert [names.mask(each) for each in (["a"], ["c", "b"], ["b"], [])] == [1, 6, 4, 0]
    assert list(names) == ["a", "c", "b"]
    assert names.of(5) == ["a", "b"]


def test_too_many_names_are_taken_for_data(monkeypatch):
    monkeypatch.setattr(module, "MAX_NAMES", 2)
    with pytest.raises(InvalidInputError, match="more than 2 attribute names"):
        Names(["a"]).mask(["a", "b", "c"])


@given(st.lists(st.sampled_from(NAMES), unique=True), st.booleans(), st.booleans())
def test_a_fingerprint_says_what_was_put_into_it(chosen, partial, doubt):
    names = Names(NAMES)
    digest = digest_of("a", b"{}")
    text = fingerprint(digest, names.mask(chosen), partial=partial)
    text = marked_uncertain(text) if doubt else text
    assert set(names.of(mask_of(text))) == set(chosen)
    assert holds(text, digest, partial=True) == (not doubt)
    assert holds(text, digest, partial=False) == (not doubt and not partial)
    assert not holds(text, digest_of("b", b"{}"), partial=True)
    assert list(Names(names)) == NAMES


def test_a_doubt_is_noted_once():
    assert marked_uncertain(marked_uncertain("x.1")) == marked_uncertain("x.1") != "x.1"


def test_whether_anything_was_acknowledged_outlives_doubts():
    first, second = (fingerprint(each, 3, partial=False) for each in ("one", "two"))
    assert was_acknowledged(first)
    assert not was_acknowledged(marked_uncertain(first))
    never = following(second, marked_uncertain(first))
    assert (never, was_acknowledged(marked_uncertain(never))) == (second, False)
    once = following(second, first)
    assert was_acknowledged(marked_uncertain(once))
    assert was_acknowledged(marked_uncertain(following(first, marked_uncertain(once))))
    # It says the same otherwise.
    assert mask_of(marked_uncertain(once)) == 3
    assert holds(once, "two", partial=False)
    assert following(once, once) == once
    assert following(first, "") == first


def test_nothing_is_known_of_the_values_that_another_key_gave():
    nulls = fingerprint("nulls", 1, partial=False)
    assert not may_have_values(nulls, "nulls")
    assert may_have_values(forgotten(nulls), "nulls")
    # Talon.One acknowledged nothing.
    assert not may_have_values(forgotten(marked_uncertain(nulls)), "nulls")


@pytest.mark.parametrize("text", ["", "abc", "abc.", "abc.xyz"])
def test_what_is_not_a_fingerprint_has_no_names(text):
    with pytest.raises(ValueError):
        mask_of(text)
