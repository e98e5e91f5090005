"""Sorted members in blocks: what is done to thousands at once costs a tenth of what is done to each of them."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice, repeat
from typing import Any, NamedTuple, TypeAlias

from airflow_provider_talon_cdp.sync.changes import Action, Change

Member: TypeAlias = tuple[str, str]
"""Customer profile ID and audience ID."""

Keys: TypeAlias = frozenset[Any] | set[Any]
"""Some keys of a block."""

BLOCK = 4096
"""Members of a block where nothing else says how many."""


class Block(NamedTuple):
    """A stretch of sorted members, each once, or of changes of them.

    Args:
        keys: Profile IDs where all members are of one audience, else members.
        audience: That audience, or None.
        leaving: Of changes: those keys, maybe among others, that are removed; the rest are added.
        unsure: Of changes: those that an earlier request may have made without an acknowledgement.
    """

    keys: list[Any]
    audience: str | None
    leaving: Keys = frozenset()
    unsure: Keys = frozenset()

    def members(self) -> Iterator[Member]:
        """Spell the members out."""
        return iter(self.keys) if self.audience is None else zip(self.keys, repeat(self.audience))

    def changes(self) -> Iterator[Change]:
        """Spell the changes out."""
        for key, (profile_id, audience_id) in zip(self.keys, self.members(), strict=False):
            action: Action = "remove" if key in self.leaving else "add"
            yield Change(profile_id, audience_id, action, key in self.unsure)

    @classmethod
    def of(cls, changes: Sequence[Change]) -> Block:
        """Make a block of changes."""
        audience = changes[0].audience_id
        one = all(change.audience_id == audience for change in changes)
        keys: list[Any] = [change.profile_id if one else change[:2] for change in changes]
        return cls(
            keys,
            str(audience) if one else None,
            {key for key, change in zip(keys, changes, strict=True) if change.action == "remove"},
            {key for key, change in zip(keys, changes, strict=True) if change.uncertain},
        )


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
    """Sorted changes; iterate over them, or over ``blocks``, once.

    Args:
        blocks: None of them is empty.
    """

    def __init__(self, blocks: Iterable[Block]) -> None:
        self.blocks = iter(blocks)

    def __iter__(self) -> Iterator[Change]:
        for block in self.blocks:
            yield from block.changes()


def blocks_of(members: Iterable[Member]) -> Iterator[Block]:
    """Cut any stream of members into blocks."""
    if isinstance(members, Members):
        yield from members.blocks
        return
    stream = iter(members)
    while keys := list(islice(stream, BLOCK)):
        yield Block(keys, None)


def blocks_of_changes(changes: Iterable[Change]) -> Iterator[Block]:
    """Cut any stream of changes into blocks."""
    if isinstance(changes, Changes):
        yield from changes.blocks
        return
    stream = iter(changes)
    while some := list(islice(stream, BLOCK)):
        yield Block.of(some)


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
        self.leaving: Keys = frozenset()

    def fill(self) -> bool:
        """Have something in the block; return whether there is anything left."""
        if self._at < len(self._keys):
            return True
        block = next(self._blocks, None)
        if block is None:
            return False
        self._keys, self.audience, self.leaving, _ = block
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
