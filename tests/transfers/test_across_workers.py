"""The tasks of the TaskGroups one by one, so that each can be tried again where Airflow would, or a person
clears it."""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from airflow.providers.common.compat.sdk import DAG, AirflowSkipException, Asset, TaskGroup

from airflow_provider_talon_cdp.exceptions import AuthenticationError, LedgerError, RejectedRecordsError
from airflow_provider_talon_cdp.operators._base import SendingOperator
from airflow_provider_talon_cdp.sync.profiles import CHANGED
from airflow_provider_talon_cdp.transfers.across_workers import (
    CommitPlanOperator,
    PlanAudienceOperator,
    PlanProfilesOperator,
    PushShareOperator,
    talon_audience_sync,
    talon_profiles_sync,
)

CONN_ID = "talon_cdp_default"


def execute(operator, run_id="r", try_number=1, **context):
    """Execute a task; its result and its XCom ``planned``, as they come out of Airflow's database."""
    pushed = {}
    instance = SimpleNamespace(
        dag_id=operator.dag_id,
        task_id=operator.task_id,
        run_id=run_id,
        map_index=-1,
        try_number=try_number,
        xcom_push=lambda key, value: pushed.update({key: value}),
    )
    result = operator.execute({"ti": instance} | context)
    return json.loads(json.dumps([result, pushed.get("planned")]))


def commit(planned, pushed, max_rejected=0):
    operator = CommitPlanOperator(
        task_id="commit", planned=planned, pushed=pushed, max_rejected=max_rejected, talon_cdp_conn_id=CONN_ID
    )
    return execute(operator)[0]


class ProfilesGroup:
    """The tasks of ``talon_profiles_sync``."""

    def __init__(self, **how):
        self.how = {"sql": "SELECT * FROM people", "sql_conn_id": "warehouse", "ledger": "people"} | how

    def plan(self):
        return execute(PlanProfilesOperator(task_id="plan", workers=1, **self.how))

    def push(self, shares):
        return [
            execute(PushShareOperator(task_id="push", share=share, profiles=self.how, in_flight=1))[0]
            for share in shares
        ]


@pytest.fixture
def people(sqlite, connect, tmp_path):
    """The group, and forty people in the warehouse."""
    sqlite("CREATE TABLE people (profile_id, tier)")
    sqlite("INSERT INTO people VALUES (?, 'gold')", [(f"p{number:02}",) for number in range(40)])
    return ProfilesGroup(state_uri=str(tmp_path / "state"))


def test_profiles_that_changed_since_the_plan_stay_excused_when_a_push_is_cleared(people, sqlite):
    shares, planned = people.plan()
    sqlite("UPDATE people SET tier = 'new' WHERE profile_id = 'p03'")
    people.push(shares)
    report = commit(planned, people.push(shares))
    assert (report["sent"], report["rejected"]) == (39, {CHANGED: 1})


def test_profiles_that_changed_since_the_plan_stay_excused_when_a_push_fails_and_is_retried(
    people, sqlite, talon
):
    shares, planned = people.plan()
    sqlite("UPDATE people SET tier = 'new' WHERE profile_id IN ('p03', 'p38')")
    talon.fail_next("status", only="p30", status=401)
    with pytest.raises(AuthenticationError):
        people.push(shares)
    report = commit(planned, people.push(shares))
    assert (report["sent"], report["rejected"]) == (38, {CHANGED: 2})


def test_profiles_that_talon_one_refused_in_an_earlier_try_are_not_excused(people, sqlite, talon):
    shares, planned = people.plan()
    sqlite("UPDATE people SET tier = 'new' WHERE profile_id = 'p03'")
    talon.fail_next("status", only="p05", status=400)
    people.push(shares)
    with pytest.raises(RejectedRecordsError, match="1 x refused in an earlier try") as error:
        commit(planned, people.push(shares))
    assert error.value.report.rejected[CHANGED] == 1


