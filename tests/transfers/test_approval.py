"""Plans that a person approves: what is asked, what an answer does, and what is pushed then."""

from __future__ import annotations

import datetime as dt
import importlib
from collections import Counter
from importlib.metadata import version
from types import SimpleNamespace

import pytest
from airflow.providers.common.compat.sdk import DAG, AirflowFailException, Asset
from packaging.version import Version

from airflow_provider_talon_cdp.exceptions import (
    GuardError,
    InvalidInputError,
    LedgerError,
    LedgerUnavailableError,
    OlderRunError,
    RejectedRecordsError,
    TransientError,
)
from airflow_provider_talon_cdp.hooks.talon_cdp import TalonCdpHook
from airflow_provider_talon_cdp.ledger.format import Manifest
from airflow_provider_talon_cdp.sync.report import Report
from airflow_provider_talon_cdp.transfers.across_workers import (
    PlanAudienceOperator,
    PlanProfilesOperator,
    PushShareOperator,
    question_text,
    talon_audience_sync,
    talon_profiles_sync,
)
from tests.transfers.test_across_workers import ProfilesGroup, commit, execute

# Older releases ask nobody. Where people are asked, an import that fails is an error.
hitl = None
if Version(version("apache-airflow")) >= Version("3.1"):
    hitl = importlib.import_module("airflow.providers.standard.operators.hitl")
    from airflow_provider_talon_cdp.transfers import _approval
    from airflow_provider_talon_cdp.transfers._approval import ApprovePlanOperator, decide

needs_people = pytest.mark.skipif(hitl is None, reason="Airflow 3.1 and newer ask people")
SOURCE = {"sql": "SELECT profile_id FROM customers", "sql_conn_id": "warehouse", "audience_id": "vip"}


class Waits(BaseException):
    """The task waits for a person, as Airflow would have it."""


@pytest.fixture
def asked(monkeypatch):
    """What people are asked, where Airflow would keep it."""
    found = []

    def keep(**detail):
        found.append(detail)
        raise Waits

    monkeypatch.setattr(hitl, "upsert_hitl_detail", keep)
    return found


@pytest.fixture
def members(sqlite, vip, tmp_path):
    """A function that sets the wanted members and plans; what the planning task has for the others."""

    def plan(count, *, with_approval=True, run_id="r", day=None, **how):
        sqlite("DELETE FROM customers")
        if count:
            sqlite("INSERT INTO customers VALUES (?, 'vip')", [(f"p{number:03}",) for number in range(count)])
        operator = PlanAudienceOperator(
            task_id="plan",
            workers=2,
            with_approval=with_approval,
            state_uri=str(tmp_path / "state"),
            **SOURCE | how,
        )
        end = {} if day is None else {"data_interval_end": dt.datetime(2026, 1, day, tzinfo=dt.UTC)}
        return execute(operator, run_id, **end)

    return plan


class AskingProfilesGroup(ProfilesGroup):
    """The tasks of ``talon_profiles_sync`` with ``approval``, but for the one that asks."""

    def plan(self):
        return execute(PlanProfilesOperator(task_id="plan", workers=1, with_approval=True, **self.how))


@pytest.fixture
def people(sqlite, connect, tmp_path):
    """Forty people, and the tasks that send their attributes: of more than ten only with approval."""
    sqlite("CREATE TABLE people (profile_id, tier)")
    sqlite("INSERT INTO people VALUES (?, 'gold')", [(f"p{number:02}",) for number in range(40)])
    return AskingProfilesGroup(max_additions=10, state_uri=str(tmp_path / "state"))


def instance(xcoms):
    """The task's instance, whose XComs are kept while it waits."""
    return SimpleNamespace(
        id=1,
        task_id="approve",
        map_index=-1,
        xcom_push=lambda key, value: xcoms.update({key: value}),
        xcom_pull=lambda *, task_ids, map_indexes, key: xcoms.get(key),
    )


def approve(planned, *, always=False, xcoms=None):
    """Run the task up to its question."""
    operator = ApprovePlanOperator(task_id="approve", planned=planned, asks_always=always)
    ti = instance({} if xcoms is None else xcoms)
    return operator.execute({"task_instance": ti, "ti": ti})


