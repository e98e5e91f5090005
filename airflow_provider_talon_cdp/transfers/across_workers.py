"""Syncs that spread over Airflow's workers: one task plans, several push, one commits."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from airflow.providers.common.compat.sdk import TaskGroup

from airflow_provider_talon_cdp.exceptions import InvalidInputError
from airflow_provider_talon_cdp.hooks.talon_cdp import TalonCdpHook
from airflow_provider_talon_cdp.operators._arguments import check_sync_limits
from airflow_provider_talon_cdp.transfers.group_tasks import (
    CommitPlanOperator,
    PlanAudienceOperator,
    PlanProfilesOperator,
    PushMembersOperator,
    PushProfilesOperator,
)


def talon_audience_sync(
    group_id: str,
    *,
    workers: int = 4,
    pool: str | None = None,
    default_args: Mapping[str, Any] | None = None,
    max_rejected: int | None = 0,
    in_flight: int = 64,
    talon_cdp_conn_id: str = TalonCdpHook.default_conn_name,
    **mirror: Any,
) -> TaskGroup:
    """Keep an audience, or many, equal to a query, with several tasks that send at once.

    The group has three tasks. ``plan`` reads the query, compares, asks the guard and writes the plan under the state URI, which
    all workers must reach. ``push`` is mapped: each instance sends a share of the plan, at its share of the connection's rate,
    and notes on its own what was acknowledged; one that fails or is cleared sends what is left of its share. ``commit``
    fails unless all is in, and returns the report of the whole. Where nothing is to be sent, ``push`` is skipped.

    Args:
        group_id: The group's ID.
        workers: Instances of ``push`` at the most, all at once. A plan has one for each 100,000 changes, up to so many.
        pool: Pool of ``push``; with fewer slots than ``workers`` the rate is not used up.
        default_args: For all tasks of the group, such as ``retries``.
        max_rejected: How many records may be refused before ``commit`` fails. None for any number.
        in_flight: Requests in flight at the most, of each instance.
        talon_cdp_conn_id: Airflow connection of Talon.One.
        mirror: Other arguments of ``SqlToTalonAudienceOperator``, but for ``task_id`` and ``mode``.

    Returns:
        The group. The XCom of its task ``commit`` is a report like that of ``SqlToTalonAudienceOperator``; its ``requests``,
        ``retries`` and ``throttled`` are those of the last try of each task.
    """
    _check(mirror, "mode", workers=workers, max_rejected=max_rejected, in_flight=in_flight)
    given: Any = dict(default_args or {})
    with TaskGroup(group_id, default_args=given) as group:
        plan = PlanAudienceOperator(
            task_id="plan", workers=workers, talon_cdp_conn_id=talon_cdp_conn_id, **mirror
        )
        push = PushMembersOperator.partial(
            task_id="push",
            in_flight=in_flight,
            max_rejected=max_rejected,
            talon_cdp_conn_id=talon_cdp_conn_id,
            **_at_once(workers, pool),
        )
        _connect(plan, push, max_rejected, talon_cdp_conn_id)
    return group


def talon_profiles_sync(
    group_id: str,
    *,
    workers: int = 4,
    pool: str | None = None,
    default_args: Mapping[str, Any] | None = None,
    max_rejected: int | None = 0,
    in_flight: int = 64,
    talon_cdp_conn_id: str = TalonCdpHook.default_conn_name,
    **profiles: Any,
) -> TaskGroup:
    """Keep attributes of customer profiles equal to a query, with several tasks that send at once.

    As in ``talon_audience_sync``. The plan has no values in it, so each instance of ``push`` reads the query again, and sorts
    its rows on the worker's disk. A profile whose row is no longer what was planned is not sent: it is counted under
    ``rejected``, has a dead letter, does not count towards ``max_rejected``, and the next run sends it.

    Args:
        group_id: The group's ID.
        workers: As in ``talon_audience_sync``.
        pool: Likewise.
        default_args: Likewise.
        max_rejected: Likewise.
        in_flight: Likewise.
        talon_cdp_conn_id: Likewise.
        profiles: Other arguments of ``SqlToTalonProfilesOperator``, but for ``task_id``.

    Returns:
        The group; its task ``commit`` returns a report like that of ``SqlToTalonProfilesOperator``.
    """
    _check(profiles, workers=workers, max_rejected=max_rejected, in_flight=in_flight)
    given: Any = dict(default_args or {})
    # The ledger is named after the task that plans, in all of them.
    how = {"talon_cdp_conn_id": talon_cdp_conn_id, **profiles}
    with TaskGroup(group_id, default_args=given) as group:
        plan = PlanProfilesOperator(task_id="plan", workers=workers, **how)
        push = PushProfilesOperator.partial(
            task_id="push", in_flight=in_flight, max_rejected=max_rejected, **how, **_at_once(workers, pool)
        )
        _connect(plan, push, max_rejected, talon_cdp_conn_id)
    return group


def _check(
    given: Mapping[str, Any], *own: str, workers: int, max_rejected: int | None, in_flight: int
) -> None:
    check_sync_limits(max_rejected=max_rejected, in_flight=in_flight, workers=workers)
    for name in ("task_id", *own):
        if name in given:
            raise InvalidInputError(f"{name} is the group's own: take it out.")


def _at_once(workers: int, pool: str | None) -> dict[str, Any]:
    return {"max_active_tis_per_dagrun": workers} | ({} if pool is None else {"pool": pool})


def _connect(
    plan: PlanAudienceOperator | PlanProfilesOperator,
    push: Any,
    max_rejected: int | None,
    talon_cdp_conn_id: str,
) -> None:
    planned: Any = plan.output
    CommitPlanOperator(
        task_id="commit",
        planned=planned["planned"],
        pushed=push.expand(share=planned).output,
        max_rejected=max_rejected,
        talon_cdp_conn_id=talon_cdp_conn_id,
        # Without anything to push, that task is skipped.
        trigger_rule="none_failed",
    )
