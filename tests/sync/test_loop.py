"""The event loop beside the calling thread, how a push is stopped, and what the garbage collector is told."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import threading
import time
import traceback

import pytest

from airflow_provider_talon_cdp.changes.change import Chunk
from airflow_provider_talon_cdp.exceptions import AuthenticationError, StoppedError
from airflow_provider_talon_cdp.sync import loop
from airflow_provider_talon_cdp.sync.loop import refuse_stopped, run_in_loop_thread, stop_pushes, syncing
from airflow_provider_talon_cdp.sync.report import Report
from tests.sync.fakes import FakeTalon, error
from tests.sync.pushing import Endless, NotedJournal, Plain, push, send


def test_the_result_comes_back_from_the_other_thread():
    threads = []

    async def work(reader):
        threads.append(threading.get_ident())
        return await reader(threading.get_ident)

    assert run_in_loop_thread(work) == threading.get_ident()
    assert threads != [threading.get_ident()]


def test_an_error_comes_out_as_it_is():
    failure = error(AuthenticationError)
    with pytest.raises(AuthenticationError) as raised:
        send(FakeTalon(errors={5: failure}))
    assert raised.value is failure
    assert "deliver" in [frame.name for frame in traceback.extract_tb(failure.__traceback__)]


def test_the_journal_finds_the_context_of_the_caller():
    task = contextvars.ContextVar("task", default=None)
    task.set("push")
    found = set()

    class Asking(NotedJournal):
        def note_sending(self, number):
            found.add(task.get())
            super().note_sending(number)

        def landed(self, *args, **options):
            found.add(task.get())
            super().landed(*args, **options)

    push(Asking([Chunk([str(number)], "vip") for number in range(20)]), FakeTalon(), Plain())
    assert found == {"push"}


def test_the_source_is_read_and_closed_where_the_push_was_called():
    threads = []

    class Watched(Endless):
        def stream(self):
            threads.append(threading.get_ident())
            try:
                yield from super().stream()
            finally:
                threads.append(threading.get_ident())

    with pytest.raises(AuthenticationError):
        send(FakeTalon(errors={5: error(AuthenticationError)}), journal=Watched())
    assert threads == [threading.get_ident()] * 2


# Stopping


@pytest.fixture(autouse=True)
def _not_stopped():
    yield
    loop._stopped.clear()


class Stopping(FakeTalon):
    """Somebody marks the task failed while its n-th request is under way."""

    def __init__(self, number):
        super().__init__()
        self.number = number
        self.stopped_at = self.last = 0.0

    async def __call__(self, chunk):
        self.last = time.monotonic()
        if self.requests == self.number:
            stop_pushes()
            self.stopped_at = time.monotonic()
        await super().__call__(chunk)


def test_a_push_that_is_told_to_stop_sends_nothing_more_and_ends_in_order():
    talon, counts, journal = Stopping(50), Report(), Endless()
    talon.pause = 0.01
    with syncing(), pytest.raises(StoppedError, match="told to stop. What Talon.One acknowledged is"):
        send(talon, counts, journal)
    assert talon.last - talon.stopped_at < 1
    assert counts.sent == len(talon.members) >= 40
    assert len(journal.outcomes) == counts.sent


def test_nothing_begins_once_a_stop_is_told_and_the_next_sync_forgets_it():
    stop_pushes()
    talon = FakeTalon()
    with pytest.raises(StoppedError):
        push(NotedJournal([Chunk(["a"], "vip")]), talon, Plain())
    assert not talon.requests
    with syncing():
        refuse_stopped()
        assert push(NotedJournal([Chunk(["a"], "vip")]), talon, Plain()).sent == 1


def test_a_stop_ends_a_wait_for_an_answer():
    class Silent(FakeTalon):
        async def __call__(self, chunk):
            stop_pushes()
            await asyncio.sleep(30)

    began = time.monotonic()
    with syncing(), pytest.raises(StoppedError):
        push(NotedJournal([Chunk(["a"], "vip")]), Silent(), Plain())
    assert time.monotonic() - began < 2


# The garbage collector: what is in memory when a sync begins is left out of collections until it ends.


@pytest.fixture
def _thawed():
    gc.unfreeze()
    yield
    gc.unfreeze()


@pytest.mark.usefixtures("_thawed")
def test_what_was_there_before_is_looked_through_again_after_the_end():
    @syncing()
    def failing():
        frozen.append(gc.get_freeze_count())
        raise KeyError

    frozen, threshold = [], gc.get_threshold()
    with pytest.raises(KeyError):
        failing()
    assert frozen[0] > 1000
    assert gc.get_freeze_count() == 0
    assert gc.get_threshold() == threshold


@pytest.mark.usefixtures("_thawed")
def test_what_others_froze_stays_frozen():
    gc.freeze()
    frozen = gc.get_freeze_count()
    with syncing():
        """Nothing."""
    assert gc.get_freeze_count() > frozen * 0.9


def test_garbage_that_a_sync_makes_is_collected_meanwhile():
    class Cycle:
        def __init__(self):
            self.own = self
            made.append(id(self))

        def __del__(self):
            collected.append(id(self))

    made, collected = [], []
    with syncing():
        Cycle()
        gc.collect()
        assert collected == made


@pytest.mark.parametrize("own, meanwhile", [(700, 20_000), (50_000, 50_000), (0, 0)])
def test_young_objects_are_looked_through_less_often_unless_that_is_turned_off(own, meanwhile):
    before = gc.get_threshold()
    gc.set_threshold(own, 7, 8)
    try:
        with syncing():
            assert gc.get_threshold() == (meanwhile, 7, 8)
        assert gc.get_threshold() == (own, 7, 8)
    finally:
        gc.set_threshold(*before)