@pytest.mark.parametrize("left", [(), ("p98", "p99")], ids=["all sent", "some cleared"])
def test_a_query_with_a_value_that_changes_at_each_reading_is_red(people, sqlite, talon, left):
    people.how["on_missing"] = "clear"
    for profile_id in left:
        sqlite(f"INSERT INTO people VALUES ('{profile_id}', 'gold')")
    shares, planned = people.plan()
    commit(planned, people.push(shares))
    sqlite("DELETE FROM people WHERE profile_id > 'p90'")
    people.how["sql"] = "SELECT profile_id, hex(randomblob(8)) AS tier FROM people"
    shares, planned = people.plan()
    with pytest.raises(RejectedRecordsError, match=r"None of 40 profiles was sent(.*\n)+.*now\(\)") as error:
        commit(planned, people.push(shares), max_rejected=None)
    assert (error.value.report.rejected, error.value.report.removed.total()) == ({CHANGED: 40}, len(left))


def test_a_small_plan_whose_rows_really_changed_is_left_to_the_next_run(people, sqlite, talon):
    change = "UPDATE people SET tier = ? WHERE profile_id = 'p03'"
    shares, planned = people.plan()
    commit(planned, people.push(shares))
    sqlite(change, [("new",)])
    shares, planned = people.plan()
    sqlite(change, [("newer",)])
    report = commit(planned, people.push(shares))
    assert (report["sent"], report["rejected"]) == (0, {CHANGED: 1})
    shares, planned = people.plan()
    assert commit(planned, people.push(shares))["sent"] == 1
    assert talon.profile("p03")["attributes"] == {"tier": "newer"}


def rendered(operator, **params):
    """Render the templates of a task to text, as they are where a DAG does not render native objects."""
    operator.render_template_fields({"params": params}, jinja_env=DAG("d", schedule=None).get_template_env())
    return operator


@pytest.mark.parametrize(
    "limit",
    ["max_additions", "max_rejected", "in_flight", "min_removals", "max_removals", "max_removal_fraction"],
)
def test_the_limits_of_a_group_may_be_templates(people, limit):
    how = {"on_missing": "clear"} if "removal" in limit else {}
    with DAG("d", schedule=None) as dag:
        talon_profiles_sync("g", **people.how, **how, **{limit: "{{ params.n }}"})
    number = 0.5 if limit == "max_removal_fraction" else 40
    shares, planned = execute(rendered(dag.get_task("g.plan"), n=number))
    given = dag.get_task("g.push").partial_kwargs
    own = {"profiles", *inspect.signature(SendingOperator).parameters}
    arguments = {name: value for name, value in given.items() if name in own}
    push = PushShareOperator(task_id="push", share=shares[0], **arguments)
    assert commit(planned, execute(rendered(push, n=number))[:1])["sent"] == 40


def test_plan_and_push_bind_the_same_values(people, talon):
    """Also where the DAG renders native objects."""
    sql = "SELECT * FROM people WHERE typeof(:code) = 'text' AND typeof(:n) = 'integer' AND :code = '0'"
    given = people.how | {"sql": sql, "parameters": {"code": "0", "n": "{{ params.n }}"}}
    with DAG("d", schedule=None, render_template_as_native_obj=True) as dag:
        talon_profiles_sync("g", **given)
        profiles = dag.get_task("g.push").partial_kwargs["profiles"]
        push = PushShareOperator(task_id="push", share={}, profiles=profiles)
    plan = dag.get_task("g.plan")
    for task in (plan, push):
        task.render_template_fields({"params": {"n": 5}}, jinja_env=dag.get_template_env())
    assert plan.parameters == push.profiles["parameters"] == {"code": "0", "n": 5}
    shares, planned = execute(plan)
    push.share = shares[0]
    assert commit(planned, [execute(push)[0]])["sent"] == 40


def test_a_push_reads_the_rows_with_what_the_group_says(people, sqlite, talon):
    """Also where ``default_args`` says it."""
    sqlite("ALTER TABLE people ADD COLUMN at")
    sqlite("INSERT INTO people VALUES ('p00', 'newest', 2)")
    sqlite("UPDATE people SET at = 1 WHERE at IS NULL")
    how = {"on_duplicate": "last", "order_by_column": "at", "attributes": {"tier": "Tier"}}
    with DAG("d", schedule=None) as dag:
        talon_profiles_sync("g", **people.how, default_args=how)
    shares, planned = execute(dag.get_task("g.plan"))
    given = dag.get_task("g.push").partial_kwargs["profiles"]
    commit(planned, [execute(PushShareOperator(task_id="push", share=shares[0], profiles=given))[0]])
    assert talon.profile("p00")["attributes"] == {"Tier": "newest"}
    assert talon.profile("p01")["attributes"] == {"Tier": "gold"}


