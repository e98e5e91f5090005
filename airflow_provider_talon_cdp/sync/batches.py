"""A stream of records as batches of at most 1000 changes; equal changes that come soon after one another fold."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import chain
from operator import lt
from typing import TypeAlias

from airflow_provider_talon_cdp.contract import MAX_CHANGES
from airflow_provider_talon_cdp.sync.changes import Action, Batch, Change, Ids, Record, Rejection

_What: TypeAlias = tuple[str | int, Action]


@dataclass
class Intake:
    """What became of the records of a stream so far.

    Args:
        read: Records taken from the stream.
        duplicate: Those equal to a recent one.
        rejected: Those that cannot be changes, by reason.
        batched: Those in a batch that was handed on.
        held: Those in a batch that is not full yet.
    """

    read: int = 0
    duplicate: int = 0
    rejected: Counter[str] = field(default_factory=Counter)
    batched: int = 0
    held: int = 0


def batches(records: Iterable[Record], intake: Intake, *, in_flight: int) -> Generator[Batch, None, None]:
    """Yield batches, and count the records on the way.

    Args:
        records: The stream; closed with this generator where it is one.
        intake: Kept up while this runs.
        in_flight: Batches that may be in flight at once.
    """
    # One batch more: what is fresh may be held for a while before it travels.
    recent = _Recent((in_flight + 1) * MAX_CHANGES)
    filling = _Filling()

    def handed_on(batch: Batch) -> Batch:
        intake.batched += len(batch)
        intake.held -= len(batch)
        return batch

    try:
        for record in records:
            if isinstance(record, Rejection):
                intake.read += 1
                intake.rejected[record.reason] += 1
                continue
            for ids in _pieces(record):
                fresh = recent.fresh(ids)
                intake.read += len(ids.ids)
                intake.duplicate += len(ids.ids) - len(fresh)
                intake.held += len(fresh)
                full = filling.add(Ids(fresh, *ids[1:]), alone=recent.is_of_one_kind)
                yield from map(handed_on, full)
        if intake.held:
            yield handed_on(filling.rest(alone=recent.is_of_one_kind))
    finally:
        # A generator that holds a cursor must close with this one, not at some later garbage collection.
        if isinstance(records, Generator):
            records.close()


def _pieces(record: Change | Ids) -> Iterator[Ids]:
    if isinstance(record, Change):
        yield Ids([record.profile_id], record.audience_id, record.action)
        return
    # A source may hand over all of a long list at once; its progress is told by the batch.
    for start in range(0, len(record.ids), MAX_CHANGES):
        yield Ids(record.ids[start : start + MAX_CHANGES], *record[1:])


class _Recent:
    """The last changes, for folding. All of a stream would not fit in memory, and a change that is sent twice does no harm.

    Args:
        size: How many are remembered at the least.
    """

    def __init__(self, size: int) -> None:
        self._remembered = size
        self._history: deque[tuple[_What, list[str]]] = deque()
        self._size = 0
        # Tables are often read in the order of their keys. While IDs rise, none of them can be a repetition, and
        # comparing neighbours costs a quarter of what a set does.
        self._highest = ""
        self._seen: dict[_What, set[str]] | None = None

    def fresh(self, ids: Ids) -> list[str]:
        """Take what is not among them, and remember it."""
        fresh = ids.ids
        if self._seen is None and not self._rises(ids):
            self._seen = {}
            for what, earlier in self._history:
                self._seen.setdefault(what, set()).update(earlier)
        if self._seen is not None:
            seen = self._seen.setdefault(ids[1:], set())
            distinct = set(fresh)
            if len(distinct) < len(fresh) or not seen.isdisjoint(distinct):
                fresh = [each for each in dict.fromkeys(fresh) if each not in seen]
            seen.update(fresh)
        self._history.append((ids[1:], fresh))
        self._size += len(fresh)
        while self._size - len(self._history[0][1]) >= self._remembered:
            self._forget(*self._history.popleft())
        return fresh

    def _rises(self, ids: Ids) -> bool:
        if self._history and self._history[-1][0] != ids[1:]:
            return False
        highest, self._highest = self._highest, ids.ids[-1] if ids.ids else self._highest
        return all(map(lt, chain([highest], ids.ids), ids.ids))

    def _forget(self, what: _What, ids: list[str]) -> None:
        self._size -= len(ids)
        if self._seen is not None:
            self._seen[what].difference_update(ids)
            if not self._seen[what]:
                del self._seen[what]

    @property
    def is_of_one_kind(self) -> bool:
        """Whether they all have one audience and one action, so that none of them shares its profile with another."""
        return self._seen is None or len(self._seen) == 1


class _Filling:
    """Changes on their way into a batch: as mere IDs for as long as audience and action are the same."""

    def __init__(self) -> None:
        self._what: _What = "", "add"
        self._ids: list[str] = []
        self._changes: list[Change] = []

    def add(self, ids: Ids, *, alone: bool) -> Iterator[Batch]:
        """Take more; yield what is full now."""
        if self._changes or (self._ids and self._what != ids[1:]):
            self._changes += [*Ids(self._ids, *self._what).changes(), *ids.changes()]
            self._ids = []
            while len(self._changes) >= MAX_CHANGES:
                full, self._changes = self._changes[:MAX_CHANGES], self._changes[MAX_CHANGES:]
                yield Batch(full)
            return
        self._what = ids[1:]
        self._ids = self._ids + ids.ids if self._ids else ids.ids
        for start in range(0, len(self._ids) - MAX_CHANGES + 1, MAX_CHANGES):
            yield Batch(Ids(self._ids[start : start + MAX_CHANGES], *self._what), alone=alone)
        self._ids = self._ids[len(self._ids) // MAX_CHANGES * MAX_CHANGES :]

    def rest(self, *, alone: bool) -> Batch:
        """Take what is left."""
        return Batch(self._changes or Ids(self._ids, *self._what), alone=alone)
