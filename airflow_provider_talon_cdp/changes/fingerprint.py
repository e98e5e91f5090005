"""A ledger's memory of a profile's attributes: a fingerprint of the values, and the names ever sent. Pure.

In a ledger's line it is text: the digest; ``~`` where Talon.One was told to ignore unknown attributes, so
that it may not have taken all of them; and after a full stop the names, as a hexadecimal number whose bits
count into the ledger's list of names. A question mark in front says that this was sent and may not have
arrived; a plus at the end that Talon.One had acknowledged attributes of the profile before.
"""

from __future__ import annotations

from base64 import urlsafe_b64encode
from collections.abc import Iterable, Iterator, Sequence
from hashlib import blake2b

from airflow_provider_talon_cdp.exceptions import InvalidInputError

MAX_NAMES = 1000
"""Attribute names of one ledger. A JSON column with data in its keys would have more."""

_DIGEST = 16
_DOUBT, _PARTIAL, _NAMES, _HAD = "?", "~", ".", "+"


def digest_of(profile_id: str, attributes: bytes) -> str:
    """Digest the attributes of a profile; the same ones of two profiles have different digests.

    Args:
        profile_id: Integration ID of the profile.
        attributes: Their JSON, always spelt the same.
    """
    digest = blake2b(profile_id.encode(), digest_size=_DIGEST)
    digest.update(b"\0")
    digest.update(attributes)
    return urlsafe_b64encode(digest.digest()).decode().rstrip("=")


def fingerprint(digest: str, mask: int, *, partial: bool) -> str:
    """Write the fingerprint of attributes that are sent.

    Args:
        digest: Of the attributes.
        mask: All names that were ever sent for the profile.
        partial: Whether Talon.One is told to ignore unknown attributes.
    """
    return f"{digest}{_PARTIAL if partial else ''}{_NAMES}{mask:x}"


def doubted(text: str) -> str:
    """Mark a fingerprint as sent without an acknowledgement."""
    return text if text.startswith(_DOUBT) else _DOUBT + text


def had(text: str) -> bool:
    """Whether Talon.One acknowledged attributes of the profile, these or earlier ones."""
    return not text.startswith(_DOUBT) or text.endswith(_HAD)


def following(text: str, old: str) -> str:
    """Write a fingerprint that takes the place of an old one, or of none where that is empty."""
    return text + _HAD if old and had(old) and not text.endswith(_HAD) else text


def holds(text: str, digest: str, *, partial: bool) -> bool:
    """Whether a fingerprint says that Talon.One has these attributes.

    Args:
        text: The fingerprint of a ledger's line.
        digest: Of the attributes.
        partial: Whether it does when Talon.One may have ignored unknown ones.
    """
    return text.startswith(digest + _NAMES) or (partial and text.startswith(digest + _PARTIAL))


def mask_of(text: str) -> int:
    """Return the names in a fingerprint.

    Raises:
        ValueError: It is none.
    """
    return int(text[text.index(_NAMES) + 1 :].removesuffix(_HAD), 16)


class Names:
    """The attribute names that a ledger knows, each with a bit of its own.

    Args:
        known: Those that it knows already, in order.
    """

    def __init__(self, known: Iterable[str] = ()) -> None:
        self._bits = {name: 1 << bit for bit, name in enumerate(known)}

    def __iter__(self) -> Iterator[str]:
        return iter(self._bits)

    def mask(self, names: Sequence[str]) -> int:
        """Return the bits of names; new ones get the next.

        Raises:
            InvalidInputError: There are too many to be names.
        """
        mask = 0
        for name in names:
            if name not in self._bits:
                if len(self._bits) == MAX_NAMES:
                    raise InvalidInputError(
                        f"There are more than {MAX_NAMES:,} attribute names in the query or the "
                        "ledger. The keys of "
                        "attributes_column must be names of attributes, and not data."
                    )
                self._bits[name] = 1 << len(self._bits)
            mask |= self._bits[name]
        return mask

    def of(self, mask: int) -> list[str]:
        """Return the names of a mask, in order."""
        return [name for name, bit in self._bits.items() if mask & bit]
