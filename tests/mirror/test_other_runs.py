"""What a mirror does about other runs, other tasks, other keys, and what people do by hand."""

from __future__ import annotations

import json
import shutil
import time
from datetime import UTC, datetime
from enum import Enum
from types import SimpleNamespace

import pytest
from airflow.providers.common.compat.sdk import DAG

from airflow_provider_talon_cdp.emulator import Emulator
from airflow_provider_talon_cdp.exceptions import (
    AuthenticationError,
    InvalidInputError,
    LedgerBusyError,
    LedgerError,
    NotFoundError,
    OlderRunError,
    RejectedRecordsError,
)
from airflow_provider_talon_cdp.hooks.talon_cdp import TalonCdpHook
from airflow_provider_talon_cdp.operators.audience import CreateAudienceOperator, DeleteAudienceOperator
from airflow_provider_talon_cdp.operators.members import SyncAudienceMembersOperator
from airflow_provider_talon_cdp.operators.profile import UpdateProfileAudiencesOperator, UpdateProfileOperator
from tests.mirror.conftest import task_instance
from tests.transfers.test_plan_workers import Group

MANY = [f"customer-{each:03}" for each in range(100)]


def until(day, run_id=None):
    """Return the context of a scheduled run with data until a day of November."""
    end = datetime(2026, 11, day, tzinfo=UTC)
    return {
        "ti": task_instance(run_id or f"scheduled-{day}"),
        "data_interval_start": end,
        "data_interval_end": end,
        "dag_run": SimpleNamespace(run_type="scheduled"),
    }


@pytest.fixture
def newer(sqlite, vip, mirror):
    """A mirror that had data until the 20th; the warehouse has an older day's now."""
    sqlite.fill(MANY)
    mirror(context=until(20))
    sqlite.fill(MANY[5:])
    return vip


def test_a_run_with_older_data_fails_and_changes_nothing(newer, mirror, agrees, calls):
    before = calls()
    with pytest.raises(OlderRunError, match=r"(?s)data until 2026-11-20.*on_older_run='allow'"):
        mirror(context=until(10))
    assert calls() == before
    agrees(MANY)


def test_a_run_with_older_data_can_be_skipped(newer, mirror, agrees, calls):
    before = calls()
    summary = mirror(context=until(10), on_older_run="skip")
    assert summary["verdict"].startswith("skipped: The ledger holds data until 2026-11-20")
    assert (summary["read"], summary["sent"], summary["ledger_version"]) == (0, 0, 1)
    assert calls() == before
    agrees(MANY)


def test_a_run_with_older_data_goes_ahead_where_that_is_allowed(newer, mirror, agrees):
    assert mirror(context=until(10), on_older_run="allow")["removed"] == 5
    agrees(MANY[5:])


@pytest.mark.parametrize(
    "rule, verdict",
    [
        ("fail", "would be refused: The ledger holds data until 2026-11-20"),
        ("skip", "would be skipped: The ledger holds data until 2026-11-20"),
        ("allow", "would be sent"),
    ],
)
def test_a_dry_run_says_what_the_run_would_do(newer, mirror, calls, rule, verdict):
    before = calls()
    assert mirror(context=until(10), dry_run=True, on_older_run=rule)["verdict"].startswith(verdict)
    assert calls() == before


def test_the_same_data_again_is_not_older(newer, mirror, agrees):
    """A cleared run, or a retry."""
    mirror(context=until(20, "again"))
    agrees(MANY[5:])


def test_a_newer_run_without_changes_counts_too(sqlite, vip, mirror):
    sqlite.fill(MANY)
    for day in (10, 20):
        mirror(context=until(day))
    with pytest.raises(OlderRunError, match="2026-11-20"):
        mirror(context=until(15))


class RunType(str, Enum):  # noqa: UP042 - as in Airflow 3, whose members are not the texts that they stand for
    """The types of runs as a task of Airflow 3 gets them."""

    MANUAL = "manual"
    ASSET_TRIGGERED = "asset_triggered"
    ASSET_MATERIALIZATION = "asset_materialization"
    SCHEDULED = "scheduled"
    BACKFILL_JOB = "backfill"
    OPERATOR_TRIGGERED = "operator_triggered"


@pytest.mark.parametrize("as_type", [RunType, str])
@pytest.mark.parametrize("run_type", ["manual", "asset_triggered", "asset_materialization"])
def test_a_run_that_somebody_starts_has_the_data_of_now(newer, mirror, agrees, run_type, as_type):
    mirror(context=until(10) | {"dag_run": SimpleNamespace(run_type=as_type(run_type))})
    agrees(MANY[5:])


@pytest.mark.parametrize("as_type", [RunType, str])
@pytest.mark.parametrize("run_type", ["scheduled", "backfill", "operator_triggered"])
def test_a_run_of_a_schedule_or_of_another_dag_has_the_data_of_its_interval(newer, mirror, run_type, as_type):
    with pytest.raises(OlderRunError):
        mirror(context=until(10) | {"dag_run": SimpleNamespace(run_type=as_type(run_type))})


def test_a_run_that_another_dag_starts_now_has_the_data_of_now(newer, mirror, agrees):
    """Its data interval may be the last one of a schedule."""
    run = SimpleNamespace(run_type=RunType.OPERATOR_TRIGGERED)
    mirror(context=until(10) | {"dag_run": run, "logical_date": datetime(2026, 11, 21, tzinfo=UTC)})
    agrees(MANY[5:])


