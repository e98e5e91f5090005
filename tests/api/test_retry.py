from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_provider_talon_cdp.api.retry import RetryPolicy, parse_retry_after
from airflow_provider_talon_cdp.exceptions import FatalError, RejectedError, TransientError


def transient(retry_after=None):
    return TransientError("busy", method="PUT", path="/", status=429, retry_after=retry_after)


def wait(policy, error, attempt=1, elapsed=0.0, random=1.0):
    return policy.wait(error, attempt=attempt, elapsed=elapsed, random=random)


def test_back_off_doubles_up_to_its_cap():
    policy = RetryPolicy(first_wait=1, longest_wait=5)
    assert [wait(policy, transient(), attempt=attempt) for attempt in (1, 2, 3, 4, 29)] == [1, 2, 4, 5, 5]


def test_jitter_spreads_the_whole_back_off():
    policy = RetryPolicy(first_wait=8, longest_wait=8)
    assert [wait(policy, transient(), random=random) for random in (0.0, 0.25, 1.0)] == [0, 2, 8]


def test_retry_after_is_waited_for_and_spread():
    policy = RetryPolicy(first_wait=0.5, longest_wait=2)
    assert wait(policy, transient(retry_after=40.0), random=0.0) == 40.0
    assert wait(policy, transient(retry_after=40.0), random=1.0) == 40.5


@pytest.mark.parametrize("kind", [FatalError, RejectedError])
def test_only_transient_failures_are_retried(kind):
    assert wait(RetryPolicy(), kind("no", method="PUT", path="/")) is None
    assert wait(RetryPolicy(), ValueError("no")) is None


def test_the_budget_and_the_attempts_end_the_retries():
    policy = RetryPolicy(first_wait=1, longest_wait=1, budget=100, attempts=3)
    assert wait(policy, transient(), elapsed=99) == 1
    assert wait(policy, transient(), elapsed=99.5) is None
    assert wait(policy, transient(retry_after=101.0)) is None
    assert wait(policy, transient(), attempt=2) == 1
    assert wait(policy, transient(), attempt=3) is None


@given(st.integers(1, 10_000), st.floats(0, 1))
def test_no_wait_is_negative_or_above_the_cap(attempt, random):
    policy = RetryPolicy(attempts=100_000, longest_wait=30)
    assert 0 <= (wait(policy, transient(), attempt=attempt, random=random) or 0) <= 30


@pytest.mark.parametrize(
    "header, seconds",
    [
        ("0", 0),
        (" 120 ", 120),
        ("Thu, 01 Jan 1970 00:02:00 GMT", 20),
        ("Thu, 01 Jan 1970 00:00:00 GMT", 0),
        ("-5", None),
        ("1.5", None),
        ("\u0664", None),
        ("Thu, 99 Jan 1970 00:00:00 GMT", None),
        ("", None),
        (None, None),
    ],
)
def test_retry_after_is_seconds_or_a_date(header, seconds):
    assert parse_retry_after(header, now=100.0) == seconds
