"""Add members to an audience and remove them, from lists that the DAG has at hand."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from airflow.providers.common.compat.sdk import BaseOperator, Context

from airflow_provider_talon_cdp.arguments import (
    as_list,
    audience_id_of,
    check_choice,
    check_literals,
    check_sync_limits,
)
from airflow_provider_talon_cdp.exceptions import InvalidInputError
from airflow_provider_talon_cdp.hooks.talon_cdp import TalonCdpHook
from airflow_provider_talon_cdp.ids import AudienceIdType
from airflow_provider_talon_cdp.sync.changes import Action, Change, Rejection, read_change
from airflow_provider_talon_cdp.sync.run import run_sync


class SyncAudienceMembersOperator(BaseOperator):
    """Add customer profiles to one audience and remove others from it.

    The lists may have any length and come from XCom (``other_task.output``) or from a template; they travel in
    requests of at most 1000 changes, many in flight. For more than some hundred thousand members read them from SQL
    with ``SqlToTalonAudienceOperator``, which streams. A profile that does not exist in Talon.One is created; it shows
    up in an Application after its first session or profile update there.

    Args:
        audience_id: The audience: its ID in the CDP (a string), or Talon.One's own number (an integer) with
            ``audience_id_type="internal"``.
        add: Integration IDs of the profiles to add: strings of 1 to 1000 characters, integers or UUIDs.
        remove: Integration IDs of the profiles to remove. A profile in both lists is an error.
        audience_id_type: ``external`` or ``internal``.
        max_rejected: How many IDs may be refused (null, empty, over-long, or refused by Talon.One) before the task
            fails; it fails after everything good was sent. None for any number.
        in_flight: Requests in flight at the most.
        talon_cdp_conn_id: Airflow connection.

    Returns:
        The counts of the sync: ``read``, ``sent``, ``duplicate``, ``rejected`` by reason, ``unsent`` (0), ``requests``,
        ``retries``, ``throttled`` and ``seconds``.
    """

    template_fields: Sequence[str] = ("audience_id", "add", "remove", "talon_cdp_conn_id")
    ui_color = "#d9f5e3"

    def __init__(
        self,
        *,
        audience_id: str | int,
        add: Sequence[Any] = (),
        remove: Sequence[Any] = (),
        audience_id_type: AudienceIdType = "external",
        max_rejected: int | None = 0,
        in_flight: int = 64,
        talon_cdp_conn_id: str = TalonCdpHook.default_conn_name,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.audience_id = audience_id
        self.add = add
        self.remove = remove
        self.audience_id_type = audience_id_type
        self.max_rejected = max_rejected
        self.in_flight = in_flight
        self.talon_cdp_conn_id = talon_cdp_conn_id
        check_choice("audience_id_type", audience_id_type, AudienceIdType)
        check_sync_limits(max_rejected=max_rejected, in_flight=in_flight)
        check_literals(
            lambda name, value: audience_id_of(name, value, audience_id_type), audience_id=audience_id
        )
        check_literals(as_list, add=add, remove=remove)

    def execute(self, context: Context) -> dict[str, Any]:
        """Send the changes."""
        records = list(self._records("add", self.add))
        removals = list(self._records("remove", self.remove))
        _refuse_overlap(records, removals)
        hook = TalonCdpHook(self.talon_cdp_conn_id)
        sender = hook.members_sender(audience_id_type=self.audience_id_type, in_flight=self.in_flight)
        report = run_sync(
            records + removals, sender, in_flight=self.in_flight, max_rejected=self.max_rejected
        )
        return report.summary()

    def _records(self, action: Action, ids: Any) -> Iterator[Change | Rejection]:
        audience_id = audience_id_of("audience_id", self.audience_id, self.audience_id_type)
        for profile_id in as_list(action, ids):
            yield read_change(profile_id, audience_id, action, self.audience_id_type)


def _refuse_overlap(adds: list[Change | Rejection], removes: list[Change | Rejection]) -> None:
    def profiles(records: list[Change | Rejection]) -> set[str]:
        return {each.profile_id for each in records if isinstance(each, Change)}

    both = len(profiles(adds) & profiles(removes))
    if both:
        raise InvalidInputError(
            f"{both:,} profile(s) stand in both add and remove. Nothing was sent; leave each in one list."
        )
