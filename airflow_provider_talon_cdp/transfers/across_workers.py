"""Syncs with several tasks: one plans, several push, and one commits. Several may read the query, too."""

from __future__ import annotations

import math
import re
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, nullcontext
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from airflow.providers.common.compat.sdk import (
    AirflowException,
    AirflowSkipException,
    Context,
    TaskGroup,
)

from airflow_provider_talon_cdp import assets
from airflow_provider_talon_cdp.contract import KEEP_VERSIONS, check_choice
from airflow_provider_talon_cdp.exceptions import InvalidInputError, RejectedRecordsError
from airflow_provider_talon_cdp.operators._arguments import as_bool, as_positive
from airflow_provider_talon_cdp.operators._base import (
    DEFAULT_POOL,
    LedgerOperator,
    MembershipOperator,
    SendingOperator,
    arguments_of,
)
from airflow_provider_talon_cdp.operators._fields import ends_retries
from airflow_provider_talon_cdp.operators._state import open_ledger, run_facts, storage
from airflow_provider_talon_cdp.transfers._base import SqlOperator
from airflow_provider_talon_cdp.transfers.sql_to_audience import (
    SqlToTalonAudienceOperator,
    add_names,
    check_names,
)
from airflow_provider_talon_cdp.transfers.sql_to_profiles import ProfilesOperator, SqlToTalonProfilesOperator

if TYPE_CHECKING:
    from airflow_provider_talon_cdp.changes.change import Record
    from airflow_provider_talon_cdp.hooks.talon_cdp import TalonCdpHook
    from airflow_provider_talon_cdp.ledger.ledger import Ledger
    from airflow_provider_talon_cdp.ledger.reading import Reading
    from airflow_provider_talon_cdp.sync.mirror import Mirror
    from airflow_provider_talon_cdp.sync.report import Report


WORKERS = 4
Approval = Literal["never", "always", "beyond_guard"]
APPROVAL: Approval = "never"
# Arguments that the tasks of a group have in common.
_COMMON = ("max_rejected", "in_flight", "talon_cdp_conn_id", "on_busy", "busy_timeout")
# Key of the plan's name in the result of a push.
_PLAN = "plan"
# Most audiences that the approval question lists.
_MOST_LISTED = 50
# If the rows of so many profiles all differ from the plan, they differ at each reading.
_MANY_CHANGED = 10


def talon_audience_sync(
    group_id: str,
    *,
    workers: int = WORKERS,
    plan_workers: int = 1,
    pool: str | None = None,
    default_args: Mapping[str, Any] | None = None,
    approval: Approval = APPROVAL,
    **mirror: Any,
) -> TaskGroup:
    """Keep one or many audiences equal to a query, with several tasks that send at once.

    The group has the tasks ``plan``, ``push`` and ``commit``; ``approval`` adds ``approve``, and
    ``plan_workers`` adds ``ranges`` and ``compare``. ``plan`` reads the query, compares it with the ledger,
    checks the guard and writes the plan under the state URI, which all workers must reach. ``push`` is
    mapped: each instance sends a share of the plan at an equal part of the connection's rate, and records
    the acknowledgements; an instance that fails or is cleared sends the rest of its share. ``commit`` fails
    if not all of the plan was sent, and returns the report of the whole sync. If there is nothing to send,
    ``push`` is skipped.

    Args:
        group_id: The group's ID.
        workers: Maximum number of ``push`` instances, which run at once. A plan has one for every 100,000
            changes, up to this number.
        plan_workers: Number of tasks that read the query at once. If it is more than one, the task ``ranges``
            first divides the query into ranges of profile IDs, and ``compare`` is mapped: each instance reads
            the rows of a range, compares them, and writes the changes under the state URI, where ``plan``
            joins them. The query runs once per range and once more, and must return the same rows every time;
            a query with ``LIMIT`` may not.
        pool: Pool of ``push``; default: the Airflow setting ``[talon_cdp] pool``. With fewer slots than
            ``workers`` the connection's rate is not reached.
        default_args: Default arguments of all tasks of the group, such as ``retries``.
        approval: Airflow 3.1 and newer: whether a person approves a plan before it is pushed, in the task
            ``approve`` between ``plan`` and ``push``. ``always``: every plan. ``beyond_guard``: only plans
            that the guard would refuse. ``never``: no plan, and ``plan`` fails if the guard refuses. A plan
            is not pushed if it was rejected or a newer one has been made.
        mirror: Other arguments of ``SqlToTalonAudienceOperator``, except ``task_id`` and ``mode``.
            ``max_rejected`` is about the whole sync, and ``in_flight`` about each instance of ``push``.
            Arguments of ``BaseOperator`` reach only the tasks that read and plan: give them in
            ``default_args`` for all tasks. ``outlets`` are emitted by ``commit`` only, wherever they
            are given.

    Returns:
        The group. The XCom of its task ``commit`` is a report as of ``SqlToTalonAudienceOperator``; its
        ``requests``, ``retries`` and ``throttled`` count only the last try of every task.
    """
    _refuse_reserved(mirror, "mode", "reads")
    options: Any = {"pool": pool, "default_args": default_args, "approval": approval}
    return _group(
        group_id, PlanAudienceOperator, mirror, workers=workers, plan_workers=plan_workers, **options
    )


