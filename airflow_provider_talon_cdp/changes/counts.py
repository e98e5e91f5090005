"""The counts of a sync, which every stage adds to."""

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
        duplicate: Records that repeat another record of the source.
        rejected: Records that cannot be sent, or that Talon.One refused, by reason. No reason holds an ID or
            a value.
        unchanged: Records that the ledger has already, so that nothing is sent.
        known: Members that the ledger has, and removed members that other tasks added, by audience.
        wanted: Distinct valid records of the source.
        additions: Members of the source that are to be sent, by audience.
        repeated: Additions of members that the ledger already has, by audience: they are sent again.
        removals: Members that the ledger has and the source does not, by audience. They are to be sent, but
            were not read from the source.
        unacknowledged_removals: Removals of members that Talon.One never acknowledged, by audience: an
            earlier request may have added them. The guard does not count them. Members that another task
            added are not among them.
        emptied: Additions whose row has only nulls, so that they delete all acknowledged attributes of their
            profiles. The guard counts them as removals.
        rule_changes: Changes of the plan that run rules.
        rule_calls: Calls that these changes take: one for each profile.
        resumed: Changes of an earlier try's plan that it had not sent. They are sent first.
        added: Additions that Talon.One acknowledged, by audience.
        removed: Removals that Talon.One acknowledged, by audience.
        unclear: Changes that run rules and got no clear answer. They may have been made, and their rules do
            not run again.
        unsent: Changes without an acknowledgement; 0 after a sync that was not interrupted.
        requests: HTTP requests that were sent.
        retries: Requests that repeated a failed one.
        throttled: Responses with status 429.
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
    emptied: Counter[str] = field(default_factory=Counter)
    rule_changes: int = 0
    rule_calls: int = 0
    resumed: int = 0
    added: Counter[str] = field(default_factory=Counter)
    removed: Counter[str] = field(default_factory=Counter)
    unclear: int = 0
    unsent: int = 0
    requests: int = 0
    retries: int = 0
    throttled: int = 0

    def __iadd__(self, other: Counts) -> Self:
        for counter in fields(Counts):
            # In place, because a stage may hold one of the counters.
            value = getattr(self, counter.name)
            if isinstance(value, Counter):
                value.update(getattr(other, counter.name))
            else:
                setattr(self, counter.name, value + getattr(other, counter.name))
        return self

    @classmethod
    def of(cls, numbers: Mapping[str, Any]) -> Counts:
        """Return the counts with these numbers by name, as JSON holds them."""
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
        """Records that were read, removals, and changes that an earlier try had not sent."""
        return self.read + self.removals.total() + self.resumed

    @property
    def balances(self) -> bool:
        """Whether every record and change is counted exactly once."""
        return self.total == (
            self.unchanged + self.sent + self.duplicate + self.rejected.total() + self.unclear + self.unsent
        )
