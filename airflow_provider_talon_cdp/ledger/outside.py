"""Changes that were made outside a ledger's plans, and the ledgers that must know of them.

```
STATE_URI/<deployment host>/registry/<audience>-<scope>-<ledger>            which ledgers hold an audience
STATE_URI/<deployment host>/internal-ids/<external>-<internal>-<scope>      two IDs of one audience
STATE_URI/<deployment host>/elsewhere/<digest>.json                         another state URI with ledgers
STATE_URI/<deployment host>/<ledger>/outside/WRITER.json                    a writer, and when its changes end
STATE_URI/<deployment host>/<ledger>/outside/WRITER-<n>-<sha256>.tsv.zst    a note of changes that it made
STATE_URI/<deployment host>/rule-calls/<digest>.json                        a task that calls with rules
```

The scope is a digest of API base and environment. If a ledger is under another state URI than the common one
of this Airflow, a pointer in ``elsewhere`` under the common one leads to it, so that all tasks find it.

If a note contradicts the ledger, the member is uncertain, and the next plan sends its wanted state. A note
about attributes marks the profile's fingerprint as uncertain. A note is spent when a plan has covered it and
no request of its writer can arrive any more. The version after that plan's deletes it: if the manifest of the
plan is lost, the version before it needs the note. The notes of a plan that waits for days before it is
pushed may be spent by then, so each process that pushes parts of it writes notes of these parts again.
"""

from __future__ import annotations

import hashlib
import io
import logging
import re
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple
from uuid import uuid4

from airflow_provider_talon_cdp.changes.change import Chunk
from airflow_provider_talon_cdp.changes.counts import Counts
from airflow_provider_talon_cdp.contract import AUDIENCE_ID_TYPE, KEEP_VERSIONS, AudienceIdType
from airflow_provider_talon_cdp.exceptions import (
    LedgerError,
    NotFoundError,
    RequestError,
    TalonCdpError,
    UnclearError,
)
from airflow_provider_talon_cdp.ledger.format import File, LineWriter, find_manifest, read_chunks
from airflow_provider_talon_cdp.ledger.letters import DeadLetters, letters_name
from airflow_provider_talon_cdp.ledger.progress import Progress
from airflow_provider_talon_cdp.ledger.storage import (
    DamagedError,
    Folder,
    as_folder,
    as_ledger_error,
    is_local,
    names_in,
    read_json,
    remove,
    write_bytes,
    write_json,
)

if TYPE_CHECKING:
    from airflow_provider_talon_cdp.ledger.ledger import LedgerIdentity

log = logging.getLogger(__name__)

NOTES = "outside"
WRITER_LASTS = 86_400.0
"""Seconds after which a writer that was killed counts as ended. No push lasts half a day."""
REQUEST_LASTS = 600.0
"""Seconds for which a request in flight may still arrive after its process stopped."""
ATTRIBUTES = "\0attributes"
"""The key of a note about attributes of a profile, in place of an audience."""
_REGISTRY, _SAME, _ELSEWHERE = "registry", "internal-ids", "elsewhere"
_RULE_CALLS = "rule-calls"
# A note, or the end of a writer.
_NOTE = re.compile(r"(.+?)(?:-\d{5,}-([0-9a-f]{16})\.tsv\.zst|\.json)")
_DIGEST = 16
_SCOPE = 8
# A folder may have other files too, such as drafts and what an object store's console or a desktop leaves.
_ENTRY = re.compile(r"([0-9a-f]{16})-([0-9a-f]{8})-(.+)")
_TWO_IDS = re.compile(r"([0-9a-f]{16})-([0-9a-f]{16})-([0-9a-f]{8})")
_POINTER = re.compile(r"[0-9a-f]{16}\.json")
_NOTHING_THERE = """\
Another task's state URI has no ledgers any more: %s
If the folder was moved, its mirrors do not learn of this task's changes: run each of them once at the new
place with send="all". Delete the pointer to the old place: %s"""


