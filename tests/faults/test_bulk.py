"""Faults of the service or the network under a bulk sync: what is reported is what happened."""

from __future__ import annotations

import re
import time

import pytest

from airflow_provider_talon_cdp.emulator import Emulator
from airflow_provider_talon_cdp.exceptions import (
    AuthenticationError,
    NotFoundError,
    RejectedError,
    RejectedRecordsError,
    TransientError,
    UnexpectedAnswerError,
)
from airflow_provider_talon_cdp.ledger.share import Share
from airflow_provider_talon_cdp.operators.audience import CreateAudienceOperator
from airflow_provider_talon_cdp.operators.members import SyncAudienceMembersOperator
from airflow_provider_talon_cdp.sync import push

COUNTS = re.compile(
    r"([\d,]+) read \+ 0 to remove \+ 0 resumed\n= 0 unchanged \+ ([\d,]+) sent \+ ([\d,]+) duplicate"
    r" \+ ([\d,]+) rejected \+ ([\d,]+) unsent\nsent: [^;]*; ([\d,]+) requests"
)


@pytest.fixture(autouse=True)
def _vip(run, talon):
    run(CreateAudienceOperator(task_id="c", audience_id="vip", audience_name="VIP"))


@pytest.fixture
def sync(run):
    def sync(ids, **more):
        operator = SyncAudienceMembersOperator(task_id="t", audience_id="vip", add="{{ params.ids }}", **more)
        return run(operator, native=True, params={"ids": ids})

    return sync


def ids(count):
    return [f"p{each}" for each in range(count)]


def counts(text):
    """The last counts that were logged, which must balance."""
    found = [int(each.replace(",", "")) for each in COUNTS.findall(text)[-1]]
    read, *parts, _ = found
    assert read == sum(parts)
    return dict(zip(("read", "sent", "duplicate", "rejected", "unsent", "requests"), found, strict=True))


def bulk_requests(talon):
    return [each for each in talon.requests() if each["operation"].startswith("update_profiles")]


@pytest.mark.parametrize("status", [409, 429, 500, 502, 503])
def test_passing_failures_are_overcome(sync, talon, status):
    talon.fail_next("status", times=3, status=status)
    result = sync(ids(3000))
    assert talon.members("vip") == set(ids(3000))
    assert (result["sent"], result["retries"], result["throttled"]) == (3000, 3, 3 if status == 429 else 0)
    assert result["requests"] == 6


@pytest.mark.parametrize("kind", ["reset_before", "reset_after"])
def test_lost_connections_are_overcome(sync, talon, kind):
    talon.fail_next(kind, times=3, after=1)
    result = sync(ids(5000))
    assert talon.members("vip") == set(ids(5000))
    assert (result["sent"], result["unsent"]) == (5000, 0)


@pytest.mark.parametrize("kind", ["reset_before", "reset_after"])
def test_every_request_that_left_is_counted(sync, talon, kind):
    """A second attempt below our own counts would go past the pacer too."""
    talon.fail_next(kind, times=3, after=1)
    result = sync(ids(5000))
    assert result["requests"] == len(bulk_requests(talon))
    assert result["retries"] == 3


def test_answers_that_came_while_a_storage_stalled_for_longer_than_the_timeout_are_clear(
    run, talon, connect, monkeypatch
):
    """Writing to the storage blocks the event loop, so that all timers of requests are overdue after it."""
    connect({"timeout": 0.5})
    talon.fail_next("slow", seconds=0.05, times=None)
    flush, stalls = Share.flush, iter([0, 1.2])

    def stall(share):
        flush(share)
        # The first one is before the first call.
        time.sleep(next(stalls, 0))

    monkeypatch.setattr(push, "_SECONDS_BETWEEN_FLUSHES", 0)
    monkeypatch.setattr(Share, "flush", stall)
    operator = SyncAudienceMembersOperator(
        task_id="t", audience_id="vip", members=ids(6), mode="mirror", rules="all", in_flight=4
    )
    result = run(operator)
    assert (result["sent"], result["unclear"], result["requests"]) == (6, 0, 6)


def test_retry_after_holds_every_request_back(sync, talon):
    talon.fail_next("status", status=429, retry_after=1)
    began = time.monotonic()
    result = sync(ids(3000), in_flight=1)
    assert 0.9 <= time.monotonic() - began < 5
    assert (result["throttled"], result["requests"]) == (1, 4)
    assert talon.members("vip") == set(ids(3000))


