"""The task that has a person approve a plan, on Airflow 3.1 and newer."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import Any

from airflow.providers.common.compat.sdk import Context
from airflow.providers.standard.operators.hitl import ApprovalOperator


class ApprovePlanOperator(ApprovalOperator):
    """The task ``approve`` of both groups: waits for a person, where one is to be asked.

    Args:
        planned: The planning task's XCom ``planned``.
        asks_always: Whether a person is asked about a plan that the guard lets pass, too.
        kwargs: As in Airflow's ``ApprovalOperator``.
    """

    template_fields: Collection[str] = ("planned", *ApprovalOperator.template_fields)

    def __init__(self, *, planned: Mapping[str, Any], asks_always: bool, **kwargs: Any) -> None:
        super().__init__(subject="May this plan be sent to Talon.One?", **kwargs)
        self.planned = planned
        self.asks_always = asks_always

    def execute(self, context: Context) -> Any:
        """Ask, unless there is nothing to send or nothing to ask."""
        question = self.planned["question"]
        if not self.planned["plan"]:
            self.log.info("There is nothing to send, so nobody is asked.")
            return None
        if not self.asks_always and question["verdict"] is None:
            self.log.info("The guard lets the plan pass, so nobody is asked.")
            return None
        self.body = question_text(question)
        return super().execute(context)

    def execute_complete(self, context: Context, event: dict[str, Any]) -> Any:
        """Go on, or skip the rest of the group; what is downstream of the group has its own trigger rules."""
        answer = super(ApprovalOperator, self).execute_complete(context, event)
        if answer["chosen_options"] == [self.APPROVE]:
            self.log.info("Approved: exactly this plan is pushed.")
            return answer
        self.log.warning("Rejected. Nothing was sent, and the next run plans anew.")
        group = self.task_group
        rest = [
            each
            for each in context["task"].get_flat_relatives(upstream=False)
            if group is not None
            and each.task_group is not None
            and each.task_group.group_id == group.group_id
        ]
        self.skip(ti=context["ti"], tasks=rest)
        return answer


def question_text(question: Mapping[str, Any]) -> str:
    """Return the question about a plan, in Markdown."""
    lines = ["| audience | to add | to remove | members then |", "| --- | --: | --: | --: |"]
    for audience, numbers in question["audiences"].items():
        then = "" if numbers["members"] is None else f"{numbers['members']:,}"
        # An audience's ID is text of its own, and not Markdown.
        name = "".join(f"&#{ord(each)};" if not each.isalnum() else each for each in audience)
        lines.append(f"| {name} | {numbers['added']:,} | {numbers['removed']:,} | {then} |")
    if question["more"]:
        lines.append(f"| ... and {question['more']:,} more | | | |")
    minutes = math.ceil(question["minutes"])
    takes = "less than a minute" if question["minutes"] < 1 else f"about {minutes:,} minutes"
    lines += ["", f"{question['requests']:,} requests, {takes} at the connection's rate."]
    if question["verdict"]:
        lines += ["", "**The guard would refuse it:**", ""]
        lines += [f"    {line}" for line in question["verdict"].split("\n") if not line.startswith("If that")]
    lines += ["", "*Approve* sends exactly this plan. *Reject* sends nothing; the next run plans anew."]
    return "\n".join(lines)
