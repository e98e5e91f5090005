"""Membership changes, as a source gives them and as they travel."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from itertools import compress, repeat
from operator import attrgetter, not_
from typing import Any, Literal, NamedTuple, TypeAlias
from uuid import UUID

from airflow_provider_talon_cdp.contract import (
    MAX_LENGTH,
    AudienceIdType,
    check_audience_id,
    fault_of_text,
    is_unicode,
)
from airflow_provider_talon_cdp.exceptions import InvalidInputError

Action = Literal["add", "remove"]

_profile_id = attrgetter("profile_id")


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


class Ids(NamedTuple):
    """Valid profile IDs that all join one audience, or all leave it: the quick form of as many changes.

    Args:
        ids: Integration IDs of the profiles.
        audience_id: External (string) or internal (integer) ID of the audience.
        action: ``add`` or ``remove``.
    """

    ids: list[str]
    audience_id: str | int
    action: Action

    def changes(self) -> Iterator[Change]:
        """Spell the changes out."""
        return (Change(each, self.audience_id, self.action) for each in self.ids)


class Mixed(NamedTuple):
    """As ``Ids``, for distinct profiles of which some join the audience and some leave it.

    Args:
        ids: Integration IDs of the profiles.
        audience_id: External (string) or internal (integer) ID of the audience.
        joining: For each of them 1 where it joins, 0 where it leaves.
    """

    ids: list[str]
    audience_id: str | int
    joining: bytes

    def changes(self) -> Iterator[Change]:
        """Spell the changes out."""
        actions: Iterator[Action] = ("add" if joins else "remove" for joins in self.joining)
        return map(Change, self.ids, repeat(self.audience_id), actions)


Record: TypeAlias = Change | Ids | Rejection
"""What a source yields."""


class Batch:
    """The changes of one request, at most 1000.

    Args:
        changes: Distinct changes, or distinct IDs of one audience. Nearly all batches are of the second kind, and a
            million members are sent without an object for each of them.
        alone: Whether none of the batches shortly before it touches one of its profiles; see ``push``.
    """

    def __init__(self, changes: Ids | Mixed | Sequence[Change], *, alone: bool = False) -> None:
        self._changes = changes
        self.alone = alone

    def __len__(self) -> int:
        return len(self._changes.ids if isinstance(self._changes, Ids | Mixed) else self._changes)

    def groups(self) -> list[Ids] | None:
        """The changes by audience and action, or None where a profile has several."""
        if isinstance(self._changes, Ids):
            return [self._changes]
        if isinstance(self._changes, Mixed):
            ids, audience_id, joining = self._changes
            return [
                Ids(list(compress(ids, joining)), audience_id, "add"),
                Ids(list(compress(ids, map(not_, joining))), audience_id, "remove"),
            ]
        if len(self.profiles) < len(self):
            return None
        groups: dict[tuple[str | int, Action], list[str]] = {}
        for profile_id, audience_id, action, _ in self._changes:
            groups.setdefault((audience_id, action), []).append(profile_id)
        return [Ids(ids, *what) for what, ids in groups.items()]

    @property
    def changes(self) -> Sequence[Change]:
        """The changes in their order."""
        return tuple(self._changes.changes()) if isinstance(self._changes, Ids | Mixed) else self._changes

    @cached_property
    def profiles(self) -> frozenset[str]:
        """IDs of the profiles that it touches."""
        ids = self._changes.ids if isinstance(self._changes, Ids | Mixed) else map(_profile_id, self._changes)
        return frozenset(ids)

    def entries(self) -> list[Entry]:
        """The changes by profile."""
        adds: dict[str, list[str | int]] = {}
        removes: dict[str, list[str | int]] = {}
        for profile_id, audience_id, action, _ in self.changes:
            (adds if action == "add" else removes).setdefault(profile_id, []).append(audience_id)
        return [
            Entry(profile_id, tuple(adds.get(profile_id, ())), tuple(removes.get(profile_id, ())))
            for profile_id in adds | removes
        ]

    def halves(self) -> tuple[Batch, Batch]:
        """Split a batch of two or more changes."""
        middle = len(self) // 2
        return Batch(self.changes[:middle]), Batch(self.changes[middle:])


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


def read_ids(
    profile_ids: list[Any], audience_id: str | int, action: Action, id_type: AudienceIdType
) -> Iterator[Ids | Rejection]:
    """Make changes of many records of one audience, as ``read_change`` does of one."""
    if _are_ids(profile_ids):
        yield Ids(profile_ids, audience_id, action)
        return
    records = [read_change(each, audience_id, action, id_type) for each in profile_ids]
    yield Ids([each.profile_id for each in records if isinstance(each, Change)], audience_id, action)
    yield from (each for each in records if isinstance(each, Rejection))


def _are_ids(values: list[Any]) -> bool:
    try:
        joined = "".join(values)
    except TypeError:
        return False
    lengths = set(map(len, values))
    return not lengths or (0 not in lengths and max(lengths) <= MAX_LENGTH and is_unicode(joined))


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
