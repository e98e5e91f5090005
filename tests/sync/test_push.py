"""The one door to sending, with the simplest kind of changes and a journal that checks what it is told."""

from __future__ import annotations

import asyncio
import errno
import itertools
import logging
import os
import re
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_provider_talon_cdp.changes.change import Change, Chunk
from airflow_provider_talon_cdp.changes.spool import Spool
from airflow_provider_talon_cdp.exceptions import (
    AuthenticationError,
    LedgerError,
    LedgerUnavailableError,
    NotFoundError,
    RejectedError,
    TransientError,
    UnclearError,
    UnexpectedAnswerError,
)
from airflow_provider_talon_cdp.sync import push as module
from airflow_provider_talon_cdp.sync.members import Members
from airflow_provider_talon_cdp.sync.report import Report
from tests.sync.fakes import FakeTalon, StuckTalon, adds, error
from tests.sync.pushing import NotedJournal, Plain, push


def singles(number, audience="vip"):
    return [adds(str(each), audience=audience) for each in range(number)]


def run(chunks, talon=None, **options):
    journal = NotedJournal(chunks)
    return push(journal, talon or FakeTalon(), Plain(), **options), journal


def test_everything_arrives_and_every_chunk_has_an_outcome():
    talon = FakeTalon()
    changes = [Change("a", "vip", "remove"), Change("b", "gold", "add", uncertain=True)]
    talon.members = {("a", "vip")}
    counts, journal = run([*singles(300), Chunk.of(changes)], talon)
    assert len(talon.members) == 301
    assert (counts.added, counts.removed) == ({"vip": 300, "gold": 1}, {"vip": 1})
    assert (counts.requests, counts.unsent) == (301, 0)
    assert journal.outcomes == {number: ([], []) for number in range(301)}


def test_nothing_to_send_sends_nothing():
    counts, journal = run([])
    assert counts == Report(seconds=counts.seconds)
    assert not journal.left


def test_requests_in_flight_are_bounded():
    talon = FakeTalon()
    talon.pause = 0.002
    run(singles(60), talon, in_flight=3)
    assert talon.most_in_flight == 3


def test_nothing_leaves_before_it_is_noted_and_what_was_refused_is_in_the_letters():
    class Late(NotedJournal):
        def note_sending(self, number):
            assert talon.requests <= number
            super().note_sending(number)

    talon = FakeTalon(bad={"3", "8"})
    journal = Late(singles(10))
    counts = push(journal, talon, Plain())
    assert counts.rejected == {"refused (400)": 2}
    assert {number: at for number, (at, _) in journal.outcomes.items() if at} == {3: [0], 8: [0]}
    assert {number: at for number, (_, at) in journal.outcomes.items() if at} == {}
    letters = sorted(journal.letters, key=lambda letter: letter["profile_id"])
    assert [letter.pop("time")[:2] for letter in letters] == ["20", "20"]
    assert letters == [
        {
            "profile_id": each,
            "audience_id": "vip",
            "action": "add",
            "reason": "bad",
            "status": 400,
            "request_uuid": "uuid-1",
        }
        for each in "38"
    ]


def test_the_first_refusal_of_a_reason_is_in_the_log(caplog):
    run(singles(10), FakeTalon(bad={"3", "8"}))
    assert caplog.text.count("A record was refused, and others may follow:\nbad") == 1


def test_many_unclear_answers_in_a_row_tell_the_request_uuid_of_the_last_one():
    failures = [
        UnclearError("no", method="PUT", path="/", status=502, request_uuid=f"uuid-{each}")
        for each in range(10)
    ]
    journal = NotedJournal([Chunk([str(each)], "vip", "add!") for each in range(12)])
    talon = FakeTalon(errors=dict(enumerate(failures)))
    with pytest.raises(UnclearError, match=r"10 calls in a row .*\nno\nRequestUUID uuid-9\.\nTheir rules"):
        push(journal, talon, Members(), in_flight=1)


# No profile in two requests


