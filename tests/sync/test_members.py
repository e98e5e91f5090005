"""Members in requests: how they are halved and what a 404 means; and explicit adds and removes as a whole."""

from __future__ import annotations

import asyncio
import json
import logging
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_provider_talon_cdp.changes.change import Change, Chunk, Rejection
from airflow_provider_talon_cdp.changes.counts import Counts
from airflow_provider_talon_cdp.changes.suspicious import SuspiciousIds
from airflow_provider_talon_cdp.exceptions import (
    AuthenticationError,
    LedgerError,
    NotFoundError,
    RejectedError,
    RejectedRecordsError,
    TransientError,
    UnclearError,
    UnexpectedAnswerError,
)
from airflow_provider_talon_cdp.ledger.ledger import ledger_name
from airflow_provider_talon_cdp.ledger.outside import OutsideChanges
from airflow_provider_talon_cdp.sync import members as module
from airflow_provider_talon_cdp.sync.members import Members, send_members
from airflow_provider_talon_cdp.sync.push import Limits
from airflow_provider_talon_cdp.sync.report import Report
from tests.changes.strategies import spelt_out
from tests.sync.fakes import FakeTalon, StuckTalon, adds, error, opened
from tests.sync.pushing import NotedJournal, push
from tests.sync.syncing import Sync, names, vip


def removes(*profiles, audience="vip"):
    return Chunk(list(profiles), audience, "remove")


def deliver(chunks, talon, counts=None, *, ignores_missing_audiences=True, **limits):
    journal = NotedJournal(chunks)
    kind = Members(ignores_missing_audiences=ignores_missing_audiences)
    return push(journal, talon, kind, counts=counts, **limits), journal


def batched(profiles):
    return [adds(*profiles[start : start + 1000]) for start in range(0, len(profiles), 1000)]


# Calls that run rules


LOUD = [
    Chunk(["a", "a"], ["gold", "vip"], ["add!", "remove!"]),
    Chunk(["b"], "vip", "add!"),
    Chunk(["c", "d"], "vip"),
]


def test_changes_of_a_profile_that_run_rules_are_one_call():
    talon = FakeTalon()
    counts, journal = deliver(LOUD, talon)
    assert talon.calls == [("a", ("gold",), ("vip",)), ("b", ("vip",), ())]
    assert (counts.added, counts.removed, talon.requests) == ({"gold": 1, "vip": 3}, {"vip": 1}, 3)
    assert sorted(journal.outcomes) == [0, 1, 2]


def test_a_call_that_runs_rules_is_unclear_without_an_answer_and_the_others_go_on():
    talon = FakeTalon(errors={0: error(UnclearError, 502)})
    counts, journal = deliver(LOUD, talon, in_flight=1)
    assert (counts.unclear, counts.sent, talon.requests) == (2, 3, 3)
    assert journal.unclear == [(0, 0), (0, 1)]
    assert {(each["audience_id"], each["action"], each["status"]) for each in journal.letters} == {
        ("gold", "add", 502),
        ("vip", "remove", 502),
    }


def test_a_refused_call_that_runs_rules_had_no_effect_and_is_halved():
    counts, journal = deliver(LOUD, talon := FakeTalon(bad={"a"}), in_flight=1)
    assert (counts.rejected.total(), counts.sent, talon.requests) == (2, 3, 5)
    # The three calls for the one profile.
    assert journal.harmless == [0, 0, 0]
    assert journal.outcomes[0] == ([0, 1], [])


def test_an_answer_from_elsewhere_to_a_call_that_runs_rules_ends_the_push_and_is_unclear():
    talon = FakeTalon(errors={0: error(UnexpectedAnswerError, 200)})
    counts = Report()
    with pytest.raises(UnexpectedAnswerError):
        deliver(LOUD, talon, counts, in_flight=1)
    assert (counts.unclear, counts.unsent) == (2, 3)


def test_calls_that_have_not_left_when_a_push_ends_are_unsent_and_those_under_way_unclear():
    class Waiting(FakeTalon):
        """Has one call under way, one waiting to leave, and one refused for its key."""

        async def update_profile_audiences(self, profile, adds, removes, *, while_in_flight):
            if profile == "waits":
                await asyncio.sleep(60)
            with while_in_flight():
                self.requests += 1
                if profile == "under way":
                    await asyncio.sleep(60)
                raise error(AuthenticationError, 401)

    counts = Report()
    journal = NotedJournal([Chunk([each], "vip", "add!") for each in ("under way", "waits", "z")])
    with pytest.raises(AuthenticationError):
        push(journal, Waiting(), Members(), counts=counts)
    assert (counts.unclear, counts.unsent) == (1, 2)
    assert (journal.called, journal.harmless) == ([0, 2], [2, 2])
    assert [each["profile_id"] for each in journal.letters] == ["under way"]


