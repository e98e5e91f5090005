"""The mirror, over a ledger in memory and a stand-in for Talon.One."""

from __future__ import annotations

import logging
import re
from dataclasses import replace

import pytest

from airflow_provider_talon_cdp.changes.change import Chunk, Rejection
from airflow_provider_talon_cdp.changes.diff import Scope
from airflow_provider_talon_cdp.exceptions import (
    AuthenticationError,
    GuardError,
    InvalidInputError,
    LedgerBusyError,
    LedgerError,
    LedgerUnavailableError,
    OlderRunError,
    RejectedRecordsError,
    StoppedError,
    TransientError,
)
from airflow_provider_talon_cdp.ledger.ledger import Ledger, RunFacts
from airflow_provider_talon_cdp.sync.audiences import Audiences
from airflow_provider_talon_cdp.sync.guard import Guard
from airflow_provider_talon_cdp.sync.loop import stop_pushes
from airflow_provider_talon_cdp.sync.members import Members
from airflow_provider_talon_cdp.sync.mirror import REFUSED_IN_EARLIER_TRY, combined_report, push_share
from airflow_provider_talon_cdp.sync.push import Limits
from airflow_provider_talon_cdp.sync.report import Report
from tests.sync.fakes import FakeTalon, adds, error, opened
from tests.sync.syncing import STRICT, Sync, numbers, vip


def test_a_mirror_adds_what_is_new_and_removes_what_is_gone(sync):
    first = sync.run(adds("a", "b", "c"))
    assert (first.read, first.added, first.removed, first.ledger_version) == (3, {"vip": 3}, {}, 1)
    second = sync.run(adds("b", "c", "d"))
    assert (second.read, second.unchanged, second.added, second.removed) == (3, 2, {"vip": 1}, {"vip": 1})
    assert second.by_audience() == {"vip": {"added": 1, "removed": 1, "members": 3}}
    assert sync.talon.members == sync.known == vip("b", "c", "d")


def test_the_same_source_again_sends_nothing(sync):
    sync.run(adds("a", "b"))
    report = sync.run(adds("a", "b"))
    assert (report.requests, report.unchanged, report.ledger_version) == (0, 2, 1)
    assert sync.talon.requests == 1


def test_members_that_somebody_else_added_stay(sync):
    sync.talon.members = vip("theirs")
    sync.run(adds("a"))
    sync.run()
    assert sync.talon.members == vip("theirs")


def test_a_source_in_another_order_is_read_again_and_sorted_and_the_log_says_so(sync, caplog):
    caplog.set_level(logging.INFO)
    report = sync.run(adds("c", "a", "b", "a"), Rejection("profile ID null"), max_rejected=1)
    assert sync.reads == 2
    assert "is not sorted by bytes" in caplog.text
    assert (report.read, report.duplicate, report.sent) == (5, 1, 3)
    assert report.rejected == {"profile ID null": 1}
    assert sync.talon.members == vip("a", "b", "c")


@pytest.mark.parametrize("reads", ["sorted", "not sorted", "refused"])
def test_a_reading_of_the_source_is_closed_before_anything_else_happens(sync, reads):
    cursors = []

    def source():
        assert not cursors, "another cursor is open"
        cursors.append("open")
        try:
            yield numbers(20_000)
            if reads == "not sorted":
                yield numbers(20_000)
        finally:
            cursors.pop()

    class Watching(FakeTalon):
        async def _travel(self):
            assert not cursors
            await super()._travel()

    sync.talon = Watching()
    mirror = sync.mirror(
        source=source,
        managed=["gold"] if reads == "refused" else None,
        audiences=Audiences(names={"vip": "VIP"}),
    )
    if reads == "refused":
        with pytest.raises(InvalidInputError) as refusal:
            mirror.run("task")
        assert not cursors, refusal
    else:
        assert mirror.run("task").sent == 20_000
        assert sync.talon.calls == [("create", "vip", "VIP")]


def test_a_member_of_many_audiences_travels_in_one_entry(sync):
    assert sync.run(Chunk(["a", "a", "a"], ["x", "y", "z"])).requests == 1
    sync.run(Chunk(["a"], "x"))
    assert sync.talon.members == {("a", "x")}


