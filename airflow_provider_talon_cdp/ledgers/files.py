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

import hashlib
import heapq
import json
import logging
import os
import re
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from itertools import chain, count, islice
from typing import Any
from urllib.parse import quote
from uuid import uuid4

from airflow_provider_talon_cdp.exceptions import InvalidInputError, LedgerError
from airflow_provider_talon_cdp.ids import MAX_CHANGES
from airflow_provider_talon_cdp.ledgers.storage import (
    Folder,
    as_folder,
    damaged,
    gone,
    read_json,
    read_lines,
    remove,
    write_bytes,
    write_json,
    writing_lines,
)
from airflow_provider_talon_cdp.sync.changes import Action, Batch, Change, Ids, Record
from airflow_provider_talon_cdp.sync.diff import Member, PlanCounts, externally_sorted, fold, members
from airflow_provider_talon_cdp.sync.ledger import Planner, StagedPlan
from airflow_provider_talon_cdp.sync.lines import from_line, from_lines, to_line, to_lines

log = logging.getLogger(__name__)

FORMAT = 1
PART = 100 * MAX_CHANGES
LOCK_LASTS = 120.0
LOCK_RENEWED = 20.0
# Batches that may leave before the next note of it: a killed run's changes in them are sent again.
AHEAD = 64
_READABLE_NAME = 60
_BLOCK = 4096
_ACTIONS: dict[str, tuple[Action, bool]] = {
    "add": ("add", False),
    "remove": ("remove", False),
    "add?": ("add", True),
    "remove?": ("remove", True),
}
_VERBS = {action: verb for verb, action in _ACTIONS.items()}


