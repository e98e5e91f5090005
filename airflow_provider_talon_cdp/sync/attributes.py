"""Attributes of profiles, as what a mirror keeps in step."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

from airflow_provider_talon_cdp.exceptions import RejectedError
from airflow_provider_talon_cdp.sync.changes import Batch, Change, Rejection
from airflow_provider_talon_cdp.sync.diff import Member, PlanCounts
from airflow_provider_talon_cdp.sync.fingerprints import Names
from airflow_provider_talon_cdp.sync.ledger import Ledger
from airflow_provider_talon_cdp.sync.profile_diff import Bodies, diff_profiles
from airflow_provider_talon_cdp.sync.profile_push import (
    ProfileBatch,
    ProfileSender,
    one_by_one,
    profile_batches,
    reread,
)
from airflow_provider_talon_cdp.sync.profiles import OnDuplicate, Profile, one_each, sorted_on_disk
from airflow_provider_talon_cdp.sync.push import Deliver
from airflow_provider_talon_cdp.sync.reasons import reason_of


@dataclass(frozen=True, kw_only=True)
class Attributes:
    """Attributes of profiles.

    Args:
        sends_all: Send the profiles that are as they were too.
        clears: Take the attributes that were ever sent from profiles that the source does not have.
        partial: Whether Talon.One is told to ignore unknown attributes.
        on_duplicate: When a profile has several rows: ``error`` or ``last``.
        give_up_after: See ``one_by_one``.
    """

    sends_all: bool = False
    clears: bool = False
    partial: bool = False
    on_duplicate: OnDuplicate = "error"
    give_up_after: int | None = 50

    in_request: ClassVar[int] = 1
    noun: ClassVar[str] = "profiles"

    def sort(self, records: Iterable[Profile | Rejection]) -> Iterator[Profile | Rejection]:
        """Sort records on this worker's disk."""
        return sorted_on_disk(records)

    def compare(self, ledger: Ledger, /) -> _Comparison:
        """Begin a plan."""
        return _Comparison(self, Names(ledger.names))

    def reread(
        self,
        batches: Generator[Batch, None, None],
        records: Iterable[Profile | Rejection],
        names: Iterable[str],
    ) -> Generator[ProfileBatch, None, None]:
        """Find the attributes of a plan that another process made, in the source as it is now.

        Args:
            batches: Of the plan, or of parts of it.
            records: The source; it is sorted on this worker's disk.
            names: Attribute names that the ledger has beside the plan.
        """
        # What cannot be sent has been counted and buried by the process that planned.
        profiles = one_each(self.sort(records), PlanCounts(), on_duplicate=self.on_duplicate)
        return reread(batches, profiles, Names(names))

    def describe(self, counts: PlanCounts) -> str:
        """Say what a plan does."""
        return (
            f"{counts.additions.total():,} profiles to send, {counts.removals.total():,} to clear, {counts.unchanged:,} "
            f"unchanged; the ledger has {counts.known.total():,} profiles"
        )

    def deliver(self, send: ProfileSender, max_rejected: int | None) -> Deliver[ProfileBatch]:
        """Send one profile after another."""
        return one_by_one(send, self.give_up_after, max_rejected)

    def letter(self, _: Change, error: RejectedError, /) -> dict[str, Any]:
        """Write what a dead letter says about a refused profile."""
        return {"reason": reason_of(error)}


class _Comparison:
    """A plan, and what it will send."""

    def __init__(self, how: Attributes, names: Names) -> None:
        self.names = names
        self._how = how
        self._bodies = Bodies()

    def changes(
        self,
        records: Iterable[Profile | Rejection],
        known: Iterable[Member],
        # What is doubtful stands in a ledger of profiles itself.
        _: Iterable[Member],
        counts: PlanCounts,
        on_rejected: Callable[[Rejection], None],
        /,
    ) -> Iterator[Change]:
        return diff_profiles(
            known,
            one_each(records, counts, on_duplicate=self._how.on_duplicate, on_rejected=on_rejected),
            counts,
            names=self.names,
            write=self._bodies.write,
            sends_all=self._how.sends_all,
            clears=self._how.clears,
            partial=self._how.partial,
        )

    def batches(self, ledger: Ledger) -> Generator[ProfileBatch, None, None]:
        return profile_batches(ledger.changes(), self._bodies)
