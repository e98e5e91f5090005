"""What to add and what to remove, from two sorted streams of chunks. Pure, in constant memory.

Changes are ordered by the code points of profile ID and then key, which is also the order of their UTF-8
bytes. A database orders so under ``COLLATE "C"`` (Postgres) or ``BINARY`` (SQLite), but seldom by default.
Streams are compared in stretches of thousands of changes, which costs a tenth of what comparing them one by
one costs.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field
from itertools import compress, islice
from operator import itemgetter, le, lt
from typing import Any, TypeAlias

from airflow_provider_talon_cdp.changes.change import REMOVING, Chunk, Record, Rejection, one_or_all
from airflow_provider_talon_cdp.changes.counts import Counts
from airflow_provider_talon_cdp.contract import DOTS
from airflow_provider_talon_cdp.exceptions import InvalidInputError

Member: TypeAlias = tuple[str, str]
"""Customer profile ID and key."""

_profile = itemgetter(0)
_key = itemgetter(1)


class OutOfOrderError(Exception):
    """The source is not sorted by bytes; sort it with ``spool``."""


def in_order(
    records: Iterable[Record], counts: Counts, on_rejected: Callable[[Rejection], None]
) -> Iterator[Chunk]:
    """Take each member of a sorted source once, and count all records.

    Args:
        records: Chunks of members, and rejections.
        counts: Kept up while this runs.
        on_rejected: Called for each record that cannot be sent.

    Raises:
        OutOfOrderError: A member is smaller than the one before it.
    """
    last: Member = ("", "")
    for record in records:
        if isinstance(record, Rejection):
            counts.read += 1
            counts.rejected[record.reason] += 1
            on_rejected(record)
            continue
        counts.read += len(record)
        members, key = _comparable(record)
        if not members:
            continue
        if not all(map(lt, members, islice(members, 1, None))):
            if not all(map(le, members, islice(members, 1, None))):
                raise OutOfOrderError
            counts.duplicate += len(members)
            members = list(dict.fromkeys(members))
            counts.duplicate -= len(members)
        first = members[0] if key is None else (members[0], key)
        if first < last:
            raise OutOfOrderError
        if first == last:
            counts.duplicate += 1
            members = members[1:]
        if members:
            last = members[-1] if key is None else (members[-1], key)
            yield _chunk(members, key)


def within(chunks: Iterable[Chunk], low: str | None, high: str | None) -> Iterator[Chunk]:
    """Yield what of sorted chunks is in a range of profile IDs; None for no end."""
    for chunk in filter(len, chunks):
        if high is not None and chunk.ids[0] >= high:
            return
        first = 0 if low is None else bisect_left(chunk.ids, low)
        last = len(chunk) if high is None else bisect_left(chunk.ids, high)
        if first < last:
            yield chunk[first:last] if last - first < len(chunk) else chunk


class Folded:
    """The members of a snapshot after some plans: a stream of chunks, which ``diff`` can also take apart.

    Args:
        snapshot: Sorted members.
        plans: Sorted changes of one plan after another.
        one_per_profile: Whether a change replaces whatever the snapshot has of its profile.
    """

    def __init__(
        self, snapshot: Iterable[Chunk], plans: Sequence[Iterable[Chunk]], *, one_per_profile: bool = False
    ) -> None:
        self.snapshot = snapshot
        self.plans = plans
        self.one_per_profile = one_per_profile

    def __iter__(self) -> Iterator[Chunk]:
        members = iter(self.snapshot)
        for plan in self.plans:
            members = fold(members, plan, one_per_profile=self.one_per_profile)
        return members


@dataclass(frozen=True, kw_only=True)
class Scope:
    """What a plan may change.

    Args:
        managed: Audiences that may change; None for all. Known members of others stay.
        sends_all: Whether known members are added again.
        runs_rules: Says of an audience whether its changes are sent by calls that run rules; None for none.
            What the ledger has already is sent in bulk.
        withheld: Changes that run rules and got no clear answer: they are not sent again, unless all is sent,
            in bulk then.
    """

    managed: Collection[str] | None = None
    sends_all: bool = False
    runs_rules: Callable[[str], bool] | None = None
    withheld: Mapping[Member, str] = field(default_factory=dict)


EVERYTHING = Scope()


def diff(
    known: Iterable[Chunk],
    wanted: Iterable[Chunk],
    counts: Counts,
    *,
    uncertain: Iterable[Chunk] = (),
    scope: Scope = EVERYTHING,
    witnesses: MutableMapping[str, str] | None = None,
) -> Iterator[Chunk]:
    """Yield the changes that make the audiences equal to ``wanted``, in the order of their members.

    Args:
        known: Members in the ledger, sorted.
        wanted: Members in the source, sorted.
        counts: Kept up while this runs.
        uncertain: Memberships that may have changed without an acknowledgement, sorted. Each is sent again,
            as an add or as a remove, unless it is withheld.
        scope: What may change.
        witnesses: Filled with one unchanged member of each audience that has one: the profile ID by audience.

    Raises:
        InvalidInputError: The source has an audience that is not managed.
    """
    managed = scope.managed
    plans: list[_Reader] = []
    if isinstance(known, Folded) and not known.one_per_profile:
        # Sets of some thousand members need not be sorted to be compared.
        plans = [_Reader(plan) for plan in known.plans]
        known = known.snapshot
    readers = [*(_Reader(stream) for stream in (known, wanted, uncertain)), *plans]
    for audience, bound in _stretches(readers):
        old, new, doubt, *changed = (reader.up_to(bound) for reader in readers)
        counts.wanted += len(new)
        if managed is not None:
            if scope.withheld and doubt:
                doubt = _without_others(doubt, audience, managed, scope.withheld)
            _refuse_others(new, doubt, audience, managed)
        if old == new and not doubt and not any(changed) and not scope.sends_all:
            _count(counts.known, old, audience)
            counts.unchanged += len(new)
            if witnesses is not None:
                _witness(witnesses, new, audience)
            continue
        had = _after(old, plans, changed)
        if managed is not None:
            had = _managed(had, audience, managed)
        _count(counts.known, had, audience)
        unsure = frozenset(doubt)
        withheld = _withheld(unsure, new, audience, scope.withheld) if scope.withheld else frozenset()
        silent = withheld | had.intersection(new) if scope.runs_rules else withheld
        if not scope.sends_all:
            unsure -= withheld
            had -= withheld
        joining = new if scope.sends_all else [each for each in new if each not in had or each in unsure]
        if withheld and not scope.sends_all:
            joining = [each for each in joining if each not in withheld]
        if witnesses is not None and audience not in witnesses and len(joining) < len(new):
            _witness(witnesses, sorted(set(new).difference(joining, withheld)), audience)
        _count(counts.unacknowledged_removals, (unsure - had).difference(new), audience)
        if scope.sends_all or unsure:
            _count(counts.repeated, had.intersection(joining), audience)
        had |= unsure
        had.difference_update(new)
        _count(counts.additions, joining, audience)
        _count(counts.removals, had, audience)
        counts.unchanged += len(new) - len(joining)
        if joining or had:
            sending = sorted([*joining, *had]) if had else joining
            loud = [] if scope.runs_rules is None else _loud(sending, audience, silent, scope.runs_rules)
            yield _chunk(sending, audience, had, unsure, loud)


def fold(
    snapshot: Iterable[Chunk], changes: Iterable[Chunk], *, one_per_profile: bool = False
) -> Iterator[Chunk]:
    """Yield the members of a snapshot after sorted changes.

    Args:
        snapshot: Sorted.
        changes: Sorted.
        one_per_profile: Whether a change replaces whatever the snapshot has of its profile, which stands at
            most once in the snapshot and once in the changes then.
    """
    old, new = _Reader(snapshot), _Reader(changes)
    for key, bound in _stretches([old, new], alike=not one_per_profile):
        if one_per_profile:
            before, after = (reader.up_to(bound[0], _profile) for reader in (old, new))
            changed = set(map(_profile, after))
            kept = sorted([each for each in before if each[0] not in changed] + _without(after, new.removed))
        else:
            kept = _with_changes(old.up_to(bound), new.up_to(bound), new.removed)
        if kept:
            yield _chunk(kept, key)


class _Reader:
    """A stream of chunks, read in pieces that end where the pieces of other streams end.

    Attributes:
        last: The greatest member of the chunk.
        key: The key of all its members, which are bare profile IDs then; else None.
        removed: Members of the chunk that are removed.
    """

    def __init__(self, chunks: Iterable[Chunk]) -> None:
        self._chunks = iter(chunks)
        self._members: list[Any] = []
        self._at = 0
        self.last: Any = None
        self.key: str | None = None
        self.removed: Collection[Any] = frozenset()

    def fill(self) -> bool:
        """Have something in the chunk; return whether there is anything left."""
        while self._at == len(self._members):
            chunk = next(self._chunks, None)
            if chunk is None:
                return False
            self._members, self.key = _comparable(chunk)
            self._at = 0
            self.removed = frozenset()
            if chunk.removes:
                self.removed = frozenset(
                    self._members
                    if isinstance(chunk.verbs, str)
                    else compress(self._members, [verb in REMOVING for verb in chunk.verbs])
                )
            self.last = self._members[-1] if self._members else None
        return True

    def spell_out(self) -> None:
        """Put the key beside each profile ID, to compare them with members of other audiences."""
        if self.key is not None:
            self._members = [(each, self.key) for each in self._members]
            self.removed = frozenset((each, self.key) for each in self.removed)
            self.last = self._members[-1]
            self.key = None

    def up_to(self, bound: Any, key: Callable[[Any], Any] | None = None) -> list[Any]:
        """Take what is in the chunk and not greater than a bound; nothing after the last chunk.

        Args:
            bound: A member, or what ``key`` makes of one.
            key: Compare by this.
        """
        start = self._at
        self._at = bisect_right(self._members, bound, lo=start, key=key)
        if start == 0 and self._at == len(self._members):
            return self._members
        return self._members[start : self._at]


def _stretches(readers: Sequence[_Reader], *, alike: bool = True) -> Iterator[tuple[str | None, Any]]:
    """Fill readers until all are at their end, and make their members comparable.

    Args:
        readers: Some streams.
        alike: Whether bare profile IDs do where all are of one audience.

    Yields:
        The key of all members, or None where they are pairs; and the greatest member that all readers have
        got to.
    """
    while left := [reader for reader in readers if reader.fill()]:
        keys = {reader.key for reader in left}
        key = keys.pop() if alike and len(keys) == 1 else None
        if key is None:
            for reader in left:
                reader.spell_out()
        yield key, min(reader.last for reader in left)


def _comparable(chunk: Chunk) -> tuple[list[Any], str | None]:
    """Return bare profile IDs and their one key, or pairs and None."""
    if isinstance(chunk.keys, str):
        return chunk.ids, chunk.keys
    return list(zip(chunk.ids, chunk.keys, strict=True)), None


def _chunk(
    members: list[Any],
    key: str | None,
    removed: Collection[Any] = (),
    unsure: Collection[Any] = (),
    loud: Collection[Any] = (),
) -> Chunk:
    """Make a chunk of comparable members."""
    verbs: str | list[str] = "add"
    if removed or unsure or loud:
        loud = frozenset(loud)
        verbs = one_or_all(
            [
                ("remove" if each in removed else "add")
                + ("!" if each in loud else "")
                + ("?" if each in unsure else "")
                for each in members
            ]
        )
    if key is not None:
        return Chunk(members, key, verbs)
    ids, keys = map(list, zip(*members, strict=True))
    return Chunk(ids, one_or_all(keys), verbs)


def _after(old: list[Any], plans: Sequence[_Reader], changed: Sequence[list[Any]]) -> set[Any]:
    """Return the known members of a stretch after some plans."""
    had = set(old)
    for plan, members in zip(plans, changed, strict=True):
        if members:
            had.update(members)
            had.difference_update(plan.removed)
    return had


def _withheld(
    unsure: Iterable[Any], new: Collection[Any], audience: str | None, withheld: Mapping[Member, str]
) -> frozenset[Any]:
    """Return members of which what is wanted was sent before, and got no clear answer."""
    found = {
        each: action
        for each in unsure
        if (action := withheld.get(each if audience is None else (each, audience)))
    }
    wanted = found.keys() & set(new) if found else ()
    return frozenset(each for each, action in found.items() if (action == "add") == (each in wanted))


def _without_others(
    doubt: list[Any], audience: str | None, managed: Collection[str], withheld: Mapping[Member, str]
) -> list[Any]:
    """Leave out withheld members of audiences that are not managed."""
    if audience is None:
        return [each for each in doubt if each[1] in managed or each not in withheld]
    return [each for each in doubt if audience in managed or (each, audience) not in withheld]


def _loud(
    changed: list[Any], audience: str | None, silent: Collection[Any], runs_rules: Callable[[str], bool]
) -> list[Any]:
    """Return members whose changes are sent by calls that run rules."""
    loud = [each for each in changed if each not in silent]
    if audience is None:
        return [each for each in loud if runs_rules(each[1]) and each[0] not in DOTS]
    return [each for each in loud if each not in DOTS] if runs_rules(audience) else []


def _witness(witnesses: MutableMapping[str, str], members: list[Any], audience: str | None) -> None:
    if audience is not None:
        if members:
            witnesses.setdefault(audience, members[0])
        return
    for profile_id, key in members:
        witnesses.setdefault(key, profile_id)


def _managed(members: set[Any], audience: str | None, managed: Collection[str]) -> set[Any]:
    if audience is None:
        return {each for each in members if each[1] in managed}
    return members if audience in managed else set()


def _refuse_others(new: list[Any], doubt: list[Any], audience: str | None, managed: Collection[str]) -> None:
    """Check that only managed audiences would change."""
    for each in _audiences(new, audience) - set(managed):
        raise InvalidInputError(
            f"The query has the audience {each!r}, which is not in audiences. Add it there."
        )
    for each in _audiences(doubt, audience) - set(managed):
        raise InvalidInputError(
            f"An earlier run was stopped while it changed the audience {each!r}, which is not in "
            "audiences now.\n"
            "Let one run end with it before you take it out."
        )


def _audiences(members: list[Any], audience: str | None) -> set[str]:
    return (set(map(_key, members)) if audience is None else {audience}) if members else set()


def _count(counter: Counter[str], members: Collection[Any], audience: str | None) -> None:
    if audience is None:
        counter.update(map(_key, members))
    elif members:
        counter[audience] += len(members)


def _without(members: list[Any], removed: Collection[Any]) -> list[Any]:
    return [each for each in members if each not in removed] if removed else members


def _with_changes(old: list[Any], new: list[Any], removed: Collection[Any]) -> list[Any]:
    if not new:
        return old
    if not old:
        return _without(new, removed)
    kept: list[Any] = []
    at = 0
    for each in new:
        found = bisect_left(old, each, at)
        kept += old[at:found]
        at = found + (found < len(old) and old[found] == each)
        if each not in removed:
            kept.append(each)
    return kept + old[at:]
