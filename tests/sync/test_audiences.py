"""Whether a mirror's audiences exist and are the ones that its ledger knows."""

from __future__ import annotations

import asyncio
import logging
from types import SimpleNamespace

import pytest

from airflow_provider_talon_cdp.changes.change import Chunk
from airflow_provider_talon_cdp.exceptions import (
    AuthenticationError,
    GuardError,
    InvalidInputError,
    LedgerError,
    NotFoundError,
    TransientError,
)
from airflow_provider_talon_cdp.sync.audiences import Audiences
from airflow_provider_talon_cdp.sync.guard import Guard
from tests.sync.fakes import FakeTalon, adds, error
from tests.sync.syncing import names, numbers, vip


def named(verify="identity", **names):
    return Audiences(names=names or {"vip": "VIP"}, verify=verify, state_uri="/state")


def existing(verify="exists"):
    return Audiences(verify=verify)


class Answers(FakeTalon):
    """Answers some calls about audiences with errors, before or after their effect."""

    def __init__(self, talon, **failures):
        super().__init__()
        self.members, self.ids = talon.members, talon.ids
        self.failures = failures

    async def create_audience(self, audience, name):
        return await self._call("create", super().create_audience(audience, name))

    async def update_audience(self, audience, name):
        return await self._call("update", super().update_audience(audience, name))

    async def _call(self, kind, call):
        failure, after_effect = self.failures.get(kind, (None, False))
        if failure and not after_effect:
            call.close()
            raise failure
        answer = await call
        if failure:
            raise failure
        return answer


# Creating


def test_a_named_audience_is_created_after_the_guard_and_before_the_first_request(sync, caplog):
    caplog.set_level(logging.INFO)
    with pytest.raises(GuardError):
        sync.run(adds("a"), guard=Guard(max_additions=0), audiences=named())
    assert not sync.talon.calls
    report = sync.run(adds("a"), audiences=named())
    assert sync.talon.calls == [("create", "vip", "VIP"), ("update", "vip", "VIP")]
    assert report.requests == 3
    assert "Created audience 'vip'.\nConnect it to your Applications" in caplog.text
    assert sync.loaded().facts.audiences == {
        "vip": {"id": sync.talon.ids["vip"], "created": f"day {sync.talon.ids['vip']}"}
    }


@pytest.mark.parametrize("audience", [".", ".."])
def test_a_named_audience_whose_id_cannot_stand_in_a_path_is_refused_before_anything_is_sent(sync, audience):
    for verify in ("identity", "none"):
        with pytest.raises(InvalidInputError, match="cannot be part of a request's path"):
            sync.run(
                adds("a", audience=audience),
                adds("a"),
                audiences=named(verify, **{audience: "Dots", "vip": "VIP"}),
            )
    assert sync.talon.requests == 0
    # Where it has no name here, nothing but bodies holds its ID.
    sync.run(adds("a", audience=audience), audiences=existing())
    assert sync.talon.members == {("a", audience)}


def test_an_audience_that_the_ledger_knows_is_not_created_again(sync):
    sync.run(adds("a"), audiences=named(verify="none"))
    sync.talon.calls.clear()
    assert sync.run(adds("a", "b"), audiences=named(verify="none")).requests == 1
    assert not sync.talon.calls


def test_an_audience_of_a_new_ledger_that_exists_is_a_warning_that_names_the_state(sync, caplog):
    sync.talon.make("vip")
    sync.run(adds("a"), audiences=named())
    assert sync.talon.calls[:2] == [("create", "vip", "VIP"), ("update", "vip", "VIP")]
    assert "The ledger is new, and audience 'vip' exists already" in caplog.text
    assert "state_uri: /state" in caplog.text
    caplog.clear()
    sync.run(adds("a", "b"), audiences=named())
    assert "exists already" not in caplog.text


def test_an_audience_that_an_earlier_attempt_may_have_created_is_no_such_warning(sync, caplog):
    sync.talon.make("vip")

    class Repeated(FakeTalon):
        async def create_audience(self, audience, name):
            try:
                return await super().create_audience(audience, name)
            except Exception as failure:
                failure.repeated = True  # type: ignore[attr-defined]
                raise

    members, ids = sync.talon.members, sync.talon.ids
    sync.talon = Repeated()
    sync.talon.members, sync.talon.ids = members, ids
    sync.run(adds("a"), audiences=named())
    assert "Audience 'vip' exists, and may have been created just now." in caplog.text
    assert "ledger is new" not in caplog.text


