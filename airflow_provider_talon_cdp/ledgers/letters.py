"""Dead letters: records that were refused, as lines of JSON under the state URI."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from airflow_provider_talon_cdp.ledgers.storage import Folder, write_bytes


class DeadLetters:
    """The dead letters of one process.

    Args:
        folder: Where they go; it comes into being with the first of them.
        prefix: Of the files' names, where several processes write into one folder.
    """

    def __init__(self, folder: Folder, prefix: str = "") -> None:
        self._folder = folder
        self._prefix = prefix
        self._waiting: list[str] = []
        self._files = 0

    @property
    def place(self) -> str | None:
        """The folder, or None when there are none."""
        return str(self._folder) if self._files else None

    def add(self, record: Mapping[str, Any]) -> None:
        """Note a dead letter; ``flush`` makes it durable."""
        self._waiting.append(json.dumps(record, ensure_ascii=False) + "\n")

    def flush(self) -> None:
        """Write what was noted."""
        letters, self._waiting = self._waiting, []
        if letters:
            write_bytes(
                self._folder / f"{self._prefix}{self._files:05}.ndjson",
                "".join(letters).encode(errors="backslashreplace"),
            )
            self._files += 1