def answer(planned, option, xcoms=None):
    """Resume the task with a person's answer. Without XComs it has asked before it had any."""
    operator = ApprovePlanOperator(task_id="approve", planned=planned, asks_always=True)
    event = {"chosen_options": [option], "params_input": {}, "responded_by_user": None}
    event["responded_at"] = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
    task = SimpleNamespace(get_flat_relatives=lambda *, upstream: [])
    return operator.execute_complete({"task": task, "ti": instance(xcoms or {})}, event)


def push(shares):
    return [execute(PushShareOperator(task_id="push", share=share, in_flight=1))[0] for share in shares]


def pushed(shares, planned):
    return commit(planned, push(shares))


def synced(shares, planned):
    """Push a plan that needs no person to be approved, or that one approves."""
    decide(TalonCdpHook(), planned["plan"], approved=True)
    return pushed(shares, planned)


def test_a_word_that_is_none_is_refused():
    with pytest.raises(InvalidInputError, match="approval must be one of"), DAG("d", schedule=None):
        talon_audience_sync("g", approval="sometimes", **SOURCE)


@pytest.mark.skipif(hitl is not None, reason="Airflow 2.11 asks nobody")
@pytest.mark.parametrize("group", [talon_audience_sync, talon_profiles_sync])
def test_airflow_2_says_that_it_cannot_ask(group):
    source = {name: value for name, value in SOURCE.items() if name != "audience_id"}
    with (
        pytest.raises(InvalidInputError, match=r"approval needs Airflow 3\.1 or newer"),
        DAG("d", schedule=None),
    ):
        group("g", approval="always", **source)


@needs_people
class TestTheGroup:
    @pytest.mark.parametrize("group", [talon_audience_sync, talon_profiles_sync])
    @pytest.mark.parametrize("approval", ["always", "beyond_guard"])
    def test_the_question_stands_between_plan_and_push(self, group, approval):
        source = SOURCE if group is talon_audience_sync else {**SOURCE, "ledger": "people"}
        source = {
            name: value
            for name, value in source.items()
            if group is talon_audience_sync or name != "audience_id"
        }
        with DAG("d", schedule=None, start_date=dt.datetime(2026, 1, 1, tzinfo=dt.UTC)) as dag:
            group("g", approval=approval, **source)
        assert dag.get_task("g.approve").upstream_task_ids == {"g.plan"}
        assert dag.get_task("g.push").upstream_task_ids == {"g.plan", "g.approve"}
        assert dag.get_task("g.approve").asks_always is (approval == "always")
        assert dag.get_task("g.plan").with_approval

    @pytest.mark.parametrize("response", [None, dt.timedelta(days=1)])
    def test_people_have_no_less_time_than_response_timeout_says(self, response):
        limit = dt.timedelta(minutes=5)
        defaults = {"execution_timeout": limit} | ({} if response is None else {"response_timeout": response})
        defaults["outlets"] = [Asset("file://shared/members.csv")]
        with DAG("d", schedule=None, default_args=defaults) as dag:
            talon_audience_sync("g", approval="always", **SOURCE)
        approve = dag.get_task("g.approve")
        assert (approve.response_timeout, approve.execution_timeout, approve.outlets) == (response, None, [])
        assert dag.get_task("g.plan").execution_timeout == limit

    def test_without_approval_there_is_no_question(self):
        with DAG("d", schedule=None, start_date=dt.datetime(2026, 1, 1, tzinfo=dt.UTC)) as dag:
            talon_audience_sync("g", **SOURCE)
        assert "g.approve" not in dag.task_ids
        assert not dag.get_task("g.plan").with_approval


