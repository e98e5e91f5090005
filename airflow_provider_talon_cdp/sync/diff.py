"""What to add and what to remove, from two sorted streams. Pure, in constant memory.

Members are ordered by the code points of profile ID and then audience ID, which is also the order of their UTF-8
bytes. A database orders so under ``COLLATE "C"`` (Postgres) or ``BINARY`` (SQLite), but seldom by default.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from operator import itemgetter, le, lt
from typing import Any

from airflow_provider_talon_cdp.exceptions import InvalidInputError
from airflow_provider_talon_cdp.sync.blocks import (
    BLOCK,
    Block,
    Changes,
    Member,
    Members,
    Reader,
    blocks_of,
    together,
)
from airflow_provider_talon_cdp.sync.changes import Change, Ids, Record, Rejection
from airflow_provider_talon_cdp.sync.fold import Folded

__all__ = ["Member", "OutOfOrderError", "PlanCounts", "diff", "members"]

_audience = itemgetter(1)


class OutOfOrderError(Exception):
    """The source is not sorted by bytes; sort it with ``external_sort``."""


@dataclass
class PlanCounts:
    """Counts of a plan while it is made.

    Args:
        read: Records taken from the source.
        duplicate: Records equal to another one of the source.
        rejected: Records that cannot be members, by reason.
        unchanged: Members that the source and the ledger both have.
        known: Members in the ledger, certain or not, by audience.
        additions: Members that the source alone has, by audience.
        removals: Members that the ledger alone has, by audience.
    """

    read: int = 0
    duplicate: int = 0
    rejected: Counter[str] = field(default_factory=Counter)
    unchanged: int = 0
    known: Counter[str] = field(default_factory=Counter)
    additions: Counter[str] = field(default_factory=Counter)
    removals: Counter[str] = field(default_factory=Counter)

    @property
    def changes(self) -> int:
        """Membership changes in all."""
        return self.additions.total() + self.removals.total()

    @property
    def audiences(self) -> list[str]:
        """Audiences that change."""
        return sorted(self.additions.keys() | self.removals.keys())

    @property
    def wanted(self) -> int:
        """Distinct valid members of the source."""
        return self.unchanged + self.additions.total()


def members(
    records: Iterable[Record],
    counts: PlanCounts,
    *,
    on_rejected: Callable[[Rejection], None] = lambda _: None,
) -> Members:
    """Take the valid members of a sorted source once each, and count all records.

    Raises:
        OutOfOrderError: While it is iterated over: a member is smaller than the one before it.
    """
    return Members(_distinct(records, counts, on_rejected))


def _distinct(
    records: Iterable[Record], counts: PlanCounts, on_rejected: Callable[[Rejection], None]
) -> Iterator[Block]:
    last: Member = ("", "")
    for keys, audience in _gathered(records, counts, on_rejected):
        if not all(map(lt, keys, islice(keys, 1, None))):
            if not all(map(le, keys, islice(keys, 1, None))):
                raise OutOfOrderError
            counts.duplicate += len(keys)
            keys = list(dict.fromkeys(keys))  # noqa: PLW2901
            counts.duplicate -= len(keys)
        first = keys[0] if audience is None else (keys[0], audience)
        if first < last:
            raise OutOfOrderError
        if first == last:
            counts.duplicate += 1
            keys = keys[1:]  # noqa: PLW2901
        if keys:
            last = keys[-1] if audience is None else (keys[-1], audience)
            yield Block(keys, audience)


def _gathered(
    records: Iterable[Record], counts: PlanCounts, on_rejected: Callable[[Rejection], None]
) -> Iterator[tuple[list[Any], str | None]]:
    """Cut the source into keys of blocks, as they come; count what is read and what is rejected."""
    found: list[Member] = []
    for record in records:
        if isinstance(record, Change):
            counts.read += 1
            found.append(record[:2])  # type: ignore[arg-type]  # A mirror's audience IDs are external: strings.
            if len(found) < BLOCK:
                continue
        if found:
            yield found, None
            found = []
        if isinstance(record, Ids):
            counts.read += len(record.ids)
            if record.ids:
                yield record.ids, str(record.audience_id)
        elif isinstance(record, Rejection):
            counts.read += 1
            counts.rejected[record.reason] += 1
            on_rejected(record)
    if found:
        yield found, None


def diff(
    known: Iterable[Member],
    wanted: Iterable[Member],
    counts: PlanCounts,
    *,
    uncertain: Iterable[Member] = (),
    managed: Collection[str] | None = None,
    sends_all: bool = False,
) -> Changes:
    """Find the changes that make the audiences equal to ``wanted``, in the order of their members.

    Args:
        known: Members in the ledger, sorted.
        wanted: Members in the source, sorted.
        counts: Kept up while the changes are iterated over.
        uncertain: Memberships that an earlier run may have changed without an acknowledgement, sorted. Each of them
            is sent again, as an add or as a remove: both change nothing where nothing needs changing.
        managed: Audiences that may change; None for all. Known members of others stay.
        sends_all: Add those that are known too.

    Raises:
        InvalidInputError: While they are iterated over: the source has an audience that is not managed.
    """
    return Changes(_compared(known, wanted, uncertain, counts, managed, sends_all=sends_all))


def _compared(
    known: Iterable[Member],
    wanted: Iterable[Member],
    uncertain: Iterable[Member],
    counts: PlanCounts,
    managed: Collection[str] | None,
    *,
    sends_all: bool,
) -> Iterator[Block]:
    plans: list[Reader] = []
    if isinstance(known, Folded) and not known.one_per_profile:
        # Sets of some thousand members need not be sorted to be compared.
        plans = [Reader(plan.blocks) for plan in known.plans]
        known = known.snapshot
    readers = [*(Reader(blocks_of(stream)) for stream in (known, wanted, uncertain)), *plans]
    while True:
        left, audience = together(readers)
        if not left:
            return
        bound = min(reader.last for reader in left)
        old, new, doubt, *changed = (reader.up_to(bound) for reader in readers)
        if managed is not None:
            _refuse_others(new, doubt, audience, managed)
        if old == new and not doubt and not any(changed) and not sends_all:
            _count(counts.known, old, audience)
            counts.unchanged += len(new)
            continue
        had = set(old)
        for plan, keys in zip(plans, changed, strict=True):
            if keys:
                had.update(keys)
                had -= plan.leaving
        if managed is not None and audience is None:
            had = {key for key in had if key[1] in managed}
        elif managed is not None and audience not in managed:
            had = set()
        _count(counts.known, had, audience)
        unsure = frozenset(doubt)
        _count(counts.known, unsure - had, audience)
        joining = new if sends_all else _joining(new, had, unsure)
        had |= unsure
        had.difference_update(new)
        _count(counts.additions, joining, audience)
        _count(counts.removals, had, audience)
        counts.unchanged += len(new) - len(joining)
        if joining or had:
            yield Block(sorted([*joining, *had]) if had else joining, audience, had, unsure)


def _joining(new: list[Any], had: set[Any], unsure: frozenset[Any]) -> list[Any]:
    if unsure:
        return [key for key in new if key not in had or key in unsure]
    return [key for key in new if key not in had]


def _refuse_others(new: list[Any], doubt: list[Any], audience: str | None, managed: Collection[str]) -> None:
    """Check that only managed audiences would change."""
    for each in _audiences(new, audience) - set(managed):
        raise InvalidInputError(
            f"The query has the audience {each!r}, which is not in audiences. Add it there."
        )
    for each in _audiences(doubt, audience) - set(managed):
        raise InvalidInputError(
            f"An earlier run was stopped while it changed the audience {each!r}, which is not in audiences "
            "now. Let one run end with it before you take it out."
        )


def _audiences(keys: list[Any], audience: str | None) -> set[str]:
    return (set(map(_audience, keys)) if audience is None else {audience}) if keys else set()


def _count(counter: Counter[str], keys: Collection[Any], audience: str | None) -> None:
    if audience is None:
        counter.update(map(_audience, keys))
    elif keys:
        counter[audience] += len(keys)
