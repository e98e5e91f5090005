"""IDs that are valid and look wrong are counted by kind."""

from __future__ import annotations

import uuid

import pytest

from airflow_provider_talon_cdp.changes.suspicious import SuspiciousIds

CLEAN = [
    "anna",
    "b@example.com",
    "joe+tag@example.com",
    "123e45",
    "v1.0",
    "Zoë",
    "王",
    "o'brien",
    '"a',
    r"corp\anna",
]
CLEAN += [str(uuid.UUID(int=5)), f"{{{uuid.UUID(int=5)}}}", "a[1]", "(a"]


def seen(*blocks):
    found = SuspiciousIds()
    for block in blocks:
        found.add(block)
    return found


def test_ordinary_ids_are_not_counted():
    assert seen(CLEAN, [], CLEAN).counts == {}
    assert seen(CLEAN).texts == []


@pytest.mark.parametrize(
    "kind, ids",
    [
        ("white_space_at_ends", [" a", "a ", "a\n", "\u00a0a", "a\u3000", "\x0ba"]),
        ("white_space_inside", ["a b", "a\tb", "a\u2003b"]),
        ("invisible", ["a\u200b", "\ufeffa", "a\0b", "a\xadb", "\x7fa", "\u202ea"]),
        ("invisible", ["a\x01"]),
        ("white_space_inside", ["a\x1fb"]),
        ("structure", ["['a','b']", "('a',)", "[]", "{'id':'a'}", '{"id":["a"]}']),
        ("replacement_character", ["M\ufffdller"]),
        ("literal", ['"c1"', "'c1'", "b'c1'", 'b"o\'brien"', r"\x6331"]),
        ("null_text", ["None", "nan", "NaN", "NULL", "null", "<NA>", r"\N", "undefined"]),
        ("scientific", ["1E+10", "1.5e+7", "-2.25E+12"]),
        ("scientific", ["1.5E10", "1.0E7", "1.5e15"]),
    ],
)
def test_each_kind_is_counted_among_others(kind, ids):
    found = seen([*CLEAN, *ids], CLEAN)
    assert found.counts == {kind: len(ids)}
    (text,) = found.texts
    assert text.startswith(f"{len(ids)} of {2 * len(CLEAN) + len(ids)} profile IDs ")


@pytest.mark.parametrize("place", [0, 1, 2])
def test_the_text_of_one_list_is_counted_wherever_it_stands(place):
    assert seen([*CLEAN[:place], "['a','b']", *CLEAN[place:], *CLEAN]).counts == {"structure": 1}


def test_one_id_may_be_of_several_kinds():
    assert seen([" a b\u200b"]).counts == {"white_space_at_ends": 1, "white_space_inside": 1, "invisible": 1}


@pytest.mark.parametrize("end", [".0", ".00", ".0000000000"])
def test_point_zero_counts_where_nearly_all_ids_end_so(end):
    numbers = [f"{each}{end}" for each in range(1000)]
    assert seen(numbers, ["anna"]).counts == {"point_zero": 1000}
    assert seen(numbers, [f"customer-{each}" for each in range(1000)]).counts == {}
