"""What to add and what to remove, from two sorted streams. Pure, in constant memory.

Members are ordered by the code points of profile ID and then audience ID, which is also the order of their UTF-8
bytes. A database orders so under ``COLLATE "C"`` (Postgres) or ``BINARY`` (SQLite), but seldom by default.
"""

from __future__ import annotations

import heapq
import tempfile
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import islice
from operator import itemgetter, le, lt
from typing import IO, Any, Generic, TypeAlias, TypeVar

from airflow_provider_talon_cdp.exceptions import InvalidInputError
from airflow_provider_talon_cdp.sync.changes import Change, Ids, Record, Rejection
from airflow_provider_talon_cdp.sync.lines import from_line, to_line

Member: TypeAlias = tuple[str, str]
"""Customer profile ID and audience ID."""

_RUN = 100_000
_BLOCK = 4096
_profile_of = itemgetter(0)
_audience = itemgetter(1)


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
    records: Iterable[Record],
    counts: PlanCounts,
    *,
    on_rejected: Callable[[Rejection], None] = lambda _: None,
) -> Iterator[Member]:
    """Yield the valid members of a sorted source once each, and count all records.

    Raises:
        OutOfOrderError: A member is smaller than the one before it.
    """
    last: Member = ("", "")
    source = _spelt_out(records)
    while block := list(islice(source, _BLOCK)):
        counts.read += len(block)
        changes = [record for record in block if isinstance(record, Change)]
        if len(changes) < len(block):
            for record in block:
                if isinstance(record, Rejection):
                    counts.rejected[record.reason] += 1
                    on_rejected(record)
        found = [_member_of(change) for change in changes]
        if not all(map(le, [last, *found], found)):
            raise OutOfOrderError
        distinct = (
            found
            if all(map(lt, [last, *found], found))
            else [each for each in dict.fromkeys(found) if each != last]
        )
        counts.duplicate += len(found) - len(distinct)
        yield from distinct
        last = found[-1] if found else last


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
    # Blocks, because comparing sets of some thousand members costs a tenth of comparing them one by one.
    olds, news, doubts = (_Blocks(stream, _member_of) for stream in (known, wanted, uncertain))
    while bound := min((blocks.last for blocks in (olds, news, doubts) if blocks.last), default=None):
        old, new, doubt = olds.up_to(bound), news.up_to(bound), doubts.up_to(bound)
        if managed is not None:
            for _, audience in new:
                if audience not in managed:
                    raise InvalidInputError(
                        f"The query has the audience {audience!r}, which is not in audiences. Add it there."
                    )
            old = [member for member in old if member[1] in managed]
            for _, audience in doubt:
                if audience not in managed:
                    raise InvalidInputError(
                        f"An earlier run was stopped while it changed the audience {audience!r}, which is not in audiences "
                        "now. Let one run end with it before you take it out."
                    )
        had, has, unsure = set(old), set(new), set(doubt)
        additions = [
            Change(*member, "add", member in unsure)
            for member in new
            if member not in had or member in unsure
        ]
        removals = [Change(*member, "remove", member in unsure) for member in old if member not in has]
        removals += [
            Change(*member, "remove", uncertain=True)
            for member in doubt
            if member not in has and member not in had
        ]
        counts.unchanged += len(new) - len(additions)
        counts.known.update(map(_audience, old))
        counts.known.update(member[1] for member in doubt if member not in had)
        counts.additions.update(map(_audience, additions))
        counts.removals.update(map(_audience, removals))
        yield from sorted(additions + removals)


def fold(
    snapshot: Iterable[Member], changes: Iterable[Change], *, one_per_profile: bool = False
) -> Iterator[Member]:
    """Yield the members of a snapshot after sorted changes.

    Args:
        snapshot: Sorted.
        changes: Sorted.
        one_per_profile: Whether a change replaces whatever the snapshot has of its profile. Each profile stands
            once in the snapshot and once in the changes then.
    """
    key: Callable[[Member | Change], Any] = _profile_of if one_per_profile else _member_of
    olds, news = _Blocks(snapshot, key), _Blocks(changes, key)
    while bound := min((blocks.last for blocks in (olds, news) if blocks.last), default=None):
        old, new = olds.up_to(bound), news.up_to(bound)
        if new:
            changed = set(map(key, new))
            joined = [_member_of(change) for change in new if change.action == "add"]
            old = sorted([member for member in old if key(member) not in changed] + joined)
        yield from old


E = TypeVar("E", Member, Change)


class _Blocks(Generic[E]):
    """A stream sorted by a key, read ahead by a block."""

    def __init__(self, stream: Iterable[E], key: Callable[[E], Any]) -> None:
        self._stream: Iterator[E] = iter(stream)
        self._key: Callable[[E], Any] = key
        self._block: list[E] = []
        self.last: Any = None
        self._fill()

    def up_to(self, bound: Any) -> list[E]:
        """Take what is in the block and not greater than a bound."""
        cut = bisect_right(self._block, bound, key=self._key)
        taken, self._block = self._block[:cut], self._block[cut:]
        if not self._block:
            self._fill()
        return taken

    def _fill(self) -> None:
        self._block = list(islice(self._stream, _BLOCK))
        self.last = self._key(self._block[-1]) if self._block else None


def _member_of(entry: Member | Change) -> Member:
    # A mirror's audience IDs are external: strings.
    return entry[:2]  # type: ignore[return-value]


def externally_sorted(records: Iterable[Record], *, run: int = _RUN) -> Iterator[Change | Rejection]:
    """Yield records sorted by member, with ``run`` of them in memory and the rest in temporary files.

    Rejections, which have no place in the order, pass through first.
    """
    with ExitStack() as files:
        runs: list[IO[str]] = []
        changes: list[Change] = []
        source = _spelt_out(records)
        while chunk := list(islice(source, run)):
            changes = [record for record in chunk if isinstance(record, Change)]
            yield from (record for record in chunk if isinstance(record, Rejection))
            changes.sort(key=lambda change: (change.profile_id, str(change.audience_id)))
            file = files.enter_context(tempfile.TemporaryFile("w+", encoding="utf-8", newline="\n"))
            file.writelines(to_line(change.profile_id, str(change.audience_id)) for change in changes)
            file.seek(0)
            runs.append(file)
        for profile_id, audience_id in heapq.merge(*[map(_split, file) for file in runs]):
            yield Change(profile_id, audience_id, "add")


def _spelt_out(records: Iterable[Record]) -> Iterator[Change | Rejection]:
    for record in records:
        if isinstance(record, Ids):
            yield from record.changes()
        else:
            yield record


def _split(line: str) -> Member:
    profile_id, audience_id = from_line(line)
    return profile_id, audience_id
