"""Signals during a push: what their handlers raise comes out, and the push ends in order."""

from __future__ import annotations

import contextvars
import itertools
import os
import random
import signal
import sys
import threading
import time
import traceback
from asyncio import Event
from contextlib import asynccontextmanager, contextmanager

import pytest

from airflow_provider_talon_cdp.exceptions import AuthenticationError
from airflow_provider_talon_cdp.sync import loop
from airflow_provider_talon_cdp.sync.changes import Batch, Change
from airflow_provider_talon_cdp.sync.delivery import halving
from airflow_provider_talon_cdp.sync.loop import run_apart
from airflow_provider_talon_cdp.sync.report import Tally
from airflow_provider_talon_cdp.sync.run import send_all
from tests.sync.fakes import FakeTalon, error

# Whatever goes wrong, the alarm rings again and the test ends.
_AGAIN = 5.0


class OverdueError(Exception):
    """As Airflow's execution_timeout, it is raised by a signal's handler."""


@contextmanager
def alarm(seconds, rung, *, again=_AGAIN):
    """Raise from a signal's handler after a while, once; where Python drops it, in a finalizer, once more."""
    unraisable = sys.unraisablehook

    def ring_again(dropped):
        if dropped.exc_type is not OverdueError:
            return unraisable(dropped)
        rung.pop()
        return signal.setitimer(signal.ITIMER_REAL, 0.001, again)

    def ring(*_):
        rung.append(time.monotonic())
        if len(rung) > 1:
            signal.setitimer(signal.ITIMER_REAL, 0)
        raise OverdueError

    before = signal.signal(signal.SIGALRM, ring)
    sys.unraisablehook = ring_again
    try:
        signal.setitimer(signal.ITIMER_REAL, seconds, again)
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        sys.unraisablehook = unraisable


def forever():
    for number in itertools.count():
        yield Batch([Change(str(number), "vip", "add")])


def send(stream, talon, tally, **options):
    opened, closed = [], []

    @asynccontextmanager
    async def opening():
        opened.append(tally.sent)
        try:
            yield talon
        finally:
            closed.append(tally.sent)

    try:
        send_all(
            stream,
            opening(),
            halving,
            tally,
            in_flight=8,
            progress=lambda: "",
            report=lambda: None,
            **options,
        )
    finally:
        # A signal may come before anything was opened.
        assert closed == [tally.sent] * len(opened)
        assert tally.launched == tally.sent + tally.rejected.total() + tally.unsent


@pytest.mark.own_process
def test_what_a_signal_raises_ends_a_push_wherever_it_lands():
    moments = random.Random(0)
    for _ in range(100):
        tally, rung = Tally(), []
        with pytest.raises(OverdueError), alarm(moments.uniform(0.001, 0.03), rung):
            send(forever(), FakeTalon(), tally)
        assert time.monotonic() - rung[0] < 2
        assert len(rung) == 1


@pytest.mark.own_process
def test_an_interrupt_ends_the_flights_that_are_under_way():
    class Silent(FakeTalon):
        ended = 0

        async def __call__(self, batch):
            self.requests += 1
            if self.requests == 8:
                os.kill(os.getpid(), signal.SIGINT)
            try:
                await Event().wait()
            finally:
                self.ended += 1

    talon, tally = Silent(), Tally()
    with pytest.raises(KeyboardInterrupt), alarm(_AGAIN, []):
        send(forever(), talon, tally)
    assert (talon.ended, tally.unsent, tally.requests) == (8, 8, 8)


@pytest.mark.own_process
@pytest.mark.parametrize("patience, again", [(0.1, 0), (60.0, 0.1)])
def test_what_does_not_end_is_left_behind_after_a_while_or_at_a_second_signal(
    monkeypatch, caplog, patience, again
):
    monkeypatch.setattr(loop, "_SECONDS_TO_END", patience)
    stuck = threading.Event()

    async def hang():
        stuck.wait(30)

    began = time.monotonic()
    try:
        with pytest.raises(OverdueError), alarm(0.1, [], again=again):
            run_apart(lambda _: hang())
        assert time.monotonic() - began < 10
    finally:
        stuck.set()
    assert ("left behind" in caplog.text) == (not again)


def test_an_error_comes_out_as_it_is():
    failure = error(AuthenticationError)
    with pytest.raises(AuthenticationError) as raised:
        send(forever(), FakeTalon(errors={5: failure}), Tally())
    assert raised.value is failure
    assert "deliver" in [frame.name for frame in traceback.extract_tb(failure.__traceback__)]


def test_callbacks_find_the_context_of_the_caller():
    task = contextvars.ContextVar("task", default=None)
    task.set("push")
    found = set()
    send(
        (batch for batch in itertools.islice(forever(), 20)),
        FakeTalon(),
        Tally(),
        on_leaving=lambda _: found.add(task.get()),
        on_landed=lambda _: found.add(task.get()),
    )
    assert found == {"push"}


def test_the_source_is_read_and_closed_where_the_push_was_called():
    threads = []

    def stream():
        threads.append(threading.get_ident())
        try:
            yield from forever()
        finally:
            threads.append(threading.get_ident())

    with pytest.raises(AuthenticationError):
        send(stream(), FakeTalon(errors={5: error(AuthenticationError)}), Tally())
    assert threads == [threading.get_ident()] * 2


@pytest.mark.own_process
def test_what_a_signal_raises_in_a_slow_source_comes_out():
    def stream():
        yield Batch([Change("a", "vip", "add")])
        time.sleep(_AGAIN)

    talon, tally, rung = FakeTalon(), Tally(), []
    with pytest.raises(OverdueError), alarm(0.2, rung):
        send(stream(), talon, tally)
    assert time.monotonic() - rung[0] < 2
