"""Attributes that are sent with rules: the rules run for them once at most."""

from __future__ import annotations

from pathlib import Path

import pytest

from airflow_provider_talon_cdp.exceptions import (
    AuthenticationError,
    RejectedRecordsError,
    TransientError,
    UnclearError,
)
from airflow_provider_talon_cdp.ledger.repair import DamagedLedger
from airflow_provider_talon_cdp.operators.profile import UpdateProfileOperator
from airflow_provider_talon_cdp.transfers.across_workers import PlanProfilesOperator, PushShareOperator
from tests.mirror.test_profiles import letters
from tests.mirror.test_rules import lose_the_last_version, next_run, note_a_kill
from tests.transfers.test_across_workers import commit, execute


@pytest.fixture
def people(sqlite):
    """Set the points of profiles."""
    return lambda **points: sqlite.fill_people("id, points", list(points.items()))


@pytest.fixture
def send(send, people, talon):
    """Send with rules."""
    people(a=1, b=1, c=1)
    return lambda **how: send(**{"run_rule_engine": True, "in_flight": 1} | how)


@pytest.fixture
def points(attributes):
    return lambda: {profile: found["points"] for profile, found in attributes().items()}


def change_and_kill(send, people, talon, state):
    """Send once; then leave a run that was killed when the first of three changes may have left."""
    send()
    people(a=2, b=2, c=2)
    talon.fail_next("status", status=401, only="a")
    with pytest.raises(AuthenticationError):
        send(context=next_run(2))
    talon.clear_faults()
    note_a_kill(state, may_have_left=1)


@pytest.mark.parametrize("fault", ["reset_before", "reset_after"])
def test_after_an_unclear_answer_the_attributes_are_sent_again_without_rules(
    send, talon, runs, points, fault
):
    talon.fail_next(fault, times=1, only="b")
    with pytest.raises(RejectedRecordsError, match="1 of 3 changes got no clear answer") as error:
        send()
    assert error.value.report.balances
    summary = error.value.report.summary()
    assert (summary["sent"], summary["unclear"], summary["unsent"]) == (2, 1, 0)
    (letter,) = letters(summary)
    assert set(letter) == {"time", "profile_id", "reason", "status", "request_uuid"}
    assert letter["profile_id"] == "b"
    assert "rules may have run" in letter["reason"]
    summary = send(context=next_run(2))
    assert (summary["sent"], summary["unchanged"], summary["unclear"]) == (1, 2, 0)
    assert points() == {"a": 1, "b": 1, "c": 1}
    assert runs() == {"a": 1, "c": 1} | ({"b": 1} if fault == "reset_after" else {})
    assert send(context=next_run(3))["unchanged"] == 3


def test_other_attributes_than_the_unclear_ones_run_rules(send, people, talon, runs, points):
    talon.fail_next("reset_after", times=1, only="b")
    with pytest.raises(RejectedRecordsError):
        send()
    people(a=1, b=2, c=1)
    assert send(context=next_run(2))["sent"] == 1
    assert runs() == {"a": 1, "b": 2, "c": 1}
    assert points()["b"] == 2


def test_a_run_that_sends_all_runs_rules_for_other_attributes_only(send, people, talon, runs, points):
    talon.fail_next("reset_after", times=1, only="b")
    with pytest.raises(RejectedRecordsError):
        send()
    people(a=1, b=1, c=2, d=1)
    assert send(context=next_run(2), send="all")["sent"] == 4
    assert points() == {"a": 1, "b": 1, "c": 2, "d": 1}
    assert runs() == {"a": 1, "b": 1, "c": 2, "d": 1}


def test_a_retry_of_a_run_that_sends_all_runs_no_rules_twice(send, people, talon, runs):
    send()
    people(a=2, b=2, c=2)
    talon.fail_next("status", status=401, only="c")
    with pytest.raises(AuthenticationError):
        send(context=next_run(2), send="all")
    talon.clear_faults()
    assert send(context=next_run(2), send="all")["sent"] == 3
    assert runs() == {"a": 2, "b": 2, "c": 2}


