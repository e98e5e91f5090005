"""A source that several processes read, a range of profile IDs each, for one plan.

```
STATE_URI/<deployment host>/<name>/readings/NAME/
    bounds.json                where each range but the first begins
    00003-RUN.json.zst         the records of a range, or the changes that it makes, of one process
```

Each try writes a file of its own, and the plan reads the files that tries which ended have named: a try that
was killed, or believed dead, changes nothing. A reading is no part of what the ledger says. It is deleted
when its plan is committed, or when the next reading begins.
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
    gone,
    names_in,
    read_json,
    remove_folder,
    write_json,
)

_BOUNDS = "bounds.json"


class Reading:
    """The ranges of a source, and their records.

    Args:
        ledger: The ledger's folder.
        name: Which reading; empty for a new one.

    Raises:
        LedgerError: From any method, when files cannot be read or written, are damaged or missing.
    """

    def __init__(self, ledger: Folder, name: str = "") -> None:
        self.name = name or uuid4().hex
        self._readings = ledger / "readings"
        self._folder = self._readings / self.name

    def begin(self, bounds: Sequence[str]) -> None:
        """Keep where each range but the first begins: texts of profile IDs, which no XCom may have."""
        write_json(self._folder / _BOUNDS, list(bounds))

    def bounds(self, number: int) -> tuple[str | None, str | None]:
        """Return where a range begins and where the next one does; None for the outer ends."""
        with self._present():
            bounds = read_json(self._folder / _BOUNDS)
            if bounds is None:
                raise gone(self._folder / _BOUNDS)
        first, last = [None, *bounds], [*bounds, None]
        return first[number], last[number]

    def write(self, number: int, records: Iterable[Record], found: Callable[[], Mapping[str, Any]]) -> str:
        """Write records of a range, and return the file's name.

        Args:
            number: Of the range.
            records: In any order.
            found: Returns what else the plan is to know, after the records were read.
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
        """Read the records of ranges again, as they were read.

        Args:
            files: One for each range, in order.
            on_found: Called with what else was found in a range.
        """
        for name in files:
            with self._present():
                for line in read_text(self._folder / name):
                    content = json.loads(line)
                    if isinstance(content, dict):
                        on_found(content)
                    elif isinstance(content[0], str):
                        yield Rejection(*content)
                    else:
                        yield Chunk(*content)

    def remove(self) -> None:
        """Delete its files."""
        remove_folder(self._folder)

    def remove_others(self) -> None:
        """Delete the files of all other readings, for a process that keeps other runs out."""
        for name in names_in(self._readings):
            if name != self.name:
                remove_folder(self._readings / name)

    @contextmanager
    def _present(self) -> Iterator[None]:
        try:
            yield
        except DamagedError as error:
            raise LedgerError(
                "The rows that the tasks read are damaged or not there any more. Nothing was sent.\n"
                "They are deleted when their plan is committed, or when another run begins to read.\n"
                "Clear the task that divides the query (ranges), and all after it.\n"
                f"Folder: {self._folder}"
            ) from error
