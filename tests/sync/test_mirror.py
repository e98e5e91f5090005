"""The mirror, over a ledger in memory and a stand-in for Talon.One."""

from __future__ import annotations

import logging
import re

import pytest

from airflow_provider_talon_cdp.exceptions import (
    AuthenticationError,
    GuardError,
    InvalidInputError,
    RejectedRecordsError,
    TransientError,
)
from airflow_provider_talon_cdp.sync.changes import Change, Rejection
from airflow_provider_talon_cdp.sync.guard import Guard
from airflow_provider_talon_cdp.sync.memberships import Memberships
from airflow_provider_talon_cdp.sync.mirror import Mirror
from tests.sync.fakes import adds, error, opened
from tests.sync.syncing import OPEN, numbers, vip


def test_a_mirror_adds_what_is_new_and_removes_what_is_gone(sync):
    first = sync.run(adds("a", "b", "c"))
    assert (first.read, first.sent, first.removals, first.ledger_version) == (3, 3, 0, 1)
    second = sync.run(adds("b", "c", "d"))
    assert (second.read, second.unchanged, second.sent, second.removals) == (3, 2, 2, 1)
    assert sync.talon.members == sync.known == vip("b", "c", "d")


def test_the_same_source_again_sends_nothing(sync):
    sync.run(adds("a", "b"))
    report = sync.run(adds("a", "b"))
    assert (report.requests, report.unchanged, report.ledger_version) == (0, 2, 1)
    assert sync.talon.requests == 1


def test_members_that_somebody_else_added_stay(sync):
    sync.talon.members = vip("theirs")
    sync.run(adds("a"))
    sync.run([])
    assert sync.talon.members == vip("theirs")


def test_a_source_in_another_order_is_read_again_and_sorted_and_the_log_says_so(sync, caplog):
    caplog.set_level(logging.INFO)
    report = sync.run(adds("c", "a", "b", "a"), Rejection("profile ID null"), max_rejected=1)
    assert sync.reads == 2
    assert "is not sorted by bytes" in caplog.text
    assert (report.read, report.duplicate, report.sent) == (5, 1, 3)
    assert dict(report.rejected) == {"profile ID null": 1}
    assert sync.talon.members == vip("a", "b", "c")


@pytest.mark.parametrize("reads", ["sorted", "not sorted", "refused"])
def test_a_reading_of_the_source_is_closed_before_anything_else_happens(sync, reads):
    cursors = []

    def source():
        assert not cursors, "another cursor is open"
        cursors.append("open")
        try:
            yield from numbers(20_000)
            if reads == "not sorted":
                yield from numbers(20_000)
        finally:
            cursors.pop()

    def create(audience):
        assert not cursors

    mirror = Mirror(
        source=source,
        ledger=sync.ledger(),
        guard=OPEN,
        sender=lambda: opened(sync.talon),
        create=create,
        kind=Memberships(["gold"] if reads == "refused" else None),
    )
    if reads == "refused":
        with pytest.raises(InvalidInputError) as refusal:
            mirror.run("task")
        assert not cursors, refusal
    else:
        assert mirror.run("task").sent == 20_000


def test_a_member_of_many_audiences_travels_in_one_entry(sync):
    rows = [Change("a", audience, "add") for audience in ("x", "y", "z")]
    assert sync.run(rows).requests == 1
    sync.run(rows[:1])
    assert sync.talon.members == {("a", "x")}


def test_only_managed_audiences_change(sync):
    sync.run([Change("a", "gold", "add"), Change("a", "vip", "add")])
    sync.run(adds("b"), managed=["vip"])
    assert sync.talon.members == sync.known == {("a", "gold"), ("b", "vip")}
    with pytest.raises(InvalidInputError, match="'gold', which is not in audiences"):
        sync.run([Change("b", "gold", "add")], managed=["vip"])