# Halving


def test_the_bad_ones_are_found_and_the_rest_lands():
    profiles = [str(number) for number in range(3000)]
    talon = FakeTalon(bad={"7", "1500", "1501"})
    counts, journal = deliver(batched(profiles), talon)
    assert talon.members == vip(*profiles) - vip(*talon.bad)
    assert (counts.sent, counts.rejected) == (2997, {"refused by Talon.One (400)": 3})
    assert talon.requests < 70
    assert {number: at for number, (at, _) in journal.outcomes.items()} == {0: [7], 1: [500, 501], 2: []}
    assert {(each["profile_id"], each["audience_id"], each["action"]) for each in journal.letters} == {
        (each, "vip", "add") for each in talon.bad
    }


@given(
    changes=st.lists(
        st.builds(
            Change,
            st.integers(0, 30).map(str),
            st.sampled_from("xy"),
            st.sampled_from(["add", "remove"]),
            runs_rules=st.just(False),
        ),
        min_size=1,
        max_size=40,
        unique_by=lambda change: change[:2],
    ),
    bad=st.sets(st.integers(0, 30).map(str), max_size=8),
    before=st.sets(st.integers(0, 30).map(str), max_size=8),
)
def test_each_half_holds_what_it_should_and_the_refusals_are_where_they_stand(changes, bad, before):
    talon = FakeTalon(bad=bad)
    refused_before = frozenset((each, key) for each in before for key in "xy")
    counts, journal = deliver([Chunk.of(changes)], talon, refused_before=refused_before)
    refused = [at for at, change in enumerate(changes) if change.profile_id in bad]
    assert sorted(journal.outcomes[0][0]) == refused
    assert counts.rejected.total() == len(refused)
    assert talon.members == {
        change[:2] for change in changes if change.action == "add" and change.profile_id not in bad
    }


def test_changes_that_were_refused_before_travel_one_by_one():
    profiles = [f"{number:04}" for number in range(1000)]
    bad = {each for each in profiles if each.endswith("50")}
    talon = FakeTalon(bad=bad)
    deliver([adds(*profiles)], talon, refused_before=frozenset(vip(*bad)))
    assert Counter(talon.sizes) == {1: 10, 990: 1}
    # One of another audience is not one of them, and a chunk may have nothing else.
    talon = FakeTalon(bad={"a"})
    deliver([adds("a", "b")], talon, refused_before=frozenset({("a", "gold")}))
    assert talon.sizes == [2, 1, 1]
    talon = FakeTalon(bad={"a"})
    deliver([adds("a", "b")], talon, refused_before=frozenset(vip("a", "b")))
    assert talon.sizes == [1, 1]


def test_when_everything_is_refused_the_run_stops_early():
    profiles = [str(number) for number in range(3000)]
    talon = FakeTalon(bad=profiles)
    with pytest.raises(
        RejectedError, match="first 100 records were all refused, so this is not about single"
    ):
        deliver(batched(profiles), talon, in_flight=1)
    assert talon.requests < 250


def test_what_was_refused_in_an_earlier_run_does_not_say_that_everything_is_refused():
    profiles = names(1000)
    bad = {*profiles[:150], profiles[900]}
    before = frozenset(vip(profiles[900]))
    counts, _ = deliver([adds(*profiles)], FakeTalon(bad=bad), in_flight=1, refused_before=before)
    assert (counts.sent, counts.rejected.total()) == (849, 151)
    # Where nothing else is to be sent, either.
    bad = names(300)
    counts, _ = deliver([adds(*bad)], FakeTalon(bad=bad), refused_before=frozenset(vip(*bad)))
    assert (counts.rejected.total(), counts.unsent) == (300, 0)


def test_what_was_refused_before_the_end_of_a_run_has_a_dead_letter():
    journal, counts = NotedJournal(batched([str(number) for number in range(3000)])), Report()
    with pytest.raises(RejectedError, match="first 100 records were all refused"):
        push(journal, FakeTalon(bad=set(map(str, range(3000)))), Members(), counts=counts, in_flight=1)
    assert counts.rejected.total() == len(journal.letters) == 100
    assert not journal.outcomes


