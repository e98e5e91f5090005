from __future__ import annotations

from itertools import repeat

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from airflow_provider_talon_cdp.sync.lines import from_line, from_lines, to_line, to_lines

TEXT = st.text(st.characters(exclude_categories=["Cs"])) | st.text("\\\t\n\rtnrab\0\u2028\x85")


@given(st.lists(TEXT, min_size=1, max_size=4))
@example(["\\t", "\t", "\\\\n", "\n"])
@example(["", ""])
def test_fields_come_back_from_one_line(fields):
    line = to_line(*fields)
    assert line.endswith("\n")
    assert line.count("\n") == 1
    assert "\r" not in line
    assert line.count("\t") == len(fields) - 1
    assert from_line(line) == from_line(line[:-1]) == fields


def test_what_is_escaped_is_as_documented():
    assert to_line("a\\b", "c\td\ne\rf", "ü\0\u2028") == "a\\\\b\tc\\td\\ne\\rf\tü\0\u2028\n"


@pytest.mark.parametrize("line", ["\\x\n", "a\\", "\\\\\\", "\\\n"])
def test_an_escape_that_is_none_is_an_error(line):
    with pytest.raises(ValueError):
        from_line(line)


def test_lines_are_not_in_the_order_of_their_fields():
    """A tab is smaller than a letter and its escape is greater, so files are compared by fields, never by lines."""
    assert sorted(["\t", "A"]) == ["\t", "A"]
    assert sorted([to_line("\t"), to_line("A")]) == [to_line("A"), to_line("\t")]


FIELDS = st.text("ab\\\t\n\r\0\u2028", max_size=3)


@given(
    st.integers(1, 3).flatmap(lambda width: st.lists(st.tuples(*[FIELDS] * width), min_size=1, max_size=6))
)
@example([("a\nb",), ("c",)])
@example([("a\tb", ""), ("", "c")])
def test_columns_of_fields_make_the_lines_that_single_ones_make(rows):
    columns = list(zip(*rows, strict=True))
    lines = to_lines(columns, len(rows))
    assert lines == "".join(to_line(*row) for row in rows)
    split = from_lines(lines)
    if split is None:
        assert "\\" in lines
    else:
        assert [tuple(row) for row in zip(*split, strict=True)] == rows


def test_a_column_may_be_one_text_over_and_over():
    assert to_lines([repeat("add"), ["a", "b\n"]], 2) == "add\ta\nadd\tb\\n\n"


def test_lines_of_different_widths_are_not_split_into_columns():
    assert from_lines("a\nb\tc\n") is None
