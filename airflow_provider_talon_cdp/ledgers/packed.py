"""Gzip files of lines, packed and unpacked in threads of their own."""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import IO

from airflow_provider_talon_cdp.ledgers.storage import Folder, damaged, gone, is_local, replacing, told

_FASTEST = 1
# zlib's word for a gzip file.
_GZIP = 31
# Bytes that are packed or unpacked at once, which needs no interpreter lock: another thread goes on meanwhile.
_PIECE = 1 << 15


class LineWriter:
    """Writes lines into a gzip file, packing and hashing them in a thread of its own.

    Args:
        path: For error texts.
        file: Where the packed bytes go.
        thread: An executor with one thread.
    """

    def __init__(self, path: Folder, file: IO[bytes], thread: ThreadPoolExecutor) -> None:
        self._path = path
        self._file = file
        self._thread = thread
        self._hash = hashlib.sha256()
        # Without a time or a name in its header: equal lines make equal files.
        self._packer = zlib.compressobj(_FASTEST, wbits=_GZIP)
        self._waiting: list[str] = []
        self._size = 0
        self._packing: Future[None] | None = None

    def write(self, lines: str) -> None:
        """Take whole lines."""
        self._waiting.append(lines)
        self._size += len(lines)
        if self._size >= _PIECE:
            self._pack()

    def finish(self) -> None:
        """Write what is left."""
        if self._packing:
            self._packing.result()
        # Most files are small, and a thread costs more than packing one.
        self._put(lambda: self._packer.compress("".join(self._waiting).encode()) + self._packer.flush())

    @property
    def sha256(self) -> str:
        """Of the file, once it is finished."""
        return self._hash.hexdigest()

    def _pack(self) -> None:
        # One piece is packed while the next one is gathered.
        if self._packing:
            self._packing.result()
        data = "".join(self._waiting).encode()
        self._packing = self._thread.submit(self._put, lambda: self._packer.compress(data))
        self._waiting, self._size = [], 0

    def _put(self, packed: Callable[[], bytes]) -> None:
        data = packed()
        self._hash.update(data)
        with told("write", self._path):
            self._file.write(data)


@contextmanager
def writing_lines(path: Folder) -> Iterator[LineWriter]:
    """Open a new gzip file for lines; it appears when the block ends without an error."""
    with replacing(path) as file, ThreadPoolExecutor(1, thread_name_prefix="talon-cdp-writing") as thread:
        writer = LineWriter(path, file, thread)
        yield writer
        writer.finish()


def read_texts(path: Folder, sha256: str) -> Iterator[str]:
    """Yield a gzip file's lines, some thousand at a time; they are unpacked ahead in a thread of its own.

    Raises:
        LedgerError: The file is gone, cut short or damaged. Act on no line before the last one was read.
    """
    pieces = _unpacked(path, sha256)
    try:
        # Most files are small, and a thread costs more than unpacking one.
        first = next(pieces, "")
        if first:
            yield first
        yield from pieces if len(first) < _PIECE // 2 else _ahead(pieces)
    except FileNotFoundError as error:
        raise gone(path) from error
    except (EOFError, ValueError, zlib.error) as error:
        raise damaged(path) from error


def _ahead(pieces: Generator[str, None, None]) -> Iterator[str]:
    with ThreadPoolExecutor(1, thread_name_prefix="talon-cdp-reading") as thread:
        try:
            ahead = thread.submit(next, pieces, None)
            while (piece := ahead.result()) is not None:
                ahead = thread.submit(next, pieces, None)
                yield piece
        finally:
            thread.submit(pieces.close)


def _unpacked(path: Folder, sha256: str) -> Generator[str, None, None]:
    unpacker, hashing = zlib.decompressobj(wbits=_GZIP), hashlib.sha256()
    rest = b""
    for packed in _pieces(path):
        hashing.update(packed)
        left = packed
        while not unpacker.eof:
            data = unpacker.decompress(left, _PIECE)
            left = unpacker.unconsumed_tail
            lines, newline, rest = (rest + data).rpartition(b"\n")
            if newline:
                yield (lines + newline).decode()
            if not left and len(data) < _PIECE:
                break
    if rest or not unpacker.eof or hashing.hexdigest() != sha256:
        raise EOFError


def _pieces(path: Folder) -> Iterator[bytes]:
    with told("read", path):
        if is_local(path):
            file = path.open("rb")
        else:
            # Clients of object stores cache listings, and another worker may have written since.
            path.fs.invalidate_cache()
            file = path.fs.open(path.path, "rb")
    with file:
        while True:
            with told("read", path):
                piece = file.read(_PIECE)
            if not piece:
                return
            yield piece