def test_chunks_of_one_profile_wait_for_each_other():
    talon = FakeTalon()
    counts, _ = run([adds("a", audience=str(number)) for number in range(20)], talon, in_flight=8)
    assert talon.most_in_flight == 1
    assert counts.sent == 20


def test_a_chunk_that_is_disjoint_from_recent_ones_is_compared_with_old_flights_only():
    """A flight that is retried for long is met though so many chunks have passed."""

    chunks = [Chunk([str(each)], "vip", disjoint_from_recent=True) for each in range(12)]
    chunks.append(Chunk(["0"], "gold", disjoint_from_recent=True))
    counts, _ = run(chunks, StuckTalon(), in_flight=2)
    assert counts.sent == 13


# Ends before the end


@pytest.mark.parametrize(
    "failure", [AuthenticationError, TransientError, UnexpectedAnswerError, NotFoundError, OSError]
)
def test_what_no_other_request_would_survive_stops_them_all(failure):
    raised = failure("away") if failure is OSError else error(failure)
    talon, read, counts = FakeTalon(errors={3: raised}), [], Report()
    journal = NotedJournal(singles(500))

    def stream():
        for chunk in journal.chunks:
            read.append(chunk)
            yield chunk

    with pytest.raises(failure):
        push(journal, talon, Plain(), stream=stream(), counts=counts, in_flight=4)
    assert talon.requests <= 12
    assert len(read) < 30
    assert counts.unsent == 500 - counts.sent > 400


def repeated(failure):
    """An earlier attempt of the call got no clear answer."""
    failure.repeated = True
    return failure


def without_effect(failure):
    failure.is_unclear = False
    return failure


@pytest.mark.parametrize(
    "failure, is_sure",
    [
        (error(AuthenticationError, 401), True),
        (error(NotFoundError, 404), True),
        (without_effect(error(TransientError)), True),
        (without_effect(error(TransientError, 429)), True),
        (error(TransientError, 503), False),
        (error(TransientError), False),
        (error(UnexpectedAnswerError, 200), False),
        (repeated(error(AuthenticationError, 401)), False),
        (OSError("away"), False),
    ],
    ids=str,
)
def test_a_request_that_surely_changed_nothing_is_noted_as_such(failure, is_sure):
    journal = NotedJournal([adds("a"), adds("b")])
    with pytest.raises(type(failure)):
        push(journal, FakeTalon(errors={1: failure}), Plain(), in_flight=1)
    assert journal.outcomes == {0: ([], [])}
    assert journal.harmless == ([1] if is_sure else [])


def test_a_change_that_is_refused_after_an_attempt_without_an_answer_may_have_been_made():
    refusal = error(RejectedError, 400)
    refusal.repeated = True
    counts, journal = run(singles(5), FakeTalon(errors={2: refusal}), in_flight=1)
    assert counts.rejected == {"refused (400)": 1}
    assert journal.doubtful == [2]


def test_a_refusal_keeps_neither_frames_nor_long_answers_in_memory():
    refusal = error(RejectedError, 400)
    refusal.body = "x" * 1_000_000
    run(singles(2), FakeTalon(errors={1: refusal}), in_flight=1)
    assert refusal.__traceback__ is refusal.__context__ is None
    assert len(refusal.body) == 1000


def test_a_chunk_of_which_a_part_landed_has_changed_something():
    class Halves(Plain):
        async def deliver(self, flight, sender):
            for at in range(len(flight.chunk)):
                await sender(flight.chunk[at : at + 1])
                flight.sent(flight.chunk[at : at + 1])

    journal, counts = NotedJournal([adds("a", "b", "c")]), Report()
    with pytest.raises(AuthenticationError):
        push(journal, FakeTalon(errors={1: error(AuthenticationError, 401)}), Halves(), counts=counts)
    assert not journal.harmless
    assert not journal.outcomes
    assert (counts.sent, counts.unsent) == (1, 2)


def test_an_audience_that_is_not_there_is_suspected():
    journal = NotedJournal([adds("a"), adds("b", audience="gold")])
    with pytest.raises(NotFoundError):
        push(journal, FakeTalon(missing=["gold"]), Plain())
    assert journal.suspected == ["gold"]


