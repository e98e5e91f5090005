"""Sends the rows of a SQL query to Talon.One as members of audiences."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import closing
from functools import partial
from itertools import chain, islice
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from airflow.providers.common.compat.sdk import BaseHook, Context, conf

from airflow_provider_talon_cdp.contract import (
    NULL_AUDIENCES,
    check_choice,
    check_text,
    fault_of_text,
    is_null_audience,
)
from airflow_provider_talon_cdp.exceptions import InvalidInputError
from airflow_provider_talon_cdp.operators._arguments import as_count, audience_ids_of, check_literals
from airflow_provider_talon_cdp.operators._base import MembershipOperator
from airflow_provider_talon_cdp.operators._fields import ends_retries
from airflow_provider_talon_cdp.transfers._base import PROFILE_ID_COLUMN, SqlOperator

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import XComArg

    from airflow_provider_talon_cdp.changes.change import Record
    from airflow_provider_talon_cdp.ledger.progress import Progress
    from airflow_provider_talon_cdp.sync.mirror import Mirror
    from airflow_provider_talon_cdp.transfers._rows import Bounds, SqlSource

Mode = Literal["mirror", "add", "remove"]
READ_AHEAD = 1024
"""MiB."""


class SqlToTalonAudienceOperator(SqlOperator, MembershipOperator):
    """Keep an audience equal to a query, or add or remove the customer profiles that the query returns.

    Rows are streamed in constant memory. Changes are sent in requests of at most 1000, many of them in
    flight, at the connection's rate. A profile that does not exist is created; it is shown in an Application
    after its first session or profile update there.

    A mirror sends only the changes since the last acknowledged run, which a ledger under ``state_uri`` holds.
    It removes members that it added or adopted, and members that another task of this provider added, and not
    more than the guard allows. After a crash, the next try sends the rest. A try that succeeds has made the
    audience equal to the query as that try read it.

    Args:
        sql: One SELECT, or the path of a ``.sql`` template.
        sql_conn_id: Airflow connection of any SQL database.
        mode: ``mirror``, ``add`` or ``remove``.
        audience_column: Instead of ``audience_id``: the column with the audience ID of every row. If it is
            null or empty, a mirror stops before it sends anything; ``add`` and ``remove`` count the row as
            rejected.
        profile_id_column: The column of profile integration IDs: text of 1 to 1000 characters, integers or
            UUIDs.
        audiences: Mirror with ``audience_column``: the audiences that the mirror manages. Default: the
            audiences that the query has or had in an earlier run. An audience that is missing from the query
            loses its members, if the guard allows it.
        audience_name_column: Mirror with ``audience_column``: the column with the name to create a missing
            audience with.
        ledger: Mirror with ``audience_column``: name of the ledger. Default: the DAG's and the task's ID; a
            mapped task must name one for each of its instances, and a ``@task`` that calls the operator one
            for each call.
        parameters: Bind parameters of the query, in the driver's style.
        hook_params: Arguments of the SQL connection's hook.
        kwargs: As in ``MembershipOperator``.

    Returns:
        The counts of the sync, in which ``read + removals + resumed = unchanged + sent + duplicate + rejected
        + unclear + unsent``: ``rejected`` by reason, ``unclear`` changes for which ``rules`` may have run,
        ``unsent`` 0, ``resumed`` changes of an earlier try's plan. Also ``added``, ``removed``,
        ``suspicious``, ``requests``, ``retries``, ``throttled``, ``seconds``, ``dead_letters`` (folder),
        ``report_file``, ``ledger_version`` and, of a dry run, the guard's ``verdict``. No member IDs.
    """

    template_fields: Sequence[str] = (
        *SqlOperator.template_fields,
        *("audience_column", "audience_name_column", "audiences", "ledger", "profile_id_column"),
        *MembershipOperator.template_fields,
    )
    unrendered_lists: ClassVar[Sequence[str]] = ("audiences",)
    names: ClassVar[Sequence[str]] = (
        *("profile_id_column", "audience_column", "audience_name_column", "ledger"),
    )
    # For Airflow's registry: a retry resumes from the task state store.
    __supports_durable_execution = True

    def __init__(
        self,
        *,
        mode: Mode,
        audience_column: str | None = None,
        profile_id_column: str = PROFILE_ID_COLUMN,
        audiences: Sequence[str] | XComArg | None = None,
        audience_name_column: str | None = None,
        ledger: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.mode = mode
        self.audience_column = audience_column
        self.profile_id_column = profile_id_column
        self.audiences = audiences
        self.audience_name_column = audience_name_column
        self.ledger = ledger
        check_choice("mode", mode, Mode)
        if (self.audience_id is None) == (audience_column is None):
            raise InvalidInputError(
                "Give either audience_id (one audience) or audience_column (one for each row)."
            )
        if audiences is not None:
            check_literals(partial(audience_ids_of, id_type=self.audience_id_type), audiences=audiences)
        self.check_mode(mode)
        many = mode == "mirror" and audience_column is not None
        for name in ("audiences", "audience_name_column", "ledger"):
            if getattr(self, name) is not None and not many:
                raise InvalidInputError(f"{name} goes with mode='mirror' and audience_column. Take it out.")
        for name, instead in (
            ("audience_name", "audience_name_column"),
            ("initial_members", "one task for each audience"),
        ):
            if getattr(self, name) is not None and many:
                raise InvalidInputError(f"{name} is for one audience. With audience_column, use {instead}.")

    @ends_retries
    def execute(self, context: Context) -> dict[str, Any]:
        """Stream the query's rows to Talon.One."""
        if self.mode == "mirror":
            return self.run_mirror(context).summary()
        self.audiences_seen = set()
        progress = self._progress(context)
        records = self._records(self.sql_hook(), self.mode, {}, progress=progress)
        report = self.send_changes(context, records, read_ahead=_read_ahead(), progress=progress)
        return report.summary()

    def mirror(self, context: Context) -> Mirror:
        """Return the mirror that makes the audiences equal to the query."""
        from airflow_provider_talon_cdp.changes.spool import sorted_members  # noqa: PLC0415
        from airflow_provider_talon_cdp.ledger.ledger import ledger_name  # noqa: PLC0415
        from airflow_provider_talon_cdp.transfers._rows import in_order  # noqa: PLC0415

        names: dict[str, str] = {}
        database = self.sql_hook()

        def source() -> Generator[Record, None, None]:
            return in_order(database, self._records(database, "add", names), sorted_members)

        if self.audience_column is None:
            return self.audience_mirror(source)
        if self.ledger is None:
            self.refuse_shared_ledger(context)
        managed = None
        if self.audiences is not None:
            managed = list(map(str, audience_ids_of("audiences", self.audiences, self.audience_id_type)))
        return self.audience_mirror(
            source,
            ledger=ledger_name("sync", self.ledger or f"{self.dag_id}.{self.task_id}", self.audience_id_type),
            managed=managed,
            names=names if self.audience_name_column else None,
        )

    def _progress(self, context: Context) -> Progress | None:
        """Return the progress of a task that adds or removes, if Airflow retries it."""
        from airflow_provider_talon_cdp.ledger.progress import Progress  # noqa: PLC0415

        instance = context.get("ti")
        last_attempt = getattr(instance, "max_tries", 0)
        if instance is None or not last_attempt:
            return None
        # The inputs have what the connections lead to, not their IDs.
        settings, database = self.hook.settings, BaseHook.get_connection(self.sql_conn_id)
        dag_run = context.get("dag_run")
        excluded = {"in_flight", "max_rejected", "talon_cdp_conn_id", "sql_conn_id"}
        inputs = [
            # Airflow 3 counts how often a run was cleared. A run that was recreated starts at the first row.
            getattr(dag_run, "clear_number", None),
            str(getattr(dag_run, "start_date", None)),
            *(settings.base_url, settings.environment, settings.platform_name, settings.key_fingerprint),
            *(database.conn_type, database.host, database.port, database.schema),
            *(database.login, database.extra, self.mode, self.audience_id_type),
            *(getattr(self, name) for name in self.template_fields if name not in excluded),
        ]
        is_retry = instance.try_number > last_attempt - (self.retries or 0) + 1
        return Progress(
            self.run_owner(context),
            inputs,
            is_retry=is_retry,
            last=last_attempt,
            audiences=self.audiences_seen,
        )

    def _rows(
        self, source: SqlSource, bounds: Bounds | None, progress: Progress | None
    ) -> Generator[Sequence[tuple[Any, ...]], None, None]:
        """Yield the rows in lists; with ``progress``, those that it lacks, in the order of profile IDs."""
        from airflow_provider_talon_cdp.transfers._rows import stream_rows  # noqa: PLC0415

        columns = [self.profile_id_column, self.audience_column, self.audience_name_column]
        order_by = (2 if self.audience_column else 1) if self.mode == "mirror" else 0
        named = list(filter(None, columns))
        read = partial(
            stream_rows, source, self.sql, named, self.parameters, order_by=order_by, bounds=bounds
        )
        if progress is None:
            yield from read()
            return
        for after in (progress.after, ""):
            with closing(read(after=after)) as blocks:
                first = list(islice(blocks, 1))
                if not source.sorts:
                    progress.cancel()
                if progress.continues(row[0] for rows in first for row in rows):
                    yield from chain(first, blocks)
                    return

    def _records(
        self,
        source: SqlSource,
        verb: str,
        names: dict[str, str],
        bounds: Bounds | None = None,
        progress: Progress | None = None,
    ) -> Generator[Record, None, None]:
        """Yield the records of the query, or of a range of profile IDs; collect the names of audiences.

        With ``progress``, only those that it lacks.
        """
        from airflow_provider_talon_cdp.changes.change import (  # noqa: PLC0415
            read_members,
            read_memberships,
        )

        audience = None if self.audience_column else self.one_audience()
        # The query may be read again, when the warehouse has another name.
        names.clear()
        with closing(self._rows(source, bounds, progress)) as blocks:
            for rows in blocks:
                if audience is not None:
                    yield from read_members([row[0] for row in rows], audience, verb)
                    continue
                if self.mode == "mirror":
                    self._refuse_unknown_audiences(rows)
                yield from read_memberships(rows, verb, self.audience_id_type)
                ids = {row[1] for row in rows if not isinstance(row[1], InvalidInputError)}
                self.audiences_seen.update(
                    key for key in ids if not is_null_audience(key) and not fault_of_text(str(key))
                )
                if self.audience_name_column:
                    add_names(names, ((row[1], row[2]) for row in rows))
        # Of a range it is not known yet whether another one has the name.
        if bounds is None:
            check_names(names)

    def _refuse_unknown_audiences(self, rows: Sequence[tuple[Any, ...]]) -> None:
        """Refuse rows without an audience: the mirror would remove them from the audience they belong to."""
        # A reader returns the error as the value if it could not read it.
        if error := next((row[1] for row in rows if isinstance(row[1], InvalidInputError)), None):
            raise InvalidInputError(
                f"The query has an audience (column {self.audience_column!r}) that {error}.\n"
                "Nothing was sent. Correct its rows, or leave them out."
            )
        if any(row[1] == "" or is_null_audience(row[1]) for row in rows):
            column = self.audience_column
            raise InvalidInputError(
                f"The query has rows whose audience (column {column!r}) is null, empty, or a null as text\n"
                "('None', 'nan'), so it is unknown to which audience they belong. Nothing was sent.\n"
                f"Fix the join that loses the audience, or leave these rows out:\n"
                f"WHERE {column} NOT IN ('', {', '.join(map(repr, sorted(NULL_AUDIENCES)))})."
            )


def _read_ahead() -> int:
    """Return how many bytes of a query are read ahead onto disk at most, as configured."""
    configured = conf.get("talon_cdp", "read_ahead", fallback=None) or READ_AHEAD
    return as_count("[talon_cdp] read_ahead in Airflow's configuration", configured) * 2**20


def add_names(names: dict[str, str], found: Iterable[tuple[str, str]]) -> None:
    """Add audiences and their names; a null name is one only if no other row has a name.

    Raises:
        InvalidInputError: An audience has two names, and the next run might take the other one.
    """
    for audience, name in found:
        known = names.setdefault(audience, name)
        if known == name or name is None:
            continue
        if known is not None:
            one, other = sorted((str(known), str(name)))
            raise InvalidInputError(
                f"The query has two names for the audience {audience!r}: {one!r} and {other!r}.\n"
                "Nothing was sent. Give all rows of an audience the same name, for example with\n"
                "MAX(name) OVER (PARTITION BY audience)."
            )
        names[audience] = name


def check_names(names: Mapping[str, str]) -> None:
    """Refuse an audience without a valid name, once all rows have been read."""
    for audience, name in names.items():
        check_text(f"The audience_name of {audience!r}", name)