def test_a_missing_audience_after_an_attempt_without_an_answer_leaves_the_others_doubtful():
    """The first attempt may have made the changes of the audience that is there."""
    first = error(NotFoundError, 404)
    first.repeated = True
    chunk = Chunk(["a", "b"], ["gold", "vip"])
    journal = NotedJournal([chunk])
    with pytest.raises(NotFoundError):
        push(journal, FakeTalon(errors={0: first}, missing={"gold", "vip"}), Members(), in_flight=1)
    assert journal.left == [0]
    assert not journal.harmless
    first.repeated = False
    journal = NotedJournal([chunk])
    with pytest.raises(NotFoundError):
        push(journal, FakeTalon(errors={0: first}, missing={"gold", "vip"}), Members(), in_flight=1)
    assert journal.harmless == [0]


def test_it_does_not_stop_before_more_are_refused_than_are_tolerated():
    profiles = [str(number) for number in range(400)]
    counts, _ = deliver(batched(profiles), FakeTalon(bad=profiles), max_rejected=400)
    assert counts.rejected.total() == 400
    assert deliver(batched(profiles), FakeTalon(bad=profiles), max_rejected=None)[0].unsent == 0
    with pytest.raises(RejectedError, match="first 400 records were all refused"):
        deliver(batched(profiles), FakeTalon(bad=profiles), max_rejected=399)


@pytest.mark.parametrize("in_flight", [1, 64])
@pytest.mark.parametrize("bad", [range(60), range(99), range(940, 1000), range(1500, 1560)])
def test_many_bad_ones_in_a_row_do_not_stop_a_run_of_good_ones(bad, in_flight):
    """They may be those that sort first, of one broken import."""
    profiles = [f"{number:04}" for number in range(2500)]
    talon = FakeTalon(bad={profiles[each] for each in bad})
    counts, journal = deliver(batched(profiles), talon, in_flight=in_flight)
    assert talon.members == vip(*(each for each in profiles if each not in talon.bad))
    assert counts.rejected.total() == len(bad)
    refused = [1000 * number + position for number, (at, _) in journal.outcomes.items() for position in at]
    assert sorted(refused) == list(bad)


# Unknown audiences


@pytest.mark.parametrize("ignores_missing_audiences", [False, True])
def test_an_unknown_audience_among_others_is_named(ignores_missing_audiences):
    talon = FakeTalon(missing=["gold"])
    chunk = Chunk(["a", "b", "c", "d"], ["vip", "gold", "gold", "vip"], ["add", "add", "remove", "add"])
    with pytest.raises(
        NotFoundError, match=r"Audience in the request: gold\.\nIf .*audience_name"
    ) as failure:
        deliver([chunk], talon, ignores_missing_audiences=ignores_missing_audiences)
    assert failure.value.audiences == ["gold"]
    assert talon.requests <= 3


def test_nobody_need_be_removed_from_an_audience_that_is_gone(caplog):
    talon = FakeTalon(missing=["gold"], bad={"e"})
    chunk = Chunk(
        list("abcdef"),
        ["vip", "gold", "gold", "vip", "vip", "vip"],
        ["add", "remove", "remove"] + ["add"] * 3,
    )
    counts, journal = deliver([chunk], talon)
    assert talon.members == vip("a", "d", "f")
    assert (counts.sent, counts.rejected.total()) == (5, 1)
    assert journal.outcomes == {0: ([4], [])}
    assert "Talon.One has no audience 'gold' any more, so nobody needs to be removed." in caplog.text


def test_a_question_that_is_refused_has_found_the_path():
    talon = FakeTalon(missing=["gold"], errors={1: error(RejectedError, 400)})
    counts, _ = deliver([removes("a", audience="gold")], talon)
    assert (counts.sent, counts.rejected.total(), talon.requests) == (1, 0, 2)
    assert talon.sizes == [1, 0]


@pytest.mark.parametrize("answer", [error(TransientError), error(NotFoundError, 404)], ids=["none", "404"])
def test_an_audience_is_not_taken_as_gone_where_nobody_answers_or_the_path_is_wrong(answer):
    talon = FakeTalon(missing=["gold"], errors={1: answer})
    with pytest.raises(type(answer)):
        deliver([removes("a", audience="gold")], talon)
    assert talon.requests == 2


