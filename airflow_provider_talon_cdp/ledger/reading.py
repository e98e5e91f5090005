"""The ranges of a source that several processes read for one plan, one range of profile IDs each.

```
STATE_URI/<deployment host>/<name>/readings/NAME/
    bounds.json                the lower bound of all ranges but the first
    00003-ID.json.zst          the records of a range, or the changes that it makes, of one process
```

Each try of a task writes a file of its own, and the plan reads the files that the successful tries returned.
So a try that was killed, or was taken for dead, has no effect. A reading is not part of the ledger's state.
It is deleted when its plan is committed, or when the next reading begins.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any
from uuid import uuid4

from airflow_provider_talon_cdp.changes.change import Chunk, Record, Rejection
from airflow_provider_talon_cdp.exceptions import LedgerError
from airflow_provider_talon_cdp.ledger.format import read_text, writing_text
from airflow_provider_talon_cdp.ledger.storage import (
    DamagedError,
    Folder,
    missing,
    names_in,
    read_json,
    remove_folder,
    write_json,
)

_BOUNDS = "bounds.json"


class Reading:
    """The ranges of a source, and their records.

    Raises:
        LedgerError: From any method, if files cannot be read or written, are damaged or missing.
    """

    def __init__(self, ledger: Folder, name: str = "") -> None:
        self.name = name or uuid4().hex
        self._readings = ledger / "readings"
        self._folder = self._readings / self.name

    def begin(self, bounds: Sequence[str]) -> None:
        """Write the lower bounds of all ranges but the first: profile IDs, which no XCom may have."""
        write_json(self._folder / _BOUNDS, list(bounds))

    def bounds(self, number: int) -> tuple[str | None, str | None]:
        """Return the lower bounds of a range and of the next one; None at the outer ends."""
        with self._must_exist():
            bounds = read_json(self._folder / _BOUNDS)
            if bounds is None:
                raise missing(self._folder / _BOUNDS)
        bounds = [None, *bounds, None]
        return bounds[number], bounds[number + 1]

    def write(self, number: int, records: Iterable[Record], found: Callable[[], Mapping[str, Any]]) -> str:
        """Write the records of a range, and return the file's name.

        Args:
            number: Number of the range.
            records: The records, in any order.
            found: Called after the records were read; returns facts about the range for the plan.
        """
        name = f"{number:05}-{uuid4().hex}.json.zst"
        with writing_text(self._folder / name) as write:
            for record in records:
                if isinstance(record, Rejection):
                    write(json.dumps([*record]) + "\n")
                else:
                    write(json.dumps([record.ids, record.keys, record.verbs]) + "\n")
            write(json.dumps(found()) + "\n")
        return name

    def records(
        self, files: Iterable[str], on_found: Callable[[Mapping[str, Any]], object]
    ) -> Generator[Record, None, None]:
        """Read the records of ranges in the order of writing."""
        for name in files:
            with self._must_exist():
                for line in read_text(self._folder / name):
                    content = json.loads(line)
                    if isinstance(content, dict):
                        on_found(content)
                    elif isinstance(content[0], str):
                        yield Rejection(*content)
                    else:
                        yield Chunk(*content)

    def remove(self) -> None:
        """Delete the files of this reading."""
        remove_folder(self._folder)

    def remove_others(self, check: Callable[[], None]) -> None:
        """Delete the files of all other readings. Call this only with the ledger's lock.

        Args:
            check: Raises an error if another run has taken over, whose files this run must not delete.
        """
        found = names_in(self._readings)
        check()
        for name in found:
            if name != self.name:
                remove_folder(self._readings / name)

    @contextmanager
    def _must_exist(self) -> Iterator[None]:
        try:
            yield
        except DamagedError as error:
            raise LedgerError(
                "The rows that the tasks read are damaged or not there any more. Nothing was sent.\n"
                "They are deleted when their plan is committed, or when another run begins to read.\n"
                "Clear the task that divides the query (ranges), and all after it.\n"
                f"Folder: {self._folder}"
            ) from error
