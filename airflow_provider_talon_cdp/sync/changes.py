"""Membership changes, and the batches of at most 1000 in which they travel."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Literal, NamedTuple
from uuid import UUID

from airflow_provider_talon_cdp.exceptions import InvalidInputError
from airflow_provider_talon_cdp.ids import (
    MAX_CHANGES,
    MAX_LENGTH,
    AudienceIdType,
    check_audience_id,
    fault_of_text,
)

Action = Literal["add", "remove"]


class Change(NamedTuple):
    """One customer profile joins or leaves one audience.

    Args:
        profile_id: Integration ID of the profile.
        audience_id: External (string) or internal (integer) ID of the audience.
        action: ``add`` or ``remove``.
        uncertain: Whether an earlier request may have changed this membership without an acknowledgement, so that
            whether the profile is a member now is not known until this change is acknowledged.
    """

    profile_id: str
    audience_id: str | int
    action: Action
    uncertain: bool = False


class Rejection(NamedTuple):
    """A record that cannot be a change.

    Args:
        reason: Why; it holds no part of the record.
        profile_id: For the dead letters alone; None where the record has none.
    """

    reason: str
    profile_id: str | None = None


class Entry(NamedTuple):
    """All changes of one profile in a batch."""

    profile_id: str
    adds: tuple[str | int, ...]
    removes: tuple[str | int, ...]


@dataclass(frozen=True)
class Batch:
    """The changes of one request, each profile once."""

    entries: tuple[Entry, ...]
    changes: tuple[Change, ...]

    @classmethod
    def of(cls, changes: Iterable[Change]) -> Batch:
        """Group distinct changes by profile."""
        changes = tuple(changes)
        adds: dict[str, list[str | int]] = {}
        removes: dict[str, list[str | int]] = {}
        for profile_id, audience_id, action, _ in changes:
            (adds if action == "add" else removes).setdefault(profile_id, []).append(audience_id)
        entries = tuple(
            Entry(profile_id, tuple(adds.get(profile_id, ())), tuple(removes.get(profile_id, ())))
            for profile_id in adds | removes
        )
        return cls(entries, changes)

    def halves(self) -> tuple[Batch, Batch]:
        """Split a batch of two or more changes."""
        middle = len(self.changes) // 2
        return Batch.of(self.changes[:middle]), Batch.of(self.changes[middle:])


def read_profile_id(value: Any) -> str | Rejection:
    """Read a profile ID as a source gives it: a string, or an integer or UUID whose text it is.

    Returns:
        Its text, or why this record alone has none: a null, empty or over-long ID.

    Raises:
        InvalidInputError: A type that no record of this source should have, so the query is wrong.
    """
    # Nearly every ID is plain text; the long way is for the others.
    if type(value) is str and value.isascii() and 0 < len(value) <= MAX_LENGTH:
        return value
    text = _id_text(value)
    fault = fault_of_text(text)
    return Rejection(f"profile ID {fault}", text or None) if fault or text is None else text


def read_change(
    profile_id: Any, audience_id: Any, action: Action, id_type: AudienceIdType
) -> Change | Rejection:
    """Make a change of a record as a source gives it.

    Args:
        profile_id: A string, or an integer or UUID whose text is the ID.
        audience_id: An audience ID of the given type.
        action: What the record means.
        id_type: Whether ``audience_id`` is external (a string) or internal (an integer).

    Returns:
        The change, or why this record alone is none: a null, empty or over-long ID.

    Raises:
        InvalidInputError: A type that no record of this source should have, so the query is wrong.
    """
    profile_id = read_profile_id(profile_id)
    if isinstance(profile_id, Rejection):
        return profile_id
    if audience_id is None:
        return Rejection("audience ID null", profile_id)
    if isinstance(audience_id, str) and id_type == "external" and (fault := fault_of_text(audience_id)):
        return Rejection(f"audience ID {fault}", profile_id)
    return Change(profile_id, check_audience_id("audience ID", audience_id, id_type), action)


def read_changes(
    rows: Sequence[Sequence[Any]], audience_id: str | int, action: Action, id_type: AudienceIdType
) -> list[Change | Rejection]:
    """Make changes of rows that start with a profile ID and belong to one audience, quickly where all are plain."""
    ids = [row[0] for row in rows]
    if (
        set(map(type, ids)) == {str}
        and "".join(ids).isascii()
        and all(0 < len(each) <= MAX_LENGTH for each in ids)
    ):
        return [Change(each, audience_id, action) for each in ids]
    return [read_change(each, audience_id, action, id_type) for each in ids]


def _id_text(value: Any) -> str | None:
    match value:
        case None:
            return None
        case str():
            return str.__str__(value)
        case int() if not isinstance(value, bool):
            return str(value)
        case UUID():
            return str(value)
        case _:
            raise InvalidInputError(
                f"A profile ID is of type {type(value).__name__}, but must be text, an integer or a UUID. "
                "Cast it to text in SQL, so that it is spelt as Talon.One knows it."
            )


def chunks(
    records: Iterable[Change | Rejection], size: int = MAX_CHANGES
) -> Generator[list[Change | Rejection], None, None]:
    """Cut a stream into lists, so that crossing a thread costs once a list and not once a record."""
    iterator = iter(records)
    try:
        while chunk := list(islice(iterator, size)):
            yield chunk
    finally:
        # A generator that holds a cursor must close with this one, not at some later garbage collection.
        if isinstance(iterator, Generator):
            iterator.close()
