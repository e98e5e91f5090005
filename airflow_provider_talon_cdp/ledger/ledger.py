"""The ledger: a few files under a state URI, on a local disk or in an object store; see docs/ARCHITECTURE.md.

The known members are those in the manifest's file of members, plus the acknowledged changes of its plans, in
order. When these changes are many, the next version has a new file of members. If a worker is
killed, changes that may have been sent and were not acknowledged are uncertain. The next plan sends them
again, as ``add?`` or ``remove?``, whether the source has changed or not, and they are uncertain until they
are acknowledged. A member's change that runs rules is withheld instead: it stays uncertain and is not sent
again. Attributes that were sent with rules are sent again without them.

One process may plan and push, inside ``held``. Or one process plans, inside ``held``; others push a part
each, inside ``pushing``, until all parts are complete; and a last one checks that, with ``commit``.
"""

from __future__ import annotations

import hashlib
import heapq
import json
import logging
import re
import sys
import time
from collections import Counter, deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, field, fields, replace
from functools import partial
from itertools import chain, groupby, islice, repeat
from operator import itemgetter
from typing import Any, Literal, Self, TypeAlias, get_args
from urllib.parse import quote
from uuid import uuid4

from airflow_provider_talon_cdp.changes.change import (
    REMOVING,
    Action,
    Change,
    Chunk,
    Record,
    Verb,
    one_or_all,
)
from airflow_provider_talon_cdp.changes.counts import Counts
from airflow_provider_talon_cdp.changes.diff import Folded, Member, in_order
from airflow_provider_talon_cdp.changes.fingerprint import (
    following,
    forgotten,
    marked_uncertain,
    was_acknowledged,
)
from airflow_provider_talon_cdp.changes.spool import sorted_members
from airflow_provider_talon_cdp.contract import AUDIENCE_ID_TYPE, KEEP_VERSIONS, MAX_CHANGES, AudienceIdType
from airflow_provider_talon_cdp.exceptions import InvalidInputError, LedgerError
from airflow_provider_talon_cdp.ledger.format import (
    BLOCK,
    Acks,
    File,
    LineWriter,
    Manifest,
    Plan,
    find_manifest,
    read_chunks,
    write_plan,
    writing_lines,
)
from airflow_provider_talon_cdp.ledger.letters import (
    LETTERS,
    DeadLetters,
    letter_of,
    letters_name,
)
from airflow_provider_talon_cdp.ledger.lock import Lock
from airflow_provider_talon_cdp.ledger.outside import (
    ATTRIBUTES,
    NOTES,
    REQUEST_LASTS,
    WRITER_LASTS,
    Mark,
    Notes,
    NoteWriter,
    Registry,
    Writers,
    find_notes,
    read_notes,
    remove_temporary_notes,
    write_mark,
    writer_of,
    writers_of_plan,
)
from airflow_provider_talon_cdp.ledger.share import Share
from airflow_provider_talon_cdp.ledger.storage import (
    DamagedError,
    Folder,
    as_folder,
    missing,
    names_in,
    read_json,
    remove,
    remove_folder,
)

log = logging.getLogger(__name__)

Planner: TypeAlias = Callable[[Iterable[Chunk], Iterable[Chunk], Callable[[Chunk], None]], Iterable[Chunk]]
"""Makes a plan from the known and the uncertain members. Its third argument keeps refused changes that
the plan leaves out, sorted, so that ``Ledger.refused`` yields them again."""

LostPart: TypeAlias = tuple[File, Acks]
"""A part of a plan whose manifest is lost. If its acknowledgements are damaged, all may have been sent."""

# A new file of members is written if the plans since the last one have more changes than an eighth of its
# members, or are more than eight.
_REWRITE_SHARE = 8
_MOST_PLANS = 8
# For a plan that runs rules, the number of batches noted ahead is divided by this.
_FEWER_AHEAD = 8
# Attempts to read the ledger again while another run deletes files of it.
_MOST_RELOADS = 4
# Parts that an error text lists.
_LISTED = 10
# Seconds for which notes are kept for a later run that may change their audiences. Each run reads them.
_UNMANAGED_NOTES_LAST = 3 * 86_400.0
# Characters of a ledger's name in the name of its folder.
_READABLE_LENGTH = 60
_REFUSED_BEFORE = "again.tsv.zst"
_INTERNAL = "internal-"
_VERSION = re.compile(r"\d{8}-")
_ACKS = re.compile(r"acks-\d+-[0-9a-f]+\.json")
_PART = re.compile(r"plan-(\d+)\.tsv\.(zst|gz)")
MARKS: dict[Mark, re.Pattern[str]] = {mark: re.compile(rf"{mark}-[0-9a-f]+\.json") for mark in get_args(Mark)}


def ledger_name(kind: str, name: str, id_type: AudienceIdType = AUDIENCE_ID_TYPE) -> str:
    """Return the name of a ledger. An internal audience ID and an equal external ID are two audiences.

    Args:
        kind: ``audience``, ``sync`` (of many audiences), ``profiles``, or ``calls`` (a folder of dead letters
            of a task that adds and removes without a ledger).
        name: The audience ID, or the operator's name for the ledger, by default DAG.TASK.
        id_type: Whether the ledger has external or internal audience IDs.
    """
    return f"{'' if id_type == 'external' else _INTERNAL}{kind}:{name}"


@dataclass(frozen=True, kw_only=True)
class LedgerIdentity:
    """What a ledger belongs to.

    Args:
        deployment_host: Host of the Talon.One deployment.
        base_url: Base URL of the API.
        name: The audience or the sync, for example from ``ledger_name``.
        environment: Free text that distinguishes environments of one deployment, such as ``live``.
        holds: Whether the keys are audiences or fingerprints of attributes.
    """

    deployment_host: str
    base_url: str
    name: str
    environment: str = ""
    holds: Literal["members", "profiles"] = "members"

    @property
    def parts(self) -> dict[str, str]:
        """What the manifest has of it. Later fields are left out if they have their default.

        So the ledgers of earlier versions of this package keep their folders.
        """
        later = {"environment": "", "holds": "members"}
        return {name: value for name, value in asdict(self).items() if later.get(name) != value}

    @property
    def folder_name(self) -> str:
        """Name of the ledger's folder: a readable part, and a digest that makes it unique."""
        digest = hashlib.sha256(json.dumps(self.parts, sort_keys=True).encode()).hexdigest()[:16]
        readable = re.sub(r"[^\w.-]", "_", quote(self.name, safe=""))[:_READABLE_LENGTH]
        return f"{readable}-{digest}"

    @property
    def id_type(self) -> AudienceIdType:
        """Whether the ledger's audience IDs are external or internal."""
        return "internal" if self.name.startswith(_INTERNAL) else "external"

    @property
    def is_of_one_audience(self) -> bool:
        """Whether the ledger is of one audience, and not of a sync of many."""
        return self.name.removeprefix(_INTERNAL).startswith("audience:")

    def folder(self, state: Folder) -> Folder:
        """Return the ledger's folder."""
        return self.host_folder(state) / self.folder_name

    def host_folder(self, state: Folder) -> Folder:
        """Return the folder of all ledgers of the deployment."""
        return as_folder(state) / self.deployment_host

    def of_audience(self, audience_id: str, id_type: AudienceIdType = AUDIENCE_ID_TYPE) -> LedgerIdentity:
        """Return the identity of one audience's own ledger in the same deployment and environment."""
        return replace(self, name=ledger_name("audience", audience_id, id_type), holds="members")


@dataclass(frozen=True, kw_only=True)
class RunFacts:
    """What a ledger remembers of its last run.

    Args:
        data_until: End of the data interval, ISO 8601; the run's time if it has no data interval.
        key_fingerprint: Digest of the API key, which shows whether two keys are equal.
        platform_name: The platform name on the connection.
        audiences: The internal ID and the time of creation of each audience, from Talon.One's responses.
        filling: Audiences whose first members the plan sends in bulk, also if its other changes run rules.
        rejected: Whether a person rejected the plan, which must not be pushed then.
        awaits_approval: Whether the plan must not be pushed before a person approves it.
        arguments: Digest of the arguments of a mapped task's instance. An instance with the same ones is the
            same sync, at whatever index.
        null_texts: Number of records that the guard let pass with the text of a null as their ID.
    """

    data_until: str = ""
    key_fingerprint: str = ""
    platform_name: str = ""
    audiences: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    filling: list[str] = field(default_factory=list)
    rejected: bool = False
    awaits_approval: bool = False
    arguments: str = ""
    null_texts: int = 0

    def has_key_of(self, other: RunFacts) -> bool:
        """Whether another run has the same API key and platform name. True if a key is not known."""
        if not self.key_fingerprint or not other.key_fingerprint:
            return True
        mine = self.key_fingerprint, self.platform_name
        return mine == (other.key_fingerprint, other.platform_name)


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """How plans are divided into parts and batches.

    Args:
        batch: Changes in a batch of a new plan.
        part: Changes in a part of a new plan, rounded up to full batches and to all changes of its last
            profile.
        ahead: Batches that may be sent before the next note. If the run is killed, their changes are sent
            again.
    """

    batch: int = MAX_CHANGES
    part: int = 100 * MAX_CHANGES
    ahead: int = 64