@needs_people
class TestTheQuestion:
    def test_it_has_the_counts_by_audience_the_requests_and_the_time(self, members, asked):
        _, planned = members(1500)
        with pytest.raises(Waits):
            approve(planned, always=True)
        (detail,) = asked
        assert detail["options"] == ["Approve", "Reject"]
        assert "| vip | 1,500 | 0 | 1,500 |" in detail["body"]
        assert "2 requests, less than a minute" in detail["body"]
        assert "The guard" not in detail["body"]

    def test_a_plan_beyond_the_guard_is_asked_about_with_the_guards_words(self, members, asked, talon):
        synced(*members(100))
        before = len(talon.requests())
        _, planned = members(40)
        with pytest.raises(Waits):
            approve(planned)
        body = asked[0]["body"]
        assert "| vip | 0 | 60 | 40 |" in body
        assert "**The guard would refuse it:**" in body
        assert "Audience 'vip' would lose 60 of 100 members (60.0%)" in body
        # One question whether the audience is there; none of the plan.
        assert len(talon.requests()) - before <= 1
        assert len(talon.members("vip")) == 100

    def test_with_a_content_guard_nobody_is_asked(self, members, asked):
        shares, planned = members(100)
        assert approve(planned) is None
        assert asked == []
        assert pushed(shares, planned)["sent"] == 100

    def test_where_nothing_is_to_be_sent_nobody_is_asked(self, members, asked):
        synced(*members(100))
        shares, planned = members(100)
        assert shares == []
        assert approve(planned, always=True) is None
        assert asked == []

    def test_an_empty_source_that_is_skipped_is_not_asked_about(self, members, asked, talon):
        synced(*members(100))
        members(40)
        before = len(talon.requests())
        shares, planned = members(0, on_empty="skip")
        assert (shares, planned["plan"]) == ([], None)
        assert approve(planned, always=True) is None
        report = commit(planned, None)
        assert report["verdict"].startswith("skipped: The source has no rows")
        assert (report["sent"], report["removals"], report["unsent"]) == (0, 100, 100)
        assert len(talon.requests()) == before
        assert asked == []

    def test_attributes_are_asked_about_too(self, people, asked):
        _, planned = people.plan()
        with pytest.raises(Waits):
            approve(planned)
        assert "| profiles | 40 | 0 | 40 |" in asked[0]["body"]
        assert "40 requests" in asked[0]["body"]
        assert "max_additions is 10" in asked[0]["body"]

    def test_changes_that_run_rules_are_a_request_each(self, members, asked):
        synced(*members(100))
        _, planned = members(1600, rules="changes", audience_id="vip")
        with pytest.raises(Waits):
            approve(planned, always=True)
        assert "1,500 changes run rules, with one request for each profile." in asked[0]["body"]
        assert "1,500 requests" in asked[0]["body"]

    def test_rows_that_lost_their_ids_are_asked_about_and_sent_if_that_is_right(self, members, asked, talon):
        synced(*members(100))
        lost = "SELECT CASE WHEN rowid % 8 THEN profile_id END AS profile_id FROM customers"
        shares, planned = members(100, sql=lost)
        with pytest.raises(Waits):
            approve(planned)
        guard = asked[0]["body"].partition("**The guard would refuse it:**")[2]
        assert [line.strip() for line in guard.split("\n") if line.startswith("    ")] == [
            "Rows without a profile ID: 12.",
            "The 12 that would be removed may be profiles whose rows have lost it, as after a broken join.",
        ]
        with pytest.raises(RejectedRecordsError, match="12 x profile ID null"):
            synced(shares, planned)
        assert len(talon.members("vip")) == 88

    def test_an_empty_source_is_asked_about_in_whole_sentences(self, members, asked):
        synced(*members(100))
        _, planned = members(0)
        with pytest.raises(Waits):
            approve(planned)
        guard = asked[0]["body"].partition("**The guard would refuse it:**")[2]
        assert [line.strip() for line in guard.split("\n") if line.startswith("    ")] == [
            "The source has no rows, and the ledger has 100 members.",
            "Audience 'vip' would lose 100 of 100 members (100.0%).",
            "max_removal_fraction is 20.0%.",
        ]

    def test_the_audiences_that_lose_most_are_shown_first(self):
        report = Report(state="refused", unsent=3000)
        report.known = Counter({f"a{number:03}": 40 for number in range(200)})
        report.removals = Counter(a000=12, a150=39)
        report.additions = Counter(a170=1)
        lines = question_text(report, 1000, 60, 0).split("\n")
        assert [line.split("|")[1].strip() for line in lines[2:5]] == ["a150", "a000", "a170"]

    def test_an_audiences_id_is_no_markdown(self):
        audiences = {"a|b<c>`d`": 1} | {f"b{number}": 1 for number in range(52)}
        report = Report(state="planned", additions=Counter(audiences), unsent=600)
        text = question_text(report, in_request=1, rate=1.0, missing=0)
        assert "| a&#124;b&#60;c&#62;&#96;d&#96; | 1 | 0 |  |" in text
        assert "and 3 more" in text
        assert "about 10 minutes" in text


