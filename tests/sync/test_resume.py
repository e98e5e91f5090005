"""A mirror that stops, and the tries that go on with it."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest

from airflow_provider_talon_cdp.changes.change import Chunk, Rejection
from airflow_provider_talon_cdp.exceptions import (
    AuthenticationError,
    GuardError,
    LedgerError,
    NotFoundError,
    RejectedRecordsError,
    TransientError,
)
from airflow_provider_talon_cdp.ledger.ledger import RunFacts
from airflow_provider_talon_cdp.ledger.outside import OutsideChanges
from airflow_provider_talon_cdp.sync import push as push_module
from airflow_provider_talon_cdp.sync.audiences import Audiences
from airflow_provider_talon_cdp.sync.guard import Guard
from tests.sync.fakes import FakeTalon, adds, error
from tests.sync.syncing import STRICT, names, numbers, vip


def test_what_was_acknowledged_before_an_error_is_not_sent_again(sync):
    sync.talon.errors = {2: error(AuthenticationError, 401)}
    with pytest.raises(AuthenticationError):
        sync.run(numbers(5000), in_flight=1)
    assert len(sync.known) == 2000
    report = sync.run(numbers(5000))
    assert (report.unchanged, report.sent) == (2000, 3000)
    assert sync.known == sync.talon.members


def stopped(sync, *rows, after=2, **options):
    """Let a try send some batches and then fail."""
    sync.talon.errors = {sync.talon.requests + after: error(TransientError)}
    with pytest.raises(TransientError):
        sync.run(*rows, in_flight=1, **options)


def test_a_retry_sends_what_is_left_before_it_reads_the_source_and_then_plans_anew(sync):
    stopped(sync, numbers(5000))
    assert sync.cursor.version == 1
    seen = []

    def rows():
        seen.append(len(sync.talon.members))
        yield numbers(100, 5100)

    report = sync.mirror(source=rows).run("task", sync.cursor)
    assert seen == [5000]
    assert report.balances
    assert (report.resumed, report.read, report.unchanged) == (3000, 5000, 4900)
    assert (report.removals, report.sent, report.ledger_version) == ({"vip": 100}, 3200, 3)
    assert str(report).startswith(
        "5,000 read + 100 to remove + 3,000 resumed\n= 4,900 unchanged + 3,200 sent"
    )
    assert report.by_audience()["vip"]["members"] == 5000
    assert sync.cursor.version == 0
    assert sync.known == sync.talon.members == vip(*names(100, 5100))


def test_a_retry_does_not_forget_what_others_noted_since_the_try_before(sync):
    stopped(sync, numbers(5000))
    identity = replace(sync.identity, name="calls:x")
    outside = OutsideChanges(sync.storage.folder(), identity, "other", clock=lambda: sync.now)
    with outside.noting(adds("theirs")):
        sync.talon.members |= vip("theirs")
    sync.now += 1
    report = sync.run(numbers(5000), retry=True)
    assert (report.resumed, report.removed) == (3000, {"vip": 1})
    assert sync.talon.members == sync.known == vip(*names(5000))


def test_a_retry_sends_all_again_if_another_task_changed_the_audience_while_the_ledger_was_new(sync):
    """That task began when there was no ledger to be told."""
    identity = replace(sync.identity, name="calls:x")
    outside = OutsideChanges(sync.storage.folder(), identity, "other", clock=lambda: sync.now)
    with outside.noting(Chunk(names(1), "vip", "remove")):
        stopped(sync, numbers(5000))
        assert vip(*names(1)) <= sync.talon.members
        sync.talon.members -= vip(*names(1))
    sync.now += 1
    report = sync.run(numbers(5000), retry=True)
    assert (report.resumed, report.sent) == (0, 5000)
    assert sync.talon.members == sync.known == vip(*names(5000))


@pytest.mark.parametrize("environment", ["", "live"])
def test_under_another_key_a_retry_plans_anew_unless_the_environment_is_known(sync, environment):
    """Another environment may have the key: its audiences are looked at before anything is sent."""
    sync.identity = replace(sync.identity, environment=environment)
    verify = {"audiences": Audiences(names=NAMED, verify="none")}
    stopped(sync, numbers(5000), after=3, facts=RunFacts(key_fingerprint="1"), **verify)
    assert len(sync.talon.members) == 2000
    if not environment:
        sync.talon = FakeTalon()
        for each in NAMED:
            sync.talon.make(each)
    before = len(sync.talon.calls)
    verify = {"audiences": Audiences(names=NAMED, verify="none")}
    report = sync.run(numbers(5000), retry=True, facts=RunFacts(key_fingerprint="2"), **verify)
    assert report.resumed == (3000 if environment else 0)
    assert ("update", "vip", "VIP") in sync.talon.calls[before:]
    assert sync.talon.members == sync.known == vip(*names(5000))


def test_a_retry_sends_the_removals_that_are_left_too(sync):
    sync.run(numbers(3000))
    stopped(sync, numbers(2000, 4000), after=1)
    report = sync.run(numbers(2000, 4000), retry=True)
    assert (report.resumed, report.read, report.removals, report.sent) == (2000, 2000, {}, 2000)
    assert sync.talon.members == sync.known == vip(*names(2000, 4000))


def test_the_guard_speaks_about_the_new_plan_of_a_retry_and_says_what_was_sent_before(sync):
    stopped(sync, numbers(3000))
    for sent in (
        "as it is now.\nBefore it, 1,000 changes of an earlier try's plan were sent.",
        "on_empty='skip'",
    ):
        with pytest.raises(GuardError, match="3,000") as refusal:
            sync.run(retry=True, guard=Guard())
        assert sent in str(refusal.value)
        # What was sent is known already: the plan would remove all of it.
        assert sync.report.by_audience() == {"vip": {"added": 0, "removed": 3000, "members": 0}}
        assert len(sync.talon.members) == 3000
        assert sync.cursor.version == sync.loaded().version == 2
    assert sync.run(numbers(3000), retry=True).unchanged == 3000


def test_a_retry_whose_source_is_empty_and_skipped_reports_what_it_resumed(sync):
    stopped(sync, numbers(3000))
    report = sync.run(retry=True, guard=Guard(on_empty="skip"))
    assert (report.resumed, report.sent, report.removals, report.unsent) == (1000, 1000, {"vip": 3000}, 3000)
    assert report.by_audience() == {"vip": {"added": 1000, "removed": 0, "members": 3000}}
    assert sync.cursor.version == 0
    assert len(sync.talon.members) == 3000


def test_a_retry_that_finds_nothing_left_ends_green_and_clears_the_cursor(sync):
    sync.run(adds("a"))
    sync.cursor.version = 1
    report = sync.run(adds("a"), retry=True)
    assert report.requests == 0
    assert sync.cursor.version == 0


def test_a_cursor_of_an_earlier_version_is_not_followed(sync):
    for ids in ("a", "ab"):
        sync.run(adds(*ids))
    sync.cursor.version = 1
    sync.run(adds("a", "b", "c"), retry=True)
    assert sync.known == vip("a", "b", "c")


def test_a_ledger_that_is_older_than_the_cursor_is_refused(sync):
    sync.run(adds("a"))
    sync.cursor.version = 7
    requests = sync.talon.requests
    with pytest.raises(LedgerError, match="has version 1, but this task last wrote version 7"):
        sync.run(adds("a", "b"), retry=True)
    assert sync.talon.requests == requests


# Audiences that are lost meanwhile


NAMED = {"vip": "VIP", "gold": "Gold"}


def verified():
    return Audiences(names=NAMED, verify="identity")


def test_a_retry_whose_audience_had_to_be_created_adds_all_members_again(sync):
    sync.run(numbers(2000), audiences=verified())
    sync.talon.errors = {sync.talon.requests + 2: error(TransientError)}
    with pytest.raises(TransientError):
        sync.run(numbers(4000), in_flight=1, audiences=verified())
    sync.talon.delete("vip")
    with pytest.raises(NotFoundError):
        sync.run(numbers(4000), retry=True, audiences=verified())
    sync.run(numbers(4000), retry=True, audiences=verified())
    assert sync.talon.members == sync.known == vip(*names(4000))


def gold_and_vip(*profiles):
    return Chunk([each for each in profiles for _ in "gv"], ["gold", "vip"] * len(profiles))


def test_a_retry_does_not_go_on_with_a_plan_whose_audience_was_not_there(sync):
    sync.run(adds("a", "b"))
    sync.talon.missing = {"vip"}
    with pytest.raises(NotFoundError):
        sync.run(adds("a", "b", "c"))
    # Made again by hand, without its members.
    sync.talon.members, sync.talon.missing = set(), set()
    report = sync.run(adds("a", "b", "c"), retry=True)
    assert report.sent == 3
    assert sync.talon.members == sync.known == vip("a", "b", "c")


class LosesAnswers(FakeTalon):
    """The answer to a creation is lost."""

    async def create_audience(self, audience, name):
        await super().create_audience(audience, name)
        raise error(TransientError)


@pytest.fixture
def gold(sync):
    """Two audiences, a try that failed to add a member to them, and then the loss of one audience."""
    sync.talon = LosesAnswers()
    for each in NAMED:
        sync.talon.make(each)
    sync.run(gold_and_vip("a", "b"), audiences=verified())
    sync.talon.errors = {sync.talon.requests + 2: error(TransientError)}
    with pytest.raises(TransientError):
        sync.run(gold_and_vip("a", "b", "c"), audiences=verified())
    sync.talon.errors = {}
    sync.talon.delete("gold")
    return {(profile, audience) for profile in "abc" for audience in NAMED}


def fails(sync, kind, **options):
    with pytest.raises(kind):
        sync.run(gold_and_vip("a", "b", "c"), audiences=verified(), **options)


def test_a_retry_of_a_retry_that_died_while_it_created_an_audience_adds_all_members_again(sync, gold):
    fails(sync, NotFoundError, retry=True)
    fails(sync, TransientError, retry=True)
    assert "gold" in sync.talon.ids
    sync.run(gold_and_vip("a", "b", "c"), retry=True, audiences=verified())
    assert sync.talon.members == sync.known == gold


def test_a_retry_does_not_void_the_loss_that_another_run_noted(sync, gold):
    cursor = sync.cursor
    fails(sync, TransientError)
    assert "gold" in sync.talon.ids
    sync.cursor = cursor
    sync.run(gold_and_vip("a", "b", "c"), retry=True, audiences=verified())
    assert sync.talon.members == sync.known == gold


def test_a_retry_notices_that_an_audience_was_made_again_by_hand_between_two_tries(sync, gold):
    sync.talon.make("gold")
    report = sync.run(gold_and_vip("a", "b", "c"), retry=True, audiences=verified())
    assert report.resumed
    assert sync.talon.members == sync.known == gold


# Refusals in several tries


def test_a_record_that_is_refused_while_resuming_and_again_counts_once_and_has_one_letter(sync):
    stopped(sync, numbers(9000))
    # The request of the second one may have arrived, so whether it is a member is uncertain.
    sync.talon.bad = {"008000", "002000"}
    with pytest.raises(RejectedRecordsError, match="max_rejected is 0") as failure:
        sync.run(numbers(9001), Rejection("profile ID null"), retry=True)
    report = failure.value.report
    assert report.balances
    assert report.rejected == {"refused by Talon.One (400)": 2, "profile ID null": 1}
    assert (report.resumed, report.duplicate, report.sent) == (7000, 2, 6999)
    assert sorted(letter["profile_id"] for letter in sync.letters()) == ["002000", "008000"]
    assert sync.cursor.version == 0
    # The ledger still knows that the uncertain one may be there.
    assert sync.uncertain == vip("002000")


def test_a_record_that_is_refused_while_resuming_and_then_has_left_the_source_is_not_forgotten(sync):
    sync.ahead = 1
    stopped(sync, numbers(5000))
    sync.talon.bad = {"004000", "004001"}
    report = sync.run(numbers(4001), retry=True, max_rejected=None)
    assert report.balances
    assert report.rejected == {"refused by Talon.One (400)": 2}
    assert len(sync.letters()) == 2
    assert len(sync.talon.members) == 4000


def test_a_record_that_is_refused_while_resuming_is_not_asked_about_twice_in_one_run(sync):
    stopped(sync, numbers(5000))
    sync.talon.bad = {"004000"}

    def rows():
        sync.talon.bad = set()
        yield numbers(5000)

    report = sync.mirror(source=rows, max_rejected=1).run("task", sync.cursor)
    assert report.balances
    assert (report.rejected.total(), report.sent, report.duplicate) == (1, 2999, 1)
    assert len(sync.talon.members) == 4999
    # The next run does.
    assert sync.run(numbers(5000)).sent == 1


def test_a_source_of_records_that_were_all_refused_while_resuming_is_not_an_empty_one(sync):
    stopped(sync, adds("a"), after=0)
    sync.ahead = 1
    sync.talon.bad = {"a"}
    report = sync.run(adds("a"), retry=True, max_rejected=None, guard=Guard())
    assert report.rejected == {"refused by Talon.One (400)": 1}


def test_a_source_that_is_not_sorted_does_not_change_what_counts_as_refused_again(sync):
    sync.ahead = 1
    sync.run(numbers(9000))
    stopped(sync, numbers(4000, 9000), after=1)
    # A removal is refused, and then the member is wanted. What is read before the order is seen to be wrong
    # asks for its removal.
    sync.talon.bad = {"003500"}
    report = sync.run(numbers(4000, 9000), adds("003500"), retry=True, max_rejected=None)
    assert report.balances
    assert sync.reads == 4
    assert report.rejected == {"refused by Talon.One (400)": 1}


def test_a_removal_that_is_refused_while_resuming_and_again_counts_once(sync):
    sync.ahead = 1
    sync.run(numbers(3000))
    stopped(sync, numbers(2500), after=0)
    sync.talon.bad = {"002700"}
    report = sync.run(numbers(2500), retry=True, max_rejected=None)
    assert report.balances
    assert report.rejected == {"refused by Talon.One (400)": 1}
    assert len(sync.letters()) == 1
    assert sync.known == sync.talon.members == vip(*names(2500), "002700")


def test_what_was_rejected_in_the_first_try_and_is_still_there_fails_the_retry(sync):
    sync.talon.bad = {"000000"}
    # Halving the first batch takes 19 requests.
    stopped(sync, numbers(9000), Rejection("profile ID null"), after=25)
    with pytest.raises(RejectedRecordsError) as failure:
        sync.run(numbers(9000), Rejection("profile ID null"), retry=True)
    assert failure.value.report.rejected == {"refused by Talon.One (400)": 1, "profile ID null": 1}


def test_what_was_rejected_in_the_first_try_is_left_out_by_the_retry_where_that_is_asked_for(sync):
    sync.talon.bad = {"000000"}
    stopped(sync, numbers(9000), after=25)
    report = sync.run(numbers(9000), retry=True, max_rejected=None, retry_rejected="never")
    assert report.rejected.total() == 1
    assert "not sent again" in next(iter(report.rejected))
    requests = sync.talon.requests
    sync.run(numbers(9000), max_rejected=None, retry_rejected="never")
    assert sync.talon.requests == requests


# Another run takes over


class Overtaken(FakeTalon):
    """Another run takes the ledger while the first request is under way; whatever left arrives."""

    def __init__(self, sync):
        super().__init__()
        self.members = set(sync.talon.members)
        self._sync = sync

    async def __call__(self, chunk):
        if not self.requests:
            self._sync.ledger().lock.take("task")
        try:
            await super().__call__(chunk)
        except asyncio.CancelledError:
            self.members -= {change[:2] for change in chunk.changes()}
            raise


@pytest.fixture
def overtaken(sync, monkeypatch):
    """A run that takes members out, and another one that takes over."""
    monkeypatch.setattr(push_module, "_SECONDS_BETWEEN_FLUSHES", -1.0)
    sync.run(numbers(20_000))
    sync.talon = Overtaken(sync)
    with pytest.raises(LedgerError, match="has lost the ledger's lock"):
        sync.run(numbers(500), in_flight=3)
    return sync.talon


def test_a_run_that_loses_its_lock_stops_at_the_next_note(overtaken):
    assert overtaken.requests <= 8
    assert len(overtaken.members) < 20_000


def test_what_was_sent_after_the_lock_was_lost_is_sent_again_by_the_run_that_took_over(sync, overtaken):
    sync.now += 10_000
    sync.talon = FakeTalon()
    sync.talon.members = set(overtaken.members)
    # Its source has all members.
    sync.run(numbers(20_000))
    assert sync.talon.members == sync.known == vip(*names(20_000))
    assert not sync.uncertain


def test_a_retry_of_a_retry_resumes_too(sync):
    stopped(sync, numbers(5000))
    sync.talon.errors = {sync.talon.requests + 1: error(TransientError)}
    with pytest.raises(TransientError):
        sync.run(numbers(5000), retry=True, in_flight=1)
    report = sync.run(numbers(5000), retry=True)
    assert (report.resumed, report.unchanged) == (2000, 5000)


def test_the_removals_of_a_retry_are_beyond_a_strict_guard_all_the_same(sync):
    sync.run(numbers(3000))
    stopped(sync, numbers(2900), after=0)
    with pytest.raises(GuardError, match="would lose"):
        sync.run(numbers(100), retry=True, guard=STRICT)
    assert len(sync.talon.members) == 2900