@pytest.mark.parametrize("run_type", ["scheduled", "backfill"])
def test_a_run_of_a_partition_has_the_data_of_its_date(newer, mirror, run_type):
    """Airflow 3.2 and newer give it neither a logical date nor a data interval."""
    run = SimpleNamespace(run_type=RunType(run_type), run_after=datetime(2026, 11, 10, tzinfo=UTC))
    with pytest.raises(OlderRunError, match="until 2026-11-10"):
        mirror(context={"ti": task_instance("partition"), "dag_run": run})


def test_a_run_of_a_partition_that_somebody_starts_has_the_data_of_now(newer, mirror, agrees):
    run = SimpleNamespace(run_type=RunType.MANUAL, run_after=datetime(2026, 11, 10, tzinfo=UTC))
    mirror(context={"ti": task_instance("partition"), "dag_run": run})
    agrees(MANY[5:])


def test_these_are_the_types_that_a_task_of_airflow_3_gets():
    found = pytest.importorskip("airflow.sdk.api.datamodels._generated").DagRunType
    assert {each.value for each in found} <= {each.value for each in RunType}


def test_an_overlapping_run_waits_for_the_ledger(sqlite, vip, mirror, agrees, ledger_of, monkeypatch, said):
    sqlite.fill(MANY)
    mirror()
    sqlite.fill([*MANY, "new"])
    other = ledger_of().lock
    other.take("dag/sync/run-0/-1")
    # It ends as soon as somebody waits.
    monkeypatch.setattr(
        "airflow_provider_talon_cdp.operators._base.time.sleep", lambda _: other.give_back(), raising=True
    )
    mirror()
    assert "Waiting for the ledger" in said()
    agrees([*MANY, "new"])


def test_a_run_of_now_that_waited_has_the_data_of_the_end_of_its_wait(
    sqlite, vip, mirror, agrees, ledger_of, monkeypatch
):
    """The run that it waited for has later data than this run had at its beginning."""
    sqlite.fill(MANY)
    mirror()
    other = ledger_of().lock
    other.take("dag/sync/run-0/-1")

    def another_run(_):
        other.give_back()
        sqlite.fill(MANY[1:])
        mirror(context={"ti": task_instance("another")})
        sqlite.fill(MANY[2:])

    clock = SimpleNamespace(monotonic=time.monotonic, sleep=another_run)
    monkeypatch.setattr("airflow_provider_talon_cdp.operators._base.time", clock)
    mirror()
    agrees(MANY[2:])


def test_an_overlapping_run_gives_up_after_its_time(sqlite, vip, mirror, ledger_of, calls):
    sqlite.fill(MANY)
    mirror()
    ledger_of().lock.take("dag/sync/run-0/-1")
    before = calls()
    with pytest.raises(LedgerBusyError, match="in use by dag/sync/run-0/-1"):
        mirror(busy_timeout=0)
    assert calls() == before


def test_an_instance_of_a_mapped_task_that_found_nothing_to_send_has_used_the_ledger_too(
    sqlite, vip, mirror, agrees
):
    sqlite.fill(MANY)
    mirror()
    assert mirror(context={"ti": task_instance("run-2", map_index=0)})["sent"] == 0
    others = "SELECT profile_id FROM customers WHERE profile_id >= 'customer-005'"
    with pytest.raises(InvalidInputError, match="Instance 0 of the mapped task sync has mirrored"):
        mirror(context={"ti": task_instance("run-2", map_index=1)}, sql=others)
    agrees(MANY)


def test_instances_of_a_mapped_task_do_not_clear_what_another_one_has_sent(sqlite, send, attributes):
    instances = [{"ti": task_instance(map_index=number)} for number in range(2)]
    both = {"anna": {"tier": "gold"}, "bo": {"tier": "gold"}}
    sqlite.fill_people("id text, tier text", [(profile, "gold") for profile in both])
    queries = [f"SELECT * FROM people WHERE id = '{profile}'" for profile in both]
    for instance, sql in zip(instances, queries, strict=True):
        send(context=instance, ledger="2026", sql=sql)
    assert attributes() == both
    with pytest.raises(
        InvalidInputError, match=r"(?s)Instance 1 of the mapped task sync has synced.* ledger="
    ):
        send(context=instances[0], ledger="2026", sql=queries[0], on_missing="clear")
    assert attributes() == both
    again = {"ti": task_instance("run-2", map_index=0)}
    assert send(context=again, ledger="2026", sql=queries[0], on_missing="clear")["removed"] == 1
    # The same arguments at another index, as after an earlier element was taken out of the list.
    shifted = {"ti": task_instance("run-2", map_index=1)}
    assert send(context=shifted, ledger="2026", sql=queries[0], on_missing="clear")["unchanged"] == 1


def test_an_instance_of_a_mapped_task_with_the_same_arguments_at_another_index_is_the_same_sync(
    sqlite, vip, mirror, agrees
):
    """Somebody took an earlier element out of the list, and cleared the task."""
    queries = [
        f"SELECT profile_id FROM customers WHERE profile_id < 'customer-{end}'" for end in ("050", "1")
    ]
    sqlite.fill(MANY)
    mirror(context={"ti": task_instance(map_index=2)}, sql=queries[1])
    assert mirror(context={"ti": task_instance(map_index=1)}, sql=queries[1])["sent"] == 0
    assert mirror(context={"ti": task_instance(map_index=1)}, sql=queries[1])["sent"] == 0
    with pytest.raises(InvalidInputError, match="Instance . of the mapped task sync has mirrored"):
        mirror(context={"ti": task_instance(map_index=0)}, sql=queries[0], max_removal_fraction=1)
    agrees(MANY)


