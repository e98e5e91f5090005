"""What a ledger keeps of a profile's attributes: a digest of the values, and all names ever sent. Pure.

A fingerprint is text: the digest; ``~`` if Talon.One was told to ignore unknown attributes, so that it may
not have taken all of them; and after a full stop the names, as a hexadecimal number whose bits are positions
in the ledger's list of names. A question mark in front means that the attributes were sent without an
acknowledgement; a hyphen instead of the digest, that they were to be deleted; no digest, that it is not known
what Talon.One has. A plus at the end means that Talon.One acknowledged earlier attributes of the profile.
"""

from __future__ import annotations

from base64 import urlsafe_b64encode
from collections.abc import Iterable, Iterator, Sequence
from hashlib import blake2b

from airflow_provider_talon_cdp.exceptions import InvalidInputError

MAX_NAMES = 1000
"""Limit of attribute names in one ledger. A JSON column that has data as its keys exceeds it."""

_DIGEST = 16
_UNCERTAIN, _PARTIAL, _NAMES, _HAD, _CLEARED = "?", "~", ".", "+", "-"


def digest_of(profile_id: str, attributes: bytes) -> str:
    """Digest the attributes of a profile. Equal attributes of two profiles have different digests."""
    digest = blake2b(profile_id.encode(), digest_size=_DIGEST)
    digest.update(b"\0")
    digest.update(attributes)
    return urlsafe_b64encode(digest.digest()).decode().rstrip("=")


def fingerprint(digest: str, mask: int, *, partial: bool) -> str:
    """Write the fingerprint of attributes that are sent.

    Args:
        digest: Digest of the attributes.
        mask: All names that were ever sent for the profile, as bits.
        partial: Whether Talon.One is told to ignore unknown attributes.
    """
    return f"{digest}{_PARTIAL if partial else ''}{_NAMES}{mask:x}"


def marked_uncertain(text: str) -> str:
    """Mark a fingerprint as sent without an acknowledgement."""
    return text if text.startswith(_UNCERTAIN) else _UNCERTAIN + text


def was_acknowledged(text: str) -> bool:
    """Whether Talon.One acknowledged attributes of the profile, these or earlier ones."""
    return not text.startswith(_UNCERTAIN) or text.endswith(_HAD)


def following(text: str, old: str) -> str:
    """Return a new fingerprint, with a plus if the old one (empty for none) was ever acknowledged."""
    return text + _HAD if old and was_acknowledged(old) and not text.endswith(_HAD) else text


def holds(text: str, digest: str, *, partial: bool) -> bool:
    """Whether a fingerprint says that Talon.One has these attributes.

    Args:
        text: The fingerprint of a ledger's line.
        digest: Digest of the attributes.
        partial: Whether it also counts if Talon.One may have ignored unknown attributes.
    """
    return text.startswith(digest + _NAMES) or (partial and text.startswith(digest + _PARTIAL))


def unacknowledged(text: str) -> str:
    """Return the fingerprint of what was sent without an acknowledgement; empty if all was acknowledged."""
    return text.removeprefix(_UNCERTAIN) if text.startswith(_UNCERTAIN) else ""


def may_have_values(text: str, nulls: str) -> bool:
    """Whether Talon.One acknowledged attributes, and it is not known that all of them are null.

    Args:
        text: The fingerprint of a ledger's line.
        nulls: Digest of nulls for all names in it.
    """
    last = text.removeprefix(_UNCERTAIN)
    return was_acknowledged(text) and not holds(last, nulls, partial=True)


def cleared(text: str) -> str:
    """Return the key of a change that deletes the attributes that a fingerprint names."""
    mark = _UNCERTAIN if text.startswith(_UNCERTAIN) else ""
    return following(f"{mark}{_CLEARED}{text[text.index(_NAMES) :]}", text)


def may_be_cleared(text: str) -> bool:
    """Whether a fingerprint says that its attributes were to be deleted, without an acknowledgement."""
    return unacknowledged(text).startswith(_CLEARED + _NAMES)


def forgotten(text: str) -> str:
    """Return a fingerprint without digest: with another API key it is unknown what Talon.One has."""
    return _UNCERTAIN + following(text, text)[text.index(_NAMES) :]


def mask_of(text: str) -> int:
    """Return the names in a fingerprint, as bits.

    Raises:
        ValueError: The text is not a fingerprint.
    """
    return int(text[text.index(_NAMES) + 1 :].removesuffix(_HAD), 16)


class Names:
    """The attribute names that a ledger knows, each with a bit of its own.

    Args:
        known: The names in the ledger, in the order of their bits.
    """

    def __init__(self, known: Iterable[str] = ()) -> None:
        self._bits = {name: 1 << bit for bit, name in enumerate(known)}

    def __iter__(self) -> Iterator[str]:
        return iter(self._bits)

    def mask(self, names: Sequence[str]) -> int:
        """Return the bits of names; a new name gets the next bit.

        Raises:
            InvalidInputError: There are more than ``MAX_NAMES`` names.
        """
        mask = 0
        for name in names:
            if name not in self._bits:
                if len(self._bits) == MAX_NAMES:
                    raise InvalidInputError(
                        f"There are more than {MAX_NAMES:,} attribute names in the query or the "
                        "ledger.\nThe keys of attributes_column must be names of attributes, not data."
                    )
                self._bits[name] = 1 << len(self._bits)
            mask |= self._bits[name]
        return mask

    def of(self, mask: int) -> list[str]:
        """Return the names of a mask, in order."""
        return [name for name, bit in self._bits.items() if mask & bit]
