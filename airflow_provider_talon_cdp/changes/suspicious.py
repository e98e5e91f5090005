"""Profile IDs that are valid but look wrong: padded, a null or a list as text, or once a number. Pure."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from operator import ne

_NULLS = frozenset(
    {"None", "none", "NONE", "nan", "NaN", "NAN", "null", "Null", "NULL", "<NA>", "NaT", "N/A"}
    # Of JavaScript, and of files that Hive and MySQL write.
    | {"undefined", r"\N"}
)
_ODD_ASCII = [" ", *map(chr, range(32)), "\x7f"]
# Stands between the IDs, which are searched as one text.
_SEPARATOR = ","
_INVISIBLE = re.compile(
    "[\0-\b\x0e-\x1b\x7f-\x9f\xad\u061c\u180e\u200b-\u200f\u202a-\u202e\u2060-\u206f\ufeff]"
)
_REPLACEMENT = "\ufffd"
# With a sign in the exponent, or a point before it: 123e45 may be an ID.
_SCIENTIFIC = re.compile(r"[+-]?\d((\.\d+)?[eE]\+|\.\d+[eE])\d+", re.ASCII)
# Such as "['a', 'b']" or '{"id": "a"}'. A UUID may be in braces, so that braces alone tell nothing.
_STRUCTURE = re.compile(r"\[.*\]|\(.*\)|\{.*:.*\}", re.DOTALL)
# As JSON and Python write strings, and as Python and Postgres write bytes.
_LITERAL = re.compile(r"""b?(".*"|'.*')|\\x([0-9a-f]{2})+""", re.DOTALL)
_POINT_ZERO = re.compile(r"[+-]?\d+\.0+", re.ASCII)
# IDs such as "123.0" are suspicious from this share of all IDs on; a few of them may be version numbers.
_MOST = 0.9

_TEXTS = {
    "white_space_at_ends": "have white space at their ends. Use TRIM in SQL",
    "white_space_inside": "have white space inside",
    "invisible": "have an invisible character, such as a zero-width space. Remove it in SQL",
    "replacement_character": "have U+FFFD in place of a character that was lost. "
    "Correct the character set in which they are read",
    "literal": "are a string in quotes, or the text of bytes. Convert JSON and bytes to plain text in SQL",
    "structure": "are the text of a list or of a mapping. Give each ID as a text of its own",
    "null_text": "are the text of a null, such as 'None' or 'nan'. Leave those rows out",
    "point_zero": "end with '.0', or more zeros: integers that became a float or a decimal. "
    "Cast to BIGINT first, then to text",
    "scientific": "are in scientific notation, such as 1.5E+10. Cast to BIGINT first, then to text",
}


class SuspiciousIds:
    """Counts profile IDs that look wrong. This takes almost no time while there are none."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._ids = 0

    def add(self, ids: Sequence[str]) -> None:
        """Count the valid IDs that look wrong.

        Args:
            ids: Valid IDs, as they will be sent.
        """
        if not ids:
            return
        self._ids += len(ids)
        text = _SEPARATOR.join(ids)
        # Searching single characters is many times faster than a regular expression.
        if any(map(text.__contains__, _ODD_ASCII)) or not text.isascii():
            self._count_characters(ids, text)
        if not _NULLS.isdisjoint(ids):
            self._counts["null_text"] += sum(profile_id in _NULLS for profile_id in ids)
        if any(map(text.__contains__, "[({")):
            self._counts["structure"] += sum(map(bool, map(_STRUCTURE.fullmatch, ids)))
        if any(map(text.__contains__, "\"'\\")):
            self._counts["literal"] += sum(map(bool, map(_LITERAL.fullmatch, ids)))
        some = ids[0], ids[len(ids) // 2], ids[-1]
        if any(map(_POINT_ZERO.fullmatch, some)):
            self._counts["point_zero"] += sum(map(bool, map(_POINT_ZERO.fullmatch, ids)))
        if "+" in text or any(map(_SCIENTIFIC.fullmatch, some)):
            self._counts["scientific"] += sum(map(bool, map(_SCIENTIFIC.fullmatch, ids)))

    def _count_characters(self, ids: Sequence[str], text: str) -> None:
        stripped = list(map(str.strip, ids))
        self._counts["white_space_at_ends"] += sum(map(ne, ids, stripped))
        self._counts["white_space_inside"] += sum(
            len(stripped_id.split(None, 1)) > 1 for stripped_id in stripped
        )
        if _INVISIBLE.search(text):
            self._counts["invisible"] += sum(map(bool, map(_INVISIBLE.search, ids)))
        if _REPLACEMENT in text:
            self._counts["replacement_character"] += sum(_REPLACEMENT in profile_id for profile_id in ids)

    @property
    def sums(self) -> tuple[dict[str, int], int]:
        """The arguments for ``join`` of another instance."""
        return dict(self._counts), self._ids

    def join(self, counts: Mapping[str, int], ids: int) -> None:
        """Add what another one has counted."""
        self._counts.update(counts)
        self._ids += ids

    @property
    def counts(self) -> dict[str, int]:
        """Number of IDs by kind, without the kinds that were not found.

        The kinds: ``white_space_at_ends``, ``white_space_inside``, ``invisible``, ``replacement_character``,
        ``literal``, ``structure``, ``null_text``, ``scientific``, and ``point_zero`` if nearly all IDs are of
        this kind.
        """
        return {
            kind: count
            for kind in _TEXTS
            if (count := self._counts[kind]) and (kind != "point_zero" or count >= _MOST * self._ids)
        }

    @property
    def texts(self) -> list[str]:
        """A sentence for each kind that was found; it quotes no ID."""
        return [
            f"{count:,} of {self._ids:,} profile IDs {_TEXTS[kind]}." for kind, count in self.counts.items()
        ]
