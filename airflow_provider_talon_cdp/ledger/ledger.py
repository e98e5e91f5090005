r"""The ledger: a few files under a state URI, on a local disk or in an object store.

```
STATE_URI/<deployment host>/<name>/
    manifest-TOKEN-VERSION-N-RUN.json  which files are in force, with their checksums; the last by name counts
    locks/                             who is at work; see ``lock``
    00000007-RUN/members.tsv.zst       sorted members
    00000007-RUN/plan-00000.tsv.zst    sorted changes; 100,000 or so a part
    00000007-RUN/acks-00000-RUN.json   what became of that part's batches of 1000 changes
    00000007-RUN/refused.tsv.zst       changes that Talon.One refused before and that this plan does not have
    00000007-RUN/withheld.tsv.zst      changes that run rules and got no clear answer before this plan
    00000007-RUN/again.tsv.zst         changes of this plan that Talon.One refused before, for its pushers
    00000007-RUN/suspects-RUN.json     audiences that Talon.One may have lost
    outside/                           changes that others made; see ``outside``
    readings/                          what several processes read for a plan to come; see ``reading``
    dead-letters/<time>-RUN/00000.ndjson
```

What Talon.One acknowledged is the members in the file that the manifest names, plus the acknowledged changes
of the plans that it names, one after another. The next version compares with all of that; when the changes
have become many, it writes the members anew. Changes that may have left and were not acknowledged when a
worker was killed are uncertain: the next plan sends each of them again, as ``add?`` or ``remove?``, whatever
the source says, and they stay uncertain until they are acknowledged. But a change that runs rules is
withheld: it stays uncertain, and is not sent again by itself.

One process may plan and push, inside ``held``. Or one process plans, inside ``held``; others push a part
each, inside ``pushing``, as often as it takes; and a last one looks whether all is in, with ``commit``.
"""

from __future__ import annotations

import hashlib
import heapq
import json
import logging
import re
import sys
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, field, fields, replace
from datetime import UTC, datetime
from functools import partial
from itertools import chain, groupby, islice, repeat
from operator import itemgetter
from typing import Any, Literal, Self, TypeAlias
from urllib.parse import quote
from uuid import uuid4

from airflow_provider_talon_cdp.changes.change import REMOVING, Action, Change, Chunk, Record, one_or_all
from airflow_provider_talon_cdp.changes.counts import Counts
from airflow_provider_talon_cdp.changes.diff import Folded, Member, in_order
from airflow_provider_talon_cdp.changes.fingerprint import doubted, following, had
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
    key_at,
    last_fencing_token,
    read_chunks,
    write_plan,
    writing_lines,
)
from airflow_provider_talon_cdp.ledger.letters import (
    LETTERS,
    UNCLEAR,
    DeadLetters,
    letters_name,
    prune_letters,
)
from airflow_provider_talon_cdp.ledger.lock import Lock
from airflow_provider_talon_cdp.ledger.outside import (
    ATTRIBUTES,
    NOTES,
    REQUEST_LASTS,
    Notes,
    NoteWriter,
    Registry,
    find_notes,
    read_notes,
    write_suspects,
)
from airflow_provider_talon_cdp.ledger.share import Share
from airflow_provider_talon_cdp.ledger.storage import (
    DamagedError,
    Folder,
    as_folder,
    gone,
    names_in,
    read_json,
    remove,
    remove_folder,
)

log = logging.getLogger(__name__)

Planner: TypeAlias = Callable[[Iterable[Chunk], Iterable[Chunk]], Iterable[Chunk]]
"""Makes a plan of the known and the uncertain members."""

# The members are written anew when plans on top have more than a share of as many changes, or are many.
_SHARE = 8
_PLANS = 8
# Changes that run rules are noted ahead of their departure in a smaller number.
_FEWER_AHEAD = 8
# Parts that an error text names.
_NAMED = 10
_READABLE = 60
_AGAIN = "again.tsv.zst"
_VERSION = re.compile(r"\d{8}-")
_ACKS = re.compile(r"acks-(\d+)-[0-9a-f]+\.json")
_PART = re.compile(r"plan-(\d+)\.tsv\.(zst|gz)")
_SUSPECTS = re.compile(r"suspects-[0-9a-f]+\.json")


def audience_ledger_name(audience_id: str, id_type: AudienceIdType = AUDIENCE_ID_TYPE) -> str:
    """Name the ledger of one audience; one text as an internal and as an external ID is two audiences."""
    return f"{'' if id_type == 'external' else 'internal-'}audience:{audience_id}"


def sync_ledger_name(name: str, id_type: AudienceIdType = AUDIENCE_ID_TYPE) -> str:
    """Name a ledger of many audiences, as the operator has it: by default DAG.TASK."""
    return f"{'' if id_type == 'external' else 'internal-'}sync:{name}"


def profiles_ledger_name(name: str) -> str:
    """Name a ledger of profiles, as the operator has it: by default DAG.TASK."""
    return f"profiles:{name}"


def calls_ledger_name(name: str) -> str:
    """Name the place for dead letters of a task that adds and removes without a ledger."""
    return f"calls:{name}"


def _check_positive(what: str, number: Any) -> None:
    """Refuse what is not an integer greater than 0."""
    if not isinstance(number, int) or isinstance(number, bool) or number < 1:
        raise InvalidInputError(f"{what} must be an integer >= 1, but is {number!r}.")


@dataclass(frozen=True, kw_only=True)
class LedgerIdentity:
    """What a ledger belongs to.

    Args:
        deployment_host: Talon.One deployment.
        base_url: API base.
        name: Which audience, or which sync; see ``audience_ledger_name`` and those after it.
        environment: Free text that tells environments of one deployment apart, such as ``live``.
        holds: Whether audiences or fingerprints of attributes are the keys.
    """

    deployment_host: str
    base_url: str
    name: str
    environment: str = ""
    holds: Literal["members", "profiles"] = "members"

    @property
    def parts(self) -> dict[str, str]:
        """What is written down: no defaults of later versions, so that older ledgers keep their folders."""
        later = {"environment": "", "holds": "members"}
        return {name: value for name, value in asdict(self).items() if later.get(name) != value}

    @property
    def folder_name(self) -> str:
        """Name of the ledger's folder: a part is for people, and a part tells it from all others."""
        digest = hashlib.sha256(json.dumps(self.parts, sort_keys=True).encode()).hexdigest()[:16]
        return f"{self.readable}-{digest}"

    @property
    def readable(self) -> str:
        """What people see of the name."""
        return re.sub(r"[^\w.-]", "_", quote(self.name, safe=""))[:_READABLE]

    def folder(self, state: Folder) -> Folder:
        """Return the ledger's folder."""
        return self.host_folder(state) / self.folder_name

    def host_folder(self, state: Folder) -> Folder:
        """Return the folder of all ledgers of the deployment."""
        return as_folder(state) / self.deployment_host

    def of_audience(self, audience_id: str, id_type: AudienceIdType = AUDIENCE_ID_TYPE) -> LedgerIdentity:
        """Return the identity of one audience's own ledger in the same place."""
        return replace(self, name=audience_ledger_name(audience_id, id_type), holds="members")


