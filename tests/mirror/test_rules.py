"""Mirrors whose changes run rules: one request for each profile, once."""

from __future__ import annotations

import json
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest

from airflow_provider_talon_cdp.__main__ import main
from airflow_provider_talon_cdp.changes.change import Chunk
from airflow_provider_talon_cdp.exceptions import (
    AuthenticationError,
    GuardError,
    InvalidInputError,
    NotFoundError,
    RejectedRecordsError,
    TransientError,
    UnclearError,
)
from airflow_provider_talon_cdp.ledger.format import Acks
from airflow_provider_talon_cdp.ledger.outside import OutsideChanges
from airflow_provider_talon_cdp.ledger.repair import DamagedLedger
from airflow_provider_talon_cdp.ledger.storage import DamagedError
from airflow_provider_talon_cdp.operators.members import SyncAudienceMembersOperator
from airflow_provider_talon_cdp.transfers.across_workers import PlanAudienceOperator, PushShareOperator
from tests.changes.strategies import spelt_out
from tests.mirror.conftest import task_instance
from tests.mirror.test_cursor import Store
from tests.transfers.test_across_workers import commit, execute

SINGLE = "update_profile_audiences"
BULK = "update_profiles_external"


def next_run(number):
    return {"ti": task_instance(f"run-{number}")}


@pytest.fixture
def singles(talon):
    """Count the requests for one profile's audiences so far."""

    def count():
        return talon.state()["requests"]["by_operation"].get(SINGLE, 0)

    return count


def letters(summary):
    folder = Path(summary["dead_letters"])
    return [json.loads(line) for file in sorted(folder.iterdir()) for line in file.read_text().splitlines()]


@pytest.fixture
def filled(vip, mirror_list, connect):
    """The audience with the members a, b and c, which were sent in bulk."""
    summary = mirror_list(["a", "b", "c"], rules="changes")
    assert summary["added"] == 3
    return vip


def test_the_first_members_go_in_bulk_and_run_no_rules(filled, runs, singles, agrees):
    assert runs() == {}
    assert singles() == 0
    agrees(["a", "b", "c"])


def test_each_change_after_the_first_fill_runs_rules_once(filled, mirror_list, runs, agrees):
    summary = mirror_list(["b", "c", "d", "e"], rules="changes", max_removal_fraction=1, verify="none")
    assert (summary["added"], summary["removed"], summary["requests"]) == (2, 1, 3)
    assert runs() == {"a": 1, "d": 1, "e": 1}
    agrees(["b", "c", "d", "e"])
    summary = mirror_list(["b", "c", "d", "e"], rules="changes", verify="none")
    assert (summary["unchanged"], summary["requests"]) == (4, 0)


def test_without_rules_nothing_runs_them(filled, mirror_list, runs):
    mirror_list(["a", "b", "c", "d"])
    assert runs() == {}


def test_with_rules_for_all_the_first_members_run_them_too(vip, mirror_list, runs, agrees):
    mirror_list(["a", "b"], rules="all")
    assert runs() == {"a": 1, "b": 1}
    agrees(["a", "b"])


@pytest.mark.parametrize("fault", ["reset_after", "cut"])
def test_an_unclear_change_is_counted_and_is_not_sent_again(
    filled, mirror_list, runs, ledger_of, fault, singles
):
    filled.fail_next(fault, times=1, only="d")
    with pytest.raises(RejectedRecordsError, match="1 of 5 changes got no clear answer") as error:
        mirror_list(["a", "b", "c", "d", "e"], rules="changes")
    summary = error.value.report.summary()
    assert (summary["added"], summary["unclear"], summary["unsent"]) == (1, 1, 0)
    assert error.value.report.balances
    (letter,) = letters(summary)
    assert (letter["profile_id"], letter["audience_id"], letter["action"]) == ("d", "vip", "add")
    assert "it is unknown whether the rules ran" in letter["reason"]
    assert list(ledger_of().withheld()) == [("d", "vip")]
    before = singles()
    for number in (2, 3):
        summary = mirror_list(["a", "b", "c", "d", "e"], context=next_run(number), rules="changes")
        assert (summary["unchanged"], summary["sent"], summary["unclear"]) == (5, 0, 0)
    assert singles() == before
    assert runs() == {"d": 1, "e": 1}
    # Known is what was acknowledged, so this is not.
    assert ("d", "vip") not in {(each, "vip") for chunk in ledger_of().known() for each in chunk.ids}


