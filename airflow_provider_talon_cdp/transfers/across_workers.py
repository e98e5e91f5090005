"""Syncs that spread over Airflow's workers: one task plans, several push, one commits."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from airflow.providers.common.compat.sdk import BaseOperator, Context, TaskGroup

from airflow_provider_talon_cdp.arguments import check_sync_limits
from airflow_provider_talon_cdp.exceptions import InvalidInputError
from airflow_provider_talon_cdp.hooks.talon_cdp import TalonCdpHook
from airflow_provider_talon_cdp.ledgered import LedgerOperator, storage
from airflow_provider_talon_cdp.ledgers.files import FilesLedger
from airflow_provider_talon_cdp.ledgers.shared import commit, pushing_parts
from airflow_provider_talon_cdp.sync.memberships import Memberships
from airflow_provider_talon_cdp.sync.mirror import Mirror
from airflow_provider_talon_cdp.sync.profile_push import CHANGED
from airflow_provider_talon_cdp.sync.push_plan import push_share, whole
from airflow_provider_talon_cdp.sync.report import SyncReport
from airflow_provider_talon_cdp.sync.resume import Cursor
from airflow_provider_talon_cdp.sync.run import fail_if_rejected
from airflow_provider_talon_cdp.transfers.sql_to_audience import SqlToTalonAudienceOperator
from airflow_provider_talon_cdp.transfers.sql_to_profiles import SqlToTalonProfilesOperator


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
        ``retries`` and ``throttled`` are those of tries that were not killed.
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
            task_id="push", in_flight=in_flight, **how, **_at_once(workers, pool)
        )
        _connect(plan, push, max_rejected, talon_cdp_conn_id)
    return group


class _PlanOperator(LedgerOperator):
    """Plans for other tasks to push, where its base would plan and send.

    Args:
        workers: Shares of the plan at the most.
        kwargs: Those of its base.
    """

    def __init__(self, *, workers: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.workers = workers

    def execute(self, context: Context) -> Any:
        """Plan, and return the shares; the XCom ``planned`` is for ``CommitPlanOperator``."""
        began = time.time()
        report = super().execute(context)
        plan = report.pop("plan", None)
        context["ti"].xcom_push("planned", {"report": report, "plan": plan, "began": began})
        return _shares(plan, self.workers) if plan else []

    def run_mirror(self, mirror: Mirror, owner: str, cursor: Cursor | None = None) -> dict[str, Any]:
        """Plan, and say where the plan is."""
        report = mirror.hand_over(owner)
        ledger = mirror.ledger
        if not report.unsent or not isinstance(ledger, FilesLedger):
            return report.summary()
        plan = {
            "name": ledger.plan,
            "parts": ledger.parts,
            "ledger": ledger.identity["name"],
            "one_per_profile": ledger.one_per_profile,
            "state_uri": self.where_state_is(),
            "owner": owner,
        }
        return report.summary() | {"plan": plan}


class PlanAudienceOperator(_PlanOperator, SqlToTalonAudienceOperator):
    """The task ``plan`` of ``talon_audience_sync``."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(mode="mirror", **kwargs)


class PlanProfilesOperator(_PlanOperator, SqlToTalonProfilesOperator):
    """The task ``plan`` of ``talon_profiles_sync``."""