@pytest.mark.parametrize(("keep", "runs"), [({}, 3), ({"keep_versions": 5}, 5)], ids=["default", "five"])
def test_as_many_dead_letters_are_kept_as_the_group_says(people, sqlite, talon, keep, runs):
    group = AudienceGroup(state_uri=people.how["state_uri"], **keep)
    talon.reject_profiles(["p05"])
    for number in range(6):
        sqlite("INSERT INTO people VALUES (?, 'gold')", [(f"q{number}",)])
        shares, planned = group.plan()
        commit(planned, group.push(shares), max_rejected=1)
    (letters,) = Path(people.how["state_uri"]).rglob("dead-letters")
    assert len(list(letters.iterdir())) == runs


def test_a_dry_run_is_green_and_reports_what_was_rejected(people, sqlite, talon):
    sqlite("INSERT INTO people VALUES ('', 'gold')")
    people.how["dry_run"] = True
    shares, planned = people.plan()
    assert shares == []
    report = commit(planned, None)
    assert (report["verdict"], report["unsent"]) == ("would be sent", 40)
    assert report["rejected"] == {"profile ID empty": 1}
    assert talon.requests() == []


def test_a_plan_of_nothing_is_red_where_records_were_rejected(people, sqlite):
    shares, planned = people.plan()
    commit(planned, people.push(shares))
    sqlite("INSERT INTO people VALUES ('', 'gold')")
    shares, planned = people.plan()
    assert shares == []
    with pytest.raises(RejectedRecordsError, match="1 of 41 records"):
        commit(planned, None)


# What each audience got


def pushed(shares):
    return [execute(PushShareOperator(task_id="push", share=share))[0] for share in shares]


@pytest.fixture
def plan(sqlite, connect, tmp_path):
    """Plan a sync of the table ``memberships``, with two members of each of two audiences."""
    sqlite("CREATE TABLE memberships (profile_id, audience_id, audience_name)")
    rows = [(f"p{number}", name, name) for number in range(2) for name in ("gold", "vip")]
    sqlite("INSERT INTO memberships VALUES (?, ?, ?)", rows)

    def run():
        columns = {"audience_column": "audience_id", "audience_name_column": "audience_name"}
        how = {"sql": "SELECT * FROM memberships", "sql_conn_id": "warehouse", "min_removals": 3}
        operator = PlanAudienceOperator(
            task_id="plan", workers=2, state_uri=str(tmp_path / "state"), **columns, **how
        )
        return execute(operator)

    return run


def told(summary):
    content = json.loads(Path(summary["report_file"]).read_text())
    return content["state"], content["audiences"]


def test_the_commit_tells_what_each_audience_got_and_the_plan_what_it_would_get(plan, sqlite):
    shares, planned = plan()
    commit(planned, pushed(shares))
    sqlite("UPDATE memberships SET profile_id = 'p9' WHERE profile_id = 'p1' AND audience_id = 'vip'")
    shares, planned = plan()
    would = {
        "gold": {"added": 0, "removed": 0, "members": 2},
        "vip": {"added": 1, "removed": 1, "members": 2},
    }
    assert told(planned["report"]) == ("planned", would)
    (push,) = pushed(shares)
    # Of a part of a plan, only what it changes itself is known.
    assert told(push) == ("done", {"vip": {"added": 1, "removed": 1, "members": None}})
    summary = commit(planned, [push])
    assert told(summary) == ("done", would)
    assert (summary["added"], summary["removed"]) == (1, 1)


def test_a_refused_member_is_in_no_audience_of_the_commit(plan, talon):
    talon.reject_profiles(["p1"])
    shares, planned = plan()
    assert told(planned["report"])[1]["vip"]["members"] == 2
    with pytest.raises(RejectedRecordsError) as error:
        commit(
            planned,
            [
                execute(PushShareOperator(task_id="push", share=share, max_rejected=None))[0]
                for share in shares
            ],
        )
    assert error.value.report.by_audience()["vip"] == {"added": 1, "removed": 0, "members": 1}