def test_only_managed_audiences_change(sync):
    sync.run(Chunk(["a", "a"], ["gold", "vip"]))
    sync.run(adds("b"), managed=["vip"])
    assert sync.talon.members == sync.known == {("a", "gold"), ("b", "vip")}
    with pytest.raises(InvalidInputError, match="'gold', which is not in audiences"):
        sync.run(adds("b", audience="gold"), managed=["vip"])


def test_the_counts_balance_if_the_storage_fails_after_the_push(sync, monkeypatch):
    def fail(_):
        raise LedgerUnavailableError("The ledger cannot be read.")

    monkeypatch.setattr(Ledger, "suspected_by_now", fail)
    report = Report()
    mirror = sync.mirror(adds("a", "b"), audiences=Audiences(names={"vip": "VIP"}))
    with pytest.raises(LedgerUnavailableError):
        mirror.run("me", report=report)
    assert (report.sent, report.read) == (2, 2)
    assert report.balances


def test_an_audience_is_not_taken_out_while_something_in_it_is_uncertain(sync):
    sync.talon.errors = {0: error(TransientError)}
    with pytest.raises(TransientError):
        sync.run(Chunk(["a", "a"], ["gold", "vip"]))
    # The request may have arrived all the same.
    sync.talon.members = {("a", "gold"), ("a", "vip")}
    before, requests = dict(sync.storage.objects), sync.talon.requests
    with pytest.raises(InvalidInputError, match=r"'gold', which is not in audiences now\.\nAdd it again"):
        sync.run(adds("b"), managed=["vip"], audiences=Audiences(names={"vip": "VIP"}))
    assert sync.talon.requests == requests
    assert sync.storage.objects == before
    assert sync.uncertain == {("a", "gold"), ("a", "vip")}
    sync.run(adds("b"), managed=["vip", "gold"])
    assert sync.talon.members == sync.known == vip("b")
    assert not sync.uncertain
    sync.run(adds("c"), managed=["vip"])
    assert sync.talon.members == vip("c")


def test_an_audience_that_was_not_managed_while_the_key_changed_is_sent_again_later(sync):
    """The key may be of another environment, in which the audience has no members."""
    both, how = Chunk(["a", "b"], ["gold", "vip"]), {"facts": keyed("2")}
    sync.run(both, facts=keyed("1"), audiences=Audiences())
    sync.talon.members.clear()
    for _ in range(2):
        sync.run(adds("b"), managed=["vip"], audiences=Audiences(), **how)
    assert sync.talon.members == vip("b")
    sync.run(both, audiences=Audiences(), **how)
    assert sync.talon.members == {("a", "gold"), ("b", "vip")}
    assert not sync.run(both, audiences=Audiences(), **how).sent


def test_an_audience_that_was_not_managed_when_an_older_ledger_was_accepted_is_sent_again_later(sync):
    """The run that accepts it sends all, but only of what it may change."""
    both = Chunk(["a", "b"], ["gold", "vip"])
    sync.run(both)
    backup = dict(sync.storage.objects)
    sync.run(adds("b"))
    sync.run(both)
    sync.talon.members.discard(("a", "gold"))
    sync.storage.objects = backup
    mirror = sync.mirror(adds("b"), managed=["vip"], sends_all=True)
    mirror.ledger.at_least, mirror.ledger.accepts_older = 3, True
    mirror.run("task")
    sync.run(both)
    assert sync.talon.members == {("a", "gold"), ("b", "vip")}


def test_notes_are_covered_once_though_nothing_changes_and_two_mirrors_come_to_rest(sync):
    other = type(sync)()
    other.storage, other.talon, other.identity = sync.storage, sync.talon, VIP
    for each in (sync, other, sync, other):
        each.now = sync.now = max(sync.now, other.now)
        each.run(adds("a", "b"))
    versions = sync.loaded().version, other.loaded().version
    for each in (sync, other, sync, other):
        each.run(adds("a", "b"))
    assert (sync.loaded().version, other.loaded().version) == versions
    assert not sync.loaded().other_writers


