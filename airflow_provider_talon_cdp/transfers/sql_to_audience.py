"""Rows of a SQL query become members of Talon.One audiences."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import closing
from typing import Any, Literal

from airflow.providers.common.compat.sdk import BaseOperator, Context
from airflow.providers.common.sql.hooks.sql import DbApiHook

from airflow_provider_talon_cdp.arguments import (
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
from airflow_provider_talon_cdp.transfers.rows import sql_hook, stream_rows

Mode = Literal["add", "remove"]


class SqlToTalonAudienceOperator(BaseOperator):
    """Add the customer profiles that a query returns to an audience, or remove them from it.

    Rows are streamed: memory stays flat however many there are. They travel in requests of at most 1000 changes, many
    in flight, at the connection's rate. A profile that does not exist in Talon.One is created; it shows up in an
    Application after its first session or profile update there.

    Args:
        sql: One SELECT, or the path of a ``.sql`` template.
        sql_conn_id: Airflow connection of any SQL database.
        mode: ``add`` or ``remove``.
        audience_id: The one audience: its ID in the CDP (a string), or Talon.One's own number (an integer) with
            ``audience_id_type="internal"``.
        audience_column: Instead of ``audience_id``: the column that holds each row's audience ID.
        profile_id_column: The column of profile integration IDs: text of 1 to 1000 characters, integers or UUIDs.
        audience_id_type: ``external`` or ``internal``.
        parameters: Bind parameters of the query, in the driver's style.
        max_rejected: How many rows may be refused (null, empty, over-long, or refused by Talon.One) before the task
            fails; it fails after everything good was sent. None for any number.
        in_flight: Requests in flight at the most.
        talon_cdp_conn_id: Airflow connection of Talon.One.

    Returns:
        The counts of the sync: ``read``, ``sent``, ``duplicate``, ``rejected`` by reason, ``unsent`` (0), ``requests``,
        ``retries``, ``throttled`` and ``seconds``. Equal rows that are far apart may be sent twice, which changes
        nothing in Talon.One.
    """

    template_fields: Sequence[str] = (
        "sql",
        "sql_conn_id",
        "audience_id",
        "audience_column",
        "profile_id_column",
        "parameters",
        "talon_cdp_conn_id",
    )
    template_ext: Sequence[str] = (".sql",)
    template_fields_renderers = {"sql": "sql", "parameters": "json"}  # noqa: RUF012
    ui_color = "#d9f5e3"

    def __init__(
        self,
        *,
        sql: str,
        sql_conn_id: str,
        mode: Mode,
        audience_id: str | int | None = None,
        audience_column: str | None = None,
        profile_id_column: str = "profile_id",
        audience_id_type: AudienceIdType = "external",
        parameters: Any = None,
        max_rejected: int | None = 0,
        in_flight: int = 64,
        talon_cdp_conn_id: str = TalonCdpHook.default_conn_name,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.sql = sql
        self.sql_conn_id = sql_conn_id
        self.mode = mode
        self.audience_id = audience_id
        self.audience_column = audience_column
        self.profile_id_column = profile_id_column
        self.audience_id_type = audience_id_type
        self.parameters = parameters
        self.max_rejected = max_rejected
        self.in_flight = in_flight
        self.talon_cdp_conn_id = talon_cdp_conn_id
        check_choice("mode", mode, Mode)
        check_choice("audience_id_type", audience_id_type, AudienceIdType)
        check_sync_limits(max_rejected=max_rejected, in_flight=in_flight)
        check_literals(self._check_sql, sql=sql)
        if (audience_id is None) == (audience_column is None):
            raise InvalidInputError(
                "Give either audience_id (one audience) or audience_column (one for each row)."
            )
        if audience_id is not None:
            check_literals(
                lambda name, value: audience_id_of(name, value, audience_id_type), audience_id=audience_id
            )

    def execute(self, context: Context) -> dict[str, Any]:
        """Stream the query's rows to Talon.One."""
        self._check_sql("sql", self.sql)
        source = sql_hook(self.sql_conn_id)
        hook = TalonCdpHook(self.talon_cdp_conn_id)
        sender = hook.members_sender(audience_id_type=self.audience_id_type, in_flight=self.in_flight)
        report = run_sync(
            self._records(source), sender, in_flight=self.in_flight, max_rejected=self.max_rejected
        )
        if not report.read:
            self.log.warning("The query returned no rows, so nothing was sent.")
        return report.summary()

    def _records(self, source: DbApiHook) -> Generator[Change | Rejection, None, None]:
        action: Action = self.mode
        id_type = self.audience_id_type
        columns = [self.profile_id_column, *([self.audience_column] if self.audience_column else [])]
        one = None if self.audience_column else audience_id_of("audience_id", self.audience_id, id_type)
        with closing(stream_rows(source, self.sql, columns, self.parameters)) as rows:
            for row in rows:
                yield read_change(row[0], row[1] if one is None else one, action, id_type)

    @staticmethod
    def _check_sql(name: str, value: object) -> None:
        if not isinstance(value, str) or not value.strip().rstrip(";"):
            raise InvalidInputError(
                f"{name} must be one SELECT statement, but is {type(value).__name__} or empty."
            )