def test_mapped_lists_with_equal_members_are_the_same_sync_at_another_index(vip, mirror_list, agrees):
    mirror_list(MANY, context={"ti": task_instance(map_index=2)})
    mirror_list(MANY, context={"ti": task_instance(map_index=1)})
    with pytest.raises(InvalidInputError, match="of the mapped task sync has mirrored"):
        mirror_list(MANY[5:], context={"ti": task_instance(map_index=0)})
    # The order of a set differs from process to process, so its members are not compared.
    mirror_list(set(MANY), context={"ti": task_instance("run-2", map_index=1)})
    with pytest.raises(InvalidInputError, match="of the mapped task sync has mirrored"):
        mirror_list(set(MANY[5:]), context={"ti": task_instance("run-2", map_index=0)})
    agrees(MANY)


def test_two_tasks_of_one_audience_are_told_of_each_other(sqlite, vip, mirror, said):
    sqlite.fill(MANY)
    mirror()
    assert "Another task" not in said()
    mirror(context={"ti": task_instance(task_id="other")})
    assert "Another task changed the same audiences" in said()
    assert "dag.sync" in said()


@pytest.mark.parametrize("kind", ["members", "profiles"])
def test_a_default_ledger_whose_name_the_ids_of_two_tasks_make_is_refused(
    sqlite, mirror_many, send, talon, kind
):
    """A task in a TaskGroup, and a task of a DAG whose ID ends with the group's."""

    def run(dag_id, task_id, profile_id, **arguments):
        sqlite.fill_pairs([(profile_id, f"audience of {profile_id}")])
        sqlite.fill_people("id, tier", [(profile_id, "gold")])
        instance = task_instance(task_id=task_id)
        instance.dag_id = dag_id
        how = {"dag": DAG(dag_id, schedule=None), "task_id": task_id, "context": {"ti": instance}}
        how |= {"on_missing": "clear", "ledger": None} if kind == "profiles" else {}
        return (send if kind == "profiles" else mirror_many)(**how | arguments)

    assert run("crm", "eu.sync", "anna")["sent"] == 1
    before = talon.requests()
    both = "sync of the DAG crm.eu and eu.sync of the DAG crm have one ledger"
    with pytest.raises(InvalidInputError, match=rf"(?s)^{both}.* ledger="):
        run("crm.eu", "sync", "bert")
    assert talon.requests() == before
    assert run("crm.eu", "sync", "bert", ledger="eu")["added"] == 1
    assert run("crm", "eu.sync", "anna")["unchanged"] == 1


def test_two_ledgers_of_one_audience_are_told_of_each_other(sqlite, vip, mirror, mirror_many, said):
    """As when an audience has a task of its own and is in a sync of many."""
    sqlite.fill(MANY)
    mirror()
    sqlite.fill_pairs([(each, "vip") for each in MANY])
    mirror_many(ledger="nightly", context={"ti": task_instance(task_id="other")})
    assert "Another task" not in said()
    mirror()
    assert "Another task changed the same audiences" in said()
    assert "dag.other" in said()


def test_what_another_ledger_removed_is_added_again(sqlite, vip, mirror, mirror_many, agrees):
    sqlite.fill(MANY)
    mirror()
    sqlite.fill_pairs([(each, "vip") for each in MANY])
    mirror_many(ledger="nightly")
    sqlite.fill_pairs([(each, "vip") for each in MANY[3:]])
    mirror_many(ledger="nightly")
    assert vip.members("vip") == set(MANY[3:])
    mirror()
    agrees(MANY)


@pytest.mark.parametrize("by", ["list", "query"])
def test_explicit_removals_of_mirrored_members_are_undone_by_the_mirror(
    sqlite, vip, mirror, context, state, agrees, by
):
    sqlite.fill(MANY)
    mirror()
    if by == "list":
        SyncAudienceMembersOperator(
            task_id="drop", audience_id="vip", remove=MANY[:2], state_uri=str(state)
        ).execute(context)
    else:
        mirror(mode="remove", task_id="drop", sql="SELECT profile_id FROM customers LIMIT 2")
    assert len(vip.members("vip")) == len(MANY) - 2
    assert mirror()["sent"] == 2
    agrees(MANY)


def test_explicit_additions_that_the_query_has_not_are_removed_by_the_mirror(
    sqlite, vip, mirror, context, state, agrees
):
    sqlite.fill(MANY)
    mirror()
    add = SyncAudienceMembersOperator(task_id="more", audience_id="vip", add=["guest"], state_uri=str(state))
    add.execute(context)
    assert "guest" in vip.members("vip")
    mirror()
    agrees(MANY)


def test_a_profile_that_one_call_took_out_is_added_again(sqlite, vip, mirror, context, state, agrees):
    sqlite.fill(MANY)
    mirror()
    leave = UpdateProfileAudiencesOperator(
        task_id="leave", customer_profile_id=MANY[7], remove_audiences=["vip"], state_uri=str(state)
    )
    assert leave.execute(context)["removed"] == 1
    assert mirror()["sent"] == 1
    agrees(MANY)