@pytest.mark.parametrize("audiences", [named(), existing()])
def test_a_process_that_slept_while_its_retry_took_over_asks_about_no_audience(sync, audiences):
    sync.run(adds("a"), audiences=named())
    requests = sync.talon.requests

    def rows():
        sync.now += 200
        sync.ledger().lock.take("task")
        return iter([adds("a")])

    with pytest.raises(LedgerError, match="has lost the ledger's lock"):
        sync.run(source=rows, audiences=audiences)
    assert sync.talon.requests == requests


def test_many_audiences_are_created_some_at_once_and_only_those_that_change(sync):
    most = {"now": 0, "most": 0}

    class Slow(FakeTalon):
        async def create_audience(self, audience, name):
            most["now"] += 1
            most["most"] = max(most.values())
            await asyncio.sleep(0.005)
            most["now"] -= 1
            return await super().create_audience(audience, name)

    sync.talon = Slow()
    audiences = {each: f"Name of {each}" for each in names(20)}
    rows = Chunk(["a"] * 19, names(19))
    report = sync.run(rows, audiences=Audiences(names=audiences, verify="none"))
    assert sorted(sync.talon.calls) == [("create", each, f"Name of {each}") for each in names(19)]
    assert most["most"] == 8
    assert report.requests == 20


def test_the_names_may_be_known_only_once_the_source_was_read(sync):
    found = {}

    def source():
        found["vip"] = "VIP"
        yield adds("a")

    sync.mirror(source=source, audiences=Audiences(names=found)).run("task")
    assert sync.talon.calls == [("create", "vip", "VIP")]


# identity


def test_identity_is_asked_before_and_after_a_push_and_where_nothing_changes(sync):
    sync.run(adds("a"), audiences=named())
    sync.talon.calls.clear()
    assert sync.run(adds("a"), audiences=named()).requests == 1
    assert sync.talon.calls == [("update", "vip", "VIP")]
    sync.talon.calls.clear()
    assert sync.run(adds("a", "b"), audiences=named()).requests == 3
    assert len(sync.talon.calls) == 2


def test_an_audience_that_was_deleted_and_made_again_gets_all_members_again(sync, caplog):
    two = {"vip": "VIP", "gold": "Gold"}
    rows = [adds("z", audience="gold")]
    sync.run(*sorted_rows(adds("a", "b"), *rows), audiences=named(**two))
    sync.talon.delete("vip")
    sync.talon.make("vip")
    report = sync.run(*sorted_rows(adds("a", "b"), *rows), audiences=named(**two))
    assert (report.unchanged, report.added, report.removals) == (1, {"vip": 2}, {})
    assert report.by_audience()["vip"]["members"] == 2
    assert sync.talon.members == sync.known == {*vip("a", "b"), ("z", "gold")}
    assert "Audience 'vip' was deleted and made again since the last run." in caplog.text
    assert "1 audience(s) of the ledger were deleted or made again" in caplog.text
    # Now it is the usual one.
    assert sync.run(*sorted_rows(adds("a", "b"), *rows), audiences=named(**two)).sent == 0


def test_a_time_of_creation_that_is_written_in_another_way_is_the_same_audience(sync, monkeypatch):
    spellings = iter(
        ["2026-06-30T12:00:00.123456789Z", "2026-06-30T14:00:00.123+02:00", "2026-06-30T12:00:00Z"]
    )
    monkeypatch.setattr(
        type(sync.talon), "update_audience", lambda self, *_: created_at(self.ids["vip"], next(spellings))
    )
    sync.talon.make("vip")
    sync.run(adds("a", "b"), audiences=named())
    assert sync.run(adds("a", "b"), audiences=named()).sent == 0
    assert not sync.loaded().suspected


async def created_at(number, text):
    return SimpleNamespace(id=number, created=text)


def sorted_rows(*chunks):
    changes = sorted(change for chunk in chunks for change in chunk.changes())
    return [Chunk.of(changes)]


def test_an_audience_that_is_gone_is_created_and_gets_all_members_again(sync):
    sync.run(adds("a", "b", "c"), audiences=named())
    sync.talon.delete("vip")
    report = sync.run(adds("b", "c", "d"), audiences=named())
    assert (report.unchanged, report.sent, report.removals) == (0, 4, {"vip": 1})
    assert sync.talon.members == sync.known == vip("b", "c", "d")


