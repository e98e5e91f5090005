"""What the operators that keep a ledger have in common."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import partial
from typing import Any, Literal
from uuid import uuid4

from airflow.providers.common.compat.sdk import BaseOperator, Context, ObjectStoragePath, conf

from airflow_provider_talon_cdp.exceptions import InvalidInputError
from airflow_provider_talon_cdp.hooks.talon_cdp import TalonCdpHook
from airflow_provider_talon_cdp.ledgers.files import FilesLedger
from airflow_provider_talon_cdp.operators._arguments import (
    as_bool,
    check_choice,
    check_literals,
    check_rendered,
    check_sync_limits,
)
from airflow_provider_talon_cdp.sync.guard import Guard, OnEmpty
from airflow_provider_talon_cdp.sync.mirror import Mirror
from airflow_provider_talon_cdp.sync.resume import Cursor

Send = Literal["changed", "all"]


class LedgerOperator(BaseOperator):
    """Base of the operators that send what differs from a ledger.

    Args:
        on_empty: When the source has no rows, ``fail``, ``skip`` or ``allow``; rows that are all rejected are an error.
        max_removal_fraction: The share of what the ledger has, 0 to 1, that a run may remove.
        max_removals: Removals in all; None for any number.
        max_additions: Additions in all; None for any number.
        send: ``changed``, or ``all`` to send also what is as it was, for example after an audience or profiles were deleted in
            Talon.One. May be a template.
        dry_run: Plan, count and guard, and send and record nothing. May be a template.
        state_uri: Folder of the ledgers, as an absolute path or URI of any object storage that Airflow knows, e.g.
            ``s3://aws_default@bucket/talon``. Default: the Airflow setting ``[talon_cdp] state_uri``, else
            ``$AIRFLOW_HOME/talon_cdp``, which only does where all tries run on one machine.
        keep_versions: Versions of the ledger that are kept.
        max_rejected: How many records may be refused before the task fails; it fails after everything good was sent. None
            for any number.
        in_flight: Requests in flight at the most.
        talon_cdp_conn_id: Airflow connection of Talon.One.
    """

    template_fields: Sequence[str] = ("is_dry_run", "send", "state_uri", "talon_cdp_conn_id")

    def __init__(
        self,
        *,
        on_empty: OnEmpty = "fail",
        max_removal_fraction: float = 0.2,
        max_removals: int | None = None,
        max_additions: int | None = None,
        send: Send = "changed",
        dry_run: bool | str = False,
        state_uri: str | None = None,
        keep_versions: int = 3,
        max_rejected: int | None = 0,
        in_flight: int = 64,
        talon_cdp_conn_id: str = TalonCdpHook.default_conn_name,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.on_empty = on_empty
        self.max_removal_fraction = max_removal_fraction
        self.max_removals = max_removals
        self.max_additions = max_additions
        self.send = send
        # BaseOperator has a method named dry_run.
        self.is_dry_run = dry_run
        self.state_uri = state_uri
        self.keep_versions = keep_versions
        self.max_rejected = max_rejected
        self.in_flight = in_flight
        self.talon_cdp_conn_id = talon_cdp_conn_id
        check_sync_limits(max_rejected=max_rejected, in_flight=in_flight)
        self.guard()
        check_literals(as_bool, dry_run=dry_run)
        check_literals(_check_send, send=send)
        if state_uri:
            check_literals(_check_state_uri, state_uri=state_uri)
        if isinstance(keep_versions, bool) or not isinstance(keep_versions, int) or keep_versions < 1:
            raise InvalidInputError(f"keep_versions must be an integer >= 1, but is {keep_versions!r}.")

    def guard(self) -> Guard:
        """Return the guard that the arguments make."""
        return Guard(
            on_empty=self.on_empty,
            max_removal_fraction=self.max_removal_fraction,
            max_removals=self.max_removals,
            max_additions=self.max_additions,
        )

    def sends_all(self) -> bool:
        """Whether to send also what is as it was."""
        _check_send("send", self.send)
        return self.send == "all"

    def ledgers(self, hook: TalonCdpHook, name: str, **how: Any) -> partial[FilesLedger]:
        """Return what makes a ledger of a folder.

        Args:
            hook: A ledger belongs to one deployment and one API base.
            name: Which ledger.
            how: As in ``FilesLedger``.
        """
        settings = hook.settings
        return partial(
            FilesLedger,
            deployment_host=settings.deployment_host,
            base_url=settings.base_url,
            name=name,
            keep=self.keep_versions,
            **how,
        )

    def state_folder(self) -> ObjectStoragePath:
        """Return the folder of the ledgers."""
        return storage("state URI", self.where_state_is())

    def where_state_is(self) -> str:
        """Return the URI of the folder of the ledgers."""
        home = os.environ.get("AIRFLOW_HOME") or os.path.expanduser("~/airflow")  # noqa: PTH111
        configured: str | None = conf.get("talon_cdp", "state_uri", fallback=None)
        if self.state_uri:
            return _check_state_uri("state_uri", self.state_uri)
        if configured:
            return _check_state_uri("[talon_cdp] state_uri in Airflow's configuration", configured)
        return f"file://{home}/talon_cdp"

    def run_mirror(self, mirror: Mirror, owner: str, cursor: Cursor | None = None) -> dict[str, Any]:
        """Plan and send, and return the report."""
        return mirror.run(owner, cursor).summary()

    def refuse_shared_ledger(self, context: Context) -> None:
        """Refuse a ledger named after the task where the task has several instances: each would undo what the others did."""
        instance = context.get("ti")
        if instance is not None and instance.map_index not in (None, -1):
            raise InvalidInputError(
                f"{self.task_id} is mapped, and all its instances would share the ledger that is named after the task: each would "
                "take what the others sent for its own. Give each a ledger= of its own, for example with "
                'expand_kwargs([{"sql": ..., "ledger": ...}, ...]).'
            )

    def run_owner(self, context: Context) -> str:
        """Name the task instance; its retry has the same name."""
        instance = context.get("ti")
        if instance is None:
            return f"{self.task_id}/{uuid4().hex}"
        return f"{instance.dag_id}/{instance.task_id}/{instance.run_id}/{instance.map_index}"


def _check_send(name: str, value: object) -> None:
    """Refuse what says neither to send what changed nor to send all."""
    check_choice(name, value, Send)


def _check_state_uri(name: str, uri: Any) -> str:
    """Refuse a folder that would be another one on the next worker."""
    where = str(check_rendered(name, uri))
    if not where.startswith("/") and "://" not in where:
        raise InvalidInputError(
            f"{name} must be an absolute path or a URI, such as s3://aws_default@bucket/talon_cdp, but is {where!r}. Any other path "
            "depends on where a worker was started, and there the next one would not find the ledger."
        )
    return where


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
        raise InvalidInputError(f"The {name} {uri!r} is no place that Airflow can reach: {error}.") from error
    return path
