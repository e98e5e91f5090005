"""The manifest: which files of a ledger are in force, and which were before."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from airflow_provider_talon_cdp.exceptions import LedgerError
from airflow_provider_talon_cdp.ledgers.storage import Folder, read_json, remove, write_json

FORMAT = 1
_NAME = "manifest.json"


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """One version of a ledger, and those before it whose files are kept.

    Args:
        version: Its number; 0 before the first one.
        members: The file of the members that its plan starts from; None for no members.
        plan: The files of the plan, in order.
        acks: Name of the file of acknowledgements.
        rejected: Records that the plan leaves out because they cannot be sent, by reason.
        history: Versions before it, the newest first: the names of their files.
    """

    version: int = 0
    members: Mapping[str, Any] | None = None
    plan: tuple[Mapping[str, Any], ...] = ()
    acks: str = ""
    rejected: Mapping[str, int] = field(default_factory=dict)
    history: tuple[Mapping[str, Any], ...] = ()

    @property
    def changes(self) -> int:
        """Changes in the plan."""
        return sum(part["changes"] for part in self.plan)

    def followed_by(self, manifest: Manifest, keep: int) -> Manifest:
        """Put this version into the history of the next one, which keeps the files of so many versions."""
        if not self.version:
            return manifest
        before = {"version": self.version, "members": self.members, "plan": self.plan, "acks": self.acks}
        return replace(manifest, history=(before, *self.history)[: keep - 1])

    def write(self, folder: Folder, identity: Mapping[str, str]) -> None:
        """Put it in force."""
        write_json(folder / _NAME, {"format": FORMAT, **identity, **asdict(self)})

    @classmethod
    def read(cls, folder: Folder, identity: Mapping[str, str]) -> Manifest:
        """Read what is in force; a version 0 where there is nothing yet.

        Raises:
            LedgerError: It is damaged, of a newer format, or of another connection.
        """
        content = read_json(folder / _NAME)
        if content is None:
            return cls()
        if content.get("format") != FORMAT:
            raise LedgerError(
                f"The ledger in {folder} has format {content.get('format')}, and this version of the provider knows "
                f"{FORMAT}. Upgrade airflow-provider-talon-cdp on this worker."
            )
        if {name: content.get(name) for name in identity} != identity:
            raise LedgerError(f"The ledger in {folder} belongs to another deployment or audience.")
        return cls(
            version=content["version"],
            members=content["members"],
            plan=tuple(content["plan"]),
            acks=content["acks"],
            rejected=content["rejected"],
            history=tuple(content["history"]),
        )

    def remove_others(self, folder: Folder) -> None:
        """Delete files of versions that are not named here, and of plans that never came into force."""
        named = _files(self.members, self.plan, self.acks)
        for each in self.history:
            named |= _files(each["members"], each["plan"], each["acks"])
        for version in folder.iterdir():
            # Drafts that a killed run left behind.
            if version.name.startswith(f".{_NAME}."):
                remove(version)
            if re.fullmatch(r"\d{8,}", version.name):
                for file in version.iterdir():
                    if f"{version.name}/{file.name}" not in named:
                        remove(file)


def _files(members: Mapping[str, Any] | None, plan: tuple[Mapping[str, Any], ...], acks: str) -> set[str]:
    return {acks} | {each["file"] for each in [*plan, members] if each}