def test_a_source_that_fails_midway_stops_the_push_and_the_counts_balance():
    def stream():
        yield from journal.chunks[:150]
        raise OSError("the database went away")

    journal, counts = NotedJournal(singles(200)), Report()
    with pytest.raises(OSError, match="went away"):
        push(journal, FakeTalon(), Plain(), stream=stream(), counts=counts)
    assert counts.unsent >= 50


def test_a_process_that_lost_its_lock_sends_nothing_more_and_leaves_behind_what_was_in_flight():
    class Slow(FakeTalon):
        async def __call__(self, chunk):
            if self.requests == 6:
                journal.lost = True
            await super().__call__(chunk)
            if journal.lost:
                # The answer is late.
                await asyncio.sleep(30)

    talon, counts = Slow(), Report()
    journal = NotedJournal(singles(100))
    with pytest.raises(LedgerError, match="Another run took over"):
        push(journal, talon, Plain(), counts=counts, in_flight=4)
    assert talon.requests <= 7
    sent = [each for chunk in journal.behind for each in chunk.ids]
    settled = set(journal.outcomes)
    assert sorted(map(int, sent)) == [each for each in journal.left if each not in settled]
    assert counts.unsent == 100 - counts.sent


def test_a_push_that_learns_at_its_end_that_it_lost_its_lock_leaves_behind_what_landed():
    class TakenOver(NotedJournal):
        def end(self):
            self.lost = True
            super().end()

    journal = TakenOver(singles(5))
    with pytest.raises(LedgerError, match="Another run took over"):
        push(journal, FakeTalon(), Plain())
    assert journal.behind == []


def test_a_push_that_an_error_ends_after_it_lost_its_lock_leaves_behind_what_was_in_flight():
    class Lost(FakeTalon):
        async def __call__(self, chunk):
            journal.lost = True
            raise error(TransientError)

    journal = NotedJournal(singles(5))
    with pytest.raises(LedgerError, match="Another run took over"):
        push(journal, Lost(), Plain(), in_flight=1)
    assert [chunk.ids for chunk in journal.behind] == [["0"]]


def test_every_attempt_asks_first_whether_the_lock_is_still_there():
    class Retrying(FakeTalon):
        """Asks before each attempt of a request, as the client does."""

        async def __call__(self, chunk):
            for attempt in itertools.count():
                self.before_attempt()
                journal.lost = attempt == 2
                self.retries += 1
                await asyncio.sleep(0)

    journal = NotedJournal(singles(3))
    talon = Retrying()
    with pytest.raises(LedgerError, match="Another run took over"):
        push(journal, talon, Plain(), in_flight=1)
    assert talon.retries == 3
    assert [chunk.ids for chunk in journal.behind] == [["0"]]


# Notes while it runs


def test_what_landed_is_made_durable_every_few_seconds(monkeypatch):
    monkeypatch.setattr(module, "_SECONDS_BETWEEN_FLUSHES", 0.02)
    talon = FakeTalon()
    talon.pause = 0.005
    began = time.monotonic()
    _, journal = run(singles(60), talon, in_flight=1)
    # The push and its end flush too, whatever the time.
    assert 3 <= journal.flushes <= (time.monotonic() - began) / 0.02 + 2


class _WithoutStorage(NotedJournal):
    """A journal whose storage does not answer for a number of flushes."""

    fails = 1

    def flush(self):
        super().flush()
        if self.flushes <= self.fails:
            raise LedgerUnavailableError("The storage does not answer.")


@pytest.fixture
def slow_talon(monkeypatch):
    monkeypatch.setattr(module, "_SECONDS_BETWEEN_FLUSHES", 0.02)
    talon = FakeTalon()
    talon.pause = 0.005
    return talon


def test_a_push_goes_on_while_the_storage_does_not_answer(slow_talon, caplog):
    journal = _WithoutStorage(singles(60))
    journal.fails = 2
    assert push(journal, slow_talon, Plain(), in_flight=1).sent == 60
    assert journal.flushes > 2
    assert caplog.text.count("cannot be recorded at present.\nThe storage does not answer.") == 1


