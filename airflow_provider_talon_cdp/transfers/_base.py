"""The base class of the operators that read with SQL."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from airflow_provider_talon_cdp import assets
from airflow_provider_talon_cdp.contract import check_text
from airflow_provider_talon_cdp.operators._arguments import (
    as_mapping,
    check_literals,
    check_rendered,
    check_sql,
)
from airflow_provider_talon_cdp.operators._base import LedgerOperator

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import XComArg

    from airflow_provider_talon_cdp.transfers._rows import SqlSource


PROFILE_ID_COLUMN = "profile_id"


class SqlOperator(LedgerOperator):
    """Base of the operators that read their records with a query.

    Args:
        sql: One SELECT, or the path of a ``.sql`` template.
        sql_conn_id: Airflow connection of any SQL database.
        parameters: Bind parameters of the query, in the driver's style.
        hook_params: Arguments of the SQL connection's hook.
        kwargs: As in ``LedgerOperator``.
    """

    template_fields: Sequence[str] = ("sql", "sql_conn_id", "parameters", "hook_params")
    template_ext: Sequence[str] = (".sql",)
    template_fields_renderers = {"sql": "sql", "parameters": "json", "hook_params": "json"}  # noqa: RUF012
    names: ClassVar[Sequence[str]]
    """Fields that name a column or the ledger."""

    def __init__(
        self,
        *,
        sql: str,
        sql_conn_id: str,
        parameters: Any = None,
        hook_params: Mapping[str, Any] | XComArg | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.sql = sql
        self.sql_conn_id = sql_conn_id
        self.parameters = parameters
        self.hook_params = hook_params
        check_literals(check_sql, sql=sql)
        check_literals(as_mapping, hook_params=hook_params)

    def bind_parameters(self) -> Any:
        """Return the bind parameters."""
        return self.parameters

    def sql_hook(self) -> SqlSource:
        """Return the database of the SQL connection, after a check of the rendered arguments."""
        from airflow_provider_talon_cdp.transfers._rows import sql_hook  # noqa: PLC0415

        check_sql("sql", self.sql)
        for name in self.names:
            if getattr(self, name) is not None or name == "profile_id_column":
                check_text(name, check_rendered(name, getattr(self, name)))
        return sql_hook(self.sql_conn_id, as_mapping("hook_params", self.hook_params))

    def lineage_inputs(self) -> Sequence[Any]:
        """Return the tables that the query reads."""
        return assets.sql_inputs(lambda: self.sql_hook().hook(), self.sql_conn_id, self.sql)