@pytest.mark.parametrize("joined", [(), ("c",)], ids=["no changes", "changes"])
def test_a_first_fill_goes_on_in_bulk_after_a_run_that_did_not_manage_its_audience(sync, joined):
    def kind(*managed):
        return Members(scope=Scope(managed=managed or None), rules="changes")

    sync.run(adds("a"), kind=kind())
    gold = [f"{number:04}" for number in range(1500)]
    all_rows = Chunk([*gold, "a"], ["gold"] * len(gold) + ["vip"])
    sync.talon.errors = {sync.talon.requests + 1: error(AuthenticationError, 401)}
    with pytest.raises(AuthenticationError):
        sync.run(all_rows, kind=kind(), in_flight=1)
    sync.run(adds("a", *joined), kind=kind("vip"))
    calls = len(sync.talon.calls)
    sync.run(all_rows, *([adds("c")] if joined else []), kind=kind())
    assert len(sync.talon.calls) == calls
    assert len(sync.talon.members) == 1501 + len(joined)


def test_all_of_the_source_can_be_sent_again(sync):
    sync.run(adds("a", "b", "c"))
    sync.talon.members = set()
    report = sync.run(adds("b", "c", "d"), sends_all=True)
    assert (report.unchanged, report.added, report.removed) == (0, {"vip": 3}, {"vip": 1})
    assert sync.talon.members == sync.known == vip("b", "c", "d")
    assert report.by_audience()["vip"]["members"] == 3


def test_the_log_has_the_plan_and_the_report_in_short_lines(sync, caplog):
    caplog.set_level(logging.INFO)
    sync.run(numbers(1000))
    sync.run(numbers(10, 1020))
    plan = "Plan: 20 to add, 10 to remove, 990 unchanged; the ledger has 1,000 members\nLedger: memory:/"
    assert plan in caplog.text
    assert "Done:\n1,010 read + 10 to remove + 0 resumed\n= 990 unchanged + 30 sent" in caplog.text


# The guard


def test_the_guard_speaks_before_the_first_request_and_leaves_everything_as_it_was(sync):
    sync.run(adds("a", "b", "c"))
    before, requests = dict(sync.storage.objects), sync.talon.requests
    for rows in ([], [adds("a")], [Rejection("profile ID longer", "x")]):
        with pytest.raises(GuardError, match=r"Nothing was sent"):
            sync.run(*rows, guard=STRICT, audiences=Audiences(names={"vip": "VIP"}))
    assert sync.storage.objects == before
    assert sync.talon.requests == requests


def test_an_empty_source_that_is_skipped_changes_nothing(sync, caplog):
    sync.run(adds("a", "b"))
    before = dict(sync.storage.objects)
    report = sync.mirror(guard=Guard(on_empty="skip")).run("task")
    assert (report.read, report.sent, report.removals.total(), report.unsent) == (0, 0, 2, 2)
    assert report.balances
    assert sync.storage.objects == before
    assert "on_empty is 'skip': its plan was not sent" in caplog.text


def test_an_empty_source_that_is_allowed_empties_the_audience(sync):
    sync.run(adds("a", "b"))
    report = sync.run()
    assert (report.removals, report.removed) == ({"vip": 2}, {"vip": 2})
    assert sync.talon.members == sync.known == set()


def test_a_first_run_with_a_wrong_key_does_not_stand_in_the_way_of_a_right_query(sync):
    """Nothing of it arrived, and the guard protects what was acknowledged only."""
    sync.talon.errors = {number: error(AuthenticationError, 401) for number in range(64)}
    with pytest.raises(AuthenticationError):
        sync.run(numbers(64_000), guard=Guard())
    sync.talon.errors = {}
    report = sync.run(numbers(100_000, 100_500), guard=Guard())
    assert sync.talon.members == sync.known
    assert len(sync.known) == 500
    # The requests beside the refused one may have arrived.
    assert report.added == {"vip": 500}
    assert report.by_audience()["vip"]["members"] == 500


# Dry run


