"""What does not fit in memory, in temporary files on this worker's disk, deleted when the process ends."""

from __future__ import annotations

import marshal
import os
import pickle
import sqlite3
import tempfile
import weakref
from bisect import bisect_right
from collections.abc import Generator, Iterable, Iterator
from contextlib import ExitStack, closing, contextmanager
from itertools import chain

from airflow_provider_talon_cdp.changes.change import Chunk, Profile, Record, Rejection
from airflow_provider_talon_cdp.exceptions import SpoolError

# Members that are sorted in memory at once.
_RUN = 200_000
# Members of a run that are in memory at once while runs are merged.
_BLOCK = 4096
# Runs that are merged at once. Each is an open file, and a process may often have no more than 1,024 of them.
_MOST_RUNS = 200
# KiB of profiles that SQLite keeps in memory.
_CACHE = 16 * 1024
# Rows of one insert.
_ROWS = 1000
# Sets of attribute names whose pickled form is kept in memory.
_MOST_NAMES = 1000

# Stands between an ID and its key. It sorts before all other text; a NUL in an ID is escaped to sort after.
_SEPARATOR = "\0\0"


class Spool:
    """Pieces of bytes on disk, in the order of writing: a queue, or a list that is read from the start."""

    def __init__(self) -> None:
        with _disk():
            # Unbuffered: data that a full disk refused must not prevent reading what was written.
            self._file = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115 - closed with this object
        # Not in __del__: the garbage collector may have taken the file before.
        self._closing = weakref.finalize(self, self._file.close)
        self._end = 0
        self._taken = 0

    def __len__(self) -> int:
        """Number of bytes that were not taken yet."""
        return self._end - self._taken

    def write(self, piece: bytes) -> None:
        """Append a piece.

        Raises:
            SpoolError: The disk is full or cannot be written.
        """
        left, end = memoryview(len(piece).to_bytes(4) + piece), self._end
        while left:
            with _disk():
                written = os.pwrite(self._file.fileno(), left, end)
            left, end = left[written:], end + written
        self._end = end

    def take(self) -> bytes:
        """Return the first piece that was not taken yet."""
        with _disk():
            length = int.from_bytes(os.pread(self._file.fileno(), 4, self._taken))
            piece = os.pread(self._file.fileno(), length, self._taken + 4)
        self._taken += 4 + len(piece)
        return piece

    def __iter__(self) -> Iterator[bytes]:
        """Yield all pieces from the start."""
        self._taken = 0
        while self._taken < self._end:
            yield self.take()

    def close(self) -> None:
        """Delete what was written."""
        self._closing()


def sorted_members(records: Iterable[Record], *, run: int = _RUN) -> Generator[Record, None, None]:
    """Yield members in the order of ``diff``, with ``run`` of them in memory and the rest on disk.

    Rejections are not sorted: they are yielded while the source is read.

    Raises:
        SpoolError: The disk is full or cannot be written.
    """
    with ExitStack() as files:
        runs: list[Spool] = []
        waiting: list[Chunk] = []
        count = 0
        for record in records:
            if isinstance(record, Rejection):
                yield record
                continue
            waiting.append(record)
            count += len(record)
            if count >= run:
                runs.append(_spooled(files, [_sorted(waiting)]))
                waiting, count = [], 0
                if len(runs) == _MOST_RUNS:
                    merged = _spooled(files, _merged(map(_blocks_of, runs)))
                    for merged_run in runs:
                        merged_run.close()
                    runs = [merged]
        last = [iter([_sorted(waiting)])] if count else []
        waiting = []
        yield from map(_chunk_of, _merged([*map(_blocks_of, runs), *last]))


_Block = tuple[list[str], str | None]
"""Sorted profile IDs and their one key; or sorted texts of a profile ID and a key together, and None."""


def _spooled(files: ExitStack, blocks: Iterable[_Block]) -> Spool:
    """Write sorted members as one run, in blocks that are read one at a time."""
    run = Spool()
    files.callback(run.close)
    for members, key in blocks:
        for start in range(0, len(members), _BLOCK):
            run.write(marshal.dumps((members[start : start + _BLOCK], key), 2))
    return run


def _blocks_of(run: Spool) -> Iterator[_Block]:
    # This process wrote it, and no other process can reach it.
    return map(marshal.loads, run)


