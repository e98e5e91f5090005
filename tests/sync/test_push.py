"""The sender, against a stand-in for Talon.One that keeps members and notices overlaps."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from airflow_provider_talon_cdp.exceptions import (
    AuthenticationError,
    NotFoundError,
    RejectedError,
    TransientError,
)
from airflow_provider_talon_cdp.sync.batches import Intake, batches
from airflow_provider_talon_cdp.sync.changes import Change, Rejection
from airflow_provider_talon_cdp.sync.delivery import halving
from airflow_provider_talon_cdp.sync.loop import run_apart
from airflow_provider_talon_cdp.sync.push import push
from airflow_provider_talon_cdp.sync.report import Tally
from tests.sync.fakes import FakeTalon, adds, error


def _push(records, intake, talon, tally, *, in_flight=64, max_rejected=0, lets_audiences_go=False, **options):
    stream = batches(records, intake, in_flight=in_flight)
    deliver = halving(talon, max_rejected, lets_audiences_go=lets_audiences_go)
    return push(stream, deliver, tally, in_flight=in_flight, **options)


def run(records, talon, **options):
    """Send records; what became of them."""
    intake, tally = Intake(), Tally()
    counts = SimpleNamespace(intake=intake, tally=tally)
    try:
        run_apart(lambda reader: _push(records, intake, talon, tally, reader=reader, **options))
    finally:
        rejected = intake.rejected + tally.rejected
        unsent = tally.unsent + intake.batched - tally.launched + intake.held
        vars(counts).update({"read": intake.read, "sent": tally.sent, "duplicate": intake.duplicate})
        vars(counts).update({"rejected": rejected, "unsent": unsent})
        assert tally.launched == tally.sent + tally.rejected.total() + tally.unsent
        assert intake.read == tally.sent + intake.duplicate + rejected.total() + unsent
    return counts


def test_everything_arrives_in_batches_of_1000():
    talon = FakeTalon()
    tally = run(adds(*map(str, range(2500))), talon)
    assert len(talon.members) == 2500
    assert sorted(talon.sizes) == [500, 1000, 1000]
    assert (tally.read, tally.sent, tally.unsent) == (2500, 2500, 0)


def test_requests_in_flight_are_bounded():
    talon = FakeTalon()
    talon.pause = 0.02
    run(adds(*map(str, range(20_000))), talon, in_flight=3)
    assert talon.most_in_flight == 3


def test_rejections_are_counted_and_not_sent():
    tally = run([Rejection("null"), *adds("a"), Rejection("null"), Rejection("empty")], FakeTalon())
    assert tally.rejected == {"null": 2, "empty": 1}
    assert tally.sent == 1


def test_equal_changes_fold_and_opposite_or_other_ones_do_not():
    changes = [*adds("a", "a"), Change("a", "gold", "add"), Change("b", "vip", "remove"), *adds("a")]
    talon = FakeTalon()
    tally = run(changes, talon)
    assert (tally.sent, tally.duplicate) == (3, 2)
    assert talon.members == {("a", "vip"), ("a", "gold")}


def test_a_profile_waits_for_a_flight_that_is_retried_for_long():
    """The repeat comes when so many batches have passed that it is not remembered any more."""

    class Stuck(FakeTalon):
        async def __call__(self, batch):
            if batch.changes[0].profile_id == "0" and self.requests == 0:
                self.in_flight.update(each.profile_id for each in batch.entries())
                self.requests += 1
                while self.requests < 12:  # noqa: ASYNC110 - the others count them
                    await asyncio.sleep(0.001)
                await asyncio.sleep(0.05)
                self.in_flight.subtract(each.profile_id for each in batch.entries())
            await super().__call__(batch)

    profiles = [*map(str, range(12_000)), "0"]
    talon = Stuck()
    counts = run([*adds(*profiles)], talon, in_flight=2)
    assert (counts.sent, counts.duplicate) == (12_001, 0)


def test_nothing_to_send_sends_nothing():
    talon = FakeTalon()
    assert run([], talon).read == 0
    assert talon.requests == 0


def test_the_bad_ones_are_found_and_the_rest_lands():
    profiles = [str(number) for number in range(3000)]
    talon = FakeTalon(bad={"7", "1500", "1501"})
    tally = run(adds(*profiles), talon)
    assert talon.members == {(each, "vip") for each in profiles} - {(each, "vip") for each in talon.bad}
    assert tally.rejected == {"refused by Talon.One (400)": 3}
    assert tally.sent == 2997
    assert talon.requests < 70


def test_when_everything_is_refused_the_run_stops_early():
    profiles = [str(number) for number in range(3000)]
    talon = FakeTalon(bad=profiles)
    with pytest.raises(RejectedError, match="first 100 records were all refused"):
        run(adds(*profiles), talon, in_flight=1)
    assert talon.requests < 250


def test_it_does_not_stop_before_more_are_refused_than_is_put_up_with():
    profiles = [str(number) for number in range(400)]
    assert run(adds(*profiles), FakeTalon(bad=profiles), max_rejected=400).rejected.total() == 400
    with pytest.raises(RejectedError, match="first 400 records were all refused"):
        run(adds(*profiles), FakeTalon(bad=profiles), max_rejected=399)


@pytest.mark.parametrize("in_flight", [1, 64])
@pytest.mark.parametrize("bad", [range(60), range(99), range(940, 1000), range(1500, 1560)])
def test_many_bad_ones_in_a_row_do_not_stop_a_run_of_good_ones(bad, in_flight):
    """They may be those that sort first, of one broken import."""
    profiles = [f"{number:04}" for number in range(2500)]
    talon = FakeTalon(bad={profiles[each] for each in bad})
    landings = []
    tally = run(adds(*profiles), talon, in_flight=in_flight, on_landed=landings.append)
    assert talon.members == {(each, "vip") for each in profiles if each not in talon.bad}
    assert tally.rejected.total() == len(bad)
    refused = [
        1000 * landing.number + refusal.position for landing in landings for refusal in landing.refusals
    ]
    assert sorted(refused) == list(bad)


@pytest.mark.parametrize("lets_audiences_go", [False, True])
def test_an_unknown_audience_among_others_is_named(lets_audiences_go):
    talon = FakeTalon(missing=["gold"])
    changes = [*adds("a"), Change("b", "gold", "add"), Change("c", "gold", "remove"), *adds("d")]
    with pytest.raises(NotFoundError, match=r"Audience in the request: gold\. If .*audience_name") as failure:
        run(changes, talon, lets_audiences_go=lets_audiences_go)
    assert failure.value.audiences == ["gold"]
    assert talon.requests <= 3


def test_nobody_need_be_removed_from_an_audience_that_is_gone():
    talon = FakeTalon(missing=["gold"], bad={"e"})
    landings = []
    changes = [*adds("a"), *(Change(each, "gold", "remove") for each in "bc"), *adds("d", "e", "f")]
    tally = run(changes, talon, lets_audiences_go=True, on_landed=landings.append)
    assert talon.members == {("a", "vip"), ("d", "vip"), ("f", "vip")}
    assert (tally.sent, tally.rejected.total()) == (5, 1)
    assert [refusal.position for landing in landings for refusal in landing.refusals] == [4]


def test_a_question_that_is_refused_has_found_the_path():
    talon = FakeTalon(missing=["gold"], errors={1: error(RejectedError, 400)})
    tally = run([Change("a", "gold", "remove")], talon, lets_audiences_go=True)
    assert (tally.sent, tally.rejected.total(), talon.requests) == (1, 0, 2)


def test_an_audience_is_not_taken_as_gone_where_nobody_answers():
    talon = FakeTalon(missing=["gold"], errors={1: error(TransientError)})
    with pytest.raises(TransientError):
        run([Change("a", "gold", "remove")], talon, lets_audiences_go=True)
    assert talon.requests == 2


def test_of_a_plain_removal_an_unknown_audience_is_an_error():
    with pytest.raises(NotFoundError, match="gold"):
        run([Change("a", "gold", "remove")], FakeTalon(missing=["gold"]))


@pytest.mark.parametrize("kind", [AuthenticationError, TransientError])
def test_a_fatal_answer_stops_the_others(kind):
    talon = FakeTalon(errors={3: error(kind)})
    read = []
    records = (Change(str(number), "vip", "add") for number in range(500_000) if not read.append(number))
    with pytest.raises(kind):
        run(records, talon, in_flight=4)
    assert talon.requests <= 12
    assert len(read) < 60_000


def test_a_source_that_fails_midway_stops_the_run_and_the_counts_balance():
    def records():
        yield from adds(*map(str, range(1500)))
        raise OSError("the database went away")

    with pytest.raises(OSError, match="went away"):
        run(records(), FakeTalon())


def test_progress_is_told_after_each_acknowledgement():
    told = []
    run(adds(*map(str, range(2500))), FakeTalon(), on_progress=lambda: told.append(1))
    assert len(told) == 3


@settings(max_examples=150, deadline=None)
@given(
    records=st.lists(
        st.one_of(
            st.builds(Change, st.integers(0, 30).map(str), st.sampled_from("xyz"), st.just("add")),
            st.builds(Rejection, st.sampled_from(["null", "empty"])),
        ),
        max_size=60,
    ),
    repeat=st.integers(1, 80),
    bad=st.sets(st.integers(0, 30).map(str), max_size=3),
    in_flight=st.integers(1, 8),
    seed=st.integers(0, 1000),
    fatal_at=st.none() | st.integers(0, 20),
)
def test_whatever_happens_the_counts_balance_and_no_profile_overlaps(
    records, repeat, bad, in_flight, seed, fatal_at
):
    talon = FakeTalon(
        bad=bad, seed=seed, errors={} if fatal_at is None else {fatal_at: error(AuthenticationError)}
    )
    stream = [
        Change(f"{record.profile_id}/{turn % 3}", *record[1:]) if isinstance(record, Change) else record
        for turn in range(repeat)
        for record in records
    ]
    talon.bad = {f"{each}/0" for each in bad}
    wanted = {
        (c.profile_id, c.audience_id)
        for c in stream
        if isinstance(c, Change) and c.profile_id not in talon.bad
    }
    try:
        tally = run(stream, talon, in_flight=in_flight)
    except (AuthenticationError, RejectedError):
        assert talon.members <= wanted
    else:
        assert talon.members == wanted
        assert tally.unsent == 0
