"""Dead letters: records that were refused, as lines of JSON under the state URI."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Any

from airflow_provider_talon_cdp.changes.change import Change
from airflow_provider_talon_cdp.exceptions import LedgerError, RequestError
from airflow_provider_talon_cdp.ledger.storage import (
    Folder,
    names_in,
    read_pieces,
    remove_folder,
    write_bytes,
)

LETTERS = "dead-letters"
UNCLEAR = (
    "A call that runs rules got no clear answer: it is unknown whether the rules ran and the change was\n"
    'made. It is not sent again. Look at the profile in the Campaign Manager. A run with send="all" makes\n'
    "the change in bulk, without rules; UpdateProfileAudiencesOperator makes it with rules."
)
"""The text of a dead letter for a member whose change runs rules and got no clear answer."""
UNCLEAR_ATTRIBUTES = (
    "A call that runs rules got no clear answer: the rules may have run, or not.\n"
    "Look at the profile in the Campaign Manager. The next run sends these attributes without rules."
)
"""The text of a dead letter for attributes that were sent with rules and got no clear answer."""
_FOLDER = re.compile(r"\d{8}T[\d.]+Z-.+")
# Characters that are kept in memory before they are written.
_MOST_WAITING = 2**20


def letters_name(time: float, run: str) -> str:
    """Return the name of the folder of a run's dead letters. Names sort by time, in microseconds.

    Args:
        time: Seconds since the epoch.
        run: ID of the run. If several folders belong to one run, what follows a hyphen tells them apart.
    """
    return f"{datetime.fromtimestamp(time, UTC):%Y%m%dT%H%M%S.%fZ}-{run}"


def letter_of(
    change: Change,
    time: float,
    reason: str | None = None,
    error: RequestError | None = None,
    *,
    of_profile: bool,
) -> dict[str, Any]:
    """Return the dead letter of a change.

    Args:
        change: The change.
        time: Seconds since the epoch.
        reason: Why it was refused; None if it runs rules and got no clear answer.
        error: The answer.
        of_profile: Whether the change is of attributes, and not of a member.
    """
    membership = {"audience_id": change.key, "action": change.action}
    return {
        "time": datetime.fromtimestamp(time, UTC).isoformat(timespec="seconds"),
        "profile_id": change.profile_id,
        **({} if of_profile else membership),
        "reason": (UNCLEAR_ATTRIBUTES if of_profile else UNCLEAR) if reason is None else reason,
        "status": error.status if error else None,
        "request_uuid": error.request_uuid if error else None,
    }


class DeadLetters:
    """The dead letters of one run. Thread-safe.

    Args:
        ledger: The ledger's folder.
        name: Name of the run's folder below it, from ``letters_name``.
        prefix: Prefix of the files' names, if several processes write into one folder.
        keep: Number of runs whose dead letters are kept if this run has some.
    """

    def __init__(self, ledger: Folder, name: str, *, keep: int, prefix: str = "") -> None:
        self.name = name
        self.keep = keep
        self._ledger = ledger
        self._folder = ledger / LETTERS / name
        self._prefix = prefix
        self.spared = {name}
        """Names of folders of dead letters that this run keeps, however many are newer. They count."""
        self._lock = threading.Lock()
        self._waiting: list[str] = []
        self._size = 0
        self._files = 0

    @property
    def place(self) -> str | None:
        """The folder, or None if nothing was written."""
        return str(self._folder) if self._files else None

    def add(self, letter: Mapping[str, Any]) -> None:
        """Add a dead letter, which ``flush`` writes at the latest."""
        line = json.dumps(letter, ensure_ascii=False) + "\n"
        with self._lock:
            self._waiting.append(line)
            self._size += len(line)
            if self._size >= _MOST_WAITING:
                self._write()

    def flush(self) -> None:
        """Write the dead letters that are in memory."""
        with self._lock:
            if self._waiting:
                self._write()

    def _write(self) -> None:
        name = f"{self._prefix}{self._files:05}.ndjson"
        write_bytes(self._folder / name, "".join(self._waiting).encode(errors="backslashreplace"))
        self._files += 1
        self._waiting, self._size = [], 0
        if self._files == 1:
            self.prune()

    def prune(self, oldest: str = "") -> None:
        """Delete the dead letters of all runs but the last ones, as they are personal data.

        Args:
            oldest: Name of the folder of the oldest run that is kept.
        """
        names = _folders_in(self._ledger)
        by_age = [*(name for name in names if name in self.spared), *reversed(names)]
        runs = list(dict.fromkeys(map(_run_of, by_age)))[: self.keep]
        for name in names:
            if name not in self.spared and (name < oldest or _run_of(name) not in runs):
                remove_folder(self._ledger / LETTERS / name)


def _folders_in(ledger: Folder) -> list[str]:
    """Return the names of the folders of a ledger's dead letters, the oldest first."""
    return list(filter(_FOLDER.fullmatch, names_in(ledger / LETTERS)))


def _run_of(name: str) -> str:
    """Return the run of a folder of dead letters."""
    return "-".join(name.split("-")[1:2])


def read_letters(folder: Folder) -> Iterator[str]:
    """Yield the lines of dead letters, the oldest first.

    Args:
        folder: The folder of a ledger, or of the dead letters of one run.

    Raises:
        LedgerError: They cannot be read, or a newer run deletes some of them meanwhile.
    """
    letters = folder / LETTERS
    is_of_one_run = folder.parent.name == LETTERS
    for run in [folder] if is_of_one_run else [letters / name for name in _folders_in(folder)]:
        for name in names_in(run):
            # A killed worker may leave a file that it has not written completely, under a hidden name.
            if name.startswith(".") or not name.endswith(".ndjson"):
                continue
            try:
                data = b"".join(read_pieces(run / name))
            except FileNotFoundError as error:
                raise LedgerError(
                    "The dead letters were deleted while they were read: a newer run has some, and a ledger\n"
                    f"keeps those of its last runs. Run the command again.\nFolder: {run}"
                ) from error
            yield from data.decode(errors="replace").removesuffix("\n").split("\n")
