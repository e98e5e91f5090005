"""Signals during a push: what their handlers raise comes out, and the push ends in order."""

from __future__ import annotations

import os
import random
import signal
import sys
import threading
import time
from asyncio import Event
from contextlib import contextmanager

import pytest

from airflow_provider_talon_cdp.changes.change import Chunk
from airflow_provider_talon_cdp.sync import loop, push
from airflow_provider_talon_cdp.sync.loop import run_in_loop_thread
from airflow_provider_talon_cdp.sync.report import Report
from tests.sync.fakes import FakeTalon
from tests.sync.pushing import Endless, send

pytestmark = pytest.mark.own_process

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


def test_what_a_signal_raises_ends_a_push_wherever_it_lands(monkeypatch):
    moments = random.Random(0)

    def run(deliver):
        # A signal that lands before has no push to end.
        signal.setitimer(signal.ITIMER_REAL, moments.uniform(0.001, 0.03), _AGAIN)
        return run_in_loop_thread(deliver)

    monkeypatch.setattr(push, "run_in_loop_thread", run)
    for _ in range(100):
        rung = []
        with pytest.raises(OverdueError), alarm(_AGAIN, rung):
            send(FakeTalon())
        assert time.monotonic() - rung[0] < 2
        assert len(rung) == 1


def test_an_interrupt_ends_the_flights_that_are_under_way():
    class Silent(FakeTalon):
        ended = 0

        async def __call__(self, chunk):
            self.requests += 1
            if self.requests == 8:
                os.kill(os.getpid(), signal.SIGINT)
            try:
                await Event().wait()
            finally:
                self.ended += 1

    talon, counts = Silent(), Report()
    # A shell has its background jobs ignore it.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt), alarm(_AGAIN, []):
            send(talon, counts)
    finally:
        signal.signal(signal.SIGINT, before)
    assert (talon.ended, counts.requests, counts.sent) == (8, 8, 0)


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
            run_in_loop_thread(lambda _: hang())
        assert time.monotonic() - began < 10
    finally:
        stuck.set()
    assert ("The task does not wait for it" in caplog.text) == (not again)


def test_what_a_signal_raises_in_a_slow_source_comes_out():
    class Slow(Endless):
        def stream(self):
            self.begun += 1
            try:
                self.changes += 1
                yield Chunk(["a"], "vip")
                time.sleep(_AGAIN)
            finally:
                self.closed += 1

    rung = []
    with pytest.raises(OverdueError), alarm(0.2, rung):
        send(FakeTalon(), journal=Slow())
    assert time.monotonic() - rung[0] < 2