def test_the_opposite_of_an_unclear_change_is_a_new_change(filled, mirror_list, runs, agrees):
    filled.fail_next("reset_before", times=1, only="d")
    with pytest.raises(RejectedRecordsError):
        mirror_list(["a", "b", "c", "d"], rules="changes")
    summary = mirror_list(["a", "b", "c"], context=next_run(2), rules="changes")
    assert (summary["removed"], summary["unclear"]) == (1, 0)
    agrees(["a", "b", "c"])
    assert mirror_list(["a", "b", "c", "d"], context=next_run(3), rules="changes")["added"] == 1
    assert runs() == {"d": 2}
    agrees(["a", "b", "c", "d"])


@pytest.mark.parametrize("fault", ["reset_before", "reset_after"])
@pytest.mark.parametrize(("unclear", "wanted"), [("d", ["a", "b", "c", "d"]), ("c", ["a", "b"])])
def test_a_run_that_sends_all_makes_unclear_changes_in_bulk(
    filled, mirror_list, runs, agrees, fault, unclear, wanted
):
    """Of a join and of a leave, whether the call arrived or not: no rules run again."""
    filled.fail_next(fault, times=1, only=unclear)
    with pytest.raises(RejectedRecordsError):
        mirror_list(wanted, rules="changes", max_removal_fraction=1)
    before = runs()
    summary = mirror_list(wanted, context=next_run(2), rules="changes", send="all", max_removal_fraction=1)
    assert summary["unclear"] == 0
    agrees(wanted)
    assert runs() == before
    assert before == ({unclear: 1} if fault == "reset_after" else {})


def test_an_unclear_removal_stays_known_and_is_not_sent_again(filled, mirror_list, runs, ledger_of):
    filled.fail_next("reset_before", times=1, only="c")
    with pytest.raises(RejectedRecordsError):
        mirror_list(["a", "b"], rules="changes", max_removal_fraction=1)
    summary = mirror_list(["a", "b"], context=next_run(2), rules="changes", max_removal_fraction=1)
    assert (summary["removals"], summary["sent"], summary["unchanged"]) == (0, 0, 2)
    assert runs() == {}
    assert ledger_of().withheld() == {("c", "vip"): "remove"}


def test_a_member_of_another_writer_leaves_in_bulk_however_often_its_note_says_so(
    filled, mirror_list, runs, state, ledger_of
):
    """The notes of a writer that was killed count for a day, and each run removes what they say once more."""
    identity = ledger_of().identity
    OutsideChanges(state, replace(identity, name="calls:x"), "killed").note(Chunk(["z"], "vip"))
    filled.add_members("vip", ["z"])
    for number in (2, 3):
        context = next_run(number)
        summary = mirror_list(["a", "b", "c"], context=context, rules="changes", max_removal_fraction=1)
        assert summary["removed"] == 1
        assert filled.members("vip") == {"a", "b", "c"}
    assert runs() == {}


def test_unclear_changes_below_the_tolerance_leave_the_run_green(filled, mirror_list):
    filled.fail_next("reset_after", times=1, only="d")
    summary = mirror_list(["a", "b", "c", "d", "e"], rules="changes", max_rejected=1)
    assert (summary["unclear"], summary["added"]) == (1, 1)


def test_many_unclear_answers_in_a_row_stop_the_push(filled, mirror_list, runs, singles, state):
    """Of an outage, few changes are left for a person to look at."""
    new = [f"new-{each:03}" for each in range(200)]
    filled.fail_next("status", status=503, times=None, only=SINGLE)
    with pytest.raises(UnclearError, match="10 calls in a row that run rules got no clear answer") as error:
        mirror_list(["a", "b", "c", *new], rules="changes", in_flight=4)
    assert 'on_unclear="retry"' not in str(error.value)
    filled.clear_faults()
    assert 10 <= singles() <= 14
    # Those that were in flight at the end may never have arrived, and have letters too.
    (folder,) = state.rglob("dead-letters/*")
    withheld = len(letters({"dead_letters": folder}))
    assert singles() <= withheld <= 14
    summary = mirror_list(["a", "b", "c", *new], context=next_run(2), rules="changes")
    assert summary["added"] + withheld == 200
    assert set(runs().values()) == {1}


