"""Rows of a SQL query become attributes of Talon.One customer profiles."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from airflow.providers.common.compat.sdk import Context

from airflow_provider_talon_cdp.contract import check_text
from airflow_provider_talon_cdp.exceptions import InvalidInputError
from airflow_provider_talon_cdp.hooks.talon_cdp import TalonCdpHook
from airflow_provider_talon_cdp.ledgered import LedgerOperator
from airflow_provider_talon_cdp.ledgers.naming import profiles_ledger_name
from airflow_provider_talon_cdp.operators._arguments import (
    as_bool,
    as_columns,
    as_types,
    check_choice,
    check_literals,
    check_rendered,
    check_sql,
)
from airflow_provider_talon_cdp.sync.attributes import Attributes
from airflow_provider_talon_cdp.sync.guard import Guard, ProfileGuard
from airflow_provider_talon_cdp.sync.mirror import Mirror
from airflow_provider_talon_cdp.sync.profile_push import BATCH
from airflow_provider_talon_cdp.sync.profiles import OnDuplicate
from airflow_provider_talon_cdp.transfers._rows import ProfileColumns, read_profiles, sql_hook

Nulls = Literal["skip", "delete"]
OnMissing = Literal["ignore", "clear"]

_OF_AUDIENCES = ("audience_id", "audience_column", "audiences", "add_audiences", "remove_audiences")


class SqlToTalonProfilesOperator(LedgerOperator):
    """Keep attributes of customer profiles equal to a query.

    Talon.One has no bulk call for attributes: one profile is one request, a million are four to five hours at 60 a second.
    So only what changed since the last acknowledged run is sent, which a ledger under ``state_uri`` knows by fingerprints;
    it holds profile IDs and no values. Rows are streamed, memory stays flat, and after a crash the next try reads the
    query again and sends what is left. A profile that does not exist in Talon.One is created.

    Attributes must be defined in the Campaign Manager. Null leaves an attribute as it is, or deletes it; a row without
    any value sends nothing. An attribute that is no longer named in the query stays as it is, too.

    Args:
        sql: One SELECT with one row for each profile, or the path of a ``.sql`` template.
        sql_conn_id: Airflow connection of any SQL database.
        profile_id_column: The column of profile integration IDs: text of 1 to 1000 characters, integers or UUIDs.
        attributes: Attribute name by column, or a list of columns that are attributes under their own names. Default: all
            other columns, or none where there is an ``attributes_column``.
        attributes_column: A column that holds a JSON object of attributes: more of them, or all.
        types: Talon.One's type by attribute name: ``string``, ``number``, ``boolean``, ``time``, ``location``,
            ``(list string)``, ``(list number)``, ``(list time)`` or ``(list location)``. Values are converted where that
            loses nothing; a row with another value is rejected. Without a type, the value's own decides.
        nulls: ``skip`` leaves them out; ``delete`` deletes the attribute.
        on_missing: When a profile is in the ledger and not in the query: ``ignore`` it, or ``clear`` the attributes that
            were ever sent for it, as far as the guard allows.
        on_duplicate: When a profile has several rows: ``error``, or ``last`` to take the one in which ``order_by_column``
            is greatest; null is the smallest, and of equal ones each run takes the same.
        order_by_column: The column that decides; it is an attribute only where ``attributes`` names it.
        skip_unknown_attributes: Have Talon.One ignore attributes that are not defined there, instead of refusing.
        run_rule_engine: Run Talon.One's rules for each profile, which takes longer.
        give_up_after: Stop when so many profiles, and more than ``max_rejected``, were all refused for one reason and none was
            accepted; None for never.
        ledger: Name of the ledger. Default: the DAG's and the task's ID; a mapped task must name one for each of its
            instances.
        parameters: Bind parameters of the query, in the driver's style.
        kwargs: As in ``LedgerOperator``: ``on_empty``, ``max_removal_fraction`` and ``max_removals`` (profiles that are
            cleared), ``max_additions`` (profiles that are sent), ``send``, ``dry_run``, ``state_uri``, ``keep_versions``,
            ``max_rejected``, ``in_flight``, ``talon_cdp_conn_id``.

    Returns:
        The counts of the sync, in which ``read + removals = unchanged + sent + duplicate + rejected + unsent``: ``rejected`` by
        reason, ``removals`` profiles to clear, ``unsent`` 0. And ``requests``, ``retries``, ``throttled``, ``seconds``,
        ``dead_letters`` (their folder), ``ledger_version`` and, of a dry run, the guard's ``verdict``; no profile IDs.
    """

    template_fields: Sequence[str] = (
        "sql",
        "sql_conn_id",
        "profile_id_column",
        "attributes",
        "attributes_column",
        "types",
        "order_by_column",
        "ledger",
        "parameters",
        *LedgerOperator.template_fields,
    )
    template_ext: Sequence[str] = (".sql",)
    template_fields_renderers = {"sql": "sql", "parameters": "json"}  # noqa: RUF012
    ui_color = "#d5ecff"

    def __init__(
        self,
        *,
        sql: str,
        sql_conn_id: str,
        profile_id_column: str = "profile_id",
        attributes: Mapping[str, str] | Sequence[str] | None = None,
        attributes_column: str | None = None,
        types: Mapping[str, str] | None = None,
        nulls: Nulls = "skip",
        on_missing: OnMissing = "ignore",
        on_duplicate: OnDuplicate = "error",
        order_by_column: str | None = None,
        skip_unknown_attributes: bool = False,
        run_rule_engine: bool = False,
        give_up_after: int | None = 50,
        ledger: str | None = None,
        parameters: Any = None,
        **kwargs: Any,
    ) -> None:
        _refuse_audiences(kwargs)
        super().__init__(**kwargs)
        self.sql = sql
        self.sql_conn_id = sql_conn_id
        self.profile_id_column = profile_id_column
        self.attributes = attributes
        self.attributes_column = attributes_column
        self.types = types
        self.nulls = nulls
        self.on_missing = on_missing
        self.on_duplicate = on_duplicate
        self.order_by_column = order_by_column
        self.skip_unknown_attributes = skip_unknown_attributes
        self.run_rule_engine = run_rule_engine
        self.give_up_after = give_up_after
        self.ledger = ledger
        self.parameters = parameters
        self._check()

    def execute(self, context: Context) -> dict[str, Any]:
        """Stream the query's rows to Talon.One."""
        if self.ledger is None:
            self.refuse_shared_ledger(context)
        hook = TalonCdpHook(self.talon_cdp_conn_id)
        mirror = self.mirror(hook)
        if as_bool("dry_run", self.is_dry_run):
            return mirror.dry_run(hook.settings.requests_per_second).summary()
        return self.run_mirror(mirror, self.run_owner(context))

    def guard(self) -> Guard:
        """Return the guard that the arguments make."""
        return ProfileGuard(**dataclasses.asdict(super().guard()))

    def mirror(self, hook: TalonCdpHook, *, senders: int = 1) -> Mirror:
        """Return what keeps the attributes in step.

        Args:
            hook: The way to Talon.One.
            senders: How many send at once, each at its share of the connection's rate.
        """
        columns = self._columns()
        encode = hook.attributes_encoder(as_types("types", self.types), skip_nulls=self.nulls == "skip")
        source = sql_hook(self.sql_conn_id)
        name = profiles_ledger_name(self.ledger or f"{self.dag_id}.{self.task_id}")
        ledger = self.ledgers(hook, name, one_per_profile=True, batch=BATCH)(self.state_folder())
        return Mirror(
            source=lambda: read_profiles(source, self.sql, columns, encode, self.parameters),
            ledger=ledger,
            guard=self.guard(),
            sender=lambda: hook.attributes_sender(
                run_rule_engine=self.run_rule_engine,
                skip_unknown_attributes=self.skip_unknown_attributes,
                in_flight=self.in_flight,
                senders=senders,
            ),
            kind=self.attributes_kind(),
            in_flight=self.in_flight,
            max_rejected=self.max_rejected,
        )

    def attributes_kind(self) -> Attributes:
        """Return how attributes are compared and sent."""
        return Attributes(
            sends_all=self.sends_all(),
            clears=self.on_missing == "clear",
            partial=self.skip_unknown_attributes,
            on_duplicate=self.on_duplicate,
            give_up_after=self.give_up_after,
        )

    def _columns(self) -> ProfileColumns:
        """Check what templates were rendered to."""
        check_sql("sql", self.sql)
        for name in ("profile_id_column", "attributes_column", "order_by_column", "ledger"):
            if getattr(self, name) is not None or name == "profile_id_column":
                check_text(name, check_rendered(name, getattr(self, name)))
        return ProfileColumns(
            profile_id=self.profile_id_column,
            attributes=as_columns("attributes", self.attributes),
            attributes_column=self.attributes_column,
            order_by=self.order_by_column,
            declared=as_types("types", self.types),
        )

    def _check(self) -> None:
        """Refuse arguments that cannot work, or that nothing would heed."""
        check_choice("nulls", self.nulls, Nulls)
        check_choice("on_missing", self.on_missing, OnMissing)
        check_choice("on_duplicate", self.on_duplicate, OnDuplicate)
        check_literals(check_sql, sql=self.sql)
        check_literals(as_columns, attributes=self.attributes)
        check_literals(as_types, types=self.types)
        for name in ("skip_unknown_attributes", "run_rule_engine"):
            if not isinstance(getattr(self, name), bool):
                raise InvalidInputError(f"{name} must be True or False, but is {getattr(self, name)!r}.")
        if self.give_up_after is not None and (
            not isinstance(self.give_up_after, int)
            or isinstance(self.give_up_after, bool)
            or self.give_up_after < 1
        ):
            raise InvalidInputError(
                f"give_up_after must be an integer >= 1 or None, but is {self.give_up_after!r}."
            )
        if (self.order_by_column is None) == (self.on_duplicate == "last"):
            raise InvalidInputError(
                "order_by_column and on_duplicate='last' go together: give both or neither."
            )
        if self.on_missing != "clear" and (self.max_removal_fraction, self.max_removals) != (0.2, None):
            raise InvalidInputError(
                "max_removal_fraction and max_removals are for on_missing='clear' only: nothing else is removed. Take them out."
            )


def _refuse_audiences(given: Mapping[str, Any]) -> None:
    asked = [name for name in _OF_AUDIENCES if name in given]
    if asked:
        raise InvalidInputError(
            f"{asked[0]}: attributes and audiences do not go in one call, because Talon.One would run its rules for each "
            "profile then, which takes longer. Use SqlToTalonAudienceOperator in a task of its own: it puts a thousand "
            "members into a request."
        )
