"""Sorted members in blocks: what is done to thousands at once costs a tenth of what is done to each of them."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice, repeat
from operator import itemgetter
from typing import Any, NamedTuple, TypeAlias

from airflow_provider_talon_cdp.sync.changes import Change, Ids

Member: TypeAlias = tuple[str, str]
"""Customer profile ID and audience ID."""

BLOCK = 4096
"""Members of a block where nothing else says how many."""


class Block(NamedTuple):
    """A stretch of sorted members, each once.

    Args:
        keys: Profile IDs where all members are of one audience, else members.
        audience: That audience, or None.
        leaving: In a block of changes, the keys that are removed; all others are added.
    """

    keys: list[Any]
    audience: str | None
    leaving: frozenset[Any] | set[Any] = frozenset()

    def members(self) -> Iterator[Member]:
        """Spell the members out."""
        return iter(self.keys) if self.audience is None else zip(self.keys, repeat(self.audience))


class Members:
    """Sorted members; iterate over them, or over ``blocks``, once.

    Args:
        blocks: None of them is empty.
    """

    def __init__(self, blocks: Iterable[Block]) -> None:
        self.blocks = iter(blocks)

    def __iter__(self) -> Iterator[Member]:
        for block in self.blocks:
            yield from block.members()


class Changes:
    """Sorted changes; iterate over them, or over ``stretches``, once.

    Args:
        stretches: Each is a list of changes, or the quick form of one.
    """

    def __init__(self, stretches: Iterable[Ids | Sequence[Change]]) -> None:
        self.stretches = iter(stretches)

    def __iter__(self) -> Iterator[Change]:
        for stretch in self.stretches:
            yield from stretch.changes() if isinstance(stretch, Ids) else stretch


def blocks_of(members: Iterable[Member]) -> Iterator[Block]:
    """Cut any stream of members into blocks."""
    if isinstance(members, Members):
        yield from members.blocks
        return
    stream = iter(members)
    while keys := list(islice(stream, BLOCK)):
        yield Block(keys, None)


def stretches_of(changes: Iterable[Change]) -> Iterator[Ids | Sequence[Change]]:
    """Cut any stream of changes into stretches."""
    if isinstance(changes, Changes):
        yield from changes.stretches
        return
    stream = iter(changes)
    while stretch := list(islice(stream, BLOCK)):
        yield stretch


def block_of(changes: Ids | Sequence[Change]) -> Block:
    """Make a block of a stretch of changes."""
    if isinstance(changes, Ids):
        leaving = set(changes.ids) if changes.action == "remove" else frozenset[str]()
        return Block(changes.ids, str(changes.audience_id), leaving)
    audience = changes[0].audience_id
    one = all(change.audience_id == audience for change in changes)
    key = itemgetter(0) if one else itemgetter(0, 1)
    leaving = {key(change) for change in changes if change.action == "remove"}
    return Block([key(change) for change in changes], str(audience) if one else None, leaving)


class Reader:
    """A stream of blocks, read in pieces that end where the pieces of other streams end.

    Attributes:
        last: The greatest key of the block.
        audience: That of the block, if its keys are bare profile IDs.
        leaving: Those keys of the block that are removed.
    """

    def __init__(self, blocks: Iterable[Block]) -> None:
        self._blocks = iter(blocks)
        self._keys: list[Any] = []
        self._at = 0
        self.last: Any = None
        self.audience: str | None = None
        self.leaving: frozenset[Any] | set[Any] = frozenset()

    def fill(self) -> bool:
        """Have something in the block; return whether there is anything left."""
        if self._at < len(self._keys):
            return True
        block = next(self._blocks, None)
        if block is None:
            return False
        self._keys, self.audience, self.leaving = block
        self._at = 0
        self.last = self._keys[-1]
        return True

    def spell_out(self) -> None:
        """Make the keys members, to compare them with those of other audiences."""
        if self.audience is not None:
            audience = self.audience
            self._keys = [(each, audience) for each in self._keys]
            self.leaving = {(each, audience) for each in self.leaving}
            self.last = self._keys[-1]
            self.audience = None

    def up_to(self, bound: Any, key: Callable[[Any], Any] | None = None) -> list[Any]:
        """Take what is in the block and not greater than a bound; nothing after the last block.

        Args:
            bound: A key, or what ``key`` makes of one.
            key: Compare by this.
        """
        start = self._at
        self._at = bisect_right(self._keys, bound, lo=start, key=key)
        whole = start == 0 and self._at == len(self._keys)
        return self._keys if whole else self._keys[start : self._at]


def together(readers: Sequence[Reader], *, alike: bool = True) -> tuple[list[Reader], str | None]:
    """Fill readers, and make their keys comparable.

    Args:
        readers: Some streams.
        alike: Whether bare profile IDs will do where all are of one audience.

    Returns:
        Those that are not at their end, and the audience that their keys are of, or None where they are members.
    """
    left = [reader for reader in readers if reader.fill()]
    audiences = {reader.audience for reader in left}
    if alike and len(audiences) == 1:
        return left, audiences.pop()
    for reader in left:
        reader.spell_out()
    return left, None
