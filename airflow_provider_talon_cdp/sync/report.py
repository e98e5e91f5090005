"""What a sync did, in counts that balance."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Tally:
    """Counts while a sync runs. Each record that is read ends in exactly one of the other four.

    Args:
        read: Records taken from the source.
        sent: Records that Talon.One acknowledged.
        duplicate: Records equal to one that was waiting or in flight, so not sent again.
        rejected: Records that cannot be sent or that Talon.One refused, by reason.
        unsent: Records without an acknowledgement when the sync stopped early; a part of them may have arrived.
    """

    read: int = 0
    sent: int = 0
    duplicate: int = 0
    rejected: Counter[str] = field(default_factory=Counter)
    unsent: int = 0


@dataclass(frozen=True, kw_only=True)
class SyncReport:
    """The counts of a sync that has ended; see ``Tally`` for the first five.

    Args:
        read: Records taken from the source.
        sent: Records acknowledged by Talon.One.
        duplicate: Records folded into an equal one.
        rejected: Records refused, by reason. No reason holds an ID or a value.
        unsent: Records without an acknowledgement; 0 in a sync that ran to its end.
        requests: HTTP requests that left.
        retries: Those of them that repeated a failed one.
        throttled: Answers 429.
        seconds: Wall-clock duration.
    """

    read: int
    sent: int
    duplicate: int
    rejected: Mapping[str, int]
    unsent: int
    requests: int
    retries: int
    throttled: int
    seconds: float

    @property
    def rejected_total(self) -> int:
        """Records refused, whatever the reason."""
        return sum(self.rejected.values())

    @property
    def balances(self) -> bool:
        """Whether every record that was read is accounted for."""
        return self.read == self.sent + self.duplicate + self.rejected_total + self.unsent

    def summary(self) -> dict[str, Any]:
        """The report as a small JSON object, fit for XCom."""
        return {
            "read": self.read,
            "sent": self.sent,
            "duplicate": self.duplicate,
            "rejected": dict(self.rejected),
            "unsent": self.unsent,
            "requests": self.requests,
            "retries": self.retries,
            "throttled": self.throttled,
            "seconds": round(self.seconds, 3),
        }

    def __str__(self) -> str:
        refused = "".join(f"; {count:,} x {reason}" for reason, count in sorted(self.rejected.items()))
        return (
            f"{self.read:,} read = {self.sent:,} sent + {self.duplicate:,} duplicate + {self.rejected_total:,} rejected "
            f"+ {self.unsent:,} unsent, in {self.requests:,} requests ({self.retries:,} retries, "
            f"{self.throttled:,} throttled) and {self.seconds:.1f} s{refused}"
        )
