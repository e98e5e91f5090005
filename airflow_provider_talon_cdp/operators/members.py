"""Add and remove members of an audience, from lists in the DAG."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from airflow.providers.common.compat.sdk import Context

from airflow_provider_talon_cdp.exceptions import InvalidInputError
from airflow_provider_talon_cdp.operators._arguments import as_list, check_literals
from airflow_provider_talon_cdp.operators._base import MembershipOperator
from airflow_provider_talon_cdp.operators._fields import ends_retries

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import XComArg

    from airflow_provider_talon_cdp.changes.change import Record
    from airflow_provider_talon_cdp.sync.mirror import Mirror


class SyncAudienceMembersOperator(MembershipOperator):
    """Add customer profiles to one audience and remove others from it, or make it equal to a list.

    The lists may have any length and come from XCom (``other_task.output``) or from a template. They are sent
    in requests of at most 1000 changes, many of them in flight. For more than a few hundred thousand members
    use ``SqlToTalonAudienceOperator``, which streams them from SQL. A profile that does not exist is created;
    it is shown in an Application after its first session or profile update there.

    Args:
        audience_id: The audience.
        add: Integration IDs of the profiles to add: strings of 1 to 1000 characters, integers or UUIDs.
        remove: Integration IDs of the profiles to remove. A profile in both lists is an error.
        members: Instead of both, with ``mode="mirror"``: all members that the audience should have. Only
            members that an earlier mirror, or another task of this provider, added are removed.
        mode: ``mirror`` with ``members``, else None.
        kwargs: As in ``MembershipOperator``.

    Returns:
        The counts of the sync, as in ``SqlToTalonAudienceOperator``; no member IDs.
    """

    template_fields: Sequence[str] = ("add", "remove", "members", *MembershipOperator.template_fields)
    unrendered_lists: ClassVar[Sequence[str]] = ("add", "remove", "members")
    # For Airflow's registry: a retry resumes from the task state store.
    __supports_durable_execution = True

    def __init__(
        self,
        *,
        audience_id: str | int,
        add: Sequence[Any] | XComArg | None = None,
        remove: Sequence[Any] | XComArg | None = None,
        members: Sequence[Any] | XComArg | None = None,
        mode: Literal["mirror"] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(audience_id=audience_id, **kwargs)
        self.add = () if add is None else add
        self.remove = () if remove is None else remove
        self.members = members
        self.mode = mode
        if mode not in (None, "mirror"):
            raise InvalidInputError(f"mode must be 'mirror' or None, but is {mode!r}.")
        if (mode == "mirror") != (members is not None):
            raise InvalidInputError("members and mode='mirror' go together: give both or neither.")
        is_left_out = add is None and remove is None
        if mode == "mirror" and not is_left_out:
            raise InvalidInputError("add and remove do not go with members: a mirror computes both.")
        if mode is None and is_left_out:
            raise InvalidInputError("There is nothing to do: give add, remove or members.")
        lists = {"members": members} if mode == "mirror" else {"add": self.add, "remove": self.remove}
        check_literals(as_list, **lists)
        self.check_mode(mode)

    @ends_retries
    def execute(self, context: Context) -> dict[str, Any]:
        """Send the changes."""
        if self.mode == "mirror":
            return self.run_mirror(context).summary()
        adds = self._records("add", "add", self.add)
        removes = self._records("remove", "remove", self.remove)
        _refuse_overlap(adds, removes)
        return self.send_changes(context, adds + removes).summary()

    def mirror(self, context: Context) -> Mirror:
        """Return the mirror that makes the audience equal to the list."""
        from airflow_provider_talon_cdp.changes.spool import sorted_members  # noqa: PLC0415

        records = list(sorted_members(self._records("members", "add", self.members)))
        return self.audience_mirror(lambda: records)

    def _records(self, name: str, verb: str, ids: Any) -> list[Record]:
        from airflow_provider_talon_cdp.changes.change import read_members  # noqa: PLC0415

        return list(read_members(as_list(name, ids), self.one_audience(), verb))


def _refuse_overlap(adds: list[Record], removes: list[Record]) -> None:
    from airflow_provider_talon_cdp.changes.change import Chunk  # noqa: PLC0415

    def profiles(records: list[Record]) -> set[str]:
        return {profile_id for chunk in records if isinstance(chunk, Chunk) for profile_id in chunk.ids}

    both = len(profiles(adds) & profiles(removes))
    if both:
        raise InvalidInputError(
            f"{both:,} profile(s) are in both add and remove. Nothing was sent.\nLeave each in one list."
        )