def test_an_audience_that_was_made_again_during_the_push_gets_all_members_again(sync):
    class Deleting(FakeTalon):
        async def __call__(self, chunk):
            await super().__call__(chunk)
            if self.requests in self.moments:  # type: ignore[attr-defined]
                self.delete("vip")
                self.make("vip")

    sync.talon = Deleting()
    sync.talon.moments = {4}
    report = sync.run(numbers(11_000), audiences=named(), in_flight=1)
    assert sync.talon.members == sync.known == vip(*names(11_000))
    assert report.balances
    assert report.by_audience()["vip"]["members"] == 11_000
    # The first plan is resumed, and then all of it again.
    assert (report.read, report.resumed, report.sent) == (11_000, 11_000, 22_000)


def test_an_audience_that_is_made_again_all_the_time_is_an_error(sync):
    class Deleting(FakeTalon):
        async def __call__(self, chunk):
            await super().__call__(chunk)
            self.delete("vip")
            self.make("vip")

    sync.talon = Deleting()
    with pytest.raises(LedgerError, match="deleted and made again while this run was sending to it"):
        sync.run(adds("a"), audiences=named())
    assert sync.uncertain == vip("a")


def test_an_audience_that_is_deleted_all_the_time_while_it_is_planned_for_is_an_error(sync):
    sync.run(adds("a"), audiences=named())

    class Changing(FakeTalon):
        async def update_audience(self, audience, name):
            self.make("vip")
            return await super().update_audience(audience, name)

    sync.talon = Changing()
    sync.talon.make("vip")
    with pytest.raises(LedgerError, match="deleted and made again while this run was planning for it"):
        sync.run(adds("a", "b"), audiences=named())
    assert not sync.talon.members


def test_a_name_that_was_changed_by_hand_is_set_back(sync):
    sync.run(adds("a"), audiences=named())
    sync.run(adds("a"), audiences=named(vip="Very Important"))
    assert sync.talon.calls[-1] == ("update", "vip", "Very Important")


def test_a_loss_is_not_forgotten_when_the_guard_refuses_to_make_it_good(sync):
    sync.run(adds("a", "b", "c"), audiences=named())
    sync.talon.delete("vip")
    with pytest.raises(GuardError, match="max_additions=4"):
        sync.run(adds("a", "b", "c", "d"), guard=Guard(max_additions=1), audiences=named())
    # The audience exists now, so nothing is created and nothing tells of the loss again.
    sync.run(adds("a", "b", "c", "d"), audiences=named(verify="none"))
    assert sync.talon.members == vip("a", "b", "c", "d")


@pytest.mark.parametrize("after_effect", [False, True])
def test_a_loss_is_not_forgotten_when_the_creation_ends_without_an_answer(sync, after_effect):
    sync.run(adds("a", "b"), audiences=named())
    sync.talon.delete("vip")
    talon = sync.talon = Answers(sync.talon, create=(error(TransientError), after_effect))
    with pytest.raises(TransientError):
        sync.run(adds("a", "b", "c"), audiences=named())
    talon.failures = {}
    sync.run(adds("a", "b", "c"), audiences=named())
    assert sync.talon.members == vip("a", "b", "c")


def test_a_question_that_was_refused_for_sure_makes_no_member_doubtful(sync):
    sync.run(adds("a", "b"), audiences=named())
    talon = sync.talon = Answers(sync.talon, update=(error(AuthenticationError, 401), False))
    with pytest.raises(AuthenticationError):
        sync.run(adds("a", "b", "c"), audiences=named())
    talon.failures = {}
    assert sync.run(adds("a", "b", "c"), audiences=named()).sent == 1


def test_an_audience_that_exists_makes_no_member_doubtful_though_the_push_fails(sync):
    sync.run(adds("a", "b"), audiences=named())
    sync.talon.errors = {sync.talon.requests + 1: error(AuthenticationError, 401)}
    with pytest.raises(AuthenticationError):
        sync.run(adds("a", "b", "c"), audiences=named())
    assert sync.run(adds("a", "b", "c"), audiences=named()).sent == 1


