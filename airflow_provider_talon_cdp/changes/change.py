"""Changes of customer profiles, one by one and in bulk, and how they are read from records of a source."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from decimal import Decimal
from functools import cached_property
from itertools import chain, repeat
from math import isnan
from numbers import Integral
from typing import Any, Literal, NamedTuple, TypeAlias
from uuid import UUID

from airflow_provider_talon_cdp.contract import (
    MAX_LENGTH,
    AudienceIdType,
    check_audience_id,
    fault_of_text,
    is_null_audience,
    is_unicode,
)
from airflow_provider_talon_cdp.exceptions import InvalidInputError

Action = Literal["add", "remove"]
Verb: TypeAlias = str
"""An action. ``!`` follows if the change is sent by a call that runs rules, and ``?`` if an earlier request
may have made the change without an acknowledgement.
"""

_ENDS = ("", "?", "!", "!?")
REMOVING = frozenset(f"remove{end}" for end in _ENDS)
VERBS = REMOVING.union(f"add{end}" for end in _ENDS)


class Change(NamedTuple):
    """One thing that must become true of one customer profile.

    Args:
        profile_id: Integration ID of the profile.
        key: ID of the audience that the profile joins or leaves; in a sync of attributes, the fingerprint of
            the attributes.
        action: ``add`` or ``remove``.
        uncertain: Whether an earlier request may have made this change without an acknowledgement, so that
            the profile's state is not known until this change is acknowledged.
        runs_rules: Whether the change is sent by a call that runs rules.
    """

    profile_id: str
    key: str
    action: Action
    uncertain: bool = False
    runs_rules: bool = False

    @property
    def verb(self) -> Verb:
        """The action with the marks for ``runs_rules`` and ``uncertain``."""
        return f"{self.action}{'!' * self.runs_rules}{'?' * self.uncertain}"


class Rejection(NamedTuple):
    """A record that cannot be a change.

    Args:
        reason: Why it is rejected. It quotes no part of the record.
        profile_id: For the dead letters only; None if the record has none.
    """

    reason: str
    profile_id: str | None = None


@dataclass(frozen=True)
class Chunk:
    """Many changes, column by column, so that a million of them need no object each.

    Args:
        ids: Integration IDs of the profiles.
        keys: The key of each change (see ``Change``), or one key for all changes.
        verbs: The verb of each change, or one verb for all changes.
        bodies: In a sync of attributes, the JSON object that is sent for each profile; None for a profile
            whose attributes in the source differ from the plan's by now. A ledger never holds bodies.
        disjoint_from_recent: Whether no recent chunk has one of its profiles, so that the push need not
            check for it.
    """

    ids: list[str]
    keys: str | list[str]
    verbs: Verb | list[Verb] = "add"
    bodies: Sequence[bytes | None] | None = None
    disjoint_from_recent: bool = False

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, span: slice) -> Chunk:
        return Chunk(
            self.ids[span],
            self.keys if isinstance(self.keys, str) else one_or_all(self.keys[span]),
            self.verbs if isinstance(self.verbs, str) else one_or_all(self.verbs[span]),
            None if self.bodies is None else self.bodies[span],
        )

    @classmethod
    def of(cls, changes: Iterable[Change]) -> Chunk:
        """Make a chunk of single changes."""
        changes = list(changes)
        return cls(
            [change.profile_id for change in changes],
            one_or_all([change.key for change in changes]),
            one_or_all([change.verb for change in changes]),
        )

    @classmethod
    def joined(cls, chunks: Sequence[Chunk]) -> Chunk:
        """Concatenate chunks; bodies are left out."""
        if len(chunks) == 1:
            return chunks[0]
        counts = [len(chunk) for chunk in chunks]
        return cls(
            list(chain.from_iterable(chunk.ids for chunk in chunks)),
            _joined([chunk.keys for chunk in chunks], counts),
            _joined([chunk.verbs for chunk in chunks], counts),
        )

    @property
    def each_key(self) -> Sequence[str]:
        """The key of each change."""
        return [self.keys] * len(self) if isinstance(self.keys, str) else self.keys

    @property
    def each_verb(self) -> Sequence[Verb]:
        """The verb of each change."""
        return [self.verbs] * len(self) if isinstance(self.verbs, str) else self.verbs

    @property
    def members(self) -> Iterable[tuple[str, str]]:
        """Profile ID and key of each change."""
        return zip(self.ids, self.each_key, strict=True)

    def member(self, position: int) -> tuple[str, str]:
        """Return profile ID and key of the change at a position."""
        return self.ids[position], self.keys if isinstance(self.keys, str) else self.keys[position]

    @cached_property
    def profiles(self) -> frozenset[str]:
        """IDs of the profiles."""
        return frozenset(self.ids)

    @property
    def runs_rules(self) -> bool:
        """Whether at least one change is sent by a call that runs rules."""
        return "!" in self.verbs if isinstance(self.verbs, str) else any("!" in verb for verb in self.verbs)

    def changes(self) -> Iterator[Change]:
        """Yield the changes one by one."""
        for profile_id, key, verb in zip(self.ids, self.each_key, self.each_verb, strict=True):
            yield Change(profile_id, key, "remove" if verb in REMOVING else "add", "?" in verb, "!" in verb)

    def sorted(self) -> Iterator[Chunk]:
        """Yield the additions and then the removals, sorted by profile and key, and each member once.

        Bodies are left out.
        """
        additions: dict[tuple[str, str], Verb] = {}
        removals: dict[tuple[str, str], Verb] = {}
        for profile_id, key, verb in zip(self.ids, self.each_key, self.each_verb, strict=True):
            (removals if verb in REMOVING else additions)[profile_id, key] = verb
        for verbs in filter(None, (additions, removals)):
            members = sorted(verbs)
            ids, keys = map(list, zip(*members, strict=True))
            yield Chunk(ids, one_or_all(keys), one_or_all([verbs[member] for member in members]))

    def without(self, positions: Collection[int]) -> Chunk:
        """Return a chunk without the changes at some positions."""
        return self.at(sorted(set(range(len(self))).difference(positions)))

    def by_key(self) -> Iterator[tuple[str, Chunk]]:
        """Yield each key with the chunk of its changes."""
        if isinstance(self.keys, str):
            yield self.keys, self
            return
        for key, positions in self.positions_by_key().items():
            yield key, self.at(positions)

    def positions_by_key(self) -> dict[str, list[int]]:
        """The positions of the changes of each key."""
        found: dict[str, list[int]] = {}
        for position, key in enumerate(self.each_key):
            found.setdefault(key, []).append(position)
        return found

    def tally(self, added: Counter[str], removed: Counter[str], label: str | None = None) -> None:
        """Count additions and removals by key, or all of them under a label."""
        key = self.keys if label is None else label
        if isinstance(key, str) and isinstance(self.verbs, str):
            (removed if self.verbs in REMOVING else added)[key] += len(self)
            return
        for (key, verb), count in Counter(zip(self.each_key, self.each_verb, strict=True)).items():
            (removed if verb in REMOVING else added)[label or key] += count

    def at(self, positions: Sequence[int]) -> Chunk:
        """Return a chunk of the changes at some positions."""
        return Chunk(
            [self.ids[at] for at in positions],
            self.keys if isinstance(self.keys, str) else one_or_all([self.keys[at] for at in positions]),
            self.verbs if isinstance(self.verbs, str) else one_or_all([self.verbs[at] for at in positions]),
            None if self.bodies is None else [self.bodies[at] for at in positions],
        )

    def groups(self) -> list[tuple[list[str], str, Action]] | None:
        """Profile IDs by audience and action, or None if a profile has several changes."""
        if isinstance(self.keys, str) and isinstance(self.verbs, str):
            return [(self.ids, self.keys, "remove" if self.verbs in REMOVING else "add")]
        if len(self.profiles) < len(self):
            return None
        groups: dict[tuple[str, Action], list[str]] = {}
        for profile_id, key, verb in zip(self.ids, self.each_key, self.each_verb, strict=True):
            groups.setdefault((key, "remove" if verb in REMOVING else "add"), []).append(profile_id)
        return [(ids, key, action) for (key, action), ids in groups.items()]

    def entries(self) -> list[tuple[str, list[str], list[str]]]:
        """Each profile with the audiences that it joins and those that it leaves."""
        entries: dict[str, tuple[list[str], list[str]]] = {}
        for profile_id, key, action, *_ in self.changes():
            entries.setdefault(profile_id, ([], []))[action == "remove"].append(key)
        return [(profile_id, *changed) for profile_id, changed in entries.items()]


def in_batches(chunks: Iterable[Chunk], size: int) -> Iterator[Chunk]:
    """Yield the same changes in chunks of one size; the last one may be smaller. Bodies may be left out."""
    buffer: list[Chunk] = []
    count = 0
    for chunk in chunks:
        buffer.append(chunk)
        count += len(chunk)
        if count < size:
            continue
        joined = Chunk.joined(buffer)
        full = count // size * size
        buffer, count = [joined[full:count]] if full < count else [], count - full
        for start in range(0, full, size):
            yield joined[start : start + size]
        del joined
    if count:
        yield Chunk.joined(buffer)


Record: TypeAlias = Chunk | Rejection
"""What a source of members yields."""


class Profile(NamedTuple):
    """What a source of attributes yields: a profile and the attributes that it should have.

    Args:
        profile_id: Integration ID of the profile.
        attributes: JSON object to send, always serialized in the same way; empty if there is nothing to send.
        names: Names of the attributes in it.
        order: Ranks several rows of one profile: the row with the greatest value is used. None is the
            smallest value.
        fault: Why the row cannot be sent, instead of attributes. It quotes no value.
    """

    profile_id: str
    attributes: bytes = b""
    names: tuple[str, ...] = ()
    order: Any = None
    fault: str | None = None


def read_profile_id(value: Any) -> str | Rejection:
    """Read a profile ID of a source: text, or an integer, integral Decimal or UUID, which becomes text.

    Returns:
        The ID as text, or a rejection if it is null, empty, too long, not valid Unicode, or the error of a
        reader.

    Raises:
        InvalidInputError: The ID is of another type, so the query is wrong.
    """
    # Nearly every ID is ASCII text, which needs no further check.
    if type(value) is str and value.isascii() and 0 < len(value) <= MAX_LENGTH:
        return value
    if isinstance(value, InvalidInputError):
        return Rejection(f"profile ID {value}")
    text = _id_text(value)
    fault = fault_of_text(text)
    return Rejection(f"profile ID {fault}", text or None) if fault or text is None else text


def read_members(profile_ids: Sequence[Any], key: str, verb: Verb) -> Iterator[Record]:
    """Turn records of one audience into changes.

    Raises:
        InvalidInputError: As ``read_profile_id`` does.
    """
    ids = profile_ids if isinstance(profile_ids, list) else list(profile_ids)
    if not _are_ids(ids):
        read = [read_profile_id(value) for value in ids]
        yield from (value for value in read if isinstance(value, Rejection))
        ids = [value for value in read if isinstance(value, str)]
    if ids:
        yield Chunk(ids, key, verb)


def read_memberships(rows: Iterable[Sequence[Any]], verb: Verb, id_type: AudienceIdType) -> Iterator[Record]:
    """Turn rows that begin with a profile ID and an audience ID into changes.

    Args:
        rows: Profile ID and audience ID; further columns are ignored.
        verb: The verb of all changes.
        id_type: Whether the audience IDs are external (strings) or internal (integers).

    Raises:
        InvalidInputError: An ID is of another type, so the query is wrong.
    """
    ids: list[str] = []
    keys: list[str] = []
    # Many rows share few audiences, so each audience is checked once.
    checked: dict[str, str] = {}
    for row in rows:
        profile_id, audience = read_profile_id(row[0]), row[1]
        if isinstance(profile_id, Rejection):
            yield profile_id
        elif type(audience) is str and audience in checked:
            ids.append(profile_id)
            keys.append(checked[audience])
        elif reason := _fault_of_audience(audience, id_type):
            yield Rejection(reason, profile_id)
        else:
            ids.append(profile_id)
            keys.append(str(check_audience_id("audience ID", audience, id_type)))
            if type(audience) is str:
                checked[audience] = keys[-1]
    if ids:
        yield Chunk(ids, one_or_all(keys), verb)


def one_or_all(texts: list[str]) -> str | list[str]:
    """Return one text if all texts of a list are equal, else the list."""
    return texts[0] if texts and texts.count(texts[0]) == len(texts) else texts


def _fault_of_audience(value: Any, id_type: AudienceIdType) -> str | None:
    if is_null_audience(value):
        return "audience ID null"
    if isinstance(value, InvalidInputError):
        return f"audience ID {value}"
    fault = fault_of_text(value) if isinstance(value, str) and id_type == "external" else None
    return f"audience ID {fault}" if fault else None


def _joined(columns: Sequence[str | list[str]], counts: Sequence[int]) -> str | list[str]:
    first = columns[0]
    if isinstance(first, str) and all(column == first for column in columns):
        return first
    return list(
        chain.from_iterable(
            repeat(column, count) if isinstance(column, str) else column
            for column, count in zip(columns, counts, strict=True)
        )
    )


def _are_ids(values: list[Any]) -> bool:
    # No subclasses, such as numpy's text: they cannot be written to a disk like text.
    if not set(map(type, values)) <= {str}:
        return False
    joined = "".join(values)
    lengths = set(map(len, values))
    return not lengths or (0 not in lengths and max(lengths) <= MAX_LENGTH and is_unicode(joined))


def _id_text(value: Any) -> str | None:
    match value:
        case None:
            return None
        case str():
            return str.__str__(value)
        case Integral() if not isinstance(value, bool):
            return str(int(value))
        case Decimal() if value.is_finite() and value.as_tuple().exponent == 0:
            return str(value)
        case UUID():
            return str(value)
        # NaN, and the nulls of pandas.
        case _ if type(value).__name__ in ("NAType", "NaTType") or (
            isinstance(value, float | Decimal) and isnan(value)
        ):
            return None
        case _:
            cast = "an integer and then to text" if isinstance(value, float | Decimal) else "text"
            raise InvalidInputError(
                f"A profile ID is of type {type(value).__name__}, but must be text, an integer or a UUID.\n"
                f"Convert it to {cast} (with CAST in SQL), so that it is spelt as Talon.One knows it."
            )