def test_profiles_with_and_without_rules_keep_their_own_attributes(send, people, talon, runs, points):
    """Those without rules wait for each other in a request of many members; attributes are sent in order."""
    before = {f"p{number:02}": number for number in range(0, 40, 2)}
    people(**before)
    for profile in ("p02", "p04", "p20", "p38"):
        talon.fail_next("reset_before", times=1, only=profile)
    with pytest.raises(RejectedRecordsError):
        send(in_flight=8)
    after = before | {f"p{number:02}": number for number in range(1, 40, 2)}
    people(**dict(sorted(after.items())))
    assert send(context=next_run(2), in_flight=8)["sent"] == 24
    assert points() == after
    assert runs() == dict.fromkeys(sorted(set(after) - {"p02", "p04", "p20", "p38"}), 1)


def test_a_doubt_about_a_clear_is_none_about_an_add_nor_the_other_way_round(send, people, talon, runs):
    how = {"on_missing": "clear", "max_removal_fraction": 1}
    talon.fail_next("reset_after", times=1, only="b")
    with pytest.raises(RejectedRecordsError):
        send(**how)
    people(a=1, c=1)
    # The add of b is in doubt, and no clear was sent.
    talon.fail_next("reset_after", times=1, only="b")
    with pytest.raises(RejectedRecordsError):
        send(context=next_run(2), **how)
    assert runs()["b"] == 2
    people(a=1, b=1, c=1)
    # The clear of b is in doubt, and its attributes come after it.
    send(context=next_run(3), **how)
    assert runs()["b"] == 3


@pytest.mark.parametrize("retry", [{}, {"send": "all"}], ids=["sends the rest", "sends all"])
def test_what_another_key_opens_has_run_no_rules(send, own_talon, connect, retry):
    connect(own_talon)
    send()
    own_talon.replace_key("another-key-0123456789")
    connect(own_talon)
    own_talon.fail_next("status", status=401, only="b")
    with pytest.raises(AuthenticationError):
        send(context=next_run(2), send="all")
    own_talon.clear_faults()
    send(context=next_run(3), **retry)
    assert [own_talon.rule_runs(each) for each in "abc"] == [2, 2, 2]


def test_a_doubt_outlives_that_unknown_attributes_are_skipped(send, talon, runs):
    talon.fail_next("reset_after", times=1, only="b")
    with pytest.raises(RejectedRecordsError):
        send(skip_unknown_attributes=True)
    send(context=next_run(2))
    assert runs()["b"] == 1


def test_attributes_that_go_away_run_rules_once(send, people, talon, runs, attributes):
    how = {"on_missing": "clear", "max_removal_fraction": 1}
    send(**how)
    people(a=1, c=1)
    talon.fail_next("reset_after", times=1, only="b")
    with pytest.raises(RejectedRecordsError):
        send(context=next_run(2), **how)
    assert send(context=next_run(3), **how)["removals"] == 1
    assert attributes()["b"] == {}
    assert runs() == {"a": 1, "b": 2, "c": 1}
    assert send(context=next_run(4), **how)["removals"] == 0


def test_after_a_change_by_another_task_a_profile_is_sent_again_without_rules(
    send, talon, runs, points, state, profiles_ledger
):
    send()
    other = UpdateProfileOperator(
        task_id="other", customer_profile_id="b", attributes={"points": 9}, state_uri=str(state)
    )
    other.execute({})
    assert points()["b"] == 9
    assert send(context=next_run(2))["sent"] == 1
    assert points()["b"] == 1
    assert runs() == {"a": 1, "b": 1, "c": 1}


def test_many_unclear_answers_in_a_row_stop_the_push(send, people, talon, runs, points):
    wanted = {f"p{number:02}": number for number in range(30)}
    people(**wanted)
    talon.fail_next("reset_after", times=10)
    with pytest.raises(UnclearError, match="10 calls in a row that run rules"):
        send()
    assert send(context=next_run(2))["sent"] == 30
    assert points() == wanted
    assert set(runs().values()) == {1}


def test_a_retry_reports_what_was_unclear_in_the_try_before_it_once(send, talon, connect, runs, points):
    connect(talon, bulk_retry_seconds=0)
    talon.fail_next("reset_after", times=1, only="a")
    talon.fail_next("status", status=429, times=None, only="b")
    with pytest.raises(TransientError):
        send()
    talon.clear_faults()
    with pytest.raises(RejectedRecordsError, match="1 of 4 changes got no clear answer") as error:
        send()
    report = error.value.report
    assert report.balances
    assert (report.unclear, report.sent) == (1, 3)
    (letter,) = letters(report.summary())
    assert letter["profile_id"] == "a"
    assert send()["unclear"] == 0
    assert points() == {"a": 1, "b": 1, "c": 1}
    assert runs() == {"a": 1, "b": 1, "c": 1}


