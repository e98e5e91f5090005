"""Create, rename and delete audiences."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, Literal

from airflow.providers.common.compat.sdk import Context

from airflow_provider_talon_cdp.connection_form import DEFAULT_CONN_ID
from airflow_provider_talon_cdp.contract import check_audience_id, check_choice, check_text
from airflow_provider_talon_cdp.exceptions import (
    AudienceExistsError,
    InvalidInputError,
    LedgerError,
    NotFoundError,
)
from airflow_provider_talon_cdp.operators._arguments import check_literals, check_rendered
from airflow_provider_talon_cdp.operators._fields import TextFieldsOperator, ends_retries
from airflow_provider_talon_cdp.operators._state import (
    check_state_uri,
    common_state,
    identity_of,
    outside_changes,
    storage,
)

IfExists = Literal["fail", "skip", "update"]
IfMissing = Literal["fail", "skip"]


class CreateAudienceOperator(TextFieldsOperator):
    """Create an audience.

    Since Talon.One 26.13 (July 2026) an audience is connected to Applications, and this API has no field for
    that: connect a new audience in the Campaign Manager, so that campaigns can use it.

    Args:
        audience_id: ID of the audience in the CDP, 1 to 1000 characters; Talon.One calls it the integration
            ID.
        audience_name: Name in the Campaign Manager, 1 to 1000 characters.
        if_exists: What to do if the ID exists already: ``fail``, ``skip`` (leave it as it is) or ``update``
            (rename it).
        state_uri: Folder of the ledgers, as in ``SqlToTalonAudienceOperator``: if the audience is created,
            mirrors that had members in it before send all of them again.
        talon_cdp_conn_id: Airflow connection.

    Returns:
        ``audience_id``, ``audience_name``, ``internal_id`` (an integer; None when skipped, as the API has
        no call to read it) and ``outcome`` (``created``, ``skipped`` or ``updated``).
    """

    template_fields: Sequence[str] = ("audience_id", "audience_name", "state_uri", "talon_cdp_conn_id")
    ui_color = "#e5ddff"

    def __init__(
        self,
        *,
        audience_id: str,
        audience_name: str,
        if_exists: IfExists = "fail",
        state_uri: str | None = None,
        talon_cdp_conn_id: str = DEFAULT_CONN_ID,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.audience_id = audience_id
        self.audience_name = audience_name
        self.if_exists = if_exists
        self.state_uri = state_uri
        self.talon_cdp_conn_id = talon_cdp_conn_id
        check_choice("if_exists", if_exists, IfExists)
        check_literals(partial(check_audience_id, id_type="external"), audience_id=audience_id)
        check_literals(check_state_uri, state_uri=state_uri)
        check_literals(check_text, audience_name=audience_name)

    @ends_retries
    def execute(self, context: Context) -> dict[str, Any]:
        """Create the audience; if it exists, do as ``if_exists`` says."""
        return self._create(context)

    def _create(self, context: Context) -> dict[str, Any]:
        check_audience_id("audience_id", check_rendered("audience_id", self.audience_id), "external")
        check_text("audience_name", check_rendered("audience_name", self.audience_name))
        internal_id, outcome = None, "skipped"
        try:
            # If Talon.One creates it, it did not exist, even if a ledger has members of it.
            with outside_changes(self, context).emptying(self.audience_id):
                internal_id = self.hook.create_audience(self.audience_id, self.audience_name).id
            outcome = "created"
        except AudienceExistsError as error:
            if self.if_exists == "fail":
                raise
            self.log.info("%s", error)
            if self.if_exists == "update":
                internal_id = self.hook.update_audience(self.audience_id, self.audience_name).id
                outcome = "updated"
        self.log.info("Audience %r: %s.", self.audience_id, outcome)
        if internal_id is not None:
            _note_internal_id(self, internal_id)
        if outcome == "created":
            self.log.info(
                "Connect it to your Applications in the Campaign Manager if campaigns should use it."
            )
        return _summary(self.audience_id, outcome, audience_name=self.audience_name, internal_id=internal_id)


class UpdateAudienceOperator(TextFieldsOperator):
    """Rename an audience.

    Args:
        audience_id: ID of the audience in the CDP.
        audience_name: New name in the Campaign Manager, 1 to 1000 characters.
        state_uri: Folder of the ledgers, as in ``SqlToTalonAudienceOperator``: tasks with the audience's
            internal ID find those of the external one.
        talon_cdp_conn_id: Airflow connection.

    Returns:
        ``audience_id``, ``audience_name``, ``internal_id`` and ``outcome`` (``updated``).
    """

    template_fields: Sequence[str] = ("audience_id", "audience_name", "state_uri", "talon_cdp_conn_id")
    ui_color = CreateAudienceOperator.ui_color

    def __init__(
        self,
        *,
        audience_id: str,
        audience_name: str,
        state_uri: str | None = None,
        talon_cdp_conn_id: str = DEFAULT_CONN_ID,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.audience_id = audience_id
        self.audience_name = audience_name
        self.state_uri = state_uri
        self.talon_cdp_conn_id = talon_cdp_conn_id
        check_literals(partial(check_audience_id, id_type="external"), audience_id=audience_id)
        check_literals(check_state_uri, state_uri=state_uri)
        check_literals(check_text, audience_name=audience_name)

    @ends_retries
    def execute(self, context: Context) -> dict[str, Any]:
        """Rename the audience."""
        check_rendered("audience_id", self.audience_id)
        check_rendered("audience_name", self.audience_name)
        check_state_uri("state_uri", self.state_uri)
        audience = self.hook.update_audience(self.audience_id, self.audience_name)
        _note_internal_id(self, audience.id)
        return _summary(
            self.audience_id, "updated", audience_name=self.audience_name, internal_id=audience.id
        )


class DeleteAudienceOperator(TextFieldsOperator):
    """Delete an audience and its memberships.

    Args:
        audience_id: ID of the audience in the CDP.
        if_missing: What to do if the audience does not exist: ``fail`` or ``skip``; a wrong deployment
            host on the connection fails in any case.
        state_uri: Folder of the ledgers, as in ``SqlToTalonAudienceOperator``: mirrors of this audience
            learn of the deletion, so that their next run sends all members again.
        talon_cdp_conn_id: Airflow connection.

    Returns:
        ``audience_id`` and ``outcome`` (``deleted`` or ``skipped``).
    """

    template_fields: Sequence[str] = ("audience_id", "state_uri", "talon_cdp_conn_id")
    ui_color = CreateAudienceOperator.ui_color

    def __init__(
        self,
        *,
        audience_id: str,
        if_missing: IfMissing = "fail",
        state_uri: str | None = None,
        talon_cdp_conn_id: str = DEFAULT_CONN_ID,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.audience_id = audience_id
        self.if_missing = if_missing
        self.state_uri = state_uri
        self.talon_cdp_conn_id = talon_cdp_conn_id
        check_choice("if_missing", if_missing, IfMissing)
        check_literals(partial(check_audience_id, id_type="external"), audience_id=audience_id)
        check_literals(check_state_uri, state_uri=state_uri)

    @ends_retries
    def execute(self, context: Context) -> dict[str, Any]:
        """Delete the audience."""
        check_audience_id("audience_id", check_rendered("audience_id", self.audience_id), "external")
        outcome = "deleted"
        try:
            with outside_changes(self, context).emptying(self.audience_id):
                self.hook.delete_audience(self.audience_id)
        except NotFoundError:
            if self.if_missing == "fail":
                raise
            # Talon.One gives the same response if the deployment does not exist.
            self.hook.check_deployment()
            outcome = "skipped"
        self.log.info("Audience %r: %s.", self.audience_id, outcome)
        return _summary(self.audience_id, outcome)


def _note_internal_id(operator: CreateAudienceOperator | UpdateAudienceOperator, internal_id: int) -> None:
    """Note the internal ID of an operator's audience, so that tasks with either ID find its ledgers."""
    from airflow_provider_talon_cdp.ledger.outside import Registry  # noqa: PLC0415

    identity = identity_of(operator.hook, "")
    try:
        own = check_state_uri("state_uri", operator.state_uri)
        for state in filter(None, (own and storage("state URI", own), common_state(None))):
            Registry(state, identity, "external").note_internal_ids({operator.audience_id: internal_id})
    except (InvalidInputError, LedgerError) as error:
        operator.log.info(
            "Tasks with this audience's internal ID will not find its ledgers of the external ID.\n%s",
            error,
        )


def _summary(audience_id: str, outcome: str, **more: Any) -> dict[str, Any]:
    return {"audience_id": audience_id, "outcome": outcome, **more}
