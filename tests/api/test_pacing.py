"""When requests leave: the pacer against simulated token buckets, and waits after failures. No clock."""

from __future__ import annotations

import heapq
import itertools
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_provider_talon_cdp.api.pacing import Pacer, RepeatedLines, back_off, parse_retry_after


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


def test_back_off_doubles_up_to_its_cap():
    waits = [back_off(attempt, 1000, None, 1.0) for attempt in (1, 2, 3, 4, 7, 29)]
    assert waits == [0.5, 1, 2, 4, 30, 30]


def test_jitter_spreads_the_whole_back_off():
    assert [back_off(5, 1000, None, random) for random in (0.0, 0.25, 1.0)] == [0, 2, 8]


def test_retry_after_is_waited_for_and_spread():
    assert [back_off(1, 1000, 40.0, random) for random in (0.0, 1.0)] == [40.0, 40.5]


@pytest.mark.parametrize("attempt", [1, 3, 8])
def test_a_retry_after_of_zero_does_not_end_the_growth_of_waits(attempt):
    assert back_off(attempt, 500, 0.0, 1.0) == back_off(attempt, 500, None, 1.0)
    assert back_off(attempt, 500, 40.0, 1.0) == 40.5


def test_the_last_attempt_starts_when_the_time_is_over():
    assert back_off(20, 12.5, None, 1.0) == 12.5
    assert back_off(20, 0, None, 1.0) is None
    assert back_off(20, -1, None, 1.0) is None


def test_a_retry_after_beyond_the_time_ends_the_attempts_at_once():
    assert back_off(1, 60, 59.0, 0.0) == 59.0
    assert back_off(1, 60, 61.0, 0.0) is None
    assert back_off(1, 60, 59.9, 1.0) == 60


@given(st.integers(1, 10_000), st.floats(0, 1))
def test_no_wait_is_negative_or_above_the_cap(attempt, random):
    assert 0 <= back_off(attempt, 600, None, random) <= 30


@pytest.mark.parametrize(
    "header, seconds",
    [
        ("0", 0),
        (" 120 ", 120),
        ("Thu, 01 Jan 1970 00:02:00 GMT", 20),
        ("Thu, 01 Jan 1970 00:00:00 GMT", 0),
        ("-5", None),
        ("9" * 400, None),
        ("1.5", None),
        ("\u0664", None),
        ("Thu, 99 Jan 1970 00:00:00 GMT", None),
        ("", None),
        (None, None),
    ],
)
def test_retry_after_is_seconds_or_a_date(header, seconds):
    assert parse_retry_after(header, now=100.0) == seconds


def test_each_kind_of_failure_has_a_line_of_its_own_in_ten_seconds():
    lines = RepeatedLines()
    said = [lines.line(reason, reason, now) for now in range(11) for reason in ("503", "timed out")]
    assert [line for line in said if line] == [
        "503",
        "timed out",
        "503 (9 more of these since the last such line.)",
        "timed out (9 more of these since the last such line.)",
    ]
