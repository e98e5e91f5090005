"""Base classes of the operators that send changes.

DAG files import this module, so the hook and the engine are imported only when a task runs.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import sys
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from functools import cache, partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeVar

from airflow.providers.common.compat.sdk import BaseOperator, BaseOperatorLink, Context, XCom, conf

from airflow_provider_talon_cdp import assets
from airflow_provider_talon_cdp.connection_form import DEFAULT_CONN_ID
from airflow_provider_talon_cdp.contract import (
    AUDIENCE_ID_TYPE,
    IN_FLIGHT,
    KEEP_VERSIONS,
    AudienceIdType,
    OnEmpty,
    OnOlderRun,
    RetryRejected,
    Rules,
    SuspiciousIdsRule,
    Verify,
    check_choice,
    check_text,
)
from airflow_provider_talon_cdp.exceptions import InvalidInputError, LedgerBusyError, RejectedRecordsError
from airflow_provider_talon_cdp.operators._arguments import (
    as_bool,
    as_count,
    as_fraction,
    as_limit,
    as_positive,
    as_tolerance,
    audience_id_of,
    check_literals,
    check_numbers,
    check_rendered,
)
from airflow_provider_talon_cdp.operators._fields import TextFieldsOperator
from airflow_provider_talon_cdp.operators._state import (
    check_state_uri,
    default_state_uri,
    explicit_state_uri,
    open_ledger,
    outside_changes,
    remote_executor,
    run_facts,
    storage,
)

if TYPE_CHECKING:
    from airflow_provider_talon_cdp.changes.change import Record
    from airflow_provider_talon_cdp.ledger.ledger import Ledger
    from airflow_provider_talon_cdp.ledger.progress import Progress
    from airflow_provider_talon_cdp.sync.guard import Guard
    from airflow_provider_talon_cdp.sync.mirror import Mirror, Source
    from airflow_provider_talon_cdp.sync.push import Limits
    from airflow_provider_talon_cdp.sync.report import Report

Send = Literal["changed", "all"]
OnBusy = Literal["wait", "fail"]
T = TypeVar("T")

# Types of DAG runs that have data until now, in all versions of Airflow.
_RUNS_OF_NOW = ("manual", "asset_materialization", "asset_triggered", "dataset_triggered")
DEFAULT_POOL = "default_pool"
_SECONDS_BETWEEN_ATTEMPTS = 5.0
_SECONDS_BETWEEN_LINES = 30.0
# Key of the XCom with the ledger's version that a run wrote.
_VERSION_WRITTEN = "talon_cdp_ledger"
_MIRROR_ONLY = (
    *("audience_name", "initial_members", "on_empty", "max_removal_fraction", "min_removals", "max_removals"),
    *("max_additions", "send", "dry_run", "on_older_run", "retry_rejected", "rules", "verify"),
    *("on_busy", "busy_timeout"),
)


class _TalonLink(BaseOperatorLink):
    """A link that a task sets while it runs."""

    key: ClassVar[str]

    def get_link(self, operator: BaseOperator, *, ti_key: Any) -> Any:
        """Return the URL, or an empty text."""
        # Airflow 3 calls this in the task's process, Airflow 2 in the web server, which reads the XCom.
        links = getattr(operator, "links", None)
        # Not None, which Airflow 3 would turn into a link to "None".
        return XCom.get_value(ti_key=ti_key, key=self.key) if links is None else links.get(self.key, "")


class CampaignManagerLink(_TalonLink):
    """Talon.One's Campaign Manager."""

    name = "Talon.One Campaign Manager"
    key = "talon_cdp_campaign_manager"


class DeadLettersLink(_TalonLink):
    """The folder of the records that were rejected."""

    name = "Dead letters"
    key = "talon_cdp_dead_letters"


REPORT_KEY = "talon_cdp_report"
"""Key of the XCom with the path of the report's file, also of a failed task."""