@pytest.mark.parametrize("fault", [{"status": 429}, {"status": 429, "retry_after": 0}, {"status": 409}])
def test_what_surely_had_no_effect_is_sent_again(filled, mirror_list, runs, agrees, fault):
    filled.fail_next("status", times=2, only="d", **fault)
    summary = mirror_list(["a", "b", "c", "d"], rules="changes")
    assert (summary["added"], summary["retries"], summary["unclear"]) == (1, 2, 0)
    assert runs() == {"d": 1}
    agrees(["a", "b", "c", "d"])


def test_a_refused_profile_is_a_rejected_record(filled, mirror_list, runs):
    filled.reject_profiles(["d"])
    with pytest.raises(RejectedRecordsError, match="1 of 5 records were rejected") as error:
        mirror_list(["a", "b", "c", "d", "e"], rules="changes")
    summary = error.value.report.summary()
    assert (summary["rejected"], summary["added"]) == ({"refused by Talon.One (400)": 1}, 1)
    (letter,) = letters(summary)
    assert (letter["profile_id"], letter["audience_id"], letter["status"]) == ("d", "vip", 400)
    assert runs() == {"e": 1}
    filled.clear_faults()
    filled.reject_profiles([])
    mirror_list(["a", "b", "c", "d", "e"], context=next_run(2), rules="changes")
    assert runs() == {"d": 1, "e": 1}


@pytest.mark.parametrize("dots", [".", ".."])
def test_an_id_that_does_not_survive_in_a_path_is_rejected(filled, mirror_list, agrees, runs, dots):
    with pytest.raises(RejectedRecordsError) as error:
        mirror_list(["a", "b", "c", "d", dots], rules="changes")
    summary = error.value.report.summary()
    reason = "profile ID '.' or '..', which does not survive in the path of a URL"
    assert summary["rejected"] == {reason: 1}
    (letter,) = letters(summary)
    assert (letter["profile_id"], letter["reason"]) == (dots, reason)
    agrees(["a", "b", "c", "d"])
    assert runs() == {"d": 1}


def test_such_an_id_that_is_a_member_leaves_in_bulk(vip, mirror_list, agrees, runs):
    mirror_list(["a", "..", "b"])
    mirror_list(["a", "b"], context=next_run(2), rules="changes", max_removal_fraction=1)
    agrees(["a", "b"])
    assert runs() == {}


def test_a_missing_audience_stops_the_run_as_in_bulk(filled, mirror_list, runs):
    filled.delete_audience("vip")
    with pytest.raises(NotFoundError, match="Audience in the request: vip"):
        mirror_list(["a", "b", "c", "d"], rules="changes", verify="none")
    # Once it is there again, it is new: all its members are sent in bulk.
    filled.create_audience("vip", "VIP")
    mirror_list(["a", "b", "c", "d"], context=next_run(2), rules="changes", verify="none")
    assert filled.members("vip") == {"a", "b", "c", "d"}
    assert runs() == {}


def test_an_audience_that_was_made_anew_is_filled_in_bulk(talon, mirror_list, runs, agrees):
    mirror_list(["a", "b"], rules="changes", audience_name="VIP")
    mirror_list(["a", "b", "c"], context=next_run(2), rules="changes", audience_name="VIP")
    assert runs() == {"c": 1}
    talon.delete_audience("vip")
    mirror_list(["a", "b", "c", "d"], context=next_run(3), rules="changes", audience_name="VIP")
    assert runs() == {"c": 1}
    agrees(["a", "b", "c", "d"])


def test_a_dry_run_says_what_rules_cost(filled, mirror_list, connect, talon, said):
    connect(talon, requests_per_second=2)
    new = ["d", "e", "f", "g", "h", "i"]
    summary = mirror_list(["a", "b", "c", *new], rules="changes", dry_run=True)
    assert summary["requests"] == 6
    assert summary["verdict"] == (
        "would be sent; 6 changes run rules, in 6 requests, one for each profile: 3.0 s at 2 a second"
    )
    assert "It takes 6 requests: 3.0 s at 2 a second" in said()
    assert mirror_list(["a", "b", "c", *new], dry_run=True)["verdict"] == "would be sent"