class PushMembersOperator(BaseOperator):
    """The task ``push`` of ``talon_audience_sync``: sends a share of a plan; again, what is left of it.

    Args:
        share: One of what the planning task returned.
        in_flight: Requests in flight at the most.
        talon_cdp_conn_id: Airflow connection of Talon.One.

    Returns:
        The counts of this try, in which ``resumed = sent + rejected``.
    """

    template_fields: Sequence[str] = ("share", "talon_cdp_conn_id")
    ui_color = SqlToTalonAudienceOperator.ui_color

    def __init__(
        self, *, share: Mapping[str, Any], in_flight: int, talon_cdp_conn_id: str, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.share = share
        self.in_flight = in_flight
        self.talon_cdp_conn_id = talon_cdp_conn_id

    def execute(self, context: Context) -> dict[str, Any]:
        """Send."""
        hook = TalonCdpHook(self.talon_cdp_conn_id)
        plan = self.share["plan"]
        with pushing_parts(_ledger(hook, plan), plan["owner"], plan["name"], self.share["parts"]) as share:
            self.log.info("%s changes are left in this share of the plan.", f"{share.changes:,}")
            report = push_share(
                share,
                share.batches(),
                kind=Memberships(),
                sender=lambda: hook.members_sender(in_flight=self.in_flight, senders=self.share["of"]),
                in_flight=self.in_flight,
            )
        self.log.info("Done: %s", report)
        return report.summary()


class PushProfilesOperator(SqlToTalonProfilesOperator):
    """The task ``push`` of ``talon_profiles_sync``: sends a share of a plan; again, what is left of it.

    Args:
        share: One of what the planning task returned.
        kwargs: Those of the planning task.

    Returns:
        The counts of this try, in which ``resumed = sent + rejected``.
    """

    template_fields: Sequence[str] = ("share", *SqlToTalonProfilesOperator.template_fields)

    def __init__(self, *, share: Mapping[str, Any], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.share = share

    def execute(self, context: Context) -> dict[str, Any]:
        """Read the query again, and send."""
        hook = TalonCdpHook(self.talon_cdp_conn_id)
        plan = self.share["plan"]
        mirror = self.mirror(hook, senders=self.share["of"])
        ledger = _ledger(hook, plan)
        with pushing_parts(ledger, plan["owner"], plan["name"], self.share["parts"]) as share:
            self.log.info("%s profiles are left in this share of the plan.", f"{share.changes:,}")
            report = push_share(
                share,
                self.attributes_kind().reread(share.batches(), mirror.source(), ledger.names),
                kind=mirror.kind,
                sender=mirror.sender,
                in_flight=self.in_flight,
            )
        self.log.info("Done: %s", report)
        return report.summary()


class CommitPlanOperator(BaseOperator):
    """The task ``commit`` of both groups: looks whether all of a plan is in, and reports.

    Args:
        planned: The planning task's XCom ``planned``.
        pushed: What the pushing tasks returned.
        max_rejected: How many records may be refused before this fails. None for any number.
        talon_cdp_conn_id: Airflow connection of Talon.One.

    Returns:
        The counts of the whole sync.
    """

    template_fields: Sequence[str] = ("planned", "pushed", "talon_cdp_conn_id")

    def __init__(
        self,
        *,
        planned: Mapping[str, Any],
        pushed: Iterable[Mapping[str, Any]] | None,
        max_rejected: int | None,
        talon_cdp_conn_id: str,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.planned = planned
        self.pushed = pushed
        self.max_rejected = max_rejected
        self.talon_cdp_conn_id = talon_cdp_conn_id

    def execute(self, context: Context) -> dict[str, Any]:
        """Look, and report."""
        report = SyncReport(**self.planned["report"])
        if plan := self.planned["plan"]:
            outcome = commit(_ledger(TalonCdpHook(self.talon_cdp_conn_id), plan), plan["owner"], plan["name"])
            pushed = [each for each in self.pushed or () if each]
            report = whole(report, outcome, pushed, time.time() - self.planned["began"])
        self.log.info("Done: %s", report)
        fail_if_rejected(report, self.max_rejected, excused=CHANGED)
        return report.summary()


def _check(
    given: Mapping[str, Any], *own: str, workers: int, max_rejected: int | None, in_flight: int
) -> None:
    check_sync_limits(max_rejected=max_rejected, in_flight=in_flight, workers=workers)
    for name in ("task_id", *own):
        if name in given:
            raise InvalidInputError(f"{name} is the group's own: take it out.")


def _at_once(workers: int, pool: str | None) -> dict[str, Any]:
    return {"max_active_tis_per_dagrun": workers} | ({} if pool is None else {"pool": pool})


def _connect(plan: _PlanOperator, push: Any, max_rejected: int | None, talon_cdp_conn_id: str) -> None:
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


def _shares(plan: Mapping[str, Any], workers: int) -> list[dict[str, Any]]:
    """Divide a plan; its parts are equal, but for the last."""
    count = min(workers, plan["parts"])
    return [
        {"plan": plan, "parts": list(range(first, plan["parts"], count)), "of": count}
        for first in range(count)
    ]


def _ledger(hook: TalonCdpHook, plan: Mapping[str, Any]) -> FilesLedger:
    settings = hook.settings
    return FilesLedger(
        storage("state URI", plan["state_uri"]),
        deployment_host=settings.deployment_host,
        base_url=settings.base_url,
        name=plan["ledger"],
        one_per_profile=plan["one_per_profile"],
    )
