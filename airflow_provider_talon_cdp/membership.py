"""What the operators that change audience members have in common."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from uuid import uuid4

from airflow.providers.common.compat.sdk import BaseOperator, Context, ObjectStoragePath, conf

from airflow_provider_talon_cdp.arguments import (
    as_bool,
    audience_id_of,
    check_choice,
    check_literals,
    check_sync_limits,
)
from airflow_provider_talon_cdp.cursor import task_cursor
from airflow_provider_talon_cdp.exceptions import AudienceExistsError, InvalidInputError
from airflow_provider_talon_cdp.hooks.talon_cdp import TalonCdpHook
from airflow_provider_talon_cdp.ids import AudienceIdType, check_text
from airflow_provider_talon_cdp.ledgers.adopt import adopt_csv
from airflow_provider_talon_cdp.ledgers.files import FilesLedger
from airflow_provider_talon_cdp.sync.changes import Record
from airflow_provider_talon_cdp.sync.guard import Guard, OnEmpty
from airflow_provider_talon_cdp.sync.mirror import Mirror
from airflow_provider_talon_cdp.sync.plan import Source
from airflow_provider_talon_cdp.sync.run import run_sync

_MIRROR_DEFAULTS: dict[str, Any] = {
    "audience_name": None,
    "on_empty": "fail",
    "max_removal_fraction": 0.2,
    "max_removals": None,
    "max_additions": None,
    "dry_run": False,
    "state_uri": None,
    "keep_versions": 3,
    "initial_members": None,
}


class MembershipOperator(BaseOperator):
    """Base of the operators that add members to audiences and remove them.

    Args:
        audience_id: The one audience: its ID in the CDP (a string), or Talon.One's own number (an integer) with
            ``audience_id_type="internal"``; None where the source has an audience column.
        audience_id_type: ``external`` or ``internal``; a mirror takes external ones alone.
        audience_name: Mirror: create the audience under this name where it does not exist yet.
        on_empty: Mirror: when the source has no valid member, ``fail``, ``skip`` or ``allow``.
        max_removal_fraction: Mirror: the share of the known members of any one audience, 0 to 1, that a run may remove.
        max_removals: Mirror: removals in all; None for any number.
        max_additions: Mirror: additions in all; None for any number.
        dry_run: Mirror: plan, count and guard, and send and record nothing. May be a template.
        state_uri: Mirror: folder of the ledgers, as a path or URI of any object storage that Airflow knows, e.g.
            ``s3://aws_default@bucket/talon``. Default: the Airflow setting ``[talon_cdp] state_uri``, else
            ``$AIRFLOW_HOME/talon_cdp``, which only does where all tries run on one machine.
        keep_versions: Mirror: versions of the ledger that are kept.
        initial_members: Mirror: a CSV file of members that the audience got by other means, such as the Campaign
            Manager's export; read when the ledger is new, so that the first mirror can remove them.
        max_rejected: How many records may be refused (null, empty, over-long, or refused by Talon.One) before the task
            fails; it fails after everything good was sent. None for any number.
        in_flight: Requests in flight at the most.
        talon_cdp_conn_id: Airflow connection of Talon.One.
    """

    template_fields: Sequence[str] = (
        "audience_id",
        "audience_name",
        "is_dry_run",
        "state_uri",
        "initial_members",
        "talon_cdp_conn_id",
    )
    ui_color = "#d9f5e3"

    def __init__(
        self,
        *,
        audience_id: str | int | None = None,
        audience_id_type: AudienceIdType = "external",
        audience_name: str | None = None,
        on_empty: OnEmpty = "fail",
        max_removal_fraction: float = 0.2,
        max_removals: int | None = None,
        max_additions: int | None = None,
        dry_run: bool | str = False,
        state_uri: str | None = None,
        keep_versions: int = 3,
        initial_members: str | None = None,
        max_rejected: int | None = 0,
        in_flight: int = 64,
        talon_cdp_conn_id: str = TalonCdpHook.default_conn_name,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.audience_id = audience_id
        self.audience_id_type = audience_id_type
        self.audience_name = audience_name
        self.on_empty = on_empty
        self.max_removal_fraction = max_removal_fraction
        self.max_removals = max_removals
        self.max_additions = max_additions
        # BaseOperator has a method named dry_run.
        self.is_dry_run = dry_run
        self.state_uri = state_uri
        self.keep_versions = keep_versions
        self.initial_members = initial_members
        self.max_rejected = max_rejected
        self.in_flight = in_flight
        self.talon_cdp_conn_id = talon_cdp_conn_id
        check_choice("audience_id_type", audience_id_type, AudienceIdType)
        check_sync_limits(max_rejected=max_rejected, in_flight=in_flight)
        self._guard()
        check_literals(as_bool, dry_run=dry_run)
        if isinstance(keep_versions, bool) or not isinstance(keep_versions, int) or keep_versions < 1:
            raise InvalidInputError(f"keep_versions must be an integer >= 1, but is {keep_versions!r}.")
        if audience_id is not None:
            check_literals(self._check_audience_id, audience_id=audience_id)
        if audience_name is not None:
            check_literals(check_text, audience_name=audience_name)

    def refuse_mirror_arguments(self) -> None:
        """Refuse arguments that only a mirror heeds, where something else is asked for."""
        given = {
            name: getattr(self, "is_dry_run" if name == "dry_run" else name) for name in _MIRROR_DEFAULTS
        }
        names = ", ".join(name for name, value in given.items() if value != _MIRROR_DEFAULTS[name])
        if names:
            raise InvalidInputError(f"{names}: for mode='mirror' only. Take it out, or choose that mode.")

    def check_mirror_arguments(self) -> None:
        """Refuse what a mirror cannot work with."""
        if self.audience_id_type != "external":
            raise InvalidInputError(
                "mode='mirror' takes external audience IDs (the IDs in the CDP), because the ledger is kept by them."
            )

    def send(self, records: Iterable[Record]) -> dict[str, Any]:
        """Send changes as they are, and return the report."""
        hook = TalonCdpHook(self.talon_cdp_conn_id)
        sender = hook.members_sender(audience_id_type=self.audience_id_type, in_flight=self.in_flight)
        report = run_sync(records, sender, in_flight=self.in_flight, max_rejected=self.max_rejected)
        if not report.read:
            self.log.warning("The source has no rows, so nothing was sent.")
        return report.summary()

    def mirror(
        self,
        context: Context,
        source: Source,
        *,
        ledger_name: str,
        managed: Collection[str] | None,
        names: Mapping[str, str],
    ) -> dict[str, Any]:
        """Make the audiences equal to the source, and return the report.

        Args:
            context: The task's context.
            source: Reads the members.
            ledger_name: Which ledger.
            managed: Audiences that may change, or None.
            names: Name by audience ID, of audiences to create where they do not exist; filled while the source is read.
        """
        hook = TalonCdpHook(self.talon_cdp_conn_id)
        settings = hook.settings
        ledger_of = partial(
            FilesLedger,
            deployment_host=settings.deployment_host,
            base_url=settings.base_url,
            name=ledger_name,
            keep=self.keep_versions,
        )
        ledger = ledger_of(_storage("state URI", self._state_uri()))
        mirror = Mirror(
            source=source,
            ledger=ledger,
            guard=self._guard(),
            sender=lambda: hook.members_sender(in_flight=self.in_flight),
            managed=managed,
            prepare=lambda audiences: _create(hook, audiences, names),
            in_flight=self.in_flight,
            max_rejected=self.max_rejected,
        )
        self.log.info("Ledger: %s", ledger.folder)
        if as_bool("dry_run", self.is_dry_run):
            with TemporaryDirectory(prefix="talon-cdp-") as scratch:
                rehearsed = self._rehearse(ledger, ledger_of(Path(scratch)))
                return replace(mirror, ledger=rehearsed).dry_run(settings.requests_per_second).summary()
        owner = self._owner(context)
        if self.initial_members is not None:
            ledger.load()
            if not ledger.version:
                self._adopt(ledger, owner)
        return mirror.run(owner, task_cursor(context, self._input(ledger))).summary()

    def _input(self, ledger: FilesLedger) -> list[Any]:
        """All that a plan comes from, but for the data."""
        fields = [(name, getattr(self, name)) for name in self.template_fields if name != "is_dry_run"]
        return [str(ledger.folder), self._guard(), *fields]

    def _rehearse(self, ledger: FilesLedger, scratch: FilesLedger) -> FilesLedger:
        """Give a dry run the ledger, or one to throw away where the real run would adopt members first."""
        ledger.load()
        if self.initial_members is None or ledger.version:
            return ledger
        self._adopt(scratch, "dry run")
        return scratch

    def _adopt(self, ledger: FilesLedger, owner: str) -> None:
        file = _storage("initial members file", str(self.initial_members))
        adopted = adopt_csv(ledger, owner, file, str(self.audience_id))
        self.log.info("Adopted %s members into a new ledger.", f"{adopted:,}")

    def _guard(self) -> Guard:
        return Guard(
            on_empty=self.on_empty,
            max_removal_fraction=self.max_removal_fraction,
            max_removals=self.max_removals,
            max_additions=self.max_additions,
        )

    def _check_audience_id(self, name: str, value: object) -> str | int:
        return audience_id_of(name, value, self.audience_id_type)

    def _state_uri(self) -> str:
        home = os.environ.get("AIRFLOW_HOME") or os.path.expanduser("~/airflow")  # noqa: PTH111
        return (
            self.state_uri or conf.get("talon_cdp", "state_uri", fallback=None) or f"file://{home}/talon_cdp"
        )

    def _owner(self, context: Context) -> str:
        instance = context.get("ti")
        if instance is None:
            return f"{self.task_id}/{uuid4().hex}"
        return f"{instance.dag_id}/{instance.task_id}/{instance.run_id}/{instance.map_index}"


def _storage(name: str, uri: str) -> ObjectStoragePath:
    try:
        path = ObjectStoragePath(uri)
        # Only this looks for the file system.
        _ = path.fs
    except (ValueError, ImportError) as error:
        raise InvalidInputError(f"The {name} {uri!r} is no place that Airflow can reach: {error}.") from error
    return path


def _create(hook: TalonCdpHook, audiences: Sequence[str], names: Mapping[str, str]) -> list[str]:
    """Create the audiences that have a name; return those that did not exist."""
    created = []
    for audience in audiences:
        if audience in names:
            check_text(f"The audience_name of {audience!r}", names[audience])
    for audience in audiences:
        if audience not in names:
            continue
        try:
            hook.create_audience(audience, names[audience])
        except AudienceExistsError as error:
            if not error.repeated:
                continue
        hook.log.info(
            "Created audience %r; connect it to your Applications in the Campaign Manager.", audience
        )
        created.append(audience)
    return created