def test_a_rate_limit_is_respected_and_nothing_is_lost(run, connect):
    with Emulator(requests_per_second=40, burst=5) as emulator:
        connect({"requests_per_second": 400}, emulator=emulator)
        run(CreateAudienceOperator(task_id="d", audience_id="vip", audience_name="VIP"))
        operator = SyncAudienceMembersOperator(task_id="t", audience_id="vip", add="{{ params.ids }}")
        result = run(operator, native=True, params={"ids": ids(30_000)})
        assert emulator.members("vip") == set(ids(30_000))
        assert result["throttled"] == emulator.state()["requests"]["by_status"].get("429", 0)


def test_a_retry_after_beyond_all_patience_fails_with_counts_that_balance(sync, talon, logged):
    talon.fail_next("status", times=None, after=1, status=503, retry_after=86_400)
    with pytest.raises(TransientError, match="503"):
        sync(ids(5000))
    told = counts(logged())
    assert told["unsent"] == told["read"] - told["sent"] > 0
    assert told["sent"] <= len(talon.members("vip")) == 1000


def test_slow_answers_are_given_up_and_asked_for_again(sync, connect, talon):
    connect({"timeout": 0.4})
    talon.fail_next("slow", times=2, seconds=0.8)
    result = sync(ids(3000))
    assert talon.members("vip") == set(ids(3000))
    assert result["retries"] >= 2
    assert result["sent"] == 3000


@pytest.mark.parametrize("fault", ["wrong_success", "html"])
def test_a_200_is_no_success(sync, talon, logged, fault):
    """On another route, or a gateway's page: no membership changed."""
    talon.fail_next(fault, times=None, after=2)
    with pytest.raises(UnexpectedAnswerError, match="204"):
        sync(ids(10_000))
    told = counts(logged())
    assert told["sent"] <= len(talon.members("vip")) == 2000
    assert told["unsent"] >= 1


def test_a_401_in_the_middle_stops_at_once_with_counts_that_balance(sync, talon, logged):
    talon.fail_next("status", times=None, after=5, status=401)
    with pytest.raises(AuthenticationError, match="expire"):
        sync(ids(120_000), in_flight=4)
    requests = bulk_requests(talon)
    assert [each["status"] for each in requests[:5]] == [204] * 5
    assert len(requests) <= 5 + 4
    told = counts(logged())
    assert told["sent"] <= 5000 == len(talon.members("vip"))
    # What is in flight, the batch that waits, two lists of eight that the reading thread is ahead, and the 64
    # batches that ledgers are told of at once.
    assert told["read"] <= 5000 + (4 + 1 + 2 * 8 + 64) * 1000
    assert told["unsent"] > 0


@pytest.mark.parametrize("status", [403, 407])
def test_other_fatal_answers_stop_at_once(sync, talon, logged, status):
    talon.fail_next("status", times=None, status=status)
    with pytest.raises(Exception, match=str(status)):
        sync(ids(20_000), in_flight=2)
    # Of twenty; a cancelled one of the test before may still be counted here.
    assert len(bulk_requests(talon)) <= 4
    assert counts(logged())["sent"] == 0


def test_a_missing_audience_stops_and_is_named(run, talon, logged):
    operator = SyncAudienceMembersOperator(
        task_id="t", audience_id="v\u00efp", add="{{ params.ids }}", in_flight=2
    )
    with pytest.raises(
        NotFoundError, match="(?s)Audience in the request: v\u00efp\\b.*CreateAudienceOperator"
    ):
        run(operator, native=True, params={"ids": ids(20_000)})
    assert len(bulk_requests(talon)) <= 4
    assert counts(logged())["sent"] == 0


def test_one_bad_profile_of_five_thousand_is_found_and_the_others_arrive(sync, talon, logged):
    talon.reject_profiles(["p4711"])
    with pytest.raises(RejectedRecordsError, match="1 of 5,000") as error:
        sync(ids(5000))
    assert talon.members("vip") == set(ids(5000)) - {"p4711"}
    report = error.value.report
    assert report.balances
    assert (report.read, report.sent, report.rejected.total(), report.unsent) == (5000, 4999, 1, 0)
    assert report.requests <= 5 + 2 * 10
    assert "p4711" not in str(error.value)
    result = sync(ids(5000), max_rejected=1)
    assert (result["sent"], result["rejected"]) == (4999, {"refused by Talon.One (400)": 1})