def test_a_profile_that_one_call_let_join_is_removed_and_an_audience_of_nobody_matters_not(
    sqlite, vip, mirror, context, state, agrees
):
    sqlite.fill(MANY)
    vip.create_audience("other", "Other")
    mirror()
    UpdateProfileAudiencesOperator(
        task_id="join", customer_profile_id="guest", add_audiences=["vip", "other"], state_uri=str(state)
    ).execute(context)
    assert mirror()["removed"] == 1
    agrees(MANY)
    assert vip.members("other") == {"guest"}


def test_a_profile_that_a_call_by_internal_id_took_out_is_added_again(
    sqlite, vip, mirror, context, state, agrees
):
    """The mirror knows the internal ID, as it has a name for the audience."""
    sqlite.fill(MANY)
    mirror(audience_name="VIP")
    internal = vip.audiences()["vip"]["id"]
    UpdateProfileOperator(
        task_id="leave", customer_profile_id=MANY[7], remove_audiences=[internal], state_uri=str(state)
    ).execute(context)
    SyncAudienceMembersOperator(
        task_id="more",
        audience_id=internal,
        audience_id_type="internal",
        remove=[MANY[8]],
        state_uri=str(state),
    ).execute(context)
    assert mirror(audience_name="VIP")["sent"] == 2
    agrees(MANY)


@pytest.fixture
def internal(talon, context, state):
    """The internal ID of the audience ``vip``, as the task that creates it returns it."""
    create = CreateAudienceOperator(task_id="create", audience_id="vip", audience_name="VIP")
    return str(create.execute(context)["internal_id"])


@pytest.fixture
def mirror_by_internal_id(sqlite, mirror, internal):
    sqlite.fill(MANY)

    def run():
        sql = "SELECT profile_id FROM customers"
        return mirror(audience_id=internal, audience_id_type="internal", sql=sql)

    run()
    return run


def test_a_mirror_by_internal_id_learns_of_bulk_calls_by_external_id(
    talon, mirror_by_internal_id, context, state
):
    SyncAudienceMembersOperator(
        task_id="explicit", audience_id="vip", add=["guest"], remove=MANY[:7], state_uri=str(state)
    ).execute(context)
    assert mirror_by_internal_id()["sent"] == 8
    assert talon.members("vip") == set(MANY)


def test_a_mirror_by_internal_id_learns_of_single_calls_by_external_id(
    talon, mirror_by_internal_id, context, state
):
    for profile_id, change in (("guest", "add_audiences"), (MANY[7], "remove_audiences")):
        call = UpdateProfileAudiencesOperator(
            task_id="single", customer_profile_id=profile_id, state_uri=str(state), **{change: ["vip"]}
        )
        call.execute(context)
    assert mirror_by_internal_id()["sent"] == 2
    assert talon.members("vip") == set(MANY)


def test_a_mirror_by_internal_id_learns_of_a_mirror_by_external_id(
    sqlite, talon, mirror_by_internal_id, mirror
):
    for members in ([*MANY, "guest"], MANY[7:]):
        sqlite.fill(members)
        mirror(context={"ti": task_instance("another")})
    sqlite.fill(MANY)
    assert mirror_by_internal_id()["sent"] == 8
    assert talon.members("vip") == set(MANY)


def test_a_mirror_by_internal_id_is_red_after_its_audience_was_deleted_by_external_id(
    mirror_by_internal_id, context, state
):
    DeleteAudienceOperator(task_id="delete", audience_id="vip", state_uri=str(state)).execute(context)
    with pytest.raises(NotFoundError):
        mirror_by_internal_id()


def test_an_external_id_that_reads_like_an_internal_one_is_another_audience(
    talon, internal, mirror_by_internal_id, context, state
):
    talon.create_audience(internal, "Not VIP")
    SyncAudienceMembersOperator(
        task_id="explicit", audience_id=internal, add=["guest"], remove=MANY[:7], state_uri=str(state)
    ).execute(context)
    assert mirror_by_internal_id()["sent"] == 0
    assert talon.members("vip") == set(MANY)


@pytest.mark.parametrize(
    ("first", "second"),
    [(None, "state"), ("state", None), ("state", "other")],
    ids=["the mirror has the common one", "the call has the common one", "each has one of its own"],
)
def test_tasks_under_different_state_uris_know_of_each_other(
    sqlite, vip, mirror, context, tmp_path, first, second
):
    uris = {None: None, "state": str(tmp_path / "state"), "other": str(tmp_path / "other")}
    sqlite.fill(MANY)
    mirror(state_uri=uris[first])
    for profile_id in ("guest", "visitor"):
        SyncAudienceMembersOperator(
            task_id="explicit",
            audience_id="vip",
            add=[profile_id],
            remove=MANY[:7],
            state_uri=uris[second],
        ).execute(context)
    assert (mirror(state_uri=uris[first])["added"], vip.members("vip")) == (7, set(MANY))


