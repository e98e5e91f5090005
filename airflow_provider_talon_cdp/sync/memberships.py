"""Members of audiences, as what a mirror keeps in step."""

from __future__ import annotations

from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from airflow_provider_talon_cdp.contract import MAX_CHANGES
from airflow_provider_talon_cdp.exceptions import RejectedError
from airflow_provider_talon_cdp.sync.changes import Batch, Change, Record, Rejection
from airflow_provider_talon_cdp.sync.delivery import Sender, halving
from airflow_provider_talon_cdp.sync.diff import Member, PlanCounts, diff, members
from airflow_provider_talon_cdp.sync.external_sort import externally_sorted
from airflow_provider_talon_cdp.sync.ledger import Ledger
from airflow_provider_talon_cdp.sync.push import Deliver


@dataclass(frozen=True)
class Memberships:
    """Members of audiences.

    Args:
        managed: Audiences that may change; None for all of the ledger and the source.
        sends_all: Send members that are known too.
    """

    managed: Collection[str] | None = None
    sends_all: bool = False

    in_request: ClassVar[int] = MAX_CHANGES
    noun: ClassVar[str] = "records"
    names: ClassVar[Sequence[str]] = ()

    def sort(self, records: Iterable[Record]) -> Iterator[Record]:
        """Sort records on this worker's disk."""
        return externally_sorted(records)

    def compare(self, _: Ledger, /) -> Memberships:
        """Begin a plan; it remembers nothing."""
        return self

    def changes(
        self,
        records: Iterable[Record],
        known: Iterable[Member],
        uncertain: Iterable[Member],
        counts: PlanCounts,
        on_rejected: Callable[[Rejection], None],
        /,
    ) -> Iterable[Change]:
        """Return what makes the audiences equal to the source."""
        wanted = members(records, counts, on_rejected=on_rejected)
        return diff(
            known, wanted, counts, uncertain=uncertain, managed=self.managed, sends_all=self.sends_all
        )

    def batches(self, ledger: Ledger) -> Generator[Batch, None, None]:
        """Yield the batches of the plan in force."""
        return ledger.batches()

    def describe(self, counts: PlanCounts) -> str:
        """Say what a plan does."""
        return (
            f"{counts.additions.total():,} to add, {counts.removals.total():,} to remove, {counts.unchanged:,} unchanged; the "
            f"ledger has {counts.known.total():,} members"
        )

    def deliver(self, send: Sender, max_rejected: int | None) -> Deliver[Batch]:
        """Send a batch in one request, and halve it when it is refused."""
        return halving(send, max_rejected, lets_audiences_go=True)

    def letter(self, change: Change, error: RejectedError, /) -> dict[str, Any]:
        """Write what a dead letter says about a refused change."""
        return {"audience_id": change.audience_id, "action": change.action, "reason": str(error)}