@pytest.mark.parametrize("bad", [1, 2, 7, 30])
def test_scattered_bad_profiles_are_all_found(sync, talon, bad):
    everyone = ids(3000)
    refused = set(everyone[:: 3000 // bad][:bad])
    talon.reject_profiles(refused)
    result = sync(everyone, max_rejected=None)
    assert talon.members("vip") == set(everyone) - refused
    assert sum(result["rejected"].values()) == bad


def test_bad_profiles_that_stand_together_do_not_keep_the_rest_out(sync, talon):
    """A sorted source has its odd IDs at the front; the good ones are to land, as the counts promise."""
    everyone = ids(1000)
    talon.reject_profiles(everyone[:60])
    result = sync(everyone, max_rejected=None)
    assert talon.members("vip") == set(everyone[60:])
    assert sum(result["rejected"].values()) == 60


def test_a_run_in_which_everything_is_refused_stops_early(sync, talon, logged):
    talon.reject_profiles(ids(120_000))
    with pytest.raises(RejectedError, match="all refused"):
        sync(ids(120_000), max_rejected=100, in_flight=4)
    assert talon.state()["requests"]["total"] < 1000
    assert talon.members("vip") == frozenset()
    told = counts(logged())
    assert told["sent"] == 0
    assert told["read"] < 120_000


def test_removals_survive_faults_too(run, sync, talon):
    sync(ids(3000))
    for kind in ("reset_before", "reset_after"):
        talon.fail_next(kind)
    talon.fail_next("status", status=503)
    operator = SyncAudienceMembersOperator(
        task_id="t", audience_id="vip", add=["new"], remove="{{ params.ids }}"
    )
    run(operator, native=True, params={"ids": ids(2500)})
    assert talon.members("vip") == set(ids(3000)[2500:]) | {"new"}


def test_a_storm_of_faults_loses_nothing(sync, talon):
    for after in range(0, 30, 3):
        talon.fail_next("status", status=503, after=after)
        talon.fail_next("reset_after", after=after)
        talon.fail_next("status", status=429, after=after)
    talon.reject_profiles(["p17", "p1717", "p9999"])
    result = sync(ids(10_000), max_rejected=3)
    assert talon.members("vip") == set(ids(10_000)) - {"p17", "p1717", "p9999"}
    assert (result["read"], result["sent"]) == (10_000, 9997)


def test_a_profile_is_never_in_two_requests_at_once(connect, talon, tmp_path):
    """The emulator answers 409 where that happens, and takes a while for each request, so that it would."""
    from airflow_provider_talon_cdp.changes.change import Change, Chunk  # noqa: PLC0415
    from airflow_provider_talon_cdp.hooks.talon_cdp import TalonCdpHook  # noqa: PLC0415
    from airflow_provider_talon_cdp.ledger.outside import OutsideChanges  # noqa: PLC0415
    from airflow_provider_talon_cdp.operators._state import identity_of  # noqa: PLC0415
    from airflow_provider_talon_cdp.sync.members import send_members  # noqa: PLC0415
    from airflow_provider_talon_cdp.sync.push import Limits  # noqa: PLC0415

    with Emulator(service_time=0.03) as emulator:
        connect(emulator=emulator)
        hook = TalonCdpHook()
        for audience in "abcd":
            hook.create_audience(audience, audience)
        emulator.reject_profiles(["p41"])
        # By profile, by audience, and as a drizzle of repetitions: each order overlaps differently.
        records = [Change(f"p{each}", audience, "add") for each in range(700) for audience in "abcd"]
        records += [Change(f"p{each}", audience, "add") for audience in "abcd" for each in range(700)]
        records += [Change(f"p{each * 7 % 700}", "abcd"[each % 4], "add") for each in range(2000)]
        chunks = (Chunk.of(records[start : start + 37]) for start in range(0, len(records), 37))
        outside = OutsideChanges(tmp_path, identity_of(hook, "calls:test"), "test")
        report = send_members(chunks, hook.members_sender, outside, Limits(max_rejected=None))
        assert "409" not in emulator.state()["requests"]["by_status"]
        for audience in "abcd":
            assert emulator.members(audience) == {f"p{each}" for each in range(700)} - {"p41"}
    assert report.read == len(records)
    assert report.balances
    assert report.unsent == 0