@dataclass(frozen=True, kw_only=True)
class RunFacts:
    """What a run remembers for later ones.

    Args:
        data_until: End of the data interval, ISO 8601; of a run without one, its time.
        key_fingerprint: Tells one API key from another, and nothing else.
        platform_name: As on the connection.
        audiences: What Talon.One answered about audiences, by ID: its internal ID and when it was created.
        filling: Audiences whose first members are being sent in bulk, where other changes run rules.
    """

    data_until: str = ""
    key_fingerprint: str = ""
    platform_name: str = ""
    audiences: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    filling: list[str] = field(default_factory=list)

    def has_key_of(self, other: RunFacts) -> bool:
        """Whether another run has the same API key and platform name, as far as both are known."""
        if not self.key_fingerprint or not other.key_fingerprint:
            return True
        mine = self.key_fingerprint, self.platform_name
        return mine == (other.key_fingerprint, other.platform_name)


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """How a ledger's plans are cut.

    Args:
        batch: Changes in a batch of a new plan.
        part: Changes in a part of a new plan: as many whole batches as hold them, and the rest of the last
            profile.
        ahead: Batches that may leave before the next note: of a killed run, their changes are sent again.
    """

    batch: int = MAX_CHANGES
    part: int = 100 * MAX_CHANGES
    ahead: int = 64

    def __post_init__(self) -> None:
        for each in fields(self):
            _check_positive(each.name, getattr(self, each.name))


_SIZES = Sizes()