def talon_profiles_sync(
    group_id: str,
    *,
    workers: int = WORKERS,
    pool: str | None = None,
    default_args: Mapping[str, Any] | None = None,
    approval: Approval = APPROVAL,
    **profiles: Any,
) -> TaskGroup:
    """Keep attributes of customer profiles equal to a query, with several tasks that send at once.

    It works like ``talon_audience_sync``. A plan has no attribute values, so each instance of ``push`` reads
    the query again, and sorts its rows on the worker's disk. A profile whose row has changed since the plan
    is not sent: it is counted in ``rejected`` but not towards ``max_rejected``, has a dead letter, and is
    sent by the next run. If all of ten or more rows differ, ``commit`` fails: the query must not have a
    value that changes at each reading, such as ``now()``.

    Args:
        group_id: The group's ID.
        workers: As in ``talon_audience_sync``.
        pool: As in ``talon_audience_sync``.
        default_args: As in ``talon_audience_sync``.
        approval: As in ``talon_audience_sync``.
        profiles: Other arguments of ``SqlToTalonProfilesOperator``, except ``task_id``; as in
            ``talon_audience_sync``.

    Returns:
        The group; its task ``commit`` returns a report as of ``SqlToTalonProfilesOperator``.
    """
    _refuse_reserved(profiles)
    options: Any = {"pool": pool, "default_args": default_args, "approval": approval}
    return _group(group_id, PlanProfilesOperator, profiles, workers=workers, **options)