def test_a_dry_run_sends_and_records_nothing_and_tells_all(sync, caplog):
    caplog.set_level(logging.INFO)
    sync.run(numbers(3000))
    before, requests = dict(sync.storage.objects), sync.talon.requests
    report = sync.mirror(numbers(100, 4600)).dry_run(10)
    assert report.balances
    assert (report.read, report.unchanged, report.removals, report.unsent) == (4500, 2900, {"vip": 100}, 1700)
    assert (report.requests, report.sent, report.verdict, report.ledger_version) == (2, 0, "would be sent", 1)
    assert "It takes 2 requests: 0.2 s at 10 a second." in caplog.text
    assert sync.storage.objects == before
    assert sync.talon.requests == requests


@pytest.mark.parametrize(
    "guard, verdict",
    [(Guard(), r"^would be refused: The source has no rows"), (Guard(on_empty="skip"), "skipped$")],
)
def test_a_dry_run_tells_the_guards_verdict(sync, guard, verdict):
    sync.run(adds("a"))
    report = sync.mirror(guard=guard).dry_run(60)
    assert re.search(verdict, report.verdict)
    assert report.balances


def test_a_dry_run_of_a_new_ledger_writes_no_file(sync):
    report = sync.mirror(adds("b", "a"), Rejection("x", "y")).dry_run(60)
    assert (report.unsent, report.rejected.total(), report.ledger_version) == (2, 1, 0)
    assert not sync.storage.objects


def test_a_dry_run_does_not_wait_for_another_run(sync):
    with sync.ledger().held("other"):
        assert sync.mirror(adds("a")).dry_run(60).unsent == 1


def test_another_run_is_an_error(sync):
    other = sync.ledger()
    with other.held("other"), pytest.raises(LedgerBusyError):
        sync.run(adds("a"))
    assert not sync.talon.requests


# Rejections


def test_refused_members_are_dead_letters_and_the_rest_is_recorded(sync):
    sync.talon.bad = {"b"}
    with pytest.raises(RejectedRecordsError, match="max_rejected is 0") as failure:
        sync.run(adds("a", "b", "c"))
    report = failure.value.report
    assert report.balances
    assert (report.sent, report.rejected.total(), report.ledger_version) == (2, 1, 1)
    assert report.dead_letters in str(failure.value)
    assert sync.known == sync.talon.members == vip("a", "c")
    (letter,) = sync.letters()
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", letter.pop("time"))
    assert letter == {
        "profile_id": "b",
        "audience_id": "vip",
        "action": "add",
        "reason": "bad",
        "status": 400,
        "request_uuid": "uuid-1",
    }


def test_a_refused_member_is_tried_again_by_the_next_run(sync):
    sync.talon.bad = {"b"}
    assert sync.run(adds("a", "b"), max_rejected=1).rejected.total() == 1
    sync.talon.bad = set()
    assert sync.run(adds("a", "b")).sent == 1
    assert sync.known == sync.talon.members == vip("a", "b")


BAD = {f"{number:06}" for number in range(0, 5000, 100)}


def test_members_that_were_refused_before_travel_one_by_one_beside_full_requests(sync):
    sync.talon.bad = BAD
    assert sync.run(numbers(5000), max_rejected=None).rejected.total() == 50
    before = sync.talon.requests
    # A day later all are sent again, with new ones between them.
    report = sync.run(numbers(9000), max_rejected=None)
    assert report.rejected == {"refused by Talon.One (400)": 50}
    assert sync.talon.requests - before <= 50 + 10
    assert len(sync.known) == 8950