@dataclass(frozen=True, kw_only=True)
class Draft:
    """A version of the ledger whose files are written and that is not in force yet.

    Args:
        version: Its number.
        folder: Name of the folder of its files.
        members: The file of members; None for no members.
        since: Plans whose acknowledged changes come on top of these members, before this plan.
        parts: The files of the plan, in order.
        refused: The file of refused changes that the plan does not have; None for none.
        withheld: The file of changes of earlier plans that run rules and got no clear answer; None for none.
        runs_rules: Whether changes of the plan run rules.
        audiences: Audiences that it has members or changes of.
        spent: Notes that it covers, by name.
    """

    version: int
    folder: str
    members: File | None = None
    since: tuple[Plan, ...] = ()
    parts: tuple[File, ...] = ()
    refused: File | None = None
    withheld: File | None = None
    runs_rules: bool = False
    audiences: frozenset[str] = frozenset()
    spent: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of a plan that several processes pushed.

    Args:
        changes: How many it had.
        acknowledged: Those that Talon.One took.
        added: Acknowledged changes that add, by audience; profiles count as one audience, ``profiles``.
        removed: Acknowledged changes that remove, by audience.
        refused: Those that Talon.One refused or was not asked about; with acknowledged and unclear ones,
            they are all.
        skipped: Refused changes that were never sent.
        unclear: Changes that run rules and got no clear answer.
        dead_letters: Where those are and the records that the plan left out, or None when there are none.
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

    A ledger of profiles holds one fingerprint for each profile: a change that adds sets it, one that removes
    forgets it, and a plan has one change of a profile at the most. A change that may have left without an
    acknowledgement puts a doubt on the fingerprint, which stays until another change of the profile is
    acknowledged.

    Args:
        state: Folder of all ledgers.
        identity: What it belongs to.
        keep: Versions whose files and dead letters are kept, at least 1.
        sizes: How new plans are cut.
        clock: Seconds since the epoch.
        sleep: Waits for so many seconds.

    Raises:
        LedgerError: From any method, when files cannot be read or written, are damaged, of a newer format, or
            older than ``at_least`` says.
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
        _check_positive("keep", keep)
        self.identity = identity
        self.folder = identity.folder(state)
        self.manifest = Manifest()
        self.run = uuid4().hex[:12]
        self.lock = Lock(self.folder, self.run, clock, sleep)
        self.at_least = 0
        """The version that this task last wrote, as far as Airflow knows it: an older one is refused."""
        self.suspected: frozenset[str] = frozenset()
        """Audiences that Talon.One may have lost since the plan in force."""
        self.other_writers: list[str] = []
        """Owners of runs that changed the audiences from outside, or hold them in other ledgers."""
        self._keep = keep
        self._sizes = sizes
        self._clock = clock
        self._sleep = sleep
        self._host = identity.host_folder(state)
        self.registry = Registry(state, identity)
        self._letters_name = letters_name(clock(), self.run)
        self._letters = DeadLetters(self.folder, self._letters_name, keep=keep)
        self._owner = ""
        self._newest = 0
        self._manifests_written = 0
        self._acks: list[Acks] | None = []
        self._share: Share | None = None
        self._notes = Notes()
        self._lost: tuple[File, ...] = ()
        self._told: tuple[str, ...] = ()
        self._carrying: Callable[[Chunk], None] | None = None

    @classmethod
    def at(cls, folder: Folder, **options: Any) -> Self:
        """Open the ledger in a folder.

        Raises:
            LedgerError: There is none.
        """
        content = find_manifest(as_folder(folder)).content
        names = [each.name for each in fields(LedgerIdentity) if each.name in content]
        if not names:
            raise LedgerError(f"There is no ledger in this folder.\nFolder: {folder}")
        identity = LedgerIdentity(**{name: content[name] for name in names})
        ledger = cls(folder.parent.parent, identity, **options)
        if str(ledger.folder) != str(as_folder(folder)):
            raise LedgerError(
                f"The ledger in this folder belongs elsewhere: {ledger.folder}\nFolder: {folder}"
            )
        return ledger

    # What it says

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
        """Attribute names, to which the fingerprints of profiles refer by number."""
        return self.manifest.names

    @property
    def facts(self) -> RunFacts:
        """What the last run remembered."""
        known = {each.name for each in fields(RunFacts)}
        return RunFacts(**{name: value for name, value in self.manifest.facts.items() if name in known})

    @property
    def has_lost_plans(self) -> bool:
        """Whether plans were found whose manifests are lost; the next version in force deletes them."""
        return bool(self._lost)

    @property
    def dead_letters(self) -> str | None:
        """Folder of this run's dead letters, or None when there are none."""
        return self._letters.place

    def load(self) -> None:
        """Read the state, without keeping others out.

        Raises:
            LedgerError: It is damaged, of a newer format, or of another connection.
        """
        self._load_manifest()
        self._acks = self._read_acks(self.manifest.plan)

    def _load_manifest(self) -> None:
        """Read the state but for the acknowledgements, which are read when they are asked for."""
        found = find_manifest(self.folder, NOTES)
        identity = {name: found.content.get(name, default) for name, default in _DEFAULTS.items()}
        if found.content and identity != asdict(self.identity):
            raise LedgerError(
                "The ledger in this folder belongs to another deployment, environment or audience.\n"
                f"Ledger: {self.folder}"
            )
        if found.newest < self.at_least and not self._had(self.at_least):
            raise LedgerError(
                f"The ledger has version {found.newest}, but this task last wrote version {self.at_least}.\n"
                "An older state was put back, or the ledger was deleted. Nothing was sent.\n"
                'If it is meant: run the task once with send="all". Members that were added since and that\n'
                "the query does not have now are unknown to the ledger and stay in the audience.\n"
                f"Ledger: {self.folder}"
            )
        self.manifest, self._newest = found.manifest, found.newest
        if found.damaged:
            log.warning(
                "The ledger's last manifest is damaged, so the one before it counts.\n"
                "What was sent since is sent again.\nManifest: %s",
                self.folder / found.damaged[0],
            )
        suspects = [read_json(self.folder / each) for each in self._files(self.manifest.plan, _SUSPECTS)]
        self.suspected = frozenset(audience for audiences in suspects for audience in audiences or ())
        self._lost = tuple(chain.from_iterable(map(self._sent_parts, found.orphans)))
        self._notes = find_notes(self.folder, self._clock()) if found.has_notes else Notes()
        self.other_writers = sorted(filter(None, set(self._notes.writers.values())))
        self._acks = self._share = None

    def _had(self, version: int) -> bool:
        """Whether files of a version, or of a later one, are there, so that only its manifest was lost."""
        numbers = [int(name.split("-")[0]) for name in names_in(self.folder) if _VERSION.match(name)]
        return any(number >= version for number in numbers)

    def neighbours(self) -> list[str]:
        """Say which other ledgers of the same audience there are, and what tells them from this one."""
        alike = [
            name
            for name in names_in(self._host)
            if name.rpartition("-")[0] == self.identity.readable and name != self.folder.name
        ]
        if self.identity.holds == "members":
            kind, _, audience = self.identity.name.partition(":")
            mine = [audience] if kind == "audience" else ()
            for in_scope in (True, False):
                alike += self.registry.ledgers_of(mine, in_scope=in_scope)
        return [line for name in sorted(set(alike)) if (line := self._difference(self.registry.folder(name)))]

    def _difference(self, other: Folder) -> str:
        try:
            content = find_manifest(other).content
        except LedgerError:
            return ""
        differs = [
            f"{name} is {content.get(name, default)!r} there and {getattr(self.identity, name)!r} here"
            for name, default in _DEFAULTS.items()
            if content.get(name, default) != getattr(self.identity, name)
        ]
        return f"{'; '.join(differs)}: {other}" if content and differs else ""

    def known(self) -> Folded:
        """Members that Talon.One acknowledged, sorted."""
        members = self.manifest.members
        snapshot: Iterable[Chunk] = read_chunks(self.folder, members) if members else ()
        plans = [self._made_of(plan, self._read_acks(plan)) for plan in self.manifest.since]
        plans.append(self._made_of(self.manifest.plan, self.acks))
        if self._holds_profiles and self._has_doubts_of_others:
            plans.append(self._doubts_of_profiles())
        known = Folded(snapshot, plans, one_per_profile=self._holds_profiles)
        if not self._holds_profiles:
            return known
        noted = frozenset(
            change.profile_id
            for chunk in read_notes(self.folder, self._notes)
            for change in chunk.changes()
            if change.key == ATTRIBUTES
        )
        if not self.suspected and not noted:
            return known
        return Folded(
            map(partial(_doubting, profiles=None if self.suspected else noted), known),
            [],
            one_per_profile=True,
        )

    def uncertain(self) -> Iterator[Chunk]:
        """Memberships that a request may have changed without an acknowledgement, sorted, each once.

        None in a ledger of profiles: there, ``known`` has a doubt on their fingerprints.
        """
        if self._holds_profiles:
            return iter(())
        doubts = (
            (change.profile_id, change.key)
            for chunk in self.unacknowledged()
            for change in chunk.changes()
            if change.uncertain
        )
        suspects = (
            member
            for chunk in (self.known() if self.suspected else ())
            for member in zip(chunk.ids, chunk.each_key, strict=False)
            if member[1] in self.suspected
        )
        return _chunks_of_members(
            heapq.merge(doubts, suspects, self._contradicted(), sorted(self.withheld()))
        )

    def withheld(self) -> dict[Member, Action]:
        """Return changes that run rules and got no clear answer, as actions by member.

        Talon.One may have made them or not. They are not sent again, unless all is sent. Each cost a request
        without an answer, so there are never many.
        """
        plan, carried = self.manifest.plan, self.manifest.withheld
        withheld: dict[Member, Action] = {}
        for chunk in read_chunks(self.folder, carried) if carried else ():
            withheld.update((change[:2], change.action) for change in chunk.changes())
        for chunk in self._made_of(plan, self.acks) if withheld else ():
            for member in zip(chunk.ids, chunk.each_key, strict=False):
                withheld.pop(member, None)
        for part, acks in enumerate(self.acks if plan.together else ()):
            for _, change in self._unclear_in(part, acks):
                withheld[change[:2]] = change.action
        for change, _ in chain.from_iterable(map(self._lost_calls, self._lost)):
            withheld[change[:2]] = change.action
        return withheld

    def _lost_calls(self, file: File) -> Iterator[tuple[Change, bool]]:
        """Yield changes of a plan whose manifest is lost that run rules and may have been made.

        Yields:
            The change, and whether it was acknowledged or has a dead letter.
        """
        lines = (change for chunk in read_chunks(self.folder, file) for change in chunk.changes())
        calls = [(number, change) for number, change in enumerate(lines) if change.runs_rules]
        folder, _, name = file.file.partition("/")
        acks = Acks(may_have_left=sys.maxsize)
        if calls and (part := _PART.fullmatch(name)):
            with suppress(DamagedError):
                acks = self._joined(Plan(folder=folder), int(part[1]))
        for number, change in calls:
            if number in acks.landed or acks.is_open(number):
                yield change, number in acks.settled

    def _unclear_in(self, part: int, acks: Acks) -> Iterator[tuple[int, Change]]:
        """Yield changes of a part that run rules and may have been made, with their numbers."""
        if acks.withheld or acks.may_have_left:
            for number, chunk in enumerate(self._batches(part)):
                if chunk.runs_rules and acks.is_open(number):
                    yield number, next(chunk.changes())

    def state(self) -> str:
        """Return a digest of all that ``known`` and ``uncertain`` depend on."""
        acks = [each for plan in self.manifest.plans for each in self._files(plan, _ACKS)]
        told = [
            *(self.manifest.file, sorted(self.suspected)),
            *([file.file for file in files] for files in (self._notes.files, self._lost)),
            *([each, read_json(self.folder / each)] for each in acks),
        ]
        return hashlib.sha256(json.dumps(told).encode()).hexdigest()

    def filled(self) -> frozenset[str]:
        """Return the audiences that have members here, and have had all of their first ones."""
        found: set[str] = set()
        for chunk in self.known():
            found.update([chunk.keys] if isinstance(chunk.keys, str) else chunk.keys)
        return frozenset(found.difference(self.facts.filling, self.suspected))

    def _contradicted(self) -> Iterator[tuple[str, str]]:
        """Yield, sorted, members of which others say another thing than this ledger."""
        changes = heapq.merge(
            zip(self._changed_by_others("add"), repeat("add"), strict=False),
            zip(self._changed_by_others("remove"), repeat("remove"), strict=False),
        )
        change = next(changes, None)
        for chunk in self.known() if change else ():
            last = chunk.ids[-1], key_at(chunk, -1)
            known = set(zip(chunk.ids, chunk.each_key, strict=False)) if change and change[0] <= last else ()
            while change and change[0] <= last:
                if (change[0] in known) == (change[1] == "remove"):
                    yield change[0]
                change = next(changes, None)
        while change:
            if change[1] == "add":
                yield change[0]
            change = next(changes, None)

    def unacknowledged(self, *, withheld: bool = True) -> Iterator[Chunk]:
        """Changes of the plan in force without an outcome, with what is uncertain about them now, sorted.

        Args:
            withheld: Also those that run rules and got no clear answer.
        """
        settled = self._settled_refusals()
        for part, (lines, landed, refused, *_) in enumerate(self._progress()):
            if landed == lines and not refused:
                continue
            acks = self.acks[part]
            for number, chunk in enumerate(self._batches(part)):
                if number not in acks.landed:
                    if withheld or number not in acks.withheld:
                        yield _unsure(chunk) if acks.is_open(number) else chunk
                elif number in acks.refused:
                    # A refusal says nothing about what an earlier request did.
                    left = _unsure(chunk.at(_uncertain_refusals(chunk, number, acks)))
                    members = zip(left.ids, left.each_key, strict=False)
                    left = left.at([at for at, member in enumerate(members) if member not in settled])
                    if len(left):
                        yield left

    def refused(self) -> Iterator[Chunk]:
        """Changes that Talon.One refused in the plan in force, and those that were carried over, sorted."""
        carried = self.manifest.refused
        streams = [
            read_chunks(self.folder, carried) if carried else (),
            (chunk for part in range(self.parts) for chunk in self._refused_in(part)),
        ]
        changes = heapq.merge(*(chain.from_iterable(chunk.changes() for chunk in each) for each in streams))
        while some := list(islice(changes, BLOCK)):
            yield Chunk.of(some)

    def changes(self) -> Iterator[Chunk]:
        """All changes of the plan in force, batch by batch."""
        for part in range(self.parts):
            yield from self._batches(part)

    @property
    def acks(self) -> list[Acks]:
        """What is known of each part of the plan."""
        if self._acks is None or self._share:
            self._acks = self._read_acks(self.manifest.plan)
        return self._acks

    # A run

    @contextmanager
    def held(self, owner: str, *, wait: float = 0.0, waits_for_parts: bool = False) -> Iterator[None]:
        """Keep other runs out, and read the state.

        Args:
            owner: Who asks; an earlier try of the same owner makes way.
            wait: Seconds to wait for another owner to end.
            waits_for_parts: Give way to processes of the same owner that push parts.

        Raises:
            LedgerBusyError: Another owner holds the ledger, or other processes push its plan.
        """
        token = partial(last_fencing_token, self.folder)
        with self.lock.held(owner, last_token=token, waits_for_parts=waits_for_parts, wait=wait):
            self._load_manifest()
            self._owner = owner
            self._told = ()
            try:
                with self._taken_over():
                    yield
            except BaseException:
                with suppress(LedgerError):
                    self._end_notes(REQUEST_LASTS)
                raise
            self._end_notes(0.0)

    @contextmanager
    def _taken_over(self) -> Iterator[None]:
        """Tell damage from a run that was taken over, whose files the other run has deleted."""
        try:
            yield
        except DamagedError:
            self.lock.confirm()
            raise

    def suspect(self, audiences: Iterable[str]) -> None:
        """Note, durably, that Talon.One may have lost audiences; the next plan in force voids it.

        In a ledger of profiles any name puts a doubt on all of them.
        """
        suspected = self.suspected.union(audiences)
        # Of a ledger without a version there are no members.
        if self.version and suspected != self.suspected:
            write_suspects(self.folder, self.plan, self.run, suspected)
        self.suspected = suspected
        self.lock.confirm()

    def reject(self, letter: Mapping[str, Any]) -> None:
        """Note a dead letter; ``flush`` makes it durable."""
        self._letters.add(letter)

    def flush(self) -> None:
        """Make dead letters durable."""
        self._letters.flush()
        self.lock.confirm()

    def draft(self, planner: Planner) -> Draft:
        """Write the next version: a plan, and anew the members where they are many changes away.

        The planner's streams are passed over once.
        """
        self._notes = find_notes(self.folder, self._clock())
        draft = Draft(
            version=self._newest + 1,
            folder=f"{self._newest + 1:08}-{self.run}",
            members=self.manifest.members,
            since=self.manifest.plans if self._has_moved else self.manifest.since,
            spent=self._notes.spent,
        )
        changes = sum(each.changes for each in draft.since)
        lines = draft.members.lines if draft.members else 0
        is_new = changes * _SHARE > lines or len(draft.since) > _PLANS
        try:
            # Doubts about fingerprints are in no plan's files, so they have to be among the members.
            if is_new or (self._holds_profiles and (self._has_doubts_of_others or self.suspected)):
                return self._drafted(replace(draft, since=()), planner, anew=True)
            return self._drafted(draft, planner, anew=False)
        except BaseException:
            with suppress(LedgerError):
                self.discard(draft)
            raise

    def _drafted(self, draft: Draft, planner: Planner, *, anew: bool) -> Draft:
        audiences: set[str] = set()
        known = self.known()
        with ExitStack() as files:
            carried = _Later(files, self.folder / draft.folder / "refused.tsv.zst")
            self._carrying = carried.write
            if anew:
                name = f"{draft.folder}/members.tsv.zst"
                file = files.enter_context(writing_lines(self.folder / name))
                copying = self._noted(_copied(known, file), audiences)
                draft = self._written(draft, planner(copying, self.uncertain()), audiences)
                for _ in copying:
                    """A plan may not have asked for all of them."""
                file.finish()
                draft = replace(draft, members=file.as_file(name) if file.lines else None)
            else:
                known.snapshot = self._noted(known.snapshot, audiences)
                draft = self._written(draft, planner(known, self.uncertain()), audiences)
            refused = carried.as_file(f"{draft.folder}/refused.tsv.zst")
        self._carrying = None
        withheld = self._keep_withheld(draft, self.withheld())
        return replace(draft, refused=refused, withheld=withheld, audiences=frozenset(audiences))

    def _keep_withheld(self, draft: Draft, withheld: Mapping[Member, Action]) -> File | None:
        """Write what is withheld for the versions after the one in force."""
        if not withheld:
            return None
        name = f"{draft.folder}/withheld.tsv.zst"
        with writing_lines(self.folder / name) as file:
            file.write(Chunk.of(Change(*member, action) for member, action in sorted(withheld.items())))
            file.finish()
            return file.as_file(name)

    def _written(self, draft: Draft, changes: Iterable[Chunk], audiences: set[str]) -> Draft:
        part = -(-self._sizes.part // self._sizes.batch) * self._sizes.batch
        runs_rules = False

        def looked_at() -> Iterator[Chunk]:
            nonlocal runs_rules
            for chunk in self._noted(changes, audiences):
                runs_rules = runs_rules or chunk.runs_rules
                yield chunk

        parts = write_plan(self.folder, draft.folder, looked_at(), part)
        return replace(draft, parts=parts, runs_rules=runs_rules)

    def _noted(self, chunks: Iterable[Chunk], audiences: set[str]) -> Iterator[Chunk]:
        """Yield chunks, and note their audiences."""
        for chunk in chunks:
            if not self._holds_profiles:
                audiences.update([chunk.keys] if isinstance(chunk.keys, str) else chunk.keys)
            yield chunk

    def note_refused_before(self, draft: Draft, members: Iterable[Member]) -> None:
        """Write which changes of a draft Talon.One refused before, for the processes that push it."""
        if changes := [Change(*member, "add") for member in sorted(members)]:
            with writing_lines(self.folder / draft.folder / _AGAIN) as file:
                file.write(Chunk.of(changes))

    def _refused_before(self) -> frozenset[Member]:
        place = self.folder / self.plan
        if _AGAIN not in names_in(place):
            return frozenset()
        try:
            chunks = list(read_chunks(place, File(file=_AGAIN, sha256="", lines=0, key="")))
        except DamagedError as error:
            # It only saves requests.
            log.warning("Changes that were refused before are sent with the others.\n%s", error)
            return frozenset()
        return frozenset(change[:2] for chunk in chunks for change in chunk.changes())

    def carry(self, chunk: Chunk) -> None:
        """Keep refused changes that the plan leaves out for ``refused``: for planners, in order."""
        if not self._carrying:
            raise RuntimeError("Only a planner may carry refused changes.")
        self._carrying(chunk)

    def discard(self, draft: Draft) -> None:
        """Delete the files of a draft."""
        remove_folder(self.folder / draft.folder)

    def enforce(
        self, draft: Draft, *, facts: RunFacts, names: Iterable[str] = (), handed_over: bool = False
    ) -> None:
        """Put a draft in force; from here on a crash resumes it.

        Args:
            draft: The draft.
            facts: What to remember.
            names: All attribute names of its fingerprints: those of before, and after them new ones.
            handed_over: Whether other processes push it, so that the ledger stays in use when this one ends.
        """
        self.lock.confirm()
        batch = self._sizes.batch
        plan = Plan(folder=draft.folder, parts=draft.parts, batch=batch)
        if draft.runs_rules:
            plan = replace(plan, batch=1, together=batch)
        acks = [plan.acks_of(part, self.run) for part in range(len(plan.parts))]
        for each in acks:
            Acks().write(self.folder / each)
        manifest = Manifest(
            version=draft.version,
            owner=self._owner,
            members=draft.members,
            since=draft.since,
            plan=replace(plan, acks=tuple(acks)),
            refused=draft.refused,
            withheld=draft.withheld,
            letters=self._letters_name,
            names=tuple(names),
            facts=asdict(facts),
            told=self._tell_others(draft, facts),
        )
        self._put_in_force(self.manifest.followed_by(manifest, self._keep))
        for name in draft.spent:
            remove(self.folder / NOTES / name)
        self.lock.handed_over = handed_over
        self._newest = draft.version
        self.suspected = frozenset()
        self._lost = ()
        self._notes = Notes()

    def remember(self, facts: RunFacts) -> None:
        """Put new facts beside the plan in force; a ledger without a version remembers nothing."""
        if self.version:
            self.lock.confirm()
            self._put_in_force(replace(self.manifest, facts=asdict(facts), before=self.manifest.file))

    def _put_in_force(self, manifest: Manifest) -> None:
        """Write a manifest, and delete what it does not name."""
        manifest = replace(manifest, fencing_token=self.lock.fencing_token, run=self.run)
        manifest = replace(manifest, file=manifest.file_name(self._manifests_written))
        self._manifests_written += 1
        manifest.write(self.folder, self.identity.parts)
        # After the write and not before it: whoever takes over from now on will read it.
        self.lock.confirm()
        self.manifest = manifest
        self._acks = self._share = None
        manifest.remove_others(self.folder, self.lock.confirm)
        oldest = min([manifest.letters, *(each["letters"] for each in manifest.history)])
        prune_letters(self.folder, self._keep, oldest)

    def abandon(self) -> int:
        """Give up changes that run rules and may have been sent by a run that was killed; count them.

        Each gets a dead letter and is withheld from now on.
        """
        calls = chain.from_iterable(map(self._lost_calls, self._lost))
        lost = [change for change, is_clear in calls if not is_clear]
        for change in lost:
            self._letters.add(self._unclear_letter(change))
        parts = range(self.parts)
        return len(lost) + sum(self._abandon(part, self.acks[part], self._letters) for part in parts)

    def _abandon(self, part: int, acks: Acks, letters: DeadLetters) -> int:
        plan, given_up = self.manifest.plan, Acks()
        for number, change in self._unclear_in(part, acks) if plan.together else ():
            if number in acks.withheld:
                continue
            given_up.withheld.add(number)
            letters.add(self._unclear_letter(change))
        if given_up.withheld:
            letters.flush()
            # A file of its own: this run may push the part too, and writes another one then.
            given_up.write(self.folder / plan.acks_of(part, uuid4().hex[:12]))
            self.lock.confirm()
            self._acks = None
        return len(given_up.withheld)

    def _unclear_letter(self, change: Change) -> dict[str, Any]:
        return {
            "time": datetime.fromtimestamp(self._clock(), UTC).isoformat(timespec="seconds"),
            "profile_id": change.profile_id,
            "audience_id": change.key,
            "action": change.action,
            "reason": UNCLEAR,
            "status": None,
            "request_uuid": None,
        }

    def share(self) -> Share:
        """Return all parts of the plan in force, for a process that holds the ledger."""
        if self._share is None:
            self._share = self._share_of(dict(enumerate(self.acks)), self._letters)
        return self._share

    def adopt(self, owner: str, records: Iterable[Record]) -> int:
        """Record members that an audience got by other means as acknowledged; return how many.

        Args:
            owner: Who does this.
            records: The members, in any order.

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
            self._begin_anew(members, facts=RunFacts())
        return counts.read - counts.duplicate - counts.rejected.total()

    def _begin_anew(
        self,
        members: Iterable[Chunk],
        *,
        facts: RunFacts,
        names: Iterable[str] = (),
        withheld: Mapping[Member, Action] | None = None,
    ) -> None:
        """Put a version of these members and an empty plan in force."""
        folder = f"{self._newest + 1:08}-{self.run}"
        name = f"{folder}/members.tsv.zst"
        audiences: set[str] = set()
        with writing_lines(self.folder / name) as file:
            for _ in self._noted(_copied(members, file), audiences):
                """It is written on the way."""
        draft = Draft(version=self._newest + 1, folder=folder, audiences=frozenset(audiences))
        if file.lines:
            draft = replace(draft, members=file.as_file(name))
        if withheld:
            draft = replace(draft, withheld=self._keep_withheld(draft, withheld))
        self.enforce(draft, facts=facts, names=names)

    # A plan for which several processes read, or that several push

    @contextmanager
    def divided(self, owner: str, part: int | None = None) -> Iterator[None]:
        """Keep other runs out while several processes read the source, and until one of them plans.

        Args:
            owner: Whose plan it will be.
            part: Which of them this is; None for the one that divides the source before.
        """
        if part is None:
            with self.held(owner):
                yield
                self.lock.handed_over = True
            return
        # This process has no other lock than that of its part.
        self.lock = Lock(self.folder, self.run, self._clock, self._sleep, part=part)
        with self.lock.held(owner):
            self.lock.handed_over = True
            yield

    @contextmanager
    def pushing(
        self, owner: str, plan: str, parts: Sequence[int], facts: RunFacts | None = None
    ) -> Iterator[Share]:
        """Push some parts of a plan that another process put in force, or an earlier try left.

        Args:
            owner: Who pushes; all processes of one sync have the same owner.
            plan: Which plan.
            parts: Numbers of the parts, from 0. A part must always be pushed with the same other parts: of
                two processes that push the same first part, the later one goes on.
            facts: Of the connection that this process has.

        Raises:
            LedgerError: The plan is not in force or not enough any more, it was made for another API key, or
                another run is at work; nothing was sent.
            InvalidInputError: The plan has no such part.
        """
        self._load_manifest()
        self._refuse_other(plan)
        if not parts or not all(type(each) is int and 0 <= each < self.parts for each in parts):
            raise InvalidInputError(f"Parts must be numbers from 0 to {self.parts - 1}, but are {parts!r}.")
        # This process has no other lock than that of its parts.
        self.lock = Lock(self.folder, self.run, self._clock, self._sleep, part=parts[0])
        with self.lock.held(owner):
            self._load_manifest()
            self._refuse_other(plan)
            self._refuse_suspected()
            if facts and not self.identity.environment and not self.facts.has_key_of(facts):
                raise LedgerError(
                    "The API key or the platform name on the connection has changed since this plan was "
                    "made.\n"
                    "The new key may be of another environment (sandbox or live): Environment is not set.\n"
                    "Nothing was sent. Clear the task that plans (plan).\n"
                    f"Ledger: {self.folder}"
                )
            # Until the plan is committed, an end is a pause.
            self.lock.handed_over = True
            prefix = f"{parts[0]:05}-{self.run}-"
            letters = DeadLetters(self.folder, self.manifest.letters, prefix=prefix, keep=self._keep)
            found = self._files(self.manifest.plan, _ACKS)
            plan_now = self.manifest.plan
            known = {part: self._joined(plan_now, part, found) for part in parts}
            abandoned = sum(self._abandon(part, acks, letters) for part, acks in known.items())
            if abandoned:
                found = self._files(plan_now, _ACKS)
                known = {part: self._joined(plan_now, part, found) for part in parts}
            share = self._share_of(known, letters)
            share.abandoned = abandoned
            share.refused_before = self._refused_before()
            with self._taken_over():
                yield share

    def commit(self, owner: str, plan: str, check: Callable[[], object] = lambda: None) -> Outcome:
        """Check that all parts of a plan are in, say what became of them, and give the ledger back.

        Args:
            owner: Who asks.
            plan: Which plan.
            check: Called when all are in; it may ``suspect`` audiences.

        Raises:
            LedgerError: Parts are not in, or the plan is not in force any more or is not enough any more.
        """
        with self.held(owner, waits_for_parts=True):
            self._refuse_other(plan)
            self._refuse_suspected()
            progress = self._progress()
            lines, landed, refused, skipped, unclear = (
                map(sum, zip(*progress, strict=True)) if progress else (0,) * 5
            )
            if left := [part for part, each in enumerate(progress) if each[1] + each[4] < each[0]]:
                self.lock.handed_over = True
                numbers = ", ".join(map(str, left[:_NAMED])) + (", ..." if len(left) > _NAMED else "")
                raise LedgerError(
                    f"{len(left):,} of {len(progress):,} parts of the plan are not in ({numbers}):\n"
                    f"{lines - landed - unclear:,} of {lines:,} changes. Push these parts again."
                )
            check()
            self._refuse_suspected()
            # From here on, a file of acknowledgements that goes missing is noticed.
            found = tuple(self._files(self.manifest.plan, _ACKS))
            sealed = replace(self.manifest.plan, acks=found)
            before = self.manifest.file
            facts = {**self.manifest.facts, "filling": []}
            self._put_in_force(replace(self.manifest, plan=sealed, facts=facts, before=before))
            self._told = self.manifest.told
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

    def _refuse_other(self, plan: str) -> None:
        if plan != self.plan:
            raise LedgerError(
                f"The plan {plan} is not in force any more: another run has planned since.\n"
                f"The ledger has version {self.version} now. Nothing was sent. Plan again.\n"
                f"Ledger: {self.folder}"
            )

    def _refuse_suspected(self) -> None:
        """A plan is too little for an audience that has lost its members."""
        if self.suspected:
            raise LedgerError(
                "While this plan was pushed, an audience was deleted or made again in Talon.One.\n"
                "One that was made anew since has lost its members, and the rest of the plan is too little.\n"
                "Nothing more was sent. See that the audience exists, and clear the task that plans (plan).\n"
                f"Ledger: {self.folder}"
            )

    # Parts of the above

    @property
    def _holds_profiles(self) -> bool:
        return self.identity.holds == "profiles"

    def _share_of(self, known: Mapping[int, Acks], letters: DeadLetters) -> Share:
        plan, ahead = self.manifest.plan, self._sizes.ahead
        if plan.together:
            # What was noted ahead of a kill and runs rules has to be looked at by a person.
            ahead = -(-ahead // _FEWER_AHEAD)
        return Share(self.folder, plan, known, self.lock, letters, ahead)

    def _progress(self) -> list[tuple[int, int, int, int, int]]:
        """Count, by part: its changes, and how many landed, were refused, were skipped, and are withheld."""
        plan = self.manifest.plan
        return [
            (part.lines, *acks.counts(part.lines, plan.batch))
            for part, acks in zip(plan.parts, self.acks, strict=True)
        ]

    def _acknowledged_by_audience(self) -> tuple[Counter[str], Counter[str]]:
        """Count what Talon.One took of the plan in force: additions and removals by audience."""
        added: Counter[str] = Counter()
        removed: Counter[str] = Counter()
        for part, acks in enumerate(self.acks):
            for chunk in _acknowledged(self._batches(part), acks):
                for key, piece in [("profiles", chunk)] if self._holds_profiles else chunk.by_key():
                    additions = _additions(piece)
                    added[key] += additions
                    removed[key] += len(piece) - additions
        return +added, +removed

    @property
    def _has_moved(self) -> bool:
        """Whether members are others now than those that the plan in force starts from."""
        return any(map(self._changed, self.acks))

    def _changed(self, acks: Acks) -> bool:
        return bool(acks.landed) or (self._holds_profiles and not acks.is_empty)

    def _made_of(self, plan: Plan, known: list[Acks]) -> Iterator[Chunk]:
        """Yield what a plan has changed so far."""
        for part, acks in enumerate(known):
            yield from self._made_of_part(plan, part, acks)

    def _made_of_part(self, plan: Plan, part: int, acks: Acks) -> Iterator[Chunk]:
        made_of = _made_of_profiles if self._holds_profiles else _acknowledged
        return made_of(plan.batches(self.folder, part), acks) if self._changed(acks) else iter(())

    def _batches(self, part: int) -> Iterator[Chunk]:
        return self.manifest.plan.batches(self.folder, part)

    def _refused_in(self, part: int) -> Iterator[Chunk]:
        acks = self.acks[part]
        if acks.refused:
            for number, chunk in enumerate(self._batches(part)):
                if at := sorted({*acks.refused.get(number, ())}.difference(acks.skipped.get(number, ()))):
                    yield chunk.at(at)

    def _settled_refusals(self) -> set[tuple[str, str]]:
        """Find members that were never acknowledged and whose removal was refused: that ends it."""
        found: set[tuple[str, str]] = set()
        for part, acks in enumerate(() if self._holds_profiles else self.acks):
            for number, chunk in enumerate(self._batches(part) if acks.refused else ()):
                left = chunk.at(_uncertain_refusals(chunk, number, acks))
                members = zip(left.ids, left.each_key, left.each_verb, strict=False)
                found |= {member[:2] for member in members if member[2] in REMOVING}
        for chunk in self.known() if found else ():
            found.difference_update(zip(chunk.ids, chunk.each_key, strict=False))
        return found

    def _files(self, plan: Plan, pattern: re.Pattern[str]) -> list[str]:
        """Files of a plan with such names."""
        if not plan.folder:
            return []
        found = names_in(self.folder / plan.folder)
        return [f"{plan.folder}/{name}" for name in found if pattern.fullmatch(name)]

    def _read_acks(self, plan: Plan) -> list[Acks]:
        found = self._files(plan, _ACKS)
        return [self._joined(plan, part, found) for part in range(len(plan.parts))]

    def _joined(self, plan: Plan, part: int, found: list[str] | None = None) -> Acks:
        """Read all files of acknowledgements of a part.

        Args:
            plan: The plan.
            part: Number of the part.
            found: The plan's files of acknowledgements, if they were listed.
        """
        found = self._files(plan, _ACKS) if found is None else found
        start = plan.acks_of(part, "")[: -len(".json")]
        for name in plan.acks:
            if name.startswith(start) and name not in found:
                raise gone(self.folder / name)
        return Acks.merged([Acks.read(self.folder / name) for name in found if name.startswith(start)])

    def _sent_parts(self, folder: str) -> list[File]:
        """Find parts that may have been pushed, in whole or in part, of a plan whose manifest is lost."""
        names = names_in(self.folder / folder)
        sent = set()
        for name in names:
            if part := _ACKS.fullmatch(name):
                try:
                    is_sent = not Acks.read(self.folder / folder / name).is_empty
                except DamagedError:
                    is_sent = True
                if is_sent:
                    sent.add(int(part[1]))
        parts = [name for name in names if (part := _PART.fullmatch(name)) and int(part[1]) in sent]
        return [File(file=f"{folder}/{name}", sha256="", lines=0, key="") for name in parts]

    @property
    def _has_doubts_of_others(self) -> bool:
        return bool(self._notes.files or self._lost)

    def _changed_by_others(self, action: str) -> Iterator[tuple[str, str]]:
        """Yield, sorted, members that others changed so, or a plan whose manifest is lost."""
        lost = chain.from_iterable(read_chunks(self.folder, file) for file in self._lost)
        changes = chain(read_notes(self.folder, self._notes), lost)
        some = (
            Chunk.of([change for change in chunk.changes() if change.action == action]) for chunk in changes
        )
        for record in sorted_members(chunk for chunk in some if chunk) if self._has_doubts_of_others else ():
            if isinstance(record, Chunk):
                yield from zip(record.ids, record.each_key, strict=False)

    def _doubts_of_profiles(self) -> Iterator[Chunk]:
        """Put a doubt on each profile of which others changed the attributes, once."""
        changes = heapq.merge(self._changed_by_others("add"), self._changed_by_others("remove"))
        first = (next(group) for _, group in groupby(changes, key=itemgetter(0)))
        return _chunks_of_members((each, doubted(key)) for each, key in first if key != ATTRIBUTES)

    def _tell_others(self, draft: Draft, facts: RunFacts) -> tuple[str, ...]:
        """Note the changes of a draft in other ledgers that hold its audiences; return their folders."""
        if self._holds_profiles:
            self.registry.register([ATTRIBUTES], {})
            return ()
        answers = facts.audiences.items()
        self.registry.register(draft.audiences, {each: answer["id"] for each, answer in answers})
        told = {}
        for name, audiences in self.registry.ledgers_of(draft.audiences).items():
            other = self.registry.folder(name)
            with suppress(LedgerError):
                self.other_writers.append(find_manifest(other).manifest.owner)
            told[name] = audiences, NoteWriter(other, draft.folder, self._owner, self._clock)
        for file in draft.parts if told else ():
            for chunk in read_chunks(self.folder, file):
                for key, part in chunk.by_key():
                    for audiences, notes in told.values():
                        if key in audiences:
                            notes.write(part)
        self._told = tuple(told)
        return self._told

    def _end_notes(self, seconds: float) -> None:
        """Tell the ledgers that were told of the plan when its last request has arrived."""
        for name in () if self.lock.handed_over else self._told:
            NoteWriter(self.registry.folder(name), self.plan, self._owner, self._clock).end(seconds)


_DEFAULTS = {each.name: "" if each.name != "holds" else "members" for each in fields(LedgerIdentity)}


class _Later:
    """A file of lines that comes into being with the first of them."""

    def __init__(self, files: ExitStack, path: Folder) -> None:
        self._files = files
        self._path = path
        self._writer: LineWriter | None = None

    def write(self, chunk: Chunk) -> None:
        if self._writer is None:
            self._writer = self._files.enter_context(writing_lines(self._path))
        self._writer.write(chunk)

    def as_file(self, name: str) -> File | None:
        if self._writer is None:
            return None
        self._writer.finish()
        return self._writer.as_file(name)


def _copied(chunks: Iterable[Chunk], file: LineWriter) -> Iterator[Chunk]:
    for chunk in chunks:
        file.write(chunk)
        yield chunk


def _chunks_of_members(members: Iterable[tuple[str, str]]) -> Iterator[Chunk]:
    """Gather sorted members, each once."""
    distinct = (member for member, _ in groupby(members))
    while some := list(islice(distinct, BLOCK)):
        ids, keys = map(list, zip(*some, strict=True))
        yield Chunk(ids, one_or_all(keys))


def _unsure(chunk: Chunk) -> Chunk:
    """Mark changes as uncertain."""
    verbs = chunk.verbs
    if isinstance(verbs, str):
        return replace(chunk, verbs=verbs.rstrip("?") + "?")
    return replace(chunk, verbs=one_or_all([verb.rstrip("?") + "?" for verb in verbs]))


def _doubting(chunk: Chunk, profiles: Collection[str] | None) -> Chunk:
    """Put a doubt on fingerprints, of all profiles or of some, and keep whether they were acknowledged."""
    keys = [
        doubted(following(key, key)) if profiles is None or profile_id in profiles else key
        for profile_id, key in zip(chunk.ids, chunk.each_key, strict=False)
    ]
    return replace(chunk, keys=one_or_all(keys))


def _uncertain_refusals(chunk: Chunk, number: int, acks: Acks) -> list[int]:
    """Positions of refused changes of a batch that an earlier request may have made."""
    verbs = [chunk.verbs] * len(chunk) if isinstance(chunk.verbs, str) else chunk.verbs
    return [at for at in acks.refused.get(number, ()) if number in acks.doubtful or verbs[at].endswith("?")]


def _additions(chunk: Chunk) -> int:
    if isinstance(chunk.verbs, str):
        return 0 if chunk.verbs in REMOVING else len(chunk)
    return sum(verb not in REMOVING for verb in chunk.verbs)


def _acknowledged(batches: Iterable[Chunk], acks: Acks) -> Iterator[Chunk]:
    """Yield the changes that Talon.One has acknowledged."""
    for number, chunk in enumerate(batches):
        if number in acks.landed:
            yield chunk.without(acks.refused[number]) if number in acks.refused else chunk


def _made_of_profiles(batches: Iterable[Chunk], acks: Acks) -> Iterator[Chunk]:
    """Yield what a plan of fingerprints has made of its profiles.

    Yields:
        The changes that Talon.One has acknowledged, and an addition with a doubt for each that may have
        arrived without. A fingerprint with a doubt is forgotten where the removal of its attributes was
        refused: they never arrived.
    """
    for number, chunk in enumerate(batches):
        if number in acks.landed and number not in acks.doubtful:
            kept = [at for at in acks.refused.get(number, ()) if not _forgets(chunk, at, number, acks)]
            yield chunk.without(kept) if kept else chunk
        elif number in acks.landed or acks.is_open(number):
            unknown = set(acks.refused[number] if number in acks.landed else range(len(chunk)))
            yield Chunk.of(
                [
                    change._replace(key=doubted(change.key), action="add", uncertain=False)
                    if at in unknown
                    else change
                    for at, change in enumerate(chunk.changes())
                ]
            )


def _forgets(chunk: Chunk, at: int, number: int, acks: Acks) -> bool:
    (change,) = chunk.at([at]).changes()
    is_asked = at not in acks.skipped.get(number, ())
    return is_asked and change.action == "remove" and not had(change.key)
