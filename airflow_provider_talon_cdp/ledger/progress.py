"""The progress of a task that adds or removes members, so that a retry can continue there.

```
STATE_URI/<deployment host>/<ledger>/progress/<time>-<task instance>.json
```

Rows are read in the order of the bytes of their profile IDs. The file has the ID up to which Talon.One has
acknowledged every row. The retry reads the rows from that ID on.

Counts and warnings of a retry must be complete, so the progress ends before the first row that
was rejected or looks wrong. It is valid for Airflow's retries only: if a person clears the task, all rows are
sent, as they may have been corrected.
"""

from __future__ import annotations

import hashlib
import logging
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import chain
from operator import le
from typing import Any

from airflow_provider_talon_cdp.changes.change import Chunk
from airflow_provider_talon_cdp.exceptions import LedgerError
from airflow_provider_talon_cdp.ledger.letters import letters_name
from airflow_provider_talon_cdp.ledger.storage import Folder, names_in, read_json, remove, write_json

log = logging.getLogger(__name__)

_PROGRESS = "progress"
_DIGEST = 16
# Older files are deleted: no retry is that late.
_SECONDS_KEPT = 7 * 86_400.0


class Progress:
    """The progress of one try of a task. Thread-safe.

    Args:
        owner: The task instance; see ``Lock``.
        inputs: What the rows depend on, apart from the data; compared by its ``repr``.
        is_retry: Whether a try before this one failed since the task was cleared or its run was made.
        last: Number of the last try that Airflow would make. Clearing a task changes it.
        audiences: The audiences of the rows. Those of earlier tries are added.

    Attributes:
        after: The profile ID up to which an earlier try has sent everything; empty for none.
    """

    def __init__(self, owner: str, inputs: object, *, is_retry: bool, last: int, audiences: set[Any]) -> None:
        self._name = f"{_digest(owner)}.json"
        self._of = {"inputs": _digest(repr(inputs)), "last": last}
        self._is_retry = is_retry
        self._audiences = audiences
        self._lock = threading.Lock()
        self._path: Folder | None = None
        self.after = ""
        # By chunk, the ID before which no row is left when it was sent.
        self._ends: list[str] = []
        self._first = self._last = ""
        self._is_one_audience = True
        self._landed: set[int] = set()
        self._next = 0
        self._limit: float = float("inf")
        self._is_written = True

    def open(self, ledger: Folder, now: float) -> None:
        """Read the progress of an earlier try, and delete that of tasks that were not retried.

        Args:
            ledger: The folder of the task's dead letters.
            now: Seconds since the epoch.
        """
        folder, oldest = ledger / _PROGRESS, letters_name(now - _SECONDS_KEPT, "")
        with self._logging_errors():
            names = names_in(folder)
            mine = [name for name in names if name.endswith(f"-{self._name}") and name >= oldest]
            self._path = folder / (mine[-1] if mine else letters_name(now, self._name))
            for name in names:
                # Not a file that another task is writing, whose name begins with a point.
                if name[0] != "." and (name < oldest or (name in mine and not self._is_retry)):
                    remove(folder / name)
            content = (read_json(self._path) or {}) if mine and self._is_retry else {}
            if self._of.items() <= content.items():
                self.after = content["after"]
                self._audiences.update(content["audiences"])

    def continues(self, profile_ids: Iterable[Any]) -> bool:
        """Whether the first rows have the last one that an earlier try sent. If not, all rows must be read.

        If the database spells IDs in another way than Python, the row is missing, and others would be, too.
        """
        if not self.after:
            return True
        if self.after in map(str, profile_ids):
            log.info("An earlier try sent the first rows. This one continues where it ended.")
            return True
        log.info("The last row that an earlier try sent is not found, so all rows are sent.")
        self.after = ""
        return False

    def read(self, rows: Chunk) -> None:
        """Note the next rows, at most as many as a chunk has changes."""
        if self._limit >= 0 and not all(map(le, chain([self._last], rows.ids), rows.ids)):
            self.cancel()
        self._first, self._last = rows.ids[0], rows.ids[-1]
        self._is_one_audience &= isinstance(rows.keys, str)

    def expect(self, chunk: Chunk) -> None:
        """Note the next chunk, which ends among the rows that were read last. Chunks are numbered from 0."""
        # The rows of several audiences are sent by audience.
        self._ends.append(chunk.ids[-1] if self._is_one_audience else self._first)

    def hold(self, number: float | None = None) -> None:
        """Do not go beyond the chunks before this number, or before the next chunk."""
        with self._lock:
            self._limit = min(self._limit, len(self._ends) if number is None else number)

    def cancel(self) -> None:
        """Keep no progress, as the rows are not in the order of bytes."""
        self.after = ""
        self.hold(-1)
        self.delete()

    def landed(self, number: int) -> None:
        """Note that Talon.One has acknowledged a chunk."""
        self._landed.add(number)
        while self._next in self._landed and self._next < self._limit:
            self._landed.remove(self._next)
            self._next += 1
            self._is_written = False

    def flush(self) -> None:
        """Write the progress, if there is more."""
        with self._lock, self._logging_errors():
            if self._is_written or self._path is None or self._limit < 0:
                return
            content = {
                "after": self._ends[self._next - 1],
                # The reading thread may add to them meanwhile.
                "audiences": sorted(map(str, tuple(self._audiences))),
            }
            write_json(self._path, self._of | content)
            self._is_written = True

    def delete(self) -> None:
        """Delete the file: there is no progress any more, or the task has sent everything."""
        with self._lock, self._logging_errors():
            if self._path is not None:
                remove(self._path)

    @contextmanager
    def _logging_errors(self) -> Iterator[None]:
        """Log an error of the storage: without its progress, a retry only sends more."""
        try:
            yield
        except LedgerError as error:
            self._limit = -1
            log.info("A retry will begin at the first row.\n%s", error)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode(errors="backslashreplace")).hexdigest()[:_DIGEST]
