"""The public names as a type checker sees them: mypy reads this file and nothing runs it.

A signature that a DAG's author may type is used here. Where one must be refused, a comment ignores the error,
and mypy tells when there is no error any more. A change that makes mypy fail here breaks somebody's DAG: say
so in the changelog.
"""

from __future__ import annotations

from typing import Any, assert_type

import requests
from airflow.providers.common.compat.sdk import Context, TaskGroup, XComArg

import airflow_provider_talon_cdp as provider
from airflow_provider_talon_cdp.hooks.talon_cdp import TalonCdpHook
from airflow_provider_talon_cdp.operators.audience import (
    CreateAudienceOperator,
    DeleteAudienceOperator,
    UpdateAudienceOperator,
)
from airflow_provider_talon_cdp.operators.members import SyncAudienceMembersOperator
from airflow_provider_talon_cdp.operators.profile import UpdateProfileAudiencesOperator, UpdateProfileOperator
from airflow_provider_talon_cdp.transfers.across_workers import talon_audience_sync, talon_profiles_sync
from airflow_provider_talon_cdp.transfers.sql_to_audience import SqlToTalonAudienceOperator
from airflow_provider_talon_cdp.transfers.sql_to_profiles import SqlToTalonProfilesOperator


def the_packages_own_names() -> None:
    assert_type(provider.TalonCdpHook(), TalonCdpHook)
    assert_type(provider.__version__, str)


def the_hook() -> None:
    hook = TalonCdpHook(talon_cdp_conn_id="talon_cdp_default")
    assert_type(hook.get_conn(), requests.Session)
    assert_type(hook.test_connection(), tuple[bool, str])
    assert_type(TalonCdpHook.conn_name_attr, str)
    hook.create_audience("vip", "VIP")
    hook.update_audience("vip", "VIP")
    hook.delete_audience("vip")
    hook.update_customer_profile(
        "anna", attributes={"Tier": "gold"}, run_rule_engine=True, add_audiences=[17]
    )
    hook.update_customer_profile_audiences("anna", add_audiences=["vip"], remove_audiences=["new"])
    hook.update_customer_profiles_audiences([("anna", ["vip"], ["new"])])
    hook.update_customer_profiles_audiences([("anna", [17], [])], audience_id_type="internal")
    hook.update_customer_profiles_audiences([], audience_id_type="neither")  # type: ignore[arg-type]
    hook.create_audience("vip")  # type: ignore[call-arg]


def audiences(context: Context) -> None:
    create = CreateAudienceOperator(
        task_id="create",
        audience_id="vip",
        audience_name="VIP",
        if_exists="update",
        talon_cdp_conn_id="talon_cdp_default",
        retries=3,
    )
    assert_type(create.execute(context), dict[str, Any])
    update = UpdateAudienceOperator(task_id="update", audience_id="vip", audience_name="Best", state_uri="/x")
    assert_type(update.execute(context), dict[str, Any])
    delete = DeleteAudienceOperator(task_id="delete", audience_id="vip", if_missing="skip")
    assert_type(delete.execute(context), dict[str, Any])

    CreateAudienceOperator("create", audience_id="vip", audience_name="VIP")  # type: ignore[misc]
    CreateAudienceOperator(task_id="create", audience_id="vip")  # type: ignore[call-arg]
    CreateAudienceOperator(
        task_id="create",
        audience_id="vip",
        audience_name="VIP",
        if_exists="replace",  # type: ignore[arg-type]
    )
    DeleteAudienceOperator(task_id="delete", audience_id="vip", if_missing="create")  # type: ignore[arg-type]