@needs_people
class TestTheAnswer:
    def test_what_was_approved_is_pushed_whatever_the_guard_said(self, members, talon):
        synced(*members(100))
        shares, planned = members(40)
        assert synced(shares, planned)["removed"] == 60
        assert len(talon.members("vip")) == 40

    def test_a_plan_that_nobody_approved_is_not_pushed(self, members, talon):
        """Whatever made Airflow run the tasks: a trigger rule, or a person who marked ``approve`` as done."""
        shares, planned = members(100)
        with pytest.raises(LedgerError, match="has not been approved. Nothing was sent."):
            push(shares)
        with pytest.raises(LedgerError, match="has not been approved"):
            commit(planned, [])
        assert len(talon.members("vip")) == 0
        answer(planned, "Approve")
        assert pushed(shares, planned)["sent"] == 100

    def test_a_plan_that_is_not_the_newest_any_more_is_refused(self, members, talon):
        synced(*members(100))
        old, _ = members(40)
        members(50)
        with pytest.raises(LedgerError, match="was replaced: another run has planned since"):
            push(old)
        assert len(talon.members("vip")) == 100

    def test_after_a_rejection_the_next_run_finds_all_as_it_was(self, members, talon):
        synced(*members(100))
        answer(members(40)[1], "Reject")
        shares, planned = members(95)
        report = synced(shares, planned)
        assert (report["unchanged"], report["removed"], report["added"]) == (95, 5, 0)
        assert len(talon.members("vip")) == 95

    def test_a_rejected_plan_cannot_be_pushed_any_more(self, members, talon):
        synced(*members(100))
        shares, planned = members(40)
        answer(planned, "Reject")
        # As if a person cleared the tasks after the rejection.
        with pytest.raises(LedgerError, match="was rejected"):
            push(shares)
        with pytest.raises(LedgerError, match="was rejected"):
            answer(planned, "Approve")
        assert len(talon.members("vip")) == 100

    def test_a_rejection_that_was_noted_before_the_storage_failed_is_carried_out(
        self, members, talon, monkeypatch
    ):
        synced(*members(100))
        _, planned = members(40)
        remove_others, failures = Manifest.remove_others, []

        def fail_once(*arguments):
            if not failures:
                failures.append(1)
                raise LedgerUnavailableError("The storage does not answer.")
            remove_others(*arguments)

        monkeypatch.setattr(Manifest, "remove_others", fail_once)
        monkeypatch.setattr(_approval, "_SECONDS_BETWEEN_ATTEMPTS", 0)
        for _ in range(2):
            answer(planned, "Reject")
        with pytest.raises(LedgerError, match="was rejected"):
            answer(planned, "Approve")

    def test_a_rejection_makes_no_request_and_gives_the_ledger_back(self, members, talon):
        _, planned = members(100, audience_id="new", audience_name="New")
        answer(planned, "Reject")
        assert "new" not in talon.audiences()
        # Of another DAG run, which would wait for a ledger that is in use.
        shares, planned = members(100, audience_id="new", audience_name="New", run_id="other", on_busy="fail")
        answer(planned, "Approve")
        assert pushed(shares, planned)["sent"] == 100

    def test_the_data_of_a_rejected_plan_do_not_count_as_newer(self, members):
        answer(members(100, day=3)[1], "Reject")
        shares, planned = members(100, day=2)
        answer(planned, "Approve")
        assert pushed(shares, planned)["sent"] == 100

    def test_the_data_of_an_approved_plan_count_as_newer(self, members):
        shares, planned = members(100, day=3)
        answer(planned, "Approve")
        pushed(shares, planned)
        with pytest.raises(OlderRunError):
            members(50, day=2)

    def test_an_approval_creates_the_audience_and_remembers_it(self, members, talon, asked):
        shares, planned = members(100, audience_id="new", audience_name="New")
        assert "new" not in talon.audiences()
        with pytest.raises(Waits):
            approve(planned, always=True)
        assert "1 of these audiences do not exist yet" in asked[0]["body"]
        answer(planned, "Approve")
        assert pushed(shares, planned)["sent"] == 100
        talon.delete_audience("new")
        # Its members are lost with it, which the next plan must find out.
        shares, planned = members(100, audience_id="new", audience_name="New")
        assert "new" not in talon.audiences()
        answer(planned, "Approve")
        assert pushed(shares, planned)["added"] == 100
        assert len(talon.members("new")) == 100

    def test_a_passing_failure_after_the_answer_is_repeated_and_not_asked_about(
        self, members, talon, connect, monkeypatch
    ):
        monkeypatch.setattr(_approval, "_SECONDS_BETWEEN_ATTEMPTS", 0.01)
        connect({"call_retry_seconds": 0, "bulk_retry_seconds": 0})
        shares, planned = members(100, audience_id="new", audience_name="New")
        talon.fail_next("status", status=503, times=2)
        answer(planned, "Approve")
        assert pushed(shares, planned)["sent"] == 100

    def test_a_failure_that_does_not_pass_is_red(self, members, talon, connect, monkeypatch):
        monkeypatch.setattr(_approval, "_SECONDS_OF_ATTEMPTS", 0.0)
        connect({"call_retry_seconds": 0, "bulk_retry_seconds": 0})
        _, planned = members(100, audience_id="new", audience_name="New")
        talon.fail_next("status", status=503, times=2)
        with pytest.raises(TransientError):
            answer(planned, "Approve")

    def test_an_audience_is_created_too_where_nobody_has_to_be_asked(self, members, talon, asked):
        shares, planned = members(100, audience_id="new", audience_name="New")
        assert approve(planned) is None
        assert pushed(shares, planned)["sent"] == 100
        assert len(talon.members("new")) == 100

    def test_an_answer_about_a_plan_that_is_not_the_newest_any_more_is_refused(self, members, talon):
        synced(*members(100))
        _, old = members(40)
        members(50)
        for option in ("Approve", "Reject"):
            with pytest.raises(LedgerError, match="was replaced: another run has planned since"):
                answer(old, option)

    @pytest.mark.parametrize("option", ["Approve", "Reject"])
    def test_an_answer_is_not_about_a_plan_that_the_same_run_made_after_the_question(
        self, members, asked, talon, option
    ):
        """Somebody cleared ``plan`` alone, and Airflow resumes ``approve`` with the newest plan."""
        synced(*members(100))
        xcoms = {}
        _, shown = members(95)
        with pytest.raises(Waits):
            approve(shown, always=True, xcoms=xcoms)
        shares, planned = members(40)
        with pytest.raises(
            LedgerError, match=r"planned again(.*\n)+.*Clear the task that plans \(plan\), and all"
        ):
            answer(planned, option, xcoms)
        with pytest.raises(LedgerError, match="has not been approved"):
            push(shares)
        shares, planned = members(100)
        assert (shares, planned["plan"]) == ([], None)
        for kept in (xcoms, {}):
            with pytest.raises(LedgerError, match="planned again"):
                answer(planned, option, kept)
        assert len(talon.members("vip")) == 100

    @pytest.mark.parametrize("option", ["Approve", "Reject"])
    def test_a_newer_run_that_finds_nothing_to_send_replaces_a_plan_too(self, members, talon, option):
        synced(*members(100))
        shares, planned = members(40)
        if option == "Reject":
            answer(planned, "Reject")
        assert members(100)[0] == []
        with pytest.raises(LedgerError, match="was replaced: another run has planned since"):
            answer(planned, "Approve")
        with pytest.raises(LedgerError, match="was replaced: another run has planned since"):
            push(shares)
        assert len(talon.members("vip")) == 100

    def test_an_approval_with_another_key_creates_nothing(self, members, talon, connect):
        _, planned = members(100, audience_id="new", audience_name="New")
        connect(password="0" * 40)
        with pytest.raises(LedgerError, match="API key"):
            answer(planned, "Approve")
        assert "new" not in talon.audiences()

    def test_rows_of_which_none_can_be_sent_are_an_error_that_nobody_can_approve(self, members, sqlite):
        synced(*members(100))
        with pytest.raises(GuardError, match="none that can be sent"):
            members(0, sql="SELECT NULL AS profile_id")

    def test_without_approval_the_guard_refuses(self, members):
        synced(*members(100))
        with pytest.raises(GuardError, match="would lose 60 of 100"):
            members(40, with_approval=False)

    def test_a_rejection_may_fail_the_task_which_asks_nobody_again(self, members):
        """``fail_on_reject`` reaches the task by ``default_args``."""
        with DAG("d", schedule=None, default_args={"fail_on_reject": True}) as dag:
            talon_audience_sync("g", approval="always", **SOURCE)
        task = dag.get_task("g.approve")
        shares, task.planned = members(100)
        event = {"chosen_options": ["Reject"], "params_input": {}, "responded_by_user": None}
        event["responded_at"] = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
        with pytest.raises(hitl.HITLRejectException) as rejected:
            task.execute_complete({"task": task, "ti": instance({})}, event)
        # Else each of the task's retries would ask.
        assert isinstance(rejected.value, AirflowFailException)
        with pytest.raises(LedgerError, match="was rejected"):
            push(shares)

    def test_where_nobody_answers_in_time_the_task_fails_and_asks_nobody_again(self, members):
        _, planned = members(100)
        operator = ApprovePlanOperator(
            task_id="approve",
            planned=planned,
            asks_always=True,
            response_timeout=dt.timedelta(hours=1),
        )
        event = {
            "error": "The timeout has passed, and the response has not been received.",
            "error_type": "timeout",
        }
        with pytest.raises(hitl.HITLTimeoutError, match="Nobody answered") as late:
            operator.execute_complete({"task": operator}, event)
        assert isinstance(late.value, AirflowFailException)

    def test_a_rejection_skips_the_rest_of_the_group_and_nothing_else(self, members):
        from airflow.providers.common.compat.sdk import BaseOperator  # noqa: PLC0415

        try:
            from airflow.sdk.exceptions import DownstreamTasksSkipped  # noqa: PLC0415
        except ImportError:  # Airflow 3.1
            from airflow.exceptions import DownstreamTasksSkipped  # noqa: PLC0415

        with DAG("d", schedule=None, start_date=dt.datetime(2026, 1, 1, tzinfo=dt.UTC)) as dag:
            group = talon_audience_sync("g", approval="always", **SOURCE)
            group >> BaseOperator(task_id="after", trigger_rule="all_done")
        task = dag.get_task("g.approve")
        _, task.planned = members(100)
        said = {"chosen_options": ["Reject"], "params_input": {}, "responded_by_user": None}
        event = said | {"responded_at": dt.datetime(2026, 1, 1, tzinfo=dt.UTC)}
        ti = instance({})
        with pytest.raises(DownstreamTasksSkipped) as skipped:
            task.execute_complete({"task": task, "ti": ti}, event)
        assert set(skipped.value.tasks) == {"g.push", "g.commit"}
        _, task.planned = members(100)
        event["chosen_options"] = ["Approve"]
        assert task.execute_complete({"task": task, "ti": ti}, event)["chosen_options"] == ["Approve"]


