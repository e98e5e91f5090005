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
from typing import Any

from airflow_provider_talon_cdp.emulator.exact_json import dumps, loads
from airflow_provider_talon_cdp.emulator.store import Store, StoredAudience, StoredProfile

FORMAT = 2
_INTERVAL = 1.0

_log = logging.getLogger(__name__)


class StateFileError(Exception):
    """The file cannot be read or written, or is not the state of an emulator. It never counts as empty."""


class StateFile:
    """Writes the stores of all environments to a file soon after a change.

    The writing has its own thread and replaces the whole file. A large file is written for at most a
    tenth of the time.
    """

    def __init__(self, path: Path, stores: Mapping[str, Store]) -> None:
        self._path = path
        self._stores = stores
        self._written = -1
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None

    def load(self) -> None:
        """Fill the stores from the file; without a file they stay as they are.

        Raises:
            StateFileError: it cannot be read or is damaged, or it has an environment that is unknown here.
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
            data: Any = loads(text)
            if data["format"] != FORMAT:
                raise ValueError("it is of another version")  # noqa: TRY301 - one message for all damage
            environments = {name: _read(state) for name, state in data["environments"].items()}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise StateFileError(
                f"the state file {self._path} is damaged ({error}); move it away to start with nothing"
            ) from error
        if unknown := environments.keys() - self._stores.keys():
            raise StateFileError(
                f"the state file {self._path} has the environments {sorted(unknown)}, "
                "which this emulator was not started with"
            )
        for name, state in environments.items():
            self._stores[name].load(*state)
        self._written = self._version()

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
        """Write the file if a store has changed.

        Raises:
            StateFileError: it cannot be written.
        """
        version = self._version()
        if version == self._written:
            return
        try:
            self._write()
        except OSError as error:
            raise StateFileError(f"cannot write the state file {self._path}: {error.strerror}") from error
        self._written = version

    def _version(self) -> int:
        return sum(store.version for store in self._stores.values())

    def _write(self) -> None:
        descriptor, name = tempfile.mkstemp(prefix=f".{self._path.name}.", dir=self._path.parent)
        try:
            with os.fdopen(descriptor, "w", encoding="ascii") as file:
                file.writelines(_lines(self._stores))
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


def _lines(stores: Mapping[str, Store]) -> Iterator[str]:
    """The file, piece by piece: one line for an audience, one for a profile."""
    yield f'{{"format": {FORMAT}, "environments": {{'
    for place, (name, store) in enumerate(stores.items()):
        audiences, profiles, next_id = store.snapshot()
        yield f'{"," if place else ""}\n{json.dumps(name)}: {{"next_id": {next_id}, "audiences": ['
        for number, audience in enumerate(audiences):
            fields = {**_fields(audience), "members": sorted(audience.members)}
            yield f"{',' if number else ''}\n{json.dumps(fields)}"
        yield '\n], "profiles": {'
        for number, (profile_id, profile) in enumerate(profiles.items()):
            yield f"{',' if number else ''}\n{json.dumps(profile_id)}: {dumps(_fields(profile))}"
        yield "\n}}"
    yield "\n}}\n"


def _fields(record: StoredAudience | StoredProfile) -> dict[str, Any]:
    return {name: getattr(record, name) for name in record.__slots__}


def _read(state: Any) -> tuple[list[StoredAudience], dict[str, StoredProfile], int]:
    """What :meth:`Store.load` takes. Only the emulator writes this file, so its values are not checked."""
    audiences = [StoredAudience(**{**each, "members": set(each["members"])}) for each in state["audiences"]]
    profiles = {name: StoredProfile(**each) for name, each in state["profiles"].items()}
    return audiences, profiles, state["next_id"]