class _PlanOperator(LedgerOperator):
    """Plans as its base, but leaves the push to other tasks, in at most ``workers`` shares.

    With ``with_approval`` the plan waits for the task ``approve``, which creates missing audiences.
    """

    emits_assets = False
    reading: Mapping[str, Any] | None = None
    """The first range, if other tasks have read the query."""

    def __init__(self, *, workers: int, with_approval: bool = False, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.workers = workers
        self.with_approval = with_approval
        self.planned_until = ""

    @ends_retries
    def execute(self, context: Context) -> Any:
        """Plan, and return the shares; the XCom ``planned`` is for ``CommitPlanOperator``."""
        began = time.time()
        mirror = replace(self.mirror(context), with_approval=self.with_approval)
        if mirror.audiences:
            mirror.audiences.creates = not self.with_approval
        report = self.run_and_report_mirror(context, mirror)
        plan = self._plan(mirror, self.run_owner(context), report) if report.state == "planned" else None
        planned: Any = {"report": report.summary(), "plan": plan, "began": began, "reading": self.reading}
        planned |= self._lineage()
        if self.with_approval:
            rate, missing = self.hook.settings.requests_per_second, len(plan["missing"]) if plan else 0
            planned["question"] = question_text(report, mirror.kind.in_request, rate, missing)
        context["ti"].xcom_push("planned", planned)
        return _shares(plan, self.workers, fills=_was_cleared(context))

    def send_plan(self, context: Context, mirror: Mirror, report: Report) -> Report:
        """Plan, for other tasks to push."""
        self.planned_until = mirror.facts.data_until
        if isinstance(self, MembershipOperator):
            self.adopt_initial_members(context, mirror)
        return mirror.hand_over(self.run_owner(context), report)

    def _lineage(self) -> dict[str, Any]:
        """Return the assets and inputs that ``CommitPlanOperator`` reports as lineage."""
        uris = self.asset_uris(self.hook.settings.deployment_host)
        return {"assets": uris, "inputs": assets.input_names(self.lineage_inputs)}

    def _plan(self, mirror: Mirror, owner: str, report: Report) -> dict[str, Any]:
        """Return where the plan is, and which audiences are checked after the push."""
        ledger, audiences = mirror.ledger, mirror.audiences
        return {
            "names": audiences.names_to_recheck(report) if audiences else {},
            "missing": audiences.missing if audiences else {},
            "data_until": self.planned_until,
            "name": ledger.plan,
            "parts": ledger.parts,
            "ledger": ledger.identity.name,
            "holds": ledger.identity.holds,
            "state_uri": self.resolved_state_uri(),
            "keep_versions": self.keep_versions,
            "owner": owner,
            "audience_id_type": getattr(self, "audience_id_type", "external"),
            "partial": getattr(mirror.kind, "partial", False),
        }


class PlanAudienceOperator(_PlanOperator, SqlToTalonAudienceOperator):
    """The task ``plan`` of ``talon_audience_sync``.

    ``reads`` are the results of the ``compare`` tasks, or None if this task reads the query itself.
    """

    template_fields: Sequence[str] = ("reads", *SqlToTalonAudienceOperator.template_fields)

    def __init__(self, *, reads: Iterable[Mapping[str, Any]] | None = None, **kwargs: Any) -> None:
        super().__init__(mode="mirror", **kwargs)
        self.reads = reads

    def mirror(self, context: Context) -> Mirror:
        """Return the mirror of the query, or of the ranges that other tasks have read."""
        from airflow_provider_talon_cdp.sync.mirror import ComparedRanges  # noqa: PLC0415

        mirror = super().mirror(context)
        if self.reads is None:
            return mirror
        found = sorted(filter(None, self.reads), key=lambda read: int(read["range"]))
        # Airflow 3.3 keeps the results of instances that it has removed since.
        reads = [read for read in found if read["range"] < found[0]["of"]]
        complete = [(read["reading"], number) for read in found[:1] for number in range(read["of"])]
        # Between ranges of different divisions there may be a gap, whose members would be removed.
        if not reads or [(read["reading"], read["range"]) for read in reads] != complete:
            raise InvalidInputError(
                "The rows were read in ranges that do not go together. Nothing was sent.\n"
                "Clear the task that divides the query (ranges), and all after it."
            )
        self.reading = first = reads[0]
        names: Any = mirror.audiences.names if mirror.audiences and self.audience_name_column else {}

        def keep_audiences(found: Mapping[str, Any], join: Callable[[Any], object] = bool) -> None:
            self.audiences_seen.update(found["audiences"])
            add_names(names, found["names"].items())
            join(found)

        def records(files: Iterable[str], on_found: Callable[[Any], object]) -> Generator[Record, None, None]:
            yield from _reading(mirror.ledger, first).records(files, on_found)
            check_names(names)

        source = partial(records, [read["file"] for read in reads], keep_audiences)
        compared = None
        if all(read["compared"] for read in reads):
            changes, rejections = zip(*(read["compared"] for read in reads), strict=True)
            compared = ComparedRanges(
                partial(records, changes, lambda _: None),
                lambda join: records(rejections, partial(keep_audiences, join=join)),
            )
        return replace(mirror, source=source, compared=compared)

    def data_until(self, context: Context) -> str:
        """Return the time until which the run has data: of ranges, when they were divided."""
        # A newer run may have planned since other tasks read the rows.
        return self.reading["data_until"] if self.reading else super().data_until(context)


class _BeforePlanOperator(SqlToTalonAudienceOperator):
    """Base of the tasks that read the query for the task that plans."""

    emits_assets = False

    def __init__(self, *, plan_id: str, **kwargs: Any) -> None:
        super().__init__(mode="mirror", **kwargs)
        self.plan_id = plan_id

    def mirror(self, context: Context) -> Mirror:
        """Return the mirror of the task that plans."""
        if self.audience_column is not None and self.ledger is None:
            self.ledger = f"{self.dag_id}.{self.plan_id}"
        return super().mirror(context)


class DivideQueryOperator(_BeforePlanOperator):
    """The task ``ranges`` of ``talon_audience_sync``: divides the query into ranges of profile IDs.

    Returns:
        At most ``ranges`` ranges, one for each instance of ``CompareRangeOperator``; no profile IDs.
    """

    def __init__(self, *, ranges: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.ranges = ranges

    @ends_retries
    def execute(self, context: Context) -> Any:
        """Divide the query."""
        mirror, owner = self.mirror(context), self.run_owner(context)
        spans = self.when_ledger_is_free(lambda: self._divide(mirror, owner, self.data_until(context)))
        return _filled(spans, self.ranges) if _was_cleared(context) else spans

    def run_owner(self, context: Context) -> str:
        """Return the owner of the task that plans."""
        dag_id, _, *rest = super().run_owner(context).split("/")
        return "/".join([dag_id, self.plan_id, *rest])

    def _divide(self, mirror: Mirror, owner: str, data_until: str) -> list[dict[str, Any]]:
        from airflow_provider_talon_cdp.ledger.reading import Reading  # noqa: PLC0415
        from airflow_provider_talon_cdp.transfers._rows import range_bounds  # noqa: PLC0415

        ledger, is_dry_run = mirror.ledger, as_bool("dry_run", self.is_dry_run)
        reading = Reading(ledger.folder)
        # A dry run does not lock the ledger.
        with nullcontext() if is_dry_run else ledger.divided(owner):
            if not is_dry_run:
                reading.remove_others(ledger.lock.confirm)
            column = self.profile_id_column
            bounds = range_bounds(self.sql_hook(), self.sql, column, self.parameters, self.ranges)
            reading.begin(bounds)
        self.log.info("The query is read in %d ranges.", len(bounds) + 1)
        span = {
            "reading": reading.name,
            "of": len(bounds) + 1,
            "data_until": data_until,
            "owner": None if is_dry_run else owner,
            "ledger": ledger.identity.name,
            "holds": ledger.identity.holds,
            "state_uri": self.resolved_state_uri(),
        }
        return [span | {"range": number} for number in range(len(bounds) + 1)]


class CompareRangeOperator(_BeforePlanOperator):
    """The task ``compare`` of ``talon_audience_sync``: reads the rows of a range, and compares them.

    Returns:
        The range, and the files of its rows and changes.
    """

    template_fields: Sequence[str] = ("span", *_BeforePlanOperator.template_fields)

    def __init__(self, *, span: Mapping[str, Any], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.span = span

    @ends_retries
    def execute(self, context: Context) -> dict[str, Any]:
        """Read and compare, unless there is no such range any more."""
        if not self.span:
            return {}
        mirror = self.mirror(context)
        return self.when_ledger_is_free(lambda: self._compare(mirror, self.span["owner"], self.span["range"]))

    def _compare(self, mirror: Mirror, owner: str | None, number: int) -> dict[str, Any]:
        reading = _reading(mirror.ledger, self.span)
        names: dict[str, str] = {}

        def audiences() -> dict[str, Any]:
            by_id = {str(audience): name for audience, name in names.items()}
            return {"audiences": sorted(map(str, self.audiences_seen)), "names": by_id}

        def write(records: Iterable[Any], facts: Callable[[], Mapping[str, Any]]) -> str:
            return reading.write(number, records, lambda: {**audiences(), **facts()})

        with mirror.ledger.divided(owner, number) if owner else nullcontext():
            bounds = reading.bounds(number)
            with closing(self._records(self.sql_hook(), "add", names, bounds)) as records:
                file = write(records, dict)
            mirror = replace(mirror, source=partial(reading.records, [file], lambda _: None))
            return {**self.span, "file": file, "compared": mirror.compare_range(*bounds, write)}


class PlanProfilesOperator(_PlanOperator, SqlToTalonProfilesOperator):
    """The task ``plan`` of ``talon_profiles_sync``."""


class PushShareOperator(SendingOperator):
    """The task ``push`` of both groups: sends a share of a plan. A retry sends the rest of the share.

    For attributes, ``profiles`` has the arguments of ``SqlToTalonProfilesOperator``: the query is read again,
    as a plan does not contain values. Up to ``max_rejected`` refused records, the task does not give up
    early; ``CommitPlanOperator`` checks their total.

    Returns:
        The counts of this try, in which ``resumed = sent + rejected + unclear``, and the plan's name.
    """

    template_fields: Sequence[str] = ("share", "profiles", *SendingOperator.template_fields)
    template_ext: Sequence[str] = (".sql",)
    ui_color = MembershipOperator.ui_color
    # The task commit emits them.
    emits_assets = False

    def __init__(
        self, *, share: Mapping[str, Any], profiles: Mapping[str, Any] | None = None, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.share = share
        self.profiles = profiles

    def bind_parameters(self) -> Any:
        """Return the bind parameters of the query, which are rendered as ``plan`` renders them."""
        return self.profiles and self.profiles.get("parameters")

    @ends_retries
    def execute(self, context: Context) -> dict[str, Any]:
        """Send the share; one that was left empty is skipped."""
        if not self.share:
            raise AirflowSkipException("The plan has fewer shares.")
        plan = self.share["plan"]
        report = self.run_and_report(context, ledger_of(self.hook, plan).folder, self._push)
        return {**report.summary(), _PLAN: plan["name"]}

    def _push(self, report: Report) -> Report:
        from airflow_provider_talon_cdp.sync.members import Members  # noqa: PLC0415
        from airflow_provider_talon_cdp.sync.mirror import push_share  # noqa: PLC0415

        plan, senders, limits = self.share["plan"], self.share["of"], self.limits()
        ledger = ledger_of(self.hook, plan)
        with ledger.pushing(plan["owner"], plan["name"], self.share["parts"], run_facts(self.hook)) as share:
            self.log.info("%s changes are left in this share of the plan.", f"{share.changes:,}")
            if self.profiles is None:
                options = {"audience_id_type": plan["audience_id_type"], "in_flight": limits.in_flight}
                return push_share(
                    share,
                    share.batches(),
                    Members(),
                    lambda: self.hook.members_sender(**options, senders=senders),
                    limits,
                    report,
                )
            profiles = SqlToTalonProfilesOperator(
                task_id=self.task_id,
                in_flight=limits.in_flight,
                talon_cdp_conn_id=self.talon_cdp_conn_id,
                **self.profiles,
            )
            kind = profiles.kind()
            # A plan may wait for approval while the package is updated: older ones do not say it.
            if kind.partial and not plan.get("partial", True):
                raise InvalidInputError(
                    "skip_unknown_attributes has changed since this plan was made: Talon.One may ignore\n"
                    "attributes that the ledger would record. Nothing was sent.\n"
                    "Clear the task that plans (plan)."
                )
            rows = profiles.rows(profiles.sql_hook())
            chunks = kind.reread(share.batches(in_order=True), rows, ledger.names)
            return push_share(share, chunks, kind, lambda: profiles.sender(senders), limits, report)


class CommitPlanOperator(SendingOperator):
    """The task ``commit`` of both groups: checks that the whole plan was sent, and reports.

    As a mirror does after its push, it also checks that the plan's audiences are still the same.

    Returns:
        The counts of the whole sync.
    """

    template_fields: Sequence[str] = ("planned", "pushed", *SendingOperator.template_fields)

    def __init__(
        self, *, planned: Mapping[str, Any], pushed: Iterable[Mapping[str, Any]] | None, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.planned = planned
        self.pushed = pushed

    @ends_retries
    def execute(self, context: Context) -> dict[str, Any]:
        """Commit, and report."""
        # A dry run has no report file.
        path = self.planned["report"]["report_file"]
        folder = storage("report", path).parent.parent if path else None
        return self.run_and_report(context, folder, lambda report: self._commit(report.report_file)).summary()

    def asset_uris(self, deployment_host: str) -> Mapping[str, str]:
        """Return the assets of the planning task."""
        uris: Mapping[str, str] = self.planned["assets"]
        return uris

    def lineage_inputs(self) -> Sequence[Any]:
        """Return the tables that the planning task has read."""
        # A plan may wait for approval while the package is updated: older ones have no inputs.
        return assets.named_inputs(self.planned.get("inputs", ()))

    def lineage_outputs(self) -> Mapping[str, int | None]:
        """Return the assets that were changed, without counts if the task failed before it knew them."""
        outputs, report = super().lineage_outputs(), self.report
        return dict.fromkeys(outputs) if report and report.state == "stopped" and not report.sent else outputs

    def _commit(self, report_file: str | None) -> Report:
        from airflow_provider_talon_cdp.changes.counts import Counts  # noqa: PLC0415
        from airflow_provider_talon_cdp.sync.audiences import Audiences  # noqa: PLC0415
        from airflow_provider_talon_cdp.sync.mirror import combined_report  # noqa: PLC0415
        from airflow_provider_talon_cdp.sync.profiles import CHANGED  # noqa: PLC0415
        from airflow_provider_talon_cdp.sync.push import fail_if_rejected  # noqa: PLC0415
        from airflow_provider_talon_cdp.sync.report import Report, planned_audiences  # noqa: PLC0415

        planned, plan = self.planned["report"], self.planned["plan"]
        path = planned["report_file"]
        report = Report.of(planned, planned_audiences(storage("report", path)) if path else {})
        report.state = "done" if report.verdict is None else "refused"
        all_changed = False
        if plan:
            ledger, names, checks = ledger_of(self.hook, plan), plan["names"], Report()
            audiences = Audiences(names=names, verify="identity")
            counts = Counts(additions=Counter(names.keys()))
            outcome = ledger.commit(
                plan["owner"],
                plan["name"],
                lambda: audiences.check(ledger, counts, {}, self.hook.members_sender, checks, after=True),
            )
            # Profiles that are cleared have no row that could change. A few rows may really have changed.
            all_changed = _MANY_CHANGED <= outcome.skipped == outcome.changes - outcome.removed.total()
            pushed = [*_results_of(plan["name"], self.pushed or ()), checks.summary()]
            report = combined_report(report, outcome, pushed, time.time() - self.planned["began"])
        report.report_file = report_file
        if reading := self.planned["reading"]:
            _reading(ledger_of(self.hook, reading), reading).remove()
        self.log.info("Done:\n%s", report)
        if all_changed:
            raise RejectedRecordsError(
                f"None of {outcome.skipped:,} profiles was sent, as every row differs from the plan.\n"
                "If each run ends so, the query has a value that changes at each reading, such as now().\n"
                "Take it out, or use SqlToTalonProfilesOperator, which reads the query once.\n"
                f"Rows that really changed after the plan are sent by the next run.\n{report}",
                report,
            )
        # A report with a verdict is of a run that sent nothing.
        if report.verdict is None:
            fail_if_rejected(report, self.limits().max_rejected, excused=[CHANGED])
        return report


def _refuse_reserved(arguments: Mapping[str, Any], *reserved: str) -> None:
    for name in ("task_id", *reserved):
        if name in arguments:
            raise InvalidInputError(f"{name} is set by the group. Remove the argument.")


def _group(
    group_id: str,
    planner: type[PlanAudienceOperator | PlanProfilesOperator],
    arguments: Mapping[str, Any],
    *,
    workers: int,
    pool: str | None,
    default_args: Mapping[str, Any] | None,
    approval: Approval,
    plan_workers: int = 1,
) -> TaskGroup:
    check_choice("approval", approval, Approval)
    approver = None if approval == "never" else _approver()
    as_positive("workers", workers)
    as_positive("plan_workers", plan_workers)
    # What was not given is left to default_args, of the group or of the DAG.
    common = {name: arguments[name] for name in _COMMON if name in arguments}
    of_group: Any = dict(default_args or {})
    with TaskGroup(group_id, default_args=of_group) as group:
        defaults = {**(group.dag.default_args or {}), **group.default_args}
        # Only commit emits outlets. With those of default_args every task would emit them.
        # The tasks of a group pass on what they return, so default_args must not keep it out of XCom.
        planning = {**arguments, "outlets": [], "do_xcom_push": True}
        if plan_workers > 1:
            # Not the pool of tasks that send: with few slots, these tasks would wait for each other.
            reading = {"pool": defaults.get("pool", DEFAULT_POOL), **planning}
            planning["reads"] = _compare_tasks(f"{group.group_id}.plan", plan_workers, reading)
        plan = planner(task_id="plan", workers=workers, with_approval=approver is not None, **planning)
        planned: Any = plan.output
        push: Any = PushShareOperator.partial(
            task_id="push",
            profiles=_arguments_of_push(plan) if isinstance(plan, PlanProfilesOperator) else None,
            max_active_tis_per_dagrun=workers,
            outlets=[],
            do_xcom_push=True,
            **common,
            **({} if pool is None else {"pool": pool}),
        )
        pushed = push.expand(share=planned)
        if approver is not None:
            approve = approver(
                task_id="approve",
                planned=planned["planned"],
                asks_always=approval == "always",
                outlets=[],
                # Airflow's operator would make one of default_args the time that people have to answer.
                execution_timeout=None,
                **{name: value for name, value in common.items() if name == "talon_cdp_conn_id"},
            )
            approve.set_downstream(pushed)
        CommitPlanOperator(
            task_id="commit",
            planned=planned["planned"],
            pushed=pushed.output,
            outlets=arguments.get("outlets", defaults.get("outlets")),
            # If there is nothing to push, that task is skipped, and this one runs. It is skipped with plan.
            trigger_rule="none_failed_min_one_success",
            **common,
        )
    return group


def _arguments_of_push(plan: PlanProfilesOperator) -> dict[str, Any]:
    """Return the arguments of the operator with which ``push`` reads the rows that ``plan`` has read.

    They are taken from the operator, as ``default_args`` may have set some. None of them is a number that may
    be a template: rendered to text, an operator would not take it.
    """
    defaults = arguments_of(SqlOperator, ProfilesOperator)
    values = {name: getattr(plan, name, None) for name in defaults if name != "kwargs"}
    return {name: value for name, value in values.items() if value != defaults[name]}


def _compare_tasks(plan_id: str, plan_workers: int, arguments: Mapping[str, Any]) -> Any:
    """Create the tasks that read the query in ranges, and return their results."""
    ranges = DivideQueryOperator(task_id="ranges", plan_id=plan_id, ranges=plan_workers, **arguments)
    compare = CompareRangeOperator.partial(
        task_id="compare", plan_id=plan_id, max_active_tis_per_dagrun=plan_workers, **arguments
    )
    return compare.expand(span=ranges.output).output


def question_text(report: Report, in_request: int, rate: float, missing: int) -> str:
    """Return the approval question about a plan, in Markdown.

    Args:
        report: The plan's report.
        in_request: Changes in a request.
        rate: In requests per second.
        missing: Number of audiences that do not exist yet.
    """
    audiences = report.by_audience()
    lines = ["| audience | to add | to remove | members then |", "| --- | --: | --: | --: |"]
    for audience, numbers in list(audiences.items())[:_MOST_LISTED]:
        members = "" if numbers["members"] is None else f"{numbers['members']:,}"
        # Escaped, as an audience's ID may contain Markdown.
        name = "".join(char if char.isalnum() else f"&#{ord(char)};" for char in audience)
        lines.append(f"| {name} | {numbers['added']:,} | {numbers['removed']:,} | {members} |")
    if len(audiences) > _MOST_LISTED:
        lines.append(f"| ... and {len(audiences) - _MOST_LISTED:,} more | | | |")
    if missing:
        lines += ["", f"{missing:,} of these audiences do not exist yet, and are created."]
    requests = report.rule_calls + math.ceil((report.unsent - report.rule_changes) / in_request)
    minutes = requests / rate / 60
    duration = "less than a minute" if minutes < 1 else f"about {math.ceil(minutes):,} minutes"
    lines += ["", f"{requests:,} requests, {duration} at the connection's rate."]
    if report.rule_changes:
        lines += ["", f"{report.rule_changes:,} changes run rules, with one request for each profile."]
    if report.verdict:
        lines += ["", "**The guard would refuse it:**", ""]
        # Without the argument that would allow the plan, and without "Nothing was sent", which is clear here.
        refusal = report.verdict.replace(" Nothing was sent.", "")
        refusal = re.split(r"\n(?:If that|Fix the query)", refusal)[0]
        lines += [f"    {line}" for line in refusal.split("\n")]
    lines += ["", "*Approve* sends exactly this plan. *Reject* sends nothing; the next run plans anew."]
    return "\n".join(lines)


def _approver() -> Any:
    try:
        from airflow_provider_talon_cdp.transfers._approval import ApprovePlanOperator  # noqa: PLC0415
    # Before Airflow 3.1 the standard provider raises an AirflowException.
    except (ImportError, AirflowException) as error:
        raise InvalidInputError(
            "approval needs Airflow 3.1 or newer, and the package apache-airflow-providers-standard.\n"
            f"Upgrade, or remove approval: the guard protects without it. ({error})"
        ) from error
    return ApprovePlanOperator


def _shares(plan: Mapping[str, Any] | None, workers: int, *, fills: bool) -> list[dict[str, Any]]:
    """Divide a plan's parts, which have the same size except the last, into shares."""
    parts = plan["parts"] if plan else 0
    count = min(workers, parts)
    shares = [
        {"plan": plan, "parts": list(range(first, parts, count)), "of": count} for first in range(count)
    ]
    return _filled(shares, workers) if fills else shares


def _filled(spans: list[dict[str, Any]], count: int) -> list[dict[str, Any]]:
    """Add empty elements, of which a mapped task has instances too.

    An earlier try's list may have been longer. Airflow removes surplus instances, and 2.11 and 3.1 then never
    start the task after the mapped one.
    """
    return spans + [{}] * (count - len(spans))


def _was_cleared(context: Context) -> bool:
    """Whether the task may have had a result before: it was cleared, or is retried."""
    return getattr(context["ti"], "try_number", 1) > 1


def _results_of(plan: str, pushed: Iterable[Mapping[str, Any] | None]) -> Iterator[dict[str, Any]]:
    """Yield the summaries of what was pushed of a plan.

    Airflow 3.3 keeps the results of instances that it has removed since. The results of earlier versions of
    this package do not name their plan.
    """
    for result in filter(None, pushed):
        if result.get(_PLAN, plan) == plan:
            yield {name: value for name, value in result.items() if name != _PLAN}


def _reading(ledger: Ledger, span: Mapping[str, Any]) -> Reading:
    from airflow_provider_talon_cdp.ledger.reading import Reading  # noqa: PLC0415

    return Reading(ledger.folder, span["reading"])


def ledger_of(hook: TalonCdpHook, plan: Mapping[str, Any]) -> Ledger:
    """Return the ledger of a plan, or of a reading."""
    folder = storage("state URI", plan["state_uri"])
    # A plan may wait for approval while the package is updated: older ones do not say it.
    keep = plan.get("keep_versions", KEEP_VERSIONS)
    return open_ledger(folder, hook, plan["ledger"], holds=plan["holds"], keep=keep)
