"""Syncs that spread over Airflow's workers: one task plans, several push, one commits; several may read."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing, nullcontext
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from airflow.providers.common.compat.sdk import AirflowException, Context, TaskGroup

from airflow_provider_talon_cdp.connection_form import DEFAULT_CONN_ID
from airflow_provider_talon_cdp.contract import IN_FLIGHT
from airflow_provider_talon_cdp.exceptions import InvalidInputError
from airflow_provider_talon_cdp.operators._arguments import (
    as_bool,
    as_positive,
    as_tolerance,
    check_choice,
    check_numbers,
)
from airflow_provider_talon_cdp.operators._base import (
    DEFAULT_POOL,
    MAX_REJECTED,
    LedgerOperator,
    MembershipOperator,
    SendingOperator,
    arguments_of,
    ends_retries,
    open_ledger,
    storage,
)
from airflow_provider_talon_cdp.transfers._base import SqlOperator
from airflow_provider_talon_cdp.transfers.sql_to_audience import SqlToTalonAudienceOperator
from airflow_provider_talon_cdp.transfers.sql_to_profiles import ProfilesOperator, SqlToTalonProfilesOperator

if TYPE_CHECKING:
    from airflow_provider_talon_cdp.hooks.talon_cdp import TalonCdpHook
    from airflow_provider_talon_cdp.ledger.ledger import Ledger
    from airflow_provider_talon_cdp.ledger.reading import Reading
    from airflow_provider_talon_cdp.sync.mirror import Mirror
    from airflow_provider_talon_cdp.sync.report import Report


WORKERS = 4
Approval = Literal["never", "always", "beyond_guard"]
APPROVAL: Approval = "never"
# Audiences that the question about a plan names.
_ASKED = 50


def talon_audience_sync(
    group_id: str,
    *,
    workers: int = WORKERS,
    plan_workers: int = 1,
    pool: str | None = None,
    default_args: Mapping[str, Any] | None = None,
    approval: Approval = APPROVAL,
    max_rejected: int | str | None = MAX_REJECTED,
    in_flight: int | str = IN_FLIGHT,
    talon_cdp_conn_id: str = DEFAULT_CONN_ID,
    **mirror: Any,
) -> TaskGroup:
    """Keep an audience, or many, equal to a query, with several tasks that send at once.

    The group has three tasks, and with ``approval`` a fourth. ``plan`` reads the query, compares, asks the
    guard and writes the plan under the state URI, which all workers must reach. ``push`` is mapped: each
    instance sends a share of the plan, at its share of the connection's rate, and notes on its own what was
    acknowledged; one that fails or is cleared sends what is left of its share. ``commit`` fails unless all is
    in, and returns the report of the whole sync. Where nothing is to be sent, ``push`` is skipped.

    Args:
        group_id: The group's ID.
        workers: Instances of ``push`` at the most, all at once. A plan has one for each 100,000 changes, up
            to so many.
        plan_workers: Tasks that read the query at once. With more than one, ``ranges`` divides the query
            into ranges of profile IDs before, and ``compare`` is mapped: each instance reads the rows of a
            range, compares them, and leaves what changes under the state URI, where ``plan`` joins it. The
            query runs once for each range and once more, so it must give the same rows each time, as one with
            ``LIMIT`` may not.
        pool: Pool of ``push``, else the Airflow setting ``[talon_cdp] pool``; with fewer slots than
            ``workers`` the rate is not used up.
        default_args: For all tasks of the group, such as ``retries``.
        approval: Airflow 3.1 and newer: ``always`` has a person approve each plan before it is pushed, in the
            task ``approve`` between ``plan`` and ``push``; ``beyond_guard`` only a plan that the guard would
            refuse. ``never`` asks nobody, and such a plan fails. A plan that is rejected, or that is not the
            newest any more, is not pushed.
        max_rejected: How many records may be refused before ``commit`` fails. None for any number.
        in_flight: Requests in flight at the most, of each instance.
        talon_cdp_conn_id: Airflow connection of Talon.One.
        mirror: Other arguments of ``SqlToTalonAudienceOperator``, but for ``task_id`` and ``mode``.

    Returns:
        The group. The XCom of its task ``commit`` is a report like that of ``SqlToTalonAudienceOperator``;
        its ``requests``, ``retries`` and ``throttled`` are those of the last try of each task.
    """
    _refuse_own(mirror, "mode")
    limits = {"max_rejected": max_rejected, "in_flight": in_flight, "talon_cdp_conn_id": talon_cdp_conn_id}
    how: Any = {"pool": pool, "default_args": default_args, "approval": approval}
    how["plan_workers"] = plan_workers
    return _group(group_id, PlanAudienceOperator, mirror, limits, workers, None, **how)


def talon_profiles_sync(
    group_id: str,
    *,
    workers: int = WORKERS,
    pool: str | None = None,
    default_args: Mapping[str, Any] | None = None,
    approval: Approval = APPROVAL,
    max_rejected: int | str | None = MAX_REJECTED,
    in_flight: int | str = IN_FLIGHT,
    talon_cdp_conn_id: str = DEFAULT_CONN_ID,
    **profiles: Any,
) -> TaskGroup:
    """Keep attributes of customer profiles equal to a query, with several tasks that send at once.

    As in ``talon_audience_sync``. The plan has no values in it, so each instance of ``push`` reads the query
    again, and sorts its rows on the worker's disk. A profile whose row is no longer what was planned is not
    sent: it is counted under ``rejected``, has a dead letter, does not count towards ``max_rejected``, and
    the next run sends it.

    Args:
        group_id: The group's ID.
        workers: As in ``talon_audience_sync``.
        pool: As in ``talon_audience_sync``.
        default_args: As in ``talon_audience_sync``.
        approval: As in ``talon_audience_sync``.
        max_rejected: As in ``talon_audience_sync``.
        in_flight: As in ``talon_audience_sync``.
        talon_cdp_conn_id: As in ``talon_audience_sync``.
        profiles: Other arguments of ``SqlToTalonProfilesOperator``, but for ``task_id``.

    Returns:
        The group; its task ``commit`` returns a report like that of ``SqlToTalonProfilesOperator``.
    """
    _refuse_own(profiles)
    limits = {"max_rejected": max_rejected, "in_flight": in_flight, "talon_cdp_conn_id": talon_cdp_conn_id}
    how: Any = {"pool": pool, "default_args": default_args, "approval": approval}
    return _group(group_id, PlanProfilesOperator, profiles, limits, workers, profiles, **how)


class _PlanOperator(LedgerOperator):
    """Plans for other tasks to push, where its base would plan and send.

    Args:
        workers: Shares of the plan at the most.
        with_approval: Whether a person decides about a plan that is beyond the guard's limits.
        kwargs: As in its base.
    """

    is_published = False
    reading: Mapping[str, Any] | None = None
    """One of the ranges that other tasks have read."""

    def __init__(self, *, workers: int, with_approval: bool = False, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.workers = workers
        self.with_approval = with_approval

    @ends_retries
    def execute(self, context: Context) -> Any:
        """Plan, and return the shares; the XCom ``planned`` is for ``CommitPlanOperator``."""
        began, hook = time.time(), self.hook()
        mirror = replace(self.mirror(context, hook), with_approval=self.with_approval)
        report = self.conclude_mirror(context, hook, mirror)
        told = self.report
        plan = self._plan(mirror, self.run_owner(context)) if told and told.state == "planned" else None
        uris = self.asset_uris(hook.settings.deployment_host)
        planned = {"report": report, "plan": plan, "began": began, "assets": uris, "reading": self.reading}
        if told and self.with_approval:
            planned["question"] = _question(told, mirror.kind.in_request, hook.settings.requests_per_second)
        context["ti"].xcom_push("planned", planned)
        return _shares(plan, self.workers) if plan else []

    def send_plan(self, context: Context, mirror: Mirror, report: Report) -> Report:
        """Plan, for other tasks to push."""
        if isinstance(self, MembershipOperator):
            self.adopt_initial_members(context, mirror)
        with self.remembering_version(context, mirror.ledger):
            return mirror.hand_over(self.run_owner(context), report)

    def _plan(self, mirror: Mirror, owner: str) -> dict[str, Any]:
        """Say where the plan is, and which audiences are to be looked at after the push."""
        ledger, audiences, report = mirror.ledger, mirror.audiences, self.report
        return {
            "names": audiences.named_again(report) if audiences and report else {},
            "name": ledger.plan,
            "parts": ledger.parts,
            "ledger": ledger.identity.name,
            "holds": ledger.identity.holds,
            "state_uri": self.where_state_is(),
            "owner": owner,
            "audience_id_type": getattr(self, "audience_id_type", "external"),
        }


class PlanAudienceOperator(_PlanOperator, SqlToTalonAudienceOperator):
    """The task ``plan`` of ``talon_audience_sync``.

    Args:
        reads: What the tasks returned that read the query, a range each; None where this one reads it.
        kwargs: As in its bases.
    """

    template_fields: Sequence[str] = ("reads", *SqlToTalonAudienceOperator.template_fields)

    def __init__(self, *, reads: Iterable[Mapping[str, Any]] | None = None, **kwargs: Any) -> None:
        super().__init__(mode="mirror", **kwargs)
        self.reads = reads

    def mirror(self, context: Context, hook: TalonCdpHook) -> Mirror:
        """Return what makes the audiences equal to the query, or to what other tasks have read of it."""
        from airflow_provider_talon_cdp.sync.mirror import ComparedRanges  # noqa: PLC0415

        mirror = super().mirror(context, hook)
        if self.reads is None:
            return mirror
        reads = sorted(self.reads, key=lambda each: int(each["range"]))
        self.reading = first = reads[0]
        parts = [(first["reading"], number) for number in range(first["of"])]
        # Ranges of two readings may leave a gap, whose members would be removed.
        if [(each["reading"], each["range"]) for each in reads] != parts:
            raise InvalidInputError(
                "The rows were read in ranges that do not go together. Nothing was sent.\n"
                "Clear the task that divides the query (ranges), and all after it."
            )
        # Newer data may have been planned since they were read.
        facts = replace(mirror.facts, data_until=first["data_until"])
        names: Any = mirror.audiences.names if mirror.audiences and self.audience_name_column else {}

        def keep(found: Mapping[str, Any], join: Callable[[Any], object] = bool) -> None:
            self.audiences_seen.update(found["audiences"])
            names.update(found["names"])
            join(found)

        records = _reading(mirror.ledger, first).records
        source = partial(records, [each["file"] for each in reads], keep)
        compared = None
        if all(each["compared"] for each in reads):
            changes, told = zip(*(each["compared"] for each in reads), strict=True)
            compared = ComparedRanges(
                partial(records, changes, lambda _: None),
                lambda join: records(told, partial(keep, join=join)),
            )
        return replace(mirror, source=source, facts=facts, compared=compared)


class _BeforePlanOperator(SqlToTalonAudienceOperator):
    """Works for another task that plans.

    Args:
        plan_id: That task.
        kwargs: As in its base.
    """

    is_published = False

    def __init__(self, *, plan_id: str, **kwargs: Any) -> None:
        super().__init__(mode="mirror", **kwargs)
        self.plan_id = plan_id

    def mirror(self, context: Context, hook: TalonCdpHook) -> Mirror:
        """Return what that task makes the audiences equal with."""
        if self.audience_column is not None and self.ledger is None:
            self.ledger = f"{self.dag_id}.{self.plan_id}"
        return super().mirror(context, hook)


class DivideQueryOperator(_BeforePlanOperator):
    """The task ``ranges`` of ``talon_audience_sync``: divides the query into ranges of profile IDs.

    Args:
        ranges: How many, at the most.
        kwargs: As in its base.

    Returns:
        A range for each instance of ``CompareRangeOperator``; no profile IDs.
    """

    def __init__(self, *, ranges: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.ranges = ranges

    @ends_retries
    def execute(self, context: Context) -> Any:
        """Divide."""
        mirror = self.mirror(context, self.hook())
        return self.when_free(lambda: self._divide(mirror, self.run_owner(context)))

    def run_owner(self, context: Context) -> str:
        """Name the instance of the task that plans."""
        dag_id, _, *rest = super().run_owner(context).split("/")
        return "/".join([dag_id, self.plan_id, *rest])

    def _divide(self, mirror: Mirror, owner: str) -> list[dict[str, Any]]:
        from airflow_provider_talon_cdp.ledger.reading import Reading  # noqa: PLC0415
        from airflow_provider_talon_cdp.transfers._rows import range_bounds  # noqa: PLC0415

        ledger, is_dry_run = mirror.ledger, as_bool("dry_run", self.is_dry_run)
        reading = Reading(ledger.folder)
        # A dry run keeps nobody out.
        with nullcontext() if is_dry_run else ledger.divided(owner):
            if not is_dry_run:
                reading.remove_others()
            column = self.profile_id_column
            bounds = range_bounds(self.sql_hook(), self.sql, column, self.parameters, self.ranges)
            reading.begin(bounds)
        self.log.info("The query is read in %d ranges.", len(bounds) + 1)
        span = {
            "reading": reading.name,
            "of": len(bounds) + 1,
            "data_until": mirror.facts.data_until,
            "owner": None if is_dry_run else owner,
            "ledger": ledger.identity.name,
            "holds": ledger.identity.holds,
            "state_uri": self.where_state_is(),
        }
        return [span | {"range": number} for number in range(len(bounds) + 1)]


class CompareRangeOperator(_BeforePlanOperator):
    """The task ``compare`` of ``talon_audience_sync``: reads the rows of a range, and compares them.

    Args:
        span: One of what ``DivideQueryOperator`` returned.
        kwargs: As in its base.

    Returns:
        The range, and where its rows and its changes are.
    """

    template_fields: Sequence[str] = ("span", *_BeforePlanOperator.template_fields)

    def __init__(self, *, span: Mapping[str, Any], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.span = span

    @ends_retries
    def execute(self, context: Context) -> dict[str, Any]:
        """Read and compare."""
        mirror = self.mirror(context, self.hook())
        return self.when_free(lambda: self._compare(mirror, self.span["owner"], self.span["range"]))

    def _compare(self, mirror: Mirror, owner: str | None, number: int) -> dict[str, Any]:
        reading = _reading(mirror.ledger, self.span)
        names: dict[str, str] = {}

        def found() -> dict[str, Any]:
            seen = sorted(map(str, self.audiences_seen))
            return {"audiences": seen, "names": {str(each): name for each, name in names.items()}}

        def write(records: Iterable[Any], told: Callable[[], Mapping[str, Any]]) -> str:
            return reading.write(number, records, lambda: {**found(), **told()})

        with mirror.ledger.divided(owner, number) if owner else nullcontext():
            between = reading.bounds(number)
            with closing(self._records(self.sql_hook(), "add", names, between)) as records:
                file = write(records, dict)
            again = replace(mirror, source=partial(reading.records, [file], lambda _: None))
            return {**self.span, "file": file, "compared": again.compare_range(*between, write)}


class PlanProfilesOperator(_PlanOperator, SqlToTalonProfilesOperator):
    """The task ``plan`` of ``talon_profiles_sync``."""


class PushShareOperator(SendingOperator):
    """The task ``push`` of both groups: sends a share of a plan; again, what is left of it.

    Args:
        share: One of what the planning task returned.
        profiles: Of attributes, the arguments of ``SqlToTalonProfilesOperator``: the query is read again, as
            a plan holds no values.
        kwargs: As in ``SendingOperator``. ``max_rejected`` says how many refused records are no reason to
            give up; ``CommitPlanOperator`` judges them all.

    Returns:
        The counts of this try, in which ``resumed = sent + rejected + unclear``.
    """

    template_fields: Sequence[str] = ("share", "profiles", *SendingOperator.template_fields)
    template_ext: Sequence[str] = (".sql",)
    ui_color = MembershipOperator.ui_color
    is_published = False

    def __init__(
        self, *, share: Mapping[str, Any], profiles: Mapping[str, Any] | None = None, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.share = share
        self.profiles = profiles

    @ends_retries
    def execute(self, context: Context) -> dict[str, Any]:
        """Send."""
        hook = self.hook()
        folder = _ledger(hook, self.share["plan"]).folder
        return self.conclude(context, hook, folder, lambda report: self._push(hook, report))

    def asset_uris(self, deployment_host: str) -> Mapping[str, str]:
        """Return no assets: the task ``commit`` has them."""
        return {}

    def _push(self, hook: TalonCdpHook, report: Report) -> Report:
        from airflow_provider_talon_cdp.ledger.ledger import RunFacts  # noqa: PLC0415
        from airflow_provider_talon_cdp.sync.members import Members  # noqa: PLC0415
        from airflow_provider_talon_cdp.sync.mirror import push_share  # noqa: PLC0415

        plan, senders, limits, settings = self.share["plan"], self.share["of"], self.limits(), hook.settings
        ledger = _ledger(hook, plan)
        facts = RunFacts(key_fingerprint=settings.key_fingerprint, platform_name=settings.platform_name)
        with ledger.pushing(plan["owner"], plan["name"], self.share["parts"], facts) as share:
            self.log.info("%s changes are left in this share of the plan.", f"{share.changes:,}")
            if self.profiles is None:
                how = {"audience_id_type": plan["audience_id_type"], "in_flight": limits.in_flight}
                return push_share(
                    share,
                    share.batches(),
                    Members(),
                    lambda: hook.members_sender(**how, senders=senders),
                    limits,
                    report,
                )
            given = {"in_flight": self.in_flight, "max_rejected": self.max_rejected, **self.profiles}
            profiles = SqlToTalonProfilesOperator(task_id=self.task_id, **given)
            kind = profiles.kind()
            chunks = kind.reread(share.batches(), profiles.source(hook)(), ledger.names)
            return push_share(share, chunks, kind, lambda: profiles.sender(hook, senders), limits, report)


class CommitPlanOperator(SendingOperator):
    """The task ``commit`` of both groups: looks whether all of a plan is in, and reports.

    It looks whether the plan's audiences are still the same, as a mirror in one task does after its push.

    Args:
        planned: The planning task's XCom ``planned``.
        pushed: What the pushing tasks returned.
        kwargs: As in ``SendingOperator``.

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
        """Look, and report."""
        hook = self.hook()
        # Of a dry run, there is none.
        place = self.planned["report"]["report_file"]
        folder = storage("report", place).parent.parent if place else None
        return self.conclude(context, hook, folder, lambda report: self._commit(hook, report.report_file))

    def asset_uris(self, deployment_host: str) -> Mapping[str, str]:
        """Return what the planning task found."""
        uris: Mapping[str, str] = self.planned["assets"]
        return uris

    def _commit(self, hook: TalonCdpHook, report_file: str | None) -> Report:
        from airflow_provider_talon_cdp.changes.counts import Counts  # noqa: PLC0415
        from airflow_provider_talon_cdp.sync.audiences import Audiences  # noqa: PLC0415
        from airflow_provider_talon_cdp.sync.mirror import combined_report  # noqa: PLC0415
        from airflow_provider_talon_cdp.sync.profiles import CHANGED  # noqa: PLC0415
        from airflow_provider_talon_cdp.sync.push import fail_if_rejected  # noqa: PLC0415
        from airflow_provider_talon_cdp.sync.report import Report, planned_audiences  # noqa: PLC0415

        planned, plan = self.planned["report"], self.planned["plan"]
        place = planned["report_file"]
        report = Report.of(planned, planned_audiences(storage("report", place)) if place else {})
        report.state = "done" if report.verdict is None else "refused"
        if plan:
            ledger, names, asked = _ledger(hook, plan), plan.get("names", {}), Report()
            audiences = Audiences(names=names, verify="identity")
            counts = Counts(additions=Counter(names.keys()))
            outcome = ledger.commit(
                plan["owner"],
                plan["name"],
                lambda: audiences.check(ledger, counts, {}, hook.members_sender, asked, after=True),
            )
            pushed = [*(each for each in self.pushed or () if each), asked.summary()]
            report = combined_report(report, outcome, pushed, time.time() - self.planned["began"])
        report.report_file = report_file
        if reading := self.planned.get("reading"):
            _reading(_ledger(hook, reading), reading).remove()
        self.log.info("Done:\n%s", report)
        # Of a dry run, nothing was sent that could have failed in part.
        if report.verdict is None:
            fail_if_rejected(report, self.limits().max_rejected, excused=[CHANGED])
        return report