@pytest.mark.parametrize("rules", ["changes", "all"])
def test_rules_need_external_ids(rules):
    with pytest.raises(InvalidInputError, match="needs external audience IDs"):
        SyncAudienceMembersOperator(
            task_id="sync", audience_id=7, audience_id_type="internal", members=[], mode="mirror", rules=rules
        )


def test_rules_are_for_mirrors():
    with pytest.raises(InvalidInputError, match=r"Only mode='mirror' takes rules"):
        SyncAudienceMembersOperator(task_id="sync", audience_id="vip", add=["a"], rules="changes")


def test_rules_are_one_of_three_words(vip, mirror_list):
    with pytest.raises(InvalidInputError, match="rules must be one of 'none', 'changes', 'all'"):
        SyncAudienceMembersOperator(
            task_id="sync", audience_id="vip", members=[], mode="mirror", rules="always"
        )
    assert "rules" in SyncAudienceMembersOperator.template_fields


@pytest.fixture
def many(sqlite, talon, mirror_many, connect):
    """Mirror pairs of profile and audience, by way of the warehouse."""
    for each in ("gold", "silver", "vip"):
        talon.create_audience(each, each)

    def run(*pairs, **arguments):
        sqlite.fill_pairs([tuple(each.split()) for each in pairs])
        return mirror_many(audience_name_column=None, max_removal_fraction=1, **arguments)

    return run


FIRST = ("a gold", "a silver", "b gold")


def test_all_audiences_of_a_profile_change_in_one_call(many, talon, runs, singles):
    many(*FIRST, rules="changes")
    summary = many("a gold", "b silver", "c gold", "c silver", rules="changes", verify="none")
    # a left silver, b changed from gold to silver, c joined both.
    assert (summary["added"], summary["removed"], summary["requests"]) == (3, 2, 3)
    assert runs() == {"a": 1, "b": 1, "c": 1}
    assert singles() == 3
    assert (talon.members("gold"), talon.members("silver")) == ({"a", "c"}, {"b", "c"})


def test_a_new_audience_among_others_is_filled_in_bulk(many, talon, runs):
    many(*FIRST, rules="changes")
    vip = [f"{each} vip" for each in ("a", "b", "c", "d", "e")]
    summary = many(*FIRST, "c gold", *vip, rules="changes", verify="none")
    assert (summary["added"], summary["requests"]) == (6, 2)
    assert runs() == {"c": 1}
    assert talon.members("vip") == {"a", "b", "c", "d", "e"}
    many(*FIRST, "c gold", *vip[1:], rules="changes")
    assert runs() == {"a": 1, "c": 1}


@pytest.mark.parametrize("earlier", [["changes"], ["none"], ["changes", "none"], ["none", "changes"]])
def test_a_first_fill_that_stops_goes_on_in_bulk(many, talon, runs, earlier):
    """Its first members are known then, and the rest of them are no changes for that."""
    members = [f"{each:04}" for each in range(2500)]
    pairs = [f"{each} vip" for each in members]
    for number, rules in enumerate(earlier, start=1):
        talon.fail_next("status", status=401, after=1, only=BULK)
        with pytest.raises(AuthenticationError):
            many(*pairs, context=next_run(number), rules=rules, in_flight=1, verify="none")
        assert talon.members("vip") == {*members[: 1000 * number]}
        talon.clear_faults()
    many(*pairs, "g vip", context=next_run(3), rules="changes")
    assert talon.members("vip") == {*members, "g"}
    assert runs() == {}
    many(*pairs, "g vip", "h vip", context=next_run(4), rules="changes")
    assert runs() == {"h": 1}


def test_of_a_refused_profile_only_the_bad_change_is_rejected(many, talon, runs):
    """Here both are bad, and each is tried apart: a refused call runs no rules."""
    many(*FIRST, rules="changes")
    talon.reject_profiles(["c"])
    with pytest.raises(RejectedRecordsError) as error:
        many(*FIRST, "c gold", "c silver", "d gold", rules="changes")
    summary = error.value.report.summary()
    assert summary["rejected"] == {"refused by Talon.One (400)": 2}
    assert {(each["profile_id"], each["audience_id"]) for each in letters(summary)} == {
        ("c", "gold"),
        ("c", "silver"),
    }
    assert runs() == {"d": 1}