def test_a_push_ends_when_its_lock_is_lost_while_the_storage_does_not_answer(slow_talon):
    class Lost(_WithoutStorage):
        fails = 1000

        def flush(self):
            self.lost = self.flushes == 3
            super().flush()

    journal, counts = Lost(singles(1000)), Report()
    with pytest.raises(LedgerError, match="Another run took over"):
        push(journal, slow_talon, Plain(), counts=counts, in_flight=1)
    assert journal.flushes == 4
    assert counts.unsent > 500


def test_a_push_without_a_lock_ends_if_the_storage_does_not_answer_for_as_long_as_a_lease(
    slow_talon, monkeypatch
):
    monkeypatch.setattr(module, "LEASE", 0.1)
    journal, counts = _WithoutStorage(singles(1000)), Report()
    journal.fails = 1000
    with pytest.raises(LedgerUnavailableError, match="does not answer"):
        push(journal, slow_talon, Plain(), counts=counts, in_flight=1)
    assert journal.flushes > 2
    assert counts.unsent > 500


def test_a_long_push_tells_its_progress(monkeypatch, caplog):
    monkeypatch.setattr(module, "_SECONDS_BETWEEN_PROGRESS_LINES", 0.02)
    caplog.set_level(logging.INFO)
    talon = FakeTalon()
    talon.pause = 0.002
    run(singles(60), talon, in_flight=1)
    assert re.search(r"\d+ of 60 sent, \d+ a second, \d+ s left", caplog.text)


@pytest.mark.parametrize("waiting, told", [("throttled (429)", "throttled"), (None, "no answer yet")])
def test_while_nothing_moves_the_log_says_why(monkeypatch, caplog, waiting, told):
    monkeypatch.setattr(module, "_SECONDS_BETWEEN_PROGRESS_LINES", 0.01)
    monkeypatch.setattr(module, "_SECONDS_BETWEEN_WAITING_LINES", 0.05)
    talon = FakeTalon()
    talon.waiting = waiting
    talon.pause = 0.2
    talon.delays.randrange = lambda _: 1
    run(singles(1), talon)
    assert 1 <= caplog.text.count(f"Nothing was acknowledged for 0 s: {told}") <= 4


# Reading ahead


@pytest.mark.parametrize("read_ahead", [0, 2**30])
def test_a_source_that_is_read_ahead_is_not_held_open_by_the_sending(read_ahead):
    """A database may end a transaction that is read slowly."""
    talon, ends = FakeTalon(), []
    talon.pause = 0.001

    def stream():
        for chunk in journal.chunks:
            yield Chunk(chunk.ids, chunk.keys, chunk.verbs, disjoint_from_recent=True)
        ends.append(talon.requests)

    chunks = [*singles(400), Chunk(["a", "b"], ["x", "y"], ["add", "remove?"])]
    journal = NotedJournal(chunks)
    counts = push(journal, talon, Plain(), stream=stream(), in_flight=2, read_ahead=read_ahead)
    assert counts.sent == 402
    assert len(talon.members) == 401
    assert (ends[0] < 200) == bool(read_ahead)


@pytest.mark.parametrize("failing", ["the source", "Talon.One"])
def test_what_fails_while_reading_ahead_fails_in_its_place(failing):
    def stream():
        try:
            yield from journal.chunks
            raise OSError("the database went away")
        finally:
            closed.append(True)

    journal, closed = NotedJournal(singles(300)), []
    talon = FakeTalon(errors={5: error(AuthenticationError)} if failing == "Talon.One" else {})
    with pytest.raises((OSError, AuthenticationError)) as failure:
        push(journal, talon, Plain(), stream=stream(), in_flight=2, read_ahead=2**30)
    assert isinstance(failure.value, OSError) == (failing == "the source")
    # What was read before the source failed has been sent.
    assert failing == "Talon.One" or len(talon.members) >= 298
    assert closed == [True]


