from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from airflow_provider_talon_cdp.sync.lines import from_line, to_line

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
