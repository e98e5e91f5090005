r"""The default ledger: a few files under a state URI, on a local disk or in an object store.

```
STATE_URI/<deployment host>/<name>/
    manifest.json                 which files below are in force, with their checksums
    lock.json                     who is writing; its time is renewed while they are
    suspects.json                 audiences that Talon.One may have lost
    00000007/members-RUN.tsv.gz   sorted lines: profile ID, audience ID
    00000007/plan-00000-RUN.tsv.gz  sorted lines: add or remove, profile ID, audience ID; 100,000 a part
    00000007/acks-RUN.json        which batches of 1000 changes may have left, have landed, and were refused in part
    dead-letters/<time>-<run>/00000.ndjson
```

Version 7's members are what Talon.One acknowledged before version 7's plan. What it has acknowledged since is
members plus the acknowledged changes of the plan; the next version folds them together while it compares. Changes
that may have left and were not acknowledged when a worker was killed are uncertain: the next plan sends each of them
again, as ``add?`` or ``remove?``, whatever the source says, and they stay uncertain until they are acknowledged. Lines are
UTF-8 with backslash, tab, newline and carriage return written as ``\``, ``\t``, ``\n``, ``\r``: read them with
``zcat``.
"""

from __future__ import annotations

import heapq
import time
from collections import Counter
from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from itertools import islice
from typing import Any
from uuid import uuid4

from airflow_provider_talon_cdp.exceptions import InvalidInputError, LedgerError
from airflow_provider_talon_cdp.ids import MAX_CHANGES
from airflow_provider_talon_cdp.ledgers.acks import Acks
from airflow_provider_talon_cdp.ledgers.letters import DeadLetters
from airflow_provider_talon_cdp.ledgers.lock import Lock
from airflow_provider_talon_cdp.ledgers.manifest import Manifest
from airflow_provider_talon_cdp.ledgers.naming import ledger_folder
from airflow_provider_talon_cdp.ledgers.plan import read_plan, write_plan
from airflow_provider_talon_cdp.ledgers.progress import acknowledged, refused, unacknowledged
from airflow_provider_talon_cdp.ledgers.snapshot import copied, read_members
from airflow_provider_talon_cdp.ledgers.storage import (
    Folder,
    read_json,
    remove,
    write_json,
    writing_lines,
)
from airflow_provider_talon_cdp.sync.changes import Batch, Change, Ids, Record
from airflow_provider_talon_cdp.sync.diff import Member, PlanCounts, externally_sorted, fold, members
from airflow_provider_talon_cdp.sync.ledger import Planner, StagedPlan

PART = 100 * MAX_CHANGES
# Batches that may leave before the next note of it: a killed run's changes in them are sent again.
AHEAD = 64
_SUSPECTS = "suspects.json"


