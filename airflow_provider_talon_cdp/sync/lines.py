r"""Text fields as one line of a file that common tools can read: tab-separated, with four characters escaped.

Backslash, tab, newline and carriage return become ``\\``, ``\t``, ``\n`` and ``\r``; all else stays as it is, in
UTF-8.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

_SPECIAL = re.compile(r"[\\\t\n\r]")
_ESCAPED = re.compile(r"\\(.?)", re.DOTALL)
_NAMES = {"\\": "\\", "\t": "t", "\n": "n", "\r": "r"}
_CHARACTERS = {name: character for character, name in _NAMES.items()}


def to_line(*fields: str) -> str:
    """Join fields to a line, with its newline."""
    line = "\t".join(fields)
    # Millions of lines pass here and few of them have anything to escape; these checks run in C.
    if "\\" in line or "\n" in line or "\r" in line or line.count("\t") >= len(fields):
        line = "\t".join([_escape(field) for field in fields])
    return line + "\n"


def from_line(line: str) -> list[str]:
    """Split a line, with or without its newline, into its fields.

    Raises:
        ValueError: It has an escape that ``to_line`` does not write.
    """
    fields = line.removesuffix("\n").split("\t")
    return fields if "\\" not in line else [_ESCAPED.sub(_character, field) for field in fields]


def to_lines(columns: Sequence[Iterable[str]], count: int) -> str:
    """Join columns to lines, quickly where none of them has anything to escape.

    Args:
        columns: The first fields of all lines, then the second ones, and so on. They are iterated over twice.
        count: How many lines they make.
    """
    fields = len(columns)
    joined = columns[0] if fields == 1 else map("\t".join, zip(*columns, strict=False))
    lines = "\n".join(joined) + "\n"
    if "\\" in lines or "\r" in lines or lines.count("\t") + lines.count("\n") != fields * count:
        return "".join(to_line(*row) for row in zip(*columns, strict=False))
    return lines


def from_lines(text: str) -> list[list[str]] | None:
    """Split lines of as many fields each into columns, quickly, or return None where that is not so easy.

    Args:
        text: Whole lines.
    """
    count = text.count("\n")
    fields, rest = divmod(text.count("\t") + count, count)
    if "\\" in text or rest:
        return None
    if fields == 1:
        return [text[:-1].split("\n")]
    cells = text[:-1].replace("\n", "\t").split("\t")
    return [cells[each::fields] for each in range(fields)]


def _escape(field: str) -> str:
    return _SPECIAL.sub(lambda found: "\\" + _NAMES[found[0]], field)


def _character(found: re.Match[str]) -> str:
    if found[1] not in _CHARACTERS:
        raise ValueError(f"\\{found[1]} is no escape")
    return _CHARACTERS[found[1]]
