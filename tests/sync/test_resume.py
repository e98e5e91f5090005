"""A mirror that stops, and the tries that go on with it."""

from __future__ import annotations

import pytest

from airflow_provider_talon_cdp.exceptions import (
    AuthenticationError,
    GuardError,
    LedgerError,
    NotFoundError,
    RejectedRecordsError,
    TransientError,
)
from airflow_provider_talon_cdp.sync import push_plan
from airflow_provider_talon_cdp.sync.changes import Change, Rejection
from airflow_provider_talon_cdp.sync.guard import Guard
from airflow_provider_talon_cdp.sync.mirror import Mirror
from tests.sync.fakes import adds, error, opened
from tests.sync.syncing import OPEN, numbers, vip


def test_what_was_acknowledged_before_an_error_is_not_sent_again(sync):
    sync.talon.errors = {2: error(AuthenticationError, 401)}
    with pytest.raises(AuthenticationError):
        sync.run(numbers(5000), in_flight=1)
    assert len(sync.known) == 2000
    report = sync.run(numbers(5000))
    assert (report.unchanged, report.sent) == (2000, 3000)
    assert sync.known == sync.talon.members


def stopped(sync, rows, *rejected, after=2):
    """Let a try send some batches and then fail."""
    sync.talon.errors = {sync.talon.requests + after: error(TransientError)}
    with pytest.raises(TransientError):
        sync.run(rows, *rejected, in_flight=1)


def test_a_retry_sends_what_is_left_before_it_reads_the_source_and_then_plans_anew(sync):
    stopped(sync, numbers(5000))
    assert sync.cursor.version == 1
    seen = []

    def rows():
        seen.append(len(sync.talon.members))
        yield from numbers(100, 5100)

    mirror = Mirror(source=rows, ledger=sync.ledger(), guard=OPEN, sender=lambda: opened(sync.talon))
    report = mirror.run("task", sync.cursor)
    assert seen == [5000]
    assert report.balances
    assert (report.resumed, report.read, report.unchanged, report.removals) == (3000, 5000, 4900, 100)
    assert (report.sent, report.ledger_version) == (3200, 3)
    assert str(report).startswith("5,000 read + 100 to remove + 3,000 resumed = 4,900 unchanged + 3,200 sent")
    assert sync.cursor.version == 0
    assert sync.known == sync.talon.members == vip(*(f"{n:06}" for n in range(100, 5100)))


def test_a_retry_sends_the_removals_that_are_left_too(sync):
    sync.run(numbers(3000))
    stopped(sync, numbers(2000, 4000), after=1)
    report = sync.run(numbers(2000, 4000), retry=True)
    assert (report.resumed, report.read, report.removals, report.sent) == (2000, 2000, 0, 2000)
    assert sync.talon.members == sync.known == vip(*(f"{n:06}" for n in range(2000, 4000)))


def test_the_guard_speaks_about_the_new_plan_of_a_retry_and_says_what_was_sent_before(sync):
    stopped(sync, numbers(3000))
    for sent in (
        "; 1,000 changes that an earlier try had left of its plan were sent before",
        "on_empty='skip'",
    ):
        with pytest.raises(GuardError, match="3,000") as refusal:
            sync.run(retry=True, guard=Guard())
        assert sent in str(refusal.value)
        assert len(sync.talon.members) == 3000
        assert sync.cursor.version == sync.ledger_version == 2
    assert sync.run(numbers(3000), retry=True).unchanged == 3000


def test_a_retry_whose_source_is_empty_and_skipped_reports_what_it_resumed(sync):
    stopped(sync, numbers(3000))
    report = sync.run(retry=True, guard=Guard(on_empty="skip"))
    assert (report.resumed, report.sent, report.removals, report.unsent) == (1000, 1000, 3000, 3000)
    assert sync.cursor.version == 0
    assert len(sync.talon.members) == 3000


def test_a_retry_that_finds_nothing_left_ends_green_and_clears_the_cursor(sync):
    sync.run(adds("a"))
    sync.cursor.version = 1
    report = sync.run(adds("a"), retry=True)
    assert report.requests == 0
    assert sync.cursor.version == 0


def test_a_cursor_of_another_version_is_not_followed(sync):
    sync.run(adds("a"))
    sync.cursor.version = 7
    sync.run(adds("a", "b"), retry=True)
    assert sync.known == vip("a", "b")


def test_a_retry_whose_audience_had_to_be_created_adds_all_members_again(sync):
    sync.run(numbers(2000))
    sync.talon.errors = {sync.talon.requests + 1: error(TransientError)}
    with pytest.raises(TransientError):
        sync.run(numbers(4000), in_flight=1)
    sync.talon.members = set()
    sync.run(numbers(4000), retry=True, create=lambda audience: audience == "vip")
    assert len(sync.talon.members) == 4000


def gold_and_vip(*profiles):
    return [Change(profile, audience, "add") for profile in profiles for audience in ("gold", "vip")]


def lose_gold(sync):
    """Somebody deletes an audience, and the try that creates it dies before it knows."""
    sync.talon.members = {member for member in sync.talon.members if member[1] != "gold"}

    def reset_after_the_effect(_):
        raise error(TransientError)

    return reset_after_the_effect