def test_what_was_taken_of_a_profile_is_known_where_another_of_its_audiences_is_gone(
    many, talon, runs, ledger_of
):
    """The change that was answered with 404 had no effect, and the other one is not unclear."""
    many(*FIRST, rules="changes", ledger="x")
    talon.delete_audience("gold")
    with pytest.raises(NotFoundError, match="Audience in the request: gold"):
        many(*FIRST, "c gold", "c silver", rules="changes", verify="none", ledger="x")
    assert talon.members("silver") == {"a", "c"}
    ledger = ledger_of("sync:x")
    assert not ledger.withheld()
    assert ("c", "silver") in spelt_out(ledger.known())
    talon.create_audience("gold", "gold")
    summary = many(
        *FIRST, "c gold", "c silver", context=next_run(2), rules="changes", verify="none", ledger="x"
    )
    assert (summary["added"], summary["unchanged"]) == (3, 2)
    assert runs() == {"c": 1}


def test_nobody_need_leave_an_audience_that_is_gone(many, talon, runs, said):
    many(*FIRST, "c vip", rules="changes")
    talon.delete_audience("silver")
    summary = many("b gold", "c vip", rules="changes", verify="none")
    assert (summary["removed"], summary["unclear"]) == (2, 0)
    assert "has no audience 'silver' any more" in said()
    assert talon.members("gold") == {"b"}
    assert runs() == {"a": 1}


def test_a_change_and_an_unclear_one_of_one_profile_share_their_outcome(many, talon, runs):
    many(*FIRST, rules="changes")
    talon.fail_next("reset_after", times=1, only="c")
    with pytest.raises(RejectedRecordsError) as error:
        many(*FIRST, "c gold", "c silver", rules="changes")
    summary = error.value.report.summary()
    assert (summary["unclear"], len(letters(summary))) == (2, 2)
    summary = many(*FIRST, "c gold", "c silver", context=next_run(2), rules="changes")
    assert (summary["unchanged"], summary["sent"]) == (5, 0)
    assert runs() == {"c": 1}


class Group:
    """The tasks of ``talon_audience_sync``, one by one."""

    def __init__(self, **how):
        self.how = {
            "sql": "SELECT * FROM memberships",
            "sql_conn_id": "warehouse",
            "audience_column": "audience_id",
            "rules": "changes",
            "max_removal_fraction": 1,
        } | how

    def plan(self):
        return execute(PlanAudienceOperator(task_id="plan", workers=1, **self.how))

    def push(self, shares):
        return [execute(PushShareOperator(task_id="push", share=each))[0] for each in shares]

    def sync(self):
        shares, planned = self.plan()
        return commit(planned, self.push(shares))


@pytest.fixture
def group(sqlite, talon, connect, state):
    for each in ("gold", "silver"):
        talon.create_audience(each, each)
    sqlite.fill_pairs([tuple(each.split()) for each in FIRST])
    return Group(state_uri=str(state))


def test_tasks_of_a_group_run_rules_once(group, sqlite, talon, runs):
    assert group.sync()["added"] == 3
    assert runs() == {}
    sqlite.fill_pairs([("a", "gold"), ("c", "gold"), ("c", "silver"), ("b", "gold")])
    summary = group.sync()
    assert (summary["added"], summary["removed"], summary["unsent"]) == (2, 1, 0)
    assert runs() == {"a": 1, "c": 1}


def test_tasks_of_a_group_report_what_is_unclear_and_send_it_once(group, sqlite, talon, runs):
    group.sync()
    sqlite.fill_pairs([tuple(each.split()) for each in (*FIRST, "c gold", "d gold")])
    talon.fail_next("reset_after", times=1, only="c")
    shares, planned = group.plan()
    pushed = group.push(shares)
    assert (pushed[0]["unclear"], pushed[0]["sent"]) == (1, 1)
    # A person clears the task.
    pushed = group.push(shares)
    assert (pushed[0]["resumed"], pushed[0]["requests"]) == (0, 0)
    with pytest.raises(RejectedRecordsError, match="1 of 5 changes got no clear answer") as error:
        commit(planned, pushed)
    report = error.value.report
    assert report.balances
    assert (report.unclear, report.sent, report.unsent) == (1, 1, 0)
    assert runs() == {"c": 1, "d": 1}
    assert group.sync()["unchanged"] == 5