def _refuse_own(given: Mapping[str, Any], *own: str) -> None:
    for name in ("task_id", *own):
        if name in given:
            raise InvalidInputError(f"{name} is the group's own: take it out.")


def _group(
    group_id: str,
    planner: type[PlanAudienceOperator | PlanProfilesOperator],
    how: Mapping[str, Any],
    limits: Mapping[str, Any],
    workers: int,
    profiles: Mapping[str, Any] | None,
    *,
    pool: str | None,
    default_args: Mapping[str, Any] | None,
    approval: Approval,
    plan_workers: int = 1,
) -> TaskGroup:
    check_choice("approval", approval, Approval)
    approver = None if approval == "never" else _approver()
    as_positive("workers", workers)
    as_positive("plan_workers", plan_workers)
    check_numbers(as_tolerance, max_rejected=limits["max_rejected"])
    check_numbers(as_positive, in_flight=limits["in_flight"])
    common = dict(limits) | {name: how[name] for name in ("on_busy", "busy_timeout") if name in how}
    with TaskGroup(group_id, default_args=dict(default_args or {})) as group:
        rest = {name: value for name, value in how.items() if name not in common and name != "outlets"}
        reads = {"reads": _reads(group, plan_workers, {**common, **rest})} if plan_workers > 1 else {}
        with_approval = approval != "never"
        plan = planner(
            task_id="plan", workers=workers, with_approval=with_approval, **common, **rest, **reads
        )
        planned: Any = plan.output
        own = arguments_of(SqlOperator, ProfilesOperator, LedgerOperator)
        push: Any = PushShareOperator.partial(
            task_id="push",
            profiles=None if profiles is None else {name: rest[name] for name in own if name in rest},
            max_active_tis_per_dagrun=workers,
            **common,
            **({} if pool is None else {"pool": pool}),
        )
        pushed = push.expand(share=planned)
        if approver is not None:
            approve = approver(
                task_id="approve", planned=planned["planned"], asks_always=approval == "always"
            )
            approve.set_downstream(pushed)
        CommitPlanOperator(
            task_id="commit",
            planned=planned["planned"],
            pushed=pushed.output,
            outlets=how.get("outlets"),
            # Without anything to push, that task is skipped.
            trigger_rule="none_failed",
            **common,
        )
    return group