Writers = Literal["all", "own", "others"]
"""Runs of the ledger, and other tasks."""
Mark = Literal["suspects", "doubts"]
"""Of audiences whose members Talon.One may have lost, and of those to send again, as not all changes by other
tasks are known."""


class Notes(NamedTuple):
    """The notes in a ledger's folder.

    Args:
        owners: The owner of each note's writer, empty for runs of this ledger; without notes of changes that
            had no effect.
        spent: Names of files that can be deleted once a plan has covered them.
    """

    owners: Mapping[File, str] = {}
    spent: tuple[str, ...] = ()


def writer_of(name: str) -> str:
    """Return the writer of a note, or of a file that says when its writer ended."""
    match = _NOTE.fullmatch(name)
    return match[1] if match else ""


class NoteWriter:
    """Writes notes into one ledger's folder."""

    def __init__(self, ledger: Folder, writer: str, owner: str, clock: Callable[[], float]) -> None:
        self._folder = ledger / NOTES
        self._writer = writer
        self._owner = owner
        self._clock = clock
        self.written = 0

    def write(self, chunk: Chunk) -> None:
        """Note, durably, that changes may be sent."""
        if not self.written:
            self.end(WRITER_LASTS)
        # Explicit changes may have a member twice, and a file that has is refused as damaged.
        for part in chunk.sorted():
            self._write(part)

    def _write(self, chunk: Chunk) -> None:
        file = io.BytesIO()
        lines = LineWriter(self._folder, lambda: file)
        lines.write(chunk)
        lines.finish()
        data = file.getvalue()
        name = f"{self._writer}-{self.written:05}-{hashlib.sha256(data).hexdigest()[:_DIGEST]}.tsv.zst"
        write_bytes(self._folder / name, data)
        self.written += 1

    def end(self, seconds: float = 0.0, *, had_effect: bool = True) -> None:
        """Note the time after which none of the changes can arrive any more.

        Args:
            seconds: Seconds from now.
            had_effect: Whether Talon.One may have made any of them.
        """
        content = {"owner": self._owner, "until": self._clock() + seconds, "had_effect": had_effect}
        write_json(self._folder / f"{self._writer}.json", content)

    def end_if_open(self, seconds: float, *, had_effect: bool) -> None:
        """Do as ``end``, unless the writer has ended; its notes may have been spent and deleted since."""
        if self.lasts(seconds):
            self.end(seconds, had_effect=had_effect)

    def lasts(self, seconds: float) -> bool:
        """Return whether the changes may still arrive after some seconds."""
        content = read_json(self._folder / f"{self._writer}.json") or {}
        return bool(content.get("until", 0.0) > self._clock() + seconds)


def find_notes(ledger: Folder, now: float, spent_before: Collection[str] = ()) -> Notes:
    """List the notes in a ledger's folder."""
    by_writer: dict[str, list[re.Match[str]]] = {}
    left_out = frozenset(spent_before)
    for name in names_in(ledger / NOTES):
        if name not in left_out and (match := _NOTE.fullmatch(name)):
            by_writer.setdefault(match[1], []).append(match)
    owners: dict[File, str] = {}
    spent: list[str] = []
    for writer, its_files in by_writer.items():
        content: dict[str, Any] = {}
        # The notes can be read without it. It is missing if a note came when the others were being spent.
        with suppress(DamagedError):
            content = read_json(ledger / NOTES / f"{writer}.json") or {}
        if content.get("until", 0.0) <= now:
            spent += [match[0] for match in its_files]
        notes = [match for match in its_files if match[2]]
        if notes and content.get("had_effect", True):
            files = [File(file=f"{NOTES}/{match[0]}", sha256=match[2], lines=0, key="") for match in notes]
            owners |= dict.fromkeys(files, content.get("owner", ""))
    return Notes(owners, tuple(spent))


def writers_of_plan(ledger: Folder, plan: str) -> list[str]:
    """Return the writers of a plan's notes in another ledger's folder: the plan, and its late pushes."""
    found = filter(None, map(_NOTE.fullmatch, names_in(ledger / NOTES)))
    return sorted({match[1] for match in found if match[1].startswith(plan)})