class FilesLedger:
    """The ledger of one audience, or of the audiences of one sync.

    Args:
        state: Folder of all ledgers.
        deployment_host: Talon.One deployment; another one has other ledgers.
        base_url: API base; likewise.
        name: Name of the ledger: the audience ID for one audience, the sync's name for many.
        keep: Versions whose files are kept, at least 1.
        one_per_profile: The ledger holds one fingerprint for each profile, where it else holds audiences: ``known``
            yields profile ID and fingerprint; a change that adds sets a profile's fingerprint, one that removes forgets
            it, and a plan has one change of a profile at the most. ``uncertain`` yields a fingerprint that may be there;
            another may be, too. Such a ledger has a folder of its own.
        clock: Seconds since the epoch.

    Raises:
        LedgerError: From any method, when files cannot be read or written, are damaged, or are of a newer format.
    """

    def __init__(
        self,
        state: Folder,
        *,
        deployment_host: str,
        base_url: str,
        name: str,
        keep: int = 3,
        one_per_profile: bool = False,
        clock: Callable[[], float] = time.time,
    ) -> None:
        if not isinstance(keep, int) or isinstance(keep, bool) or keep < 1:
            raise InvalidInputError(f"keep must be an integer >= 1, but is {keep!r}.")
        self._identity = {"deployment_host": deployment_host, "base_url": base_url, "name": name}
        if one_per_profile:
            self._identity["holds"] = "profiles"
        self._one_per_profile = one_per_profile
        self.folder = ledger_folder(state, self._identity)
        self._keep = keep
        self.lock = Lock(self.folder, token := uuid4().hex, clock)
        self._run = token[:8]
        self._manifest = Manifest()
        self._acks = Acks()
        self._suspected: frozenset[str] = frozenset()
        began = datetime.fromtimestamp(clock(), UTC)
        self._letters = DeadLetters(self.folder / "dead-letters" / f"{began:%Y%m%dT%H%M%SZ}-{self._run}")

    @property
    def version(self) -> int:
        """Number of the version in force; 0 before the first one."""
        return self._manifest.version

    @contextmanager
    def locked(self, owner: str) -> Iterator[None]:
        """Keep other runs out, and read the manifest.

        Raises:
            LedgerError: Another owner holds the ledger.
        """
        with self.lock.held(owner):
            self.load()
            yield

    def load(self) -> None:
        """Read the manifest and the acknowledgements; enough for looking on.

        Raises:
            LedgerError: They are damaged, of a newer format, or of another connection.
        """
        manifest = Manifest.read(self.folder, self._identity)
        if not manifest.version:
            return
        self._manifest = manifest
        self._acks = Acks.read(self.folder / manifest.acks)
        suspects = read_json(self.folder / _SUSPECTS) or {"version": 0, "audiences": []}
        if suspects["version"] == self.version:
            self._suspected = frozenset(suspects["audiences"])

    def known(self, forget: Collection[str] = ()) -> Iterator[Member]:
        """Members that Talon.One acknowledged, sorted, but for those of some audiences."""
        since = acknowledged(self.changes(), self._acks, MAX_CHANGES)
        before = read_members(self.folder, self._manifest.members)
        members = fold(before, since, one_per_profile=self._one_per_profile)
        return (member for member in members if member[1] not in forget) if forget else members

    def uncertain(self, forget: Collection[str] = ()) -> Iterator[Member]:
        """Memberships that a request may have changed without an acknowledgement, sorted."""
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
            if member != last and member[1] not in forget:
                yield member
            last = member

    def suspect(self, audiences: Iterable[str]) -> None:
        """Note, durably, that Talon.One may have lost the members of audiences; the next plan in force voids it."""
        self.lock.refuse_lost()
        self._suspected = frozenset(audiences)
        write_json(self.folder / _SUSPECTS, {"version": self.version, "audiences": sorted(self._suspected)})

    @property
    def suspected(self) -> frozenset[str]:
        """Audiences of which that was noted since the plan in force."""
        return self._suspected

    def rejected(self) -> Counter[str]:
        """Records that the plan in force, or one that it resumes, could not send, by reason."""
        reasons = Counter(self._manifest.rejected)
        if self._acks.refusals:
            found = refused(self.changes(), self._acks, MAX_CHANGES)
            reasons["refused by Talon.One in an earlier try"] += sum(1 for _ in found)
        return +reasons

    def unacknowledged(self) -> Iterator[Change]:
        """Changes of the plan in force whose fate is not recorded, with what is uncertain about them now."""
        if len(self._acks.landed) * MAX_CHANGES >= self._manifest.changes and not self._acks.refusals:
            return iter(())
        return unacknowledged(self.changes(), self._acks, MAX_CHANGES)

    def changes(self) -> Iterator[Change]:
        """All changes of the plan in force."""
        return read_plan(self.folder, self._manifest.plan)

    def batches(self) -> Generator[Batch, None, None]:
        """All changes of the plan in force, in the batches in which they travel, numbered from 0."""
        changes = self.changes()
        last = ""
        while batch := list(islice(changes, MAX_CHANGES)):
            first = batch[0]
            # What is uncertain is sent as anything else.
            alike = all(change[1:3] == first[1:3] for change in batch)
            ids = [change.profile_id for change in batch]
            # The plan is sorted by profile.
            yield Batch(Ids(ids, *first[1:3]) if alike else batch, alone=ids[0] != last)
            last = ids[-1]

    def stage(self, plan: Planner, *, forget: Collection[str] = ()) -> StagedPlan:
        """Write the next version: the plan, and the members that it starts from if they have changed.

        The members and the plan are each passed over once.
        """
        version = self.version + 1
        if not self._acks.landed and not forget:
            return StagedPlan(
                version,
                self._manifest.members,
                self._write_parts(version, plan(self.known(), self.uncertain())),
            )
        name = self._file_name(version, "members")
        with writing_lines(self.folder / name) as file:
            copying = copied(self.known(forget), file)
            parts = self._write_parts(version, plan(copying, self.uncertain(forget)))
            for _ in copying:
                """A plan may not have asked for all of them."""
        return StagedPlan(version, {"file": name, "sha256": file.sha256}, parts)

    def discard(self, staged: StagedPlan) -> None:
        """Delete the files of a staged plan."""
        own = staged.members if staged.members != self._manifest.members else None
        for each in [*staged.parts, *([own] if own else [])]:
            remove(self.folder / each["file"])

    def enforce(self, staged: StagedPlan, rejected: Mapping[str, int] | None = None) -> None:
        """Put a staged plan in force; from here on a crash resumes it.

        Args:
            staged: The plan.
            rejected: Records that it leaves out because they cannot be sent, by reason.
        """
        self.lock.refuse_lost()
        manifest = Manifest(
            version=staged.version,
            members=staged.members,
            plan=staged.parts,
            acks=f"{staged.version:08}/acks-{self._run}.json",
            rejected=dict(rejected or {}),
        )
        self._manifest = self._manifest.followed_by(manifest, self._keep)
        self._acks = Acks()
        self._suspected = frozenset()
        self._acks.write(self.folder / manifest.acks)
        self._manifest.write(self.folder, self._identity)
        self._manifest.remove_others(self.folder)

    def leaving(self, batch: int) -> None:
        """Note, durably, that a batch may leave now; some that follow it are noted with it."""
        if batch >= self._acks.may_have_left:
            self._acks.may_have_left = batch + AHEAD
            self.flush()

    def landed(self, batch: int, refused: Iterable[int]) -> None:
        """Note that the fate of a batch is known; ``flush`` makes it durable."""
        self._acks.landed[batch] = sorted(refused)

    def reject(self, record: Mapping[str, Any]) -> None:
        """Note a dead letter; ``flush`` makes it durable."""
        self._letters.add(record)

    def flush(self) -> None:
        """Write what was noted; dead letters first, so that no refusal is recorded without its letter."""
        self.lock.refuse_lost()
        # Copied before the letters are taken: a batch lands after its letters were noted.
        acks = self._acks.copy()
        self._letters.flush()
        if acks.landed or acks.may_have_left:
            acks.write(self.folder / self._manifest.acks)

    def adopt(self, owner: str, records: Iterable[Record]) -> int:
        """Record members that an audience got by other means as acknowledged; return how many.

        Args:
            owner: Who does this.
            records: The members, in any order.

        Raises:
            LedgerError: The ledger holds something already.
        """
        counts = PlanCounts()
        with self.locked(owner):
            if self.version:
                raise LedgerError(
                    f"The ledger in {self.folder} exists already. Members are adopted into a new one only."
                )
            name = self._file_name(1, "members")
            with writing_lines(self.folder / name) as file:
                for _ in copied(members(externally_sorted(records), counts), file):
                    """They are written on the way."""
            self.enforce(StagedPlan(1, {"file": name, "sha256": file.sha256}, ()))
        return counts.read - counts.duplicate - counts.rejected.total()

    @property
    def dead_letters(self) -> str | None:
        """Folder of this run's dead letters, or None when there are none."""
        return self._letters.place

    def _write_parts(self, version: int, changes: Iterable[Change]) -> tuple[Mapping[str, Any], ...]:
        return write_plan(
            self.folder, lambda part: self._file_name(version, f"plan-{part:05}"), changes, PART
        )

    def _file_name(self, version: int, what: str) -> str:
        # With the run in it: a run that was overtaken must not write over the files of the one that overtook it.
        return f"{version:08}/{what}-{self._run}.tsv.gz"


def ledger_name(audience_id: str) -> str:
    """Name the ledger of one audience."""
    return f"audience:{audience_id}"
