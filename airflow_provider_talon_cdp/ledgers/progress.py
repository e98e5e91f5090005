"""How far a part of a plan has come: its changes, and what its acknowledgements say of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from airflow_provider_talon_cdp.ledgers.acks import Acks
from airflow_provider_talon_cdp.ledgers.columns import Columns
from airflow_provider_talon_cdp.sync.blocks import Block
from airflow_provider_talon_cdp.sync.changes import Change
from airflow_provider_talon_cdp.sync.fingerprints import doubted


class Progress(NamedTuple):
    """What became of the changes of a part.

    Args:
        changes: How many it has.
        landed: Those whose fate is known.
        refused: Those of them that Talon.One refused or was not asked about.
        skipped: Those of these that it was not asked about.
    """

    changes: int
    landed: int
    refused: int
    skipped: int

    @classmethod
    def of(cls, changes: int, batch: int, acks: Acks) -> Progress:
        """Count, for a part of so many changes in batches of so many."""
        last, short = divmod(changes, batch)
        landed = len(acks.landed) * batch - (batch - short if short and last in acks.landed else 0)
        refused, skipped = (sum(map(len, each.values())) for each in (acks.refused, acks.skipped))
        return cls(changes, landed, refused, skipped)

    @property
    def open(self) -> int:
        """Changes whose fate is not known."""
        return self.changes - self.landed

    @property
    def acknowledged(self) -> int:
        """Changes that Talon.One took."""
        return self.landed - self.refused


def made_of_profiles(batches: Iterable[Columns], acks: Acks) -> Iterator[Block]:
    """Yield what a plan of fingerprints has made of its profiles.

    Yields:
        The changes that Talon.One has acknowledged, and an addition with a doubt for each that may have arrived without.
    """
    for number, batch in enumerate(batches):
        if number in acks.landed and number not in acks.doubtful:
            yield from _taken(batch, number, acks)
        elif number < acks.may_have_left:
            unknown = set(acks.refused[number] if number in acks.landed else range(len(batch.profiles)))
            yield Block.of(
                [
                    Change(change.profile_id, doubted(str(change.audience_id)), "add")
                    if at in unknown
                    else change
                    for at, change in enumerate(batch.changes())
                ]
            )


def acknowledged(batches: Iterable[Columns], acks: Acks) -> Iterator[Block]:
    """Yield the changes that Talon.One has acknowledged."""
    for number, batch in enumerate(batches):
        if number in acks.landed:
            yield from _taken(batch, number, acks)


def _taken(batch: Columns, number: int, acks: Acks) -> Iterator[Block]:
    taken = batch.without(acks.refused[number]) if number in acks.refused else batch
    if taken.profiles:
        yield taken.block()


def unacknowledged(batches: Iterable[Columns], acks: Acks) -> Iterator[Change]:
    """Yield the changes whose fate is not recorded, with what is uncertain about them now."""
    for number, batch in enumerate(batches):
        if number not in acks.landed:
            may_have_left = number < acks.may_have_left
            for change in batch.changes():
                yield change._replace(uncertain=change.uncertain or may_have_left)
        elif number in acks.refused:
            # A refusal says nothing about what an earlier request did.
            yield from (change for change in _refused(batch, number, acks) if change.uncertain)


def _refused(batch: Columns, number: int, acks: Acks) -> Iterator[Change]:
    changes = batch.changes()
    for at in acks.refused[number]:
        yield changes[at]._replace(uncertain=changes[at].uncertain or number in acks.doubtful)
