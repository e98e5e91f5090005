"""Changes of an audience that were made outside its ledger, and who has to know of them.

```
STATE_URI/<deployment host>/registry/<audience>-<scope>-<ledger>            which ledgers hold an audience
STATE_URI/<deployment host>/elsewhere/<digest>.json                         another state URI with ledgers
STATE_URI/<deployment host>/<ledger>/outside/WRITER.json                    who left notes, and until when
STATE_URI/<deployment host>/<ledger>/outside/WRITER-<n>-<sha256>.tsv.zst    changes that they made
```

Scope is a digest of API base and environment. A ledger under another state URI than the common one of this
Airflow leaves a pointer in ``elsewhere`` under the common one, so that tasks under any of them find it.

Where a note contradicts what the ledger knows, the member is uncertain: the next plan sends what it wants of
it. A note about attributes puts a doubt on the profile's fingerprint. Notes are deleted when no request of
their writer can arrive any more and a plan has covered them.
"""

from __future__ import annotations

import hashlib
import io
import logging
import re
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from uuid import uuid4

from airflow_provider_talon_cdp.changes.change import Chunk
from airflow_provider_talon_cdp.contract import AUDIENCE_ID_TYPE, KEEP_VERSIONS, AudienceIdType
from airflow_provider_talon_cdp.exceptions import LedgerError, NotFoundError, RequestError
from airflow_provider_talon_cdp.ledger.format import File, LineWriter, find_manifest, read_chunks
from airflow_provider_talon_cdp.ledger.letters import DeadLetters, letters_name
from airflow_provider_talon_cdp.ledger.storage import (
    DamagedError,
    Folder,
    as_folder,
    as_ledger_error,
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
UNTIL_KILLED = 86_400.0
"""Seconds after which a writer that did not end in order counts as ended: no sync lasts a day."""
UNTIL_LOST = 600.0
"""Seconds for which a request in flight may still arrive after its process stopped."""
ATTRIBUTES = "\0attributes"
"""Stands for the attributes of a profile where a membership has its audience."""
_REGISTRY, _ELSEWHERE = "registry", "elsewhere"
_NOTE = re.compile(r"(.+)-\d{5}-([0-9a-f]{16})\.tsv\.zst")
_DIGEST = 16
_SCOPE = 8


class Notes(NamedTuple):
    """The notes in a ledger's folder.

    Args:
        files: Each of them.
        writers: Who wrote them, by writer.
        spent: Names of those that can be deleted once a plan has covered them.
    """

    files: tuple[File, ...] = ()
    writers: Mapping[str, str] = {}
    spent: tuple[str, ...] = ()


class NoteWriter:
    """Leaves notes in one ledger's folder.

    Args:
        ledger: The ledger's folder.
        writer: Tells this writer from all others.
        owner: For whom it works.
        clock: Seconds since the epoch.
    """

    def __init__(self, ledger: Folder, writer: str, owner: str, clock: Callable[[], float]) -> None:
        self._folder = ledger / NOTES
        self._writer = writer
        self._owner = owner
        self._clock = clock
        self.written = 0

    def write(self, chunk: Chunk) -> None:
        """Note, durably, that changes may be made."""
        if not self.written:
            self.end(UNTIL_KILLED)
        file = io.BytesIO()
        lines = LineWriter(self._folder, file)
        lines.write(Chunk.of(sorted(chunk.changes())))
        lines.finish()
        name = f"{self._writer}-{self.written:05}-{lines.as_file('').sha256[:_DIGEST]}.tsv.zst"
        write_bytes(self._folder / name, file.getvalue())
        self.written += 1

    def end(self, seconds: float = 0.0) -> None:
        """Note that the changes arrive within so many seconds from now, or never."""
        until = {"owner": self._owner, "until": self._clock() + seconds}
        write_json(self._folder / f"{self._writer}.json", until)


def find_notes(ledger: Folder, now: float) -> Notes:
    """Look for notes in a ledger's folder."""
    names = names_in(ledger / NOTES)
    found = [note for name in names if (note := _NOTE.fullmatch(name))]
    writers: dict[str, str] = {}
    spent = []
    for writer in [name.removesuffix(".json") for name in names if name.endswith(".json")]:
        try:
            said = read_json(ledger / NOTES / f"{writer}.json") or {}
        except DamagedError:
            # What matters is in the notes.
            said = {}
        if any(note[1] == writer for note in found):
            writers[writer] = said.get("owner", "")
        if said.get("until", 0.0) <= now:
            spent += [*(note[0] for note in found if note[1] == writer), f"{writer}.json"]
    files = [File(file=f"{NOTES}/{note[0]}", sha256=note[2], lines=0, key="") for note in found]
    return Notes(tuple(files), writers, tuple(spent))


def read_notes(ledger: Folder, notes: Notes) -> Iterator[Chunk]:
    """Read the changes in notes.

    Raises:
        DamagedError: A note is damaged.
    """
    for file in notes.files:
        yield from read_chunks(ledger, file)


class Registry:
    """Says which ledgers hold members of an audience.

    Args:
        state: Folder of all ledgers of the task that asks.
        identity: Of the ledger that asks.
    """

    def __init__(self, state: Folder, identity: LedgerIdentity) -> None:
        self.common = state
        """Folder of all ledgers of tasks that name no state URI."""
        self._host = identity.host_folder(state)
        self._state = state
        self._folder = self._host / _REGISTRY
        self._identity = identity
        scope = [identity.base_url, identity.environment]
        self._scope = hashlib.sha256("\0".join(scope).encode()).hexdigest()[:_SCOPE]

    def register(self, audiences: Iterable[str], internal_ids: Mapping[str, int]) -> None:
        """Note that the ledger holds members of audiences.

        Args:
            audiences: Their IDs, as in the ledger.
            internal_ids: The internal ID of some, by the external one.
        """
        mine = {self._name(_digest(each)): each for each in audiences}
        mine |= {self._name(_internal(number)): each for each, number in internal_ids.items()}
        for name in sorted(mine.keys() - set(names_in(self._folder))):
            write_json(self._folder / name, {"audience": mine[name]})
        if _same(self._state, self.common):
            return
        pointer = self._identity.host_folder(self.common) / _ELSEWHERE / f"{_digest(str(self._state))}.json"
        try:
            if read_json(pointer) is None:
                write_json(pointer, {"state_uri": str(self._state)})
        except LedgerError as error:
            log.info("Tasks without a state URI will not find this ledger.\n%s", error)

    def _name(self, digest: str) -> str:
        return f"{digest}-{self._scope}-{self._identity.folder_name}"

    def by_internal_id(self, number: str) -> list[tuple[str, str]]:
        """Find ledgers in scope that hold an audience by its external ID: which they are, and that ID."""
        start = f"{_internal(number)}-{self._scope}-"
        found = [
            (prefix + name.removeprefix(start), read_json(registry / name))
            for prefix, registry, name in self._entries()
            if name.startswith(start)
        ]
        return [(ledger, content["audience"]) for ledger, content in found if content]

    def ledgers_of(self, audiences: Iterable[str], *, in_scope: bool = True) -> dict[str, set[str]]:
        """Find other ledgers of audiences.

        Args:
            audiences: IDs of audiences.
            in_scope: Whether of the same API base and environment, or of others.

        Returns:
            The audiences that each ledger holds, by what ``folder`` takes.
        """
        by_digest = {_digest(each): each for each in audiences}
        found: dict[str, set[str]] = {}
        for prefix, _, name in self._entries() if by_digest else ():
            digest, scope, ledger = name.split("-", 2)
            is_other = prefix + ledger != self._identity.folder_name and (scope == self._scope) == in_scope
            if digest in by_digest and is_other:
                found.setdefault(prefix + ledger, set()).add(by_digest[digest])
        return found

    def folder(self, ledger: str) -> Folder:
        """Return the folder of a ledger: by its name, or of one under another state URI by its place."""
        return as_folder(type(self.common)(ledger)) if "/" in ledger else self._host / ledger

    def _entries(self) -> Iterator[tuple[str, Folder, str]]:
        """Yield a prefix for the ledger's name, the registry, and the entry's name."""
        for name in names_in(self._folder):
            yield "", self._folder, name
        for host in self._other_hosts:
            with _reached():
                for name in names_in(host / _REGISTRY):
                    yield f"{host}/", host / _REGISTRY, name

    @cached_property
    def _other_hosts(self) -> list[Folder]:
        """The folders of the deployment under the state URIs of other tasks of this Airflow."""
        states = [self.common]
        pointers = self._identity.host_folder(self.common) / _ELSEWHERE
        with _reached(), as_ledger_error("read", pointers):
            read = [read_json(pointers / name) for name in names_in(pointers)]
            states += [type(self.common)(content["state_uri"]) for content in read if content]
        return [self._identity.host_folder(each) for each in states if not _same(each, self._state)]


class OutsideChanges:
    """The journal of changes that no plan has: by explicit calls, and deletions of audiences.

    Args:
        state: Folder of all ledgers.
        identity: Its ``name`` says where the dead letters go; see ``calls_ledger_name``.
        owner: For whom this runs.
        id_type: Whether the keys of changes are external or internal audience IDs.
        keep: Runs whose dead letters are kept.
        clock: Seconds since the epoch.
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
        self._letters = DeadLetters(self.folder, letters_name(clock(), self._writer), keep=keep)
        self.registry = Registry(state, identity)
        self.attributes: Collection[str] = ()
        """Names of the attributes that changes with the key ``ATTRIBUTES`` are about."""
        # By audience, the ledgers that hold members of it, and its ID there.
        self._ledgers: dict[str, list[tuple[str, str]]] = {}
        self._writers: dict[str, NoteWriter] = {}

    def note(self, chunk: Chunk) -> None:
        """Tell the ledgers of the audiences, durably, before the changes are sent.

        Raises:
            LedgerError: It cannot be written; then the changes must not be sent.
        """
        self._look_up({chunk.keys} if isinstance(chunk.keys, str) else set(chunk.keys))
        for key, part in chunk.by_key():
            for name, audience in self._ledgers[key]:
                if name not in self._writers:
                    ledger = self.registry.folder(name)
                    self._writers[name] = NoteWriter(ledger, self._writer, self._owner, self._clock)
                self._writers[name].write(replace(part, keys=audience))

    @contextmanager
    def telling(self, chunk: Chunk) -> Iterator[None]:
        """Tell the ledgers of the audiences about changes that are made inside this.

        Raises:
            LedgerError: It cannot be written; nothing was sent.
        """
        self.note(chunk)
        try:
            yield
        except BaseException:
            self.end(in_flight=True)
            raise
        self.end()

    @contextmanager
    def deleting(self, audience: str) -> Iterator[None]:
        """Tell the ledgers of an audience that it loses all members where it is deleted inside this.

        Raises:
            LedgerError: It cannot be written; nothing was sent.
        """
        self._look_up({audience})
        written = []
        for name, _ in self._ledgers[audience]:
            folder = self.registry.folder(name)
            if plan := find_manifest(folder).manifest.plan.folder:
                written.append(write_suspects(folder, plan, self._writer, [audience]))
        try:
            yield
        except RequestError as error:
            if not (error.is_unclear or error.repeated or isinstance(error, NotFoundError)):
                for path in written:
                    remove(path)
            raise

    def _look_up(self, audiences: set[str]) -> None:
        new = audiences.difference(self._ledgers)
        self._ledgers |= {each: [] for each in new}
        for name, held in self.registry.ledgers_of(new).items():
            for each in held:
                self._ledgers[each].append((name, each))
        if ATTRIBUTES in new:
            self._ledgers[ATTRIBUTES] = list(filter(self._has_attributes, self._ledgers[ATTRIBUTES]))
        for each in new - {ATTRIBUTES}:
            if self._id_type == "internal":
                self._ledgers[each] += self.registry.by_internal_id(each)
            # A ledger that an earlier version wrote is not registered until its next plan.
            own = self._identity.of_audience(each, self._id_type)
            is_known = (own.folder_name, each) in self._ledgers[each]
            # A run that was refused leaves a folder with a report, and no ledger.
            if not is_known and any(
                name.startswith("manifest-") for name in names_in(own.folder(self._state))
            ):
                self._ledgers[each].append((own.folder_name, each))

    def _has_attributes(self, held: tuple[str, str]) -> bool:
        names = find_manifest(self.registry.folder(held[0])).manifest.names
        return not set(self.attributes).isdisjoint(names)

    def reject(self, letter: Mapping[str, Any]) -> None:
        """Note a dead letter; ``flush`` makes it durable."""
        self._letters.add(letter)

    def flush(self) -> None:
        """Make dead letters durable."""
        self._letters.flush()

    @property
    def dead_letters(self) -> str | None:
        """Folder of the dead letters, or None when there are none."""
        return self._letters.place

    def end(self, *, in_flight: bool = False) -> None:
        """End in order: no request arrives any more, or within minutes where some are in flight."""
        self.flush()
        for writer in self._writers.values():
            writer.end(UNTIL_LOST if in_flight else 0.0)


def write_suspects(folder: Folder, plan: str, run: str, audiences: Iterable[str]) -> Folder:
    """Note beside a plan that Talon.One may have lost the members of audiences; return the file."""
    path = folder / plan / f"suspects-{run}.json"
    write_json(path, sorted(audiences))
    return path


def _same(one: Folder, other: Folder) -> bool:
    """Whether two folders are one."""
    one, other = as_folder(one), as_folder(other)
    both_local = type(one) is type(other) is type(Path())
    return str(one) == str(other) or (both_local and one.resolve() == other.resolve())


@contextmanager
def _reached() -> Iterator[None]:
    """Go on without a state URI of other tasks that cannot be reached."""
    try:
        yield
    except LedgerError as error:
        log.warning("Ledgers under another state URI cannot be told of this task's changes.\n%s", error)


def _internal(number: object) -> str:
    """Digest an internal ID, such that no external one has the same."""
    return hashlib.sha256(f"internal\0{number}".encode()).hexdigest()[:_DIGEST]


def _digest(audience: str) -> str:
    return hashlib.sha256(audience.encode()).hexdigest()[:_DIGEST]