def remove_temporary_notes(ledger: Folder, now: float) -> None:
    """Delete temporary files that killed writers left on a local disk: they have profile IDs."""
    folder = ledger / NOTES
    for name in names_in(folder) if is_local(folder) else ():
        # Its writer may have renamed it meanwhile.
        with suppress(FileNotFoundError), as_ledger_error("read", folder / name):
            if name.startswith(".") and (folder / name).stat().st_mtime < now - WRITER_LASTS:
                remove(folder / name)


def read_notes(ledger: Folder, notes: Notes, writers: Writers = "all") -> Iterator[Chunk]:
    """Read the changes in notes.

    Raises:
        DamagedError: A note is damaged.
    """
    for file, owner in notes.owners.items():
        if writers in ("all", "others" if owner else "own"):
            yield from read_chunks(ledger, file)


class Registry:
    """Finds the ledgers that hold members of an audience.

    Args:
        state: Folder of all ledgers under this task's state URI.
        identity: Identity of this task's ledger.
        id_type: Whether this task has external or internal audience IDs.
    """

    def __init__(self, state: Folder, identity: LedgerIdentity, id_type: AudienceIdType) -> None:
        self.common = state
        """Folder of all ledgers of tasks without a state URI of their own."""
        self._host = identity.host_folder(state)
        self._state = state
        self._folder = self._host / _REGISTRY
        self._identity = identity
        self._id_type = id_type
        scope = [identity.base_url, identity.environment]
        self._hosts: list[Folder] | None = None
        self._scope = hashlib.sha256("\0".join(scope).encode()).hexdigest()[:_SCOPE]

    def register(self, audiences: Iterable[str]) -> None:
        """Register this task's ledger as one that holds members of audiences."""
        entries = {
            f"{self._digest(audience)}-{self._scope}-{self._identity.folder_name}": audience
            for audience in audiences
        }
        for name in sorted(entries.keys() - set(names_in(self._folder))):
            write_json(self._folder / name, {"audience": entries[name]})
        if _is_same(self._state, self.common):
            return
        pointer = self._identity.host_folder(self.common) / _ELSEWHERE / f"{_digest(str(self._state))}.json"
        try:
            if read_json(pointer) is None:
                write_json(pointer, {"state_uri": str(self._state)})
        except LedgerError as error:
            log.info("Tasks without a state URI will not find this ledger.\n%s", error)

    def note_internal_ids(self, internal_ids: Mapping[str, int]) -> None:
        """Note internal IDs by external ID, so that tasks with either find the ledgers of both."""
        names = {
            f"{_digest(audience)}-{_digest_of_internal(number)}-{self._scope}"
            for audience, number in internal_ids.items()
        }
        for name in sorted(names.difference(names_in(self._host / _SAME) if names else ())):
            write_json(self._host / _SAME / name, {})

    def ledgers_of(
        self, audiences: Collection[str], *, in_scope: bool = True
    ) -> dict[str, list[tuple[str, str]]]:
        """Find other ledgers of audiences.

        Args:
            audiences: IDs of audiences.
            in_scope: Whether to find ledgers of the same API base and environment, or only of others.

        Returns:
            By the name of each ledger, for ``folder``: its audiences, as pairs of our ID and its own ID.
            Deleted ledgers are left out.
        """
        by_digest = {self._digest(audience): audience for audience in audiences}
        by_other_digest = self._of_the_other_type(by_digest) if in_scope else {}
        found: dict[str, list[tuple[str, str]]] = {}
        for prefix, host, entry in self._names_in(_REGISTRY, _ENTRY) if audiences else ():
            digest, scope, ledger = entry.groups()
            if prefix + ledger == self._identity.folder_name or (scope == self._scope) != in_scope:
                continue
            if audience := by_digest.get(digest):
                found.setdefault(prefix + ledger, []).append((audience, audience))
            elif (audience := by_other_digest.get(digest)) and (
                content := read_json(host / _REGISTRY / entry[0])
            ):
                found.setdefault(prefix + ledger, []).append((audience, content["audience"]))
        # A ledger in use has at least a lock; a deleted one may have got notes since.
        return {name: ids for name, ids in found.items() if set(names_in(self.folder(name))) - {NOTES}}

    def _digest(self, audience: str) -> str:
        """Digest an audience ID of this task's type, or ``ATTRIBUTES``."""
        is_external = self._id_type == "external" or audience == ATTRIBUTES
        return _digest(audience) if is_external else _digest_of_internal(audience)

    def _of_the_other_type(self, by_digest: Mapping[str, str]) -> dict[str, str]:
        """Return the audiences by the digests of their IDs of the other type, as far as those are noted."""
        found = {}
        for _, _, entry in self._names_in(_SAME, _TWO_IDS) if by_digest else ():
            external, internal, scope = entry.groups()
            mine, other = (external, internal) if self._id_type == "external" else (internal, external)
            if mine in by_digest and scope == self._scope:
                found[other] = by_digest[mine]
        return found

    def folder(self, ledger: str) -> Folder:
        """Return the folder of a ledger, given its name, or its path if it is under another state URI."""
        return as_folder(type(self.common)(ledger)) if "/" in ledger else self._host / ledger

    def _names_in(self, folder: str, pattern: re.Pattern[str]) -> Iterator[tuple[str, Folder, re.Match[str]]]:
        """Yield the files of a folder under all state URIs whose names match a pattern.

        Yields:
            A prefix for the names of ledgers there, the folder of the deployment, and the name's match.
        """
        for match in filter(None, map(pattern.fullmatch, names_in(self._host / folder))):
            yield "", self._host, match
        for host in self._other_hosts():
            with _skipping_unreachable():
                for match in filter(None, map(pattern.fullmatch, names_in(host / folder))):
                    yield f"{host}/", host, match

    def _other_hosts(self) -> list[Folder]:
        """Return the folders of the deployment under the state URIs of other tasks of this Airflow."""
        # Not cached_property: in Python 3.11 all instances share its lock, also while the storage is read.
        if self._hosts is not None:
            return self._hosts
        states = [self.common]
        pointers = self._identity.host_folder(self.common) / _ELSEWHERE
        names: list[str] = []
        with _skipping_unreachable():
            names = list(filter(_POINTER.fullmatch, names_in(pointers)))
        for name in names:
            with _skipping_unreachable(), as_ledger_error("read", pointers / name):
                if content := read_json(pointers / name):
                    states.append(state := type(self.common)(content["state_uri"]))
                    # A run holds its ledger's lock, a file there, when it writes the pointer.
                    if not _is_same(state, self._state) and not names_in(self._identity.host_folder(state)):
                        log.warning(_NOTHING_THERE, state, pointers / name)
        others = [state for state in states if not _is_same(state, self._state)]
        # One state URI may be spelt in two ways.
        hosts = {str(host): host for host in map(self._identity.host_folder, others)}
        self._hosts = list(hosts.values())
        return self._hosts


