r"""The default ledger: a few files under a state URI, on a local disk or in an object store.

```
STATE_URI/<deployment host>/<name>/
    manifest-TURN-VERSION-RUN.json    which files below are in force, with their checksums; the last by name counts
    locks/                            who is at work; see ``lock``
    00000007-RUN/members.tsv.gz       sorted lines: profile ID, audience ID
    00000007-RUN/plan-00000.tsv.gz    sorted lines: add or remove, profile ID, audience ID; 100,000 or so a part
    00000007-RUN/acks-00000-RUN.json  what became of that part's batches of 1000 changes; see ``acks``
    00000007-RUN/suspects-RUN.json    audiences that Talon.One may have lost
    dead-letters/<time>-RUN/00000.ndjson
```

What Talon.One acknowledged is the members in the file that the manifest names, plus the acknowledged changes of the plans
that it names, one after another. The next version compares with all of that; when the changes have become many, it
writes the members anew. Changes
that may have left and were not acknowledged when a worker was killed are uncertain: the next plan sends each of them
again, as ``add?`` or ``remove?``, whatever the source says, and they stay uncertain until they are acknowledged. Lines are
UTF-8 with backslash, tab, newline and carriage return written as ``\``, ``\t``, ``\n``, ``\r``: read them with
``zcat``. Where a line has no audience ID, its audience is the one that the manifest has beside the file's name.

One process may plan and push, inside ``locked``. Or one process plans, inside ``locked``; others push a part each, inside
``pushing``, as often as it takes; and a last one looks whether all is in, with ``commit``.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from typing import Any
from uuid import uuid4

from airflow_provider_talon_cdp.contract import MAX_CHANGES
from airflow_provider_talon_cdp.exceptions import InvalidInputError, LedgerError
from airflow_provider_talon_cdp.ledgers.acks import Acks
from airflow_provider_talon_cdp.ledgers.letters import DeadLetters
from airflow_provider_talon_cdp.ledgers.lock import Lock
from airflow_provider_talon_cdp.ledgers.manifest import Manifest
from airflow_provider_talon_cdp.ledgers.naming import ledger_folder
from airflow_provider_talon_cdp.ledgers.packed import writing_lines
from airflow_provider_talon_cdp.ledgers.plan import Plan, write_plan
from airflow_provider_talon_cdp.ledgers.pushing import Pushing, write_suspects
from airflow_provider_talon_cdp.ledgers.reader import LedgerReader
from airflow_provider_talon_cdp.ledgers.snapshot import Snapshot
from airflow_provider_talon_cdp.ledgers.storage import Folder, remove_folder
from airflow_provider_talon_cdp.sync.changes import Batch, Record
from airflow_provider_talon_cdp.sync.diff import PlanCounts, members
from airflow_provider_talon_cdp.sync.external_sort import externally_sorted
from airflow_provider_talon_cdp.sync.ledger import Planner, StagedPlan

# The members are written anew when plans on top of them have more than a share of as many changes, or are too many.
_SHARE = 8
_PLANS = 8


class FilesLedger(LedgerReader):
    """The ledger of one audience, or of the audiences of one sync.

    Args:
        state: Folder of all ledgers.
        deployment_host: Talon.One deployment; another one has other ledgers.
        base_url: API base; likewise.
        name: Name of the ledger: the audience ID for one audience, the sync's name for many.
        keep: Versions whose files are kept, at least 1.
        one_per_profile: The ledger holds one fingerprint for each profile, where it else holds audiences: ``known``
            yields profile ID and fingerprint; a change that adds sets a profile's fingerprint, one that removes forgets
            it, and a plan has one change of a profile at the most. A change that may have left without an
            acknowledgement puts a doubt on the profile's fingerprint, which stays until another change of it is
            acknowledged; so ``uncertain`` has nothing to add. Such a ledger has a folder of its own.
        batch: Changes in a batch of a new plan.
        part: Changes in a part of a new plan, which is as many whole batches as hold them, and the rest of the last profile.
        ahead: Batches that may leave before the next note of it: a killed run's changes in them are sent again.
        clock: Seconds since the epoch.
        sleep: Waits for so many seconds.

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
        batch: int = MAX_CHANGES,
        part: int = 100 * MAX_CHANGES,
        ahead: int = 64,
        clock: Callable[[], float] = time.time,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        for what, number in (("keep", keep), ("batch", batch), ("part", part)):
            if not isinstance(number, int) or isinstance(number, bool) or number < 1:
                raise InvalidInputError(f"{what} must be an integer >= 1, but is {number!r}.")
        identity = {"deployment_host": deployment_host, "base_url": base_url, "name": name}
        if one_per_profile:
            identity["holds"] = "profiles"
        super().__init__(ledger_folder(state, identity), identity, one_per_profile=one_per_profile)
        self._keep = keep
        self._batch = batch
        self._part = -(-part // batch) * batch
        self._ahead = ahead
        self.run = uuid4().hex[:12]
        self.clock = clock
        self.sleep = sleep
        self.lock = Lock(self.folder, self.run, clock, sleep)
        self._letters_name = f"{datetime.fromtimestamp(clock(), UTC):%Y%m%dT%H%M%SZ}-{self.run}"
        self._letters = DeadLetters(self.folder / "dead-letters" / self._letters_name)
        self._pushing: Pushing | None = None
        self._owner = ""

    @contextmanager
    def locked(self, owner: str, *, waits_for_parts: bool = False) -> Iterator[None]:
        """Keep other runs out, and read the state.

        Args:
            owner: Who asks; an earlier try of the same owner makes way.
            waits_for_parts: Give way to those of the same owner that push parts.

        Raises:
            LedgerError: Another owner holds the ledger, or other processes push its plan.
        """
        turn = partial(Manifest.last_turn, self.folder)
        with self.lock.held(owner, last_turn=turn, waits_for_parts=waits_for_parts):
            self.load()
            self._owner = owner
            yield

    def suspect(self, audiences: Iterable[str]) -> None:
        """Note, durably, that Talon.One may have lost the members of audiences; the next plan in force voids it."""
        self._note_suspects(self._suspected.union(audiences))

    def trust(self, audiences: Iterable[str]) -> None:
        """Take back what this run noted of audiences."""
        self._note_suspects(self._suspected.difference(audiences))

    def _note_suspects(self, audiences: frozenset[str]) -> None:
        # Of a ledger without a version there are no members.
        if self.version and audiences != self._suspected:
            write_suspects(self.folder, self.plan, self.run, audiences)
        self._suspected = audiences
        self.lock.refuse_lost()

    def stage(self, plan: Planner) -> StagedPlan:
        """Write the next version: the plan, and the members that it starts from where they are many changes away.

        The members and the plan are each passed over once.
        """
        version = self.version + 1
        folder = f"{version:08}-{self.run}"
        members, since = self.manifest.members, self.manifest.since
        if self.has_moved:
            since = (*since, self.manifest.plan)
        changes = sum(each.changes for each in since)
        if changes * _SHARE <= (members.lines if members else 0) and len(since) <= _PLANS:
            parts = write_plan(self.folder, folder, plan(self.known(), self.uncertain()), self._part)
            return StagedPlan(version, folder, members, since, parts)
        name = f"{folder}/members.tsv.gz"
        with writing_lines(self.folder / name) as file:
            snapshot = Snapshot(file)
            copying = snapshot.copied(self.known())
            parts = write_plan(self.folder, folder, plan(copying, self.uncertain()), self._part)
            for _ in copying.blocks:
                """A plan may not have asked for all of them."""
        return StagedPlan(version, folder, snapshot.as_file(name), (), parts)

    def discard(self, staged: StagedPlan) -> None:
        """Delete the files of a staged plan."""
        remove_folder(self.folder / staged.folder)

    def enforce(
        self,
        staged: StagedPlan,
        *,
        names: Iterable[str] = (),
        handed_over: bool = False,
    ) -> None:
        """Put a staged plan in force; from here on a crash resumes it.

        Args:
            staged: The plan.
            names: All attribute names that its fingerprints refer to: those of before, and after them new ones.
            handed_over: Whether other processes push it, so that the ledger stays in use when this one ends.
        """
        self.lock.refuse_lost()
        plan = Plan(folder=staged.folder, parts=staged.parts, batch=self._batch)
        acks = [plan.acks_of(part, self.run) for part in range(len(plan.parts))]
        for each in acks:
            Acks().write(self.folder / each)
        manifest = Manifest(
            version=staged.version,
            turn=self.lock.turn,
            run=self.run,
            owner=self._owner,
            members=staged.members,
            since=staged.since,
            plan=replace(plan, acks=tuple(acks)),
            letters=self._letters_name,
            names=tuple(names),
        )
        self.put_in_force(self.manifest.followed_by(manifest, self._keep))
        self.lock.rests = handed_over
        self._suspected = frozenset()
        self._acks = [Acks() for _ in acks]

    def put_in_force(self, manifest: Manifest) -> None:
        """Write a manifest, and delete what it does not name."""
        manifest.write(self.folder, self.identity)
        # After the write and not before it: whoever takes over from now on will read it.
        self.lock.refuse_lost()
        self.manifest = manifest
        self._acks = self._pushing = None
        manifest.remove_others(self.folder, self.lock.refuse_lost)

    def batches(self) -> Generator[Batch, None, None]:
        """Batches of the plan in force whose fate is not recorded, in order; they are numbered from 0."""
        return self._push.batches()

    def leaving(self, batch: int) -> None:
        """Note, durably, that a batch may leave now; some that follow it are noted with it."""
        self._push.leaving(batch)
        self._acks = None

    def landed(self, batch: int, refused: Iterable[int], skipped: Iterable[int] = ()) -> None:
        """Note that the fate of a batch is known; ``flush`` makes it durable."""
        self._push.landed(batch, refused, skipped)

    def reject(self, record: Mapping[str, Any]) -> None:
        """Note a dead letter; ``flush`` makes it durable."""
        self._letters.add(record)

    def flush(self) -> None:
        """Write what was noted; dead letters first, so that no refusal is recorded without its letter."""
        self._push.flush()
        self._acks = None

    @property
    def dead_letters(self) -> str | None:
        """Folder of this run's dead letters, or None when there are none."""
        return self._letters.place

    @property
    def _push(self) -> Pushing:
        if self._pushing is None:
            self._pushing = self.pushing(dict(enumerate(self.acks)), self._letters)
        return self._pushing

    def pushing(self, known: Mapping[int, Acks], letters: DeadLetters) -> Pushing:
        """Make ready to push some parts of the plan in force.

        Args:
            known: What is known of each of them.
            letters: Where refused records go.
        """
        return Pushing(
            self.folder,
            self.manifest.plan,
            known,
            run=self.run,
            lock=self.lock,
            letters=letters,
            ahead=self._ahead,
        )

    def adopt(self, owner: str, records: Iterable[Record]) -> int:
        """Record members that an audience got by other means as acknowledged; return how many.

        Args:
            owner: Who does this.
            records: The members, in any order.

        Raises:
            LedgerError: The ledger exists already.
        """
        counts = PlanCounts()
        with self.locked(owner):
            if self.version:
                raise LedgerError(
                    f"The ledger in {self.folder} exists already. Members are adopted into a new one only: to adopt again, delete "
                    "this folder, and adopt a new export, with the members that mirrors have added since."
                )
            folder = f"{1:08}-{self.run}"
            name = f"{folder}/members.tsv.gz"
            with writing_lines(self.folder / name) as file:
                snapshot = Snapshot(file)
                for _ in snapshot.copied(members(externally_sorted(records), counts)).blocks:
                    """They are written on the way."""
            self.enforce(StagedPlan(1, folder, snapshot.as_file(name), (), ()))
        return counts.read - counts.duplicate - counts.rejected.total()


def ledger_name(audience_id: str) -> str:
    """Name the ledger of one audience."""
    return f"audience:{audience_id}"