def test_of_a_plain_removal_an_unknown_audience_is_an_error():
    with pytest.raises(NotFoundError, match="gold"):
        deliver([removes("a", audience="gold")], FakeTalon(missing=["gold"]), ignores_missing_audiences=False)


# Explicit adds and removes


@pytest.fixture
def outside(sync):
    identity = sync.identity.of_audience("x")
    return OutsideChanges(
        sync.storage.folder(),
        type(identity)(**identity.parts | {"name": ledger_name("calls", "dag.task")}),
        "dag.task/run",
        clock=lambda: sync.now,
    )


@pytest.fixture
def send(sync, outside):
    """Send records; whatever happens, the counts balance in the log."""

    def send(*records, in_flight=64, max_rejected=0, **limits):
        limits = Limits(in_flight=in_flight, max_rejected=max_rejected, **limits)
        report = send_members(iter(records), lambda: opened(sync.talon), outside, limits)
        assert report.balances
        return report

    return send


def test_the_report_counts_records_and_requests(sync, send):
    sync.talon.retries, sync.talon.throttled = 3, 2
    report = send(adds("anna", "bo"), removes("cy"), Rejection("profile ID null"), max_rejected=1)
    summary = json.loads(json.dumps(report.summary()))
    assert summary.pop("seconds") >= 0
    expected = {
        "read": 4,
        "sent": 3,
        "added": 2,
        "removed": 1,
        "requests": 1,
        "rejected": {"profile ID null": 1},
    }
    assert {name: value for name, value in summary.items() if value} == expected


def test_everything_arrives_in_batches_of_1000(sync, send):
    report = send(adds(*map(str, range(2500))))
    assert len(sync.talon.members) == 2500
    assert sorted(sync.talon.sizes) == [500, 1000, 1000]
    assert (report.read, report.sent, report.unsent) == (2500, 2500, 0)


def test_equal_changes_fold_and_opposite_or_other_ones_do_not(sync, send):
    report = send(adds("a", "a"), adds("a", audience="gold"), removes("b"), adds("a"))
    assert (report.sent, report.duplicate) == (3, 2)
    assert sync.talon.members == {("a", "vip"), ("a", "gold")}


def test_the_log_ends_with_the_counts_and_holds_no_id(send, caplog):
    caplog.set_level(logging.DEBUG)
    send(adds("anna", "bo"), Rejection("profile ID null"), max_rejected=None)
    assert (
        "Done:\n3 read + 0 to remove + 0 resumed\n= 0 unchanged + 2 sent + 0 duplicate + 1 rejected"
        in caplog.text
    )
    assert "rejected: 1 x profile ID null" in caplog.text
    assert "anna" not in caplog.text


def test_rejections_above_the_limit_fail_the_run_after_everything_good_was_sent(sync, send):
    with pytest.raises(RejectedRecordsError, match="1 of 3 records were rejected") as failure:
        send(adds("anna", "bo"), Rejection("profile ID null"))
    assert sync.talon.requests == 1
    assert failure.value.report.sent == 2
    assert failure.value.report.dead_letters is None


def test_a_run_that_stops_early_says_how_far_it_came(sync, send, caplog):
    sync.talon.errors = {0: error(AuthenticationError, 401)}
    with pytest.raises(AuthenticationError):
        send(adds("anna", "bo"), Rejection("profile ID null"))
    assert "Stopped early:\n3 read + 0 to remove + 0 resumed\n= 0 unchanged + 0 sent" in caplog.text
    assert "+ 1 rejected + 2 unsent" in caplog.text


def test_refused_records_and_those_that_cannot_be_sent_have_dead_letters(sync, send):
    sync.talon.bad = {"b"}
    report = send(adds("a", "b"), Rejection("null"), Rejection("long", "x" * 9), max_rejected=None)
    assert report.rejected == {"refused by Talon.One (400)": 1, "null": 1, "long": 1}
    letters = sorted(sync.letters(), key=lambda letter: letter["profile_id"])
    assert [letter.pop("time")[:2] for letter in letters] == ["20", "20"]
    assert letters == [
        {
            "profile_id": "b",
            "audience_id": "vip",
            "action": "add",
            "reason": "bad",
            "status": 400,
            "request_uuid": "uuid-1",
        },
        {"profile_id": "x" * 9, "reason": "long"},
    ]
    assert report.dead_letters.startswith("memory://acme.talon.one/calls_3Adag.task-")
    assert "dead letters: memory" in str(report)


