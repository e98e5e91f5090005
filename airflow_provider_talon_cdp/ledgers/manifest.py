"""The manifest: which files of a ledger are in force, and which were before.

A manifest is never written over: each has a name of its own, and the last by name is in force. The name starts with the
turn of the run that wrote it, so the late word of a run that was taken over comes before that of the run that took over.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from airflow_provider_talon_cdp.exceptions import LedgerError
from airflow_provider_talon_cdp.ledgers.packed import File
from airflow_provider_talon_cdp.ledgers.plan import Plan
from airflow_provider_talon_cdp.ledgers.storage import (
    Folder,
    gone,
    names_in,
    read_json,
    remove,
    remove_folder,
    write_json,
)

FORMAT = 1
_NAME = re.compile(r"manifest-(\d+)-(\d+)-[0-9a-f]+\.json")
_FOLDER = re.compile(r"\d{8,}-[0-9a-f]+")
_DRAFT = ".manifest-"
# Looks for a manifest while others replace it.
_LOOKS = 5


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """One version of a ledger, and those before it whose files are kept.

    Args:
        version: Its number; 0 before the first one.
        turn: That of the run that wrote it.
        run: That run.
        owner: For whom it ran; see ``Lock``.
        members: The file of members; None for no members.
        since: Plans whose acknowledged changes come on top of these members, the oldest first; all are over.
        plan: The plan that starts from there.
        letters: Name of the folder for dead letters of its plan.
        names: Attribute names to which the fingerprints of profiles refer by number; never fewer than before.
        history: Versions before it, the newest first: the folders and files to keep of them.
    """

    version: int = 0
    turn: int = 0
    run: str = ""
    owner: str = ""
    members: File | None = None
    since: tuple[Plan, ...] = ()
    plan: Plan = field(default_factory=Plan)
    letters: str = ""
    names: tuple[str, ...] = ()
    history: tuple[Mapping[str, Any], ...] = ()

    def followed_by(self, manifest: Manifest, keep: int) -> Manifest:
        """Put this version into the history of the next one, which keeps the files of so many versions."""
        if not self.version:
            return manifest
        before = {
            "version": self.version,
            "folders": [plan.folder for plan in (*self.since, self.plan)],
            "members": self.members and self.members.file,
        }
        return replace(manifest, history=(before, *self.history)[: keep - 1])

    @property
    def _name(self) -> str:
        return f"manifest-{self.turn:08}-{self.version:08}-{self.run}.json"

    def write(self, folder: Folder, identity: Mapping[str, str]) -> None:
        """Put it in force."""
        write_json(folder / self._name, {"format": FORMAT, **identity, **asdict(self)})

    @classmethod
    def read(cls, folder: Folder, identity: Mapping[str, str]) -> Manifest:
        """Read what is in force; a version 0 where there is nothing yet.

        Raises:
            LedgerError: It is damaged, of a newer format, or of another connection.
        """
        content = None
        for _ in range(_LOOKS):
            name = _last(folder)
            if not name:
                return cls()
            content = read_json(folder / name)
            if content is not None:
                break
        else:
            raise gone(folder / name)
        if content.get("format") != FORMAT:
            raise LedgerError(
                f"The ledger in {folder} has format {content.get('format')}, and this version of the provider knows "
                f"{FORMAT}. Upgrade airflow-provider-talon-cdp on this worker."
            )
        if {name: content.get(name) for name in identity} != identity:
            raise LedgerError(f"The ledger in {folder} belongs to another deployment or audience.")
        known = {name: content[name] for name in cls.__dataclass_fields__}
        known["members"] = content["members"] and File(**content["members"])
        known["since"] = tuple(Plan.of(each) for each in content["since"])
        known["plan"] = Plan.of(content["plan"])
        known |= {name: tuple(content[name]) for name in ("names", "history")}
        return cls(**known)

    @staticmethod
    def last_turn(folder: Folder) -> int:
        """Turn of the run that wrote the manifest in force, or 0."""
        name = _last(folder)
        return int(name.split("-")[1]) if name else 0

    def remove_others(self, folder: Folder, check: Callable[[], None]) -> None:
        """Delete files of versions that are not named here, and of plans that never came into force.

        Args:
            folder: The ledger's folder.
            check: Raises when this run may not delete, because another one took over and writes.
        """
        kept = {plan.folder for plan in (*self.since, self.plan)}
        kept |= {folder for each in self.history for folder in each["folders"]}
        paths = [*(each["members"] for each in self.history), self.members and self.members.file]
        members = [path.split("/") for path in paths if path]
        found = names_in(folder)
        check()
        for name in found:
            # Drafts are what a killed run left behind.
            if name.startswith(_DRAFT) or (_NAME.fullmatch(name) and name != self._name):
                remove(folder / name)
            elif _FOLDER.fullmatch(name) and name not in kept:
                remove_folder(folder / name, keep=[file for at, file in members if at == name])


def _last(folder: Folder) -> str:
    """Name of the manifest in force, or nothing where there is none."""
    return max(filter(_NAME.fullmatch, names_in(folder)), default="")