def test_a_run_after_a_killed_one_sends_without_rules_what_may_have_been_sent(
    send, talon, runs, points, state
):
    talon.fail_next("status", status=401, only="a")
    with pytest.raises(AuthenticationError):
        send()
    talon.clear_faults()
    note_a_kill(state, may_have_left=1)
    with pytest.raises(RejectedRecordsError, match="1 of 4 changes got no clear answer") as error:
        send()
    assert error.value.report.balances
    (letter,) = letters(error.value.report.summary())
    assert (letter["profile_id"], letter["status"]) == ("a", None)
    assert "audience_id" not in letter
    assert points() == {"a": 1, "b": 1, "c": 1}
    assert runs() == {"b": 1, "c": 1}


@pytest.mark.parametrize("damage", [Path.unlink, lambda path: path.write_text("{")])
def test_a_lost_manifest_runs_no_rules_twice(send, people, talon, runs, points, state, damage):
    send()
    people(a=2, b=2, c=2)
    talon.fail_next("reset_after", times=1, only="b")
    with pytest.raises(RejectedRecordsError):
        send(context=next_run(2))
    lose_the_last_version(state, damage)
    send(context=next_run(3))
    assert points() == {"a": 2, "b": 2, "c": 2}
    assert runs() == {"a": 2, "b": 2, "c": 2}


def test_of_a_lost_manifest_what_was_not_sent_runs_its_rules(send, people, talon, runs, points, state):
    change_and_kill(send, people, talon, state)
    lose_the_last_version(state, Path.unlink)
    with pytest.raises(RejectedRecordsError, match="1 of 4 changes got no clear answer") as error:
        send(context=next_run(2))
    assert len(letters(error.value.report.summary())) == 1
    assert points() == {"a": 2, "b": 2, "c": 2}
    assert runs() == {"a": 1, "b": 2, "c": 2}


def test_a_repaired_ledger_runs_no_rules_twice(send, talon, runs, points, state, profiles_ledger):
    talon.fail_next("reset_after", times=1, only="b")
    with pytest.raises(RejectedRecordsError):
        send()
    ledger = DamagedLedger(state, profiles_ledger().identity)
    for acks in state.glob(f"*/*/{profiles_ledger().plan}/acks-*"):
        acks.write_text("{")
    assert "Nothing is damaged." not in ledger.repair("me")
    send(context=next_run(2))
    assert points() == {"a": 1, "b": 1, "c": 1}
    assert runs() == {"a": 1, "b": 1, "c": 1}


def test_a_repair_without_the_last_manifest_leaves_what_was_not_sent_its_rules(
    send, people, talon, runs, points, state, profiles_ledger
):
    change_and_kill(send, people, talon, state)
    lose_the_last_version(state, lambda path: path.write_text("{"))
    DamagedLedger(state, profiles_ledger().identity).repair("me")
    send(context=next_run(3))
    assert points() == {"a": 2, "b": 2, "c": 2}
    assert runs() == {"a": 1, "b": 2, "c": 2}


def test_tasks_of_a_group_run_rules_once(people, connect, talon, runs, points, state):
    people(**{f"p{number:02}": number for number in range(20)})
    how = {
        "sql": "SELECT * FROM people",
        "sql_conn_id": "warehouse",
        "profile_id_column": "id",
        "run_rule_engine": True,
        "state_uri": str(state),
    }

    def sync():
        shares, planned = execute(PlanProfilesOperator(task_id="plan", workers=1, **how))
        push = [PushShareOperator(task_id="push", share=each, profiles=how) for each in shares]
        return commit(planned, [execute(each)[0] for each in push])

    talon.fail_next("reset_after", times=1, only="p07")
    with pytest.raises(RejectedRecordsError, match="1 of 20 changes got no clear answer"):
        sync()
    summary = sync()
    assert (summary["sent"], summary["unchanged"], summary["unclear"]) == (1, 19, 0)
    assert points() == {f"p{number:02}": number for number in range(20)}
    assert set(runs().values()) == {1}
