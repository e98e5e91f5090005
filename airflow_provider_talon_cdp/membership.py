"""What the operators that change audience members have in common."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from airflow.providers.common.compat.sdk import Context

from airflow_provider_talon_cdp.contract import AudienceIdType, check_text
from airflow_provider_talon_cdp.cursor import task_cursor
from airflow_provider_talon_cdp.exceptions import AudienceExistsError, InvalidInputError
from airflow_provider_talon_cdp.hooks.talon_cdp import TalonCdpHook
from airflow_provider_talon_cdp.ledgered import LedgerOperator, storage
from airflow_provider_talon_cdp.ledgers.adopt import adopt_csv
from airflow_provider_talon_cdp.ledgers.files import FilesLedger
from airflow_provider_talon_cdp.operators._arguments import (
    as_bool,
    audience_id_of,
    check_choice,
    check_literals,
    check_rendered,
)
from airflow_provider_talon_cdp.sync.changes import Record
from airflow_provider_talon_cdp.sync.memberships import Memberships
from airflow_provider_talon_cdp.sync.mirror import Mirror
from airflow_provider_talon_cdp.sync.plan import Source
from airflow_provider_talon_cdp.sync.run import run_sync

_MIRROR_DEFAULTS: dict[str, Any] = {
    "audience_name": None,
    "on_empty": "fail",
    "max_removal_fraction": 0.2,
    "max_removals": None,
    "max_additions": None,
    "send": "changed",
    "dry_run": False,
    "state_uri": None,
    "keep_versions": 3,
    "initial_members": None,
}


class MembershipOperator(LedgerOperator):
    """Base of the operators that add members to audiences and remove them.

    Args:
        audience_id: The one audience: its ID in the CDP (a string), or Talon.One's own number (an integer) with
            ``audience_id_type="internal"``; None where the source has an audience column.
        audience_id_type: ``external`` or ``internal``; a mirror takes external ones alone.
        audience_name: Mirror: create the audience under this name where it does not exist yet.
        initial_members: Mirror: a CSV file of members that the audience got by other means, such as the Campaign
            Manager's export; read when the ledger is new, so that the first mirror can remove them.
        kwargs: As in ``LedgerOperator``; only a mirror takes those from ``on_empty`` to ``keep_versions``. A mirror counts
            removals against the known members of any one audience.
    """

    template_fields: Sequence[str] = (
        "audience_id",
        "audience_name",
        "initial_members",
        *LedgerOperator.template_fields,
    )
    ui_color = "#d9f5e3"

    def __init__(
        self,
        *,
        audience_id: str | int | None = None,
        audience_id_type: AudienceIdType = "external",
        audience_name: str | None = None,
        initial_members: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.audience_id = audience_id
        self.audience_id_type = audience_id_type
        self.audience_name = audience_name
        self.initial_members = initial_members
        check_choice("audience_id_type", audience_id_type, AudienceIdType)
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

    def send_changes(self, records: Iterable[Record]) -> dict[str, Any]:
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
        names: Mapping[str, str] | None,
    ) -> dict[str, Any]:
        """Make the audiences equal to the source, and return the report.

        Args:
            context: The task's context.
            source: Reads the members.
            ledger_name: Which ledger.
            managed: Audiences that may change, or None.
            names: Name by audience ID, of audiences to create where they do not exist; filled while the source is read.
                None where none is to be created.
        """
        if self.audience_name is not None:
            check_text("audience_name", check_rendered("audience_name", self.audience_name))
        hook = TalonCdpHook(self.talon_cdp_conn_id)
        ledger_of = self.ledgers(hook, ledger_name)
        ledger = ledger_of(self.state_folder())
        mirror = Mirror(
            source=source,
            ledger=ledger,
            guard=self.guard(),
            sender=lambda: hook.members_sender(in_flight=self.in_flight),
            kind=Memberships(managed, sends_all=self.sends_all()),
            create=None if names is None else lambda audience: _create(hook, audience, names),
            in_flight=self.in_flight,
            max_rejected=self.max_rejected,
        )
        if as_bool("dry_run", self.is_dry_run):
            with TemporaryDirectory(prefix="talon-cdp-") as scratch:
                rehearsed = self._rehearse(ledger, ledger_of(Path(scratch)))
                return replace(mirror, ledger=rehearsed).dry_run(hook.settings.requests_per_second).summary()
        owner = self.run_owner(context)
        self._refuse_siblings(context, ledger)
        if self.initial_members is not None:
            ledger.load()
            if ledger.version:
                self.log.info("The ledger exists already, so initial_members is not read: %s", ledger.place)
            else:
                self._adopt(ledger, owner)
        return self.run_mirror(mirror, owner, task_cursor(context, self._input(ledger)))

    def _refuse_siblings(self, context: Context, ledger: FilesLedger) -> None:
        """Refuse a ledger that another instance of this mapped task has synced in this DAG run."""
        instance = context.get("ti")
        if instance is None or instance.map_index in (None, -1):
            return
        ledger.load_manifest()
        task, _, index = self.run_owner(context).rpartition("/")
        other_task, _, other = ledger.owner.rpartition("/")
        if other_task == task and other != index:
            raise InvalidInputError(
                f"Instance {other} of the mapped task {self.task_id} has mirrored the same members in this DAG run, and this one "
                f"would take them out again: both have the ledger in {ledger.place}. Join their queries with UNION ALL in one "
                "task, or give each instance an audience, or with an audience column a ledger=, of its own."
            )

    def _input(self, ledger: FilesLedger) -> list[Any]:
        """All that a plan comes from, but for the data."""
        fields = [(name, getattr(self, name)) for name in self.template_fields if name != "is_dry_run"]
        return [str(ledger.folder), self.guard(), *fields]

    def _rehearse(self, ledger: FilesLedger, scratch: FilesLedger) -> FilesLedger:
        """Give a dry run the ledger, or one to throw away where the real run would adopt members first."""
        ledger.load()
        if self.initial_members is None or ledger.version:
            return ledger
        self._adopt(scratch, "dry run")
        return scratch

    def _adopt(self, ledger: FilesLedger, owner: str) -> None:
        file = storage("initial members file", str(self.initial_members))
        adopted = adopt_csv(ledger, owner, file, str(self.audience_id))
        self.log.info("Adopted %s members into a new ledger.", f"{adopted:,}")

    def _check_audience_id(self, name: str, value: object) -> str | int:
        return audience_id_of(name, value, self.audience_id_type)


def _create(hook: TalonCdpHook, audience: str, names: Mapping[str, str]) -> bool:
    """Create an audience, if it has a name; say whether it did not exist, or may not have."""
    if audience not in names:
        return False
    try:
        hook.create_audience(audience, names[audience])
    except AudienceExistsError as error:
        if error.repeated:
            hook.log.warning(
                "Audience %r exists, and may have been created just now; if so, connect it to your Applications in the Campaign "
                "Manager.",
                audience,
            )
        return error.repeated
    hook.log.info("Created audience %r; connect it to your Applications in the Campaign Manager.", audience)
    return True
