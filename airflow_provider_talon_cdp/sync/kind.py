"""What a mirror asks of the kind of thing that it keeps in step: members of audiences, or attributes of profiles."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Sequence
from typing import Any, Protocol

from airflow_provider_talon_cdp.exceptions import RejectedError
from airflow_provider_talon_cdp.sync.changes import Change, Rejection
from airflow_provider_talon_cdp.sync.diff import Member, PlanCounts
from airflow_provider_talon_cdp.sync.ledger import Ledger
from airflow_provider_talon_cdp.sync.push import Changes, Deliver


class Travelling(Changes, Protocol):
    """What one flight carries, change by change."""

    @property
    def changes(self) -> Sequence[Change]:
        """The changes in their order."""
        ...


class Comparison(Protocol):
    """One plan in the making: a source against a ledger."""

    def changes(
        self,
        records: Iterable[Any],
        known: Iterable[Member],
        uncertain: Iterable[Member],
        counts: PlanCounts,
        on_rejected: Callable[[Rejection], None],
        /,
    ) -> Iterable[Change]:
        """Return what must change, in the order of the ledger.

        Args:
            records: The source, sorted.
            known: What the ledger has, sorted.
            uncertain: What a request may have changed without an acknowledgement, sorted.
            counts: Kept up while this runs.
            on_rejected: Called for each record that cannot be sent.

        Raises:
            OutOfOrderError: The source is not sorted.
        """
        ...

    @property
    def names(self) -> Iterable[str]:
        """What the ledger must keep beside the plan; see ``Ledger.enforce``."""
        ...

    def batches(self, ledger: Ledger) -> Generator[Any, None, None]:
        """Yield the batches of the plan, once it is in force."""
        ...


class Kind(Protocol):
    """Members or attributes."""

    @property
    def in_request(self) -> int:
        """Changes that fit in one request."""
        ...

    @property
    def noun(self) -> str:
        """What its records are."""
        ...

    def sort(self, records: Iterable[Any]) -> Iterable[Any]:
        """Sort records on this worker's disk."""
        ...

    def compare(self, ledger: Ledger, /) -> Comparison:
        """Begin a plan."""
        ...

    def describe(self, counts: PlanCounts) -> str:
        """Say what a plan does."""
        ...

    def deliver(self, send: Any, max_rejected: int | None) -> Deliver[Any]:
        """Make a delivery of a sender, which does not give up before more than ``max_rejected`` records were refused."""
        ...

    def letter(self, change: Change, error: RejectedError, /) -> dict[str, Any]:
        """Write what a dead letter says about a refused change."""
        ...
