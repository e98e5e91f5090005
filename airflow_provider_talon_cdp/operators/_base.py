"""What the operators that send changes have in common.

A DAG file imports this module, so the hook and the engine are imported where a task runs.
"""

from __future__ import annotations

import inspect
import os
import sys
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from functools import cache, partial, wraps
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeVar
from uuid import uuid4

from airflow.providers.common.compat.sdk import (
    AirflowFailException,
    BaseOperator,
    BaseOperatorLink,
    Context,
    ObjectStoragePath,
    XCom,
    conf,
)

from airflow_provider_talon_cdp import assets
from airflow_provider_talon_cdp.connection_form import DEFAULT_CONN_ID
from airflow_provider_talon_cdp.contract import (
    AUDIENCE_ID_TYPE,
    IN_FLIGHT,
    KEEP_VERSIONS,
    AudienceIdType,
    check_text,
)
from airflow_provider_talon_cdp.exceptions import (
    InvalidInputError,
    LedgerBusyError,
    LedgerError,
    RejectedRecordsError,
    TalonCdpError,
)
from airflow_provider_talon_cdp.operators._arguments import (
    as_bool,
    as_count,
    as_fraction,
    as_limit,
    as_positive,
    as_tolerance,
    audience_id_of,
    check_choice,
    check_literals,
    check_numbers,
    check_rendered,
    is_template,
)

if TYPE_CHECKING:
    from airflow_provider_talon_cdp.changes.change import Record
    from airflow_provider_talon_cdp.hooks.talon_cdp import TalonCdpHook
    from airflow_provider_talon_cdp.ledger.ledger import Ledger, LedgerIdentity
    from airflow_provider_talon_cdp.ledger.outside import OutsideChanges
    from airflow_provider_talon_cdp.sync.guard import Guard
    from airflow_provider_talon_cdp.sync.mirror import Mirror, Source
    from airflow_provider_talon_cdp.sync.push import Limits
    from airflow_provider_talon_cdp.sync.report import Report

Send = Literal["changed", "all"]
OnEmpty = Literal["fail", "skip", "allow"]
OnBusy = Literal["wait", "fail"]
OnOlderRun = Literal["fail", "skip", "allow"]
RetryRejected = Literal["always", "never"]
Verify = Literal["identity", "exists", "none"]
Rules = Literal["none", "changes", "all"]
SuspiciousIdsRule = Literal["warn", "fail", "ignore"]
MAX_REJECTED = 0
T = TypeVar("T")
Op = TypeVar("Op", bound=BaseOperator)

# Executors that run tasks on other machines than the one before.
_ELSEWHERE = ("Celery", "Kubernetes", "Edge", "Ecs", "Batch", "Lambda")
DEFAULT_POOL = "default_pool"
_SECONDS_BETWEEN_LOOKS = 5.0
_SECONDS_BETWEEN_LINES = 30.0
# Key of the XCom that says which version of the ledger a run wrote.
_VERSION_WRITTEN = "talon_cdp_ledger"
_MIRROR_ONLY = (
    *("audience_name", "initial_members", "on_empty", "max_removal_fraction", "min_removals", "max_removals"),
    *(
        "max_additions",
        "send",
        "dry_run",
        "on_older_run",
        "retry_rejected",
        "rules",
        "verify",
        "on_busy",
        "busy_timeout",
    ),
)


def ends_retries(execute: Callable[[Op, Context], T]) -> Callable[[Op, Context], T]:
    """Have an error that another try cannot get past end the retries of the task.

    What is raised then is an ``AirflowFailException`` and of the error's own class, with the error as its
    cause.
    """

    @wraps(execute)
    def executed(self: Op, context: Context) -> T:
        try:
            return execute(self, context)
        except TalonCdpError as error:
            # A line of its own before Airflow's traceback, as the UI folds what stands in there.
            self.log.error("%s", error)  # noqa: TRY400
            self.log.debug("Where it was raised:", exc_info=error)
            # The UI scrolls to the end of a log, where frames would push the text out of sight.
            error.with_traceback(None)
            if error.retryable or isinstance(error, AirflowFailException):
                raise
            raise _failing(error) from error

    return executed


def _failing(error: TalonCdpError) -> TalonCdpError:
    name, bases = type(error).__name__, (type(error), AirflowFailException)
    kind: type[TalonCdpError] = type(name, bases, {"__module__": type(error).__module__})
    failing = kind.__new__(kind)
    failing.args = error.args
    vars(failing).update(vars(error))
    return failing


class _TalonLink(BaseOperatorLink):
    """A link that the task found out while it ran."""

    key: ClassVar[str]

    def get_link(self, operator: BaseOperator, *, ti_key: Any) -> Any:
        """Return the URL, or None."""
        # From Airflow 3 on this is asked where the task has run; before, by the web server.
        links = getattr(operator, "links", None)
        return XCom.get_value(ti_key=ti_key, key=self.key) if links is None else links.get(self.key)