def profiles(context: Context) -> None:
    profile = UpdateProfileOperator(
        task_id="profile",
        customer_profile_id="anna",
        attributes={"Tier": "gold"},
        run_rule_engine=True,
        add_audiences=[17],
        remove_audiences=[18],
        skip_unknown_attributes=True,
    )
    assert_type(profile.execute(context), dict[str, Any])
    UpdateProfileOperator(task_id="profile", customer_profile_id="anna", add_audiences=["vip"])  # type: ignore[list-item]
    memberships = UpdateProfileAudiencesOperator(
        task_id="memberships", customer_profile_id="anna", add_audiences=["vip"], remove_audiences=["new"]
    )
    assert_type(memberships.execute(context), dict[str, Any])


def members(context: Context) -> None:
    listed = SyncAudienceMembersOperator(task_id="add", audience_id="vip", add=["anna"], remove=["bert"])
    assert_type(listed.execute(context), dict[str, Any])
    SyncAudienceMembersOperator(task_id="sync", audience_id="vip", members=["anna"], mode="mirror")
    SyncAudienceMembersOperator(
        task_id="sync", audience_id="vip", members=["anna"], mode="mirror", rules="changes"
    )
    SyncAudienceMembersOperator(task_id="sync", audience_id="vip", members=[], mode="add")  # type: ignore[arg-type]


def results_of_other_tasks(listed: XComArg, mapping: XComArg) -> None:
    SyncAudienceMembersOperator(task_id="add", audience_id="vip", add=listed, remove=listed)
    mirror = SyncAudienceMembersOperator(task_id="sync", audience_id="vip", members=listed, mode="mirror")
    SyncAudienceMembersOperator(task_id="add", audience_id="vip", add=mirror.output)
    UpdateProfileOperator(
        task_id="profile",
        customer_profile_id="anna",
        attributes=mapping,
        types=mapping,
        add_audiences=listed,
        remove_audiences=listed,
    )
    UpdateProfileAudiencesOperator(
        task_id="memberships", customer_profile_id="anna", add_audiences=listed, remove_audiences=listed
    )
    SqlToTalonAudienceOperator(
        task_id="many",
        sql="SELECT 1",
        sql_conn_id="warehouse",
        mode="mirror",
        audience_column="audience_id",
        audiences=listed,
        hook_params=mapping,
    )
    SqlToTalonProfilesOperator(
        task_id="profiles", sql="SELECT 1", sql_conn_id="warehouse", attributes=listed, types=mapping
    )


def from_sql(context: Context) -> None:
    one = SqlToTalonAudienceOperator(
        task_id="one", sql="SELECT 1", sql_conn_id="warehouse", audience_id="vip", mode="mirror", dry_run=True
    )
    assert_type(one.execute(context), dict[str, Any])
    SqlToTalonAudienceOperator(
        task_id="many",
        sql="SELECT 1",
        sql_conn_id="warehouse",
        audience_column="audience_id",
        audience_name_column="audience_name",
        profile_id_column="profile_id",
        parameters={"country": "DE"},
        mode="add",
    )
    SqlToTalonAudienceOperator(task_id="t", sql="", sql_conn_id="w", mode="replace")  # type: ignore[arg-type]
    SqlToTalonAudienceOperator(task_id="t", sql="", sql_conn_id="w")  # type: ignore[call-arg]

    rows = SqlToTalonProfilesOperator(
        task_id="profiles",
        sql="SELECT 1",
        sql_conn_id="warehouse",
        profile_id_column="id",
        attributes={"tier": "Tier"},
        types={"Tier": "string"},
        nulls="delete",
        ledger="people",
    )
    assert_type(rows.execute(context), dict[str, Any])


def across_workers() -> None:
    audience = talon_audience_sync(
        "audience", workers=8, pool="talon", sql="SELECT 1", sql_conn_id="warehouse", audience_id="vip"
    )
    assert_type(audience, TaskGroup)
    people = talon_profiles_sync("people", sql="SELECT 1", sql_conn_id="warehouse", ledger="people")
    assert_type(people, TaskGroup)
    talon_audience_sync("audience", approval="beyond_guard")
    talon_audience_sync("audience", approval="sometimes")  # type: ignore[arg-type]
    talon_audience_sync("audience", workers="8")  # type: ignore[arg-type]