class OutsideChanges:
    """The journal of changes that no plan has: explicit ones, and those of whole audiences.

    Args:
        state: Folder of all ledgers.
        identity: Its ``name`` names the folder of the dead letters; see ``ledger_name``.
        owner: The owner of this run; see ``Lock``.
        id_type: Whether the keys of changes are external or internal audience IDs.
        keep: Runs whose dead letters are kept.
        clock: Returns seconds since the epoch.
    """

    def __init__(
        self,
        state: Folder,
        identity: LedgerIdentity,
        owner: str,
        *,
        id_type: AudienceIdType = AUDIENCE_ID_TYPE,
        keep: int = KEEP_VERSIONS,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._state = state
        self._identity = identity
        self._owner = owner
        self._id_type = id_type
        self._clock = clock
        self._writer = uuid4().hex[:12]
        self.folder = identity.folder(state)
        # The instances of a mapped task in one DAG run are one run.
        run = re.sub(r"(.*/.*/.*)/.*", r"\1", owner)
        name = letters_name(clock(), f"{_digest(run)}-{self._writer}")
        self.letters = DeadLetters(self.folder, name, keep=keep)
        self.registry = Registry(state, identity, id_type)
        self.attributes: Collection[str] = ()
        """Names of the attributes that changes with the key ``ATTRIBUTES`` set."""
        self.changes = 0
        """Number of changes that were read from the source so far."""
        self.progress: Progress | None = None
        """Where a retry of this task continues, if it reads rows in an order."""
        self.counts = Counts()
        """Where the acknowledged changes are counted."""
        self._in_flight = 0
        self._had_unclear_attempt = False
        # By audience, the names of ledgers that hold members of it, and the audience's ID in each.
        self._ledgers: dict[str, list[tuple[str, str]]] = {}
        self._unregistered: dict[str, list[tuple[str, str]]] = {}
        self._writers: dict[str, NoteWriter] = {}
        # Numbers of notes by audience, and by ledger and audience.
        self._noted: Counter[str] = Counter()
        self._notes_in_ledger: Counter[tuple[str, str]] = Counter()
        self._of_attributes: list[Chunk] = []

    def note(self, chunk: Chunk) -> None:
        """Write notes of changes into the ledgers of their audiences, before the changes are sent.

        Raises:
            LedgerError: A note cannot be written. The changes must not be sent.
        """
        audiences = {chunk.keys} if isinstance(chunk.keys, str) else set(chunk.keys)
        self._find_ledgers(audiences)
        self._noted.update(audiences)
        self._notes_in_ledger.update(
            (name, audience) for audience in audiences for name, _ in self._ledgers[audience]
        )
        parts: dict[str, list[Chunk]] = {}
        for key, part in chunk.by_key():
            for name, audience in self._ledgers[key]:
                parts.setdefault(name, []).append(replace(part, keys=audience))
        self._of_attributes += [part for key, part in chunk.by_key() if key == ATTRIBUTES]
        for name, chunks in parts.items():
            self._write(name, Chunk.joined(chunks))

    def _write(self, name: str, chunk: Chunk) -> None:
        if name not in self._writers:
            ledger = self.registry.folder(name)
            self._writers[name] = NoteWriter(ledger, self._writer, self._owner, self._clock)
        self._writers[name].write(chunk)

    @contextmanager
    def noting(self, chunk: Chunk) -> Iterator[None]:
        """Write notes of changes that are sent inside the block.

        Raises:
            LedgerError: A note cannot be written. Nothing was sent.
        """
        self.note(chunk)
        self._in_flight += 1
        try:
            yield
            chunk.tally(self.counts.added, self.counts.removed)
            self._in_flight -= 1
        except TalonCdpError as error:
            # Other errors are raised before the request.
            if not isinstance(error, RequestError) or not (error.is_unclear or error.repeated):
                self._in_flight -= 1
            raise
        finally:
            try:
                self.end()
            except LedgerError as error:
                # The notes only stay longer. Another try would send the change again, and its rules may run.
                log.warning(
                    "The outcome of this change was not recorded. It stays uncertain for a day.\n%s",
                    error,
                )

    @contextmanager
    def calling_with_rules(self, *, again: bool) -> Iterator[bool]:
        """Mark, durably, that the block makes a call that runs rules, until the call has a clear outcome.

        Args:
            again: Whether the call is made again if an earlier try of this owner may have made it.

        Yields:
            Whether an earlier try may have made the call.

        Raises:
            UnclearError: An earlier try may have made the call. The mark is gone: if a person clears the
                task, the call is made.
            LedgerError: The mark cannot be written. Nothing was sent.
        """
        folder = self._identity.host_folder(self._state) / _RULE_CALLS
        mark = folder / f"{_digest(self._owner)}.json"
        is_marked = mark.name in names_in(folder)
        if is_marked and not again:
            remove(mark)
            raise UnclearError(
                "An earlier try of this task ended during its call, and this call runs rules.\n"
                "The rules may have run: they may have given coupons, points or rewards.\n"
                "The call was not repeated. Look at the profile in the Campaign Manager first.\n"
                "If they did not run, clear this task, which makes the call.\n"
                'If the rules may run twice without harm, set on_unclear="retry".',
                method="PUT",
                path="",
            )
        try:
            write_json(mark, {"owner": self._owner})
        except LedgerError:
            # It may have been stored nevertheless, and the next try would take it for that of a call.
            if not is_marked:
                with suppress(LedgerError):
                    remove(mark)
            raise
        try:
            yield is_marked
        except TalonCdpError as error:
            # Without ``again`` the error of an unclear answer ends the retries, and says that rules may have
            # run.
            is_unclear = isinstance(error, RequestError) and (error.is_unclear or error.repeated)
            if not (again and (is_marked or is_unclear)):
                _remove_mark(mark)
            raise
        _remove_mark(mark)

    @contextmanager
    def emptying(self, audience: str) -> Iterator[None]:
        """Note in the ledgers of an audience that it has no members, if the block deletes or creates it.

        Raises:
            LedgerError: The note cannot be written. Nothing was sent.
        """
        written: dict[Folder, Folder] = {}

        def note() -> None:
            # A run that is planning meanwhile makes another plan current, which needs the note, too.
            self._find_ledgers({audience})
            for name, audience_there in self._ledgers[audience]:
                folder = self.registry.folder(name)
                if (plan := find_manifest(folder).manifest.plan.folder) and folder / plan not in written:
                    path = write_mark("suspects", folder, plan, self._writer, [audience_there])
                    written[folder / plan] = path

        def note_again() -> None:
            try:
                note()
            except LedgerError as error:
                # A retry would change nothing. Only a plan that became current meanwhile lacks the note.
                log.warning("A mirror that is running may not notice that the audience is empty.\n%s", error)

        note()
        try:
            yield
        except TalonCdpError as error:
            may_be_empty = isinstance(error, RequestError) and (error.is_unclear or error.repeated)
            if may_be_empty or isinstance(error, NotFoundError):
                note_again()
                raise
            try:
                for path in written.values():
                    remove(path)
            except LedgerError as failure:
                # The error of the call says more.
                log.warning("The next mirror sends all members of %r again.\n%s", audience, failure)
            raise
        note_again()

    def _find_ledgers(self, audiences: set[str]) -> None:
        # Each time, as a ledger may have been made since.
        self._ledgers = {audience: [] for audience in audiences}
        for name, held in self.registry.ledgers_of(audiences).items():
            for audience, audience_there in held:
                self._ledgers[audience].append((name, audience_there))
        if ATTRIBUTES in audiences:
            self._ledgers[ATTRIBUTES] = list(filter(self._has_attributes, self._ledgers[ATTRIBUTES]))
        new = audiences - {ATTRIBUTES} - self._unregistered.keys()
        self._unregistered |= {audience: [] for audience in new}
        for audience in new:
            # Earlier versions of this package did not register the ledgers that they wrote.
            own = self._identity.of_audience(audience, self._id_type)
            is_known = (own.folder_name, audience) in self._ledgers[audience]
            # A run that was refused leaves a folder with a report and without a manifest.
            if not is_known and any(
                name.startswith("manifest-") for name in names_in(own.folder(self._state))
            ):
                self._unregistered[audience].append((own.folder_name, audience))
        for audience, held in self._ledgers.items():
            unregistered = self._unregistered.get(audience, [])
            held += [ledger for ledger in unregistered if ledger not in held]

    def _has_attributes(self, ledger: tuple[str, str]) -> bool:
        names = find_manifest(self.registry.folder(ledger[0])).manifest.names
        return not set(self.attributes).isdisjoint(names)

    def flush(self) -> None:
        """Make dead letters durable, and after them the progress."""
        self.letters.flush()
        if self.progress:
            self.progress.flush()

    def note_sending(self, *_: object) -> None:
        """Count a chunk in flight. Its changes were noted before; see ``note``."""
        self._in_flight += 1

    def landed(
        self, number: int, refused: Collection[int] = (), *_: object, had_unclear_attempt: bool = False
    ) -> None:
        """Count a chunk that is not in flight any more, and whether all of it was acknowledged."""
        self._in_flight -= 1
        # A request whose answer was lost may have made changes that were refused later.
        self._had_unclear_attempt |= had_unclear_attempt
        if self.progress and refused:
            self.progress.hold(number)
        elif self.progress:
            self.progress.landed(number)

    def without_effect(self, *_: object) -> None:
        """Count a chunk that is not in flight any more, and changed nothing."""
        self._in_flight -= 1

    def ignore(self, *_: object) -> None:
        """Do nothing: explicit changes are not taken over, and mirrors check their audiences themselves."""

    suspect = raise_if_lost = note_in_flight = ignore

    def end(self) -> None:
        """Write the dead letters, and note in the ledgers that the changes end, or may still arrive."""
        self.flush()
        is_open = self._in_flight > 0
        had_effect = is_open or self._had_unclear_attempt or self.counts.sent > 0
        if had_effect:
            try:
                self._notify_new_ledgers()
            except LedgerError as error:
                log.warning("A mirror that runs for the first time may not know of these changes.\n%s", error)
        for writer in self._writers.values():
            writer.end(REQUEST_LASTS if is_open else 0.0, had_effect=had_effect)

    def _notify_new_ledgers(self) -> None:
        """Make ledgers that were created after a note resend all members of its audience.

        Ledgers that got the attributes only after the note was written receive it too.
        """
        self._find_ledgers(set(self._noted))
        for name, _ in self._ledgers.get(ATTRIBUTES, ()) if self._of_attributes else ():
            if not self._notes_in_ledger[name, ATTRIBUTES]:
                self._write(name, Chunk.joined(self._of_attributes))
        missed: dict[str, list[str]] = {}
        for audience in self._noted.keys() - {ATTRIBUTES}:
            for name, audience_there in self._ledgers[audience]:
                if self._notes_in_ledger[name, audience] < self._noted[audience]:
                    missed.setdefault(name, []).append(audience_there)
        for name, audiences in missed.items():
            folder, written = self.registry.folder(name), set[str]()
            # Another plan may become current meanwhile.
            while (plan := find_manifest(folder).manifest.plan.folder) and plan not in written:
                write_mark("doubts", folder, plan, self._writer, audiences)
                written.add(plan)


def _remove_mark(mark: Folder) -> None:
    try:
        remove(mark)
    except LedgerError as error:
        # The outcome of the call is known, and an error here would have Airflow make the call again.
        log.warning(
            "The mark of this call was not deleted. If the task is cleared, it fails and says that its\n"
            "rules may have run.\n%s",
            error,
        )


def write_mark(mark: Mark, folder: Folder, plan: str, run: str, audiences: Iterable[str]) -> Folder:
    """Mark audiences in a plan's folder, until the next plan; return the file."""
    path = folder / plan / f"{mark}-{run}.json"
    write_json(path, sorted(audiences))
    return path


def _is_same(one: Folder, other: Folder) -> bool:
    """Whether two paths lead to the same folder."""
    one, other = as_folder(one), as_folder(other)
    both_local = type(one) is type(other) is type(Path())
    return str(one) == str(other) or (both_local and one.resolve() == other.resolve())


@contextmanager
def _skipping_unreachable() -> Iterator[None]:
    """Log an error of another task's state URI, and continue without its ledgers."""
    try:
        yield
    except LedgerError as error:
        log.warning(
            "Another state URI cannot be used. Mirrors with it do not learn of this task's changes.\n%s",
            error,
        )


def _digest_of_internal(number: object) -> str:
    """Digest an internal audience ID. No external ID has the same digest."""
    return _digest(f"internal\0{number}")


def _digest(audience: str) -> str:
    return hashlib.sha256(audience.encode()).hexdigest()[:_DIGEST]