def test_a_ledger_that_knows_members_and_no_identity_learns_it(sync, caplog):
    """As one that an earlier version wrote."""
    sync.run(adds("a"))
    sync.talon.make("vip")
    report = sync.run(adds("a"), audiences=named())
    assert (report.sent, sync.talon.calls) == (0, [("update", "vip", "VIP")])
    assert sync.loaded().facts.audiences["vip"]["id"] == sync.talon.ids["vip"]
    assert "deleted" not in caplog.text


# exists


def test_an_audience_without_a_name_is_asked_about_with_a_member_that_both_have(sync):
    assert sync.run(adds("a", "b"), audiences=existing()).requests == 1
    report = sync.run(adds("b", "c"), audiences=existing())
    assert report.requests == 2
    assert sync.talon.sizes[1:] == [1, 2]
    assert sync.run(adds("b", "c"), audiences=existing()).requests == 1
    assert sync.talon.members == vip("b", "c")
    # Where no member stays, there is nothing to ask with.
    assert sync.run(adds("x"), audiences=existing()).requests == 1


def test_an_audience_that_is_gone_is_an_error_though_nothing_changes_and_a_new_one_gets_all(sync):
    sync.run(adds("a", "b"), audiences=existing())
    sync.talon.delete("vip")
    with pytest.raises(
        NotFoundError, match="Audience 'vip' of this mirror does not exist any more"
    ) as failure:
        sync.run(adds("a", "b"), audiences=existing())
    assert "Create it with CreateAudienceOperator, or pass audience_name" in str(failure.value)
    sync.talon.make("vip")
    report = sync.run(adds("a", "b"), audiences=existing())
    assert report.sent == 2
    assert sync.talon.members == sync.known == vip("a", "b")


def test_all_known_audiences_are_looked_at_those_without_changes_too(sync):
    rows = sorted_rows(adds("a"), adds("a", "b", audience="gold"))
    sync.run(*rows, audiences=existing())
    sync.talon.delete("gold")
    with pytest.raises(NotFoundError, match="'gold'"):
        sync.run(*sorted_rows(adds("a", "x"), adds("a", "b", audience="gold")), audiences=existing())
    assert sync.talon.members == vip("a")


# none


def test_no_request_is_made_where_that_is_asked_for(sync):
    sync.run(adds("a"), audiences=existing("none"))
    sync.talon.delete("vip")
    report = sync.run(adds("a"), audiences=existing("none"))
    assert (report.requests, report.unchanged) == (0, 1)


@pytest.mark.parametrize("verify", ["exists", "none"])
def test_a_named_audience_is_not_asked_about_then(sync, verify):
    sync.run(adds("a"), audiences=named(verify))
    assert sync.talon.calls == [("create", "vip", "VIP")]
    assert sync.run(adds("a"), audiences=named(verify)).requests == 0


@pytest.mark.parametrize("verify", ["exists", "none"])
def test_a_named_audience_that_turned_out_to_be_gone_is_created_by_the_next_run_then_too(sync, verify):
    sync.run(adds("a"), audiences=named(verify))
    sync.talon.delete("vip")
    with pytest.raises(NotFoundError):
        sync.run(adds("a", "b"), audiences=named(verify))
    assert sync.run(adds("a", "b"), audiences=named(verify)).sent == 2
    assert sync.talon.members == sync.known == vip("a", "b")


def test_another_key_asks_about_each_audience_whatever_the_setting(sync):
    sync.run(adds("a"), audiences=named("none"))
    audiences = named("none")
    audiences.key_has_changed = True
    sync.talon.calls.clear()
    assert sync.run(adds("a"), audiences=audiences).requests == 1
    assert sync.talon.calls == [("update", "vip", "VIP")]


# Errors


def test_of_several_failures_one_is_raised_as_it_is(sync):
    sync.talon = Answers(sync.talon, create=(error(AuthenticationError, 401), False))
    rows = sorted_rows(adds("a"), adds("a", audience="gold"))
    with pytest.raises(AuthenticationError):
        sync.run(*rows, audiences=named(vip="VIP", gold="Gold"))
    assert sync.loaded().version == 0


def test_a_plan_that_is_handed_over_has_its_audiences_created_first(sync):
    report = sync.mirror(adds("a"), audiences=named()).hand_over("task")
    assert sync.talon.calls == [("create", "vip", "VIP")]
    assert (report.unsent, report.requests) == (1, 1)
    assert report.balances


def test_a_dry_run_asks_nothing(sync):
    sync.mirror(adds("a"), audiences=named()).dry_run(60)
    assert not sync.talon.requests
