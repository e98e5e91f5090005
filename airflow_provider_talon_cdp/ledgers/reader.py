"""Reads a ledger: members, the plan in force, and how far it has come."""

from __future__ import annotations

import heapq
import re
from collections.abc import Generator, Iterator, Mapping

from airflow_provider_talon_cdp.ledgers.acks import Acks
from airflow_provider_talon_cdp.ledgers.columns import Columns
from airflow_provider_talon_cdp.ledgers.manifest import Manifest
from airflow_provider_talon_cdp.ledgers.plan import Plan, read_part
from airflow_provider_talon_cdp.ledgers.progress import (
    Progress,
    acknowledged,
    made_of_profiles,
    unacknowledged,
)
from airflow_provider_talon_cdp.ledgers.snapshot import read_members
from airflow_provider_talon_cdp.ledgers.storage import Folder, gone, names_in, read_json
from airflow_provider_talon_cdp.sync.blocks import Block, Changes, Member, Members
from airflow_provider_talon_cdp.sync.changes import Change
from airflow_provider_talon_cdp.sync.fold import Folded

_ACKS = re.compile(r"acks-(\d+)-[0-9a-f]+\.json")
_SUSPECTS = re.compile(r"suspects-[0-9a-f]+\.json")


class LedgerReader:
    """A ledger of files, for looking on.

    Args:
        folder: The ledger's folder.
        identity: What it belongs to.
        one_per_profile: Whether it holds fingerprints of profiles; see ``FilesLedger``.

    Raises:
        LedgerError: From any method, when files cannot be read, are damaged or gone, or are of a newer format.
    """

    def __init__(self, folder: Folder, identity: Mapping[str, str], *, one_per_profile: bool) -> None:
        self.folder = folder
        self.identity = identity
        self.manifest = Manifest()
        self.one_per_profile = one_per_profile
        self._suspected: frozenset[str] = frozenset()
        self._acks: list[Acks] | None = []

    @property
    def place(self) -> str:
        """The ledger's folder."""
        return str(self.folder)

    @property
    def version(self) -> int:
        """Number of the version in force; 0 before the first one."""
        return self.manifest.version

    @property
    def owner(self) -> str:
        """For whom the plan in force was made."""
        return self.manifest.owner

    @property
    def plan(self) -> str:
        """Which plan is in force, for processes that push a part of it."""
        return self.manifest.plan.folder

    @property
    def parts(self) -> int:
        """Parts of the plan in force."""
        return len(self.manifest.plan.parts)

    @property
    def names(self) -> tuple[str, ...]:
        """What the fingerprints of profiles refer to by number: the attribute names that ``enforce`` was given."""
        return self.manifest.names

    @property
    def suspected(self) -> frozenset[str]:
        """Audiences that were noted as such since the plan in force."""
        return self._suspected

    def load(self) -> None:
        """Read the state, without keeping others out.

        Raises:
            LedgerError: It is damaged, of a newer format, or of another connection.
        """
        self.load_manifest()
        self._acks = self._read_acks(self.manifest.plan)

    def load_manifest(self) -> None:
        """Read the state but for the acknowledgements, which are read when they are asked for.

        Raises:
            LedgerError: It is damaged, of a newer format, or of another connection.
        """
        self.manifest = Manifest.read(self.folder, self.identity)
        suspects = [read_json(self.folder / each) for each in self._files(self.manifest.plan, _SUSPECTS)]
        self._suspected = frozenset(audience for audiences in suspects for audience in audiences or ())
        self._acks = None

    @property
    def acks(self) -> list[Acks]:
        """What is known of each part of the plan."""
        if self._acks is None:
            self._acks = self._read_acks(self.manifest.plan)
        return self._acks

    def acks_of(self, part: int) -> Acks:
        """Read what is known of one part of the plan."""
        return self._joined(self.manifest.plan, part, self.acks_files())

    def known(self) -> Members:
        """Members that Talon.One acknowledged, sorted."""
        plans = [
            *((plan, self._read_acks(plan)) for plan in self.manifest.since),
            (self.manifest.plan, self.acks),
        ]
        return Folded(
            read_members(self.folder, self.manifest.members),
            [Changes(self._made_of(*plan)) for plan in plans],
            one_per_profile=self.one_per_profile,
        )

    def uncertain(self) -> Iterator[Member]:
        """Memberships that a request may have changed without an acknowledgement, sorted."""
        if self.one_per_profile:
            return
        doubts = (
            (change.profile_id, str(change.audience_id))
            for change in self.unacknowledged()
            if change.uncertain
        )
        suspects = (
            (member for member in self.known() if member[1] in self._suspected) if self._suspected else ()
        )
        last: Member | None = None
        for member in heapq.merge(doubts, suspects):
            if member != last:
                yield member
            last = member

    def changes(self) -> Generator[Change, None, None]:
        """All changes of the plan in force."""
        for part in range(self.parts):
            for batch in self._batches(self.manifest.plan, part):
                yield from batch.changes()

    def unacknowledged(self) -> Iterator[Change]:
        """Changes of the plan in force whose fate is not recorded, with what is uncertain about them now."""
        for part, (progress, acks) in enumerate(zip(self.progress(), self.acks, strict=True)):
            if progress.open or progress.refused:
                yield from unacknowledged(self._batches(self.manifest.plan, part), acks)

    def progress(self) -> list[Progress]:
        """How far each part of the plan in force has come."""
        plan = self.manifest.plan
        return [
            Progress.of(part.lines, plan.batch, acks)
            for part, acks in zip(plan.parts, self.acks, strict=True)
        ]

    @property
    def has_moved(self) -> bool:
        """Whether members are others now than those that the plan in force starts from."""
        return any(map(self._has_moved, self.acks))

    def _has_moved(self, acks: Acks) -> bool:
        return bool(acks.landed or (self.one_per_profile and acks.may_have_left))

    def _made_of(self, plan: Plan, known: list[Acks]) -> Iterator[Block]:
        """What a plan has changed so far."""
        made_of = made_of_profiles if self.one_per_profile else acknowledged
        for part, acks in enumerate(known):
            if self._has_moved(acks):
                yield from made_of(self._batches(plan, part), acks)

    def _batches(self, plan: Plan, part: int) -> Iterator[Columns]:
        return read_part(self.folder, plan.parts[part], plan.batch)

    def acks_files(self) -> list[str]:
        """Files of acknowledgements that there are."""
        return self._files(self.manifest.plan, _ACKS)

    def _files(self, plan: Plan, pattern: re.Pattern[str]) -> list[str]:
        """Files of a plan with such names."""
        if not plan.folder:
            return []
        found = names_in(self.folder / plan.folder)
        return [f"{plan.folder}/{name}" for name in found if pattern.fullmatch(name)]

    def _read_acks(self, plan: Plan) -> list[Acks]:
        found = self._files(plan, _ACKS)
        return [self._joined(plan, part, found) for part in range(len(plan.parts))]

    def _joined(self, plan: Plan, part: int, found: list[str]) -> Acks:
        start = plan.acks_of(part, "")[: -len(".json")]
        for name in plan.acks:
            if name.startswith(start) and name not in found:
                raise gone(self.folder / name)
        return Acks.together([Acks.read(self.folder / name) for name in found if name.startswith(start)])