def _reads(group: TaskGroup, plan_workers: int, how: Mapping[str, Any]) -> Any:
    """Make the tasks that read the query in ranges; return what they return."""
    # Not the pool of tasks that send: one of few slots would have them wait for each other.
    how = {"pool": group.default_args.get("pool", DEFAULT_POOL), **how}
    how |= {"plan_id": f"{group.group_id}.plan"}
    ranges = DivideQueryOperator(task_id="ranges", ranges=plan_workers, **how)
    compare = CompareRangeOperator.partial(task_id="compare", max_active_tis_per_dagrun=plan_workers, **how)
    return compare.expand(span=ranges.output).output


def _question(report: Report, in_request: int, rate: float) -> dict[str, Any]:
    """Return what a person is to know about a plan."""
    requests = -(-report.unsent // in_request)
    return {
        "audiences": dict(list(report.by_audience().items())[:_ASKED]),
        "more": max(0, len(report.by_audience()) - _ASKED),
        "verdict": report.verdict,
        "requests": requests,
        "minutes": requests / rate / 60,
    }


def _approver() -> Any:
    try:
        from airflow_provider_talon_cdp.transfers._approval import ApprovePlanOperator  # noqa: PLC0415
    # Before Airflow 3.1 the provider says so with an error of Airflow's own.
    except (ImportError, AirflowException) as error:
        raise InvalidInputError(
            "approval needs Airflow 3.1 or newer, and the package apache-airflow-providers-standard.\n"
            f"Upgrade, or take approval out: the guard protects without it. ({error})"
        ) from error
    return ApprovePlanOperator


def _shares(plan: Mapping[str, Any], workers: int) -> list[dict[str, Any]]:
    """Divide a plan; its parts are equal, but for the last."""
    count = min(workers, plan["parts"])
    return [
        {"plan": plan, "parts": list(range(first, plan["parts"], count)), "of": count}
        for first in range(count)
    ]


def _reading(ledger: Ledger, span: Mapping[str, Any]) -> Reading:
    from airflow_provider_talon_cdp.ledger.reading import Reading  # noqa: PLC0415

    return Reading(ledger.folder, span["reading"])


def _ledger(hook: TalonCdpHook, plan: Mapping[str, Any]) -> Ledger:
    folder = storage("state URI", plan["state_uri"])
    return open_ledger(folder, hook, plan["ledger"], holds=plan["holds"])