def test_members_that_were_refused_before_are_left_out_where_that_is_asked_for(sync):
    sync.talon.bad = BAD
    sync.run(numbers(5000), max_rejected=None)
    for _ in range(2):
        # What is left out is not forgotten by the run that leaves it out.
        before = sync.talon.requests
        report = sync.run(numbers(5000), max_rejected=None, retry_rejected="never")
        assert report.rejected == {
            "refused in an earlier run and not sent again, as retry_rejected is 'never'": 50
        }
        assert sync.talon.requests == before
    report = sync.run(numbers(6000), max_rejected=None, retry_rejected="never")
    assert (report.added, report.rejected.total()) == ({"vip": 1000}, 50)
    report = sync.run(numbers(7000), max_rejected=None, retry_rejected="never")
    assert (report.added, report.rejected.total()) == ({"vip": 1000}, 50)
    # One that left the source is forgotten, and tried again when it comes back.
    sync.run(numbers(1, 8000), max_rejected=None, retry_rejected="never")
    sync.talon.bad = set()
    report = sync.run(numbers(8000), max_rejected=None, retry_rejected="never")
    assert report.added == {"vip": 1}
    assert sync.run(numbers(8000)).added == {"vip": 49}


def test_a_dry_run_leaves_them_out_too(sync):
    sync.talon.bad = {"b"}
    sync.run(adds("a", "b"), max_rejected=None)
    before = dict(sync.storage.objects)
    report = sync.mirror(adds("a", "b", "c"), retry_rejected="never").dry_run(60)
    assert report.balances
    assert (report.unsent, report.rejected.total()) == (1, 1)
    assert sync.storage.objects == before


def test_a_source_of_members_that_were_all_refused_before_is_not_an_empty_one(sync):
    sync.talon.bad = {"a", "b"}
    sync.run(adds("a", "b"), max_rejected=None)
    report = sync.run(adds("a", "b"), max_rejected=None, retry_rejected="never", guard=Guard())
    assert report.rejected.total() == 2


def test_records_that_cannot_be_members_are_dead_letters_where_they_have_an_id(sync):
    report = sync.run(
        adds("a"), Rejection("profile ID null"), Rejection("too long", "x" * 9), max_rejected=None
    )
    assert report.rejected == {"profile ID null": 1, "too long": 1}
    (letter,) = sync.letters()
    assert (letter["profile_id"], letter["reason"]) == ("x" * 9, "too long")
    assert report.dead_letters


def test_a_run_without_changes_still_buries_and_counts(sync):
    sync.run(adds("a"))
    with pytest.raises(RejectedRecordsError) as failure:
        sync.run(adds("a"), Rejection("too long", "x"))
    assert failure.value.report.balances
    assert len(sync.letters()) == 1


def test_letters_of_a_source_that_is_read_twice_are_written_once(sync):
    sync.run(adds("b"), Rejection("too long", "x"), adds("a"), max_rejected=None)
    assert sync.reads == 2
    assert [letter["profile_id"] for letter in sync.letters()] == ["x"]


def test_no_member_is_named_in_the_log(sync, caplog):
    caplog.set_level(logging.DEBUG)
    sync.talon.bad = {"secret-b"}
    sync.run(adds("secret-a", "secret-b"), Rejection("too long", "secret-c"), max_rejected=None)
    sync.run(adds("secret-c", "secret-d"))
    assert caplog.text
    assert "secret" not in caplog.text


# Ends before the end


def test_a_source_that_fails_leaves_the_ledger_as_it_was(sync):
    sync.run(adds("a"))

    def rows():
        yield adds("b")
        raise OSError("the database went away")

    with pytest.raises(OSError, match="went away"):
        sync.mirror(source=rows).run("task")
    assert sync.known == vip("a")
    assert sync.run(adds("a", "b")).sent == 1


def test_a_run_that_is_told_to_stop_while_it_reads_plans_nothing(sync):
    def rows():
        yield adds("a")
        stop_pushes()
        yield adds("b")

    with pytest.raises(StoppedError):
        sync.mirror(source=rows).run("task")
    assert not sync.talon.requests
    assert sync.loaded().version == 0
    # The next run forgets it, and the lock was given back.
    assert sync.run(adds("a", "b")).sent == 2


def test_a_run_that_stops_early_says_how_far_it_came(sync, caplog):
    sync.talon.errors = {1: error(TransientError)}
    with pytest.raises(TransientError):
        sync.run(numbers(5000), Rejection("null"), in_flight=1)
    assert "Stopped early:\n5,001 read + 0 to remove" in caplog.text
    assert "= 0 unchanged + 1,000 sent + 0 duplicate + 1 rejected + 4,000 unsent" in caplog.text
    assert "The next run may send some of it again, which is harmless." in caplog.text


