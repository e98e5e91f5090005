"""What a plan makes of a ledger's members, as two sorted streams. Pure, in constant memory."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Collection, Iterable, Iterator, Sequence
from operator import itemgetter
from typing import Any

from airflow_provider_talon_cdp.sync.blocks import (
    Block,
    Changes,
    Member,
    Members,
    Reader,
    blocks_of,
    blocks_of_changes,
    together,
)
from airflow_provider_talon_cdp.sync.changes import Change

_profile = itemgetter(0)


class Folded(Members):
    """The members of a snapshot after some plans; iterate over them, or compare with what they are made of.

    Args:
        snapshot: Sorted members.
        plans: Sorted changes of one plan after another.
        one_per_profile: As in ``fold``.
    """

    def __init__(self, snapshot: Members, plans: Sequence[Changes], *, one_per_profile: bool = False) -> None:
        self.snapshot = snapshot
        self.plans = plans
        self.one_per_profile = one_per_profile
        members = snapshot
        for plan in plans:
            members = fold(members, plan, one_per_profile=one_per_profile)
        super().__init__(members.blocks)


def fold(snapshot: Iterable[Member], changes: Iterable[Change], *, one_per_profile: bool = False) -> Members:
    """Make the members of a snapshot after sorted changes.

    Args:
        snapshot: Sorted.
        changes: Sorted.
        one_per_profile: Whether a change replaces whatever the snapshot has of its profile. Each profile stands
            once in the snapshot and once in the changes then.
    """
    return Members(_folded(snapshot, changes, one_per_profile=one_per_profile))


def _folded(
    snapshot: Iterable[Member], changes: Iterable[Change], *, one_per_profile: bool
) -> Iterator[Block]:
    olds, news = Reader(blocks_of(snapshot)), Reader(blocks_of_changes(changes))
    while True:
        left, audience = together([olds, news], alike=not one_per_profile)
        if not left:
            return
        bound = min(reader.last for reader in left)
        if one_per_profile:
            old, new = (reader.up_to(bound[0], _profile) for reader in (olds, news))
            changed = set(map(_profile, new))
            kept = sorted([each for each in old if each[0] not in changed] + _joining(new, news.leaving))
        else:
            old, new = olds.up_to(bound), news.up_to(bound)
            kept = _with_changes(old, new, news.leaving)
        if kept:
            yield Block(kept, audience)


def _joining(new: list[Any], leaving: Collection[Any]) -> list[Any]:
    return [key for key in new if key not in leaving] if leaving else new


def _with_changes(old: list[Any], new: list[Any], leaving: Collection[Any]) -> list[Any]:
    if not new:
        return old
    if not old:
        return _joining(new, leaving)
    kept: list[Any] = []
    at = 0
    for key in new:
        found = bisect_left(old, key, at)
        kept += old[at:found]
        at = found + (found < len(old) and old[found] == key)
        if key not in leaving:
            kept.append(key)
    return kept + old[at:]