class CampaignManagerLink(_TalonLink):
    """Talon.One's Campaign Manager."""

    name = "Talon.One Campaign Manager"
    key = "talon_cdp_campaign_manager"


class DeadLettersLink(_TalonLink):
    """The folder of the records that were refused."""

    name = "Dead letters"
    key = "talon_cdp_dead_letters"


REPORT_KEY = "talon_cdp_report"
"""XCom of the path of the report's file, also of a task that fails."""


class SendingOperator(BaseOperator):
    """Base of the operators that send many changes.

    Args:
        max_rejected: How many records may be refused before the task fails; it fails after everything good
            was sent. None for any number.
        in_flight: Requests in flight at the most.
        suspicious_ids: When profile IDs are valid and look wrong, such as padded ones or the text ``None``:
            ``warn`` and send them, ``fail``, or ``ignore`` it.
        on_busy: When another run has the ledger: ``wait`` for it, or ``fail``.
        busy_timeout: Seconds to wait.
        talon_cdp_conn_id: Airflow connection of Talon.One.
        kwargs: As in Airflow's ``BaseOperator``; the default of ``pool`` is the Airflow setting ``[talon_cdp]
            pool``.
    """

    template_fields: Sequence[str] = ("max_rejected", "in_flight", "talon_cdp_conn_id")
    operator_extra_links = (CampaignManagerLink(), DeadLettersLink())
    is_published: ClassVar[bool] = True
    """Whether a green run is an event of an asset."""

    def __init__(
        self,
        *,
        max_rejected: int | str | None = MAX_REJECTED,
        in_flight: int | str = IN_FLIGHT,
        suspicious_ids: SuspiciousIdsRule = "warn",
        on_busy: OnBusy = "wait",
        busy_timeout: int = 600,
        talon_cdp_conn_id: str = DEFAULT_CONN_ID,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if "pool" not in kwargs:
            # What default_args say has come first.
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
        if self.is_published and self._alias:
            self.outlets = [*self.outlets, self._alias]
        check_numbers(as_tolerance, max_rejected=max_rejected)
        check_numbers(as_positive, in_flight=in_flight)
        check_choice("on_busy", on_busy, OnBusy)
        check_choice("suspicious_ids", suspicious_ids, SuspiciousIdsRule)

    @classmethod
    def partial(cls, **kwargs: Any) -> Any:
        """Map the operator; instances have the configured pool too, where no other one is given."""
        mapped = super().partial(**kwargs)
        if "pool" not in kwargs:
            # Airflow 2 has put its default here, and Airflow 3 has not.
            mapped.kwargs["pool"] = _pool(mapped.kwargs.get("pool", DEFAULT_POOL))
        return mapped

    def on_kill(self) -> None:
        """Launch no more requests; what was acknowledged is recorded."""
        # Airflow 3 calls this where a task is stopped, and kills the process some seconds later. What was
        # never imported sends nothing.
        if loop := sys.modules.get("airflow_provider_talon_cdp.sync.loop"):
            loop.stop_pushes()

    def hook(self) -> TalonCdpHook:
        """Return the way to Talon.One."""
        return open_hook(self.talon_cdp_conn_id)

    def limits(self) -> Limits:
        """Return ``in_flight`` and ``max_rejected`` as numbers."""
        from airflow_provider_talon_cdp.sync.push import Limits  # noqa: PLC0415

        return Limits(
            in_flight=as_positive("in_flight", self.in_flight),
            max_rejected=as_tolerance("max_rejected", self.max_rejected),
            suspicious_ids=self.suspicious_ids,
        )

    def conclude(
        self, context: Context, hook: TalonCdpHook, folder: Any, send: Callable[[Report], Report]
    ) -> dict[str, Any]:
        """Send, show Airflow what came of it, and return the report as a small JSON object.

        Args:
            context: The task's context.
            hook: The way to Talon.One.
            folder: Of the ledger, for the report's file; None where nothing is to be written.
            send: Sends all, when the ledger is free, and counts in the report that it is given.
        """
        from airflow_provider_talon_cdp.sync.report import (  # noqa: PLC0415
            RUN,
            Report,
            report_path,
            write_report,
        )

        host = hook.settings.deployment_host
        self._show(context, CampaignManagerLink.key, f"https://{host}")
        self.report = report = Report()
        run = {name: getattr(context.get("ti"), name, None) for name in RUN}
        path = None if folder is None else report_path(folder, run)
        if path is not None:
            # Before anything is sent: a task that was marked failed can tell Airflow nothing more.
            report.report_file = str(path)
            self._show(context, REPORT_KEY, str(path))
        try:
            self.report = self.when_free(lambda: send(report))
        except RejectedRecordsError as error:
            self.report = error.report
            raise
        finally:
            if self.report.dead_letters:
                self._show(context, DeadLettersLink.key, self.report.dead_letters)
            if path is not None:
                write_report(self.report, path, run)
            if text := self.report.throttling:
                self.log.warning("%s", text)
        if self.is_published and self.report.verdict is None:
            assets.emit(context, self, self._alias, self._event_extras(context, host, self.report))
        return self.report.summary()

    def when_free(self, work: Callable[[], T]) -> T:
        """Do what needs a ledger; where another run has it, wait and try again, as ``on_busy`` says."""
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
                    self.log.info("Waiting for the ledger, for %.0f s at the most.\n%s", limit - now, error)
            time.sleep(min(_SECONDS_BETWEEN_LOOKS, limit - now))

    def asset_uris(self, deployment_host: str) -> Mapping[str, str]:
        """Return the assets that a green run changes: by URI, what the report counts their changes by."""
        raise NotImplementedError

    def lineage_inputs(self) -> Sequence[Any]:
        """Return the datasets that are read, for OpenLineage."""
        return ()

    def get_openlineage_facets_on_start(self) -> Any:
        """Return what is read, for Airflow's OpenLineage provider."""
        return assets.lineage(self.lineage_inputs(), ())

    def get_openlineage_facets_on_complete(self, task_instance: Any) -> Any:
        """Return what was read and what was changed, also of a failed task, for OpenLineage."""
        host = self.links.get(CampaignManagerLink.key, "").removeprefix("https://")
        uris = list(self.asset_uris(host)) if host else ()
        return assets.lineage(self.lineage_inputs(), uris, self.report.sent if self.report else None)

    def run_owner(self, context: Context) -> str:
        """Name the task instance; its retry has the same name."""
        return _owner(self, context)

    def _show(self, context: Context, key: str, link: str) -> None:
        """Keep a link for the UI; Airflow 2's web server finds it in an XCom."""
        self.links[key] = link
        if push := getattr(context.get("ti"), "xcom_push", None):
            push(key=key, value=link)

    def _event_extras(self, context: Context, host: str, report: Report) -> dict[str, dict[str, Any]]:
        """Return by URI what the events of assets tell: the numbers of that audience, and of the run."""
        instance, run = context.get("ti"), context.get("dag_run")
        extra = {
            "rejected": report.rejected.total(),
            "ledger_version": report.ledger_version,
            "run": getattr(instance, "run_id", None),
        }
        partition = getattr(run, "partition_key", None)
        if partition is not None:
            extra["partition_key"] = partition
        by_audience = report.by_audience()
        unchanged = {"added": 0, "removed": 0, "members": None if report.ledger_version is None else 0}
        uris = self.asset_uris(host)
        return {uri: by_audience.get(key, unchanged) | extra for uri, key in uris.items()}


class LedgerOperator(SendingOperator):
    """Base of the operators that send what differs from a ledger.

    Args:
        on_empty: When the source has no rows, ``fail``, ``skip`` or ``allow``; rows that are all rejected are
            an error.
        max_removal_fraction: The share of what the ledger has, 0 to 1, that a run may remove.
        min_removals: With fewer removals from one audience, ``max_removal_fraction`` says nothing.
        max_removals: Removals in all; None for any number.
        max_additions: Additions in all; None for any number.
        on_older_run: When the ledger holds data of a later data interval than this run's, as in a backfill or
            a catch-up: ``fail``, ``skip`` (end green, with a warning) or ``allow``. A manual run, and one
            that an asset triggered, count as now.
        retry_rejected: ``always`` sends records that Talon.One refused in the run before again, in requests
            of their own; ``never`` counts them as rejected.
        send: ``changed``, or ``all`` to send also what is as it was, for example after an audience or
            profiles were deleted in Talon.One.
        dry_run: Plan, count and guard, and send and record nothing.
        state_uri: Folder of the ledgers, as an absolute path or URI of any object storage that Airflow knows,
            e.g. ``s3://aws_default@bucket/talon``. Default: the Airflow setting ``[talon_cdp] state_uri``,
            else ``$AIRFLOW_HOME/talon_cdp``, which only works where all tries run on one machine: it is
            refused with Celery, Kubernetes and Edge executors.
        keep_versions: Versions of the ledger that are kept.
        kwargs: As in ``SendingOperator``. All but ``keep_versions``, ``on_busy`` and ``busy_timeout`` may be
            templates.
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
        check_literals(_check_on_empty, on_empty=on_empty)
        check_numbers(as_fraction, max_removal_fraction=max_removal_fraction)
        check_numbers(as_limit, max_removals=max_removals, max_additions=max_additions)
        check_numbers(as_count, min_removals=min_removals)
        check_literals(_check_send, send=send)
        check_literals(partial(check_choice, choices=OnOlderRun), on_older_run=on_older_run)
        check_literals(partial(check_choice, choices=RetryRejected), retry_rejected=retry_rejected)
        check_literals(as_bool, dry_run=dry_run)
        if state_uri:
            check_literals(check_state_uri, state_uri=state_uri)

    def mirror(self, context: Context, hook: TalonCdpHook) -> Mirror:
        """Return what makes Talon.One equal to the source."""
        raise NotImplementedError

    def run_mirror(self, context: Context) -> dict[str, Any]:
        """Make Talon.One equal to the source, or say what that would take; return the report."""
        hook = self.hook()
        return self.conclude_mirror(context, hook, self.mirror(context, hook))

    def conclude_mirror(self, context: Context, hook: TalonCdpHook, mirror: Mirror) -> dict[str, Any]:
        """Do the same with a mirror that is made already."""
        if as_bool("dry_run", self.is_dry_run):
            return self.conclude(context, hook, None, lambda _: self.rehearse(mirror, hook))
        folder = mirror.ledger.folder
        with self.remembering_version(context, mirror.ledger):
            return self.conclude(
                context, hook, folder, lambda report: self.send_plan(context, mirror, report)
            )

    @contextmanager
    def remembering_version(self, context: Context, ledger: Ledger) -> Iterator[None]:
        """Refuse a ledger that is older than this task last wrote it, and keep what it writes in an XCom."""
        instance: Any = context.get("ti")
        if not hasattr(instance, "xcom_pull"):
            yield
            return
        written = instance.xcom_pull(
            task_ids=instance.task_id,
            map_indexes=instance.map_index,
            key=_VERSION_WRITTEN,
            include_prior_dates=True,
        )
        if isinstance(written, dict) and written["ledger"] == ledger.place and not self.sends_all():
            ledger.at_least = written["version"]
        try:
            yield
        finally:
            if ledger.version:
                instance.xcom_push(_VERSION_WRITTEN, {"ledger": ledger.place, "version": ledger.version})

    def rehearse(self, mirror: Mirror, hook: TalonCdpHook) -> Report:
        """Plan, and send and record nothing."""
        return mirror.dry_run(hook.settings.requests_per_second)

    def send_plan(self, context: Context, mirror: Mirror, report: Report) -> Report:
        """Plan and send."""
        return mirror.run(self.run_owner(context), report=report)

    def guard(self) -> Guard:
        """Return the guard that the arguments make."""
        from airflow_provider_talon_cdp.sync.guard import Guard  # noqa: PLC0415

        return Guard(**self.guard_limits())

    def guard_limits(self) -> dict[str, Any]:
        """Return the arguments of the guard, checked."""
        return {
            "on_empty": _check_on_empty("on_empty", self.on_empty),
            "max_removal_fraction": as_fraction("max_removal_fraction", self.max_removal_fraction),
            "min_removals": as_count("min_removals", self.min_removals),
            "max_removals": as_limit("max_removals", self.max_removals),
            "max_additions": as_limit("max_additions", self.max_additions),
        }

    def sends_all(self) -> bool:
        """Whether to send also what is as it was."""
        return bool(_check_send("send", self.send) == "all")

    def run_settings(self, context: Context, hook: TalonCdpHook) -> dict[str, Any]:
        """Return the arguments of ``Mirror`` that all kinds of mirrors have."""
        from airflow_provider_talon_cdp.ledger.ledger import RunFacts  # noqa: PLC0415

        check_choice("on_older_run", self.on_older_run, OnOlderRun)
        check_choice("retry_rejected", self.retry_rejected, RetryRejected)
        settings = hook.settings
        return {
            "guard": self.guard(),
            "facts": RunFacts(
                data_until=data_until(context),
                key_fingerprint=settings.key_fingerprint,
                platform_name=settings.platform_name,
            ),
            "on_older_run": self.on_older_run,
            "retry_rejected": self.retry_rejected,
            "limits": self.limits(),
            "sends_all": self.sends_all(),
        }

    def open_ledger(self, hook: TalonCdpHook, name: str, **how: Any) -> Ledger:
        """Return a ledger.

        Args:
            hook: A ledger belongs to one deployment, API base and environment.
            name: Which ledger.
            how: As in ``open_ledger``.
        """
        return open_ledger(self.state_folder(), hook, name, keep=self.keep_versions, **how)

    def state_folder(self) -> ObjectStoragePath:
        """Return the folder of the ledgers."""
        return storage("state URI", self.where_state_is())

    def where_state_is(self) -> str:
        """Return the URI of the folder of the ledgers; the next try, maybe elsewhere, must find it again."""
        if not _state_uri(self.state_uri):
            self._refuse_lost_disk()
        return _state_uri_or_default(self.state_uri)

    def given(self, *names: str) -> list[str]:
        """Return those of the arguments that were given a value other than their default."""
        values = {name: getattr(self, "is_dry_run" if name == "dry_run" else name) for name in names}
        defaults = arguments_of(SendingOperator, LedgerOperator, MembershipOperator)
        return [name for name, value in values.items() if value != defaults[name]]

    def refuse_shared_ledger(self, context: Context) -> None:
        """Refuse a ledger named after the task where the task has instances: each would undo the others."""
        instance = context.get("ti")
        if instance is not None and instance.map_index not in (None, -1):
            raise InvalidInputError(
                f"{self.task_id} is mapped, and its instances would share the ledger named after the task:\n"
                "an instance would take what the others sent for its own. Nothing was sent.\n"
                "Name a ledger= for each instance, for example with\n"
                'expand_kwargs([{"sql": ..., "ledger": ...}, ...]).'
            )

    def _refuse_lost_disk(self) -> None:
        """Refuse a ledger on a disk that the next try, on another machine, would not find."""
        configured = conf.get("core", "executor", fallback="").split(",")
        wanted = self.executor
        executor = next((each for each in configured if wanted and wanted in each), wanted or configured[0])
        if os.environ.get("AIRFLOW_IS_K8S_EXECUTOR_POD"):
            # The pod's own configuration names another one.
            executor = "KubernetesExecutor"
        if any(each in executor for each in _ELSEWHERE):
            raise InvalidInputError(
                f"The ledger would be on this worker's disk, and {executor} may run the next try elsewhere.\n"
                "Without its ledger a mirror removes nobody. Nothing was sent.\n"
                "Set [talon_cdp] state_uri in Airflow's configuration, or state_uri= of this task, to a\n"
                "place that all workers reach, such as s3://aws_default@bucket/talon_cdp or a shared folder."
            )


class MembershipOperator(LedgerOperator):
    """Base of the operators that add members to audiences and remove them.

    Args:
        audience_id: The one audience: its ID in the CDP (a string), or Talon.One's own number (an integer)
            with ``audience_id_type="internal"``; None where the source has an audience column.
        audience_id_type: ``external`` or ``internal``. A mirror by internal IDs has a ledger of its own.
        audience_name: Mirror: create the audience under this name where it does not exist yet.
        verify: Mirror: whether Talon.One still has the audience that the ledger knows. ``identity`` updates
            it under its name before and after the push, one request each, and sends all again where it was
            made anew; a name that was changed by hand is set back. ``exists`` adds a member that is there
            already, which changes nothing. ``none`` asks nothing.
            Default: ``identity`` where the audience has a name here, else ``exists``.
        rules: Mirror: whether Talon.One runs its rules, as campaigns on *Has joined* or *Has left an
            audience* need: ``none``, for ``changes``, or for ``all``. Each profile that changes takes a
            request then, instead of a thousand in one. With ``changes`` the first members of an audience go
            in bulk, without rules. A change without a clear answer is counted as ``unclear``, has a dead
            letter, and is not sent again. For external audience IDs.
        initial_members: Mirror: a CSV file of members that the audience got by other means, such as the
            Campaign Manager's export; read when the ledger is new, so that the first mirror can remove them.
        kwargs: As in ``LedgerOperator``; only a mirror takes those that concern the ledger. A mirror counts
            removals against the known members of any one audience.
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
    unrendered_lists: ClassVar[Sequence[str]] = ()
    """Fields whose lists are data: only elements that are templates are rendered, and always to text."""

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
            check_literals(self._check_audience_id, audience_id=audience_id)
        if audience_name is not None:
            check_literals(check_text, audience_name=audience_name)

    def render_template(
        self, content: Any, context: Context, jinja_env: Any = None, seen_oids: set[int] | None = None
    ) -> Any:
        """Render a field, but for lists of ``unrendered_lists``."""
        if not isinstance(content, list | tuple | set | frozenset) or not any(
            content is getattr(self, name) for name in self.unrendered_lists
        ):
            return super().render_template(content, context, jinja_env, seen_oids)
        if id(content) in (seen_oids or ()):
            return content

        def rendered(element: Any) -> Any:
            if is_template(element):
                # With the prefix, native rendering cannot make a number of it.
                return super(MembershipOperator, self).render_template(f"id:{element}", context, jinja_env)[
                    3:
                ]
            return element.resolve(context) if hasattr(element, "resolve") else element

        return [rendered(each) for each in content]

    def one_audience(self) -> str:
        """Return the one audience, checked; an internal ID as its text."""
        return str(audience_id_of("audience_id", self.audience_id, self.audience_id_type))

    def check_mode(self, mode: str | None) -> None:
        """Refuse arguments that do not go with a mode."""
        if mode == "mirror":
            if self.audience_id_type == "internal" and self.audience_name is not None:
                raise InvalidInputError(
                    "audience_name is for external audience IDs: Talon.One creates and renames "
                    "audiences by those only."
                )
        elif names := ", ".join(self.given(*_MIRROR_ONLY)):
            raise InvalidInputError(f"{names}: for mode='mirror' only. Take it out, or choose that mode.")

    def send_changes(
        self, context: Context, records: Iterable[Record], *, reads_ahead: bool
    ) -> dict[str, Any]:
        """Send changes as they are, and return the report.

        Args:
            context: The task's context.
            records: The changes.
            reads_ahead: Whether they are read as fast as they come, and wait on disk.
        """
        from airflow_provider_talon_cdp.sync.members import send_members  # noqa: PLC0415

        hook, limits = self.hook(), replace(self.limits(), reads_ahead=reads_ahead)
        outside = outside_changes(self, context, hook, id_type=self.audience_id_type, keep=self.keep_versions)
        report = self.conclude(
            context,
            hook,
            outside.folder,
            lambda told: send_members(records, lambda: self.members_sender(hook), outside, limits, told),
        )
        if not report["read"]:
            self.log.warning("The source has no rows, so nothing was sent.")
        return report

    def members_sender(self, hook: TalonCdpHook, senders: int = 1) -> Any:
        """Return what sends changes of members."""
        in_flight = self.limits().in_flight
        return hook.members_sender(
            audience_id_type=self.audience_id_type, in_flight=in_flight, senders=senders
        )

    def audience_mirror(
        self,
        context: Context,
        hook: TalonCdpHook,
        source: Source,
        *,
        ledger_name: str,
        managed: Collection[str] | None,
        names: Mapping[str, str] | None,
    ) -> Mirror:
        """Return what makes audiences equal to a source.

        Args:
            context: The task's context.
            hook: The way to Talon.One.
            source: Reads the members.
            ledger_name: Which ledger.
            managed: Audiences that may change, or None.
            names: Name by audience ID, of audiences to create where they do not exist; filled while the
                source is read. None where none is to be created.
        """
        from airflow_provider_talon_cdp.changes.diff import Scope  # noqa: PLC0415
        from airflow_provider_talon_cdp.sync.audiences import Audiences  # noqa: PLC0415
        from airflow_provider_talon_cdp.sync.members import Members  # noqa: PLC0415
        from airflow_provider_talon_cdp.sync.mirror import Mirror  # noqa: PLC0415

        if self.audience_name is not None:
            check_text("audience_name", check_rendered("audience_name", self.audience_name))
        if self.verify is not None:
            check_choice("verify", self.verify, Verify)
        self.audiences_seen.update(managed or ())
        how = self.run_settings(context, hook)
        verify: Any = self.verify or ("exists" if names is None else "identity")
        return Mirror(
            source=source,
            ledger=self.open_ledger(hook, ledger_name),
            sender=lambda: self.members_sender(hook),
            kind=Members(
                scope=Scope(managed=managed, sends_all=how.pop("sends_all")),
                rules=self._check_rules("rules", self.rules),
            ),
            audiences=Audiences(
                names={} if names is None else names, verify=verify, state_uri=self.where_state_is()
            ),
            **how,
        )

    def rehearse(self, mirror: Mirror, hook: TalonCdpHook) -> Report:
        """Plan, and send and record nothing; members to adopt first go into a ledger to throw away."""
        mirror.ledger.load()
        if self.initial_members is None or mirror.ledger.version:
            return super().rehearse(mirror, hook)
        with TemporaryDirectory(prefix="talon-cdp-") as scratch:
            ledger = open_ledger(Path(scratch), hook, "rehearsal")
            self._adopt(ledger, "dry run")
            return super().rehearse(replace(mirror, ledger=ledger), hook)

    def send_plan(self, context: Context, mirror: Mirror, report: Report) -> Report:
        """Plan and send; go on with what an earlier try of this task has left."""
        self.adopt_initial_members(context, mirror)
        store = context.get("task_state_store")
        from airflow_provider_talon_cdp.sync.mirror import TaskCursor  # noqa: PLC0415

        cursor = None if store is None else TaskCursor(store, self._plan_input(mirror))
        return mirror.run(self.run_owner(context), cursor, report)

    def adopt_initial_members(self, context: Context, mirror: Mirror) -> None:
        """Check whose the ledger is, and fill a new one with the members that the audience has already."""
        ledger = mirror.ledger
        ledger.load()
        self._refuse_siblings(context, ledger)
        if self.initial_members is None:
            return
        if ledger.version:
            self.log.info("The ledger exists already, so initial_members is not read.\n%s", ledger.place)
        else:
            self._adopt(ledger, self.run_owner(context))

    def asset_uris(self, deployment_host: str) -> Mapping[str, str]:
        """Return the audiences: the one that was given, or those that the source has."""
        seen = {self.audience_id} if self.audience_id is not None else self.audiences_seen
        if self.audience_id_type == "internal":
            seen = {audience_id_of("audience_id", each, "internal") for each in seen}
        return dict(sorted((assets.audience_uri(deployment_host, each), str(each)) for each in seen))

    def _refuse_siblings(self, context: Context, ledger: Ledger) -> None:
        """Refuse a ledger that another instance of this mapped task has synced in this DAG run."""
        instance = context.get("ti")
        if instance is None or instance.map_index in (None, -1):
            return
        task, _, index = self.run_owner(context).rpartition("/")
        other_task, _, other = ledger.owner.rpartition("/")
        if other_task == task and other != index:
            raise InvalidInputError(
                f"Instance {other} of the mapped task {self.task_id} has mirrored the same members in this\n"
                "DAG run, and this one would take them out again. Nothing was sent.\n"
                "Join their queries with UNION ALL in one task, or give each instance an audience, or with\n"
                f"an audience column a ledger=, of its own. Both have the ledger in\n{ledger.place}"
            )

    def _plan_input(self, mirror: Mirror) -> list[Any]:
        """All that a plan comes from, but for the data."""
        how = {"is_dry_run", "in_flight", "max_rejected"}
        fields = [(name, getattr(self, name)) for name in self.template_fields if name not in how]
        return [mirror.ledger.place, self.guard(), *fields]

    def _adopt(self, ledger: Ledger, owner: str) -> None:
        from airflow_provider_talon_cdp.ledger.adopt import adopt_csv  # noqa: PLC0415

        file = storage("initial members file", str(self.initial_members))
        adopted = adopt_csv(ledger, owner, file, str(self.audience_id))
        self.log.info("Adopted %s members into a new ledger.", f"{adopted:,}")

    def _check_audience_id(self, name: str, value: object) -> str | int:
        return audience_id_of(name, value, self.audience_id_type)

    def _check_rules(self, name: str, value: object) -> Any:
        check_choice(name, value, Rules)
        if value != "none" and self.audience_id_type == "internal":
            raise InvalidInputError(
                f"{name}={value!r} needs external audience IDs: the call for one profile's audiences knows "
                "those only.\n"
                "Take audience_id_type='internal' out, or leave rules at 'none'."
            )
        return value


def open_hook(talon_cdp_conn_id: str) -> TalonCdpHook:
    """Return the hook of a connection; its module brings HTTP clients along, so it is imported here."""
    from airflow_provider_talon_cdp.hooks.talon_cdp import TalonCdpHook  # noqa: PLC0415

    return TalonCdpHook(talon_cdp_conn_id)


def identity_of(hook: TalonCdpHook, name: str, **how: Any) -> LedgerIdentity:
    """Return what a ledger of the deployment, API base and environment that a hook leads to belongs to.

    Args:
        hook: The way to Talon.One.
        name: Which ledger.
        how: ``holds``, as in ``LedgerIdentity``.
    """
    from airflow_provider_talon_cdp.ledger.ledger import LedgerIdentity  # noqa: PLC0415

    settings = hook.settings
    return LedgerIdentity(
        deployment_host=settings.deployment_host,
        base_url=settings.base_url,
        environment=settings.environment,
        name=name,
        **how,
    )


def open_ledger(
    folder: Any, hook: TalonCdpHook, name: str, *, keep: int = KEEP_VERSIONS, **how: Any
) -> Ledger:
    """Return a ledger of the deployment, API base and environment that a hook leads to.

    Args:
        folder: Folder of all ledgers.
        hook: The way to Talon.One.
        name: Which ledger.
        keep: Versions that are kept.
        how: ``holds``, as in ``LedgerIdentity``.
    """
    from airflow_provider_talon_cdp.ledger.ledger import Ledger, Sizes  # noqa: PLC0415
    from airflow_provider_talon_cdp.sync.profiles import BATCH  # noqa: PLC0415

    identity = identity_of(hook, name, **how)
    sizes = Sizes(batch=BATCH) if identity.holds == "profiles" else Sizes()
    ledger = Ledger(folder, identity, keep=keep, sizes=sizes)
    ledger.registry.common = _common_state(folder)
    return ledger


def outside_changes(operator: Any, context: Context, hook: TalonCdpHook, **how: Any) -> OutsideChanges:
    """Return what tells the ledgers under the operator's ``state_uri`` of changes that no plan has.

    Args:
        operator: Has ``state_uri``.
        context: The task's context.
        hook: The way to Talon.One.
        how: ``id_type`` and ``keep``, as in ``OutsideChanges``.
    """
    from airflow_provider_talon_cdp.ledger.ledger import calls_ledger_name  # noqa: PLC0415
    from airflow_provider_talon_cdp.ledger.outside import OutsideChanges  # noqa: PLC0415

    folder = storage("state URI", _state_uri_or_default(operator.state_uri))
    identity = identity_of(hook, calls_ledger_name(f"{operator.dag_id}.{operator.task_id}"))
    outside = OutsideChanges(folder, identity, _owner(operator, context), **how)
    outside.registry.common = _common_state(folder)
    return outside


def note_internal_id(operator: Any, hook: TalonCdpHook, internal_id: int) -> None:
    """Note the internal ID of an operator's audience, so that tasks with either ID find its ledgers."""
    from airflow_provider_talon_cdp.ledger.outside import Registry  # noqa: PLC0415

    if common := _common_state(None):
        try:
            Registry(common, identity_of(hook, ""), "external").note_internal_ids(
                {operator.audience_id: internal_id}
            )
        except LedgerError as error:
            operator.log.info(
                "Tasks with this audience's internal ID will not find its other ledgers.\n%s", error
            )


def data_until(context: Context) -> str:
    """Return until when the data of this run goes, in ISO 8601: its data interval's end, or else now."""
    kind = str(getattr(context.get("dag_run"), "run_type", "") or "")
    end: datetime | None = context.get("data_interval_end")
    if end is None or kind.endswith(("manual", "asset_triggered", "dataset_triggered")):
        end = datetime.now(UTC)
    return end.astimezone(UTC).isoformat()


def storage(name: str, uri: str) -> ObjectStoragePath:
    """Return a place in any storage that Airflow knows.

    Args:
        name: What it is, for the error.
        uri: A path or URI.

    Raises:
        InvalidInputError: There is no such storage.
    """
    try:
        path = ObjectStoragePath(uri)
        # Only this looks for the file system.
        _ = path.fs
    except (ValueError, ImportError) as error:
        raise InvalidInputError(
            f"The {name} is not a place that Airflow can reach: {error}.\n{uri}"
        ) from error
    return path


def _pool(pool: str) -> str:
    """Return the pool of a task whose author names none: Airflow's configuration may."""
    configured: str | None = conf.get("talon_cdp", "pool", fallback=None)
    return configured if configured and pool == DEFAULT_POOL else pool


@cache
def arguments_of(*operators: type[BaseOperator]) -> dict[str, Any]:
    """Return the defaults of the arguments that these classes declare, from their signatures."""
    signatures = [inspect.signature(each) for each in operators]
    return {each.name: each.default for signature in signatures for each in signature.parameters.values()}


def _owner(operator: BaseOperator, context: Context) -> str:
    instance = context.get("ti")
    if instance is None:
        return f"{operator.task_id}/{uuid4().hex}"
    return f"{instance.dag_id}/{instance.task_id}/{instance.run_id}/{instance.map_index}"


def _state_uri(given: str | None) -> str | None:
    """Return the URI of the folder of the ledgers that is set, here or in Airflow's configuration."""
    configured: str | None = conf.get("talon_cdp", "state_uri", fallback=None)
    if given:
        return check_state_uri("state_uri", given)
    if configured:
        return check_state_uri("[talon_cdp] state_uri in Airflow's configuration", configured)
    return None


def _state_uri_or_default(given: str | None) -> str:
    home = os.environ.get("AIRFLOW_HOME") or os.path.expanduser("~/airflow")  # noqa: PTH111
    return _state_uri(given) or f"file://{home}/talon_cdp"


def _common_state(own: Any) -> Any:
    """Return the folder of the ledgers of tasks without a state URI, or a task's own if that is wrong.

    Whether it can be reached is found out where it is read.
    """
    try:
        return ObjectStoragePath(_state_uri_or_default(None))
    except (InvalidInputError, ValueError, ImportError):
        return own


def _check_on_empty(name: str, value: object) -> Any:
    """Refuse what does not say what to do without rows."""
    if value not in ("fail", "skip", "allow"):
        raise InvalidInputError(f"{name} must be 'fail', 'skip' or 'allow', but is {value!r}.")
    return value


def _check_send(name: str, value: object) -> Any:
    """Refuse what says neither to send what changed nor to send all."""
    check_choice(name, value, Send)
    return value


def check_state_uri(name: str, uri: Any) -> str:
    """Refuse a folder that would be another one on the next worker."""
    where = str(check_rendered(name, uri))
    if not where.startswith("/") and "://" not in where:
        raise InvalidInputError(
            f"{name} must be an absolute path or a URI, such as s3://aws_default@bucket/talon_cdp, "
            f"but is {where!r}.\n"
            "Any other path depends on where a worker was started: the next one would not find the ledger."
        )
    return where