def test_the_ledger_of_an_audience_is_told_before_its_members_are_changed(sync, outside, send):
    class Looking(FakeTalon):
        async def __call__(self, chunk):
            told.append(sync.uncertain)
            await super().__call__(chunk)

    told = []
    sync.run(adds("a", "b", "c"))
    members, sync.talon = sync.talon.members, Looking()
    sync.talon.members = members
    send(removes("a", "z"), adds("d"), adds("e", audience="gold"))
    # Where one that the ledger does not have is removed, nothing is to be doubted.
    assert told == [vip("a", "d")]
    # The mirror makes it what its query says.
    sync.run(adds("a", "b", "c"))
    assert sync.talon.members == vip("a", "b", "c") | {("e", "gold")}
    assert not sync.uncertain


def test_nothing_is_sent_that_a_ledger_cannot_be_told(sync, send):
    sync.run(adds("a"))

    def full(doing, name):
        if doing == "write" and "/outside/" in name:
            raise OSError("No space left on device")

    sync.storage.before_effect = full
    before = sync.talon.requests
    with pytest.raises(LedgerError, match="No space left"):
        send(removes("a"))
    assert sync.talon.requests == before


def test_a_long_source_is_noted_in_pieces(sync, send, monkeypatch):
    monkeypatch.setattr(module, "_NOTED_AT_ONCE", 2)
    sync.run(adds("a"))
    ids = [f"{number:05}" for number in range(5500)]
    send(*(adds(*ids[start : start + 700]) for start in range(0, 5500, 700)))
    notes = [name for name in sync.storage.objects if "/outside/" in name and name.endswith(".zst")]
    assert len(notes) == 3
    assert len(sync.uncertain) == 5500


def test_a_source_that_fails_midway_is_closed_and_the_rest_is_counted(sync, outside, caplog):
    closed = []

    def records():
        try:
            yield adds(*map(str, range(1500)))
            raise OSError("the database went away")
        finally:
            closed.append(True)

    with pytest.raises(OSError, match="went away"):
        send_members(records(), lambda: opened(sync.talon), outside, Limits())
    assert closed == [True]
    assert "Stopped early:\n1,500 read" in caplog.text
    assert "+ 1,500 unsent" in caplog.text or "= 0 unchanged + 1,000 sent" in caplog.text


def test_a_profile_waits_for_a_flight_that_is_retried_for_long(sync, send):
    """The repeat comes when so many batches have passed that it is not remembered any more."""

    sync.talon = StuckTalon()
    report = send(adds(*map(str, range(12_000)), "0"), in_flight=2)
    assert (report.sent, report.duplicate) == (12_001, 0)


def test_a_duplicate_that_comes_late_is_forgotten_like_the_others():
    """Its part has nothing to remember."""
    ids = ["x", *map(str, range(5000)), "x", *map(str, range(5000, 20_000))]
    keys = ["small" if each == "x" else "large" for each in ids]
    stream, _ = batches(
        [Chunk(ids[at : at + 500], keys[at : at + 500]) for at in range(0, len(ids), 500)], in_flight=8
    )
    assert sum(map(len, stream)) == 20_001


# Batches


def batches(records, counts=None, in_flight=64):
    journal = OutsideChanges(Path(), Sync.identity, "")
    stream = module._batches(records, counts or Counts(), journal, SuspiciousIds(), in_flight=in_flight)
    return stream, journal


def test_ids_travel_in_full_batches_of_bare_ids():
    counts = Counts()
    lists = [adds(*(str(n) for n in range(start, start + 700))) for start in (0, 700, 1400)]
    stream, journal = batches(lists, counts)
    found = list(stream)
    assert [len(chunk) for chunk in found] == [1000, 1000, 100]
    assert all(isinstance(chunk.keys, str) and chunk.disjoint_from_recent for chunk in found)
    assert (counts, journal.changes) == (Counts(read=2100), 2100)


def test_a_long_list_is_cut_where_the_last_one_left_off():
    found = list(batches([adds("first"), adds(*map(str, range(5000)))])[0])
    assert [len(chunk) for chunk in found] == [1000, 1000, 1000, 1000, 1000, 1]
    assert [each for chunk in found for each in chunk.ids] == ["first", *map(str, range(5000))]


