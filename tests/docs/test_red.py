"""The page about errors has every class and every text."""

from __future__ import annotations

import re

import pytest

from tests.docs.raised import ANY, CLASSES, ROOT, raised, says_something, texts_of_the_package

PAGE = (ROOT / "docs/red.md").read_text()
SECTIONS = dict(re.findall(r"^## (\w+)\n(.*?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL))
ROWS = {
    name: re.findall(r"^\| `(.+?)` \|", section, re.MULTILINE)
    for name, section in (SECTIONS | {"Warnings": PAGE.partition("## Warnings")[2]}).items()
}
RAISED = sorted(set(raised()))


def covers(row: str, pattern: str) -> bool:
    """Whether a row of the page is the beginning of a text."""
    return re.match(".*".join(map(re.escape, row.split(ANY))), pattern) is not None


@pytest.mark.parametrize("name", CLASSES)
def test_every_class_has_a_heading(name: str) -> None:
    assert name in SECTIONS


@pytest.mark.parametrize(
    ("name", "pattern", "place"), RAISED, ids=[f"{name} {place}" for name, _, place in RAISED]
)
def test_every_text_of_an_error_is_on_the_page(name: str, pattern: str, place: str) -> None:
    assert any(covers(row, pattern) for row in ROWS[name]), (
        f"docs/red.md, ## {name}: no row for the text at {place}. Add\n| `{pattern}` | what to do |"
    )


@pytest.mark.parametrize("row", sorted({row for rows in ROWS.values() for row in rows}))
def test_every_row_of_the_page_is_a_text_of_the_package(row: str) -> None:
    pieces = [piece.strip() for piece in row.split(ANY)]
    longest = max(pieces, key=len)
    assert longest in texts_of_the_package(), f"docs/red.md has a text that the package has not: {row}"


def test_a_class_of_many_texts_is_not_covered_by_one_row() -> None:
    assert not any(covers(row, "words of no error whatever") for rows in ROWS.values() for row in rows)
    assert not says_something(ANY)