def test_mirrors_under_different_state_uris_tell_each_other(sqlite, vip, mirror, tmp_path, caplog):
    sqlite.fill(MANY)
    mirror()
    sqlite.fill(["guest", *MANY[1:]])
    mirror(task_id="other", state_uri=str(tmp_path / "other"), context={"ti": task_instance(task_id="other")})
    assert vip.members("vip") == {"guest", *MANY}
    sqlite.fill(MANY)
    mirror()
    assert vip.members("vip") == set(MANY)
    assert "Another task changed the same audiences since this one did" in caplog.text


def test_a_deleted_ledger_gets_no_notes(sqlite, vip, mirror, context, tmp_path, state):
    sqlite.fill(MANY)
    mirror(state_uri=str(tmp_path / "deleted"))
    for folder in (tmp_path / "deleted").glob("*/audience*"):
        shutil.rmtree(folder)
        # As if a version before had noted something after the deletion.
        (folder / "outside").mkdir(parents=True)
        (folder / "outside" / "x.json").write_text("{}")
    mirror()
    remove = SyncAudienceMembersOperator(
        task_id="remove", audience_id="vip", remove=MANY[:1], state_uri=str(state)
    )
    remove.execute(context)
    assert [path.name for path in (tmp_path / "deleted").glob("*/audience*/**/*.*")] == ["x.json"]


@pytest.mark.parametrize("uri", ["{}/file", "s3://no_such_connection@bucket/talon_cdp"])
def test_a_common_state_uri_that_cannot_be_reached_stops_no_mirror(
    sqlite, vip, mirror, tmp_path, monkeypatch, caplog, agrees, uri
):
    (tmp_path / "file").touch()
    monkeypatch.setenv("AIRFLOW__TALON_CDP__STATE_URI", uri.format(tmp_path))
    sqlite.fill(MANY)
    assert mirror()["sent"] == len(MANY)
    agrees(MANY)
    assert (
        "Another state URI cannot be used. Mirrors with it do not learn of this task's changes."
        in caplog.text
    )


@pytest.mark.parametrize("uri", ["relative/folder", "no-such-storage://bucket/x"])
def test_a_wrong_common_state_uri_stops_no_mirror_that_has_one_of_its_own(
    sqlite, vip, mirror, monkeypatch, agrees, uri
):
    monkeypatch.setenv("AIRFLOW__TALON_CDP__STATE_URI", uri)
    sqlite.fill(MANY)
    assert mirror()["sent"] == len(MANY)
    agrees(MANY)


def test_a_symbolic_link_to_the_common_state_uri_is_no_other_one(sqlite, vip, mirror, tmp_path, monkeypatch):
    (tmp_path / "common").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "common")
    monkeypatch.setenv("AIRFLOW__TALON_CDP__STATE_URI", str(tmp_path / "common"))
    sqlite.fill(MANY)
    mirror(state_uri=f"file://{tmp_path}/link/")
    sqlite.fill(MANY[1:])
    assert mirror(state_uri=f"file://{tmp_path}/link/")["removed"] == 1
    assert vip.members("vip") == set(MANY[1:])
    assert not list((tmp_path / "common").glob("*/*/outside"))
    assert not list((tmp_path / "common").glob("*/elsewhere"))


def test_attributes_that_one_call_changed_are_sent_again(sqlite, send, state, attributes, caplog):
    sqlite.fill_people("id text, tier text, score int", [("anna", "gold", 7), ("bo", "silver", 2)])
    send()
    for profile_id in ("anna", "guest"):
        UpdateProfileOperator(
            task_id="update",
            customer_profile_id=profile_id,
            attributes={"tier": "bronze"},
            state_uri=str(state),
        ).execute({"ti": task_instance(task_id="update")})
    assert send()["sent"] == 1
    assert attributes()["anna"] == {"tier": "gold", "score": 7}
    assert "Another task changed the same attributes since this one did" in caplog.text
    assert send()["requests"] == 0


def test_attributes_that_a_sync_does_not_have_are_no_matter_of_its_own(sqlite, send, context, state, vip):
    sqlite.fill_people("id text, tier text", [("anna", "gold")])
    send()
    UpdateProfileOperator(
        task_id="update", customer_profile_id="anna", attributes={"score": 1}, state_uri=str(state)
    ).execute(context)
    assert send()["requests"] == 0


def test_attributes_that_a_sync_deletes_are_sent_again_by_the_sync_that_sets_them_now(
    sqlite, send, attributes, said
):
    """The old sync still has their names, and deletes them when a profile leaves its query."""
    sqlite.fill_people("id text, tier text, points int", [("anna", "gold", 7), ("bo", "silver", 2)])
    tier, points = "SELECT id, tier FROM people", "SELECT id, points FROM people"
    old = {"ledger": "old", "on_missing": "clear", "max_removal_fraction": 1}
    send(**old)
    send(**old, sql=tier)
    for ledger, sql in (("new", points), ("third", "SELECT id, 1 AS score FROM people")):
        send(ledger=ledger, sql=sql, context={"ti": task_instance(task_id=ledger)})
    assert send(**old, sql=f"{tier} WHERE id <> 'anna'")["removed"] == 1
    assert attributes()["anna"] == {"score": 1}
    assert send(ledger="third", sql="SELECT id, 1 AS score FROM people")["requests"] == 0
    assert send(ledger="new", sql=points)["sent"] == 1
    assert attributes()["anna"] == {"points": 7, "score": 1}
    assert "Another task changed the same attributes since this one did" in said()
    assert send(ledger="new", sql=points)["requests"] == 0