def test_a_task_of_a_group_that_takes_over_from_a_killed_one_sends_nothing_unclear(
    group, sqlite, talon, runs, state
):
    group.sync()
    sqlite.fill_pairs([tuple(each.split()) for each in (*FIRST, "c gold", "d gold")])
    shares, planned = group.plan()
    note_a_kill(state, may_have_left=1)
    (pushed,) = group.push(shares)
    assert (pushed["resumed"], pushed["unclear"], pushed["sent"]) == (2, 1, 1)
    assert len(letters(pushed)) == 1
    with pytest.raises(RejectedRecordsError, match="1 of 5 changes got no clear answer"):
        commit(planned, [pushed])
    assert runs() == {"d": 1}


def test_an_answer_that_comes_after_another_task_took_over_is_counted_once(group, sqlite, state):
    """The one that took over has written a letter; the other was not killed, and notes what it learnt."""
    group.sync()
    sqlite.fill_pairs([tuple(each.split()) for each in (*FIRST, "c gold", "d gold")])
    shares, planned = group.plan()
    note_a_kill(state, may_have_left=1)
    pushed = group.push(shares)
    assert (pushed[0]["unclear"], pushed[0]["sent"]) == (1, 1)
    note_a_kill(state, may_have_left=1, landed=0)
    summary = commit(planned, pushed)
    assert (summary["unclear"], summary["sent"], summary["unsent"]) == (0, 2, 0)
    (pushed,) = group.push(shares)
    assert (pushed["resumed"], pushed["requests"]) == (0, 0)


def note_a_kill(state, *, may_have_left, landed=None):
    """Leave the note of a process that was killed with changes of the last plan under way."""
    (part,) = sorted(state.glob("*/*/*/plan-00000.tsv.zst"))[-1:]
    acks = Acks(may_have_left=may_have_left)
    if landed is not None:
        acks.land(landed, ())
    acks.write(part.parent / f"acks-00000-{'f' * 12}.json")


def test_a_mirror_that_takes_over_from_a_killed_one_sends_nothing_unclear(
    filled, mirror_list, runs, state, agrees
):
    filled.fail_next("status", status=401, only="d")
    with pytest.raises(AuthenticationError):
        mirror_list(["a", "b", "c", "d", "e"], rules="changes", in_flight=1)
    note_a_kill(state, may_have_left=1)
    with pytest.raises(RejectedRecordsError, match="1 of 6 changes got no clear answer") as error:
        mirror_list(["a", "b", "c", "d", "e"], rules="changes")
    report = error.value.report
    assert report.balances
    assert (report.resumed, report.unclear, report.unchanged, report.sent) == (1, 1, 4, 1)
    (letter,) = letters(report.summary())
    assert (letter["profile_id"], letter["action"], letter["status"]) == ("d", "add", None)
    assert runs() == {"e": 1}
    summary = mirror_list(["a", "b", "c", "d", "e"], context=next_run(2), rules="changes")
    assert (summary["unchanged"], summary["unclear"]) == (5, 0)


def test_an_orderly_stop_leaves_only_what_is_under_way_unclear(filled, mirror_list, runs, ledger_of):
    """Of many calls in flight, one got a 401, some had no answer yet, and most have not left."""
    new = [f"new-{each:02}" for each in range(60)]
    filled.fail_next("slow", seconds=20, times=3, only=SINGLE)
    filled.fail_next("status", status=401, times=1, only=SINGLE)
    with pytest.raises(AuthenticationError):
        mirror_list(["a", "b", "c", *new], rules="changes", in_flight=20)
    withheld = ledger_of().withheld()
    assert 3 <= len(withheld) < 20
    filled.clear_faults()
    held = {profile for profile, _ in withheld}
    # Of those that are held, some may run only now: their calls were under way when the client ended.
    left = set(new) - held - runs().keys()
    summary = mirror_list(["a", "b", "c", *new], context=next_run(2), rules="changes")
    assert summary["added"] == len(left)
    assert all(number == 1 for number in runs().values())
    assert runs().keys() - held == set(new) - held


