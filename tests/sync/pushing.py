"""A push with a journal in memory."""

from __future__ import annotations

import itertools
from collections import Counter

from airflow_provider_talon_cdp.changes.change import Chunk
from airflow_provider_talon_cdp.exceptions import LedgerError, NotFoundError, RejectedError
from airflow_provider_talon_cdp.sync.push import Limits, Push
from airflow_provider_talon_cdp.sync.report import Report
from tests.sync.fakes import opened


class Plain:
    """The simplest kind: a chunk is a request, and it is refused whole."""

    label = None

    async def deliver(self, flight, sender):
        try:
            await sender(flight.chunk)
        except NotFoundError as error:
            error.audiences = [flight.chunk.keys]
            raise
        except RejectedError as error:
            for position in range(len(flight.chunk)):
                flight.refused(position, error, f"refused ({error.status})")
        else:
            flight.sent(flight.chunk)

    def reason(self, error):
        return str(error)


class _Letters(list):
    add = list.append
    place = None


class NotedJournal:
    """A journal in memory, which checks that notes come in the order that it is promised.

    Args:
        chunks: What is to be sent.
    """

    def __init__(self, chunks=()):
        self.chunks = list(chunks)
        self.changes = sum(map(len, self.chunks))
        self.left = []
        self.called = []
        self.outcomes = {}
        self.harmless = []
        self.unclear = []
        self.doubtful = []
        self.letters = _Letters()
        self.suspected = []
        self.behind = None
        self.ends = 0
        self.flushes = 0
        self.lost = False

    def note_sending(self, number, positions=None):
        self.raise_if_lost()
        if positions is None:
            # What runs rules says so itself, whenever it leaves.
            assert number == len(self.left) + sum(chunk.runs_rules for chunk in self.chunks[:number])
        (self.left if positions is None else self.called).append(number)

    def landed(self, number, refused=(), skipped=(), unclear=(), left=(), *, had_unclear_attempt=False):
        assert number in self.left + self.called
        assert number not in self.outcomes
        self.outcomes[number] = list(refused), list(skipped)
        self.unclear += [(number, position) for position in unclear]
        self.doubtful += [number] if had_unclear_attempt else []
        assert not {*left} & {*refused, *unclear}

    def without_effect(self, number, positions=None):
        assert number in self.left + self.called
        assert number not in self.outcomes
        self.harmless.append(number)

    def suspect(self, audiences):
        self.suspected += audiences

    def flush(self):
        self.flushes += 1

    def end(self):
        self.ends += 1
        self.raise_if_lost()

    def raise_if_lost(self):
        if self.lost:
            raise LedgerError("Another run took over.")

    def note_in_flight(self, chunks):
        assert self.behind is None
        self.behind = list(chunks)


def push(journal, talon, kind, *, stream=None, counts=None, **limits):
    """Send the chunks of a journal, and return the counts, which balance whatever happens.

    Args:
        journal: A ``NotedJournal``.
        talon: What takes requests.
        kind: How they are sent.
        stream: Where the chunks come from; None for the journal's.
        counts: Where to count; for tests that end in an error.
        limits: As in ``Limits``.
    """
    counts = Report() if counts is None else counts
    chunks = (chunk for chunk in journal.chunks) if stream is None else stream
    try:
        Push(kind, journal, counts, Limits(**limits)).run(chunks, lambda: opened(talon))
    finally:
        assert journal.ends == 1
        assert journal.changes == counts.sent + counts.rejected.total() + counts.unclear + counts.unsent
        assert (counts.requests, counts.retries) == (talon.requests, talon.retries)
        assert not getattr(talon, "in_flight", Counter()).total()
        refused = len(journal.letters) - counts.unclear
        assert counts.rejected.total() == refused
        noted = sum(len(positions) for positions, _ in journal.outcomes.values())
        assert noted == refused or len(journal.outcomes) < len(journal.left + journal.called)
    return counts


class Endless(NotedJournal):
    """The journal of a push of one member after another."""

    def __init__(self):
        super().__init__()
        self.begun = self.closed = 0

    def stream(self):
        self.begun += 1
        try:
            for number in itertools.count():
                self.changes += 1
                yield Chunk([str(number)], "vip")
        finally:
            self.closed += 1


def send(talon, counts=None, journal=None):
    """Push until something ends it."""
    journal = journal or Endless()
    try:
        return push(journal, talon, Plain(), stream=journal.stream(), counts=counts, in_flight=8)
    finally:
        assert journal.closed == journal.begun