@pytest.mark.parametrize("how", ["of an earlier version", "copied", "read in ranges"])
def test_a_sync_that_is_in_no_registry_is_found_after_a_run_without_changes(
    sqlite, vip, mirror_many, context, state, tmp_path, how
):
    """As one that was written by an earlier version, or one whose folder was copied to another state URI."""
    rows = [(each, "vip") for each in MANY]
    sqlite.fill_pairs(rows)
    mirror_many(ledger="x")
    # So few changes that the next version has no new file of members.
    vip.create_audience("gold", "Gold")
    sqlite.fill_pairs([*rows, ("anna", "gold")])
    mirror_many(ledger="x")
    for folder in state.glob("*/registry"):
        shutil.rmtree(folder)
    place = state
    if how == "copied":
        place = tmp_path / "copy"
        shutil.copytree(state, place)
        shutil.rmtree(state)
    if how == "read in ranges":
        group = Group(state, sql="SELECT * FROM memberships", audience_column="audience_id", ledger="x")
        assert group.run()["sent"] == 0
    else:
        assert mirror_many(ledger="x", state_uri=str(place))["sent"] == 0
    for audience, profile_id in (("vip", MANY[0]), ("gold", "anna")):
        SyncAudienceMembersOperator(
            task_id="drop", audience_id=audience, remove=[profile_id], state_uri=str(tmp_path / "own")
        ).execute(context)
    assert mirror_many(ledger="x", state_uri=str(place))["sent"] == 2
    assert (vip.members("vip"), vip.members("gold")) == (set(MANY), {"anna"})


def test_a_sync_of_attributes_that_is_in_no_registry_is_found_after_a_run_without_changes(
    sqlite, send, state, context, attributes
):
    sqlite.fill_people("id text, tier text", [("anna", "gold")])
    send()
    for folder in state.glob("*/registry"):
        shutil.rmtree(folder)
    assert send()["sent"] == 0
    UpdateProfileOperator(
        task_id="update", customer_profile_id="anna", attributes={"tier": "bronze"}, state_uri=str(state)
    ).execute(context)
    assert send()["sent"] == 1
    assert attributes() == {"anna": {"tier": "gold"}}


def test_a_profile_that_has_left_loses_the_attributes_that_one_call_gave_back(
    sqlite, send, context, state, attributes
):
    sqlite.fill_people("id text, tier text", [("anna", "gold"), ("bo", "silver")])
    send(on_missing="clear", max_removal_fraction=1)
    UpdateProfileOperator(
        task_id="update",
        customer_profile_id="anna",
        attributes={"tier": "bronze"},
        state_uri=str(state),
    ).execute(context)
    sqlite.run("DELETE FROM people WHERE id = 'anna'")
    send(on_missing="clear", max_removal_fraction=1)
    assert attributes()["anna"] == {}


