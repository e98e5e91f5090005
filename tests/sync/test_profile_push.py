"""Profiles on their way: one after another in a flight, many flights at once."""

from __future__ import annotations

import asyncio

import pytest

from airflow_provider_talon_cdp.exceptions import FatalError, NotFoundError, RejectedError
from airflow_provider_talon_cdp.sync import profile_push
from airflow_provider_talon_cdp.sync.attributes import Attributes
from airflow_provider_talon_cdp.sync.changes import Batch, Change
from airflow_provider_talon_cdp.sync.fingerprints import digest_of, fingerprint
from airflow_provider_talon_cdp.sync.loop import run_apart
from airflow_provider_talon_cdp.sync.profile_push import BATCH, CHANGED, one_by_one, profile_batches
from airflow_provider_talon_cdp.sync.profiles import Profile
from airflow_provider_talon_cdp.sync.push import push
from airflow_provider_talon_cdp.sync.report import Tally


class Talon:
    """Takes profiles; some wait until others have arrived or are under way, and some are refused."""

    def __init__(self, answers=None, first_waits_for=0, waits_for_company=0):
        self.arrived = {}
        self.answers = answers or {}
        self.first_waits_for = first_waits_for
        self.enough = asyncio.Event()
        self.under_way = self.most_under_way = 0
        self.waits_for_company = waits_for_company
        self.company = asyncio.Event()

    async def __call__(self, profile_id, attributes):
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


def changes(number):
    yield from (Change(f"{each:03}", "x", "add") for each in range(number))


def _push(stream, deliver, tally, **options):
    run_apart(lambda reader: push(stream, deliver, tally, reader=reader, **options))


def run(talon, number, *, in_flight=4, give_up_after=50, max_rejected=0):
    tally, landed = Tally(), {}

    def on_landed(flight):
        landed[flight.number] = [position for position, _ in flight.refusals]

    bodies = (f"{each}".encode() for each in range(number))
    try:
        _push(
            profile_batches(changes(number), bodies),
            one_by_one(talon, give_up_after, max_rejected),
            tally,
            in_flight=in_flight,
            on_landed=on_landed,
        )
    finally:
        assert tally.launched == tally.sent + tally.rejected.total() + tally.unsent
    return tally, landed


def refused(kind=RejectedError, status=400):
    return kind("no", method="PUT", path="/", status=status)


def test_each_profile_gets_its_own_attributes_and_flights_are_acknowledged_whole():
    talon = Talon()
    tally, landed = run(talon, 2 * BATCH + 5)
    assert talon.arrived == {f"{each:03}": f"{each}".encode() for each in range(2 * BATCH + 5)}
    assert tally.sent == 2 * BATCH + 5
    assert landed == {0: [], 1: [], 2: []}


def test_as_many_requests_as_flights_are_under_way():
    talon = Talon(waits_for_company=4)
    run(talon, 10 * BATCH, in_flight=4)
    assert talon.most_under_way == 4


def test_one_that_takes_long_holds_nobody_up():
    talon = Talon(first_waits_for=30 * BATCH)
    tally, landed = run(talon, 31 * BATCH, in_flight=2)
    assert tally.sent == 31 * BATCH
    assert list(landed)[-1] == 0


def test_refused_profiles_are_told_by_their_place_and_the_others_land():
    talon = Talon({"001": refused(), f"{BATCH + 3:03}": refused()})
    tally, landed = run(talon, 2 * BATCH)
    assert landed == {0: [1], 1: [3]}
    assert tally.rejected == {"refused by Talon.One (400)": 2}


def test_a_path_that_is_not_there_stops_everything():
    talon = Talon({"000": refused(NotFoundError, 404)})
    with pytest.raises(FatalError, match="no profile can be sent; check Base URL"):
        run(talon, 3 * BATCH, in_flight=1)
    assert not talon.arrived


@pytest.mark.parametrize(
    "give_up_after, max_rejected, requests", [(7, 0, 7), (1, 0, 1), (7, 6, 7), (7, 20, 21)]
)
def test_when_the_first_ones_are_all_refused_for_one_reason_it_stops(give_up_after, max_rejected, requests):
    talon = Talon({f"{each:03}": refused() for each in range(100)})
    with pytest.raises(
        FatalError, match=f"The first {requests} profiles were all refused for the same reason"
    ):
        run(talon, 100, in_flight=1, give_up_after=give_up_after, max_rejected=max_rejected)


@pytest.mark.parametrize(
    "answers, how",
    [
        pytest.param({f"{each:03}": refused() for each in range(1, 100)}, {}, id="one was accepted"),
        pytest.param(
            {f"{each:03}": refused(status=400 + each % 2 * 22) for each in range(100)}, {}, id="two reasons"
        ),
        pytest.param(
            {f"{each:03}": refused() for each in range(100)}, {"give_up_after": None}, id="not asked for"
        ),
        pytest.param(
            {f"{each:03}": refused() for each in range(100)}, {"max_rejected": 100}, id="put up with"
        ),
        pytest.param(
            {f"{each:03}": refused() for each in range(100)}, {"max_rejected": None}, id="any number"
        ),
    ],
)
def test_otherwise_it_goes_on(answers, how):
    tally, _ = run(Talon(answers), 100, in_flight=1, **how)
    assert tally.rejected.total() == len(answers)


def test_changes_without_attributes_are_no_plan(monkeypatch):
    monkeypatch.setattr(profile_push, "BATCH", 2)
    with pytest.raises(ValueError, match="shorter"):
        list(profile_batches(changes(3), iter([b"1"])))


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
    leaver = Change("f", changes[0].audience_id, "remove")
    batches = (Batch(each) for each in (changes[:2], changes[2:], [leaver]))
    talon, tally, letters = Talon(), Tally(), []
    kind = Attributes()

    def on_landed(flight):
        for position, error in flight.refusals:
            change = flight.batch.changes[position]
            letters.append((change.profile_id, kind.letter(change, error)["reason"]))

    stream = kind.reread(batches, rows, ["tier"])
    _push(stream, one_by_one(talon, 1), tally, in_flight=1, on_landed=on_landed)
    # b has changed, c cannot be sent any more, d is gone.
    assert talon.arrived == {"a": b'{"tier":1}', "e": b'{"tier":1}', "f": b'{"tier": null}'}
    assert letters == [(each, CHANGED) for each in "bcd"]
    assert (tally.sent, tally.rejected) == (3, {CHANGED: 3})