@needs_people
class TestAttributes:
    def test_what_was_approved_is_pushed_and_committed(self, people, talon, asked):
        shares, planned = people.plan()
        with pytest.raises(Waits):
            approve(planned)
        assert len(asked) == 1
        with pytest.raises(LedgerError, match="has not been approved. Nothing was sent."):
            people.push(shares)
        assert talon.requests() == []
        answer(planned, "Approve")
        report = commit(planned, people.push(shares))
        assert (report["sent"], report["unsent"], report["verdict"]) == (40, 0, None)
        assert {talon.profile(each)["attributes"]["tier"] for each in talon.profiles()} == {"gold"}
        assert len(talon.profiles()) == 40
        # The ledger has them too.
        shares, planned = people.plan()
        assert (shares, planned["report"]["unchanged"]) == ([], 40)

    def test_a_rejection_leaves_all_as_it_was(self, people, sqlite, talon):
        shares, planned = people.plan()
        answer(planned, "Approve")
        commit(planned, people.push(shares))
        before = talon.requests()
        sqlite("UPDATE people SET tier = 'new'")
        shares, planned = people.plan()
        assert planned["report"]["unsent"] == 40
        answer(planned, "Reject")
        with pytest.raises(LedgerError, match="was rejected"):
            people.push(shares)
        with pytest.raises(LedgerError, match="was rejected"):
            commit(planned, [])
        assert talon.requests() == before
        # The ledger has nothing of the rejected plan, and is free for the next run, which finds five changes.
        sqlite("UPDATE people SET tier = 'gold' WHERE profile_id >= 'p05'")
        shares, planned = people.plan()
        assert approve(planned) is None
        report = commit(planned, people.push(shares))
        assert (report["unchanged"], report["sent"]) == (35, 5)
        assert talon.profile("p04")["attributes"] == {"tier": "new"}
        assert talon.profile("p05")["attributes"] == {"tier": "gold"}
