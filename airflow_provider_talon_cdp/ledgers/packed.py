"""Gzip files of lines, some thousand lines at a time.

In one thread: a second one to pack and unpack was measured to cost more than it saves, because a SQLite cursor
lets go of the interpreter at each row, and then has to wait for it.
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO

from airflow_provider_talon_cdp.ledgers.storage import Folder, damaged, gone, is_local, replacing, told

_FASTEST = 1
# zlib's word for a gzip file.
_GZIP = 31
# Bytes of lines that are packed at once.
_PIECE = 1 << 14
# Packed bytes that are unpacked at once: few, so that memory stays small, whatever the size of the file.
_PACKED_PIECE = 480


@dataclass(frozen=True, kw_only=True, slots=True)
class File:
    """A file of lines.

    Args:
        file: Its path in the ledger's folder.
        sha256: Its checksum.
        lines: How many it has.
        audience: That of lines that have none.
    """

    file: str
    sha256: str
    lines: int
    audience: str


class LineWriter:
    """Writes lines into a gzip file, and hashes the file as it grows.

    Args:
        path: For error texts.
        file: Where the packed bytes go.
    """

    def __init__(self, path: Folder, file: IO[bytes]) -> None:
        self._path = path
        self._file = file
        self._hash = hashlib.sha256()
        # Without a time or a name in its header: equal lines make equal files.
        self._packer = zlib.compressobj(_FASTEST, wbits=_GZIP)
        self._waiting: list[str] = []
        self._size = 0

    def write(self, lines: str) -> None:
        """Take whole lines."""
        self._waiting.append(lines)
        self._size += len(lines)
        if self._size >= _PIECE:
            self._put(self._packed())

    def finish(self) -> None:
        """Write what is left."""
        self._put(self._packed() + self._packer.flush())

    @property
    def sha256(self) -> str:
        """Of the file, once it is finished."""
        return self._hash.hexdigest()

    def _packed(self) -> bytes:
        data = "".join(self._waiting).encode()
        self._waiting, self._size = [], 0
        return self._packer.compress(data)

    def _put(self, data: bytes) -> None:
        self._hash.update(data)
        with told("write", self._path):
            self._file.write(data)


@contextmanager
def writing_lines(path: Folder) -> Iterator[LineWriter]:
    """Open a new gzip file for lines; it appears when the block ends without an error."""
    with replacing(path) as file:
        writer = LineWriter(path, file)
        yield writer
        writer.finish()


def read_texts(path: Folder, sha256: str) -> Iterator[str]:
    """Yield a gzip file's lines, some thousand at a time.

    Raises:
        LedgerError: The file is gone, cut short or damaged. Act on no line before the last one was read.
    """
    unpacker, hashing = zlib.decompressobj(wbits=_GZIP), hashlib.sha256()
    rest = b""
    try:
        for packed in _pieces(path):
            hashing.update(packed)
            lines, newline, rest = (rest + unpacker.decompress(packed)).rpartition(b"\n")
            text = (lines + newline).decode()
            # What is made of the text lives longer, and would leave gaps between it in memory.
            del lines
            if text:
                yield text
            del text
    except FileNotFoundError as error:
        raise gone(path) from error
    except (ValueError, zlib.error) as error:
        raise damaged(path) from error
    if rest or not unpacker.eof or hashing.hexdigest() != sha256:
        raise damaged(path)


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
                piece = file.read(_PACKED_PIECE)
            if not piece:
                return
            yield piece