def test_what_a_signal_raises_while_reading_ahead_ends_the_push_before_all_that_was_read_is_sent():
    def stream():
        yield from journal.chunks
        # As Airflow's execution_timeout in the source; it is no Exception.
        raise KeyboardInterrupt

    journal, talon = NotedJournal(singles(300)), FakeTalon()
    talon.pause = 0.01
    with pytest.raises(KeyboardInterrupt):
        push(journal, talon, Plain(), stream=stream(), in_flight=2, read_ahead=2**30)
    assert len(talon.members) < 100


@pytest.mark.parametrize("pieces", [0, 1, 7, 8, 9])
def test_all_is_sent_though_the_disk_is_full_while_reading_ahead(monkeypatch, caplog, pieces):
    write, written = os.pwrite, []

    def fills_up(descriptor, piece, at):
        if len(written) == pieces:
            # What a full disk takes of a piece.
            if len(piece) > 10:
                return write(descriptor, piece[:10], at)
            raise OSError(errno.ENOSPC, "No space left on device")
        written.append(piece)
        return write(descriptor, piece, at)

    def stream():
        yield from journal.chunks

    monkeypatch.setattr(os, "pwrite", fills_up)
    journal, talon = NotedJournal(singles(100)), FakeTalon()
    talon.pause = 0.001
    counts = push(journal, talon, Plain(), stream=stream(), in_flight=2, read_ahead=2**30)
    assert (counts.sent, counts.unsent, len(talon.members)) == (100, 0, 100)
    assert "No space left on device" in caplog.text


def test_an_error_of_reading_ahead_itself_does_not_pass_unseen(monkeypatch):
    def fails(spool, piece):
        raise MemoryError

    monkeypatch.setattr(Spool, "write", fails)
    with pytest.raises(MemoryError):
        run(singles(100), in_flight=2, read_ahead=2**30)


def test_reading_ahead_pauses_while_much_waits_on_disk(monkeypatch):
    sizes, write = [], Spool.write

    def watched(spool, piece):
        write(spool, piece)
        sizes.append(len(spool))

    monkeypatch.setattr(Spool, "write", watched)
    counts, _ = run(singles(500), in_flight=2, read_ahead=1000)
    assert counts.sent == 500
    assert max(sizes) < 1200


# Whatever happens


@given(
    chunks=st.lists(
        st.lists(
            st.builds(
                Change,
                st.integers(0, 9).map(str),
                st.sampled_from("xy"),
                st.sampled_from(["add", "remove"]),
                runs_rules=st.just(False),
            ),
            min_size=1,
            max_size=4,
            unique_by=lambda change: change[:2],
        ),
        max_size=20,
    ),
    bad=st.sets(st.integers(0, 9).map(str), max_size=2),
    in_flight=st.integers(1, 5),
    seed=st.integers(0, 1000),
    fatal_at=st.none() | st.integers(0, 12),
    read_ahead=st.sampled_from([0, 2**30]),
)
def test_whatever_happens_the_counts_balance_and_no_profile_overlaps(
    chunks, bad, in_flight, seed, fatal_at, read_ahead
):
    chunks = [Chunk.of(each) for each in chunks]
    talon = FakeTalon(bad=bad, seed=seed)
    if fatal_at is not None:
        talon.errors = {fatal_at: error(AuthenticationError, 401)}
    journal, counts = NotedJournal(chunks), Report()
    try:
        push(journal, talon, Plain(), counts=counts, in_flight=in_flight, read_ahead=read_ahead)
    except AuthenticationError:
        assert counts.unsent
    else:
        assert counts.unsent == 0
        assert len(journal.outcomes) == len(chunks)
    expected = set()
    for number, chunk in enumerate(chunks):
        refused, _ = journal.outcomes.get(number, ([], []))
        if number in journal.outcomes and not refused:
            # Changes of one profile arrive in the order in which they came.
            expected = {m for m in expected if m not in {change[:2] for change in chunk.changes()}}
            expected |= {change[:2] for change in chunk.changes() if change.action == "add"}
    assert talon.members == expected
