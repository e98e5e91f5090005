"""The members file: sorted lines of profile ID and audience ID.

An audience ID is left out where it is that of the first member, which the manifest has.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import repeat

from airflow_provider_talon_cdp.ledgers.packed import File, LineWriter, read_texts
from airflow_provider_talon_cdp.ledgers.storage import Folder, damaged
from airflow_provider_talon_cdp.sync.blocks import Block, Members
from airflow_provider_talon_cdp.sync.lines import from_line, from_lines, to_lines


class Snapshot:
    """Writes members into a file.

    Args:
        file: An open file of lines.
    """

    def __init__(self, file: LineWriter) -> None:
        self._file = file
        self._lines = 0
        self._audience = ""

    def copied(self, members: Members) -> Members:
        """Write members while they are iterated over."""
        return Members(map(self._written, members.blocks))

    def as_file(self, name: str) -> File:
        """Say how the manifest names the file, once it is closed."""
        return File(file=name, sha256=self._file.sha256, lines=self._lines, audience=self._audience)

    def _written(self, block: Block) -> Block:
        audience = block.audience
        if not self._lines:
            self._audience = block.keys[0][1] if audience is None else audience
        columns: list[Iterable[str]] = [block.keys]
        if audience is None:
            columns = list(zip(*block.keys, strict=True))
        elif audience != self._audience:
            columns.append(repeat(audience))
        self._file.write(to_lines(columns, len(block.keys)))
        self._lines += len(block.keys)
        return block


def read_members(ledger: Folder, file: File | None) -> Members:
    """Read the members of a file that the manifest names.

    Raises:
        LedgerError: While they are iterated over: it is gone or damaged.
    """
    return Members(_blocks(ledger / file.file, file) if file else ())


def _blocks(path: Folder, file: File) -> Iterator[Block]:
    for text in read_texts(path, file.sha256):
        try:
            yield _block(text, file.audience)
        except ValueError as error:
            raise damaged(path) from error


def _block(text: str, audience: str) -> Block:
    columns = from_lines(text)
    if columns is None:
        rows = [[*from_line(line), audience][:2] for line in text[:-1].split("\n")]
        if "\t" in text:
            return Block([(profile_id, of) for profile_id, of in rows], None)
        columns = [[profile_id for profile_id, _ in rows]]
    if len(columns) == 1:
        return Block(columns[0], audience)
    profiles, audiences = columns
    return Block(list(zip(profiles, audiences, strict=True)), None)