def test_a_commit_of_nothing_knows_the_members_too(plan):
    shares, planned = plan()
    commit(planned, pushed(shares))
    shares, planned = plan()
    assert shares == []
    assert told(commit(planned, None))[1]["vip"] == {"added": 0, "removed": 0, "members": 2}


@pytest.mark.parametrize("damage", [None, b"", b"{", b"[]", b"{}", b"\xff"])
def test_a_commit_without_the_report_of_its_plan_tells_the_sums(plan, damage):
    shares, planned = plan()
    results = pushed(shares)
    file = Path(planned["report"]["report_file"])
    file.unlink()
    if damage is not None:
        file.write_bytes(damage)
    summary = commit(planned, results)
    assert summary["added"] == 4
    assert told(summary) == ("done", {})


SOURCE = {"sql": "SELECT profile_id FROM people", "sql_conn_id": "warehouse", "audience_id": "vip"}


@pytest.mark.parametrize("place", ["argument", "group", "outer group", "DAG"])
def test_outlets_are_emitted_by_the_commit_only(place):
    asset = Asset("file://shared/members.csv")

    def given(here):
        return {"outlets": [asset]} if place == here else {}

    with (
        DAG("d", schedule=None, default_args=given("DAG")) as dag,
        TaskGroup("o", default_args=given("outer group")),
    ):
        how = {"plan_workers": 2, "default_args": given("group")} | SOURCE
        talon_audience_sync("g", **how, **given("argument"))
    assert {task.task_id: asset in task.outlets for task in dag.tasks} == {
        "o.g.ranges": False,
        "o.g.compare": False,
        "o.g.plan": False,
        "o.g.push": False,
        "o.g.commit": True,
    }


def test_what_the_tasks_of_a_group_pass_on_is_kept_whatever_default_args_say():
    with DAG("d", schedule=None, default_args={"do_xcom_push": False}) as dag:
        talon_audience_sync("audience", plan_workers=2, **SOURCE)
        talon_profiles_sync("profiles", sql="SELECT 1", sql_conn_id="w")
    kept = {task.task_id: getattr(task, "partial_kwargs", vars(task))["do_xcom_push"] for task in dag.tasks}
    assert {name for name, is_kept in kept.items() if not is_kept} == {"audience.commit", "profiles.commit"}


class AudienceGroup:
    """The tasks of ``talon_audience_sync`` for one audience, which the DAG names."""

    def __init__(self, **how):
        self.how = SOURCE | {"audience_name": "VIP"} | how

    def plan(self):
        return execute(PlanAudienceOperator(task_id="plan", workers=1, **self.how))

    def push(self, shares):
        return [execute(PushShareOperator(task_id="push", share=share))[0] for share in shares]


def test_a_plan_is_not_pushed_with_the_key_of_what_may_be_another_environment(people, talon, connect):
    group = AudienceGroup(state_uri=people.how["state_uri"])
    shares, planned = group.plan()
    connect(password="0" * 40)
    with pytest.raises(LedgerError, match=r"has changed since this plan was made.*\n(.*\n)+.*Clear the task"):
        group.push(shares)
    connect()
    assert commit(planned, group.push(shares))["sent"] == 40


@pytest.mark.parametrize("made_again", [True, False])
def test_an_audience_that_was_deleted_before_the_commit_is_red_and_filled_by_the_next_plan(
    people, talon, made_again
):
    group = AudienceGroup(state_uri=people.how["state_uri"])
    shares, planned = group.plan()
    pushed = group.push(shares)
    talon.delete_audience("vip")
    if made_again:
        talon.create_audience("vip", "VIP")
    for _ in range(2):
        with pytest.raises(LedgerError, match="an audience was deleted or made again"):
            commit(planned, pushed)
    shares, planned = group.plan()
    report = commit(planned, group.push(shares))
    assert len(talon.members("vip")) == 40
    # The audience's name for each of two plans, the batch, and the name once more.
    assert (report["sent"], report["requests"]) == (40, 4)