@pytest.fixture
def throttle(talon, connect):
    """Make one profile's call fail so that Airflow would retry the task, after others were unclear."""

    def throttle(*unclear, stops_at):
        connect(talon, bulk_retry_seconds=0)
        talon.clear_faults()
        for each in unclear:
            talon.fail_next("reset_after", times=1, only=each)
        if stops_at:
            talon.fail_next("status", status=429, times=None, only=stops_at)

    return throttle


@pytest.mark.parametrize("store", [None, Store()], ids=["planned anew", "resumed"])
def test_a_retry_reports_what_was_unclear_in_the_tries_before_it_once(
    filled, mirror_list, runs, throttle, context, store
):
    """Each try is stopped by what a retry may overcome. The one that comes to its end is red."""
    context = context | ({"task_state_store": store} if store else {})
    wanted = ["a", "b", "c", "d", "e", "f", "g", "h"]

    def sync(context=context):
        return mirror_list(wanted, rules="changes", in_flight=1, context=context)

    for unclear, stops_at in (("d", "e"), ("f", "g")):
        throttle(unclear, stops_at=stops_at)
        with pytest.raises(TransientError):
            sync()
    throttle(stops_at=None)
    with pytest.raises(RejectedRecordsError, match=r"2 of \d+ changes got no clear answer") as error:
        sync()
    report = error.value.report
    assert report.balances
    assert report.unclear == 2
    assert [each["profile_id"] for each in letters(report.summary())] == ["d", "f"]
    # A person clears the task, and then there is the next run.
    for again in (context, next_run(2)):
        summary = sync(again)
        assert (summary["unclear"], summary["unchanged"]) == (0, 8)
    assert runs() == dict.fromkeys("defgh", 1)


def test_a_damaged_list_of_what_is_in_no_report_is_repaired(filled, mirror_list, throttle, ledger_of):
    for unclear, stops_at in (("d", "e"), ("f", "g")):
        throttle(unclear, stops_at=stops_at)
        with pytest.raises(TransientError):
            mirror_list(["a", "b", "c", "d", "e", "f", "g"], rules="changes", in_flight=1)
    throttle(stops_at=None)
    folder = ledger_of().folder
    (file,) = folder.rglob("unreported.tsv.zst")
    file.write_bytes(b"damaged")
    with pytest.raises(DamagedError, match="ledger repair"):
        mirror_list(["a", "b", "c", "d", "e", "f", "g"], rules="changes")
    assert main(["ledger", "repair", str(folder)]) == 0
    summary = mirror_list(["a", "b", "c", "d", "e", "f", "g"], rules="changes", context=next_run(2))
    assert (summary["unclear"], summary["unsent"]) == (0, 0)


@pytest.mark.parametrize("rules", ["changes", "all"])
def test_with_a_new_key_no_rule_runs_again_and_none_is_left_out(filled, mirror_list, runs, connect, rules):
    """The audience may be that of another environment, so its members are sent again: in bulk."""
    filled.fail_next("reset_after", times=1, only="d")
    with pytest.raises(RejectedRecordsError):
        mirror_list(["a", "b", "c", "d"], rules=rules)
    filled.clear_faults()
    connect(filled, platform_name="Another name")
    summary = mirror_list(["b", "c", "d", "e"], rules=rules, max_removal_fraction=1, context=next_run(2))
    assert runs() == {"a": 1, "d": 1, "e": 1}
    assert (summary["added"], summary["removed"], summary["unchanged"]) == (3, 1, 1)
    summary = mirror_list(["b", "c", "d", "e"], rules=rules, context=next_run(3), verify="none")
    assert (summary["requests"], summary["unchanged"]) == (0, 4)


def test_another_run_reports_what_was_unclear_before_retries_were_used_up(filled, mirror_list, throttle):
    throttle("d", stops_at="e")
    with pytest.raises(TransientError):
        mirror_list(["a", "b", "c", "d", "e"], rules="changes", in_flight=1)
    throttle(stops_at=None)
    with pytest.raises(RejectedRecordsError, match="1 of 6 changes got no clear answer"):
        mirror_list(["a", "b", "c", "d", "e"], rules="changes", context=next_run(2))
    assert mirror_list(["a", "b", "c", "d", "e"], context=next_run(3))["unclear"] == 0


