"""What the engine asks of a ledger: the memory of what Talon.One acknowledged, since its API reads nothing back."""

from __future__ import annotations

from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

from airflow_provider_talon_cdp.sync.changes import Batch, Change
from airflow_provider_talon_cdp.sync.diff import Member

Planner: TypeAlias = Callable[[Iterable[Member], Iterable[Member]], Iterable[Change]]
"""Makes a plan of the known and the uncertain members."""


@dataclass(frozen=True)
class StagedPlan:
    """A version of the ledger whose files are written and that is not in force yet.

    Args:
        version: Its number.
        folder: Name of the folder of its files.
        members: The file of members; None for no members.
        since: Plans whose acknowledged changes come on top of these members, before this plan.
        parts: The files of the plan, in order.
    """

    version: int
    folder: str
    members: Any
    since: tuple[Any, ...]
    parts: tuple[Any, ...]


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of a plan that several processes pushed.

    Args:
        changes: How many it had.
        acknowledged: Those that Talon.One took.
        refused: Those that Talon.One refused or was not asked about; with the ones before, they are all.
        skipped: Those of these that it was not asked about.
        dead_letters: Where those are and the records that the plan left out, or None when there are none.
    """

    changes: int
    acknowledged: int
    refused: int
    skipped: int
    dead_letters: str | None


class Ledger(Protocol):
    """One audience, or the audiences of one sync, on one deployment behind one API base."""

    @property
    def place(self) -> str:
        """Where it is."""
        ...

    @property
    def version(self) -> int:
        """Number of the plan in force; 0 before the first one."""
        ...

    def locked(self, owner: str) -> AbstractContextManager[None]:
        """Keep other runs out. The same owner takes over from itself, as a retry does from a killed try."""
        ...

    def load(self) -> None:
        """Read the state without keeping others out; for looking on only."""
        ...

    def known(self) -> Iterable[Member]:
        """Members that Talon.One acknowledged, sorted."""
        ...

    def uncertain(self) -> Iterator[Member]:
        """Memberships that a request may have changed without an acknowledgement, sorted."""
        ...

    def suspect(self, audiences: Iterable[str]) -> None:
        """Note, durably, that Talon.One may have lost the members of audiences; the next plan in force voids it."""
        ...

    def trust(self, audiences: Iterable[str]) -> None:
        """Take back what this run noted of audiences."""
        ...

    @property
    def suspected(self) -> Collection[str]:
        """Audiences of which that was noted since the plan in force."""
        ...

    def unacknowledged(self) -> Iterator[Change]:
        """Changes of the plan in force whose fate is not recorded, sorted."""
        ...

    def stage(self, plan: Planner) -> StagedPlan:
        """Write the plan that a function makes, without putting it in force.

        Args:
            plan: Known and uncertain members to changes, all sorted and streamed.
        """
        ...

    def discard(self, staged: StagedPlan) -> None:
        """Forget a staged plan."""
        ...

    @property
    def names(self) -> Sequence[str]:
        """Names that were given to ``enforce`` for the plan in force."""
        ...

    def enforce(self, staged: StagedPlan, *, names: Iterable[str] = (), handed_over: bool = False) -> None:
        """Put a staged plan in force; from here on a crash resumes it.

        Args:
            staged: The plan.
            names: Names that its changes refer to by number: those of before, and after them new ones.
            handed_over: Whether other processes push it, so that the ledger stays in use when this one ends.
        """
        ...

    def changes(self) -> Generator[Change, None, None]:
        """All changes of the plan in force, in their order."""
        ...

    def batches(self) -> Generator[Batch, None, None]:
        """Batches of the plan in force whose fate is not recorded, in order, as they travel; numbered from 0."""
        ...

    def leaving(self, batch: int) -> None:
        """Note, durably, that a batch may leave now, before it does."""
        ...

    def landed(self, batch: int, refused: Iterable[int], skipped: Iterable[int] = ()) -> None:
        """Note that the fate of a batch is known.

        Args:
            batch: Number of the batch.
            refused: Positions in the batch of changes that Talon.One refused or was not asked about.
            skipped: Those of them that it was not asked about.
        """
        ...

    def reject(self, record: dict[str, Any]) -> None:
        """Put a record into the dead letters."""
        ...

    def flush(self) -> None:
        """Make all notes durable."""
        ...

    @property
    def dead_letters(self) -> str | None:
        """Where the dead letters of this run are, or None when there are none."""
        ...