# Older data after newer data


def until(day):
    return RunFacts(data_until=f"2026-01-{day:02}T00:00:00+00:00")


def test_older_data_after_newer_data_is_an_error_unless_it_is_asked_for(sync, caplog):
    sync.run(adds("a", "b"), facts=until(3))
    before, requests = dict(sync.storage.objects), sync.talon.requests
    with pytest.raises(OlderRunError, match=r"(?s)until 2026-01-03.*until 2026-01-02") as failure:
        sync.run(adds("a"), facts=until(2))
    assert "on_older_run='allow'" in str(failure.value)
    report = sync.run(adds("a"), facts=until(2), on_older_run="skip")
    assert report.verdict.startswith("skipped: The ledger holds data until 2026-01-03")
    assert "It would undo what the newer run did" in caplog.text
    assert (report.read, report.ledger_version) == (0, 1)
    with pytest.raises(OlderRunError):
        sync.mirror(adds("a"), facts=until(2)).hand_over("task")
    assert sync.talon.requests == requests
    assert sync.storage.objects == before
    assert sync.run(adds("a"), facts=until(2), on_older_run="allow").removed == {"vip": 1}
    # From now on it holds the older data.
    assert sync.run(adds("a"), facts=until(2)).unchanged == 1


@pytest.mark.parametrize("facts", [until(3), until(4), RunFacts()])
def test_the_same_data_newer_data_and_data_of_no_time_are_synced(sync, facts):
    sync.run(adds("a"), facts=until(3))
    assert sync.run(adds("b"), facts=facts).sent == 2


def test_a_run_without_changes_remembers_its_time_too(sync):
    sync.run(adds("a"), facts=until(1))
    assert sync.run(adds("a"), facts=until(5)).ledger_version == 1
    with pytest.raises(OlderRunError):
        sync.run(adds("b"), facts=until(4))


def test_a_report_balances_where_an_audience_cannot_be_looked_at_after_the_push(sync):
    report = Report()
    sync.talon.errors = {2: error(TransientError)}
    audiences = Audiences(names={"vip": "VIP"}, verify="identity")
    with pytest.raises(TransientError):
        sync.mirror(adds("a", "b"), audiences=audiences).run("task", report=report)
    assert (report.read, report.sent, report.unsent) == (2, 2, 0)
    assert report.balances


# Another API key


VIP = replace(Sync.identity, name="audience:vip")


def keyed(fingerprint, platform="live"):
    return RunFacts(key_fingerprint=fingerprint, platform_name=platform)


@pytest.mark.parametrize("other", [keyed("2"), keyed("1", "sandbox")])
@pytest.mark.parametrize("environment", ["", "live"])
def test_another_key_is_a_warning_and_the_audiences_are_checked(sync, caplog, other, environment):
    """An audience that exists may be that of another environment, unless Environment says that it is not.

    On another platform it may be another one in any case.
    """
    sync.identity = replace(sync.identity, environment=environment)
    audiences = {"audiences": Audiences(verify="none")}
    sync.run(adds("a"), facts=keyed("1"), **audiences)
    assert sync.run(adds("a"), facts=keyed("1"), **audiences).requests == 0
    assert "API key" not in caplog.text
    audiences = {"audiences": Audiences(verify="none")}
    report = sync.run(adds("a"), facts=other, **audiences)
    is_the_same = environment and other.platform_name == "live"
    assert (report.requests, report.sent) == ((1, 0) if is_the_same else (2, 1))
    assert "The API key or the platform name on the connection has changed since the last run." in caplog.text
    assert "set Environment on the connection" in caplog.text
    caplog.clear()
    # It is the usual one now.
    audiences = {"audiences": Audiences(verify="none")}
    assert sync.run(adds("a"), facts=other, **audiences).requests == 0
    assert "API key" not in caplog.text