def test_a_retry_does_not_go_on_with_a_plan_whose_audience_was_not_there(sync):
    sync.run(adds("a", "b"))
    sync.talon.errors = {sync.talon.requests: error(NotFoundError, 404)}
    with pytest.raises(NotFoundError):
        sync.run(adds("a", "b", "c"))
    # Made again by hand, without its members.
    sync.talon.members = set()
    report = sync.run(adds("a", "b", "c"), retry=True)
    assert report.sent == 3
    assert sync.talon.members == sync.known == vip("a", "b", "c")


def test_a_retry_of_a_retry_that_died_while_it_created_an_audience_adds_all_members_again(sync):
    sync.run(gold_and_vip("a", "b"))
    sync.talon.errors = {sync.talon.requests: error(TransientError)}
    with pytest.raises(TransientError):
        sync.run(gold_and_vip("a", "b", "c"))
    with pytest.raises(TransientError):
        sync.run(retry=True, create=lose_gold(sync))
    sync.run(gold_and_vip("a", "b", "c"), retry=True)
    assert sync.talon.members == sync.known == {change[:2] for change in gold_and_vip("a", "b", "c")}


def test_a_retry_does_not_void_the_loss_that_another_run_noted(sync):
    sync.run(gold_and_vip("a", "b"))
    sync.talon.errors = {sync.talon.requests: error(TransientError)}
    with pytest.raises(TransientError):
        sync.run(gold_and_vip("a", "b", "c"))
    first = sync.cursor
    with pytest.raises(TransientError):
        sync.run(gold_and_vip("a", "b", "c"), create=lose_gold(sync))
    sync.cursor = first
    sync.run(gold_and_vip("a", "b", "c"), retry=True)
    assert sync.talon.members == sync.known == {change[:2] for change in gold_and_vip("a", "b", "c")}


AS_LEFT = "refused by Talon.One in what an earlier try had left"


def test_a_record_that_is_refused_while_resuming_and_again_counts_once_and_has_one_letter(sync):
    stopped(sync, numbers(9000))
    # Whether the second one is a member is uncertain, as its request may have arrived; the first one's has not left.
    sync.talon.bad = {"008000", "002000"}
    with pytest.raises(RejectedRecordsError, match="max_rejected is 0") as failure:
        sync.run(numbers(9000), Rejection("profile ID null"), retry=True)
    report = failure.value.report
    assert report.balances
    assert dict(report.rejected) == {"refused by Talon.One (400)": 2, "profile ID null": 1}
    assert (report.resumed, report.duplicate, report.sent) == (7000, 2, 6998)
    assert sorted(letter["profile_id"] for letter in sync.letters()) == ["002000", "008000"]
    assert sync.cursor.version == 0


def test_a_record_that_is_refused_while_resuming_and_then_has_left_the_source_is_not_forgotten(sync):
    sync.ahead = 1
    stopped(sync, numbers(5000))
    sync.talon.bad = {"004000", "004001"}
    report = sync.run(numbers(4001), retry=True, max_rejected=None)
    assert report.balances
    assert dict(report.rejected) == {"refused by Talon.One (400)": 1, AS_LEFT: 1}
    assert len(sync.letters()) == 2
    assert len(sync.talon.members) == 4000


def test_a_record_that_is_refused_while_resuming_and_then_accepted_is_no_rejection(sync):
    stopped(sync, numbers(5000))
    sync.talon.bad = {"004000"}

    def rows():
        sync.talon.bad = set()
        return iter(numbers(5000))

    mirror = Mirror(source=rows, ledger=sync.ledger(), guard=OPEN, sender=lambda: opened(sync.talon))
    report = mirror.run("task", sync.cursor)
    assert report.balances
    assert (report.rejected_total, report.sent, report.duplicate) == (0, 3000, 1)
    assert len(sync.talon.members) == 5000


def test_a_source_that_is_not_sorted_does_not_change_what_counts_as_refused_again(sync):
    sync.ahead = 1
    sync.run(numbers(9000))
    stopped(sync, numbers(4000, 9000), after=1)
    # A removal is refused, and then the member is wanted again; what is read before the order is seen to be wrong asks
    # for its removal once more.
    sync.talon.bad = {"003500"}
    rows = [*numbers(4000, 9000), *adds("003500")]
    report = sync.run(rows, retry=True, max_rejected=None)
    assert report.balances
    assert sync.reads == 4
    assert dict(report.rejected) == {AS_LEFT: 1}


def test_what_was_rejected_in_the_first_try_and_is_still_there_fails_the_retry(sync):
    sync.talon.bad = {"000000"}
    # Halving the first batch takes 19 requests.
    stopped(sync, numbers(9000), Rejection("profile ID null"), after=25)
    with pytest.raises(RejectedRecordsError) as failure:
        sync.run(numbers(9000), Rejection("profile ID null"), retry=True)
    assert dict(failure.value.report.rejected) == {"refused by Talon.One (400)": 1, "profile ID null": 1}


def test_a_run_that_loses_its_lock_stops_at_the_next_note(sync, monkeypatch):
    monkeypatch.setattr(push_plan, "_SECONDS_BETWEEN_FLUSHES", -1.0)
    sender = sync.talon

    class Overtaken:
        requests = retries = throttled = 0

        async def __call__(self, entries):
            if not self.requests:
                sync.ledger().lock.take("task")
            self.requests += 1
            await sender(entries)

    sync.talon = Overtaken()
    with pytest.raises(LedgerError, match="Another run took over"):
        sync.run(numbers(20_000), in_flight=2)
    assert sync.talon.requests <= 6