class FilesLedger:
    """The ledger of one audience, or of the audiences of one sync.

    Args:
        state: Folder of all ledgers.
        deployment_host: Talon.One deployment; another one has other ledgers.
        base_url: API base; likewise.
        name: Name of the ledger: the audience ID for one audience, the sync's name for many.
        keep: Versions whose files are kept, at least 1.
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
        clock: Callable[[], float] = time.time,
    ) -> None:
        if not isinstance(keep, int) or isinstance(keep, bool) or keep < 1:
            raise InvalidInputError(f"keep must be an integer >= 1, but is {keep!r}.")
        self._identity = {"deployment_host": deployment_host, "base_url": base_url, "name": name}
        key = hashlib.sha256(json.dumps(self._identity, sort_keys=True).encode()).hexdigest()[:16]
        readable = re.sub(r"[^\w.-]", "_", quote(name, safe=""))[:_READABLE_NAME]
        self.folder: Folder = as_folder(state) / deployment_host / f"{readable}-{key}"
        self._keep = keep
        self._clock = clock
        self._manifest: dict[str, Any] = {
            "version": 0,
            "members": None,
            "plan": [],
            "rejected": {},
            "history": [],
        }
        self._suspected: frozenset[str] = frozenset()
        self._landed: dict[int, list[int]] = {}
        self._may_have_left = 0
        self._dead_letters: list[str] = []
        self._dead_folder: Folder | None = None
        self._dead_files = 0
        self._token = uuid4().hex

    @property
    def version(self) -> int:
        """Number of the version in force; 0 before the first one."""
        return int(self._manifest["version"])

    @property
    def _acks(self) -> Folder:
        return self.folder / self._manifest["acks"]

    @property
    def _suspects(self) -> Folder:
        return self.folder / "suspects.json"

    @property
    def _lock(self) -> Folder:
        return self.folder / "lock.json"

    @contextmanager
    def locked(self, owner: str) -> Iterator[None]:
        """Keep other runs out, and read the manifest.

        Raises:
            LedgerError: Another owner holds the ledger.
        """
        self._take_lock(owner)
        over = threading.Event()
        renewing = threading.Thread(target=self._renew_lock, args=(owner, over), daemon=True)
        renewing.start()
        try:
            self.load()
            yield
        finally:
            over.set()
            renewing.join()
            if self._has_lock():
                remove(self._lock)

    def load(self) -> None:
        """Read the manifest and the acknowledgements; enough for looking on.

        Raises:
            LedgerError: They are damaged, of a newer format, or of another connection.
        """
        manifest = read_json(self.folder / "manifest.json")
        if manifest is None:
            return
        if manifest.get("format") != FORMAT:
            raise LedgerError(
                f"The ledger in {self.folder} has format {manifest.get('format')}, and this version of the provider knows "
                f"{FORMAT}. Upgrade airflow-provider-talon-cdp on this worker."
            )
        if {name: manifest.get(name) for name in self._identity} != self._identity:
            raise LedgerError(f"The ledger in {self.folder} belongs to another deployment or audience.")
        self._manifest = manifest
        acks = read_json(self._acks)
        if acks is None:
            raise gone(self._acks)
        suspects = read_json(self._suspects) or {"version": 0, "audiences": []}
        if suspects["version"] == self.version:
            self._suspected = frozenset(suspects["audiences"])
        self._may_have_left = acks["may_have_left"]
        refused = acks["refused"]
        self._landed = {
            batch: refused.get(str(batch), [])
            for first, last in acks["landed"]
            for batch in range(first, last + 1)
        }

    def known(self, forget: Collection[str] = ()) -> Iterator[Member]:
        """Members that Talon.One acknowledged, sorted, but for those of some audiences."""
        members = fold(self._members(), self._acknowledged())
        return (member for member in members if member[1] not in forget) if forget else members

    def uncertain(self, forget: Collection[str] = ()) -> Iterator[Member]:
        """Memberships that a request may have changed without an acknowledgement, sorted."""
        doubts = ((change.profile_id, str(change.audience_id)) for change in self._open() if change.uncertain)
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
        self._refuse_lost_lock()
        self._suspected = frozenset(audiences)
        write_json(self._suspects, {"version": self.version, "audiences": sorted(self._suspected)})

    def unacknowledged(self) -> Iterator[Change]:
        """Changes of the plan in force whose fate is not recorded, with what is uncertain about them now."""
        return self._open()

    @property
    def suspected(self) -> frozenset[str]:
        """Audiences of which that was noted since the plan in force."""
        return self._suspected

    def rejected(self) -> Counter[str]:
        """Records that the plan in force, or one that it resumes, could not send, by reason."""
        refused = Counter(self._manifest["rejected"])
        if any(self._landed.values()):
            # Those that are uncertain are sent again.
            refused["refused by Talon.One in an earlier try"] += sum(
                not batch[at].uncertain
                for number, batch in self._batches()
                for at in self._landed.get(number, ())
            )
        return +refused

    def _open(self) -> Iterator[Change]:
        changes = sum(part["changes"] for part in self._manifest["plan"])
        if len(self._landed) * MAX_CHANGES >= changes and not any(self._landed.values()):
            return
        for number, batch in self._batches():
            if number not in self._landed:
                may_have_left = number < self._may_have_left
                for change in batch:
                    yield change._replace(uncertain=change.uncertain or may_have_left)
            else:
                # A refusal says nothing about what an earlier request did.
                yield from (batch[at] for at in self._landed[number] if batch[at].uncertain)

    def changes(self) -> Iterator[Change]:
        """All changes of the plan in force."""
        for part in self._manifest["plan"]:
            path = self.folder / part["file"]
            for line in read_lines(path, part["sha256"]):
                try:
                    verb, profile_id, audience_id = from_line(line)
                    action, uncertain = _ACTIONS[verb]
                except (ValueError, KeyError) as error:
                    raise damaged(path) from error
                yield Change(profile_id, audience_id, action, uncertain)

    def batches(self) -> Generator[Batch, None, None]:
        """All changes of the plan in force, in the batches in which they travel, numbered from 0."""
        for _, changes in self._batches():
            first = changes[0]
            alike = all(change[1:] == first[1:] for change in changes) and not first.uncertain
            ids = [change.profile_id for change in changes]
            yield Batch(Ids(ids, first.audience_id, first.action) if alike else changes)

    def stage(self, plan: Planner, *, forget: Collection[str] = ()) -> StagedPlan:
        """Write the next version: the plan, and the members that it starts from if they have changed.

        The members and the plan are each passed over once.
        """
        version = self.version + 1
        if not self._landed and not forget:
            return StagedPlan(
                version,
                self._manifest["members"],
                self._write_parts(version, plan(self.known(), self.uncertain())),
            )
        name = self._file_name(version, "members")
        with writing_lines(self.folder / name) as file:

            def copied() -> Iterator[Member]:
                members = self.known(forget)
                while block := list(islice(members, _BLOCK)):
                    file.text.write(to_lines(block))
                    yield from block

            copying = copied()
            parts = self._write_parts(version, plan(copying, self.uncertain(forget)))
            for _ in copying:
                """A plan may not have asked for all of them."""
        return StagedPlan(version, {"file": name, "sha256": file.sha256}, parts)

    def discard(self, staged: StagedPlan) -> None:
        """Delete the files of a staged plan."""
        own = staged.members if staged.members != self._manifest["members"] else None
        for each in [*staged.parts, *([own] if own else [])]:
            remove(self.folder / each["file"])

    def enforce(self, staged: StagedPlan, rejected: Mapping[str, int] | None = None) -> None:
        """Put a staged plan in force; from here on a crash resumes it.

        Args:
            staged: The plan.
            rejected: Records that it leaves out because they cannot be sent, by reason.
        """
        old = self._manifest
        self._refuse_lost_lock()
        kept = {key: old[key] for key in ("version", "members", "plan", "acks") if key in old}
        history = [kept, *old["history"]]
        self._manifest = {
            "format": FORMAT,
            **self._identity,
            "version": staged.version,
            "members": staged.members,
            "plan": list(staged.parts),
            "acks": f"{staged.version:08}/acks-{self._token[:8]}.json",
            "rejected": dict(rejected or {}),
            "history": history[: self._keep - 1] if old["version"] else [],
        }
        self._landed = {}
        self._may_have_left = 0
        self._suspected = frozenset()
        self._write_acks()
        write_json(self.folder / "manifest.json", self._manifest)
        self._remove_unnamed()

    def leaving(self, batch: int) -> None:
        """Note, durably, that a batch may leave now; some that follow it are noted with it."""
        if batch >= self._may_have_left:
            self._may_have_left = batch + AHEAD
            self.flush()

    def landed(self, batch: int, refused: Iterable[int]) -> None:
        """Note that the fate of a batch is known; ``flush`` makes it durable."""
        self._landed[batch] = sorted(refused)

    def reject(self, record: Mapping[str, Any]) -> None:
        """Note a dead letter; ``flush`` makes it durable."""
        self._dead_letters.append(json.dumps(record, ensure_ascii=False) + "\n")

    def flush(self) -> None:
        """Write what was noted; dead letters first, so that no refusal is recorded without its letter."""
        self._refuse_lost_lock()
        # Copied before the letters are taken: a batch lands after its letters were noted.
        landed = dict(self._landed)
        letters, self._dead_letters = self._dead_letters, []
        if letters:
            self._dead_folder = self._dead_folder or self.folder / "dead-letters" / self._run_name()
            write_bytes(
                self._dead_folder / f"{self._dead_files:05}.ndjson",
                "".join(letters).encode(errors="backslashreplace"),
            )
            self._dead_files += 1
        if landed or self._may_have_left:
            self._write_acks(landed)

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
                found = members(externally_sorted(records), counts)
                while block := list(islice(found, _BLOCK)):
                    file.text.write(to_lines(block))
            self.enforce(StagedPlan(1, {"file": name, "sha256": file.sha256}, ()))
        return counts.read - counts.duplicate - counts.rejected.total()

    @property
    def dead_letters(self) -> str | None:
        """Folder of this run's dead letters, or None when there are none."""
        return str(self._dead_folder) if self._dead_folder else None

    def _batches(self) -> Iterator[tuple[int, list[Change]]]:
        changes = self.changes()
        for number in count():
            batch = list(islice(changes, MAX_CHANGES))
            if not batch:
                return
            yield number, batch

    def _acknowledged(self) -> Iterator[Change]:
        for number, batch in self._batches():
            refused = self._landed.get(number)
            if refused is not None:
                yield from (
                    [change for at, change in enumerate(batch) if at not in refused] if refused else batch
                )

    def _members(self) -> Iterator[Member]:
        if self._manifest["members"]:
            path = self.folder / self._manifest["members"]["file"]
            lines = read_lines(path, self._manifest["members"]["sha256"])
            while block := list(islice(lines, _BLOCK)):
                try:
                    found = from_lines(block)
                except ValueError as error:
                    raise damaged(path) from error
                yield from found

    def _write_parts(self, version: int, changes: Iterable[Change]) -> tuple[Mapping[str, Any], ...]:
        parts: list[Mapping[str, Any]] = []
        stream = iter(changes)
        while (first := next(stream, None)) is not None:
            name = self._file_name(version, f"plan-{len(parts):05}")
            count = 0
            with writing_lines(self.folder / name) as file:
                for change in chain([first], islice(stream, PART - 1)):
                    file.text.write(to_line(_VERBS[change[2:]], change.profile_id, str(change.audience_id)))
                    count += 1
            parts.append({"file": name, "sha256": file.sha256, "changes": count})
        return tuple(parts)

    def _remove_unnamed(self) -> None:
        """Delete files of versions that the manifest does not name any more, and of plans that never came into force."""
        versions = [self._manifest, *self._manifest["history"]]
        named = {
            each["file"] for version in versions for each in [*version["plan"], version["members"]] if each
        }
        named |= {version["acks"] for version in versions}
        for folder in self.folder.iterdir():
            # Drafts that a killed run left behind.
            if folder.name.startswith(".manifest.json."):
                remove(folder)
            if re.fullmatch(r"\d{8,}", folder.name):
                for file in folder.iterdir():
                    if f"{folder.name}/{file.name}" not in named:
                        remove(file)

    def _file_name(self, version: int, what: str) -> str:
        # With the run in it: a run that was overtaken must not write over the files of the one that overtook it.
        return f"{version:08}/{what}-{self._token[:8]}.tsv.gz"

    def _write_acks(self, landed: Mapping[int, list[int]] | None = None) -> None:
        refused = {str(batch): offsets for batch, offsets in (landed or {}).items() if offsets}
        acks = {
            "landed": _ranges(sorted(landed or ())),
            "refused": refused,
            "may_have_left": self._may_have_left,
        }
        write_json(self._acks, acks)

    def _take_lock(self, owner: str) -> None:
        held = read_json(self._lock)
        if held and held["owner"] != owner and (age := self._clock() - held["time"]) < LOCK_LASTS:
            raise LedgerError(
                f"The ledger in {self.folder} is in use by {held['owner']} on {held['host']} (process {held['pid']}), which "
                f"said so {age:.0f} s ago. Nothing was sent. Wait until it ends; if it was killed, its lock ends "
                f"{LOCK_LASTS:.0f} s after its last word."
            )
        self._write_lock(owner)

    def _write_lock(self, owner: str) -> None:
        holder = {"owner": owner, "token": self._token, "host": socket.gethostname(), "pid": os.getpid()}
        write_json(self._lock, holder | {"time": self._clock()})

    def _renew_lock(self, owner: str, over: threading.Event) -> None:
        while not over.wait(LOCK_RENEWED):
            try:
                if self._has_lock():
                    self._write_lock(owner)
            except LedgerError as error:
                log.warning("The ledger's lock could not be renewed: %s", error)

    def _has_lock(self) -> bool:
        held = read_json(self._lock)
        return bool(held) and held["token"] == self._token

    def _refuse_lost_lock(self) -> None:
        if not self._has_lock():
            raise LedgerError(
                f"Another run took over the ledger in {self.folder}, so this one stops. What it had sent and not recorded, "
                "the other one may send again, which changes nothing."
            )

    def _run_name(self) -> str:
        return f"{datetime.fromtimestamp(self._clock(), UTC):%Y%m%dT%H%M%SZ}-{self._token[:8]}"


def _ranges(numbers: Iterable[int]) -> list[list[int]]:
    """Write ascending numbers as ranges: [[first, last], ...]."""
    ranges: list[list[int]] = []
    for number in numbers:
        if ranges and number == ranges[-1][1] + 1:
            ranges[-1][1] = number
        else:
            ranges.append([number, number])
    return ranges


def ledger_name(audience_id: str) -> str:
    """Name the ledger of one audience."""
    return f"audience:{audience_id}"