def test_members_that_were_refused_before_travel_alone_and_hold_up_nobody(people, sqlite, talon, caplog):
    group = AudienceGroup(state_uri=people.how["state_uri"])
    talon.reject_profiles(["p05", "p20"])
    shares, planned = group.plan()
    pushed = group.push(shares)
    with pytest.raises(RejectedRecordsError, match="2 of 40 records"):
        commit(planned, pushed)
    sqlite("INSERT INTO people VALUES (?, 'gold')", [(f"q{number:02}",) for number in range(30)])
    shares, planned = group.plan()
    (pushed,) = group.push(shares)
    assert (pushed["sent"], pushed["rejected"], pushed["requests"]) == (
        30,
        {"refused by Talon.One (400)": 2},
        3,
    )


def test_without_the_file_of_refused_members_they_are_found_again(people, talon, caplog):
    group = AudienceGroup(state_uri=people.how["state_uri"])
    talon.reject_profiles(["p05"])
    shares, planned = group.plan()
    with pytest.raises(RejectedRecordsError):
        commit(planned, group.push(shares))
    shares, _ = group.plan()
    (file,) = Path(people.how["state_uri"]).rglob("again.tsv.zst")
    file.write_bytes(b"damaged")
    (pushed,) = group.push(shares)
    assert pushed["rejected"] == {"refused by Talon.One (400)": 1}
    assert "are sent with the others" in caplog.text


# An empty source that is skipped


@pytest.mark.parametrize("last", ["complete", "failed push"])
@pytest.mark.parametrize("kind", [AudienceGroup, ProfilesGroup])
def test_an_empty_source_that_is_skipped_sends_nothing_of_an_earlier_plan(people, sqlite, talon, kind, last):
    how = {"on_missing": "clear"} if kind is ProfilesGroup else {}
    group = kind(state_uri=people.how["state_uri"], on_empty="skip", max_removal_fraction=1, **how)
    shares, planned = group.plan()
    commit(planned, group.push(shares))
    if last == "failed push":
        sqlite("DELETE FROM people WHERE profile_id < 'p10'")
        shares, _ = group.plan()
        talon.fail_next("status", status=401)
        with pytest.raises(AuthenticationError):
            group.push(shares)
    sqlite("DELETE FROM people")
    before = talon.requests()
    shares, planned = group.plan()
    assert (shares, planned["plan"]) == ([], None)
    report = commit(planned, None)
    assert report["verdict"].startswith("skipped: The source has no rows")
    assert (report["read"], report["removals"], report["sent"], report["unsent"]) == (0, 40, 0, 40)
    assert told(report)[0] == "refused"
    assert talon.requests() == before


# Tasks that are cleared


def test_a_plan_that_is_made_again_has_a_share_for_each_instance_of_the_push_before(people, talon):
    """Airflow would remove surplus instances, and 2.11 and 3.1 then never start the task that commits."""
    operator = PlanAudienceOperator(
        task_id="plan", workers=3, state_uri=people.how["state_uri"], audience_name="VIP", **SOURCE
    )
    shares, planned = execute(operator, try_number=2)
    assert len(shares) == 3
    first, *others = (PushShareOperator(task_id="push", share=share) for share in shares)
    results = [execute(first)[0]]
    for other in others:
        with pytest.raises(AirflowSkipException):
            execute(other)
    assert commit(planned, results)["sent"] == 40
    # Nothing is left to send.
    assert execute(operator, try_number=1)[0] == []
    assert execute(operator, try_number=2)[0] == [{}, {}, {}]


def test_a_commit_does_not_count_what_was_pushed_of_another_plan(people, sqlite, talon):
    """Airflow 3.3 keeps the results of instances of ``push`` that it has removed."""
    group = AudienceGroup(state_uri=people.how["state_uri"], max_removal_fraction=1)
    talon.reject_profiles(["p05"])
    old_shares, _ = group.plan()
    old = [execute(PushShareOperator(task_id="push", share=old_shares[0], max_rejected=None))[0]]
    sqlite("DELETE FROM people WHERE profile_id < 'p10'")
    shares, planned = group.plan()
    new = group.push(shares)
    report = commit(planned, [*new, *old])
    assert (report["sent"], report["rejected"], report["unsent"]) == (9, {}, 0)
    # A result of an earlier version of this package has no plan.
    for result in new:
        del result["plan"]
    assert commit(planned, new)["requests"] == report["requests"]
