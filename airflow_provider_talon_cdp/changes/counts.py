"""The counts of a sync: every stage adds to the same ones."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Self


@dataclass(kw_only=True)
class Counts:
    """What became of the records of a source. Counts of two stages are added with ``+=``.

    Args:
        read: Records taken from the source.
        duplicate: Records equal to another one of the source.
        rejected: Records that cannot be sent, or that Talon.One refused, by reason. No reason holds an ID or
            a value.
        unchanged: Records that the ledger has already.
        known: What the ledger has, by audience.
        wanted: Distinct valid records of the source.
        additions: What the source has and is to be sent, by audience.
        repeated: Additions of what the ledger has too, by audience: it is uncertain, or all is sent.
        removals: What the ledger has and the source has not, by audience; to be sent, but not read from the
            source.
        unacknowledged_removals: Removals of what Talon.One never acknowledged, by audience: an earlier
            request may have added it. The guard does not count them.
        resumed: Changes that an earlier try had left of its plan; they were sent first.
        added: Additions that Talon.One acknowledged, by audience.
        removed: Removals that Talon.One acknowledged, by audience.
        unclear: Changes that run rules and got no clear answer: they may have been made, and are not sent
            again.
        unsent: Changes without an acknowledgement; 0 after a sync that ran to its end.
        requests: HTTP requests that left.
        retries: Requests that repeated a failed one.
        throttled: Answers 429.
    """

    read: int = 0
    duplicate: int = 0
    rejected: Counter[str] = field(default_factory=Counter)
    unchanged: int = 0
    known: Counter[str] = field(default_factory=Counter)
    wanted: int = 0
    additions: Counter[str] = field(default_factory=Counter)
    repeated: Counter[str] = field(default_factory=Counter)
    removals: Counter[str] = field(default_factory=Counter)
    unacknowledged_removals: Counter[str] = field(default_factory=Counter)
    resumed: int = 0
    added: Counter[str] = field(default_factory=Counter)
    removed: Counter[str] = field(default_factory=Counter)
    unclear: int = 0
    unsent: int = 0
    requests: int = 0
    retries: int = 0
    throttled: int = 0

    def __iadd__(self, other: Counts) -> Self:
        for each in fields(Counts):
            # In place: a stage may hold one of the counters.
            mine = getattr(self, each.name)
            if isinstance(mine, Counter):
                mine.update(getattr(other, each.name))
            else:
                setattr(self, each.name, mine + getattr(other, each.name))
        return self

    @property
    def numbers(self) -> dict[str, Any]:
        """All of them, as JSON can hold them."""
        return {each.name: getattr(self, each.name) for each in fields(Counts)}

    @classmethod
    def of(cls, numbers: Mapping[str, Any]) -> Counts:
        """Make them of ``numbers``."""
        told: Any = {name: Counter(n) if isinstance(n, dict) else n for name, n in numbers.items()}
        return Counts(**told)

    @property
    def changes(self) -> int:
        """Changes of the plan."""
        return self.additions.total() + self.removals.total()

    @property
    def audiences(self) -> list[str]:
        """Audiences that the plan changes."""
        return sorted(self.additions.keys() | self.removals.keys())

    @property
    def sent(self) -> int:
        """Changes that Talon.One acknowledged."""
        return self.added.total() + self.removed.total()

    @property
    def total(self) -> int:
        """Records that were read, removals, and changes that an earlier try had left."""
        return self.read + self.removals.total() + self.resumed

    @property
    def balances(self) -> bool:
        """Whether all of them are accounted for, each once."""
        return self.total == (
            self.unchanged + self.sent + self.duplicate + self.rejected.total() + self.unclear + self.unsent
        )
