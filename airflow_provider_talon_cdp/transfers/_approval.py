"""The task in which a person approves a plan, on Airflow 3.1 and newer."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from airflow.providers.common.compat.sdk import AirflowFailException, Context
from airflow.providers.standard.exceptions import HITLRejectException, HITLTimeoutError
from airflow.providers.standard.operators.hitl import ApprovalOperator

from airflow_provider_talon_cdp.connection_form import DEFAULT_CONN_ID
from airflow_provider_talon_cdp.exceptions import LedgerError, LedgerUnavailableError, TransientError
from airflow_provider_talon_cdp.operators._fields import ends_retries, open_hook
from airflow_provider_talon_cdp.operators._state import run_facts
from airflow_provider_talon_cdp.transfers.across_workers import ledger_of

if TYPE_CHECKING:
    from airflow_provider_talon_cdp.hooks.talon_cdp import TalonCdpHook

# Key of the XCom with the name of the plan that a person was asked about.
_ASKED = "talon_cdp_asked"
_SECONDS_OF_ATTEMPTS = 600.0
_SECONDS_BETWEEN_ATTEMPTS = 5.0


class PlanRejectedError(HITLRejectException, AirflowFailException):
    """A person rejected the plan, and ``fail_on_reject`` is set. A retry would ask again."""


class PlanTimeoutError(HITLTimeoutError, AirflowFailException):
    """Nobody answered within ``response_timeout``. A retry would ask again."""


class ApprovePlanOperator(ApprovalOperator):
    """The task ``approve`` of both groups: waits until a person approves the plan, if that is needed.

    It creates the audiences of the plan that do not exist. A rejected plan cannot be pushed any more. With
    ``asks_always`` a plan needs approval even if the guard lets it pass.
    """

    template_fields: Collection[str] = ("planned", "talon_cdp_conn_id", *ApprovalOperator.template_fields)

    def __init__(
        self,
        *,
        planned: Mapping[str, Any],
        asks_always: bool,
        talon_cdp_conn_id: str = DEFAULT_CONN_ID,
        **kwargs: Any,
    ) -> None:
        super().__init__(subject="May this plan be sent to Talon.One?", **kwargs)
        self.planned = planned
        self.asks_always = asks_always
        self.talon_cdp_conn_id = talon_cdp_conn_id

    @ends_retries
    def execute(self, context: Context) -> Any:
        """Ask for approval, unless there is nothing to send or the guard lets the plan pass."""
        if not self.planned["plan"]:
            self.log.info("There is nothing to send, so no approval is needed.")
            return None
        if not self.asks_always and self.planned["report"]["verdict"] is None:
            self.log.info("The guard lets the plan pass, so no approval is needed.")
            self._decide(approved=True)
            return None
        self.body = self.planned["question"]
        context["ti"].xcom_push(_ASKED, self.planned["plan"]["name"])
        return super().execute(context)

    @ends_retries
    def execute_complete(self, context: Context, event: dict[str, Any]) -> Any:
        """Continue if approved, else skip the rest of the group, but not tasks downstream of the group."""
        try:
            answer = super(ApprovalOperator, self).execute_complete(context, event)
        except HITLTimeoutError as error:
            raise PlanTimeoutError(
                "Nobody answered within response_timeout. Nothing was sent.\n"
                "Clear the task that plans (plan) to ask again. The next run plans anew."
            ) from error
        approved = answer["chosen_options"] == [self.APPROVE]
        self._refuse_other_plan(context)
        self._decide(approved=approved)
        if approved:
            self.log.info("Approved: exactly this plan is pushed.")
            return answer
        self.log.warning("Rejected. Nothing more is sent, and the next run plans anew.")
        if self.fail_on_reject:
            raise PlanRejectedError("The plan was rejected, and fail_on_reject is set.")
        group = self.task_group
        rest = [
            task
            for task in context["task"].get_flat_relatives(upstream=False)
            if group is not None
            and task.task_group is not None
            and task.task_group.group_id == group.group_id
        ]
        self.skip(ti=context["ti"], tasks=rest)
        return answer

    def _refuse_other_plan(self, context: Context) -> None:
        """Raise an error if the answer is about another plan: ``planned`` is rendered anew for the answer."""
        instance: Any = context["ti"]
        asked = instance.xcom_pull(task_ids=instance.task_id, map_indexes=instance.map_index, key=_ASKED)
        plan = self.planned["plan"]
        # An earlier version of this package may have asked, without this XCom.
        if plan is None or (asked or plan["name"]) != plan["name"]:
            raise LedgerError(
                "This DAG run has planned again since this question was asked. Nothing was sent.\n"
                "Clear the task that plans (plan), and all after it, to ask about a new plan."
            )

    def _decide(self, *, approved: bool) -> None:
        """Carry out the answer; after a passing failure again, as a retry of the task would ask again."""
        limit = time.monotonic() + _SECONDS_OF_ATTEMPTS
        while True:
            try:
                decide(open_hook(self.talon_cdp_conn_id), self.planned["plan"], approved=approved)
            except (LedgerUnavailableError, TransientError) as error:
                if time.monotonic() >= limit:
                    raise
                self.log.warning("The decision could not be applied yet; trying again: %s", error)
                time.sleep(_SECONDS_BETWEEN_ATTEMPTS)
            else:
                return


def decide(hook: TalonCdpHook, plan: Mapping[str, Any], *, approved: bool) -> None:
    """Create the audiences of an approved plan that do not exist, or note that the plan was rejected.

    Raises:
        LedgerError: The plan was replaced or made for another API key, or another run uses the ledger.
        RequestError: An audience could not be created.
    """
    from airflow_provider_talon_cdp.changes.counts import Counts  # noqa: PLC0415
    from airflow_provider_talon_cdp.sync.audiences import Audiences  # noqa: PLC0415

    ledger, names = ledger_of(hook, plan), plan["missing"]
    ledger.load()
    if not approved and ledger.plan == plan["name"] and ledger.facts.rejected:
        # An earlier attempt noted it, and then failed.
        return
    with ledger.deciding(plan["owner"], plan["name"], run_facts(hook)):
        if not approved:
            ledger.reject_plan()
            return
        audiences = Audiences(names=names, state_uri=plan["state_uri"])
        audiences.check(ledger, Counts(additions=Counter(names.keys())), {}, hook.members_sender, Counts())
        facts = replace(ledger.facts, data_until=plan["data_until"], audiences=audiences.known)
        ledger.remember(replace(facts, awaits_approval=False))
