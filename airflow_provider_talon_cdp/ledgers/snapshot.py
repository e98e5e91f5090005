"""The members file: sorted lines of profile ID and audience ID."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from typing import Any

from airflow_provider_talon_cdp.ledgers.storage import Folder, LineWriter, damaged, read_lines
from airflow_provider_talon_cdp.sync.diff import Member
from airflow_provider_talon_cdp.sync.lines import from_lines, to_lines

_BLOCK = 4096


def read_members(folder: Folder, file: Mapping[str, Any] | None) -> Iterator[Member]:
    """Yield the members of a file that the manifest names.

    Raises:
        LedgerError: It is gone or damaged.
    """
    if file is None:
        return
    path = folder / file["file"]
    lines = read_lines(path, file["sha256"])
    while block := list(islice(lines, _BLOCK)):
        try:
            found = from_lines(block)
        except ValueError as error:
            raise damaged(path) from error
        yield from found


def copied(members: Iterable[Member], file: LineWriter) -> Iterator[Member]:
    """Yield members, and write them on the way."""
    stream = iter(members)
    while block := list(islice(stream, _BLOCK)):
        file.text.write(to_lines(block))
        yield from block
