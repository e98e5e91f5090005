"""What a retry does with the plan that the try before it was sending."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Protocol

from airflow_provider_talon_cdp.sync.changes import Change
from airflow_provider_talon_cdp.sync.diff import Member, PlanCounts
from airflow_provider_talon_cdp.sync.report import SyncReport, Tally

_REFUSED = "refused by Talon.One in what an earlier try had left"


class Cursor(Protocol):
    """The version of the plan that a task is sending; it outlives a try of the task."""

    def get(self) -> int:
        """Return it, or 0."""
        ...

    def set(self, version: int) -> None:
        """Keep it; 0 forgets it."""
        ...


@dataclass(frozen=True)
class Earlier:
    """What became of the changes that an earlier try had left of its plan.

    Args:
        left: How many there were.
        pushed: The counts of their push.
        refused: Members of which Talon.One refused a change then.
    """

    left: int = 0
    pushed: Tally = field(default_factory=Tally)
    refused: Collection[Member] = ()

    def joined(self, report: SyncReport, again: Collection[Member] = ()) -> SyncReport:
        """Add the counts to those of the plan that was sent afterwards.

        Args:
            report: Of that plan.
            again: Refused members that it changed: the answer that counts is the one that they got then.
        """
        pushed = self.pushed
        refused = pushed.rejected.total() - len(again)
        return replace(
            report,
            resumed=self.left,
            sent=report.sent + pushed.sent,
            duplicate=report.duplicate + len(again),
            rejected=Counter(report.rejected) + Counter({_REFUSED: refused}),
            unsent=report.unsent + pushed.unsent + self.left - pushed.launched,
            requests=report.requests + pushed.requests,
            retries=report.retries + pushed.retries,
            throttled=report.throttled + pushed.throttled,
        )


def counted(changes: Iterable[Change], counts: PlanCounts) -> Iterator[Change]:
    """Yield changes and count them."""
    for change in changes:
        (counts.additions if change.action == "add" else counts.removals)[str(change.audience_id)] += 1
        yield change