def test_attributes_of_one_profile_tell_no_ledger_where_there_is_none(sqlite, vip, mirror, context, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    UpdateProfileOperator(
        task_id="update", customer_profile_id="anna", attributes={"a": 1}, state_uri=str(elsewhere)
    ).execute(context)
    assert not elsewhere.exists()


@pytest.mark.parametrize("name", [None, "VIP"])
def test_an_audience_that_a_task_deleted_and_one_made_again_is_filled_again(
    sqlite, vip, mirror, context, state, agrees, name
):
    """Without a name, the mirror cannot tell the new audience from the old one by itself."""
    sqlite.fill(MANY)
    mirror(audience_name=name)
    delete = DeleteAudienceOperator(task_id="delete", audience_id="vip", state_uri=str(state))
    delete.execute(context)
    CreateAudienceOperator(task_id="create", audience_id="vip", audience_name="VIP").execute(context)
    assert mirror(audience_name=name)["sent"] == len(MANY)
    agrees(MANY)


def test_a_deletion_that_surely_failed_is_no_reason_to_send_all_again(sqlite, vip, mirror, context, state):
    sqlite.fill(MANY)
    mirror()
    vip.fail_next("status", status=401)
    with pytest.raises(AuthenticationError):
        DeleteAudienceOperator(task_id="delete", audience_id="vip", state_uri=str(state)).execute(context)
    assert mirror()["sent"] == 0


def test_an_audience_that_was_deleted_by_hand_is_made_again_under_its_name(sqlite, talon, mirror, agrees):
    """Though the query has not changed."""
    sqlite.fill(MANY)
    mirror(audience_name="VIP")
    talon.delete_audience("vip")
    assert mirror(audience_name="VIP")["sent"] == len(MANY)
    agrees(MANY)


def test_an_audience_that_was_made_again_by_hand_is_filled_again(sqlite, talon, mirror, agrees):
    sqlite.fill(MANY)
    mirror(audience_name="VIP")
    talon.delete_audience("vip")
    talon.create_audience("vip", "Made by hand")
    assert mirror(audience_name="VIP")["sent"] == len(MANY)
    agrees(MANY)
    assert talon.audiences()["vip"]["name"] == "VIP"


def test_an_audience_without_a_name_that_was_deleted_by_hand_fails_the_run(sqlite, vip, mirror, agrees):
    sqlite.fill(MANY)
    mirror()
    vip.delete_audience("vip")
    with pytest.raises(
        NotFoundError, match=r"(?s)Audience 'vip' of this mirror does not exist.*audience_name"
    ):
        mirror()
    vip.create_audience("vip", "Made by hand")
    assert mirror()["sent"] == len(MANY)
    agrees(MANY)


def test_nobody_is_asked_where_that_is_said(sqlite, talon, mirror, calls):
    sqlite.fill(MANY)
    mirror(audience_name="VIP")
    before = calls()
    mirror(audience_name="VIP", verify="none")
    assert calls() == before


def test_a_new_ledger_of_an_audience_that_exists_is_told_of(sqlite, talon, mirror, state, said):
    sqlite.fill(MANY)
    mirror(audience_name="VIP")
    assert "The ledger is new" not in said()
    shutil.rmtree(state)
    sqlite.fill(MANY[5:])
    assert mirror(audience_name="VIP")["removals"] == 0
    assert "The ledger is new, and audience 'vip' exists already" in said()
    assert str(state) in said()


@pytest.fixture
def environments(connect, talon):
    """Two environments of one deployment, and which one's key is on the connection."""
    with Emulator(
        environments={"sandbox": "sandbox-key-0000000001", "live": "live-key-000000000002"}
    ) as emulator:

        def use(name, environment=""):
            connection = emulator.connection(name)
            connection["extra"] = {**connection["extra"], "environment": environment}
            connect(SimpleNamespace(connection=lambda: connection))

        yield emulator, use


@pytest.mark.parametrize("audience_name", ["VIP", None])
@pytest.mark.parametrize("verify", ["identity", "none"])
def test_a_key_of_another_environment_finds_its_audience_and_fills_it(
    sqlite, environments, mirror, said, verify, audience_name
):
    """What one environment acknowledged says nothing about the other, though the ledger is the same."""
    emulator, use = environments
    sqlite.fill(MANY)
    for name in ("sandbox", "live"):
        use(name)
        if audience_name is None:
            TalonCdpHook().create_audience("vip", "VIP")
        assert mirror(audience_name=audience_name, verify=verify)["sent"] == len(MANY)
        assert emulator.members("vip", name) == set(MANY)
    assert "The API key or the platform name on the connection has changed" in said()
    assert "-key-000" not in said()


def test_environments_that_are_named_have_ledgers_of_their_own(sqlite, environments, mirror, said):
    emulator, use = environments
    for name, wanted in (("sandbox", MANY), ("live", MANY[5:]), ("sandbox", MANY), ("live", MANY[5:])):
        use(name, environment=name)
        sqlite.fill(wanted)
        mirror(audience_name="VIP")
        assert emulator.members("vip", name) == set(wanted)
    assert "has changed since the last run" not in said()
    assert "A new ledger begins beside another one" in said()


def test_attributes_wait_until_the_environment_of_a_new_key_is_named(sqlite, environments, send, attributes):
    """Talon.One tells of no profile what it has, so nothing but the user can say where the key belongs."""
    emulator, use = environments
    sqlite.fill_people("id, tier", [("anna", "gold")])
    use("sandbox")
    send()
    use("live")
    for _ in range(2):
        with pytest.raises(LedgerError, match=r"(?s)API key .* has changed.*set Environment"):
            send()
    assert emulator.profiles("live") == frozenset()
    use("live", environment="live")
    assert send()["sent"] == 1
    assert emulator.profile("anna", "live")["attributes"] == {"tier": "gold"}
    assert send()["sent"] == 0


def test_attributes_that_are_all_sent_need_no_name_of_the_environment(sqlite, environments, send):
    """So says the error; the key of the next run is known then."""
    emulator, use = environments
    sqlite.fill_people("id, tier", [("anna", "gold")])
    use("sandbox")
    send()
    use("live")
    assert send(send="all")["sent"] == 1
    assert emulator.profile("anna", "live")["attributes"] == {"tier": "gold"}
    assert send()["sent"] == 0


def test_dead_letters_of_versions_that_are_not_kept_are_deleted(sqlite, vip, mirror, state):
    for number in range(5):
        sqlite.fill([f"customer-{number}", "x" * 1001])
        with pytest.raises(RejectedRecordsError):
            mirror(keep_versions=2, max_removal_fraction=1)
    assert len(list(state.glob("*/*/dead-letters/*"))) == 2


def test_dead_letters_of_explicit_changes_are_deleted_too(vip, state):
    for number in range(5):
        add = SyncAudienceMembersOperator(
            task_id="more",
            audience_id="vip",
            add=["x" * 1001, "anna"],
            state_uri=str(state),
            keep_versions=2,
            max_rejected=1,
        )
        assert add.execute({"ti": task_instance(f"run-{number}")})["dead_letters"]
    assert len(list(state.glob("*/*/dead-letters/*"))) == 2


def test_a_refused_member_is_named_in_the_dead_letters_of_an_explicit_add(vip, context, state):
    vip.reject_profiles(["anna"])
    add = SyncAudienceMembersOperator(
        task_id="more", audience_id="vip", add=["anna", "bert"], state_uri=str(state), max_rejected=1
    )
    add.execute(context)
    (file,) = state.glob("*/*/dead-letters/*/*.ndjson")
    letter = json.loads(file.read_text())
    assert (letter["profile_id"], letter["audience_id"], letter["action"]) == ("anna", "vip", "add")
    assert vip.members("vip") == {"bert"}


def test_members_whom_a_failed_addition_did_not_add_are_left_alone(vip, mirror_list):
    """They are members for another reason: an import in the Campaign Manager, say."""
    imported = [f"imported-{each:04}" for each in range(1000)]
    vip.add_members("vip", imported)
    mirror_list(MANY[:10])
    vip.fail_next("status", status=401)
    with pytest.raises(AuthenticationError):
        SyncAudienceMembersOperator(task_id="imports", audience_id="vip", add=imported).execute({})
    assert mirror_list(MANY[:10], context={"ti": task_instance("run-2")})["removed"] == 0
    assert vip.members("vip") == {*imported, *MANY[:10]}


def test_an_audience_that_a_task_makes_again_gets_all_members_again(sqlite, vip, mirror):
    """A person deleted it. Only the task that creates it learns that it was gone."""
    create = CreateAudienceOperator(
        task_id="create", audience_id="vip", audience_name="VIP", if_exists="skip"
    )
    sqlite.fill(MANY[:10])
    mirror()
    create.execute({})
    assert mirror(context={"ti": task_instance("run-2")})["sent"] == 0, "it was there"
    vip.delete_audience("vip")
    create.execute({})
    sqlite.fill(MANY[:11])
    mirror(context={"ti": task_instance("run-3")})
    assert vip.members("vip") == set(MANY[:11])


def its_own_mirror(mirror_list):
    mirror_list([*MANY[1:10], "joined"], audience_id="gold", context={"ti": task_instance(task_id="gold")})


def a_single_call(_):
    UpdateProfileAudiencesOperator(
        task_id="call", customer_profile_id="joined", add_audiences=["gold"]
    ).execute({})


def a_deletion(_):
    DeleteAudienceOperator(task_id="delete", audience_id="gold").execute({})
    CreateAudienceOperator(task_id="create", audience_id="gold", audience_name="Gold").execute({})


@pytest.mark.parametrize("leaving", [0, 1], ids=["no changes since", "changes since"])
@pytest.mark.parametrize("change", [its_own_mirror, a_single_call, a_deletion])
def test_what_happens_to_an_audience_that_a_sync_does_not_manage_any_more_is_not_its_matter(
    sqlite, vip, mirror_many, mirror_list, caplog, change, leaving
):
    vip.create_audience("gold", "Gold")
    both = [(each, "vip") for each in MANY[:10]] + [(each, "gold") for each in MANY[:10]]

    def sync(number, **arguments):
        run = {"ti": task_instance(f"run-{number}")}
        return mirror_many(audience_name_column=None, context=run, **arguments)

    sqlite.fill_pairs(both)
    sync(1)
    sqlite.fill_pairs(both[:10])
    sync(2, audiences=["vip"])
    change(mirror_list)
    members = vip.members("gold")
    for number in (3, 4, 5):
        sqlite.fill_pairs(both[leaving * number : 10])
        sync(number, audiences=["vip"])
    assert "Another task changed" not in caplog.text
    assert vip.members("gold") == members
    # It manages the audience again, which does not have the members that the ledger knows.
    sqlite.fill_pairs(both[leaving * 5 :])
    sync(6, audiences=["vip", "gold"])
    assert vip.members("gold") == set(MANY[:10])


@pytest.mark.parametrize("how", ["in one task", "in a TaskGroup"])
def test_what_another_task_did_to_an_audience_is_known_after_a_run_that_left_the_audience_out(
    sqlite, vip, mirror_many, context, state, how
):
    vip.create_audience("gold", "Gold")
    rows = [(each, audience) for each in MANY[:5] for audience in ("gold", "vip")]
    group = Group(state, sql="SELECT * FROM memberships", audience_column="audience_id", ledger="x")

    def sync(*more, **arguments):
        sqlite.fill_pairs([*rows, *more])
        if how == "in one task":
            return mirror_many(ledger="x", audience_name_column=None, **arguments)
        return group.end(*group.plan(None, **arguments))

    sync()
    SyncAudienceMembersOperator(
        task_id="other", audience_id="gold", add=["guest"], remove=MANY[:1], state_uri=str(state)
    ).execute(context)
    sqlite.fill_pairs([])
    rows, both = [row for row in rows if row[1] == "vip"], rows
    sync(("new", "vip"), audiences=["vip"])
    rows = both
    sync(("new", "vip"))
    assert vip.members("gold") == set(MANY[:5])
    assert sync(("new", "vip"))["sent"] == 0


def test_a_state_uri_that_was_moved_is_named_until_its_pointer_is_deleted(
    sqlite, vip, mirror, context, state, tmp_path, caplog
):
    warning = f"Another task's state URI has no ledgers any more: {state}\n"

    def remove():
        caplog.clear()
        SyncAudienceMembersOperator(task_id="drop", audience_id="vip", remove=MANY[:2]).execute(context)

    sqlite.fill(MANY)
    mirror()
    remove()
    assert "state URI" not in caplog.text
    state.rename(tmp_path / "moved")
    remove()
    assert warning in caplog.text
    (pointer,) = (tmp_path / "ledgers").glob("*/elsewhere/*.json")
    assert f"Delete the pointer to the old place: {pointer}" in caplog.text
    pointer.unlink()
    mirror(state_uri=str(tmp_path / "moved"), send="all")
    assert vip.members("vip") == set(MANY)
    remove()
    assert "state URI" not in caplog.text
    assert mirror(state_uri=str(tmp_path / "moved"))["sent"] == 2
