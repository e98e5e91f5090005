"""What a sync did, in counts that balance."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from airflow_provider_talon_cdp.changes.counts import Counts

# Audiences that a log names one by one.
_NAMED = 20


@dataclass(kw_only=True)
class Report(Counts):
    """The counts of a sync, and where it left what.

    Args:
        seconds: Wall-clock duration.
        dead_letters: Folder of the rejected records, or None.
        ledger: Folder of the ledger of a mirror, or None.
        ledger_version: Version of the ledger after a mirror, or None.
        suspicious: Profile IDs that are valid and look wrong, by kind; see ``suspicious``.
        verdict: What the guard says to a dry run, or why a run did nothing; else None.
    """

    seconds: float = 0.0
    dead_letters: str | None = None
    ledger: str | None = None
    ledger_version: int | None = None
    suspicious: Mapping[str, int] = field(default_factory=dict)
    verdict: str | None = None

    def summary(self) -> dict[str, Any]:
        """Return the report as a small JSON object, fit for XCom."""
        return {
            "read": self.read,
            "removals": self.removals.total(),
            "resumed": self.resumed,
            "unchanged": self.unchanged,
            "sent": self.sent,
            "added": self.added.total(),
            "removed": self.removed.total(),
            "duplicate": self.duplicate,
            "rejected": dict(self.rejected),
            "unclear": self.unclear,
            "unsent": self.unsent,
            "requests": self.requests,
            "retries": self.retries,
            "throttled": self.throttled,
            "seconds": round(self.seconds, 3),
            "dead_letters": self.dead_letters,
            "ledger": self.ledger,
            "ledger_version": self.ledger_version,
            "suspicious": dict(self.suspicious),
            "verdict": self.verdict,
        }

    @classmethod
    def of(cls, summary: Mapping[str, Any]) -> Report:
        """Make a report of its summary, without the division by audience."""
        given = {name: value for name, value in summary.items() if name != "sent"}
        for name in ("removals", "added", "removed"):
            given[name] = Counter({"": given[name]} if given[name] else {})
        return cls(**given | {"rejected": Counter(given["rejected"])})

    def plan_anew(self) -> None:
        """Count the members from the next plan on, whose ``known`` has what was sent so far."""
        self.known = Counter(self.removed)
        self.known.subtract(self.added)

    def by_audience(self) -> dict[str, dict[str, int]]:
        """Return what changed in each audience, and how many members it has now as far as the ledger knows.

        Empty where the changes were not counted by audience.
        """
        if "" in self.added or "" in self.removed:
            return {}
        changed = sorted(self.known.keys() | self.added.keys() | self.removed.keys())
        # What is sent without need changes no number; where not all was acknowledged, that is taken to come
        # last.
        return {
            audience: {
                "added": self.added[audience],
                "removed": self.removed[audience],
                "members": self.known[audience]
                + max(0, self.added[audience] - self.repeated[audience])
                - max(0, self.removed[audience] - self.unacknowledged_removals[audience]),
            }
            for audience in changed
        }

    def lines(self) -> list[str]:
        """Return the report in lines that fit on a screen."""
        unchanged = f"{self.unchanged:,} unchanged + {self.sent:,} sent + {self.duplicate:,} duplicate"
        unclear = f" + {self.unclear:,} unclear" if self.unclear else ""
        sent = f"sent: {self.added.total():,} added, {self.removed.total():,} removed"
        attempts = f"({self.retries:,} retries, {self.throttled:,} throttled)"
        lines = [
            f"{self.read:,} read + {self.removals.total():,} to remove + {self.resumed:,} resumed",
            f"= {unchanged} + {self.rejected.total():,} rejected{unclear} + {self.unsent:,} unsent",
            f"{sent}; {self.requests:,} requests {attempts} in {self.seconds:.1f} s",
        ]
        lines += [f"rejected: {count:,} x {reason}" for reason, count in sorted(self.rejected.items())]
        by_audience = self.by_audience()
        if len(by_audience) > 1:
            lines += [
                f"audience {audience!r}: {numbers['added']:,} added, {numbers['removed']:,} removed,"
                f" {numbers['members']:,} members"
                for audience, numbers in list(by_audience.items())[:_NAMED]
            ]
            if len(by_audience) > _NAMED:
                lines.append(f"... and {len(by_audience) - _NAMED:,} more audiences")
        if self.dead_letters:
            lines.append(f"dead letters: {self.dead_letters}")
        return lines

    def __str__(self) -> str:
        return "\n".join(self.lines())
