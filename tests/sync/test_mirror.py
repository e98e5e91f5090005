"""The mirror, over a ledger in memory and a stand-in for Talon.One."""

from __future__ import annotations

import json
import logging
import re

import pytest

from airflow_provider_talon_cdp.exceptions import (
    AuthenticationError,
    GuardError,
    InvalidInputError,
    LedgerError,
    NotFoundError,
    RejectedRecordsError,
    TransientError,
)
from airflow_provider_talon_cdp.ledgers.files import FilesLedger
from airflow_provider_talon_cdp.sync import push_plan
from airflow_provider_talon_cdp.sync.changes import Change, Rejection
from airflow_provider_talon_cdp.sync.guard import Guard
from airflow_provider_talon_cdp.sync.memberships import Memberships
from airflow_provider_talon_cdp.sync.mirror import Mirror
from tests.sync.fakes import FakeTalon, Storage, adds, error, opened

OPEN = Guard(on_empty="allow", max_removal_fraction=1.0)


class Cursor:
    version = 0

    def get(self):
        return self.version

    def set(self, version):
        self.version = version


class Sync:
    """A ledger, a Talon.One, and mirrors between them."""

    ahead = 64

    def __init__(self):
        self.storage = Storage()
        self.talon = FakeTalon()
        self.reads = 0
        self.cursor = Cursor()

    def ledger(self):
        return FilesLedger(
            self.storage.folder(), deployment_host="acme.talon.one", base_url="u", name="x", ahead=self.ahead
        )

    @property
    def ledger_version(self):
        ledger = self.ledger()
        ledger.load()
        return ledger.version

    @property
    def known(self):
        ledger = self.ledger()
        ledger.load()
        return set(ledger.known())

    @property
    def uncertain(self):
        ledger = self.ledger()
        ledger.load()
        return set(ledger.uncertain())

    def mirror(self, *rows, guard=OPEN, managed=None, **options):
        def source():
            self.reads += 1
            return iter([row for each in rows for row in (each if isinstance(each, list) else [each])])

        return Mirror(
            source=source,
            ledger=self.ledger(),
            guard=guard,
            sender=lambda: opened(self.talon),
            kind=Memberships(managed),
            **options,
        )

    def run(self, *rows, retry=False, **options):
        if not retry:
            self.cursor = Cursor()
        report = self.mirror(*rows, **options).run("task", self.cursor)
        assert report.balances
        return report

    def letters(self):
        found = [data for name, data in sorted(self.storage.objects.items()) if "dead-letters" in name]
        return [json.loads(line) for data in found for line in data.decode().splitlines()]


@pytest.fixture
def sync():
    return Sync()


def vip(*profiles):
    return {(profile, "vip") for profile in profiles}


def numbers(*span):
    return adds(*(f"{number:06}" for number in range(*span)))


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

    def prepare(audiences):
        assert not cursors
        return []

    mirror = Mirror(
        source=source,
        ledger=sync.ledger(),
        guard=OPEN,
        sender=lambda: opened(sync.talon),
        prepare=prepare,
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
        sync.run(adds("b"), managed=["vip"], prepare=lambda each: prepared.append(each) or [])
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
            sync.run(rows, guard=Guard(), prepare=lambda each: prepared.append(each) or [])
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
    [(Guard(), r"^would be refused: The source has no member"), (Guard(on_empty="skip"), "skipped$")],
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
    sync.run(adds("a"), prepare=lambda each: prepared.append((list(each), sync.talon.requests)) or [])
    assert prepared == [(["vip"], 0)]
    sync.run(adds("a"), prepare=lambda each: prepared.append(each) or [])
    assert len(prepared) == 1


def test_an_audience_that_had_to_be_created_gets_all_members_again(sync):
    sync.run([*adds("a", "b", "c"), Change("z", "gold", "add")])
    sync.talon.members = {("z", "gold")}
    rows = [*adds("b", "c", "d"), Change("z", "gold", "add")]
    report = sync.run(rows, prepare=lambda audiences: ["vip"])
    assert (report.unchanged, report.sent, report.removals) == (1, 3, 0)
    assert sync.talon.members == sync.known == {*vip("b", "c", "d"), ("z", "gold")}


def test_a_new_audience_is_no_loss(sync):
    assert sync.run(adds("a"), prepare=lambda audiences: ["vip"]).sent == 1
    assert sync.reads == 1


def test_a_loss_is_not_forgotten_when_the_guard_refuses_to_make_it_good(sync):
    sync.run(adds("a", "b", "c"))
    sync.talon.members = set()
    limited = Guard(max_additions=1)
    with pytest.raises(GuardError, match="max_additions=4"):
        sync.run(adds("a", "b", "c", "d"), guard=limited, prepare=lambda _: ["vip"])
    # The audience exists now, so nothing is created and nothing tells of the loss again.
    sync.run(adds("a", "b", "c", "d"))
    assert sync.talon.members == vip("a", "b", "c", "d")


def test_a_loss_is_not_forgotten_when_the_creation_ends_in_an_error(sync):
    sync.run(adds("a", "b"))
    sync.talon.members = set()

    def reset_after_the_effect(_):
        raise error(TransientError)

    with pytest.raises(TransientError):
        sync.run(adds("a", "b", "c"), prepare=reset_after_the_effect)
    sync.run(adds("a", "b", "c"))
    assert sync.talon.members == vip("a", "b", "c")


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


# Stopping and going on


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
    sync.run(numbers(4000), retry=True, prepare=lambda _: ["vip"])
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
        sync.run(retry=True, prepare=lose_gold(sync))
    sync.run(gold_and_vip("a", "b", "c"), retry=True)
    assert sync.talon.members == sync.known == {change[:2] for change in gold_and_vip("a", "b", "c")}


def test_a_retry_does_not_void_the_loss_that_another_run_noted(sync):
    sync.run(gold_and_vip("a", "b"))
    sync.talon.errors = {sync.talon.requests: error(TransientError)}
    with pytest.raises(TransientError):
        sync.run(gold_and_vip("a", "b", "c"))
    first = sync.cursor
    with pytest.raises(TransientError):
        sync.run(gold_and_vip("a", "b", "c"), prepare=lose_gold(sync))
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
