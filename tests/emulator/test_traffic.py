"""The token bucket on a clock of its own, profiles in flight, and the log, which is bounded."""

from dataclasses import replace

import pytest

from airflow_provider_talon_cdp.emulator.answers import RefusedError
from airflow_provider_talon_cdp.emulator.traffic import KEPT, InFlight, LoggedRequest, RateLimit, RequestLog


class Clock:
    now = 100.0

    def __call__(self):
        return self.now


def passed(limit, tries):
    count = 0
    for _ in range(tries):
        try:
            limit.take()
        except RefusedError:
            continue
        count += 1
    return count


def test_a_burst_passes_and_then_the_rate_holds():
    clock = Clock()
    limit = RateLimit(10, burst=3, clock=clock)
    assert passed(limit, 5) == 3
    clock.now += 0.25
    assert passed(limit, 5) == 2
    clock.now += 60
    assert passed(limit, 5) == 3


@pytest.mark.parametrize(("rate", "burst"), [(5, 5), (0.5, 1)])
def test_the_burst_is_a_seconds_worth_and_at_least_one(rate, burst):
    assert passed(RateLimit(rate, clock=Clock()), 10) == burst


@pytest.mark.parametrize(("rate", "seconds"), [(10, "1"), (0.4, "3")])
def test_retry_after_is_in_whole_seconds_rounded_up(rate, seconds):
    limit = RateLimit(rate, burst=1, clock=Clock())
    limit.take()
    with pytest.raises(RefusedError) as caught:
        limit.take()
    assert (caught.value.status, caught.value.headers) == (429, {"Retry-After": seconds})


def test_after_retry_after_a_request_passes():
    clock = Clock()
    limit = RateLimit(0.4, clock=clock)
    limit.take()
    clock.now += 3
    limit.take()


def test_retry_after_can_be_left_out():
    limit = RateLimit(1, send_retry_after=False, clock=Clock())
    limit.take()
    with pytest.raises(RefusedError) as caught:
        limit.take()
    assert caught.value.headers == {}


@pytest.mark.parametrize(
    ("rate", "burst"), [(0, None), (-1, None), (float("inf"), None), (float("nan"), None), (1, 0.5)]
)
def test_a_limit_that_lets_nothing_pass_is_refused(rate, burst):
    with pytest.raises(ValueError, match="must be"):
        RateLimit(rate, burst)


def test_a_profile_is_free_again_when_its_request_has_failed():
    flights = InFlight()
    with pytest.raises(KeyError), flights.hold(frozenset("a")):
        raise KeyError
    with flights.hold(frozenset("a")), flights.hold(frozenset("b")):
        with pytest.raises(RefusedError), flights.hold(frozenset("bc")):
            pass
        with flights.hold(frozenset("c")):
            pass


REQUEST = LoggedRequest("t", "PUT", "/p", "", "update_profile", 200, "u", 0, None, "", None)


def test_the_last_requests_are_kept_and_all_are_counted():
    log = RequestLog()
    for number in range(KEPT + 5):
        log.add(replace(REQUEST, changes=number))
    log.add(replace(REQUEST, status=None, operation=""))
    assert (len(log.last()), log.last()[0].changes) == (KEPT, 6)
    assert log.counters() == {
        "total": KEPT + 6,
        "by_status": {"200": KEPT + 5, "none": 1},
        "by_operation": {"none": 1, "update_profile": KEPT + 5},
    }
    log.clear()
    assert (log.last(), log.counters()["total"]) == ([], 0)