def test_a_refused_plan_leaves_what_was_unclear_to_the_next_run(filled, mirror_list, throttle):
    throttle("d", stops_at="e")
    with pytest.raises(TransientError):
        mirror_list(["a", "b", "c", "d", "e"], rules="changes", in_flight=1)
    throttle(stops_at=None)
    with pytest.raises(GuardError):
        mirror_list([], rules="changes")
    with pytest.raises(RejectedRecordsError, match="1 of 6 changes got no clear answer"):
        mirror_list(["a", "b", "c", "d", "e"], rules="changes")


@pytest.mark.parametrize("has_changes", [True, False])
def test_a_new_plan_of_a_group_reports_what_was_unclear_in_the_plan_before_it_once(
    group, sqlite, runs, throttle, has_changes
):
    """A push was stopped, and a person clears the task that plans."""
    group.sync()
    sqlite.fill_pairs([tuple(each.split()) for each in (*FIRST, "c gold", "d gold")])
    shares, _ = group.plan()
    throttle("c", stops_at="d" if has_changes else None)
    with pytest.raises(TransientError) if has_changes else nullcontext():
        group.push(shares)
    throttle(stops_at=None)
    with pytest.raises(RejectedRecordsError, match="1 of 6 changes got no clear answer") as error:
        group.sync()
    report = error.value.report
    assert report.balances
    assert (report.unclear, report.sent, report.unsent) == (1, int(has_changes), 0)
    assert len(letters(report.summary())) == 1
    summary = group.sync()
    assert (summary["unclear"], summary["unchanged"]) == (0, 5)
    assert runs() == {"c": 1, "d": 1}


def lose_the_last_version(state, damage):
    """Damage the manifests of the last version of the one ledger."""
    manifests = sorted(state.glob("*/*/manifest-*"))
    version = [each.name.split("-")[2] for each in manifests]
    for each in manifests[version.index(version[-1]) :]:
        damage(each)


@pytest.mark.parametrize("damage", [Path.unlink, lambda path: path.write_text("{")])
def test_a_lost_manifest_repeats_no_call(filled, mirror_list, runs, state, damage):
    filled.fail_next("reset_after", times=1, only="e")
    with pytest.raises(RejectedRecordsError):
        mirror_list(["a", "b", "c", "d", "e"], rules="changes")
    lose_the_last_version(state, damage)
    summary = mirror_list(["a", "b", "c", "d", "e"], context=next_run(2), rules="changes")
    # The run before has reported the unclear one.
    assert (summary["unclear"], summary["unchanged"]) == (0, 5)
    assert runs() == {"d": 1, "e": 1}
    summary = mirror_list(["a", "b", "c"], context=next_run(3), rules="changes")
    assert summary["removed"] == 2
    assert filled.members("vip") == {"a", "b", "c"}


def test_of_a_lost_manifest_what_a_killed_run_may_have_sent_is_reported(filled, mirror_list, runs, state):
    filled.fail_next("status", status=401, only="d")
    with pytest.raises(AuthenticationError):
        mirror_list(["a", "b", "c", "d", "e"], rules="changes", in_flight=1)
    note_a_kill(state, may_have_left=1)
    lose_the_last_version(state, Path.unlink)
    with pytest.raises(RejectedRecordsError, match="1 of 6 changes got no clear answer") as error:
        mirror_list(["a", "b", "c", "d", "e"], rules="changes")
    assert len(letters(error.value.report.summary())) == 1
    assert runs() == {"e": 1}


def test_a_repaired_ledger_repeats_no_call(filled, mirror_list, runs, state, ledger_of):
    filled.fail_next("reset_after", times=1, only="d")
    with pytest.raises(RejectedRecordsError):
        mirror_list(["a", "b", "c", "d", "e"], rules="changes")
    ledger = DamagedLedger(state, ledger_of().identity)
    folder = state.glob(f"*/*/{ledger_of().plan}")
    for acks in [each for found in folder for each in found.glob("acks-*")]:
        acks.write_text("{")
    assert "Nothing is damaged." not in ledger.repair("me")
    mirror_list(["a", "b", "c", "d", "e"], context=next_run(2), rules="changes")
    assert runs() == {"d": 1, "e": 1}