def test_an_audience_is_not_taken_out_while_something_in_it_is_uncertain(sync):
    sync.talon.errors = {0: error(TransientError)}
    with pytest.raises(TransientError):
        sync.run([Change("a", "gold", "add"), Change("a", "vip", "add")])
    # The request may have arrived all the same.
    sync.talon.members = {("a", "gold"), ("a", "vip")}
    before, requests, prepared = dict(sync.storage.objects), sync.talon.requests, []
    with pytest.raises(
        InvalidInputError, match=r"'gold', which is not in audiences now\. Let one run end with it"
    ):
        sync.run(adds("b"), managed=["vip"], create=prepared.append)
    assert sync.talon.requests == requests
    assert not prepared
    assert sync.storage.objects == before
    assert sync.uncertain == {("a", "gold"), ("a", "vip")}
    sync.run(adds("b"), managed=["vip", "gold"])
    assert sync.talon.members == sync.known == vip("b")
    assert not sync.uncertain
    sync.run(adds("c"), managed=["vip"])
    assert sync.talon.members == vip("c")


# The guard


def test_the_guard_speaks_before_the_first_request_and_leaves_everything_as_it_was(sync):
    sync.run(adds("a", "b", "c"))
    before, requests = dict(sync.storage.objects), sync.talon.requests
    prepared = []
    for rows in ([], adds("a"), [Rejection("profile ID longer", "x")]):
        with pytest.raises(GuardError, match=r"Nothing was sent"):
            sync.run(rows, guard=Guard(), create=prepared.append)
    assert sync.storage.objects == before
    assert sync.talon.requests == requests
    assert not prepared


def test_an_empty_source_that_is_skipped_changes_nothing(sync, caplog):
    sync.run(adds("a", "b"))
    before = dict(sync.storage.objects)
    report = sync.run([], guard=Guard(on_empty="skip"))
    assert (report.read, report.sent, report.removals, report.unsent) == (0, 0, 2, 2)
    assert sync.storage.objects == before
    assert "on_empty is 'skip': its plan was not sent" in caplog.text


def test_an_empty_source_that_is_allowed_empties_the_audience(sync):
    sync.run(adds("a", "b"))
    report = sync.run([])
    assert (report.removals, report.sent) == (2, 2)
    assert sync.talon.members == sync.known == set()


# Dry run


def test_a_dry_run_sends_and_records_nothing_and_tells_all(sync, caplog):
    caplog.set_level(logging.INFO)
    sync.run(numbers(3000))
    before, requests = dict(sync.storage.objects), sync.talon.requests
    report = sync.mirror(numbers(100, 4600)).dry_run(10)
    assert report.balances
    assert (report.read, report.unchanged, report.removals, report.unsent) == (4500, 2900, 100, 1700)
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
    assert (report.unsent, report.rejected_total, report.ledger_version) == (2, 1, 0)
    assert not sync.storage.objects


def test_a_dry_run_does_not_wait_for_another_run(sync):
    with sync.ledger().locked("other"):
        assert sync.mirror(adds("a")).dry_run(60).unsent == 1


# Creating audiences


def test_audiences_that_change_are_prepared_after_the_guard_and_before_the_first_request(sync):
    prepared = []
    sync.run(adds("a"), create=lambda each: prepared.append((each, sync.talon.requests)))
    assert prepared == [("vip", 0)]
    sync.run(adds("a"), create=prepared.append)
    assert len(prepared) == 1


def test_an_audience_that_had_to_be_created_gets_all_members_again(sync):
    sync.run([*adds("a", "b", "c"), Change("z", "gold", "add")])
    sync.talon.members = {("z", "gold")}
    rows = [*adds("b", "c", "d"), Change("z", "gold", "add")]
    report = sync.run(rows, create=lambda audience: audience == "vip")
    assert (report.unchanged, report.sent, report.removals) == (1, 4, 1)
    assert sync.talon.members == sync.known == {*vip("b", "c", "d"), ("z", "gold")}


def test_a_new_audience_is_no_loss(sync):
    assert sync.run(adds("a"), create=lambda audience: audience == "vip").sent == 1
    assert sync.reads == 1


