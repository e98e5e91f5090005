"""The pacer against simulated token buckets: no clock, no network, every run the same."""

from __future__ import annotations

import heapq
import itertools
import random

import pytest

from airflow_provider_talon_cdp.api.pacer import Pacer


def simulate(*, ceiling, limit, burst, requests, service_time=0.05, retry_after=None, seed=1):
    """Send ``requests`` through a pacer to a server with a token bucket.

    Returns:
        The accepted requests a second as a share of the limit, and the number of 429s.
    """
    noise = random.Random(seed)
    pacer = Pacer(ceiling)
    now = filled_at = 0.0
    tokens = float(burst)
    unsent, accepted, refused, in_flight = requests, 0, 0, 0
    events: list[tuple[float, int, str, float]] = []
    number = 0
    while accepted < requests:
        if events and (unsent == 0 or in_flight == 64 or events[0][0] <= now + pacer.wait(now)):
            at, _, what, left_at = heapq.heappop(events)
            now = max(now, at)
            if what == "again":
                unsent += 1
                continue
            in_flight -= 1
            if what == "accepted":
                accepted += 1
            else:
                refused += 1
                pacer.throttled(now, left_at=left_at, retry_after=retry_after)
                number += 1
                heapq.heappush(events, (now + (retry_after or 0) + noise.random() / 2, number, "again", 0.0))
            continue
        wait = pacer.wait(now)
        now += wait + (noise.random() * 0.002 if wait else 0)
        pacer.left(now)
        unsent -= 1
        in_flight += 1
        arrives = now + service_time / 2
        tokens = min(burst, tokens + (arrives - filled_at) * limit)
        filled_at = max(filled_at, arrives)
        fits = tokens >= 1
        tokens -= fits
        number += 1
        answer = now + service_time * (0.8 + 0.4 * noise.random())
        heapq.heappush(events, (answer, number, "accepted" if fits else "refused", now))
    return accepted / now / limit, refused


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("burst", [10, 60])
def test_at_the_servers_own_rate_nothing_is_refused(seed, burst):
    share, refused = simulate(ceiling=60, limit=60, burst=burst, requests=3000, seed=seed)
    assert refused == 0
    assert share >= 0.99


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("burst", [2, 10, 60])
def test_set_far_too_high_it_finds_the_servers_rate_with_few_refusals(seed, burst):
    share, refused = simulate(ceiling=200, limit=60, burst=burst, requests=1000, seed=seed)
    assert share >= 0.95
    assert refused <= 20


@pytest.mark.parametrize("seed", range(5))
def test_with_retry_after_hardly_anything_is_refused_twice(seed):
    _, refused = simulate(ceiling=200, limit=60, burst=60, requests=3000, retry_after=1, seed=seed)
    assert refused <= 60


def test_requests_leave_evenly_and_never_above_the_ceiling():
    pacer = Pacer(50)
    now, departures = 0.0, []
    for _ in range(200):
        now += pacer.wait(now)
        pacer.left(now)
        departures.append(now)
    gaps = [later - earlier for earlier, later in itertools.pairwise(departures)]
    # The first two may leave together: a late start is caught up like a late timer.
    assert gaps[1:] == pytest.approx([1 / 50] * 198)


def test_after_a_pause_little_is_caught_up():
    pacer = Pacer(100)
    pacer.left(0.0)
    now = 1000.0
    at_once = 0
    while pacer.wait(now) == 0:
        pacer.left(now)
        at_once += 1
    assert 1 <= at_once <= 4


def test_retry_after_holds_everything_back():
    pacer = Pacer(60)
    pacer.left(0.0)
    pacer.throttled(0.1, left_at=0.0, retry_after=7.0)
    assert pacer.wait(0.1) == pytest.approx(7.0)


def test_many_429s_of_one_overload_halve_the_rate_at_the_most():
    pacer = Pacer(60)
    for _ in range(100):
        pacer.throttled(1.0, left_at=0.5)
    assert pacer.rate(1.0) == pytest.approx(30)
    recovering = pacer.rate(2.0)
    pacer.throttled(2.0, left_at=1.5)
    assert pacer.rate(2.0) == pytest.approx(0.92 * recovering)


def test_the_rate_climbs_back_to_the_ceiling():
    pacer = Pacer(60)
    for _ in range(100):
        pacer.throttled(1.0, left_at=0.5)
    rates = [pacer.rate(1.0 + second) for second in range(60)]
    assert rates == sorted(rates)
    assert rates[-1] == 60


def test_the_rate_never_reaches_zero():
    pacer = Pacer(1)
    for second in range(1000):
        pacer.throttled(float(second), left_at=float(second))
    assert pacer.rate(1000.0) > 0
    assert pacer.wait(1000.0) <= 10