def test_after_another_key_the_members_of_a_named_audience_are_sent_again_once(sync):
    def run(key):
        return sync.run(adds("a"), facts=keyed(key), audiences=Audiences(names=names, verify="identity"))

    names = {}
    run("1")
    sync.talon.make("vip")
    names["vip"] = "VIP"
    assert [run("2").sent for _ in range(3)] == [1, 0, 0]


def test_a_run_that_knows_no_key_compares_none(sync, caplog):
    sync.run(adds("a"))
    sync.run(adds("a"), facts=keyed("1"))
    sync.run(adds("a"))
    assert "API key" not in caplog.text


# Plans that other processes push


def test_a_plan_that_is_handed_over_is_unsent_and_in_force(sync):
    sync.run(numbers(100))
    report = sync.mirror(numbers(50, 300)).hand_over("task")
    assert report.balances
    assert (report.unsent, report.additions, report.removals) == (250, {"vip": 200}, {"vip": 50})
    assert (report.ledger_version, report.sent) == (2, 0)
    assert sync.loaded().parts == 1
    assert len(sync.known) == 100


def test_a_plan_of_nothing_is_not_handed_over(sync):
    sync.run(adds("a"))
    report = sync.mirror(adds("a")).hand_over("task")
    assert (report.unsent, report.ledger_version, report.unchanged) == (0, 1, 1)
    skipped = sync.mirror(guard=Guard(on_empty="skip")).hand_over("task")
    assert skipped.verdict.startswith("skipped: The source has no rows")
    assert skipped.balances
    assert sync.loaded().version == 1


def test_the_reports_of_the_processes_that_push_a_plan_become_one(sync):
    sync.run(numbers(100))
    sync.talon.bad = {"000200"}
    planned = sync.mirror(numbers(50, 300), Rejection("profile ID null")).hand_over("task")
    planned.suspicious = {"null_text": 1}
    plan = sync.loaded().plan
    with sync.ledger().pushing("task", plan, [0]) as share:
        limits = Limits(max_rejected=None)
        pushed = push_share(share, share.batches(), Members(), lambda: opened(sync.talon), limits)
    assert (pushed.resumed, pushed.sent, pushed.rejected.total()) == (250, 249, 1)
    assert pushed.balances
    outcome = sync.ledger().commit("task", plan)
    report = combined_report(planned, outcome, [pushed.summary()], 1.5)
    assert report.balances
    assert (report.read, report.added.total(), report.removed.total(), report.unsent) == (251, 199, 50, 0)
    assert report.rejected == {"profile ID null": 1, "refused by Talon.One (400)": 1}
    assert (report.requests, report.seconds) == (pushed.requests, 1.5)
    assert report.suspicious == {"null_text": 1}
    assert report.by_audience() == {"vip": {"added": 199, "removed": 50, "members": 249}}
    # A plan whose report is lost says no more than the sums.
    undivided = combined_report(Report.of(planned.summary()), outcome, [], 1.5)
    assert (undivided.added.total(), undivided.removed.total(), undivided.by_audience()) == (199, 50, {})
    assert [letter["profile_id"] for letter in sync.letters()] == ["000200"]
    # A try that was killed told nobody what was refused in it.
    report = combined_report(planned, outcome, [], 1.5)
    assert report.balances
    assert report.rejected == {"profile ID null": 1, REFUSED_IN_EARLIER_TRY: 1}


def test_a_share_that_stops_early_says_how_far_it_came(sync, caplog):
    caplog.set_level(logging.INFO)
    sync.mirror(numbers(5000)).hand_over("task")
    sync.talon.errors = {1: error(TransientError)}
    with sync.ledger().pushing("task", sync.loaded().plan, [0]) as share, pytest.raises(TransientError):
        push_share(share, share.batches(), Members(), lambda: opened(sync.talon), Limits(in_flight=1))
    assert "0 read + 0 to remove + 5,000 resumed\n= 0 unchanged + 1,000 sent" in caplog.text
    assert "+ 4,000 unsent" in caplog.text
    with pytest.raises(LedgerError, match="parts of the plan are not complete"):
        sync.ledger().commit("task", sync.loaded().plan)
