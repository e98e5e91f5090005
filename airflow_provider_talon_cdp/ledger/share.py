"""A share of a plan: some of its parts, or all, while one process pushes them."""

from __future__ import annotations

import logging
from bisect import bisect_right
from collections import Counter, deque
from collections.abc import Generator, Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import groupby
from typing import Any

from airflow_provider_talon_cdp.changes.change import Chunk
from airflow_provider_talon_cdp.exceptions import LedgerError
from airflow_provider_talon_cdp.ledger.format import Acks, Plan
from airflow_provider_talon_cdp.ledger.letters import DeadLetters
from airflow_provider_talon_cdp.ledger.lock import Lock
from airflow_provider_talon_cdp.ledger.outside import UNTIL_LOST, NoteWriter, write_suspects
from airflow_provider_talon_cdp.ledger.storage import Folder

log = logging.getLogger(__name__)


class Share:
    """The journal of one push.

    Batches that have landed already are left out; the rest are numbered from 0.

    Args:
        folder: The ledger's folder.
        plan: The plan.
        known: What was known before of each part.
        lock: That of the ledger or of the part.
        letters: Where refused records go.
        ahead: Batches that may leave before the next note: of a killed run, their changes are sent again.

    Attributes:
        abandoned: Changes that run rules and may have been sent by a process that was killed; they are not
            left.
        refused_before: Members of which Talon.One refused a change in the run before.
    """

    def __init__(
        self,
        folder: Folder,
        plan: Plan,
        known: Mapping[int, Acks],
        lock: Lock,
        letters: DeadLetters,
        ahead: int,
    ) -> None:
        self._folder = folder
        self._plan = plan
        self._part_starts = plan.part_starts
        self._lock = lock
        self._letters = letters
        self._ahead = ahead
        self._known = known
        self._acks: dict[int, Acks] = {}
        self._unwritten: set[int] = set()
        # Batches that left and have no outcome, as numbers in the plan, with whether they run rules.
        self._flying: dict[int, bool] = {}
        # Of a plan that runs rules, the part and the changes of what travels together.
        self._carried: dict[int, tuple[int, Sequence[int]]] = {}
        # Those that landed since the lock was last confirmed, with the time.
        self._landed: deque[tuple[float, int]] = deque()
        # Ranges of batches that are left, by the number of the first of each in this push and in the plan.
        self._starts: list[int] = []
        self._firsts: list[int] = []
        self.left = 0
        """How many batches are left."""
        self.changes = 0
        """How many changes these have."""
        self.abandoned = 0
        self.refused_before: frozenset[tuple[str, str]] = frozenset()
        self._left_of: Counter[int] = Counter()
        for part in known:
            first, end = self._part_starts[part : part + 2]
            for gap, stop in known[part].settled.gaps(end - first):
                self._starts.append(self.left)
                self._firsts.append(first + gap)
                self.left += stop - gap
                self._left_of[part] += stop - gap
            lines = plan.parts[part].lines
            landed, *_, withheld = known[part].counts(lines, plan.batch)
            self.changes += lines - landed - withheld

    def batches(self) -> Generator[Chunk, None, None]:
        """Yield the batches that are left, in order; of a plan that runs rules, what travels together."""
        if self._plan.together:
            yield from self._requests()
            return
        last = ""
        for part, acks in self._known.items():
            for number, chunk in enumerate(self._plan.batches(self._folder, part)):
                if number not in acks.landed:
                    # The plan is sorted by profile.
                    yield replace(chunk, disjoint_from_recent=chunk.ids[0] != last)
                    last = chunk.ids[-1]

    def _requests(self) -> Generator[Chunk, None, None]:
        """Yield the changes of a profile that run rules, and others as many together as the plan says."""
        at_most = self._plan.together
        number = 0

        def request(part: int, some: list[tuple[int, Chunk]]) -> Chunk:
            nonlocal number
            numbers, chunks = zip(*some, strict=True)
            self._carried[number] = part, numbers
            number += 1
            return Chunk.joined(chunks)

        for part, acks in self._known.items():
            settled = acks.settled
            batches = enumerate(self._plan.batches(self._folder, part))
            left = (batch for batch in batches if batch[0] not in settled)
            silent: list[tuple[int, Chunk]] = []
            for _, of_profile in groupby(left, key=lambda batch: batch[1].ids[0]):
                loud: list[tuple[int, Chunk]] = []
                for batch in of_profile:
                    (loud if batch[1].runs_rules else silent).append(batch)
                for start in range(0, len(loud), at_most):
                    yield request(part, loud[start : start + at_most])
                while len(silent) >= at_most:
                    yield request(part, silent[:at_most])
                    del silent[:at_most]
            if silent:
                yield request(part, silent)

    def leaving(self, n: int, positions: Iterable[int] | None = None) -> None:
        """Note, durably, that a batch may leave now; some that follow it are noted with it.

        Args:
            n: Number of the batch.
            positions: Of what leaves in it, of a plan that runs rules; None for all.

        Raises:
            LedgerError: Another run took over, so it must not leave.
        """
        self.refuse_lost()
        part, numbers = self._place(n, positions)
        acks = self._acks_of(part)
        if numbers[-1] >= acks.may_have_left:
            first, end = self._part_starts[part : part + 2]
            acks.may_have_left = min(numbers[-1] + self._ahead, end - first)
            self._unwritten.add(part)
            self.flush()
        # Only what runs rules says which part of it leaves.
        start = self._part_starts[part]
        self._flying.update(dict.fromkeys((start + each for each in numbers), positions is not None))

    def landed(
        self,
        n: int,
        refused: Iterable[int] = (),
        skipped: Iterable[int] = (),
        unclear: Iterable[int] = (),
        left: Iterable[int] = (),
    ) -> None:
        """Note that the outcome of a batch is known; ``flush`` makes it durable.

        Args:
            n: Number of the batch.
            refused: Positions in it of changes that Talon.One refused or was not asked about.
            skipped: Refused positions that were never sent.
            unclear: Positions of changes that run rules and got no clear answer, which have a letter.
            left: Positions of changes that had no effect, of a plan that runs rules.

        Raises:
            LedgerError: Another run took over; the outcome is noted.
        """
        part, numbers = self._place(n)
        acks = self._acks_of(part)
        if self._plan.together:
            refused, skipped, unclear, left = set(refused), set(skipped), set(unclear), set(left)
            for at, number in enumerate(numbers):
                if at in left:
                    continue
                if at in unclear:
                    acks.withheld.add(number)
                else:
                    acks.land(number, [0] if at in refused else (), [0] if at in skipped else ())
            numbers = [number for at, number in enumerate(numbers) if at not in left]
            del self._carried[n]
        else:
            acks.land(numbers[0], refused, skipped)
        self._unwritten.add(part)
        now, start = self._lock.now(), self._part_starts[part]
        for number in numbers:
            self._flying.pop(start + number, None)
            self._landed.append((now, start + number))
        while self._landed and self._landed[0][0] < self._lock.confirmed:
            self._landed.popleft()
        self.refuse_lost()

    def without_effect(self, n: int, positions: Iterable[int] | None = None) -> None:
        """Note that a batch, or what is at some positions of it, did not land and surely changed nothing."""
        part, numbers = self._place(n, positions)
        for number in numbers:
            self._flying.pop(self._part_starts[part] + number, None)

    def reject(self, letter: Mapping[str, Any]) -> None:
        """Note a dead letter; ``flush`` makes it durable."""
        self._letters.add(letter)

    def suspect(self, audiences: Iterable[str]) -> None:
        """Note, durably, that Talon.One may have lost audiences; the next plan in force voids it."""
        write_suspects(self._folder, self._plan.folder, self._lock.run, audiences)

    def flush(self) -> None:
        """Write what was noted; dead letters first, so that no refusal is recorded without its letter.

        Raises:
            LedgerError: Another run took over; what was noted is written all the same, and that run may read
                it.
        """
        self._letters.flush()
        for part in sorted(self._unwritten):
            acks = self._acks[part]
            acks.write(self._folder / self._plan.acks_of(part, self._lock.run))
            self._unwritten.discard(part)
            if len(acks.landed) + len(acks.withheld) == self._left_of[part]:
                # Done with: what was refused may be a lot.
                del self._acks[part]
        # After the note and not before it: whoever takes over from now on will read it.
        self._lock.confirm()

    def end(self) -> None:
        """Make all notes durable, and take back what was noted ahead and never left.

        Raises:
            LedgerError: As ``flush`` does.
        """
        for part, acks in self._acks.items():
            first, end = self._part_starts[part : part + 2]
            for each in sorted(self._flying):
                if first <= each < end:
                    (acks.withheld if self._flying[each] else acks.unclear).add(each - first)
            acks.may_have_left = 0
            self._unwritten.add(part)
        self.flush()

    def refuse_lost(self) -> None:
        """Stop a run that may have lost its lock; call it before every attempt of a request.

        Raises:
            LedgerError: It has lost the lock, or could not confirm it for too long.
        """
        self._lock.refuse_lost()

    def leave_behind(self, chunks: Iterable[Chunk]) -> None:
        """Tell the run that took over what may have arrived after it looked: its next plan sends it again.

        Args:
            chunks: What is in flight.
        """
        notes = NoteWriter(self._folder, self._lock.run, "", self._lock.clock)
        for chunk in chunks:
            notes.write(chunk)
        by_part: dict[int, set[int]] = {}
        for landed, number in self._landed:
            if landed < self._lock.confirmed:
                continue
            part = bisect_right(self._part_starts, number) - 1
            by_part.setdefault(part, set()).add(number - self._part_starts[part])
        try:
            for part, numbers in by_part.items():
                for number, chunk in enumerate(self._plan.batches(self._folder, part)):
                    if number in numbers:
                        notes.write(chunk)
        except LedgerError as error:
            log.warning(
                "What landed after another run took over cannot be noted for its next plan:\n%s", error
            )
        notes.end(UNTIL_LOST)

    @property
    def dead_letters(self) -> str | None:
        """Folder of the dead letters of this process, or None when there are none."""
        return self._letters.place

    def _acks_of(self, part: int) -> Acks:
        return self._acks.setdefault(part, Acks())

    def _place(self, n: int, positions: Iterable[int] | None = None) -> tuple[int, Sequence[int]]:
        """Say in which part a batch is, and its number there, or those of the changes in a request."""
        if self._plan.together:
            part, numbers = self._carried[n]
            return part, numbers if positions is None else [numbers[each] for each in sorted(positions)]
        at = bisect_right(self._starts, n) - 1
        number = self._firsts[at] + n - self._starts[at]
        part = bisect_right(self._part_starts, number) - 1
        return part, [number - self._part_starts[part]]