_SIZES = Sizes()


@dataclass(frozen=True, kw_only=True)
class Draft:
    """A version of the ledger whose files are written.

    Args:
        manifest: Its manifest, which is not written yet.
        audiences: Audiences of its members and changes; ``ATTRIBUTES`` of profiles.
    """

    manifest: Manifest
    audiences: frozenset[str]


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """The outcome of a plan that several processes pushed.

    Args:
        changes: Number of changes: acknowledged, refused and unclear ones.
        acknowledged: Changes that Talon.One acknowledged.
        added: Acknowledged additions by audience. Profiles count as one audience, ``profiles``.
        removed: Acknowledged removals by audience.
        refused: Changes that Talon.One refused, or that were never sent.
        skipped: Refused changes that were never sent.
        unclear: Changes that run rules and got no clear answer.
        dead_letters: Folder of the dead letters of the plan and its pushes, or None if there are none.
    """

    changes: int
    acknowledged: int
    added: Counter[str]
    removed: Counter[str]
    refused: int
    skipped: int
    unclear: int
    dead_letters: str | None


class Ledger:
    """The ledger of one audience, of the audiences of one sync, or of the profiles of one sync.

    A ledger of profiles holds one fingerprint of each profile: an addition sets it, a removal deletes it, and
    a plan has at most one change of a profile. A change that may have been sent without an acknowledgement
    marks the fingerprint as uncertain, until another change of the profile is acknowledged.

    Args:
        state: Folder of all ledgers.
        identity: What the ledger belongs to.
        keep: Versions whose files and dead letters are kept, at least 1.
        sizes: How new plans are divided.
        clock: Returns seconds since the epoch.
        sleep: Waits for a number of seconds.

    Raises:
        LedgerError: From any method, if files cannot be read or written, are damaged, have a newer format, or
            are older than ``at_least``.
    """

    def __init__(
        self,
        state: Folder,
        identity: LedgerIdentity,
        *,
        keep: int = KEEP_VERSIONS,
        sizes: Sizes = _SIZES,
        clock: Callable[[], float] = time.time,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.identity = identity
        self._holds_profiles = identity.holds == "profiles"
        self.folder = identity.folder(state)
        self.manifest = Manifest()
        self.run = uuid4().hex[:12]
        self.lock = Lock(self.folder, self.run, clock, sleep)
        self.at_least = 0
        """The version that this task last wrote, if Airflow knows it. An older ledger is refused."""
        self.accepts_older = False
        """Whether an older ledger is accepted; its next version then follows ``at_least``."""
        self.managed: Collection[str] | None = None
        """Audiences that this run may change; None for all. What happens to other known audiences is left to
        the next run that may change them."""
        self._suspects: frozenset[str] = frozenset()
        self._resends: frozenset[str] = frozenset()
        self.other_writers: list[str] = []
        """Owners of runs that left notes in this ledger."""
        self._keep = keep
        self._sizes = sizes
        self._clock = clock
        self._sleep = sleep
        self.registry = Registry(state, identity, identity.id_type)
        self.letters = DeadLetters(self.folder, letters_name(clock(), self.run), keep=keep)
        """This run's dead letters. Their folder's time is that of the lock, if the run holds it."""
        self._owner = ""
        self._newest = 0
        self._manifests_written = 0
        self._acks: list[Acks] | None = []
        self._share: Share | None = None
        self._notes = Notes()
        self._lost_parts: tuple[LostPart, ...] = ()
        # Their changes without an answer, to which this run has given dead letters.
        self._lost_unclear: list[Change] = []
        # Names of other ledgers that have notes of the current plan.
        self._notified: tuple[str, ...] = ()

    @classmethod
    def at(cls, folder: Folder, **options: Any) -> Self:
        """Open the ledger in a folder.

        Raises:
            LedgerError: The folder has no ledger.
        """
        content = find_manifest(as_folder(folder)).content
        parts = {name: content[name] for name in _IDENTITY_DEFAULTS if name in content}
        if not parts:
            raise LedgerError(f"There is no ledger in this folder.\nFolder: {folder}")
        identity = LedgerIdentity(**parts)
        ledger = cls(folder.parent.parent, identity, **options)
        if str(ledger.folder) != str(as_folder(folder)):
            raise LedgerError(
                f"This ledger was written for another folder: {ledger.folder}\nFolder: {folder}"
            )
        return ledger

    # The ledger's content

    @property
    def version(self) -> int:
        """Number of the current version; 0 before the first one."""
        return self.manifest.version

    @property
    def owner(self) -> str:
        """Owner of the run that made the current plan."""
        return self.manifest.owner

    @property
    def plan(self) -> str:
        """ID of the current plan, for processes that push a part of it."""
        return self.manifest.plan.folder

    @property
    def parts(self) -> int:
        """Number of parts of the current plan."""
        return len(self.manifest.plan.parts)

    @property
    def names(self) -> tuple[str, ...]:
        """Attribute names. The fingerprints of profiles refer to positions in them."""
        return self.manifest.names

    @property
    def facts(self) -> RunFacts:
        """What the ledger remembers of the last run."""
        known = {fact.name for fact in fields(RunFacts)}
        return RunFacts(**{name: value for name, value in self.manifest.facts.items() if name in known})

    @property
    def has_acknowledged_attributes(self) -> bool:
        """Whether Talon.One acknowledged attributes of any profile in this ledger of profiles."""
        return any(was_acknowledged(key) for chunk in self.known() for key in chunk.each_key)

    def environment_may_differ(self, facts: RunFacts) -> bool:
        """Whether a run's key or platform name may lead to other audiences than those of this ledger."""
        mine = self.facts.platform_name
        has_other_platform = bool(mine and facts.platform_name and mine != facts.platform_name)
        is_distinct = self.identity.environment and (self._holds_profiles or not has_other_platform)
        return not is_distinct and not self.facts.has_key_of(facts)

    @property
    def last_owner(self) -> str:
        """The owner of the last run, even if that run sent nothing."""
        owner: str = self.manifest.facts.get("owner") or self.owner
        return owner

    @property
    def must_be_replaced(self) -> bool:
        """Whether some changes of the current plan have no outcome, or later versions are lost.

        The next version deletes lost plans. It also covers notes, which every run would read again, except
        recent ones about audiences that this run may not change, as only they name the members.
        """
        return (
            bool(self._lost_parts or self._spent())
            or self.version < self.at_least
            or any(landed + withheld < lines for lines, landed, *_, withheld in self._progress())
        )

    def load(self) -> None:
        """Read the ledger without its lock.

        Raises:
            LedgerError: The ledger is damaged, has a newer format, or belongs to another connection.
        """
        failed: list[str] = []
        while True:
            try:
                self._load_manifest()
                self._acks = self._read_acks(self.manifest.plan)
            except DamagedError:
                # The run that holds the lock may have deleted the files of this version, or spent notes.
                if self.manifest.file in failed or len(failed) == _MOST_RELOADS:
                    raise
                failed.append(self.manifest.file)
            else:
                return

    def _load_manifest(self) -> None:
        """Read the ledger except the acknowledgements, which ``acks`` reads."""
        found = find_manifest(self.folder)
        identity = {name: found.content.get(name, default) for name, default in _IDENTITY_DEFAULTS.items()}
        if found.content and identity != asdict(self.identity):
            raise LedgerError(
                "The ledger in this folder belongs to another deployment, environment or audience.\n"
                f"Ledger: {self.folder}"
            )
        self._newest = found.newest
        self.refuse_older()
        self.manifest = found.manifest
        self.letters.spared = {self.letters.name, self.manifest.letters}
        if found.damaged:
            log.warning(
                "The ledger's last manifest is damaged, so the one before it is used.\n"
                "Changes that were sent since then are sent again.\nManifest: %s",
                self.folder / found.damaged[0],
            )
        plans = [self.manifest.plan, *(Plan(folder=orphan) for orphan in found.orphans)]
        self._suspects = self._marked("suspects", *plans)
        self._resends = self._marked("doubts", *plans)
        self._lost_parts = tuple(chain.from_iterable(map(self._sent_parts, found.orphans)))
        self._notes = self._find_notes()
        self.other_writers = sorted(filter(None, self._owners_of_notes()))
        self._acks = self._share = None

    def refuse_older(self) -> None:
        """Raise an error if the ledger is older than the version that this task last wrote."""
        # If there are files of that version, only its manifest is lost.
        if (
            self._newest < self.at_least
            and not self.accepts_older
            and not any(
                int(name.partition("-")[0]) >= self.at_least
                for name in names_in(self.folder)
                if _VERSION.match(name)
            )
        ):
            raise LedgerError(
                f"The ledger has version {self._newest}, but this task last wrote version {self.at_least}.\n"
                "An older backup was restored, or the ledger was deleted. Nothing was sent.\n"
                'If that is intended, run the task once with send="all". Members that were added since then\n'
                "and that the query does not have now are unknown to the ledger and stay in the audience.\n"
                f"Ledger: {self.folder}"
            )

    def _marked(self, mark: Mark, *plans: Plan) -> frozenset[str]:
        names = chain.from_iterable(self._files(plan, MARKS[mark]) for plan in plans)
        return frozenset(chain.from_iterable(read_json(self.folder / name) or () for name in names))

    def neighbours(self) -> list[str]:
        """Return a line for each other ledger of the same audience: the differences, and its folder."""
        own = self.folder.name
        readable = own.rpartition("-")[0]
        names = names_in(self.folder.parent)
        similar = [name for name in names if name.rpartition("-")[0] == readable and name != own]
        if self.identity.is_of_one_audience:
            audience = self.identity.name.partition(":")[2]
            for in_scope in (True, False):
                similar += self.registry.ledgers_of([audience], in_scope=in_scope)
        return self._differences(similar)

    def _differences(self, names: Iterable[str]) -> list[str]:
        folders = map(self.registry.folder, sorted(set(names)))
        return [line for folder in folders if (line := self._difference(folder))]

    def _difference(self, other: Folder) -> str:
        try:
            content = find_manifest(other).content
        except LedgerError:
            return ""
        differences = [
            f"{name} is {content.get(name, default)!r} there and {getattr(self.identity, name)!r} here"
            for name, default in _IDENTITY_DEFAULTS.items()
            if content.get(name, default) != getattr(self.identity, name)
        ]
        difference = "; ".join(differences) or "the same ledger under another state URI"
        return f"{difference}: {other}" if content else ""

    def known(self, *, suspects_all: bool = False) -> Folded:
        """Return the members that Talon.One acknowledged, sorted.

        Args:
            suspects_all: In a ledger of profiles: return what it would after ``suspect``.
        """
        members = self.manifest.members
        snapshot: Iterable[Chunk] = read_chunks(self.folder, members) if members else ()
        plans = [self._effects_of(plan, self._read_acks(plan)) for plan in self.manifest.since]
        plans.append(self._effects_of(self.manifest.plan, self.acks))
        if self._holds_profiles and self._has_outside_changes:
            plans.append(self._uncertain_profiles())
        known = Folded(snapshot, plans, one_per_profile=self._holds_profiles)
        if not self._holds_profiles:
            return known
        if suspects_all or self.suspected:
            marked: Iterator[Chunk] = map(partial(_with_uncertain_keys, profiles=None), known)
        elif self._notes.owners:
            marked = _with_noted_uncertain(known, self._noted_profiles())
        else:
            return known
        return Folded(marked, [], one_per_profile=True)

    def _noted_profiles(self) -> Iterator[str]:
        """Yield, sorted, the profiles of notes about attributes, which may be too many for the memory."""
        chunks = (
            Chunk([profile_id for profile_id, key in chunk.members if key == ATTRIBUTES], ATTRIBUTES)
            for chunk in read_notes(self.folder, self._notes)
        )
        return (profile_id for profile_id, _ in self._sorted_members("add", chunks))

    def uncertain(self) -> Iterator[Chunk]:
        """Yield members that a request may have changed without an acknowledgement, sorted and distinct.

        The verb is ``remove`` for a member that another task has added. A ledger of profiles yields none:
        ``known`` marks their fingerprints as uncertain.
        """
        if self._holds_profiles:
            return iter(())
        unacknowledged = (
            (change.profile_id, change.key)
            for chunk in self.unacknowledged()
            for change in chunk.changes()
            if change.uncertain
        )
        again = self.suspected | self.resends
        sent_again = (
            member
            for chunk in (self.known() if again else ())
            for member in chunk.members
            if member[1] in again
        )
        own = heapq.merge(unacknowledged, sent_again, sorted(self.withheld()))
        contradicted = self._contradicted() if self._has_outside_changes else ()
        return _chunks_of_members(heapq.merge(((*member, "add") for member in own), contradicted))

    def withheld(self) -> dict[Member, Action]:
        """Return changes that run rules and got no clear answer, as actions by member.

        They are not sent again, unless all is sent. Each of them cost a request without an answer, so there
        are never many. A ledger of profiles has none: ``known`` marks their fingerprints as uncertain.
        """
        if self._holds_profiles:
            return {}
        plan, carried = self.manifest.plan, self.manifest.withheld
        withheld: dict[Member, Action] = {}
        for chunk in read_chunks(self.folder, carried) if carried else ():
            withheld.update((change[:2], change.action) for change in chunk.changes())
        for chunk in self._effects_of(plan, self.acks) if withheld else ():
            for member in chunk.members:
                withheld.pop(member, None)
        for part, acks in enumerate(self.acks if plan.together else ()):
            for _, change in self._unclear_in(part, acks):
                withheld[change[:2]] = change.action
        for change, _ in chain.from_iterable(map(self._sent_with_rules, self._lost_parts)):
            withheld[change[:2]] = change.action
        return withheld

    def _sent_changes(self, part: LostPart) -> Iterator[Chunk]:
        """Yield the changes of a lost plan's part.

        Attributes whose rules have surely not run are left out, as the next plan must run them.
        """
        sent = {change for change, _ in self._sent_with_rules(part)} if self._holds_profiles else set()
        for chunk in read_chunks(self.folder, part[0]):
            if self._holds_profiles and chunk.runs_rules:
                yield Chunk.of([each for each in chunk.changes() if not each.runs_rules or each in sent])
            else:
                yield chunk

    def _sent_with_rules(self, part: LostPart) -> Iterator[tuple[Change, bool]]:
        """Yield changes of a lost plan's part that run rules and may have been sent.

        Yields:
            The change, and whether it was acknowledged or has a dead letter.
        """
        file, acks = part
        settled = acks.settled
        lines = (change for chunk in read_chunks(self.folder, file) for change in chunk.changes())
        for number, change in enumerate(lines):
            if change.runs_rules and (number in acks.landed or acks.is_open(number)):
                yield change, number in settled

    def _unclear_in(self, part: int, acks: Acks) -> Iterator[tuple[int, Change]]:
        """Yield changes of a part that run rules and got no clear answer, with their batch numbers."""
        if acks.withheld or acks.may_have_left:
            for number, chunk in enumerate(self._batches(part)):
                if chunk.runs_rules and acks.is_open(number):
                    yield number, next(chunk.changes())

    def state(self) -> str:
        """Return a digest of all that ``known`` and ``uncertain`` depend on."""
        acks = [name for plan in self.manifest.plans for name in self._files(plan, _ACKS)]
        content = [
            *(self.manifest.file, sorted(self.suspected), sorted(self.resends)),
            [(file.file, owner) for file, owner in self._notes.owners.items()],
            [file.file for file, _ in self._lost_parts],
            *([name, read_json(self.folder / name)] for name in acks),
        ]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()

    def filled(self) -> frozenset[str]:
        """Return the known audiences, except those whose first members are still being sent."""
        return self._known_audiences().difference(self.facts.filling, self.suspected)

    def _known_audiences(self) -> frozenset[str]:
        return _audiences_of(self.known())

    def _contradicted(self) -> Iterator[tuple[str, str, Verb]]:
        """Yield members, sorted, whose state after outside changes differs from ``known``.

        Yields:
            The member, and ``remove`` if another task added it, else ``add``. A sync of many leaves out what
            others added to an audience of which it has no members: by now it may be another task's.
        """
        notes = heapq.merge(
            zip(self._changed_outside("add", "own"), repeat("add"), strict=False),
            self._of_managed(zip(self._changed_outside("add", "others"), repeat("other"), strict=False)),
            zip(
                self._sorted_members("add", self._acknowledged_in_lost_parts()), repeat("lost"), strict=False
            ),
            zip(self._changed_outside("remove", "own"), repeat("remove"), strict=False),
            self._of_managed(zip(self._changed_outside("remove", "others"), repeat("remove"), strict=False)),
        )
        changes = ((member, {what for _, what in same}) for member, same in groupby(notes, key=itemgetter(0)))
        change = next(changes, None)
        audiences = self._known_audiences() if change and not self.identity.is_of_one_audience else None

        def of_unknown(member: Member, noted: set[str]) -> Iterator[tuple[str, str, Verb]]:
            if "lost" in noted and "remove" not in noted:
                # It would be known if the manifest were not lost.
                yield *member, "remove"
            elif noted & {"add", "lost"}:
                yield *member, "add"
            elif "other" in noted and (audiences is None or member[1] in audiences):
                # One that was removed again may be in the audience or not.
                yield *member, "add" if "remove" in noted else "remove"

        for chunk in self.known() if change else ():
            last = chunk.member(-1)
            known = set(chunk.members) if change and change[0] <= last else ()
            while change and change[0] <= last:
                if change[0] not in known:
                    yield from of_unknown(*change)
                elif "remove" in change[1]:
                    yield *change[0], "add"
                change = next(changes, None)
        while change:
            yield from of_unknown(*change)
            change = next(changes, None)

    def _changed_unmanaged(self) -> frozenset[str]:
        """Return audiences that other tasks have changed and this run may not."""
        if self.managed is None or self.identity.is_of_one_audience:
            return frozenset()
        return _audiences_of(read_notes(self.folder, self._notes, "others")).difference(self.managed)

    def _spent(self) -> tuple[str, ...]:
        """Return the spent notes, without recent ones of tasks that changed none of this run's audiences."""
        if self.managed is None or self.identity.is_of_one_audience:
            return self._notes.spent
        by_writer: dict[str, set[str]] = {}
        for file in (file for file, owner in self._notes.owners.items() if owner):
            writer = writer_of(file.file.removeprefix(f"{NOTES}/"))
            by_writer.setdefault(writer, set()).update(_audiences_of(read_chunks(self.folder, file)))
        kept = {writer for writer, audiences in by_writer.items() if audiences.isdisjoint(self.managed)}
        old = find_notes(self.folder, self._clock() - _UNMANAGED_NOTES_LAST).spent if kept else ()
        return tuple(name for name in self._notes.spent if writer_of(name) not in kept or name in old)

    def _owners_of_notes(self) -> set[str]:
        """Return the owners of the writers of notes about audiences that this run may change."""
        every = self.managed is None or self.identity.is_of_one_audience
        audiences = frozenset(self.managed or ())
        return {
            owner
            for file, owner in self._notes.owners.items()
            if every or not audiences.isdisjoint(_audiences_of(read_chunks(self.folder, file)))
        }

    def _of_managed(self, noted: Iterator[tuple[Member, str]]) -> Iterator[tuple[Member, str]]:
        """Leave out what other tasks did to audiences that this run may not change."""
        return noted if self.managed is None else (each for each in noted if each[0][1] in self.managed)

    def unacknowledged(self, *, withheld: bool = True) -> Iterator[Chunk]:
        """Yield changes of the current plan without an acknowledgement, marked if uncertain, sorted.

        Args:
            withheld: Whether to include changes that run rules and got no clear answer.
        """
        settled = self._settled_refusals()
        for part, (lines, landed, refused, *_) in enumerate(self._progress()):
            if landed == lines and not refused:
                continue
            acks = self.acks[part]
            for number, chunk in enumerate(self._batches(part)):
                if number not in acks.landed:
                    if withheld or number not in acks.withheld:
                        yield _as_uncertain(chunk) if acks.is_open(number) else chunk
                elif number in acks.refused:
                    # An earlier request may have made a change that was refused later.
                    uncertain = _as_uncertain(chunk.at(_uncertain_refusals(chunk, number, acks)))
                    left = [at for at, member in enumerate(uncertain.members) if member not in settled]
                    if left:
                        yield uncertain.at(left)

    def refused(self) -> Iterator[Chunk]:
        """Yield changes that Talon.One refused in the current plan, and those carried over, sorted."""
        carried = self.manifest.refused
        streams = [
            read_chunks(self.folder, carried) if carried else (),
            (chunk for part in range(self.parts) for chunk in self._refused_in(part)),
        ]
        changes = heapq.merge(*(chain.from_iterable(map(Chunk.changes, stream)) for stream in streams))
        while block := list(islice(changes, BLOCK)):
            yield Chunk.of(block)

    def changes(self) -> Iterator[Chunk]:
        """Yield all changes of the current plan, batch by batch."""
        for part in range(self.parts):
            yield from self._batches(part)

    @property
    def acks(self) -> list[Acks]:
        """The acknowledgements of each part of the current plan."""
        if self._acks is None or self._share:
            self._acks = self._read_acks(self.manifest.plan)
        return self._acks

    # A run in one process

    @contextmanager
    def held(self, owner: str, *, waits_for_parts: bool = False) -> Iterator[None]:
        """Hold the ledger's lock, and read the ledger.

        Args:
            owner: The owner of this run, which takes over from an earlier try of the same owner.
            waits_for_parts: Whether to give way to the same owner's pushes of parts.

        Raises:
            LedgerBusyError: Another owner holds the ledger, or other processes push its plan.
        """
        with self.lock.held(owner, waits_for_parts=waits_for_parts):
            # The run may have waited for the lock, and the oldest letters are deleted first.
            name = letters_name(self._clock(), self.run)
            self.letters = DeadLetters(self.folder, name, keep=self._keep)
            self._load_manifest()
            self._owner = owner
            self._notified = ()
            try:
                with self._confirming_damage():
                    yield
            except BaseException:
                with suppress(LedgerError):
                    self._end_notes(REQUEST_LASTS)
                raise
            try:
                self._end_notes(0.0)
            except LedgerError as error:
                # Not raised: a retry would not report this run's changes without a clear answer again.
                log.warning(
                    "Other ledgers treat this run's changes as uncertain for a day.\n"
                    "Its end was not recorded: %s",
                    error,
                )

    @contextmanager
    def _confirming_damage(self) -> Iterator[None]:
        """If a file is damaged or missing, raise the lock's error instead if another run took over.

        That run may have deleted the file.
        """
        try:
            yield
        except DamagedError:
            self.lock.confirm()
            raise

    def suspect(self, audiences: Iterable[str]) -> None:
        """Record, until the next plan, that Talon.One may have lost the members of audiences.

        In a ledger of profiles, any name marks all fingerprints as uncertain.
        """
        self._suspects = self._mark("suspects", self._suspects, audiences)

    def suspected_by_now(self) -> frozenset[str]:
        """Return the suspected audiences, with those that other tasks have deleted meanwhile."""
        self._suspects |= self._marked("suspects", self.manifest.plan)
        return self.suspected

    @property
    def suspected(self) -> frozenset[str]:
        """Managed audiences whose members Talon.One may have lost since the current plan was made."""
        return self._suspects if self.managed is None else self._suspects.intersection(self.managed)

    @property
    def resends(self) -> frozenset[str]:
        """Managed audiences whose members are all sent again by the next plan; see ``note_resend``."""
        return self._resends if self.managed is None else self._resends.intersection(self.managed)

    def note_resend(self, audiences: Iterable[str]) -> None:
        """Record that audiences may be other ones, so that the next plan sends all their members again.

        Unlike a suspected audience, such an audience keeps its withheld changes and counts as filled.
        """
        self._resends = self._mark("doubts", self._resends, audiences)

    def _mark(self, mark: Mark, marked: frozenset[str], audiences: Iterable[str]) -> frozenset[str]:
        """Mark audiences, with those that are marked; return all of them."""
        all_marked = marked.union(audiences)
        # A ledger without a version has no members.
        if self.version and all_marked != marked:
            write_mark(mark, self.folder, self.plan, self.run, all_marked)
        self.lock.confirm()
        return all_marked

    def note_resend_of_unmanaged(self) -> None:
        """Note a resend of all known audiences that this run may not change."""
        if self.managed is not None:
            self.note_resend(self.unmanaged(self._known_audiences()))

    def unmanaged(self, audiences: Iterable[str]) -> list[str]:
        """Return the given audiences that this run may not change."""
        return [] if self.managed is None else sorted(set(audiences).difference(self.managed))

    def flush(self) -> None:
        """Make dead letters durable."""
        self.letters.flush()
        self.lock.confirm()

    def draft(self, planner: Planner) -> Draft:
        """Write the next version: a plan, and a file of members if there are many changes since the last one.

        The planner may iterate over its arguments once.
        """
        self._notes = self._find_notes()
        self._suspects |= self._marked("suspects", self.manifest.plan)
        self._resends |= self._marked("doubts", self.manifest.plan) | self._changed_unmanaged()
        before = self.manifest
        since = before.plans if any(map(self._has_effects, self.acks)) else before.since
        manifest = replace(self._next_version(), members=before.members, since=since, spent=self._spent())
        changes = sum(plan.changes for plan in since)
        lines = before.members.lines if before.members else 0
        # Uncertain fingerprints are in no plan's files, so they must be among the members.
        has_uncertain = self._holds_profiles and bool(self._has_outside_changes or self.suspected)
        rewrites = has_uncertain or changes * _REWRITE_SHARE > lines or len(since) > _MOST_PLANS
        try:
            return self._write_draft(manifest, planner, rewrites_members=rewrites)
        except BaseException:
            with suppress(LedgerError):
                remove_folder(self.folder / manifest.plan.folder)
            raise

    def _next_version(self) -> Manifest:
        # After an older state was accepted, no run finds it older again.
        version = (max(self._newest, self.at_least) if self.accepts_older else self._newest) + 1
        return Manifest(
            version=version, plan=Plan(folder=f"{version:08}-{self.run}", batch=self._sizes.batch)
        )

    def _write_draft(self, manifest: Manifest, planner: Planner, *, rewrites_members: bool) -> Draft:
        audiences: set[str] = set()
        known, folder = self.known(), manifest.plan.folder
        source: Iterable[Chunk] = known
        with ExitStack() as files:
            refused = f"{folder}/refused.tsv.zst"
            carried = files.enter_context(writing_lines(self.folder / refused))
            if rewrites_members:
                name = f"{folder}/members.tsv.zst"
                file = files.enter_context(writing_lines(self.folder / name))
                source = self._collecting(_copied(known, file), audiences)
            else:
                known.snapshot = self._collecting(known.snapshot, audiences)
                known.plans = [self._collecting(changes, audiences) for changes in known.plans]
            changes = self._collecting(planner(source, self.uncertain(), carried.write), audiences)
            plan = write_plan(self.folder, folder, changes, batch=self._sizes.batch, part=self._sizes.part)
            if rewrites_members:
                for _ in source:
                    """Copy the members that the planner did not ask for."""
                manifest = replace(manifest, members=file.as_file(name), since=())
            manifest = replace(manifest, plan=plan, refused=carried.as_file(refused))
        # Talon.One may have lost the effects of calls about an audience that is suspected.
        withheld = {
            member: action for member, action in self.withheld().items() if member[1] not in self.suspected
        }
        manifest = replace(
            manifest,
            withheld=self._write_withheld(folder, withheld),
            unreported=self._write_changes(f"{folder}/unreported.tsv.zst", sorted(self._unreported())),
        )
        return Draft(manifest=manifest, audiences=frozenset(audiences))

    def _write_withheld(self, folder: str, withheld: Mapping[Member, Action]) -> File | None:
        changes = (Change(*member, action) for member, action in sorted(withheld.items()))
        return self._write_changes(f"{folder}/withheld.tsv.zst", changes)

    def _write_changes(self, name: str, changes: Iterable[Change]) -> File | None:
        with writing_lines(self.folder / name) as file:
            file.write(Chunk.of(changes))
        return file.as_file(name)

    def _collecting(self, chunks: Iterable[Chunk], audiences: set[str]) -> Iterator[Chunk]:
        """Yield chunks, and add their audiences to a set."""
        for chunk in chunks:
            if self._holds_profiles:
                audiences.add(ATTRIBUTES)
            else:
                audiences.update([chunk.keys] if isinstance(chunk.keys, str) else chunk.keys)
            yield chunk

    def note_refused_before(self, draft: Draft, members: Iterable[Member]) -> None:
        """Write a draft's changes that Talon.One refused before, for the processes that push the draft."""
        name = f"{draft.manifest.plan.folder}/{_REFUSED_BEFORE}"
        self._write_changes(name, (Change(*member, "add") for member in sorted(members)))

    def _refused_before(self) -> frozenset[Member]:
        folder = self.folder / self.plan
        if _REFUSED_BEFORE not in names_in(folder):
            return frozenset()
        try:
            chunks = list(read_chunks(folder, File(file=_REFUSED_BEFORE, sha256="", lines=0, key="")))
        except DamagedError as error:
            # The file only saves requests.
            log.warning(
                "The list of changes refused before cannot be read. They are sent with the others.\n%s", error
            )
            return frozenset()
        return frozenset(change[:2] for chunk in chunks for change in chunk.changes())

    def discard(self, draft: Draft) -> None:
        """Delete the files of a draft."""
        remove_folder(self.folder / draft.manifest.plan.folder)

    def make_current(
        self, draft: Draft, *, facts: RunFacts, names: Iterable[str] = (), handed_over: bool = False
    ) -> None:
        """Make a draft the current version. A run that is killed from now on is resumed.

        Args:
            draft: The draft.
            facts: What the ledger remembers of this run.
            names: All attribute names of its fingerprints: the names before it, and after them the new ones.
            handed_over: Whether other processes push the plan, so that the lock stays when this one ends.
        """
        self.lock.confirm()
        replaced, was_own = self.manifest, bool(self._notified)
        plan = draft.manifest.plan
        acks = [plan.acks_of(part, self.run) for part in range(len(plan.parts))]
        for name in acks:
            Acks().write(self.folder / name)
        manifest = replace(
            draft.manifest,
            owner=self._owner,
            plan=replace(plan, acks=tuple(acks)),
            letters=self.letters.name,
            names=tuple(names),
            facts=asdict(facts),
            managed=None if self.managed is None else sorted(self.managed),
        )
        manifest = replace(manifest, told=self._notify_others(manifest, draft.audiences))
        # The notes that this version covers stay: if its manifest is lost, the version before it needs them.
        before, spent_before = replaced.plan, self._spent_before
        # Another process may be about to send a plan that it made, though it has acknowledged nothing yet.
        is_settled = was_own or self.facts.awaits_approval
        had_effect = self._had_effect() if replaced.told and is_settled else True
        # More may have been noted after this version was drafted.
        suspects, resends = self._marked("suspects", before), self._marked("doubts", before)
        missed = self._left_over(self._suspects | suspects, self.suspected)
        missed_resends = self._left_over(self._resends | resends, self.resends)
        if missed:
            write_mark("suspects", self.folder, plan.folder, self.run, missed)
        if missed_resends:
            write_mark("doubts", self.folder, plan.folder, self.run, missed_resends)
        self._put_manifest(self.manifest.followed_by(manifest, self._keep))
        self._notified = manifest.told
        self._suspects, self._resends = missed, missed_resends
        # From now on they are noted in the folder of this version.
        self.suspect(self._marked("suspects", before) - suspects)
        self.note_resend(self._marked("doubts", before) - resends)
        self._delete_unnamed()
        with suppress(LedgerError):
            # The push of a plan of this run is over. Others may have left requests in flight.
            self._end_notes_of(replaced, 0.0 if was_own else REQUEST_LASTS, had_effect=had_effect)
        for name in spent_before:
            remove(self.folder / NOTES / name)
        self.lock.handed_over = handed_over
        self._newest = manifest.version
        self._lost_parts = ()
        self._lost_unclear = []
        self._notes = Notes()

    def _left_over(self, audiences: frozenset[str], covered: frozenset[str]) -> frozenset[str]:
        """Return the known audiences that a draft does not cover."""
        left = audiences - covered
        return (
            left & self._known_audiences().union(self.managed) if left and self.managed is not None else left
        )

    def remember(self, facts: RunFacts) -> None:
        """Replace the facts of the current version; a ledger without a version remembers nothing."""
        if self.version:
            self.lock.confirm()
            self._note_internal_ids(facts.audiences)
            self._amend(facts={**asdict(facts), "owner": self._owner})

    def _amend(self, **changes: Any) -> None:
        """Replace the manifest of the current version, and delete files that the new one does not name."""
        self._put_manifest(replace(self.manifest, before=self.manifest.file, **changes))
        self._delete_unnamed()

    def _put_manifest(self, manifest: Manifest) -> None:
        manifest = replace(manifest, fencing_token=self.lock.fencing_token, run=self.run)
        manifest = replace(manifest, file=manifest.file_name(self._manifests_written))
        self._manifests_written += 1
        # If this write fails, the manifest may arrive later.
        self.lock.keeps_heartbeat = True
        manifest.write(self.folder, self.identity.parts)
        self.lock.keeps_heartbeat = False
        # After the write: a run that takes over from now on reads it.
        self.lock.confirm()
        self.manifest = manifest
        self.letters.spared = {self.letters.name, manifest.letters}
        self._acks = self._share = None

    def _delete_unnamed(self) -> None:
        manifest = self.manifest
        manifest.remove_others(self.folder, self.lock.confirm)
        remove_temporary_notes(self.folder, self._clock())
        oldest = min([manifest.letters, *(version["letters"] for version in manifest.history)])
        self.letters.prune(oldest)

    def withhold_unclear(self) -> int:
        """Withhold changes that run rules and may have been sent by a run that was killed.

        Returns:
            Their number, with that of other changes without a clear answer that no run that finished has
            reported. Each of them gets a dead letter of this run.
        """
        calls = chain.from_iterable(map(self._sent_with_rules, self._lost_parts))
        self._lost_unclear = [change for change, is_settled in calls if not is_settled]
        unreported = self._unreported()
        for change in unreported:
            self.letters.add(letter_of(change, self._clock(), of_profile=self._holds_profiles))
        parts = range(self.parts)
        return len(unreported) + sum(
            self._withhold_unclear_in(part, self.acks[part], self.letters) for part in parts
        )

    def _unreported(self) -> list[Change]:
        """Return changes that run rules, got no clear answer, and are in no report of a run that finished."""
        carried, plan = self.manifest.unreported, self.manifest.plan
        chunks = read_chunks(self.folder, carried) if carried else ()
        found = [*chain.from_iterable(map(Chunk.changes, chunks)), *self._lost_unclear]
        for part, acks in enumerate(self.acks if plan.together and not self.manifest.reported else ()):
            if acks.withheld:
                found += [
                    change for number, change in self._unclear_in(part, acks) if number in acks.withheld
                ]
        return found

    def note_reported(self) -> None:
        """Note, durably, that this run's report has all changes without a clear answer so far."""
        # A manifest of the old version would delete what is left of a lost plan.
        if self._unreported() and not self._lost_parts:
            self.lock.confirm()
            self._amend(unreported=None, reported=True)

    def _withhold_unclear_in(self, part: int, acks: Acks, letters: DeadLetters) -> int:
        plan, unclear_before = self.manifest.plan, Acks()
        for number, change in self._unclear_in(part, acks) if plan.together else ():
            if number not in acks.withheld:
                acks.withheld.add(number)
                unclear_before.withheld.add(number)
                letters.add(letter_of(change, self._clock(), of_profile=self._holds_profiles))
        if unclear_before.withheld:
            letters.flush()
            # Not under this run's ID: if this run pushes the part, it writes another file.
            unclear_before.write(self.folder / plan.acks_of(part, uuid4().hex[:12]))
            self.lock.confirm()
        return len(unclear_before.withheld)

    def share(self) -> Share:
        """Return all parts of the current plan, for a process that holds the ledger."""
        if self._share is None:
            self._share = self._share_of(dict(enumerate(self.acks)), self.letters)
        return self._share

    def adopt(self, owner: str, records: Iterable[Record]) -> int:
        """Record members that an audience got by other means as acknowledged.

        Returns:
            Number of members.

        Raises:
            LedgerError: The ledger exists already.
        """
        counts = Counts()
        with self.held(owner):
            if self.version:
                raise LedgerError(
                    "The ledger exists already. Members are adopted into a new one only.\n"
                    "To adopt again, delete its folder and adopt a new export,\n"
                    f"with the members that mirrors have added.\nFolder: {self.folder}"
                )
            members = in_order(sorted_members(records), counts, lambda _: None)
            self._begin_with(members, facts=RunFacts())
        return counts.read - counts.duplicate - counts.rejected.total()

    def _begin_with(
        self,
        members: Iterable[Chunk],
        *,
        facts: RunFacts,
        names: Iterable[str] = (),
        withheld: Mapping[Member, Action] | None = None,
    ) -> None:
        """Make a version of these members and an empty plan the current one."""
        manifest = self._next_version()
        folder = manifest.plan.folder
        name = f"{folder}/members.tsv.zst"
        audiences: set[str] = set()
        with writing_lines(self.folder / name) as file:
            for _ in self._collecting(_copied(members, file), audiences):
                """Copying is all there is to do."""
        withheld_file = self._write_withheld(folder, withheld or {})
        manifest = replace(manifest, members=file.as_file(name), withheld=withheld_file)
        self.make_current(Draft(manifest=manifest, audiences=frozenset(audiences)), facts=facts, names=names)

    # A run in several processes

    @contextmanager
    def divided(self, owner: str, part: int | None = None) -> Iterator[None]:
        """Hold the ledger for processes that read a source in ranges, until one of them plans.

        Args:
            owner: The owner of all these processes.
            part: Number of the range that this process reads; None for the process that divides the source.
        """
        if part is None:
            with self.held(owner):
                yield
                self.lock.handed_over = True
            return
        # This process holds the lock of its range only.
        self.lock = Lock(self.folder, self.run, self._clock, self._sleep, part=part)
        with self.lock.held(owner):
            self.lock.handed_over = True
            yield

    @contextmanager
    def deciding(self, owner: str, plan: str, facts: RunFacts) -> Iterator[None]:
        """Hold the ledger of a plan that waits for approval, until the plan is pushed or rejected.

        Raises:
            LedgerError: The plan was replaced, or was made for another API key; or another run is active.
        """
        # Without waiting for the run that replaced the plan.
        self._load_manifest()
        self._refuse_other(plan, unapproved=False)
        with self.held(owner):
            self._refuse_other(plan, unapproved=False)
            self._refuse_other_key(facts)
            self.lock.handed_over = True
            yield

    def reject_plan(self) -> None:
        """Note, durably, that the plan must not be pushed, and release the ledger when this run ends."""
        self.remember(replace(self.facts, rejected=True))
        self._notified = self.manifest.told
        self.lock.handed_over = False

    @contextmanager
    def pushing(
        self, owner: str, plan: str, parts: Sequence[int], facts: RunFacts | None = None
    ) -> Iterator[Share]:
        """Push some parts of a plan that another process made, or what an earlier try has not sent of them.

        Args:
            owner: The owner, which is the same for all processes of one sync.
            plan: ID of the plan.
            parts: Numbers of the parts, from 0. A part is always pushed with the same other parts: if two
                processes push the same first part, the later one takes over.
            facts: Facts about this process's connection.

        Raises:
            LedgerError: The plan was replaced, was made for another API key, or is incomplete because an
                audience lost its members; or another run is active. Nothing was sent.
            InvalidInputError: The plan has no such part.
        """
        self._load_manifest()
        self._refuse_other(plan)
        if not parts or not all(type(part) is int and 0 <= part < self.parts for part in parts):
            raise InvalidInputError(f"Parts must be numbers from 0 to {self.parts - 1}, but are {parts!r}.")
        # This process holds the lock of its parts only.
        self.lock = Lock(self.folder, self.run, self._clock, self._sleep, part=parts[0])
        with self.lock.held(owner):
            self._load_manifest()
            self._refuse_other(plan)
            self._refuse_suspected()
            if facts:
                self._refuse_other_key(facts)
            # The ledger stays in use until the plan is committed.
            self.lock.handed_over = True
            prefix = f"{parts[0]:05}-{self.run}-"
            letters = DeadLetters(self.folder, self.manifest.letters, prefix=prefix, keep=self._keep)
            known = dict(zip(parts, self._read_acks(self.manifest.plan, parts), strict=True))
            unclear_before = sum(
                self._withhold_unclear_in(part, acks, letters) for part, acks in known.items()
            )
            share = self._share_of(known, letters)
            share.unclear_before = unclear_before
            share.refused_before = self._refused_before()
            if share.changes:
                self._notify_again(parts)
            with self._confirming_damage():
                yield share

    def commit(self, owner: str, plan: str, check: Callable[[], object] = lambda: None) -> Outcome:
        """Check that all parts of a plan are complete, and release the ledger.

        Raises:
            LedgerError: Parts are not complete, or the plan was replaced, or an audience lost its members.
        """
        with self.held(owner, waits_for_parts=True):
            self._refuse_other(plan)
            self._refuse_suspected()
            progress = self._progress()
            lines, landed, refused, skipped, unclear = (
                map(sum, zip(*progress, strict=True)) if progress else (0,) * 5
            )
            left = [at for at, (total, done, *_, withheld) in enumerate(progress) if done + withheld < total]
            if left:
                self.lock.handed_over = True
                numbers = ", ".join(map(str, left[:_LISTED])) + (", ..." if len(left) > _LISTED else "")
                raise LedgerError(
                    f"{len(left):,} of {len(progress):,} parts of the plan are not complete ({numbers}).\n"
                    f"They lack {lines - landed - unclear:,} of {lines:,} changes. Push these parts again."
                )
            try:
                check()
            except BaseException:
                # A retry commits the plan, unless another run replaces it before.
                self.lock.handed_over = True
                raise
            self._refuse_suspected()
            # A file of acknowledgements that is missing from now on is an error.
            sealed = replace(self.manifest.plan, acks=tuple(self._files(self.manifest.plan, _ACKS)))
            managed = self.manifest.managed
            filling = () if managed is None else set(self.facts.filling).difference(managed)
            facts = {**self.manifest.facts, "filling": sorted(filling)}
            self._amend(plan=sealed, facts=facts, unreported=None, reported=True)
            self._notified = self.manifest.told
            letters = self.folder / LETTERS / self.manifest.letters
            added, removed = self._acknowledged_by_audience()
            return Outcome(
                changes=lines,
                acknowledged=landed - refused,
                added=added,
                removed=removed,
                refused=refused,
                skipped=skipped,
                unclear=unclear,
                dead_letters=str(letters) if names_in(letters) else None,
            )

    def _refuse_other_key(self, facts: RunFacts) -> None:
        if self.environment_may_differ(facts):
            raise LedgerError(
                "The API key or the platform name on the connection has changed since this plan was made.\n"
                "Another platform has other audiences, and another key may be of another environment\n"
                "(sandbox or live) where Environment is not set on the connection.\n"
                "Nothing was sent. Clear the task that plans (plan).\n"
                f"Ledger: {self.folder}"
            )

    def _refuse_other(self, plan: str, *, unapproved: bool = True) -> None:
        """Raise an error if another run has planned since, or if the plan was rejected or awaits approval."""
        if plan == self.plan and self.facts.rejected:
            raise LedgerError(
                f"The plan {plan} was rejected. Nothing more is sent. Clear the task that plans (plan).\n"
                f"Ledger: {self.folder}"
            )
        if not self.version:
            raise LedgerError(
                f"This worker finds no ledger of the plan {plan}. Nothing was sent.\n"
                "Make the state URI one that all workers reach, or see whether the connection has changed.\n"
                f"Ledger: {self.folder}"
            )
        if plan != self.plan:
            raise LedgerError(
                f"The plan {plan} was replaced: another run has planned since.\n"
                f"The ledger has version {self.version} now. Nothing was sent. Plan again.\n"
                f"Ledger: {self.folder}"
            )
        # Whatever made Airflow run this task.
        if unapproved and self.facts.awaits_approval:
            raise LedgerError(
                f"The plan {plan} has not been approved. Nothing was sent.\n"
                "Approve it in the task that asks (approve), or clear the task that plans (plan).\n"
                f"Ledger: {self.folder}"
            )

    def _refuse_suspected(self) -> None:
        """Raise an error if an audience may have lost members that the plan does not add."""
        managed = self.manifest.managed
        suspected = self._suspects if managed is None else self._suspects.intersection(managed)
        # An audience of which the ledger has no members has nothing to lose.
        if suspected and (
            self._holds_profiles
            or not suspected.isdisjoint(_audiences_of(chain(self.known(), self.changes())))
        ):
            raise LedgerError(
                "While this plan was pushed, an audience was deleted or made again in Talon.One.\n"
                "If it was made again, it has lost members that this plan does not add.\n"
                "Nothing more was sent. Make sure that it exists, and clear the task that plans (plan).\n"
                f"Ledger: {self.folder}"
            )

    # Internals

    def _share_of(self, known: Mapping[int, Acks], letters: DeadLetters) -> Share:
        plan, ahead = self.manifest.plan, self._sizes.ahead
        if plan.together:
            # If the run is killed, a person must check each change that runs rules and was noted ahead.
            ahead = -(-ahead // _FEWER_AHEAD)
        return Share(self.folder, plan, known, self.lock, letters, ahead)

    def _progress(self) -> list[tuple[int, int, int, int, int]]:
        """Return counts by part: all, landed, refused, skipped and withheld changes."""
        plan = self.manifest.plan
        return [
            (part.lines, *acks.counts(part.lines, plan.batch))
            for part, acks in zip(plan.parts, self.acks, strict=True)
        ]

    def _acknowledged_by_audience(self) -> tuple[Counter[str], Counter[str]]:
        """Count the acknowledged additions and removals of the current plan, by audience."""
        added: Counter[str] = Counter()
        removed: Counter[str] = Counter()
        for part, acks in enumerate(self.acks):
            for chunk in _acknowledged(self._batches(part), acks):
                chunk.tally(added, removed, "profiles" if self._holds_profiles else None)
        return +added, +removed

    def _has_effects(self, acks: Acks) -> bool:
        """Whether the pushes of a part have changed what is known."""
        return bool(acks.landed) or (self._holds_profiles and not acks.is_empty)

    def _effects_of(self, plan: Plan, known: list[Acks]) -> Iterator[Chunk]:
        """Yield the changes that a plan has made to what is known."""
        for part, acks in enumerate(known):
            yield from self._effects_of_part(plan, part, acks)

    def _effects_of_part(self, plan: Plan, part: int, acks: Acks) -> Iterator[Chunk]:
        effects = _effects_on_profiles if self._holds_profiles else _acknowledged
        return effects(plan.batches(self.folder, part), acks) if self._has_effects(acks) else iter(())

    def _batches(self, part: int) -> Iterator[Chunk]:
        return self.manifest.plan.batches(self.folder, part)

    def _refused_in(self, part: int) -> Iterator[Chunk]:
        acks = self.acks[part]
        if acks.refused:
            for number, chunk in enumerate(self._batches(part)):
                sent = {*acks.refused.get(number, ())}.difference(acks.skipped.get(number, ()))
                if sent:
                    yield chunk.at(sorted(sent))

    def _settled_refusals(self) -> set[tuple[str, str]]:
        """Return members whose removal was refused and that are not known: they are not uncertain."""
        found: set[tuple[str, str]] = set()
        for part, acks in enumerate(() if self._holds_profiles else self.acks):
            for number, chunk in enumerate(self._batches(part) if acks.refused else ()):
                uncertain = chunk.at(_uncertain_refusals(chunk, number, acks))
                found |= {change[:2] for change in uncertain.changes() if change.action == "remove"}
        for chunk in self.known() if found else ():
            found.difference_update(chunk.members)
        return found

    def _files(self, plan: Plan, pattern: re.Pattern[str]) -> list[str]:
        """List the files of a plan whose names match a pattern."""
        if not plan.folder:
            return []
        found = names_in(self.folder / plan.folder)
        return [f"{plan.folder}/{name}" for name in found if pattern.fullmatch(name)]

    def _read_acks(self, plan: Plan, parts: Iterable[int] | None = None) -> list[Acks]:
        """Read and merge the acknowledgements of some parts of a plan; of all if None."""
        found, merged = self._files(plan, _ACKS), []
        for part in range(len(plan.parts)) if parts is None else parts:
            start = plan.acks_of(part, "").removesuffix(".json")
            for name in plan.acks:
                if name.startswith(start) and name not in found:
                    raise missing(self.folder / name)
            files = [Acks.read(self.folder / name) for name in found if name.startswith(start)]
            merged.append(Acks.merged(files))
        return merged

    def _sent_parts(self, folder: str) -> list[LostPart]:
        """Return the parts that may have been sent, of a plan whose manifest is lost."""
        sent = []
        for match in filter(None, map(_PART.fullmatch, names_in(self.folder / folder))):
            acks = Acks(may_have_left=sys.maxsize)
            with suppress(DamagedError):
                (acks,) = self._read_acks(Plan(folder=folder), [int(match[1])])
            if not acks.is_empty:
                sent.append((File(file=f"{folder}/{match[0]}", sha256="", lines=0, key=""), acks))
        return sent

    def _find_notes(self) -> Notes:
        return find_notes(self.folder, self._clock(), self._spent_before)

    @property
    def _spent_before(self) -> tuple[str, ...]:
        """The notes that the current version covers; none if nothing of its plan was sent."""
        return () if self.facts.awaits_approval else self.manifest.spent

    @property
    def _has_outside_changes(self) -> bool:
        return bool(self._notes.owners or self._lost_parts)

    def _changed_outside(self, action: str, writers: Writers) -> Iterator[tuple[str, str]]:
        """Yield, sorted, members that notes or lost plans added or removed.

        Args:
            action: ``add`` or ``remove``.
            writers: Whose changes to yield. Lost plans are the ledger's own.
        """
        own = writers in ("all", "own")
        lost = chain.from_iterable(map(self._sent_changes, self._lost_parts if own else ()))
        notes = read_notes(self.folder, self._notes, writers)
        return self._sorted_members(action, chain(notes, lost))

    def _sorted_members(self, action: str, changes: Iterable[Chunk]) -> Iterator[tuple[str, str]]:
        chunks = (
            Chunk.of([change for change in chunk.changes() if change.action == action]) for chunk in changes
        )
        for record in sorted_members(chunk for chunk in chunks if chunk):
            if isinstance(record, Chunk):
                yield from record.members

    def _acknowledged_in_lost_parts(self) -> Iterator[Chunk]:
        """Yield the changes of lost plans that Talon.One surely made; those that run rules are left out."""
        for file, acks in self._lost_parts:
            plan = Plan(parts=(file,), batch=self._sizes.batch)
            with suppress(DamagedError):
                if not any(chunk.runs_rules for chunk in read_chunks(self.folder, file)):
                    yield from _acknowledged(plan.batches(self.folder, 0), acks)

    def _uncertain_profiles(self) -> Iterator[Chunk]:
        """Yield an uncertain fingerprint for each profile that has one in a note or in a lost plan."""
        changes = heapq.merge(self._changed_outside("add", "all"), self._changed_outside("remove", "all"))
        fingerprints = (change for change in changes if change[1] != ATTRIBUTES)
        first = (next(group) for _, group in groupby(fingerprints, key=itemgetter(0)))
        return _chunks_of_members((profile, marked_uncertain(key), "add") for profile, key in first)

    def _notify_others(self, manifest: Manifest, audiences: Collection[str]) -> tuple[str, ...]:
        """Write notes of a plan into other ledgers, and return the names of those that have notes now.

        They are the ledgers that hold its audiences or, for attributes that it deletes, some of its names.
        """
        self.registry.register(audiences)
        self._note_internal_ids(manifest.facts["audiences"])
        if self._holds_profiles and self.version and not self._removes(manifest.plan):
            return ()
        others: dict[str, tuple[dict[str, str], NoteWriter]] = {}
        for name, ids in self.registry.ledgers_of(audiences).items():
            if not self._shares_names(name, manifest):
                continue
            others[name] = dict(ids), self._writer_in(name, manifest, manifest.plan.folder)
        # Of one audience, a run says it before it plans.
        if not (self.version or self.identity.is_of_one_audience) and (lines := self._differences(others)):
            log.warning(
                "A new ledger begins beside another one of the same %s:\n%s",
                "attributes" if self._holds_profiles else "audience",
                "\n".join(lines[:_LISTED]),
            )
        self._write_notes(others.values(), manifest.plan.parts)
        return tuple(name for name, (_, notes) in others.items() if notes.written)

    def _notify_again(self, parts: Sequence[int]) -> None:
        """Write notes of parts of the current plan, where they end soon or the ledger is new."""
        manifest = self.manifest
        plan, now = manifest.plan, self._clock()
        # Another name than before: a ledger leaves out the notes that it has spent.
        writer = f"{plan.folder}-{parts[0]}-{now // WRITER_LASTS:.0f}"
        changes = chain.from_iterable(map(self._batches, parts))
        audiences = {ATTRIBUTES} if self._holds_profiles else _audiences_of(changes)
        others = []
        for name, ids in self.registry.ledgers_of(audiences).items():
            if name in manifest.told:
                is_due = not self._writer_in(name, manifest, plan.folder).lasts(WRITER_LASTS / 2)
            else:
                is_due = self._shares_names(name, manifest)
            if is_due:
                others.append((dict(ids), self._writer_in(name, manifest, writer)))
        self._write_notes(others, [plan.parts[part] for part in parts])

    def _shares_names(self, name: str, manifest: Manifest) -> bool:
        """Return whether another ledger has attribute names of a version, or whether both are of members."""
        if not self._holds_profiles:
            return True
        other = Manifest()
        with suppress(LedgerError):
            other = find_manifest(self.registry.folder(name)).manifest
        return not set(manifest.names).isdisjoint(other.names)

    def _removes(self, plan: Plan) -> bool:
        chunks = chain.from_iterable(read_chunks(self.folder, file) for file in plan.parts)
        return any(not REMOVING.isdisjoint(chunk.each_verb) for chunk in chunks)

    def _writer_in(self, name: str, manifest: Manifest, writer: str) -> NoteWriter:
        """Return a writer of notes in another ledger, about the plan of one of this ledger's versions."""
        return NoteWriter(self.registry.folder(name), writer, manifest.owner, self._clock)

    def _write_notes(
        self, others: Collection[tuple[Mapping[str, str], NoteWriter]], files: Iterable[File]
    ) -> None:
        """Write notes of changes, each into the ledgers that have the ID of its audience."""
        for file in files if others else ():
            for chunk in read_chunks(self.folder, file):
                if self._holds_profiles:
                    # Those that a sync sets are left out: two syncs would send them again for ever.
                    verbs = zip(chunk.ids, chunk.each_verb, strict=True)
                    deleted = [profile_id for profile_id, verb in verbs if verb in REMOVING]
                    by_key = {ATTRIBUTES: Chunk(deleted, ATTRIBUTES)} if deleted else {}
                else:
                    by_key = dict(chunk.by_key())
                for ids_there, notes in others:
                    if shared := by_key.keys() & ids_there:
                        told = [replace(by_key[key], keys=ids_there[key]) for key in sorted(shared)]
                        notes.write(Chunk.joined(told))

    def _note_internal_ids(self, answers: Mapping[str, Mapping[str, Any]]) -> None:
        if self.identity.id_type == "external":
            self.registry.note_internal_ids({audience: each["id"] for audience, each in answers.items()})

    def _end_notes(self, seconds: float) -> None:
        """Note in the notified ledgers that the plan's last request arrives within some seconds."""
        names = () if self.lock.handed_over else self._notified
        had_effect = self._had_effect() if names else False
        for notes in self._notes_of(replace(self.manifest, told=names)):
            notes.end(seconds, had_effect=had_effect)

    def _end_notes_of(self, manifest: Manifest, seconds: float, *, had_effect: bool) -> None:
        """In other ledgers, end the notes of a replaced plan, unless another run has ended them."""
        for notes in self._notes_of(manifest):
            notes.end_if_open(seconds, had_effect=had_effect)

    def _notes_of(self, manifest: Manifest) -> Iterator[NoteWriter]:
        """Yield the writers of the notes that a version's plan has in other ledgers."""
        for name in manifest.told:
            for writer in writers_of_plan(self.registry.folder(name), manifest.plan.folder):
                yield self._writer_in(name, manifest, writer)

    def _had_effect(self) -> bool:
        """Whether Talon.One may have made changes of the current plan."""
        try:
            return not all(acks.is_empty for acks in self.acks)
        except DamagedError:
            return True


_IDENTITY_DEFAULTS = {part.name: "members" if part.name == "holds" else "" for part in fields(LedgerIdentity)}


def _audiences_of(chunks: Iterable[Chunk]) -> frozenset[str]:
    audiences: set[str] = set()
    for chunk in chunks:
        audiences.update([chunk.keys] if isinstance(chunk.keys, str) else chunk.keys)
    return frozenset(audiences)


def _copied(chunks: Iterable[Chunk], file: LineWriter) -> Iterator[Chunk]:
    for chunk in chunks:
        file.write(chunk)
        yield chunk


def _chunks_of_members(members: Iterable[tuple[str, str, Verb]]) -> Iterator[Chunk]:
    """Yield chunks of sorted members, each once, with its last verb."""
    distinct = (deque(same, 1).pop() for _, same in groupby(members, key=itemgetter(0, 1)))
    while block := list(islice(distinct, BLOCK)):
        ids, keys, verbs = map(list, zip(*block, strict=True))
        yield Chunk(ids, one_or_all(keys), one_or_all(verbs))


def _as_uncertain(chunk: Chunk) -> Chunk:
    """Mark changes as uncertain."""
    return replace(chunk, verbs=one_or_all([verb.rstrip("?") + "?" for verb in chunk.each_verb]))


def _with_uncertain_keys(chunk: Chunk, profiles: Collection[str] | None) -> Chunk:
    """Mark fingerprints of some or all profiles as uncertain, and keep the mark of an acknowledgement."""
    keys = [
        forgotten(key)
        if profiles is None
        else marked_uncertain(following(key, key))
        if profile_id in profiles
        else key
        for profile_id, key in chunk.members
    ]
    return replace(chunk, keys=one_or_all(keys))


def _with_noted_uncertain(known: Iterable[Chunk], noted: Iterator[str]) -> Iterator[Chunk]:
    """Mark the fingerprints of noted profiles as uncertain; both are sorted by profile."""
    profile = next(noted, None)
    for chunk in known:
        ids, last, found = frozenset(chunk.ids), chunk.ids[-1], set[str]()
        while profile is not None and profile <= last:
            if profile in ids:
                found.add(profile)
            profile = next(noted, None)
        yield _with_uncertain_keys(chunk, found) if found else chunk


def _uncertain_refusals(chunk: Chunk, number: int, acks: Acks) -> list[int]:
    """Return positions of refused changes of a batch that an earlier request may have made."""
    verbs = chunk.each_verb
    is_uncertain = number in acks.uncertain_refusals
    return [at for at in acks.refused.get(number, ()) if is_uncertain or verbs[at].endswith("?")]


def _acknowledged(batches: Iterable[Chunk], acks: Acks) -> Iterator[Chunk]:
    """Yield the changes that Talon.One has acknowledged."""
    for number, chunk in enumerate(batches):
        if number in acks.landed:
            yield chunk.without(acks.refused[number]) if number in acks.refused else chunk


def _effects_on_profiles(batches: Iterable[Chunk], acks: Acks) -> Iterator[Chunk]:
    """Yield the changes that a part of a plan has made to known fingerprints.

    Yields:
        The acknowledged changes, and for a change that may have arrived without an acknowledgement an
        addition of an uncertain fingerprint. If Talon.One refuses to remove attributes that it never
        acknowledged, they do not exist, and the removal counts as acknowledged.
    """
    for number, chunk in enumerate(batches):
        if number in acks.landed and number not in acks.uncertain_refusals:
            refused = [at for at in acks.refused.get(number, ()) if not _is_removed(chunk, at, number, acks)]
            yield chunk.without(refused) if refused else chunk
        elif number in acks.landed or acks.is_open(number):
            unknown = set(acks.refused[number] if number in acks.landed else range(len(chunk)))
            yield Chunk.of(
                [
                    change._replace(key=marked_uncertain(change.key), action="add", uncertain=False)
                    if at in unknown
                    else change
                    for at, change in enumerate(chunk.changes())
                ]
            )


def _is_removed(chunk: Chunk, at: int, number: int, acks: Acks) -> bool:
    (change,) = chunk.at([at]).changes()
    was_sent = at not in acks.skipped.get(number, ())
    return was_sent and change.action == "remove" and not was_acknowledged(change.key)
