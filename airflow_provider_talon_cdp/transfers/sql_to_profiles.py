"""Sends the rows of a SQL query to Talon.One as attributes of customer profiles."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from airflow.providers.common.compat.sdk import Context

from airflow_provider_talon_cdp import assets
from airflow_provider_talon_cdp.contract import OnDuplicate, check_bools, check_choice, check_text
from airflow_provider_talon_cdp.exceptions import InvalidInputError
from airflow_provider_talon_cdp.operators._arguments import (
    as_columns,
    as_limit,
    as_types,
    check_literals,
    check_rendered,
)
from airflow_provider_talon_cdp.operators._base import LedgerOperator
from airflow_provider_talon_cdp.operators._fields import ends_retries
from airflow_provider_talon_cdp.transfers._base import PROFILE_ID_COLUMN, SqlOperator

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import XComArg

    from airflow_provider_talon_cdp.sync.guard import Guard
    from airflow_provider_talon_cdp.sync.mirror import Mirror
    from airflow_provider_talon_cdp.sync.profiles import Profiles
    from airflow_provider_talon_cdp.sync.report import Report
    from airflow_provider_talon_cdp.transfers._rows import SqlSource

Nulls = Literal["skip", "delete"]
OnMissing = Literal["ignore", "clear"]

_AUDIENCE_ARGUMENTS = ("audience_id", "audience_column", "audiences", "add_audiences", "remove_audiences")


class ProfilesOperator(LedgerOperator):
    """Base of the operators that keep attributes of customer profiles equal to rows.

    Args:
        profile_id_column: The column of profile integration IDs: text of 1 to 1000 characters, integers or
            UUIDs.
        attributes: Attribute name by column, or a list of columns whose names are attribute names. Default:
            all other columns, or none if there is an ``attributes_column``.
        attributes_column: A column with a JSON object of further attributes, or of all.
        types: Talon.One's type by attribute name: ``string``, ``number``, ``boolean``, ``time``,
            ``location``, ``(list string)``, ``(list number)``, ``(list time)`` or ``(list location)``. A
            value is converted if nothing is lost; otherwise its row is rejected. Without a type, the value's
            own type decides.
        nulls: ``skip`` leaves null attributes out; ``delete`` deletes them in Talon.One.
        on_missing: What to do if a profile is in the ledger but not in the source: ``ignore`` it, or
            ``clear`` all attributes that were ever sent for it, as far as the guard allows.
        on_duplicate: What to do if a profile has several rows: ``error``, or ``last`` to take the row with
            the greatest ``order_by_column``. Null is the smallest; of equal rows every run takes the same.
        order_by_column: The column that decides; it is an attribute only if ``attributes`` names it.
        skip_unknown_attributes: Ignore attributes that are not defined in Talon.One, instead of failing.
        run_rule_engine: Run Talon.One's rules for every profile, which takes longer. If a call gets no clear
            answer, the rules may have run: the profile counts as ``unclear``, has a dead letter, and the next
            run sends it without rules.
        give_up_after: Stop if so many profiles, and more than ``max_rejected``, were all refused for the same
            reason and none was accepted; None for never. Also after so many 404s in a row, whatever was
            accepted before; None for 50.
        ledger: Name of the ledger. Default: the DAG's and the task's ID; a mapped task must name one for each
            of its instances, and a ``@task`` that calls the operator one for each call.
        kwargs: As in ``LedgerOperator``: ``on_empty``, ``max_removal_fraction``, ``min_removals`` and
            ``max_removals`` (profiles that are cleared), ``max_additions`` (profiles to send), ``send``,
            ``dry_run``, ``on_older_run``, ``retry_rejected``, ``suspicious_ids``, ``state_uri``,
            ``keep_versions``, ``max_rejected``, ``in_flight``, ``on_busy``, ``busy_timeout``,
            ``talon_cdp_conn_id``.
    """

    template_fields: Sequence[str] = (
        *("profile_id_column", "attributes", "attributes_column", "types", "order_by_column", "ledger"),
        *LedgerOperator.template_fields,
    )
    ui_color = "#d5ecff"

    def __init__(
        self,
        *,
        profile_id_column: str = PROFILE_ID_COLUMN,
        attributes: Mapping[str, str] | Sequence[str] | XComArg | None = None,
        attributes_column: str | None = None,
        types: Mapping[str, str] | XComArg | None = None,
        nulls: Nulls = "skip",
        on_missing: OnMissing = "ignore",
        on_duplicate: OnDuplicate = "error",
        order_by_column: str | None = None,
        skip_unknown_attributes: bool = False,
        run_rule_engine: bool = False,
        give_up_after: int | None = 50,
        ledger: str | None = None,
        **kwargs: Any,
    ) -> None:
        if found := [name for name in _AUDIENCE_ARGUMENTS if name in kwargs]:
            raise InvalidInputError(
                f"{found[0]} cannot be used here: with attributes, Talon.One would run its rules for\n"
                "every profile. Use SqlToTalonAudienceOperator in a separate task: it sends a thousand\n"
                "members in one request."
            )
        super().__init__(**kwargs)
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
        self.give_up_after = as_limit("give_up_after", give_up_after, 1)
        self.ledger = ledger
        check_choice("nulls", nulls, Nulls)
        check_choice("on_missing", on_missing, OnMissing)
        check_choice("on_duplicate", on_duplicate, OnDuplicate)
        check_literals(as_columns, attributes=attributes)
        check_literals(as_types, types=types)
        check_bools(skip_unknown_attributes=skip_unknown_attributes, run_rule_engine=run_rule_engine)
        if (order_by_column is None) == (on_duplicate == "last"):
            raise InvalidInputError(
                "order_by_column and on_duplicate='last' go together: give both or neither."
            )
        limits = self.changed_from_default("max_removal_fraction", "min_removals", "max_removals")
        if limits and on_missing != "clear" and nulls != "delete":
            raise InvalidInputError(
                "max_removal_fraction, min_removals and max_removals are for on_missing='clear' and "
                "nulls='delete' only: nothing else is removed.\n"
                "Take them out."
            )

    def source(self) -> Callable[[], Iterable[Any]]:
        """Return a function that reads the profiles."""
        raise NotImplementedError

    def mirror(self, context: Context) -> Mirror:
        """Return the mirror that makes the attributes equal to the rows."""
        from airflow_provider_talon_cdp.ledger.ledger import ledger_name  # noqa: PLC0415

        if self.ledger is None:
            self.refuse_shared_ledger(context)
        else:
            check_text("ledger", check_rendered("ledger", self.ledger))
        return self.new_mirror(
            ledger_name("profiles", self._ledger_name),
            holds="profiles",
            source=self.source(),
            sender=self.sender,
            kind=self.kind(sends_all=self.sends_all()),
        )

    def send_plan(self, context: Context, mirror: Mirror, report: Report) -> Report:
        """Plan and send; refuse to clear what another instance of this mapped task has sent in this run."""
        other = None
        if self.on_missing == "clear":
            mirror.ledger.load()
            self.refuse_ledger_of_namesake(mirror.ledger)
            other = self.other_instance(context, mirror)
        if other is not None:
            raise InvalidInputError(
                f"Instance {other} of the mapped task {self.task_id} has synced profiles with the same\n"
                "ledger in this DAG run. This one would clear the profiles that are not in its query.\n"
                "Nothing was sent.\n"
                "Name a ledger= for each instance, for example with\n"
                'expand_kwargs([{"sql": ..., "ledger": ...}, ...]). Both use the ledger in\n'
                f"{mirror.ledger.folder}"
            )
        return super().send_plan(context, mirror, report)

    def guard(self) -> Guard:
        """Return the guard with the limits of the arguments."""
        from airflow_provider_talon_cdp.sync.guard import ProfileGuard  # noqa: PLC0415

        return ProfileGuard(**vars(super().guard()))

    def kind(self, *, sends_all: bool = False) -> Profiles:
        """Return the kind that compares and sends attributes."""
        from airflow_provider_talon_cdp.sync.profiles import Profiles  # noqa: PLC0415

        return Profiles(
            sends_all=sends_all,
            clears=self.on_missing == "clear",
            partial=self.skip_unknown_attributes,
            runs_rules=self.run_rule_engine,
            on_duplicate=self.on_duplicate,
            give_up_after=self.give_up_after,
        )

    def sender(self, senders: int = 1) -> AbstractAsyncContextManager[Any]:
        """Return the sender of attributes, with the part of the connection's rate of one of ``senders``."""
        return self.hook.attributes_sender(
            run_rule_engine=self.run_rule_engine,
            skip_unknown_attributes=self.skip_unknown_attributes,
            in_flight=self.limits().in_flight,
            senders=senders,
        )

    def encoder(self) -> Any:
        """Return the encoder of profiles' attributes."""
        return self.hook.attributes_encoder(as_types("types", self.types), skip_nulls=self.nulls == "skip")

    def asset_uris(self, deployment_host: str) -> Mapping[str, str]:
        """Return the profiles of this sync."""
        return {assets.profiles_uri(deployment_host, self._ledger_name): "profiles"}

    @property
    def _ledger_name(self) -> str:
        return self.ledger or f"{self.dag_id}.{self.task_id}"


