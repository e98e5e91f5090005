"""The share of a plan that one process pushes: some of its parts, or all."""

from __future__ import annotations

import logging
from bisect import bisect_right
from collections import Counter, defaultdict, deque
from collections.abc import Generator, Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import accumulate, groupby
from uuid import uuid4

from airflow_provider_talon_cdp.changes.change import Chunk
from airflow_provider_talon_cdp.exceptions import LedgerError
from airflow_provider_talon_cdp.ledger.format import Acks, Plan
from airflow_provider_talon_cdp.ledger.letters import DeadLetters
from airflow_provider_talon_cdp.ledger.lock import Lock
from airflow_provider_talon_cdp.ledger.outside import REQUEST_LASTS, NoteWriter, write_mark
from airflow_provider_talon_cdp.ledger.storage import Folder

log = logging.getLogger(__name__)


class Share:
    """The journal of one push.

    Args:
        folder: The ledger's folder.
        plan: The plan.
        known: Acknowledgements of earlier pushes, by part.
        lock: The lock of the ledger or of the part.
        letters: Gets the refused records.
        ahead: Batches that may be sent before the next note. If the run is killed, their changes are sent
            again.

    Attributes:
        unclear_before: Number of changes that run rules and may have been sent by a killed process. They have
            dead letters.
        refused_before: Members with a change that Talon.One refused in the run before.
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
        # Number of the first batch of each part, and at the end the number of all batches.
        self._part_starts = list(accumulate((-(-part.lines // plan.batch) for part in plan.parts), initial=0))
        self._lock = lock
        self.raise_if_lost = lock.raise_if_lost
        """Called before every attempt of a request; see ``Lock``."""
        self.letters = letters
        self._ahead = ahead
        self._known = known
        self._acks: defaultdict[int, Acks] = defaultdict(Acks)
        self._unwritten: set[int] = set()
        # Sent batches without an outcome, by number in the plan, and whether they run rules.
        self._in_flight: dict[int, bool] = {}
        # Only of a plan that runs rules: the part and the batches of each chunk in flight, by its number.
        self._batches_of: dict[int, tuple[int, Sequence[int]]] = {}
        # Times and numbers of the batches that landed since the lock was last confirmed.
        self._just_landed: deque[tuple[float, int]] = deque()
        # Ranges of unsettled batches: the number of the first one among the unsettled, and in the plan.
        self._range_starts: list[int] = []
        self._range_firsts: list[int] = []
        self.left = 0
        """Number of batches without an outcome before this push."""
        self.changes = 0
        """Number of changes in these batches."""
        self.unclear_before = 0
        self.refused_before: frozenset[tuple[str, str]] = frozenset()
        self._left_by_part: Counter[int] = Counter()
        for part, acks in known.items():
            first, end = self._part_starts[part : part + 2]
            for start, stop in acks.settled.gaps(end - first):
                self._range_starts.append(self.left)
                self._range_firsts.append(first + start)
                self.left += stop - start
                self._left_by_part[part] += stop - start
            lines = plan.parts[part].lines
            landed, *_, withheld = acks.counts(lines, plan.batch)
            self.changes += lines - landed - withheld

    def batches(self, *, in_order: bool = False) -> Generator[Chunk, None, None]:
        """Yield the chunks to send: batches without an outcome, in order.

        The batches of a plan that runs rules are single changes, and a chunk has several of them.

        Args:
            in_order: Whether the changes of a plan that runs rules keep their order. Otherwise those that run
                none wait for a full chunk.
        """
        if self._plan.together:
            yield from self._chunks_with_rules(in_order=in_order)
            return
        last = ""
        for part, acks in self._known.items():
            for number, chunk in enumerate(self._plan.batches(self._folder, part)):
                if number not in acks.landed:
                    # The plan is sorted by profile.
                    yield replace(chunk, disjoint_from_recent=chunk.ids[0] != last)
                    last = chunk.ids[-1]

    def _chunks_with_rules(self, *, in_order: bool) -> Generator[Chunk, None, None]:
        """Yield the changes of one profile that run rules, or changes of many profiles that run none."""
        size = self._plan.together
        number = 0

        def joined(part: int, batches: list[tuple[int, Chunk]]) -> Chunk:
            nonlocal number
            numbers, chunks = zip(*batches, strict=True)
            self._batches_of[number] = part, numbers
            number += 1
            return Chunk.joined(chunks)

        for part, acks in self._known.items():
            settled = acks.settled
            batches = enumerate(self._plan.batches(self._folder, part))
            left = (batch for batch in batches if batch[0] not in settled)
            in_bulk: list[tuple[int, Chunk]] = []
            for _, of_profile in groupby(left, key=lambda batch: batch[1].ids[0]):
                with_rules: list[tuple[int, Chunk]] = []
                for batch in of_profile:
                    (with_rules if batch[1].runs_rules else in_bulk).append(batch)
                if in_order and with_rules and in_bulk:
                    yield joined(part, in_bulk)
                    in_bulk = []
                for start in range(0, len(with_rules), size):
                    yield joined(part, with_rules[start : start + size])
                while len(in_bulk) >= size:
                    yield joined(part, in_bulk[:size])
                    del in_bulk[:size]
            if in_bulk:
                yield joined(part, in_bulk)

    def note_sending(self, number: int, positions: Iterable[int] | None = None) -> None:
        """Note, durably, that a chunk may be sent from now on, and with it the next ``ahead`` batches.

        Args:
            number: Number of the chunk, in the order of ``batches``.
            positions: Positions of the changes that are sent, of a plan that runs rules; None for all.

        Raises:
            LedgerError: Another run took over, so the chunk must not be sent.
        """
        self.raise_if_lost()
        part, batches = self._locate(number, positions)
        acks = self._acks[part]
        start, end = self._part_starts[part : part + 2]
        if batches[-1] >= acks.may_have_left:
            acks.may_have_left = min(batches[-1] + self._ahead, end - start)
            self._unwritten.add(part)
            self.flush()
            # The process may have been suspended meanwhile, and calls that run rules are not checked again.
            self.raise_if_lost()
        # Positions are given for changes that run rules only.
        self._in_flight.update(dict.fromkeys((start + batch for batch in batches), positions is not None))

    def landed(
        self,
        number: int,
        refused: Iterable[int] = (),
        skipped: Iterable[int] = (),
        unclear: Iterable[int] = (),
        left: Iterable[int] = (),
        *,
        had_unclear_attempt: bool = False,
    ) -> None:
        """Note the outcome of a chunk; ``flush`` makes it durable.

        Args:
            number: Number of the chunk, in the order of ``batches``.
            refused: Positions of changes that Talon.One refused, or that were not sent.
            skipped: Refused positions that were never sent.
            unclear: Positions of changes that run rules and got no clear answer. They have dead letters.
            left: Positions of changes that had no effect, of a plan that runs rules.
            had_unclear_attempt: Whether a refused change may have been made by an earlier attempt.

        Raises:
            LedgerError: Another run took over; the outcome is noted.
        """
        part, batches = self._locate(number)
        acks = self._acks[part]
        if self._plan.together:
            refused, skipped, unclear, left = set(refused), set(skipped), set(unclear), set(left)
            for at, batch in enumerate(batches):
                if at in left:
                    continue
                if at in unclear:
                    acks.withheld.add(batch)
                else:
                    acks.land(batch, [0] if at in refused else (), [0] if at in skipped else ())
                    if had_unclear_attempt and at in refused:
                        acks.unclear.add(batch)
            batches = [batch for at, batch in enumerate(batches) if at not in left]
            del self._batches_of[number]
        else:
            acks.land(batches[0], refused, skipped)
            if had_unclear_attempt:
                acks.unclear.add(batches[0])
        self._unwritten.add(part)
        now, start = self._lock.now(), self._part_starts[part]
        for batch in batches:
            self._in_flight.pop(start + batch, None)
            self._just_landed.append((now, start + batch))
        while self._just_landed and self._just_landed[0][0] < self._lock.confirmed:
            self._just_landed.popleft()
        self.raise_if_lost()

    def without_effect(self, number: int, positions: Iterable[int] | None = None) -> None:
        """Note that a chunk, or its changes at some positions, did not land and changed nothing."""
        part, batches = self._locate(number, positions)
        for batch in batches:
            self._in_flight.pop(self._part_starts[part] + batch, None)

    def suspect(self, audiences: Iterable[str]) -> None:
        """Record, until the next plan, that Talon.One may have lost the members of audiences."""
        # Not under this run's ID, under which the ledger may have noted others.
        write_mark("suspects", self._folder, self._plan.folder, uuid4().hex[:12], audiences)

    def flush(self) -> None:
        """Write all notes; dead letters first, so that no refusal is recorded without its letter.

        Raises:
            LedgerError: Another run took over. The notes are written nevertheless, and that run may read
                them.
        """
        self.letters.flush()
        for part in sorted(self._unwritten):
            acks = self._acks[part]
            acks.write(self._folder / self._plan.acks_of(part, self._lock.run))
            self._unwritten.discard(part)
            if len(acks.landed) + len(acks.withheld) == self._left_by_part[part]:
                # The part is complete. Its refusals may take much memory.
                del self._acks[part]
        # After the write: a run that takes over from now on reads it.
        self._lock.confirm()

    def end(self) -> None:
        """Make all notes durable, and withdraw those about batches that were not sent.

        Raises:
            LedgerError: Another run took over; see ``flush``.
        """
        for part, acks in self._acks.items():
            start, end = self._part_starts[part : part + 2]
            for number in sorted(self._in_flight):
                if start <= number < end:
                    (acks.withheld if self._in_flight[number] else acks.unclear).add(number - start)
            acks.may_have_left = 0
            self._unwritten.add(part)
        self.flush()

    def note_in_flight(self, chunks: Iterable[Chunk]) -> None:
        """Note what may have arrived after another run took over. That run's next plan sends it again.

        Args:
            chunks: The chunks in flight.
        """
        notes = NoteWriter(self._folder, self._lock.run, "", self._lock.clock)
        for chunk in chunks:
            notes.write(chunk)
        by_part: dict[int, set[int]] = {}
        for time, number in self._just_landed:
            if time >= self._lock.confirmed:
                part = bisect_right(self._part_starts, number) - 1
                by_part.setdefault(part, set()).add(number - self._part_starts[part])
        try:
            for part, batches in by_part.items():
                for batch, chunk in enumerate(self._plan.batches(self._folder, part)):
                    if batch in batches:
                        notes.write(chunk)
        except LedgerError as error:
            log.warning(
                "Changes that landed after another run took over cannot be noted for its next plan.\n%s",
                error,
            )
        notes.end(REQUEST_LASTS)

    def _locate(self, number: int, positions: Iterable[int] | None = None) -> tuple[int, Sequence[int]]:
        """Return the part of a chunk, and the numbers of its batches in that part."""
        if self._plan.together:
            part, batches = self._batches_of[number]
            return part, batches if positions is None else [batches[at] for at in sorted(positions)]
        at = bisect_right(self._range_starts, number) - 1
        in_plan = self._range_firsts[at] + number - self._range_starts[at]
        part = bisect_right(self._part_starts, in_plan) - 1
        return part, [in_plan - self._part_starts[part]]