class SendingOperator(TextFieldsOperator):
    """Base of the operators that send many changes.

    Args:
        max_rejected: Number of records that may be rejected. With more, the task fails after it has sent all
            others. None for any number.
        in_flight: Maximum number of requests in flight.
        suspicious_ids: What to do if profile IDs are valid but look wrong, such as padded ones or the text
            ``None``: ``warn`` and send them, ``fail``, or ``ignore`` it. A mirror's guard counts texts of
            nulls unless they are ignored.
        on_busy: What to do if another run uses the ledger: ``wait`` for it, or ``fail``.
        busy_timeout: Longest wait in seconds.
        talon_cdp_conn_id: Airflow connection of Talon.One.
        kwargs: As in Airflow's ``BaseOperator``. The default of ``pool`` is the Airflow setting
            ``[talon_cdp] pool``.
    """

    template_fields: Sequence[str] = ("max_rejected", "in_flight", "talon_cdp_conn_id")
    operator_extra_links = (CampaignManagerLink(), DeadLettersLink())
    emits_assets: ClassVar[bool] = True
    """Whether a successful run emits asset events."""

    def __init__(
        self,
        *,
        max_rejected: int | str | None = 0,
        in_flight: int | str = IN_FLIGHT,
        suspicious_ids: SuspiciousIdsRule = "warn",
        on_busy: OnBusy = "wait",
        busy_timeout: int = 600,
        talon_cdp_conn_id: str = DEFAULT_CONN_ID,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if "pool" not in kwargs:
            # It may have been set by default_args, which then takes precedence.
            self.pool = _pool(self.pool)
        self.max_rejected = max_rejected
        self.in_flight = in_flight
        self.suspicious_ids = suspicious_ids
        self.on_busy = on_busy
        self.busy_timeout = as_count("busy_timeout", busy_timeout)
        self.talon_cdp_conn_id = talon_cdp_conn_id
        self.links: dict[str, str] = {}
        self.report: Report | None = None
        self._alias = assets.alias_of(f"{self.dag_id}.{self.task_id}")
        if self.emits_assets and self._alias:
            self.outlets = [*self.outlets, self._alias]
        check_numbers(as_tolerance, max_rejected=max_rejected)
        check_numbers(as_positive, in_flight=in_flight)
        check_choice("on_busy", on_busy, OnBusy)
        check_choice("suspicious_ids", suspicious_ids, SuspiciousIdsRule)

    @classmethod
    def partial(cls, **kwargs: Any) -> Any:
        """Map the operator. Its instances use the configured pool too, unless another one is given."""
        mapped = super().partial(**kwargs)
        if "pool" not in kwargs:
            # Airflow 2 sets its default pool here, Airflow 3 does not.
            mapped.kwargs["pool"] = _pool(mapped.kwargs.get("pool", DEFAULT_POOL))
        return mapped

    def on_kill(self) -> None:
        """Send no more requests; what was acknowledged is recorded."""
        # Airflow 3 calls this when a task is stopped, and kills the process some seconds later. If the module
        # was not imported, nothing is being sent.
        if loop := sys.modules.get("airflow_provider_talon_cdp.sync.loop"):
            loop.stop_pushes()

    def limits(self) -> Limits:
        """Return the limits of a push, checked after templates were rendered."""
        from airflow_provider_talon_cdp.sync.push import Limits  # noqa: PLC0415

        return Limits(
            in_flight=as_positive("in_flight", self.in_flight),
            max_rejected=as_tolerance("max_rejected", self.max_rejected),
            suspicious_ids=self.suspicious_ids,
        )

    def run_and_report(self, context: Context, folder: Any, work: Callable[[Report], Report]) -> Report:
        """Do the task's work, push its links and asset events, and return the report.

        ``work`` is called when the ledger is free, with the report to count in, and returns the task's
        report. The report's file is in the ledger's ``folder``; without one there is no file.
        """
        from airflow_provider_talon_cdp.sync.report import (  # noqa: PLC0415
            RUN,
            Report,
            report_path,
            write_report,
        )

        # Airflow's copies of an operator share the object, and dag.test() runs several in one process.
        self.links = {}
        host = self.hook.settings.deployment_host
        self._push_link(context, CampaignManagerLink.key, f"https://{host}")
        self.report = report = Report()
        run = {name: getattr(context.get("ti"), name, None) for name in RUN}
        path = None if folder is None else report_path(folder, run)
        if path is not None:
            # Before anything is sent, as a task that was marked failed cannot push an XCom any more.
            report.report_file = str(path)
            self._push_link(context, REPORT_KEY, str(path))
        try:
            self.report = self.when_ledger_is_free(lambda: work(report))
        except RejectedRecordsError as error:
            self.report = error.report
            raise
        finally:
            if self.report.dead_letters:
                self._push_link(context, DeadLettersLink.key, self.report.dead_letters)
            if path is not None:
                write_report(self.report, path, run)
            if text := self.report.throttling:
                self.log.warning("%s", text)
        has_sent = self.report.verdict is None or self.report.sent > 0
        if self.emits_assets and has_sent:
            assets.emit(context, self, self._alias, self._event_extras(context, host, self.report))
        elif not has_sent:
            # Airflow would make an event of an outlet that the DAG author gave.
            ours = assets.audience_uri(host, "").removesuffix("audiences/")
            self.outlets = [each for each in self.outlets if not getattr(each, "uri", "").startswith(ours)]
        return self.report

    def when_ledger_is_free(self, work: Callable[[], T]) -> T:
        """Return the result of a function; if another run uses the ledger, wait and call it again.

        Raises:
            LedgerBusyError: The other run still uses the ledger after ``busy_timeout``, or ``on_busy`` is
                ``fail``.
        """
        limit = time.monotonic() + self.busy_timeout
        next_line = 0.0
        while True:
            try:
                return work()
            except LedgerBusyError as error:
                now = time.monotonic()
                if self.on_busy == "fail" or now >= limit:
                    raise
                if now >= next_line:
                    next_line = now + _SECONDS_BETWEEN_LINES
                    self.log.info("Waiting for the ledger, at most %.0f s.\n%s", limit - now, error)
            time.sleep(min(_SECONDS_BETWEEN_ATTEMPTS, limit - now))

    def asset_uris(self, deployment_host: str) -> Mapping[str, str]:
        """Return the assets that a successful run changes: by URI, the key of their counts in the report."""
        return {}

    def lineage_inputs(self) -> Sequence[Any]:
        """Return the datasets that are read, for OpenLineage."""
        return ()

    def get_openlineage_facets_on_start(self) -> Any:
        """Return the lineage of the inputs, for Airflow's OpenLineage provider."""
        return assets.lineage(self.lineage_inputs(), {})

    def get_openlineage_facets_on_complete(self, task_instance: Any) -> Any:
        """Return the lineage of inputs and outputs, also of a failed task."""
        return assets.lineage(self.lineage_inputs(), self.lineage_outputs())

    def lineage_outputs(self) -> Mapping[str, int | None]:
        """Return the assets that were changed: by URI, the acknowledged changes, or None if unknown."""
        host, report = self.links.get(CampaignManagerLink.key, "").removeprefix("https://"), self.report
        # In a group, the task that commits tells what was changed.
        if not host or not self.emits_assets or (report and report.verdict and not report.sent):
            return {}
        uris = self.asset_uris(host)
        if report is None:
            return dict.fromkeys(uris)
        if len(uris) == 1:
            return dict.fromkeys(uris, report.sent)
        # Not as in by_audience(), which has planned changes if nothing was sent.
        sent = report.added + report.removed
        # This key has changes that were not counted by audience.
        return dict.fromkeys(uris) if "" in sent else {uri: sent[key] for uri, key in uris.items()}

    def _push_link(self, context: Context, key: str, link: str) -> None:
        """Keep a link for the UI, also as an XCom, which Airflow 2's web server reads."""
        self.links[key] = link
        if push := getattr(context.get("ti"), "xcom_push", None):
            try:
                push(key=key, value=link)
            except Exception as error:  # noqa: BLE001 - a link must not fail a task, nor hide why one failed
                self.log.warning("The link %s cannot be kept for the UI: %s", key, error)

    def _event_extras(self, context: Context, host: str, report: Report) -> dict[str, dict[str, Any]]:
        """Return the extras of the asset events by URI: the counts of the audience, and facts of the run."""
        instance, run = context.get("ti"), context.get("dag_run")
        extra = {
            "rejected": report.rejected.total(),
            "unclear": report.unclear,
            "ledger_version": report.ledger_version,
            "run": getattr(instance, "run_id", None),
        }
        partition = getattr(run, "partition_key", None)
        if partition is not None:
            extra["partition_key"] = partition
        by_audience = report.by_audience()
        uris = self.asset_uris(host)
        others = {"added": 0, "removed": 0, "members": None if report.ledger_version is None else 0}
        if report.sent and not by_audience:
            # The changes were not counted by audience.
            is_one = len(uris) == 1
            counts = {"added": report.added.total(), "removed": report.removed.total()}
            others = {**(counts if is_one else dict.fromkeys(counts)), "members": None}
        return {uri: by_audience.get(key, others) | extra for uri, key in uris.items()}


class LedgerOperator(SendingOperator):
    """Base of the operators that send the difference between a source and a ledger.

    Args:
        on_empty: What to do if the source has no rows: ``fail``, ``skip`` or ``allow``. If it has rows and
            all are rejected, that is always an error.
        max_removal_fraction: Largest share that a run may remove, 0 to 1: of the known members of an
            audience, and of those of all audiences together.
        min_removals: ``max_removal_fraction`` does not apply to fewer removals.
        max_removals: Maximum removals, of all audiences together; None for no limit.
        max_additions: Maximum additions, to all audiences together; None for no limit.
        on_older_run: What to do if the ledger holds data of a later data interval than this run's, as in a
            backfill or a catch-up: ``fail``, ``skip`` (succeed with a warning) or ``allow``. For a manual
            run and one that an asset triggered, the current time counts.
        retry_rejected: ``always`` sends records that Talon.One refused in the last run again, in separate
            requests; ``never`` counts them as rejected.
        send: ``changed``, or ``all`` to send unchanged records too, for example after an audience or profiles
            were deleted in Talon.One.
        dry_run: Plan, count and check the guard, but send and record nothing.
        state_uri: Folder of the ledgers, as an absolute path or a URI of any object storage that Airflow
            supports, e.g. ``s3://aws_default@bucket/talon``. Default: the Airflow setting ``[talon_cdp]
            state_uri``, else ``$AIRFLOW_HOME/talon_cdp``, which only works if all tries run on one machine:
            with any other executor than Airflow's local ones a mirror refuses it.
        keep_versions: Number of the ledger's versions that are kept.
        kwargs: As in ``SendingOperator``. All but ``keep_versions``, ``suspicious_ids``, ``on_busy`` and
            ``busy_timeout`` may be templates.
    """

    template_fields: Sequence[str] = (
        *("on_empty", "max_removal_fraction", "min_removals", "max_removals", "max_additions"),
        *("is_dry_run", "on_older_run", "retry_rejected", "send", "state_uri"),
        *SendingOperator.template_fields,
    )

    def __init__(
        self,
        *,
        on_empty: OnEmpty | str = "fail",
        max_removal_fraction: float | str = 0.2,
        min_removals: int | str = 10,
        max_removals: int | str | None = None,
        max_additions: int | str | None = None,
        on_older_run: OnOlderRun | str = "fail",
        retry_rejected: RetryRejected | str = "always",
        send: Send | str = "changed",
        dry_run: bool | str = False,
        state_uri: str | None = None,
        keep_versions: int = KEEP_VERSIONS,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.on_empty = on_empty
        self.max_removal_fraction = max_removal_fraction
        self.min_removals = min_removals
        self.max_removals = max_removals
        self.max_additions = max_additions
        self.on_older_run = on_older_run
        self.retry_rejected = retry_rejected
        self.send = send
        # BaseOperator has a method named dry_run.
        self.is_dry_run = dry_run
        self.state_uri = state_uri
        self.keep_versions = as_positive("keep_versions", keep_versions)
        check_literals(partial(check_choice, choices=OnEmpty), on_empty=on_empty)
        check_numbers(as_fraction, max_removal_fraction=max_removal_fraction)
        check_numbers(as_limit, max_removals=max_removals, max_additions=max_additions)
        check_numbers(as_count, min_removals=min_removals)
        check_literals(partial(check_choice, choices=Send), send=send)
        check_literals(partial(check_choice, choices=OnOlderRun), on_older_run=on_older_run)
        check_literals(partial(check_choice, choices=RetryRejected), retry_rejected=retry_rejected)
        check_literals(as_bool, dry_run=dry_run)
        check_literals(check_state_uri, state_uri=state_uri)

    def mirror(self, context: Context) -> Mirror:
        """Return the mirror that makes Talon.One equal to the source."""
        raise NotImplementedError

    def run_mirror(self, context: Context) -> Report:
        """Make Talon.One equal to the source, or dry-run that, and return the report."""
        return self.run_and_report_mirror(context, self.mirror(context))

    def run_and_report_mirror(self, context: Context, mirror: Mirror) -> Report:
        """Run a mirror as ``run_mirror`` does."""

        def current() -> Mirror:
            facts = replace(
                mirror.facts,
                # A run of now that waited for the ledger reads its source only then.
                data_until=self.data_until(context),
                arguments=self._arguments_digest(context),
            )
            return replace(mirror, facts=facts)

        if as_bool("dry_run", self.is_dry_run):
            self._expect_version(context, mirror.ledger)
            return self.run_and_report(context, None, lambda _: self.run_dry(current()))

        with self.tracking_version(context, mirror.ledger):
            return self.run_and_report(
                context, mirror.ledger.folder, lambda report: self.send_plan(context, current(), report)
            )

    def data_until(self, context: Context) -> str:
        """Return the time until which a run has data if it reads its source now, in ISO 8601.

        It is the end of the run's data interval, or its logical date where that is later, as in a run of
        ``TriggerDagRunOperator``. A run of a partition has neither: its ``run_after`` counts, which in a
        backfill is the partition's date. Runs that a person or an asset has triggered have data until now.
        """
        dag_run = context.get("dag_run")
        # Airflow 3 has an enumeration, whose members equal the texts that they stand for.
        run_type = getattr(dag_run, "run_type", "")
        times: list[datetime] = [
            time for time in (context.get("data_interval_end"), context.get("logical_date")) if time
        ]
        # Airflow 2 has no run_after.
        if not times and (run_after := getattr(dag_run, "run_after", None)):
            times = [run_after]
        if not times or run_type in _RUNS_OF_NOW:
            times = [datetime.now(UTC)]
        return max(times).astimezone(UTC).isoformat()

    def _expect_version(self, context: Context, ledger: Ledger) -> None:
        """Have a ledger refuse to be older than this task's last version of it."""
        instance: Any = context.get("ti")
        if not hasattr(instance, "xcom_pull"):
            return
        written = None
        try:
            written = instance.xcom_pull(
                task_ids=instance.task_id,
                map_indexes=instance.map_index,
                key=_VERSION_WRITTEN,
                include_prior_dates=True,
            )
        except Exception as error:  # noqa: BLE001 - a backend may have deleted it, for each retry too
            self.log.warning(
                "The XCom with the ledger's version cannot be read, so this run does not notice if an older\n"
                "backup of the ledger was restored: %s",
                error,
            )
        place = str(ledger.folder)
        if isinstance(written, dict) and written["ledger"] == place:
            ledger.at_least = written["version"]
            # The next version's number is then higher than at_least, so that every later run accepts it.
            ledger.accepts_older = self.sends_all()

    @contextmanager
    def tracking_version(self, context: Context, ledger: Ledger) -> Iterator[None]:
        """Refuse a ledger older than this task's last version of it, and keep the new version in an XCom."""
        self._expect_version(context, ledger)
        instance: Any = context.get("ti")
        try:
            yield
        finally:
            if ledger.version and hasattr(instance, "xcom_pull"):
                try:
                    # An older ledger that was accepted, and then not replaced, is still older.
                    version = max(ledger.version, ledger.at_least)
                    written = {"ledger": str(ledger.folder), "version": version}
                    instance.xcom_push(_VERSION_WRITTEN, written)
                except Exception as error:  # noqa: BLE001 - as for a link
                    self.log.warning(
                        "The ledger's version cannot be kept as an XCom, so the next run does not notice if\n"
                        "an older backup of the ledger is restored: %s",
                        error,
                    )

    def run_dry(self, mirror: Mirror) -> Report:
        """Plan, but send and record nothing."""
        return mirror.dry_run(self.hook.settings.requests_per_second)

    def send_plan(self, context: Context, mirror: Mirror, report: Report) -> Report:
        """Plan and send."""
        return mirror.run(self.run_owner(context), report=report)

    def guard(self) -> Guard:
        """Return the guard with the limits of the arguments, checked after templates were rendered."""
        from airflow_provider_talon_cdp.sync.guard import Guard  # noqa: PLC0415

        return Guard(
            on_empty=check_choice("on_empty", self.on_empty, OnEmpty),
            max_removal_fraction=as_fraction("max_removal_fraction", self.max_removal_fraction),
            min_removals=as_count("min_removals", self.min_removals),
            max_removals=as_limit("max_removals", self.max_removals),
            max_additions=as_limit("max_additions", self.max_additions),
        )

    def sends_all(self) -> bool:
        """Return whether unchanged records are sent too."""
        send: Send = check_choice("send", self.send, Send)
        return send == "all"

    def new_mirror(self, name: str, *, holds: str = "members", **parts: Any) -> Mirror:
        """Return a mirror with the ledger ``name`` under the state URI; ``parts`` depend on its kind.

        Its facts say nothing of the data yet: ``run_and_report_mirror`` adds that.
        """
        from airflow_provider_talon_cdp.sync.mirror import Mirror  # noqa: PLC0415

        return Mirror(
            on_older_run=check_choice("on_older_run", self.on_older_run, OnOlderRun),
            retry_rejected=check_choice("retry_rejected", self.retry_rejected, RetryRejected),
            guard=self.guard(),
            facts=run_facts(self.hook),
            limits=self.limits(),
            ledger=open_ledger(
                storage("state URI", self.resolved_state_uri()),
                self.hook,
                name,
                keep=self.keep_versions,
                holds=holds,
            ),
            **parts,
        )

    def resolved_state_uri(self) -> str:
        """Return the URI of the folder of the ledgers, or refuse one that the next try may not find."""
        if uri := explicit_state_uri(self.state_uri):
            return uri
        if executor := remote_executor(self):
            raise InvalidInputError(
                f"The ledger would be on this worker's disk, and {executor} may run the next try elsewhere.\n"
                "Without its ledger a mirror removes no members. Nothing was sent.\n"
                "Set [talon_cdp] state_uri in Airflow's configuration, or state_uri= of this task, to a\n"
                "place that all workers reach, such as s3://aws_default@bucket/talon_cdp or a shared folder."
            )
        return default_state_uri()

    def changed_from_default(self, *names: str) -> list[str]:
        """Return the names of the arguments whose value is not their default."""
        values = {name: getattr(self, "is_dry_run" if name == "dry_run" else name) for name in names}
        defaults = arguments_of(SendingOperator, LedgerOperator, MembershipOperator)
        return [name for name, value in values.items() if value != defaults[name]]

    def refuse_shared_ledger(self, context: Context) -> None:
        """Refuse the default ledger where others would use it too, and undo this task's changes.

        They are other instances of a mapped task, and other operators that a task calls.
        """
        if _is_mapped(context):
            raise InvalidInputError(
                f"{self.task_id} is mapped, and its instances would share the ledger named after the task:\n"
                "each would remove what the others added. Nothing was sent.\n"
                "Name a ledger= for each instance, for example with\n"
                'expand_kwargs([{"sql": ..., "ledger": ...}, ...]).'
            )
        running = context.get("task")
        if running is not None and not self.has_dag():  # type: ignore[no-untyped-call]
            raise InvalidInputError(
                f"{self.task_id} is called inside the task {running.task_id}. Calls with this task_id share\n"
                f"the ledger {self.dag_id}.{self.task_id}: each would remove what the others added.\n"
                "Nothing was sent. Name a ledger= that no other call has."
            )

    def refuse_ledger_of_namesake(self, ledger: Ledger) -> None:
        """Refuse the ledger of another task, as eu.sync in the DAG crm and sync in crm.eu have one name.

        A ledger that the DAG author names may be that of a task which was moved.
        """
        mine = [self.dag_id, self.task_id]
        name = ".".join(mine)
        if getattr(self, "ledger", None) is not None or not ledger.identity.name.endswith(f":{name}"):
            return
        theirs = ledger.last_owner.split("/")[:2]
        if theirs != mine and ".".join(theirs) == name:
            (dag_id, task_id), (other_dag, other_task) = mine, theirs
            raise InvalidInputError(
                f"{task_id} of the DAG {dag_id} and {other_task} of the DAG {other_dag} have one ledger.\n"
                "Each would remove what the other added. Nothing was sent. Name a ledger= for one of them.\n"
                f"Both use the ledger in\n{ledger.folder}"
            )

    def _arguments_digest(self, context: Context) -> str:
        """Return a digest of the arguments of a mapped task's instance; empty if they cannot be compared."""
        if not _is_mapped(context):
            return ""
        try:
            text = json.dumps([(name, getattr(self, name)) for name in self.template_fields])
        except (TypeError, ValueError):
            return ""
        return hashlib.sha256(text.encode()).hexdigest()

    def other_instance(self, context: Context, mirror: Mirror) -> str | None:
        """Return the index of another instance of this mapped task that has used the ledger in this DAG run.

        If a person corrects the list and clears the task, other indexes may have the arguments: an instance
        with the same arguments as this one is not another one.
        """
        ledger, arguments = mirror.ledger, mirror.facts.arguments
        if not _is_mapped(context) or (arguments and arguments == ledger.facts.arguments):
            return None
        task, _, index = self.run_owner(context).rpartition("/")
        # The owner has changed the ledger; the last owner may have found nothing to send.
        owners = (owner.rpartition("/") for owner in (ledger.owner, ledger.last_owner))
        return next((other for of, _, other in owners if of == task and other != index), None)


class MembershipOperator(LedgerOperator):
    """Base of the operators that add members to audiences and remove them.

    Args:
        audience_id: The audience: its ID in the CDP (a string), or Talon.One's own ID (an integer) with
            ``audience_id_type="internal"``; None if the source has an audience column.
        audience_id_type: ``external`` or ``internal``. A mirror by internal IDs has a separate ledger.
        audience_name: Mirror: create the audience with this name if it does not exist yet.
        verify: Mirror: how to check that Talon.One still has the audience that the ledger knows. ``identity``
            updates it with its name before and after the push, which takes a request each time. If the
            audience was deleted and made again, all members are sent again. A name that was changed in
            Talon.One is set back. ``exists`` adds a known member, which changes nothing. ``none`` does not
            check. Default: ``identity`` if the audience has a name here, else ``exists``.
        rules: Mirror: whether Talon.One runs its rules, which campaigns on *Has joined* or *Has left an
            audience* need: ``none``, for ``changes``, or for ``all``. With rules, every changed profile takes
            one request, instead of a thousand profiles in one. With ``changes`` the first members of an
            audience are sent in bulk, without rules. A change without a clear answer is counted as
            ``unclear``, has a dead letter, and is not sent again. For external audience IDs only.
        initial_members: Mirror: a CSV file of members that the audience has already, such as the Campaign
            Manager's export. It is read if the ledger is new, so that the first mirror can remove them.
        kwargs: As in ``LedgerOperator``; those that concern the ledger are for a mirror only. A mirror checks
            removals against the known members of each audience, and of all together.
    """

    template_fields: Sequence[str] = (
        "audience_id",
        "audience_name",
        "initial_members",
        "rules",
        "verify",
        *LedgerOperator.template_fields,
    )
    ui_color = "#d9f5e3"
    resumes_plans: ClassVar[bool] = True
    """Whether a retry first sends the rest of an earlier try's plan, if the arguments are still the same."""

    def __init__(
        self,
        *,
        audience_id: str | int | None = None,
        audience_id_type: AudienceIdType = AUDIENCE_ID_TYPE,
        audience_name: str | None = None,
        verify: Verify | str | None = None,
        rules: Rules | str = "none",
        initial_members: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.audience_id = audience_id
        self.audience_id_type = audience_id_type
        self.audience_name = audience_name
        self.verify = verify
        self.rules = rules
        self.initial_members = initial_members
        self.audiences_seen: set[str | int] = set()
        check_choice("audience_id_type", audience_id_type, AudienceIdType)
        if verify is not None:
            check_literals(partial(check_choice, choices=Verify), verify=verify)
        check_literals(self._check_rules, rules=rules)
        if audience_id is not None:
            check_literals(partial(audience_id_of, id_type=audience_id_type), audience_id=audience_id)
        if audience_name is not None:
            check_literals(check_text, audience_name=audience_name)

    def one_audience(self) -> str:
        """Return the audience's ID as text, checked."""
        return str(audience_id_of("audience_id", self.audience_id, self.audience_id_type))

    def check_mode(self, mode: str | None) -> None:
        """Refuse arguments that are not for a mode."""
        if mode == "mirror":
            for name in ("audience_name", "audience_name_column"):
                if self.audience_id_type == "internal" and getattr(self, name, None) is not None:
                    raise InvalidInputError(
                        f"{name} is for external audience IDs: Talon.One creates and renames "
                        "audiences by external ID only."
                    )
        elif names := ", ".join(self.changed_from_default(*_MIRROR_ONLY)):
            raise InvalidInputError(
                f"Only mode='mirror' takes {names}. Remove it, or set the mode.\n"
                "If default_args has it, pass its default to this task."
            )

    def send_changes(
        self,
        context: Context,
        records: Iterable[Record],
        *,
        read_ahead: int = 0,
        progress: Progress | None = None,
    ) -> Report:
        """Send explicit changes, and return the report.

        Up to ``read_ahead`` bytes of changes are read onto disk as fast as the source yields them. With
        ``progress``, the records are read only after that of an earlier try is known.
        """
        from airflow_provider_talon_cdp.sync.members import send_members  # noqa: PLC0415

        limits = replace(self.limits(), read_ahead=read_ahead)
        outside = outside_changes(self, context, id_type=self.audience_id_type, keep=self.keep_versions)
        if progress:
            progress.open(outside.folder, time.time())
            outside.progress = progress
        report = self.run_and_report(
            context,
            outside.folder,
            lambda report: send_members(records, self.members_sender, outside, limits, report),
        )
        if not report.read:
            self.log.warning("The source has no rows, so nothing was sent.")
        return report

    def members_sender(self) -> Any:
        """Return the sender of membership changes."""
        return self.hook.members_sender(
            audience_id_type=self.audience_id_type, in_flight=self.limits().in_flight
        )

    def audience_mirror(
        self,
        source: Source,
        *,
        ledger: str | None = None,
        managed: Collection[str] | None = None,
        names: Mapping[str, str] | None = None,
    ) -> Mirror:
        """Return the mirror that makes ``audience_id`` equal to a source, or the audiences of a named ledger.

        ``ledger`` names a ledger of many audiences: only the ``managed`` ones may change; None allows all.
        Missing audiences are created if they are in ``names``, which is filled while the source is read.
        """
        from airflow_provider_talon_cdp.changes.diff import Scope  # noqa: PLC0415
        from airflow_provider_talon_cdp.ledger.ledger import ledger_name  # noqa: PLC0415
        from airflow_provider_talon_cdp.sync.audiences import Audiences  # noqa: PLC0415
        from airflow_provider_talon_cdp.sync.members import Members  # noqa: PLC0415

        if ledger is None:
            audience = self.one_audience()
            ledger, managed = ledger_name("audience", audience, self.audience_id_type), [audience]
            names = None if self.audience_name is None else {audience: self.audience_name}
        if self.audience_name is not None:
            check_text("audience_name", check_rendered("audience_name", self.audience_name))
        default: Verify = "exists" if names is None else "identity"
        # Not "or": an empty text is an error.
        verify = default if self.verify is None else check_choice("verify", self.verify, Verify)
        # Not updated: as with the links.
        self.audiences_seen = set(managed or ())
        return self.new_mirror(
            ledger,
            source=source,
            sender=self.members_sender,
            kind=Members(
                scope=Scope(managed=managed, sends_all=self.sends_all()),
                rules=self._check_rules("rules", self.rules),
            ),
            audiences=Audiences(
                names={} if names is None else names, verify=verify, state_uri=self.resolved_state_uri()
            ),
        )

    def run_dry(self, mirror: Mirror) -> Report:
        """Plan, but send and record nothing; initial members are adopted into a temporary ledger."""
        expects_version = mirror.ledger.at_least and not mirror.ledger.accepts_older
        # With an older version, or none, the run would be refused.
        if self.initial_members is None or expects_version:
            return super().run_dry(mirror)
        mirror.ledger.load()
        if mirror.ledger.version:
            return super().run_dry(mirror)
        with TemporaryDirectory(prefix="talon-cdp-") as folder:
            ledger = open_ledger(Path(folder), self.hook, "dry-run")
            # Other tasks must not look for this temporary ledger.
            ledger.registry.common = Path(folder)
            self._adopt(ledger, "dry run")
            return super().run_dry(replace(mirror, ledger=ledger))

    def send_plan(self, context: Context, mirror: Mirror, report: Report) -> Report:
        """Plan and send; first resume the plan of an earlier try of this task."""
        self.adopt_initial_members(context, mirror)
        store = context.get("task_state_store")
        from airflow_provider_talon_cdp.sync.mirror import TaskCursor  # noqa: PLC0415

        resumes = self.resumes_plans and store is not None
        cursor = TaskCursor(store, self._plan_inputs(mirror)) if resumes else None
        return mirror.run(self.run_owner(context), cursor, report)

    def adopt_initial_members(self, context: Context, mirror: Mirror) -> None:
        """Refuse a ledger of another mapped instance, and adopt the initial members into a new ledger."""
        ledger = mirror.ledger
        ledger.load()
        self.refuse_ledger_of_namesake(ledger)
        self._refuse_ledger_of_other_instance(context, mirror)
        if self.initial_members is None:
            return
        if ledger.version:
            self.log.info("The ledger exists already, so initial_members is not read.\n%s", ledger.folder)
        else:
            self._adopt(ledger, self.run_owner(context))

    def asset_uris(self, deployment_host: str) -> Mapping[str, str]:
        """Return the audiences: ``audience_id``, or those of the source and those that it had before."""
        if self.audience_id is not None:
            ids = {self.audience_id}
        else:
            numbers = self.report.by_audience().items() if self.report else ()
            changed = {audience for audience, each in numbers if each["added"] or each["removed"]}
            ids = self.audiences_seen | changed
        if self.audience_id_type == "internal":
            ids = {audience_id_of("audience_id", audience, "internal") for audience in ids}
        uris = {assets.audience_uri(deployment_host, audience): str(audience) for audience in ids}
        return dict(sorted(uris.items()))

    def _refuse_ledger_of_other_instance(self, context: Context, mirror: Mirror) -> None:
        """Refuse a ledger that another instance of this mapped task has used in this DAG run."""
        if (other := self.other_instance(context, mirror)) is not None:
            raise InvalidInputError(
                f"Instance {other} of the mapped task {self.task_id} has mirrored the same members in this\n"
                "DAG run, and this one would remove them again. Nothing was sent.\n"
                "Join their queries with UNION ALL in one task, or give each instance its own audience or,\n"
                f"with an audience column, its own ledger=. Both use the ledger in\n{mirror.ledger.folder}"
            )

    def _plan_inputs(self, mirror: Mirror) -> list[Any]:
        """Return what a plan depends on, apart from the data."""
        excluded = {"is_dry_run", "in_flight", "max_rejected"}
        fields = [(name, getattr(self, name)) for name in self.template_fields if name not in excluded]
        return [str(mirror.ledger.folder), self.guard(), self.suspicious_ids, *fields]

    def _adopt(self, ledger: Ledger, owner: str) -> None:
        from airflow_provider_talon_cdp.ledger.adopt import members_of_csv  # noqa: PLC0415

        file = storage("initial members file", str(self.initial_members))
        members = members_of_csv(file, str(self.audience_id), self.suspicious_ids)
        adopted = ledger.adopt(owner, members)
        self.log.info("Adopted %s members into a new ledger.", f"{adopted:,}")

    def _check_rules(self, name: str, value: object) -> Any:
        check_choice(name, value, Rules)
        if value != "none" and self.audience_id_type == "internal":
            raise InvalidInputError(
                f"{name}={value!r} needs external audience IDs: the call for one profile's audiences takes "
                "no internal IDs.\n"
                "Remove audience_id_type='internal', or leave rules at 'none'."
            )
        return value


def _pool(pool: str) -> str:
    """Return the configured pool instead of Airflow's default pool."""
    configured: str | None = conf.get("talon_cdp", "pool", fallback=None)
    return configured if configured and pool == DEFAULT_POOL else pool


@cache
def arguments_of(*operators: type[BaseOperator]) -> dict[str, Any]:
    """Return the defaults of the arguments of classes, by name."""
    parameters = [inspect.signature(operator).parameters for operator in operators]
    return {name: parameter.default for named in parameters for name, parameter in named.items()}


def _is_mapped(context: Context) -> bool:
    instance = context.get("ti")
    return instance is not None and instance.map_index not in (None, -1)