def test_after_a_mixed_batch_bare_ids_are_back():
    lists = [adds("a"), adds(*map(str, range(999)), audience="gold"), adds("b", audience="gold")]
    first, second = batches(lists)[0]
    assert [len(ids) for ids, _, _ in first.groups()] == [1, 999]
    assert (second.ids, second.keys) == (["b"], "gold")


def test_what_is_far_apart_does_not_fold():
    many = [adds(*(f"{turn}-{n}" for n in range(1000))) for turn in range(70)]
    counts = Counts()
    total = sum(map(len, batches([*many, many[-1], many[0]], counts)[0]))
    assert (counts.duplicate, total) == (1000, 71_000)


def test_a_stream_that_is_left_early_closes_the_source_and_counts_what_it_held():
    closed = []

    def source():
        try:
            yield adds(*map(str, range(500)))
            yield adds("gold-1", *map(str, range(999)), audience="gold")
            yield adds("last")
        finally:
            closed.append(True)

    counts = Counts()
    stream, journal = batches(source(), counts)
    assert len(next(stream)) == 1000
    stream.close()
    assert closed == [True]
    assert (counts.read, journal.changes) == (1500, 1500)


def chunks_of_some(kinds):
    """Make lists that are cut anywhere, of profiles that come again."""
    return st.builds(
        lambda start, size, kind: Chunk(
            [str(n % 13) for n in range(start, start + size)],
            kind[0] if isinstance(kind[0], str) else [kind[0][n % 2] for n in range(size)],
            kind[1],
        ),
        st.integers(0, 13),
        st.integers(0, 25),
        st.sampled_from(kinds),
    )


RECORDS = st.lists(
    chunks_of_some([("vip", "add"), ("vip", "remove"), ("gold", "add"), (["vip", "gold"], "add")])
    | st.sampled_from(["null", "empty"]).map(Rejection),
    max_size=12,
)


@pytest.fixture(scope="module")
def _small_requests():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "MAX_CHANGES", 10)
        yield


@pytest.mark.usefixtures("_small_requests")
@given(RECORDS)
def test_whatever_comes_each_change_travels_once_and_the_counts_balance(records):
    counts = Counts()
    stream, journal = batches(iter(records), counts)
    found = list(stream)
    sent = [change for chunk in found for change in chunk.changes()]
    read = [change for chunk in records if isinstance(chunk, Chunk) for change in chunk.changes()]
    assert Counter(sent) == Counter(set(read))
    assert all(len(chunk) == 10 for chunk in found[:-1])
    assert all(0 < len(chunk) <= 10 for chunk in found)
    assert journal.changes == len(sent)
    rejected = sum(isinstance(each, Rejection) for each in records)
    assert counts.read == len(sent) + counts.duplicate + rejected == len(read) + rejected
    # Chunks that say so share no profile with one shortly before.
    for at, chunk in enumerate(found):
        if chunk.disjoint_from_recent:
            assert all(chunk.profiles.isdisjoint(each.profiles) for each in found[max(0, at - 64) : at])


@pytest.mark.usefixtures("_small_requests")
@given(
    records=RECORDS,
    bad=st.sets(st.integers(0, 12).map(str), max_size=3),
    in_flight=st.integers(1, 8),
    seed=st.integers(0, 1000),
    fatal_at=st.none() | st.integers(0, 12),
)
def test_whatever_happens_the_counts_balance_and_talon_one_has_what_was_asked_for(
    records, bad, in_flight, seed, fatal_at
):
    sync = Sync()
    sync.talon = FakeTalon(bad=bad, seed=seed)
    if fatal_at is not None:
        sync.talon.errors = {fatal_at: error(AuthenticationError, 401)}
    outside = OutsideChanges(sync.storage.folder(), sync.identity, "task", clock=lambda: sync.now)
    limits = Limits(in_flight=in_flight, max_rejected=None)
    # Additions only, as the order of an addition and a removal of one member is the source's matter.
    records = [Chunk(each.ids, each.keys) if isinstance(each, Chunk) else each for each in records]
    wanted = {m for m in spelt_out(e for e in records if isinstance(e, Chunk)) if m[0] not in bad}
    try:
        report = send_members(iter(records), lambda: opened(sync.talon), outside, limits)
    except AuthenticationError:
        assert sync.talon.members <= wanted
    else:
        assert sync.talon.members == wanted
        assert report.unsent == 0
        assert report.balances
        refused = report.rejected["refused by Talon.One (400)"]
        assert len(sync.letters()) == refused
