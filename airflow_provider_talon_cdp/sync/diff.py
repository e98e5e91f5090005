"""What to add and what to remove, from two sorted streams. Pure, in constant memory.

Members are ordered by the code points of profile ID and then audience ID, which is also the order of their UTF-8
bytes. A database orders so under ``COLLATE "C"`` (Postgres) or ``BINARY`` (SQLite), but seldom by default.
"""

from __future__ import annotations

import heapq
import tempfile
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import chain, islice
from typing import IO, TypeAlias

from airflow_provider_talon_cdp.exceptions import InvalidInputError
from airflow_provider_talon_cdp.sync.changes import Change, Rejection
from airflow_provider_talon_cdp.sync.lines import from_line, to_line

Member: TypeAlias = tuple[str, str]
"""Customer profile ID and audience ID."""

_RUN = 100_000


class OutOfOrderError(Exception):
    """The source is not sorted by bytes; sort it with ``externally_sorted``."""


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
    records: Iterable[Change | Rejection],
    counts: PlanCounts,
    *,
    on_rejected: Callable[[Rejection], None] = lambda _: None,
) -> Iterator[Member]:
    """Yield the valid members of a sorted source once each, and count all records.

    Raises:
        OutOfOrderError: A member is smaller than the one before it.
    """
    last = ("", "")
    for record in records:
        counts.read += 1
        if isinstance(record, Rejection):
            counts.rejected[record.reason] += 1
            on_rejected(record)
            continue
        member: Member = record[:2]  # type: ignore[assignment]  # a mirror's audience IDs are external: strings
        if member > last:
            last = member
            yield member
        elif member == last:
            counts.duplicate += 1
        else:
            raise OutOfOrderError


def diff(
    known: Iterable[Member],
    wanted: Iterable[Member],
    counts: PlanCounts,
    *,
    uncertain: Iterable[Member] = (),
    managed: Collection[str] | None = None,
) -> Iterator[Change]:
    """Yield the changes that make the audiences equal to ``wanted``, in the order of their members.

    Args:
        known: Members in the ledger, sorted.
        wanted: Members in the source, sorted.
        counts: Kept up while this runs.
        uncertain: Memberships that an earlier run may have changed without an acknowledgement, sorted. Each of them
            is sent again, as an add or as a remove: both change nothing where nothing needs changing.
        managed: Audiences that may change; None for all. Known members of others stay.

    Raises:
        InvalidInputError: The source has an audience that is not managed.
    """

    def ours(members: Iterable[Member]) -> Iterator[Member]:
        return iter(members) if managed is None else (member for member in members if member[1] in managed)

    old_members, doubts = ours(known), ours(uncertain)
    old, doubt = next(old_members, None), next(doubts, None)
    # One more turn than members, so that what stands behind the last one goes too.
    for new in chain(wanted, [None]):
        if new is not None and managed is not None and new[1] not in managed:
            raise InvalidInputError(
                f"The query has the audience {new[1]!r}, which is not in audiences. Add it there."
            )
        while (old is not None and (new is None or old < new)) or (
            doubt is not None and (new is None or doubt < new)
        ):
            gone = min(member for member in (old, doubt) if member is not None)
            counts.known[gone[1]] += 1
            counts.removals[gone[1]] += 1
            yield Change(*gone, "remove", gone == doubt)
            old = next(old_members, None) if old == gone else old
            doubt = next(doubts, None) if doubt == gone else doubt
        if new is None:
            return
        if old == new and doubt != new:
            # By far the most frequent case.
            counts.known[new[1]] += 1
            counts.unchanged += 1
            old = next(old_members, None)
            continue
        is_old, is_doubtful = old == new, doubt == new
        counts.known[new[1]] += is_old or is_doubtful
        counts.additions[new[1]] += 1
        yield Change(*new, "add", is_doubtful)
        old = next(old_members, None) if is_old else old
        doubt = next(doubts, None) if is_doubtful else doubt


def fold(snapshot: Iterable[Member], changes: Iterable[Change]) -> Iterator[Member]:
    """Yield the members of a snapshot after sorted changes."""
    left = iter(snapshot)
    old = next(left, None)
    for change in changes:
        member = (change.profile_id, str(change.audience_id))
        while old is not None and old < member:
            yield old
            old = next(left, None)
        if change.action == "add":
            yield member
        if old == member:
            old = next(left, None)
    if old is not None:
        yield old
        yield from left


def externally_sorted(
    records: Iterable[Change | Rejection], *, run: int = _RUN
) -> Iterator[Change | Rejection]:
    """Yield records sorted by member, with ``run`` of them in memory and the rest in temporary files.

    Rejections, which have no place in the order, pass through first.
    """
    with ExitStack() as files:
        runs: list[IO[str]] = []
        changes: list[Change] = []
        source = iter(records)
        while chunk := list(islice(source, run)):
            changes = [record for record in chunk if isinstance(record, Change)]
            yield from (record for record in chunk if isinstance(record, Rejection))
            changes.sort(key=lambda change: (change.profile_id, str(change.audience_id)))
            file = files.enter_context(tempfile.TemporaryFile("w+", encoding="utf-8", newline="\n"))
            file.writelines(to_line(change.profile_id, str(change.audience_id)) for change in changes)
            file.seek(0)
            runs.append(file)
        for profile_id, audience_id in heapq.merge(*[map(_member, file) for file in runs]):
            yield Change(profile_id, audience_id, "add")


def _member(line: str) -> Member:
    profile_id, audience_id = from_line(line)
    return profile_id, audience_id
