"""A plan in force, or some parts of it, while one process pushes them."""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Generator, Iterable, Mapping
from typing import Any

from airflow_provider_talon_cdp.ledgers.acks import Acks
from airflow_provider_talon_cdp.ledgers.letters import DeadLetters
from airflow_provider_talon_cdp.ledgers.lock import Lock
from airflow_provider_talon_cdp.ledgers.plan import Plan, read_part
from airflow_provider_talon_cdp.ledgers.progress import Progress
from airflow_provider_talon_cdp.ledgers.storage import Folder, write_json
from airflow_provider_talon_cdp.sync.changes import Batch


class Pushing:
    """Some parts of a plan, and what this process finds out about them.

    Batches that have landed already are left out; the rest are numbered from 0.

    Args:
        folder: The ledger's folder.
        plan: The plan.
        known: What was known before of each of the parts.
        run: Tells this process from all others.
        lock: That of the ledger or of the part.
        letters: Where refused records go.
        ahead: Batches that may leave before the next note of it: a killed run's changes in them are sent again.
    """

    def __init__(
        self,
        folder: Folder,
        plan: Plan,
        known: Mapping[int, Acks],
        *,
        run: str,
        lock: Lock,
        letters: DeadLetters,
        ahead: int,
    ) -> None:
        self._folder = folder
        self._plan = plan
        self._part_starts = plan.firsts
        self._run = run
        self._lock = lock
        self._letters = letters
        self._ahead = ahead
        self._known = known
        self._acks: dict[int, Acks] = {}
        self._unwritten: set[int] = set()
        # Ranges of batches that are left, by the number of the first of each in this push and in the plan.
        self._starts: list[int] = []
        self._firsts: list[int] = []
        self.left = 0
        """How many batches are left."""
        self.changes = 0
        """How many changes these have."""
        self._left_of: Counter[int] = Counter()
        for part in known:
            first, end = self._part_starts[part : part + 2]
            for gap, stop in known[part].landed.gaps(end - first):
                self._starts.append(self.left)
                self._firsts.append(first + gap)
                self.left += stop - gap
                self._left_of[part] += stop - gap
            self.changes += Progress.of(plan.parts[part].lines, plan.batch, known[part]).open

    def batches(self) -> Generator[Batch, None, None]:
        """Yield the batches that are left, in order."""
        last = ""
        for part, acks in self._known.items():
            batches = read_part(self._folder, self._plan.parts[part], self._plan.batch)
            for number, columns in enumerate(batches):
                if number not in acks.landed:
                    # The plan is sorted by profile.
                    yield columns.batch(alone=columns.profiles[0] != last)
                    last = columns.profiles[-1]

    def leaving(self, batch: int) -> None:
        """Note, durably, that a batch may leave now; some that follow it are noted with it.

        Raises:
            LedgerError: Another run took over, so it must not leave.
        """
        self._lock.refuse_lost(look=False)
        part, number = self._place(batch)
        acks = self._acks_of(part)
        if number >= acks.may_have_left:
            first, end = self._part_starts[part : part + 2]
            acks.may_have_left = min(number + self._ahead, end - first)
            self._unwritten.add(part)
            self.flush()

    def landed(self, batch: int, refused: Iterable[int], skipped: Iterable[int] = ()) -> None:
        """Note that the fate of a batch is known; ``flush`` makes it durable."""
        part, number = self._place(batch)
        self._acks_of(part).land(number, refused, skipped)
        self._unwritten.add(part)
        self._lock.refuse_lost(look=False)

    def reject(self, record: Mapping[str, Any]) -> None:
        """Note a dead letter; ``flush`` makes it durable."""
        self._letters.add(record)

    def suspect(self, audiences: Iterable[str]) -> None:
        """Note, durably, that Talon.One may have lost the members of audiences; the next plan in force voids it."""
        write_suspects(self._folder, self._plan.folder, self._run, audiences)

    def flush(self) -> None:
        """Write what was noted; dead letters first, so that no refusal is recorded without its letter.

        Raises:
            LedgerError: Another run took over; all the same, what was noted is written, and that run may read it.
        """
        self._letters.flush()
        for part in sorted(self._unwritten):
            acks = self._acks[part]
            acks.write(self._folder / self._plan.acks_of(part, self._run))
            self._unwritten.discard(part)
            if len(acks.landed) == self._left_of[part]:
                # Done with: what was refused may be a lot.
                del self._acks[part]
        # After the note and not before it: whoever takes over from now on will read it.
        self._lock.refuse_lost()

    @property
    def dead_letters(self) -> str | None:
        """Folder of the dead letters of this process, or None when there are none."""
        return self._letters.place

    def _acks_of(self, part: int) -> Acks:
        return self._acks.setdefault(part, Acks())

    def _place(self, batch: int) -> tuple[int, int]:
        """Say in which part a batch is, and its number there."""
        at = bisect_right(self._starts, batch) - 1
        number = self._firsts[at] + batch - self._starts[at]
        part = bisect_right(self._part_starts, number) - 1
        return part, number - self._part_starts[part]


def write_suspects(folder: Folder, plan: str, run: str, audiences: Iterable[str]) -> None:
    """Note beside a plan that Talon.One may have lost the members of audiences."""
    write_json(folder / plan / f"suspects-{run}.json", sorted(audiences))