def test_a_loss_is_not_forgotten_when_the_guard_refuses_to_make_it_good(sync):
    sync.run(adds("a", "b", "c"))
    sync.talon.members = set()
    limited = Guard(max_additions=1)
    with pytest.raises(GuardError, match="max_additions=4"):
        sync.run(adds("a", "b", "c", "d"), guard=limited, create=lambda audience: audience == "vip")
    # The audience exists now, so nothing is created and nothing tells of the loss again.
    sync.run(adds("a", "b", "c", "d"))
    assert sync.talon.members == vip("a", "b", "c", "d")


def test_a_loss_is_not_forgotten_when_the_creation_ends_in_an_error(sync):
    sync.run(adds("a", "b"))
    sync.talon.members = set()

    def reset_after_the_effect(_):
        raise error(TransientError)

    with pytest.raises(TransientError):
        sync.run(adds("a", "b", "c"), create=reset_after_the_effect)
    sync.run(adds("a", "b", "c"))
    assert sync.talon.members == vip("a", "b", "c")


def test_a_creation_that_was_refused_for_sure_makes_no_member_doubtful(sync):
    sync.run(adds("a", "b"))

    def refused(_):
        raise error(AuthenticationError)

    with pytest.raises(AuthenticationError):
        sync.run(adds("a", "b", "c"), create=refused)
    assert sync.run(adds("a", "b", "c")).sent == 1


def test_an_audience_that_exists_makes_no_member_doubtful_though_the_push_fails(sync):
    sync.run(adds("a", "b"))
    sync.talon.errors = {sync.talon.requests: error(TransientError)}
    with pytest.raises(TransientError):
        sync.run(adds("a", "b", "c"), create=lambda _: False)
    assert sync.run(adds("a", "b", "c"), create=lambda _: False).sent == 1


# Rejections


def test_refused_members_are_dead_letters_and_the_rest_is_recorded(sync):
    sync.talon.bad = {"b"}
    with pytest.raises(RejectedRecordsError, match="max_rejected is 0") as failure:
        sync.run(adds("a", "b", "c"))
    report = failure.value.report
    assert report.balances
    assert (report.sent, report.rejected_total, report.ledger_version) == (2, 1, 1)
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
    assert sync.run(adds("a", "b"), max_rejected=1).rejected_total == 1
    sync.talon.bad = set()
    assert sync.run(adds("a", "b")).sent == 1
    assert sync.known == sync.talon.members == vip("a", "b")


def test_records_that_cannot_be_members_are_dead_letters_where_they_have_an_id(sync):
    report = sync.run(
        adds("a"), Rejection("profile ID null"), Rejection("too long", "x" * 9), max_rejected=None
    )
    assert dict(report.rejected) == {"profile ID null": 1, "too long": 1}
    (letter,) = sync.letters()
    assert (letter["profile_id"], letter["reason"]) == ("x" * 9, "too long")
    assert report.dead_letters


def test_a_run_without_changes_still_buries_and_counts(sync):
    sync.run(adds("a"))
    with pytest.raises(RejectedRecordsError) as failure:
        sync.run(adds("a"), Rejection("too long", "x"))
    assert failure.value.report.balances
    assert len(sync.letters()) == 1


def test_no_member_is_named_in_the_log(sync, caplog):
    caplog.set_level(logging.DEBUG)
    sync.talon.bad = {"secret-b"}
    sync.run(adds("secret-a", "secret-b"), Rejection("too long", "secret-c"), max_rejected=None)
    sync.run(adds("secret-d", "secret-c"))
    assert "secret" not in caplog.text


def test_a_source_that_fails_leaves_the_ledger_as_it_was(sync):
    sync.run(adds("a"))

    def rows():
        yield from adds("b")
        raise OSError("the database went away")

    mirror = Mirror(source=rows, ledger=sync.ledger(), guard=OPEN, sender=lambda: opened(sync.talon))
    with pytest.raises(OSError, match="went away"):
        mirror.run("task")
    assert sync.known == vip("a")
    assert sync.run(adds("a", "b")).sent == 1