def _sorted(chunks: list[Chunk]) -> _Block:
    keys = {chunk.keys if isinstance(chunk.keys, str) else None for chunk in chunks}
    key = keys.pop() if len(keys) == 1 else None
    if key is not None:
        members = list(chain.from_iterable(chunk.ids for chunk in chunks))
    else:
        members = [
            _escaped(profile_id) + _SEPARATOR + key_of
            for chunk in chunks
            for profile_id, key_of in chunk.members
        ]
    members.sort()
    return members, key


def _merged(runs: Iterable[Iterator[_Block]]) -> Iterator[_Block]:
    """Merge sorted runs: all members up to the smallest last member of a block are sorted together."""
    streams = list(runs)
    blocks = [next(stream, None) for stream in streams]
    while left := [block for block in blocks if block is not None]:
        keys = {key for _, key in left}
        key = keys.pop() if len(keys) == 1 else None
        if key is None:
            blocks = [None if block is None else _with_keys(block) for block in blocks]
        bound = min(block[0][-1] for block in blocks if block is not None)
        found: list[str] = []
        for at, block in enumerate(blocks):
            if block is None:
                continue
            members, its_key = block
            end = bisect_right(members, bound)
            found += members[:end]
            blocks[at] = (members[end:], its_key) if end < len(members) else next(streams[at], None)
        found.sort()
        yield found, key


def _with_keys(block: _Block) -> _Block:
    members, key = block
    return ([_escaped(text) + _SEPARATOR + key for text in members] if key is not None else members), None


def _chunk_of(block: _Block) -> Chunk:
    members, key = block
    if key is not None:
        return Chunk(members, key)
    ids, keys = zip(*(member.split(_SEPARATOR, 1) for member in members), strict=True)
    return Chunk([profile_id.replace("\0\1", "\0") for profile_id in ids], list(keys))


def _escaped(profile_id: str) -> str:
    return profile_id.replace("\0", "\0\1") if "\0" in profile_id else profile_id


def sorted_profiles(records: Iterable[Profile | Rejection]) -> Generator[Profile | Rejection, None, None]:
    """Yield profiles sorted by ID, from a temporary SQLite database.

    Rejections are not sorted: they are yielded while the source is read.

    Raises:
        SpoolError: The disk is full or cannot be written.
    """
    # An empty name makes a temporary database on disk, which SQLite deletes with the connection.
    with closing(sqlite3.connect("", isolation_level=None)) as database:
        with _disk():
            database.execute(f"PRAGMA cache_size = -{_CACHE}")
            database.execute("PRAGMA journal_mode = OFF")
            database.execute("CREATE TABLE profiles (id TEXT, body BLOB, more BLOB)")
            database.execute("BEGIN")
        rows: list[tuple[str, bytes, bytes]] = []
        # Nearly all rows of a source have the same attribute names, and neither order nor fault.
        pickled: dict[tuple[str, ...], bytes] = {}
        for record in records:
            if isinstance(record, Rejection):
                yield record
                continue
            profile_id, body, names, *more = record
            if more == [None, None] and names in pickled:
                kept = pickled[names]
            else:
                kept = pickle.dumps((names, *more))
                if more == [None, None] and len(pickled) < _MOST_NAMES:
                    pickled[names] = kept
            rows.append((profile_id, body, kept))
            if len(rows) == _ROWS:
                _insert(database, rows)
        _insert(database, rows)
        with _disk():
            for profile_id, body, kept in database.execute("SELECT * FROM profiles ORDER BY id"):
                # This process wrote it, and no other process can reach it.
                yield Profile(profile_id, body, *pickle.loads(kept))  # noqa: S301


def _insert(database: sqlite3.Connection, rows: list[tuple[str, bytes, bytes]]) -> None:
    with _disk():
        database.executemany("INSERT INTO profiles VALUES (?, ?, ?)", rows)
    rows.clear()


@contextmanager
def _disk() -> Iterator[None]:
    """Raise an error of the temporary disk as a SpoolError, which says what to do."""
    try:
        yield
    except (OSError, sqlite3.Error) as error:
        raise SpoolError(
            f"This worker's temporary disk cannot be used: {error}.\n"
            "Rows that do not fit in memory are kept there, for example to sort them. No file "
            "is left behind.\n"
            "Free disk space, set TMPDIR to a folder on a larger disk, or have the query return its "
            "rows in the order of the ID's bytes.\n"
            f"Folder: {tempfile.gettempdir()}"
        ) from error