class SqlToTalonProfilesOperator(SqlOperator, ProfilesOperator):
    """Keep attributes of customer profiles equal to a query.

    Talon.One has no bulk call for attributes: every profile takes one request, and a million profiles take
    four to five hours at 60 requests a second. So only profiles that changed since the last acknowledged run
    are sent. The ledger under ``state_uri`` tells by fingerprints; it holds profile IDs and no values. Rows
    are streamed in constant memory. After a crash, the next try reads the query again and sends the rest. A
    profile that does not exist is created.

    Attributes must be defined in the Campaign Manager. Null leaves an attribute as it is, or deletes it. A
    row without any value sends nothing. An attribute that the query does not name any more stays as it is.

    Args:
        sql: One SELECT with one row for each profile, or the path of a ``.sql`` template.
        sql_conn_id: Airflow connection of any SQL database.
        parameters: Bind parameters of the query, in the driver's style.
        hook_params: Arguments of the SQL connection's hook.
        kwargs: As in ``ProfilesOperator``.

    Returns:
        The counts of the sync, in which ``read + removals + resumed = unchanged + sent + duplicate + rejected
        + unclear + unsent``: ``rejected`` by reason, ``removals`` profiles to clear, ``unsent`` 0. Also
        ``added``, ``removed``, ``suspicious``, ``requests``, ``retries``, ``throttled``, ``seconds``,
        ``dead_letters`` (their folder), ``report_file``, ``ledger_version`` and, of a dry run, the guard's
        ``verdict``. There are no profile IDs.
    """

    template_fields: Sequence[str] = (*SqlOperator.template_fields, *ProfilesOperator.template_fields)
    names: ClassVar[Sequence[str]] = ("profile_id_column", "attributes_column", "order_by_column")

    @ends_retries
    def execute(self, context: Context) -> dict[str, Any]:
        """Stream the query's rows to Talon.One."""
        return self.run_mirror(context).summary()

    def source(self) -> Callable[[], Iterable[Any]]:
        """Return a function that reads the query in the order of profile IDs."""
        from airflow_provider_talon_cdp.transfers._rows import in_order  # noqa: PLC0415

        database, sort = self.sql_hook(), self.kind().sort
        return lambda: in_order(database, self.rows(database), sort)

    def rows(self, database: SqlSource) -> Generator[Any, None, None]:
        """Read the query in the order of profile IDs, if the database can sort so."""
        from airflow_provider_talon_cdp.transfers._rows import (  # noqa: PLC0415
            ProfileColumns,
            read_profiles,
        )

        columns = ProfileColumns(
            profile_id=self.profile_id_column,
            attributes=as_columns("attributes", self.attributes),
            attributes_column=self.attributes_column,
            order_by=self.order_by_column,
            declared=as_types("types", self.types),
        )
        return read_profiles(database, self.sql, columns, self.encoder(), self.parameters)
