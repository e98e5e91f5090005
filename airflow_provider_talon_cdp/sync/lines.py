r"""Text fields as one line of a file that common tools can read: tab-separated, with four characters escaped.

Backslash, tab, newline and carriage return become ``\\``, ``\t``, ``\n`` and ``\r``; all else stays as it is, in
UTF-8.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

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


def to_lines(pairs: Sequence[tuple[str, str]]) -> str:
    """Join pairs of fields to lines, quickly where none has anything to escape."""
    lines = "\n".join(map("\t".join, pairs)) + "\n"
    if "\\" in lines or "\r" in lines or lines.count("\t") + lines.count("\n") != 2 * len(pairs):
        return "".join(to_line(*pair) for pair in pairs)
    return lines


def from_lines(lines: Sequence[str]) -> list[tuple[str, str]]:
    """Split lines of two fields each.

    Raises:
        ValueError: A line has an escape that ``to_line`` does not write, or not two fields.
    """
    text = "".join(lines)
    if "\\" not in text and text.count("\t") == len(lines):
        fields = text.removesuffix("\n").replace("\n", "\t").split("\t")
        return list(zip(fields[::2], fields[1::2], strict=True))
    return [(first, second) for first, second in map(from_line, lines)]


def _escape(field: str) -> str:
    return _SPECIAL.sub(lambda found: "\\" + _NAMES[found[0]], field)


def _character(found: re.Match[str]) -> str:
    if found[1] not in _CHARACTERS:
        raise ValueError(f"\\{found[1]} is no escape")
    return _CHARACTERS[found[1]]
