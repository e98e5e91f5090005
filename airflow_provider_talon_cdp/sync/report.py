"""What a sync did, in counts that balance."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass
class Tally:
    """Counts of a push while it runs. Each change that was launched ends in exactly one of the other three.

    Args:
        launched: Changes in the batches that were to be sent.
        sent: Changes that Talon.One acknowledged.
        rejected: Changes that Talon.One refused, by reason.
        unsent: Changes without an acknowledgement when the push stopped early; a part of them may have arrived.
        requests: HTTP requests that left.
        retries: Those of them that repeated a failed one.
        throttled: Answers 429.
    """

    launched: int = 0
    sent: int = 0
    rejected: Counter[str] = field(default_factory=Counter)
    unsent: int = 0
    requests: int = 0
    retries: int = 0
    throttled: int = 0


@dataclass(frozen=True, kw_only=True)
class SyncReport:
    """The counts of a sync that has ended.

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
        unchanged: In a mirror, records that the ledger has already.
        removals: In a mirror, members that the ledger has and the source has not; they are sent, but were not read.
        resumed: In the retry of a mirror, changes that the try before it had left of its plan; the first to be sent.
        dead_letters: Folder of the rejected records, or None.
        ledger_version: Version of the ledger after a mirror, or None.
        verdict: What the guard says to a dry run, or None.
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
    unchanged: int = 0
    removals: int = 0
    resumed: int = 0
    dead_letters: str | None = None
    ledger_version: int | None = None
    verdict: str | None = None

    @property
    def rejected_total(self) -> int:
        """Records refused, whatever the reason."""
        return sum(self.rejected.values())

    @property
    def total(self) -> int:
        """Records that were read, members to remove and changes that an earlier try had left."""
        return self.read + self.removals + self.resumed

    @property
    def balances(self) -> bool:
        """Whether each of all of them is accounted for."""
        return self.total == self.unchanged + self.sent + self.duplicate + self.rejected_total + self.unsent

    def summary(self) -> dict[str, Any]:
        """The report as a small JSON object, fit for XCom."""
        return asdict(self) | {"rejected": dict(self.rejected), "seconds": round(self.seconds, 3)}

    def __str__(self) -> str:
        refused = "".join(f"; {count:,} x {reason}" for reason, count in sorted(self.rejected.items()))
        removals = f" + {self.removals:,} to remove" if self.removals else ""
        resumed = f" + {self.resumed:,} resumed" if self.resumed else ""
        unchanged = f"{self.unchanged:,} unchanged + " if self.unchanged else ""
        return (
            f"{self.read:,} read{removals}{resumed} = {unchanged}{self.sent:,} sent + {self.duplicate:,} duplicate + "
            f"{self.rejected_total:,} rejected + {self.unsent:,} unsent, in {self.requests:,} requests "
            f"({self.retries:,} retries, {self.throttled:,} throttled) and {self.seconds:.1f} s{refused}"
            f"{f'; dead letters in {self.dead_letters}' if self.dead_letters else ''}"
        )
