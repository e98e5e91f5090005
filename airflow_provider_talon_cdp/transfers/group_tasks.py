"""The tasks of ``across_workers``'s groups."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from airflow.providers.common.compat.sdk import BaseOperator, Context

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
        max_rejected: Refused records that are no reason to give up, as in ``CommitPlanOperator``, which judges them all.
        talon_cdp_conn_id: Airflow connection of Talon.One.

    Returns:
        The counts of this try, in which ``resumed = sent + rejected``.
    """

    template_fields: Sequence[str] = ("share", "talon_cdp_conn_id")
    ui_color = SqlToTalonAudienceOperator.ui_color

    def __init__(
        self,
        *,
        share: Mapping[str, Any],
        in_flight: int,
        max_rejected: int | None,
        talon_cdp_conn_id: str,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.share = share
        self.in_flight = in_flight
        self.max_rejected = max_rejected
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
                max_rejected=self.max_rejected,
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
                max_rejected=self.max_rejected,
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
        # Of a dry run, nothing was sent that could have failed in part.
        if report.verdict is None:
            fail_if_rejected(report, self.max_rejected, excused=CHANGED)
        return report.summary()


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
