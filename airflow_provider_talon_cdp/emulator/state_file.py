"""The emulator's state in a JSON file, so that a demo survives a restart."""

from __future__ import annotations

import json
import logging
import os
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from airflow_provider_talon_cdp.emulator.exact_json import Json, dumps, loads
from airflow_provider_talon_cdp.emulator.store import Audience, Snapshot, Store

FORMAT = 1
_INTERVAL = 1.0

_log = logging.getLogger(__name__)


class StateFileError(Exception):
    """The file cannot be read or written, or is no state of an emulator. It is never taken for an empty one."""


class StateFile:
    """Writes a store to a file soon after it changed.

    From its own thread, as a whole (a new file is renamed over the old one), and, when it is large, not
    more than a tenth of the time.
    """

    def __init__(self, path: Path, store: Store) -> None:
        self._path = path
        self._store = store
        self._written = -1
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None

    def load(self) -> None:
        """Fill the store from the file; without a file the store stays as it is.

        Raises:
            StateFileError: it cannot be read or is damaged.
        """
        if not self._path.parent.is_dir():
            raise StateFileError(f"there is no directory for the state file {self._path}")
        try:
            text = self._path.read_bytes()
        except FileNotFoundError:
            return
        except OSError as error:
            raise StateFileError(f"cannot read the state file {self._path}: {error.strerror}") from error
        try:
            self._store.load(_read(loads(text)))
        except (ValueError, KeyError, TypeError) as error:
            raise StateFileError(
                f"the state file {self._path} is damaged ({error}); move it away to start with nothing"
            ) from error
        self._written = self._store.version

    def start(self) -> None:
        """Start writing."""
        self._stopping.clear()
        self._thread = threading.Thread(target=self._run, name="talon-emulator-state", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Write what is not yet written, and stop.

        Raises:
            StateFileError: it cannot be written.
        """
        self._stopping.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        self.save()

    def save(self) -> None:
        """Write the file if the store has changed.

        Raises:
            StateFileError: it cannot be written.
        """
        version = self._store.version
        if version == self._written:
            return
        try:
            self._write(self._store.snapshot())
        except OSError as error:
            raise StateFileError(f"cannot write the state file {self._path}: {error.strerror}") from error
        self._written = version

    def _write(self, snapshot: Snapshot) -> None:
        descriptor, name = tempfile.mkstemp(prefix=f".{self._path.name}.", dir=self._path.parent)
        try:
            with os.fdopen(descriptor, "w", encoding="ascii") as file:
                file.writelines(_lines(snapshot))
                file.flush()
                os.fsync(file.fileno())
            Path(name).replace(self._path)
        except BaseException:
            Path(name).unlink()
            raise

    def _run(self) -> None:
        pause = _INTERVAL
        while not self._stopping.wait(pause):
            before = time.monotonic()
            try:
                self.save()
            except StateFileError as error:
                # The emulator goes on; the same error ends it when it still holds at the end.
                _log.error("%s", error)
            pause = max(_INTERVAL, 10 * (time.monotonic() - before))


def _lines(snapshot: Snapshot) -> Iterator[str]:
    """The file, piece by piece: one line for an audience, one for a profile."""
    yield f'{{"format": {FORMAT}, "next_audience_id": {snapshot.next_id}, "audiences": [\n'
    for place, audience in enumerate(snapshot.audiences):
        yield ",\n" if place else ""
        yield json.dumps(
            {
                "id": audience.id,
                "external_id": audience.external_id,
                "name": audience.name,
                "created": audience.created,
                "members": sorted(audience.members),
            }
        )
    yield '\n], "profiles": {\n'
    for place, (profile_id, attributes) in enumerate(snapshot.profiles.items()):
        yield f"{',' if place else ''}\n{json.dumps(profile_id)}: {dumps(dict(attributes))}"
    yield "\n}}\n"


def _read(data: Json) -> Snapshot:
    """:raises ValueError, KeyError, TypeError: it is no state of an emulator."""
    root = _mapping(data)
    if root["format"] != FORMAT:
        raise ValueError("it is of another version")
    audiences = tuple(_read_audience(_mapping(item)) for item in _list(root["audiences"]))
    profiles = {name: _mapping(attributes) for name, attributes in _mapping(root["profiles"]).items()}
    next_id = _integer(root["next_audience_id"])
    if len({a.id for a in audiences}) != len(audiences) or len({a.external_id for a in audiences}) != len(
        audiences
    ):
        raise ValueError("an audience occurs twice")
    if any(audience.id >= next_id for audience in audiences):
        raise ValueError("next_audience_id is taken")
    if any(not audience.members <= profiles.keys() for audience in audiences):
        raise ValueError("a member is no profile")
    return Snapshot(audiences, profiles, next_id)


def _read_audience(item: Mapping[str, Json]) -> Audience:
    members = {_string(member) for member in _list(item["members"])}
    return Audience(
        _integer(item["id"]),
        _string(item["external_id"]),
        _string(item["name"]),
        _string(item["created"]),
        members,
    )


def _mapping(value: Json) -> dict[str, Json]:
    if not isinstance(value, dict):
        raise TypeError("an object is missing")
    return value


def _list(value: Json) -> list[Json]:
    if not isinstance(value, list):
        raise TypeError("a list is missing")
    return value


def _string(value: Json) -> str:
    if not isinstance(value, str):
        raise TypeError("a text is missing")
    return value


def _integer(value: Json) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError("a whole number is missing")
    return value
