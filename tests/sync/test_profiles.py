"""Attributes of profiles: one row each, which of them a plan sends, how they travel, what a refusal says."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_provider_talon_cdp.changes.change import Change, Chunk, Profile, Rejection
from airflow_provider_talon_cdp.changes.counts import Counts
from airflow_provider_talon_cdp.changes.diff import OutOfOrderError
from airflow_provider_talon_cdp.changes.fingerprint import Names, digest_of, fingerprint, marked_uncertain
from airflow_provider_talon_cdp.changes.spool import sorted_profiles
from airflow_provider_talon_cdp.exceptions import (
    Blame,
    FatalError,
    GuardError,
    InvalidInputError,
    LedgerError,
    NotFoundError,
    RejectedError,
    RejectedRecordsError,
    TransientError,
    UnexpectedAnswerError,
)
from airflow_provider_talon_cdp.ledger.ledger import Ledger, LedgerIdentity, RunFacts, Sizes
from airflow_provider_talon_cdp.sync.guard import ProfileGuard
from airflow_provider_talon_cdp.sync.mirror import Mirror
from airflow_provider_talon_cdp.sync.profiles import (
    BATCH,
    CHANGED,
    PROFILES,
    ProfilePlan,
    Profiles,
    _within,
    one_each,
    reason_of,
)
from airflow_provider_talon_cdp.sync.push import Limits
from airflow_provider_talon_cdp.sync.report import Report
from tests.changes.strategies import IDS
from tests.storage import Storage
from tests.sync.fakes import error, opened
from tests.sync.pushing import NotedJournal, push

# One row each


def profile(profile_id, body="1", order=None, fault=None):
    return Profile(profile_id, b"" if fault else f'{{"a":{body}}}'.encode(), ("a",), order, fault)


def each(records, on_duplicate="error"):
    counts, rejected = Counts(), []
    found = list(one_each(records, counts, on_rejected=rejected.append, on_duplicate=on_duplicate))
    return found, counts, rejected


def test_distinct_profiles_pass():
    rows = [profile("a"), profile("b")]
    found, counts, rejected = each(rows)
    assert (found, counts.read, counts.duplicate, rejected) == (rows, 2, 0, [])


def test_several_rows_of_one_profile_are_an_error_with_numbers_and_no_ids():
    rows = [profile(each) for each in ("anna", "anna", "anna", "bo", "cem", "cem")]
    text = r"^2 profile\(s\) have more than one row \(5 rows\)"
    with pytest.raises(InvalidInputError, match=text) as failure:
        each(rows)
    assert "anna" not in str(failure.value)


def test_an_equal_row_is_one_too_many_as_well():
    with pytest.raises(InvalidInputError, match="1 profile"):
        each([profile("a"), profile("a")])


@pytest.mark.parametrize(
    "orders, last",
    [
        ([1, 2], 1),
        ([2, 1], 0),
        ([None, 1], 1),
        ([1, None], 0),
        ([float("nan"), 1], 1),
        ([Decimal("NaN"), Decimal(1)], 1),
        ([datetime(2026, 1, 2, tzinfo=UTC), datetime(2026, 1, 1, tzinfo=UTC)], 0),
        (["b", "a", "c"], 2),
    ],
)
def test_the_last_row_of_a_profile_wins(orders, last):
    rows = [profile("a", position, order) for position, order in enumerate(orders)]
    found, counts, _ = each([*rows, profile("b")], on_duplicate="last")
    assert found == [rows[last], profile("b")]
    assert counts.duplicate == len(rows) - 1


@pytest.mark.parametrize("turn", [1, -1])
def test_a_row_whose_order_cannot_be_read_may_be_the_last_so_no_row_is_sent(turn):
    odd = profile("a", order=InvalidInputError("holds a time that Python cannot represent"), fault="odd")
    found, counts, rejected = each([profile("a", order=2024), odd][::turn], on_duplicate="last")
    assert (found, counts.duplicate, rejected) == ([odd], 1, [Rejection("odd", "a")])
    assert each(sorted_profiles([odd, profile("a", order=2024)]), on_duplicate="last")[2] == rejected


def test_of_rows_with_one_order_the_same_wins_however_they_come():
    rows = [profile("a", body, 1) for body in (1, 3, 2)]
    assert each(rows, on_duplicate="last")[0] == each(rows[::-1], on_duplicate="last")[0]


def test_orders_that_cannot_be_compared_are_an_error():
    with pytest.raises(InvalidInputError, match="of the types int and str"):
        each([profile("a", 1, "x"), profile("a", 1, 5)], on_duplicate="last")


def test_rows_that_cannot_be_sent_are_counted_and_keep_their_place():
    faulty = profile("b", fault="Attribute 'a' is bytes")
    found, counts, rejected = each([Rejection("profile ID null"), profile("a"), faulty])
    assert found == [profile("a"), faulty]
    assert counts.read == 3
    assert counts.rejected == {"profile ID null": 1, "Attribute 'a' is bytes": 1}
    assert rejected == [Rejection("profile ID null"), Rejection("Attribute 'a' is bytes", "b")]


def test_an_earlier_row_with_a_fault_gives_way():
    rows = [profile("a", order=1, fault="bad"), profile("a", order=2)]
    found, counts, rejected = each(rows, on_duplicate="last")
    assert (found, counts.duplicate, rejected) == ([rows[1]], 1, [])


@pytest.mark.parametrize("first, second", [("b", "a"), ("a", "B")])
def test_a_source_that_is_not_sorted_by_code_points_is_told(first, second):
    with pytest.raises(OutOfOrderError):
        each([profile(first), profile(second)])


ORDERS = st.none() | st.integers(0, 3)
ROWS = st.lists(
    st.builds(profile, IDS, st.integers(0, 3), ORDERS) | st.builds(profile, IDS, fault=st.just("bad")),
    max_size=30,
)


@given(rows=ROWS)
def test_sorting_on_disk_and_taking_the_last_is_what_a_dictionary_does(rows):
    records = [*rows, Rejection("profile ID null")]
    found, counts, rejected = each(sorted_profiles(records), on_duplicate="last")
    wanted = {}
    for row in sorted(
        rows, key=lambda row: (row.order is not None, row.order or 0, row.attributes, row.fault or "")
    ):
        wanted[row.profile_id] = row
    assert found == [wanted[profile_id] for profile_id in sorted(wanted)]
    assert counts.read == len(records)
    assert counts.read == len(wanted) + counts.duplicate + 1
    assert len(rejected) == 1 + sum(row.fault is not None for row in wanted.values())


# Which of them a plan sends


def wanted(profile_id, **attributes):
    text = json.dumps(attributes, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    body = text.encode() if attributes else b""
    return Profile(profile_id, body, tuple(attributes))


def known_as(profile, names, *, partial=False):
    digest = digest_of(profile.profile_id, profile.attributes)
    return profile.profile_id, fingerprint(digest, names.mask(profile.names), partial=partial)


class Batches:
    """The share of a plan, in memory."""

    def __init__(self, chunks):
        self.chunks = chunks

    def batches(self, *, in_order):
        assert in_order
        return iter(self.chunks)


class Plan:
    """One comparison with what a ledger knows, and all that came of it."""

    def __init__(self, known, source, names=None, **how):
        self.counts, self.names = Counts(), names or Names()
        plan = ProfilePlan(Profiles(**how), self.names)
        known = [Chunk([each], key) for each, key in known]
        chunks = list(plan.kept(plan.changes(source, known, (), self.counts, lambda _: None)))
        assert all(chunk.bodies is None for chunk in chunks)
        self.changes = [change for chunk in chunks for change in chunk.changes()]
        self.bodies = [json.loads(each) for chunk in plan.chunks(Batches(chunks)) for each in chunk.bodies]

    @property
    def sends(self):
        return {change.profile_id: body for change, body in zip(self.changes, self.bodies, strict=True)}

    def ledger(self, known):
        """The ledger after all is acknowledged."""
        lines = dict(known)
        for profile_id, line, action, *_ in self.changes:
            if action == "add":
                lines[profile_id] = line
            else:
                del lines[profile_id]
        return sorted(lines.items())


def test_new_and_changed_profiles_are_sent_and_others_are_not():
    names = Names()
    known = [known_as(wanted(each, tier="gold"), names) for each in ("a", "b", "d")]
    source = [wanted("a", tier="gold"), wanted("b", tier="silver"), wanted("c", tier="gold")]
    plan = Plan(known, source, names)
    assert plan.sends == {"b": {"tier": "silver"}, "c": {"tier": "gold"}}
    assert plan.counts == Counts(
        read=3,
        wanted=3,
        unchanged=1,
        known=Counter({PROFILES: 3}),
        additions=Counter({PROFILES: 2}),
        repeated=Counter({PROFILES: 1}),
    )
    assert Plan(plan.ledger(known), source, names).changes == []


def test_everything_is_sent_where_that_is_asked_for():
    names = Names()
    known = [known_as(wanted("a", tier="gold"), names)]
    assert Plan(known, [wanted("a", tier="gold")], names, sends_all=True).sends == {"a": {"tier": "gold"}}


def test_a_row_without_a_value_sends_nothing_and_leaves_the_ledger_as_it_is():
    names = Names()
    known = [known_as(wanted("a", tier="gold"), names)]
    plan = Plan(known, [wanted("a"), wanted("b")], names, clears=True, sends_all=True)
    assert (plan.changes, plan.counts.unchanged) == ([], 2)


def test_a_profile_that_left_the_source_loses_the_attributes_that_were_ever_sent_for_it_and_no_other():
    names = Names()
    first = [wanted("a", tier="gold"), wanted("b", score=1)]
    known = Plan([], first, names).ledger([])
    known = Plan(known, [wanted("a", tier="gold", score=3), wanted("b", score=1)], names).ledger(known)
    # A value that became null is left out, which leaves it in Talon.One.
    second = Plan(known, [wanted("a", tier="silver"), wanted("b", score=1)], names)
    known = second.ledger(known)
    left = Plan(known, [], names, clears=True)
    assert left.sends == {"a": {"tier": None, "score": None}, "b": {"score": None}}
    assert [change.action for change in left.changes] == ["remove", "remove"]
    assert left.ledger(known) == []
    assert Plan(known, [], names).changes == []


def test_a_profile_with_a_fault_stays_as_it_is():
    names = Names()
    known = [known_as(wanted("a", tier="gold"), names)]
    plan = Plan(known, [Profile("a", fault="bad"), Profile("b", fault="bad")], names, clears=True)
    assert (plan.changes, plan.counts.unchanged, plan.counts.known.total()) == ([], 0, 1)
    assert plan.counts.wanted == 0


def test_a_doubtful_profile_is_sent_again_and_cleared_with_all_that_may_have_been_set():
    names = Names()
    profile_id, line = known_as(wanted("a", tier="gold"), names)
    known = [(profile_id, marked_uncertain(line))]
    assert Plan(known, [wanted("a", tier="gold")], names).sends == {"a": {"tier": "gold"}}
    assert Plan(known, [], names, clears=True).sends == {"a": {"tier": None}}
    assert Plan(known, [], names).changes == []


def test_what_was_accepted_with_unknown_attributes_ignored_is_sent_again_when_they_are_not():
    names = Names()
    source = [wanted("a", tier="gold")]
    strict, lax = ([known_as(source[0], names, partial=partial)] for partial in (False, True))
    assert not Plan(strict, source, names, partial=True).changes
    assert not Plan(lax, source, names, partial=True).changes
    assert not Plan(strict, source, names).changes
    assert Plan(lax, source, names).sends == {"a": {"tier": "gold"}}


def test_a_new_column_touches_the_profiles_that_have_a_value_in_it():
    names = Names()
    known = Plan([], [wanted("a", tier="gold"), wanted("b", tier="gold")], names).ledger([])
    plan = Plan(known, [wanted("a", tier="gold", score=1), wanted("b", tier="gold")], names)
    assert plan.sends == {"a": {"tier": "gold", "score": 1}}


ATTRIBUTES = st.dictionaries(st.sampled_from(["tier", "score", "a/b", "ü"]), st.integers(0, 2), max_size=3)
SOURCES = st.dictionaries(st.sampled_from("abcde"), ATTRIBUTES, max_size=5)


@given(st.lists(st.tuples(SOURCES, st.booleans()), min_size=1, max_size=5))
def test_talon_one_follows_the_source_through_any_plans(runs):
    names, known, talon, ours = Names(), [], {}, {}
    for source, clears in runs:
        plan = Plan(known, [wanted(each, **source[each]) for each in sorted(source)], names, clears=clears)
        for profile_id, body in plan.sends.items():
            there = talon.setdefault(profile_id, {"by_hand": 1})
            there.update(body)
            talon[profile_id] = {name: value for name, value in there.items() if value is not None}
        known = plan.ledger(known)
        if clears:
            ours = {each: value for each, value in ours.items() if each in source}
        for each, attributes in source.items():
            if attributes:
                ours[each] = ours.get(each, {}) | attributes
        there = {each: {k: v for k, v in value.items() if k != "by_hand"} for each, value in talon.items()}
        assert {each: value for each, value in there.items() if value} == ours
        assert all(value["by_hand"] == 1 for value in talon.values())
        assert [each for each, _ in known] == sorted(ours)


# On their way


class Talon:
    """Takes profiles; some wait until others have arrived or are under way, and some are refused."""

    retries = throttled = 0
    waiting = before_attempt = None

    def __init__(self, answers=None, first_waits_for=0, waits_for_company=0):
        self.arrived = {}
        self.answers = answers or {}
        self.first_waits_for = first_waits_for
        self.enough = asyncio.Event()
        self.requests = self.under_way = self.most_under_way = 0
        self.waits_for_company = waits_for_company
        self.company = asyncio.Event()
        self.without_rules = []

    async def __call__(self, profile_id, attributes, *, without_rules, **_):
        self.requests += 1
        self.without_rules += [profile_id] * without_rules
        self.under_way += 1
        self.most_under_way = max(self.most_under_way, self.under_way)
        try:
            await asyncio.sleep(0)
            if self.under_way == self.waits_for_company:
                self.company.set()
            if self.waits_for_company:
                await asyncio.wait_for(self.company.wait(), 10)
            if profile_id == "000" and self.first_waits_for:
                await self.enough.wait()
            if profile_id in self.answers:
                raise self.answers[profile_id]
            self.arrived[profile_id] = attributes
            if len(self.arrived) == self.first_waits_for:
                self.enough.set()
        finally:
            self.under_way -= 1


def flights(number):
    for start in range(0, number, BATCH):
        ids = range(start, min(start + BATCH, number))
        yield Chunk([f"{each:03}" for each in ids], "x", bodies=[f"{each}".encode() for each in ids])


def run(talon, number, *, in_flight=4, give_up_after=50, max_rejected=0):
    journal = NotedJournal(flights(number))
    kind = Profiles(give_up_after=give_up_after)
    return push(journal, talon, kind, in_flight=in_flight, max_rejected=max_rejected), journal


def refused(kind=RejectedError, status=400):
    return error(kind, status)


def test_each_profile_gets_its_own_attributes_and_flights_are_acknowledged_whole():
    talon = Talon()
    counts, journal = run(talon, 2 * BATCH + 5)
    assert talon.arrived == {f"{each:03}": f"{each}".encode() for each in range(2 * BATCH + 5)}
    # The key of a change is a fingerprint, which nothing is counted by.
    assert counts.added == {PROFILES: 2 * BATCH + 5}
    assert journal.outcomes == {0: ([], []), 1: ([], []), 2: ([], [])}


def test_as_many_requests_as_flights_are_under_way():
    talon = Talon(waits_for_company=4)
    run(talon, 10 * BATCH, in_flight=4)
    assert talon.most_under_way == 4


def test_one_that_takes_long_holds_nobody_up():
    talon = Talon(first_waits_for=30 * BATCH)
    counts, journal = run(talon, 31 * BATCH, in_flight=2)
    assert counts.sent == 31 * BATCH
    assert list(journal.outcomes)[-1] == 0


def test_refused_profiles_are_told_by_their_place_and_the_others_land():
    talon = Talon({"001": refused(), f"{BATCH + 3:03}": refused()})
    counts, journal = run(talon, 2 * BATCH)
    assert journal.outcomes == {0: ([1], []), 1: ([3], [])}
    assert counts.rejected == {"refused by Talon.One (400)": 2}
    assert [each["reason"] for each in journal.letters] == ["refused by Talon.One (400)"] * 2


def test_a_path_that_is_not_there_stops_everything():
    talon, counts = Talon({"000": refused(NotFoundError, 404)}), Report()
    journal = NotedJournal(flights(3 * BATCH))
    with pytest.raises(FatalError, match="No profile can be sent; check Base URL"):
        push(journal, talon, Profiles(), counts=counts, in_flight=1)
    assert not talon.arrived
    # It surely changed nothing.
    assert journal.harmless == [0]


@pytest.mark.parametrize("kind", [NotFoundError, UnexpectedAnswerError], ids=["of Talon.One", "of a proxy"])
def test_a_path_that_is_not_there_for_one_profile_is_the_fault_of_its_id(kind):
    counts, journal = run(Talon({"006": refused(kind, 404)}), 3 * BATCH, in_flight=1)
    assert counts.sent == 3 * BATCH - 1
    assert counts.rejected == {"refused by Talon.One (404)": 1}
    assert [(each["profile_id"], each["status"]) for each in journal.letters] == [("006", 404)]
    assert journal.outcomes == {0: ([], []), 1: ([1], []), 2: ([], [])}


@pytest.mark.parametrize(
    "give_up_after, max_rejected, requests", [(7, 0, 7), (1, 0, 1), (7, 6, 7), (7, 20, 21)]
)
def test_when_the_first_ones_are_all_refused_for_one_reason_it_stops(give_up_after, max_rejected, requests):
    talon = Talon({f"{each:03}": refused() for each in range(100)})
    text = f"The first {requests} profiles were all refused for the same reason"
    with pytest.raises(FatalError, match=text):
        run(talon, 100, in_flight=1, give_up_after=give_up_after, max_rejected=max_rejected)
    assert talon.requests == requests


ALL = {f"{each:03}": refused() for each in range(100)}
TWO = {f"{each:03}": refused(status=400 + each % 2 * 22) for each in range(100)}


@pytest.mark.parametrize(
    "answers, how",
    [
        pytest.param({each: ALL[each] for each in list(ALL)[1:]}, {}, id="one was accepted"),
        pytest.param(TWO, {}, id="two reasons"),
        pytest.param(ALL, {"give_up_after": None}, id="not asked for"),
        pytest.param(ALL, {"max_rejected": 100}, id="tolerated"),
        pytest.param(ALL, {"max_rejected": None}, id="any number"),
    ],
)
def test_otherwise_it_goes_on(answers, how):
    counts, _ = run(Talon(answers), 100, in_flight=1, **how)
    assert counts.rejected.total() == len(answers)


class _Outage(Talon):
    """Answers 404 from some request on."""

    def __init__(self, after, kind=NotFoundError):
        super().__init__()
        self.after = after
        self.kind = kind

    async def __call__(self, profile_id, attributes, **how):
        if self.requests >= self.after:
            self.answers[profile_id] = refused(self.kind, 404)
        await super().__call__(profile_id, attributes, **how)


@pytest.mark.parametrize("kind", [NotFoundError, UnexpectedAnswerError], ids=["of Talon.One", "of a proxy"])
@pytest.mark.parametrize(
    "how, requests",
    [
        ({}, 70),
        ({"max_rejected": None}, 70),
        ({"give_up_after": None, "max_rejected": None}, 70),
        ({"give_up_after": 7}, 27),
        ({"give_up_after": 7, "max_rejected": 99}, 120),
    ],
)
def test_a_path_that_is_gone_stops_a_push_that_has_sent_some(kind, how, requests):
    talon = _Outage(20, kind)
    with pytest.raises(FatalError):
        run(talon, 200, in_flight=1, **how)
    assert (len(talon.arrived), talon.requests) == (20, requests)


def test_profiles_whose_ids_have_no_path_are_rejected_however_many_they_are_if_others_are_accepted():
    answers = {f"{number:03}": refused(NotFoundError, 404) for number in range(200) if number % 40}
    counts, _ = run(Talon(answers), 200, in_flight=1, max_rejected=None)
    assert (counts.sent, counts.rejected.total()) == (5, 195)


def test_changes_without_attributes_are_no_plan():
    with pytest.raises(ValueError, match="shorter"):
        push(NotedJournal([Chunk(["a"], "x")]), Talon(), Profiles())
    plan = ProfilePlan(Profiles(), Names())
    list(plan.kept(plan.changes([wanted("a", tier=1)], (), (), Counts(), print)))
    with pytest.raises(RuntimeError):
        list(plan.chunks(Batches([Chunk(["a", "b"], "x")])))


def planned(profile_id, attributes):
    return Change(profile_id, fingerprint(digest_of(profile_id, attributes), 1, partial=False), "add")


def test_only_what_is_as_it_was_planned_is_sent_by_a_process_that_reads_the_source_again():
    rows = [
        Profile("e", b'{"tier":1}', ("tier",)),
        Profile("c", fault="cannot be sent"),
        Profile("b", b'{"tier":2}', ("tier",)),
        Profile("a", b'{"tier":1}', ("tier",)),
    ]
    changes = [planned(each, b'{"tier":1}') for each in "abcde"]
    leaver = Change("f", changes[0].key, "remove")
    chunks = [Chunk.of(each) for each in (changes[:2], changes[2:], [leaver])]
    talon, journal, kind = Talon(), NotedJournal(chunks), Profiles(give_up_after=1)
    counts = push(journal, talon, kind, stream=kind.reread(iter(chunks), rows, ["tier"]), in_flight=1)
    # b has changed, c cannot be sent any more, d is gone.
    assert talon.arrived == {"a": b'{"tier":1}', "e": b'{"tier":1}', "f": b'{"tier":null}'}
    assert [(each["profile_id"], each["reason"]) for each in journal.letters] == [
        (each, CHANGED) for each in "bcd"
    ]
    assert (counts.sent, counts.rejected) == (3, {CHANGED: 3})
    # They were never sent.
    assert journal.outcomes == {0: ([1], [1]), 1: ([0, 1], [0, 1]), 2: ([], [])}


# Whole syncs


class ProfileSync:
    """A ledger of profiles, a Talon.One, and syncs between them."""

    now = 1_790_000_000.0

    def __init__(self, environment=""):
        self.storage = Storage()
        self.talon = Talon()
        self.identity = LedgerIdentity(
            deployment_host="acme", base_url="u", name="profiles:x", environment=environment, holds="profiles"
        )

    def mirror(self, *rows, facts=None, max_rejected=0, guard=None, retry_rejected="always", **how):
        self.now += 1
        return Mirror(
            source=lambda: iter(rows),
            ledger=Ledger(
                self.storage.folder(), self.identity, sizes=Sizes(batch=BATCH), clock=lambda: self.now
            ),
            guard=guard or ProfileGuard(),
            sender=lambda: opened(self.talon),
            kind=Profiles(**how),
            facts=facts or RunFacts(),
            limits=Limits(max_rejected=max_rejected),
            retry_rejected=retry_rejected,
        )

    def run(self, *rows, **how):
        report = self.mirror(*rows, **how).run("task")
        assert report.balances
        return report


@pytest.fixture
def profiles():
    return ProfileSync()


def test_a_sync_sends_what_changed_and_clears_what_left(profiles):
    report = profiles.run(wanted("b", tier=1), wanted("a", tier=1), wanted("c", tier=1))
    assert report.added == {PROFILES: 3}
    profiles.talon.arrived.clear()
    report = profiles.run(wanted("a", tier=2), wanted("b", tier=1), clears=True)
    assert profiles.talon.arrived == {"a": b'{"tier":2}', "c": b'{"tier":null}'}
    assert (report.unchanged, report.added, report.removed) == (1, {PROFILES: 1}, {PROFILES: 1})
    assert report.by_audience() == {PROFILES: {"added": 1, "removed": 1, "members": 2}}
    assert profiles.run(wanted("a", tier=2), wanted("b", tier=1), clears=True).requests == 0


def test_a_profile_whose_request_may_have_arrived_is_sent_again(profiles):
    profiles.run(wanted("a", tier=1))
    profiles.talon.answers = {"a": error(TransientError)}
    with pytest.raises(TransientError):
        profiles.run(wanted("a", tier=2))
    profiles.talon.answers = {}
    # The source is as it was before, and nobody knows what Talon.One has.
    assert profiles.run(wanted("a", tier=1)).sent == 1


def test_the_guard_does_not_count_profiles_of_which_nothing_was_ever_acknowledged(profiles):
    rows = [wanted(f"{number:03}", tier=1) for number in range(100)]
    profiles.talon.answers = {row.profile_id: error(TransientError) for row in rows}
    with pytest.raises(TransientError):
        profiles.run(*rows, clears=True)
    profiles.talon.answers = {}
    report = profiles.run(wanted("x", tier=1), clears=True)
    assert report.removals == report.removed == report.unacknowledged_removals
    assert report.removals[PROFILES] >= ProfileGuard().min_removals
    assert report.by_audience() == {PROFILES: {"added": 1, "removed": report.sent - 1, "members": 1}}
    assert profiles.run(wanted("x", tier=1), clears=True).requests == 0


def test_the_guard_counts_doubtful_profiles_of_which_earlier_attributes_were_acknowledged(profiles):
    rows = [wanted(f"{number:03}", tier=1) for number in range(20)]
    profiles.run(*rows)
    profiles.talon.answers = {row.profile_id: error(TransientError) for row in rows}
    with pytest.raises(TransientError):
        profiles.run(*(wanted(row.profile_id, tier=2) for row in rows))
    profiles.talon.answers = {}
    with pytest.raises(GuardError, match="20 of 20 profiles would lose their attributes"):
        profiles.run(wanted("x", tier=1), clears=True)


@pytest.mark.parametrize("others", [{}, {"name": "Anna"}], ids=["only nulls", "another attribute"])
def test_the_guard_counts_profiles_that_would_lose_all_their_attributes_by_nulls(profiles, others):
    rows = [wanted(f"{number:03}", tier=1, **others) for number in range(20)]
    profiles.run(*rows)
    emptied = [wanted(row.profile_id, tier=None, **others) for row in rows]
    if others:
        assert profiles.run(*emptied).sent == 20
        return
    with pytest.raises(GuardError, match="20 of 20 profiles would lose their attributes"):
        profiles.run(*emptied)
    assert profiles.talon.arrived == {row.profile_id: row.attributes for row in rows}
    allowed = ProfileGuard(max_removal_fraction=1.0)
    assert profiles.run(*emptied, guard=allowed).sent == 20
    # They have nothing to lose any more.
    assert profiles.run(*emptied, sends_all=True).sent == 20


def test_the_guard_lets_rows_of_nulls_pass_that_delete_nothing(profiles):
    ids = [f"{number:03}" for number in range(20)]
    # New, with another column, without it, and sent again.
    for attributes, how in (
        ({"tier": None}, {}),
        ({"tier": None, "größe": None}, {}),
        ({"tier": None}, {}),
        ({"tier": None}, {"sends_all": True}),
    ):
        assert profiles.run(*(wanted(each, **attributes) for each in ids), **how).sent == 20
    profiles.run(*(wanted(each, tier=1) for each in ids))
    with pytest.raises(GuardError, match="20 of 20 profiles would lose their attributes"):
        profiles.run(*(wanted(each, tier=None) for each in ids))


@pytest.mark.parametrize("value", [1, None], ids=["values", "nulls"])
def test_under_another_key_any_profile_may_lose_its_attributes_by_nulls(profiles, value):
    rows = [wanted(f"{number:03}", tier=value) for number in range(20)]
    profiles.run(*rows, facts=RunFacts(key_fingerprint="1"))
    nulls = [wanted(row.profile_id, tier=None) for row in rows]
    other = {"facts": RunFacts(key_fingerprint="2"), "sends_all": True}
    with pytest.raises(GuardError, match="20 of 20 profiles would lose their attributes"):
        profiles.run(*nulls, **other)
    assert profiles.talon.requests == 20
    assert profiles.run(*nulls, **other, guard=ProfileGuard(max_removal_fraction=1.0)).sent == 20
    assert profiles.run(*nulls, **other).sent == 20


@pytest.mark.parametrize("value", [1, None], ids=["values", "nulls"])
def test_a_dry_run_counts_the_nulls_under_another_key(profiles, value):
    rows = [wanted(f"{number:03}", tier=value) for number in range(20)]
    profiles.run(*rows, facts=RunFacts(key_fingerprint="1"))
    nulls = [wanted(row.profile_id, tier=None) for row in rows]
    mirror = profiles.mirror(*nulls, facts=RunFacts(key_fingerprint="2"), sends_all=True)
    assert mirror.dry_run(10).verdict.startswith("would be refused: 20 of 20 profiles would lose their")


def test_a_dry_run_counts_the_rules_under_another_key(profiles):
    rows = [wanted(each, tier=1) for each in "abc"]
    profiles.run(*rows, facts=RunFacts(key_fingerprint="1"))
    how = {"sends_all": True, "runs_rules": True}
    for key, calls in (("1", 0), ("2", 3)):
        mirror = profiles.mirror(*rows, facts=RunFacts(key_fingerprint=key), **how)
        assert mirror.dry_run(10).rule_calls == calls


def test_the_guard_does_not_count_rows_of_nulls_that_the_plan_leaves_out(profiles):
    ids = [f"{number:03}" for number in range(20)]
    profiles.run(*(wanted(each, tier=1) for each in ids))
    profiles.talon.answers = {each: refused() for each in ids}
    nulls = [wanted(each, tier=None) for each in ids]
    how = {"max_rejected": None, "retry_rejected": "never"}
    profiles.run(*nulls, guard=ProfileGuard(max_removal_fraction=1.0), **how)
    report = profiles.run(*nulls, wanted("new", tier=1), **how)
    assert (report.sent, report.rejected.total(), report.emptied) == (1, 20, {})
    assert report.by_audience() == {PROFILES: {"added": 1, "removed": 0, "members": 21}}


def test_a_profile_without_values_that_is_left_out_hides_no_loss_of_another_one(profiles):
    ids = [f"{number:03}" for number in range(100)]
    profiles.run(*(wanted(each, tier=None if each < "030" else 1) for each in ids))
    # A new column.
    rows = [wanted(each, tier=None if each < "030" else 1, size=None) for each in ids]
    profiles.talon.answers = {each: refused() for each in ids[:30]}
    how = {"max_rejected": None, "retry_rejected": "never"}
    assert profiles.run(*rows, **how).sent == 70
    rows[40:65] = [wanted(each, tier=None, size=None) for each in ids[40:65]]
    with pytest.raises(GuardError, match="25 of 100 profiles would lose their attributes"):
        profiles.run(*rows, **how)
    assert profiles.run(*rows, **how, guard=ProfileGuard(max_removal_fraction=0.25)).emptied == {PROFILES: 25}


def test_profiles_that_were_refused_before_do_not_keep_the_others_from_being_sent(profiles):
    bad = [wanted(f"a{number:03}", tier=1) for number in range(400)]
    profiles.talon.answers = {row.profile_id: refused() for row in bad}
    with pytest.raises(RejectedRecordsError):
        profiles.run(*bad, wanted("b", tier=1), give_up_after=None)
    with pytest.raises(RejectedRecordsError):
        profiles.run(*bad, wanted("b", tier=2))
    assert profiles.talon.arrived["b"] == b'{"tier":2}'
    # Also where nothing else is to be sent, the diagnosis is the right one.
    with pytest.raises(RejectedRecordsError):
        profiles.run(*bad, wanted("b", tier=2))


def test_a_plan_that_was_made_without_rules_runs_none_where_the_task_now_asks_for_them():
    change = Change("a", fingerprint(digest_of("a", b"{}"), 1, partial=False), "add")
    chunk, talon = replace(Chunk.of([change]), bodies=[b"{}"]), Talon()
    push(NotedJournal([chunk]), talon, Profiles(runs_rules=True))
    assert talon.without_rules == ["a"]


def test_a_path_that_was_not_there_for_one_profile_is_its_fault_though_no_other_one_is_sent(profiles):
    profiles.talon.answers = {"x/y": refused(NotFoundError, 404)}
    rows = [wanted(each, tier=1) for each in ("a", "b", "x/y")]
    assert profiles.run(*rows, max_rejected=1).sent == 2
    report = profiles.run(*rows, max_rejected=1)
    assert (report.requests, report.rejected) == (1, {"refused by Talon.One (404)": 1})
    # Others may still show that the path is wrong.
    profiles.talon.answers["z"] = refused(NotFoundError, 404)
    with pytest.raises(FatalError, match="No profile can be sent"):
        profiles.run(*rows, wanted("z", tier=1), max_rejected=1)


def test_a_profile_without_a_path_is_rejected_again_if_only_its_attributes_changed(profiles):
    profiles.talon.answers = {"x/y": refused(NotFoundError, 404)}
    others = [wanted(each, tier=1) for each in "ab"]
    assert profiles.run(*others, wanted("x/y", tier=1), max_rejected=1).sent == 2
    report = profiles.run(*others, wanted("x/y", tier=2), max_rejected=1)
    assert (report.requests, report.rejected) == (1, {"refused by Talon.One (404)": 1})


def test_a_path_that_is_gone_stops_a_push_of_profiles_that_were_all_refused_before(profiles):
    rows = [wanted(f"{number:03}", tier=1) for number in range(100)]
    profiles.talon.answers = {row.profile_id: refused() for row in rows[1:]}
    profiles.run(*rows, max_rejected=None)
    profiles.talon = _Outage(0)
    with pytest.raises(FatalError, match="No profile can be sent"):
        profiles.run(*rows)
    assert profiles.talon.requests < 70


class _Rules(Talon):
    """Counts by profile how often rules ran."""

    def __init__(self):
        super().__init__()
        self.rule_runs = Counter()

    async def __call__(self, profile_id, attributes, *, without_rules, while_in_flight):
        self.rule_runs[profile_id] += not without_rules
        with while_in_flight():
            await super().__call__(profile_id, attributes, without_rules=without_rules)


def go_back(profiles, rows, *, lost=False, **how):
    """Send two versions of the rows, restore the ledger of the first one or none, and accept it."""
    profiles.run(*(wanted(row.profile_id, tier=0) for row in rows), runs_rules=True, **how)
    before = dict(profiles.storage.objects)
    profiles.run(*rows, runs_rules=True, **how)
    profiles.storage.objects.clear()
    profiles.storage.objects.update({} if lost else before)


def accepting(mirror):
    mirror.ledger.at_least, mirror.ledger.accepts_older = 2, True
    return mirror


@pytest.mark.parametrize("retry_sends_all", [True, False])
@pytest.mark.parametrize("lost", [True, False], ids=["lost", "restored"])
def test_after_a_newer_ledger_was_lost_no_rules_run_twice_though_the_first_run_stops(
    profiles, lost, retry_sends_all
):
    talon = profiles.talon = _Rules()
    rows = [wanted(f"{number:03}", tier=1) for number in range(500)]
    go_back(profiles, rows, lost=lost)
    talon.arrived.clear()
    talon.answers = {"211": error(TransientError)}
    with pytest.raises(TransientError):
        accepting(profiles.mirror(*rows, runs_rules=True, sends_all=True)).run("task")
    # The others were not even noted as being sent.
    assert 5 < len(talon.arrived) < 400
    talon.answers = {}
    profiles.run(*rows, runs_rules=True, sends_all=retry_sends_all)
    assert talon.arrived.keys() == {row.profile_id for row in rows}
    assert set(talon.rule_runs.values()) == {2}
    # From now on rules run for what changes.
    profiles.run(*(wanted(row.profile_id, tier=2) for row in rows), runs_rules=True)
    assert set(talon.rule_runs.values()) == {3}


def test_a_group_that_accepts_an_older_ledger_runs_no_rules_until_its_plan_is_committed(profiles):
    talon = profiles.talon = _Rules()
    rows = [wanted(each, tier=1) for each in "abc"]
    go_back(profiles, rows)
    mirror = accepting(profiles.mirror(*rows, runs_rules=True, sends_all=True))
    assert mirror.hand_over("task").rule_changes == 0
    assert mirror.ledger.facts.filling == [PROFILES]
    again = profiles.mirror(*rows, runs_rules=True)
    assert again.hand_over("task").rule_changes == 0
    share = again.ledger.share()
    for number in range(share.left):
        share.note_sending(number)
        share.landed(number)
    share.end()
    committed = profiles.mirror().ledger
    committed.commit("task", again.ledger.plan)
    assert committed.facts.filling == []
    assert set(talon.rule_runs.values()) == {2}


def test_under_another_key_rules_run_for_all_though_the_ledger_is_older(profiles):
    talon = profiles.talon = _Rules()
    rows = [wanted(each, tier=1) for each in "abc"]
    go_back(profiles, rows, facts=RunFacts(key_fingerprint="1"))
    other = RunFacts(key_fingerprint="2")
    accepting(profiles.mirror(*rows, facts=other, runs_rules=True, sends_all=True)).run("task")
    assert talon.rule_runs == {"a": 3, "b": 3, "c": 3}


def test_the_log_says_for_how_many_profiles_of_a_plan_rules_run(profiles, caplog):
    caplog.set_level("INFO")
    profiles.talon = _Rules()
    rows = [wanted(each, tier=1) for each in "ab"]
    profiles.run(*rows)
    assert "rules run for" not in caplog.text
    profiles.run(*rows, wanted("c", tier=1), runs_rules=True, sends_all=True)
    assert "3 profiles to send" in caplog.text
    assert "the ledger has 2 profiles; rules run for 1" in caplog.text


@pytest.mark.parametrize("acknowledged", [False, True])
def test_the_number_of_profiles_is_right_after_doubtful_ones_are_sent_again(profiles, acknowledged):
    if acknowledged:
        profiles.run(wanted("a", tier=1))
    profiles.talon.answers = {"a": error(TransientError)}
    with pytest.raises(TransientError):
        profiles.run(wanted("a", tier=2))
    profiles.talon.answers = {}
    report = profiles.run(wanted("a", tier=2), wanted("b", tier=1))
    assert report.by_audience() == {PROFILES: {"added": 2, "removed": 0, "members": 2}}
    assert (report.known.total(), report.repeated.total()) == (acknowledged, acknowledged)


def test_a_refused_profile_is_tried_again_by_the_next_run_with_its_new_attributes(profiles):
    profiles.talon.answers = {"a": refused()}
    assert profiles.run(wanted("a", tier=1), wanted("b", tier=1), max_rejected=1).sent == 1
    profiles.talon.answers = {}
    profiles.run(wanted("a", tier=2), wanted("b", tier=1))
    assert profiles.talon.arrived == {"a": b'{"tier":2}', "b": b'{"tier":1}'}


def test_a_refused_profile_is_left_out_until_it_changes_where_that_is_asked_for(profiles):
    profiles.talon.answers = {"b": refused(), "d": refused()}
    rows = [wanted(each, tier=1) for each in "abcd"]
    profiles.run(*rows, max_rejected=2)
    profiles.talon.arrived.clear()
    profiles.talon.answers = {}
    rows = [
        wanted("a", tier=2),
        wanted("b", tier=1),
        wanted("c", tier=2),
        wanted("d", tier=2),
        wanted("e", tier=1),
    ]
    report = profiles.run(*rows, max_rejected=1, retry_rejected="never")
    # Each gets its own attributes.
    assert profiles.talon.arrived == {row.profile_id: row.attributes for row in rows if row.profile_id != "b"}
    assert (report.sent, report.rejected.total()) == (4, 1)
    assert profiles.run(*rows, max_rejected=1, retry_rejected="never").requests == 0
    # It is not counted as a change, so it is not beyond a limit, and no plan is handed over for it.
    never = {"max_rejected": 1, "retry_rejected": "never", "guard": ProfileGuard(max_additions=0)}
    for report in (
        profiles.mirror(*rows, **never).dry_run(10),
        profiles.mirror(*rows, **never).hand_over("task"),
        profiles.run(*rows, **never),
    ):
        assert report.balances
        assert (report.unchanged, report.rejected.total(), report.unsent) == (4, 1, 0)
    assert profiles.run(*rows).sent == 1


def test_a_dry_run_with_another_key_says_that_the_run_would_be_refused_and_writes_nothing():
    profiles = ProfileSync()
    profiles.run(wanted("a", tier=1), facts=RunFacts(key_fingerprint="1"))
    before = dict(profiles.storage.objects)
    for sends_all, verdict in ((False, "would be refused: The API key"), (True, "would be sent")):
        mirror = profiles.mirror(
            wanted("a", tier=2), facts=RunFacts(key_fingerprint="2"), sends_all=sends_all
        )
        assert mirror.dry_run(10).verdict.startswith(verdict)
    assert profiles.storage.objects == before


def test_a_changed_key_does_not_matter_while_nothing_was_acknowledged(profiles):
    profiles.talon.answers = {"a": error(TransientError)}
    with pytest.raises(TransientError):
        profiles.run(wanted("a", tier=1), facts=RunFacts(key_fingerprint="1"))
    profiles.talon.answers = {}
    assert profiles.run(wanted("a", tier=1), facts=RunFacts(key_fingerprint="2")).sent == 1


@pytest.mark.parametrize("runs_rules", [False, True])
def test_the_advice_after_a_change_of_the_key_speaks_of_rules_if_there_are_any(profiles, runs_rules):
    profiles.run(wanted("a", tier=1), facts=RunFacts(key_fingerprint="1"))
    with pytest.raises(LedgerError, match="send all once with send='all'") as error:
        profiles.run(wanted("a", tier=1), facts=RunFacts(key_fingerprint="2"), runs_rules=runs_rules)
    assert ("run_rule_engine=False" in str(error.value)) == runs_rules


@pytest.mark.parametrize("environment, sends_all", [("", False), ("live", False), ("", True)])
def test_after_a_change_of_the_key_the_environment_is_named_or_all_is_sent(caplog, environment, sends_all):
    profiles = ProfileSync(environment)
    profiles.run(wanted("a", tier=1), facts=RunFacts(key_fingerprint="1"))
    other = RunFacts(key_fingerprint="2")
    if environment or sends_all:
        report = profiles.run(wanted("a", tier=1), facts=other, sends_all=sends_all)
        assert report.requests == sends_all
        assert "The API key or the platform name on the connection has changed" in caplog.text
    else:
        with pytest.raises(LedgerError, match="set Environment on the connection"):
            profiles.run(wanted("a", tier=1), wanted("b", tier=1), facts=other)
        assert profiles.talon.requests == 1


@pytest.mark.parametrize("sends_all", [False, True])
@pytest.mark.parametrize("first_error", [FatalError, TransientError])
def test_a_key_under_which_nothing_was_acknowledged_may_be_corrected(first_error, sends_all):
    profiles = ProfileSync()
    rows = [wanted(f"{number:03}", tier=1) for number in range(100)]
    profiles.talon.answers = {row.profile_id: error(first_error) for row in rows}
    with pytest.raises(first_error):
        profiles.run(*rows, facts=RunFacts(key_fingerprint="wrong"))
    assert not profiles.talon.arrived
    profiles.talon.answers = {}
    right = RunFacts(key_fingerprint="right")
    assert profiles.run(*rows, facts=right, sends_all=sends_all).sent == 100
    assert profiles.talon.arrived.keys() == {row.profile_id for row in rows}
    assert profiles.run(*rows, facts=right).requests == 0
    with pytest.raises(LedgerError, match="set Environment on the connection"):
        profiles.run(*rows, facts=RunFacts(key_fingerprint="another"))


def test_one_acknowledged_profile_among_doubtful_ones_ties_the_ledger_to_its_key():
    profiles = ProfileSync()
    profiles.run(wanted("b", tier=1), facts=RunFacts(key_fingerprint="1"))
    profiles.talon.answers = {each: error(TransientError) for each in "abc"}
    rows = [wanted(each, tier=2) for each in "abc"]
    with pytest.raises(TransientError):
        profiles.run(*rows, facts=RunFacts(key_fingerprint="1"))
    profiles.talon.answers = {}
    # The doubtful fingerprint of b says that an earlier one was acknowledged.
    with pytest.raises(LedgerError, match="set Environment on the connection"):
        profiles.run(*rows, facts=RunFacts(key_fingerprint="2"))


def test_all_that_is_sent_under_another_key_and_stops_midway_is_sent_by_the_next_run():
    profiles = ProfileSync()
    rows = [wanted(f"{number:03}", tier=1) for number in range(500)]
    profiles.run(*rows, facts=RunFacts(key_fingerprint="1"))
    other = RunFacts(key_fingerprint="2")
    profiles.talon.arrived.clear()
    # Batches before it are in.
    profiles.talon.answers = {"211": error(TransientError)}
    with pytest.raises(TransientError):
        profiles.run(*rows, facts=other, sends_all=True)
    assert 5 < len(profiles.talon.arrived) < 400
    profiles.talon.answers = {}
    report = profiles.run(*rows, facts=other)
    assert profiles.talon.arrived.keys() == {row.profile_id for row in rows}
    assert report.unchanged > 5
    assert profiles.run(*rows, facts=other).requests == 0


def test_under_another_key_a_refused_clearing_does_not_forget_what_was_acknowledged():
    profiles = ProfileSync()
    profiles.run(wanted("a", tier=1), wanted("b", tier=1), facts=RunFacts(key_fingerprint="1"))
    profiles.talon.answers = {"a": error(RejectedError, 400)}
    other = {"facts": RunFacts(key_fingerprint="2"), "clears": True, "max_rejected": None}
    profiles.run(wanted("b", tier=1), sends_all=True, **other)
    profiles.talon.answers = {}
    assert profiles.run(wanted("b", tier=1), **other).removals == {PROFILES: 1}


# What a refusal says


def reason(*blames, status=400):
    return reason_of(RejectedError("no", method="PUT", path="/", status=status, blames=blames))


@pytest.mark.parametrize(
    "blame, says",
    [
        (Blame("/attributes/Tier", "Unknown attribute", ""), "attribute 'Tier' is not defined"),
        (Blame("/attributes/Tier", "Tier is not defined", ""), "attribute 'Tier' is not defined"),
        (Blame("/attributes/Tier", "Invalid", "attribute does not exist"), "attribute 'Tier' is not defined"),
        (Blame("/attributes/a~1b~0c", "Unknown attribute", ""), "attribute 'a/b~c' is not defined"),
        (
            Blame("/attributes/score", "Invalid  attribute\nvalue", "'secret' is no number"),
            "attribute 'score' was refused (Invalid attribute value)",
        ),
        (Blame("/attributes/scores/0", "", ""), "attribute 'scores' was refused"),
        (Blame("/runRuleEngine", "Invalid", ""), "refused by Talon.One (400)"),
        (Blame("/attributes/", "Invalid", ""), "refused by Talon.One (400)"),
    ],
)
def test_the_answers_pointer_becomes_the_attributes_name(blame, says):
    assert reason(blame) == says


def test_an_answer_that_blames_nothing_is_counted_by_its_status():
    assert reason(status=422) == "refused by Talon.One (422)"


def test_several_attributes_are_named_in_order_and_not_too_many():
    blames = [Blame(f"/attributes/{name}", "Unknown attribute", "") for name in "dbacb"]
    assert reason(*blames[:3]) == (
        "attribute 'a' is not defined; attribute 'b' is not defined; attribute 'd' is not defined"
    )
    assert reason(*blames).endswith("attribute 'c' is not defined and 1 more")


def test_however_many_reasons_there_are_their_counts_stay_small():
    reasons = Counter()
    for number in range(1000):
        reasons[_within(reasons, f"reason {number % 200}")] += 1
    assert len(reasons) == 51
    assert reasons.total() == 1000
    assert reasons["reason 0"] == 5
    assert reasons["other reasons"] == 1000 - 50 * 5
