"""Rows of a SQL query become members of Talon.One audiences."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import closing
from typing import Any, Literal

from airflow.providers.common.compat.sdk import Context

from airflow_provider_talon_cdp.contract import check_external_id, check_text
from airflow_provider_talon_cdp.exceptions import InvalidInputError
from airflow_provider_talon_cdp.ledgers.files import ledger_name
from airflow_provider_talon_cdp.ledgers.naming import sync_ledger_name
from airflow_provider_talon_cdp.membership import MembershipOperator
from airflow_provider_talon_cdp.operators._arguments import (
    as_list,
    audience_id_of,
    check_choice,
    check_literals,
    check_rendered,
    check_sql,
)
from airflow_provider_talon_cdp.sync.changes import Action, Record, read_change, read_ids
from airflow_provider_talon_cdp.transfers._rows import SqlSource, sql_hook, stream_rows

Mode = Literal["mirror", "add", "remove"]


class SqlToTalonAudienceOperator(MembershipOperator):
    """Keep an audience equal to a query, or add the customer profiles that it returns, or remove them.

    Rows are streamed: memory stays flat however many there are. Changes travel in requests of at most 1000, many in
    flight, at the connection's rate. A profile that does not exist in Talon.One is created; it shows up in an
    Application after its first session or profile update there.

    A mirror sends only what changed since the last acknowledged run, which a ledger under ``state_uri`` remembers. It
    removes no member that it did not add itself, refuses to remove more than the guard allows, and after a crash the
    next try sends what is left; a try that ends green has made the audience equal to the query as that try read it.

    Args:
        sql: One SELECT, or the path of a ``.sql`` template.
        sql_conn_id: Airflow connection of any SQL database.
        mode: ``mirror``, ``add`` or ``remove``.
        audience_column: Instead of ``audience_id``: the column that holds each row's audience ID. A null or an empty text there
            stops a mirror before it sends anything; ``add`` and ``remove`` count the row as rejected.
        profile_id_column: The column of profile integration IDs: text of 1 to 1000 characters, integers or UUIDs.
        audiences: Mirror with ``audience_column``: the audiences that it manages. Without it, those that the query has
            or had in an earlier run; one that disappears from the query loses its members, if the guard allows it.
        audience_name_column: Mirror with ``audience_column``: the column that holds the name under which a missing
            audience is created.
        ledger: Mirror with ``audience_column``: name of the ledger. Default: the DAG's and the task's ID; a mapped task must
            name one for each of its instances.
        parameters: Bind parameters of the query, in the driver's style.
        kwargs: As in ``MembershipOperator``; its arguments for a mirror among them.

    Returns:
        The counts of the sync, in which ``read + removals + resumed = unchanged + sent + duplicate + rejected + unsent``:
        ``rejected`` by reason, ``unsent`` 0, ``resumed`` what an earlier try had left of its plan. And ``requests``,
        ``retries``, ``throttled``, ``seconds``, ``dead_letters`` (their folder), ``ledger_version`` and, of a dry run, the
        guard's ``verdict``; no member IDs.
    """

    template_fields: Sequence[str] = (
        "sql",
        "sql_conn_id",
        "audience_column",
        "audience_name_column",
        "audiences",
        "ledger",
        "parameters",
        "profile_id_column",
        *MembershipOperator.template_fields,
    )
    template_ext: Sequence[str] = (".sql",)
    template_fields_renderers = {"sql": "sql", "parameters": "json"}  # noqa: RUF012

    def __init__(
        self,
        *,
        sql: str,
        sql_conn_id: str,
        mode: Mode,
        audience_column: str | None = None,
        profile_id_column: str = "profile_id",
        audiences: Sequence[str] | None = None,
        audience_name_column: str | None = None,
        ledger: str | None = None,
        parameters: Any = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.sql = sql
        self.sql_conn_id = sql_conn_id
        self.mode = mode
        self.audience_column = audience_column
        self.profile_id_column = profile_id_column
        self.audiences = audiences
        self.audience_name_column = audience_name_column
        self.ledger = ledger
        self.parameters = parameters
        check_choice("mode", mode, Mode)
        check_literals(check_sql, sql=sql)
        if (self.audience_id is None) == (audience_column is None):
            raise InvalidInputError(
                "Give either audience_id (one audience) or audience_column (one for each row)."
            )
        if audiences is not None:
            check_literals(_external_ids, audiences=audiences)
        if mode == "mirror":
            self.check_mirror_arguments()
        else:
            self.refuse_mirror_arguments()
        self._refuse_misplaced()

    def execute(self, context: Context) -> dict[str, Any]:
        """Stream the query's rows to Talon.One."""
        check_sql("sql", self.sql)
        for name in ("profile_id_column", "audience_column", "audience_name_column", "ledger"):
            if getattr(self, name) is not None or name == "profile_id_column":
                check_text(name, check_rendered(name, getattr(self, name)))
        source = sql_hook(self.sql_conn_id)
        if self.mode != "mirror":
            return self.send_changes(self._records(source, self.mode, {}))
        names: dict[str, str] = {}
        if self.audience_column is None:
            audience = check_external_id("audience_id", self.audience_id)
            ledger = ledger_name(audience)
            managed: list[Any] | None = [audience]
            created = None if self.audience_name is None else {audience: self.audience_name}
        else:
            created = names if self.audience_name_column else None
            if self.ledger is None:
                self.refuse_shared_ledger(context)
            ledger = sync_ledger_name(self.ledger or f"{self.dag_id}.{self.task_id}")
            managed = None if self.audiences is None else _external_ids("audiences", self.audiences)
        return self.mirror(
            context,
            lambda: self._records(source, "add", names),
            ledger_name=ledger,
            managed=managed,
            names=created,
        )

    def _records(
        self, source: SqlSource, action: Action, names: dict[str, str]
    ) -> Generator[Record, None, None]:
        """Read the query; keep the names of its audiences on the way."""
        id_type = self.audience_id_type
        columns = [
            each for each in (self.profile_id_column, self.audience_column, self.audience_name_column) if each
        ]
        ordered = (2 if self.audience_column else 1) if self.mode == "mirror" else 0
        one = None if self.audience_column else audience_id_of("audience_id", self.audience_id, id_type)
        with closing(stream_rows(source, self.sql, columns, self.parameters, order_by=ordered)) as blocks:
            for rows in blocks:
                if one is not None:
                    yield from read_ids([row[0] for row in rows], one, action, id_type)
                    continue
                if self.mode == "mirror":
                    self._refuse_null_audiences(rows)
                for row in rows:
                    yield read_change(row[0], row[1], action, id_type)
                if self.audience_name_column:
                    names.update((row[1], row[2]) for row in rows)
        for audience, name in names.items():
            check_text(f"The audience_name of {audience!r}", name)

    def _refuse_null_audiences(self, rows: Sequence[tuple[Any, ...]]) -> None:
        """Stop where a mirror would take members out of an audience because a query has lost its name."""
        if any(row[1] is None or row[1] == "" for row in rows):
            column = self.audience_column
            raise InvalidInputError(
                f"The query has rows whose audience (column {column!r}) is null or empty, so nobody can say to which audience "
                f"they belong. Mend the join that leaves it so, or leave these rows out: WHERE {column} <> ''."
            )

    def _refuse_misplaced(self) -> None:
        many = self.mode == "mirror" and self.audience_column is not None
        for name in ("audiences", "audience_name_column", "ledger"):
            if getattr(self, name) is not None and not many:
                raise InvalidInputError(f"{name} goes with mode='mirror' and audience_column. Take it out.")
        for name, instead in (
            ("audience_name", "audience_name_column"),
            ("initial_members", "one task for each audience"),
        ):
            if getattr(self, name) is not None and many:
                raise InvalidInputError(f"{name} is for one audience. With audience_column, use {instead}.")


def _external_ids(name: str, value: Any) -> list[str]:
    return [check_external_id(name, each) for each in as_list(name, value)]
