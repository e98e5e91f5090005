"""Files under a state URI: written whole or not at all, and checked when they are read."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, Self, TypeAlias
from uuid import uuid4

from airflow_provider_talon_cdp.exceptions import LedgerError

Folder: TypeAlias = Any
"""A ``pathlib.Path``, or a ``UPath``-like object such as Airflow's ``ObjectStoragePath``."""

_LOCAL = ("", "file", "local")
_FASTEST = 1


def as_folder(path: Folder) -> Folder:
    """Use the local file system directly, where renaming a file is atomic."""
    return Path(path.path) if getattr(path, "protocol", None) in _LOCAL else path


def _is_local(path: Folder) -> bool:
    # Before universal-pathlib 0.3 a path in an object store is a pathlib.Path too.
    return isinstance(path, Path) and not hasattr(path, "fs")


def write_bytes(path: Folder, data: bytes) -> None:
    """Write a file; readers see the old one or the new one, whole."""
    with _replacing(path) as file, _told("write", path):
        file.write(data)


def write_json(path: Folder, content: Any) -> None:
    """Write JSON and its checksum."""
    envelope = {"content": content, "sha256": _digest(content)}
    write_bytes(path, json.dumps(envelope, indent=1).encode() + b"\n")


def read_json(path: Folder) -> Any:
    """Read what ``write_json`` wrote, or None when there is no such file.

    Raises:
        LedgerError: The file is damaged or cannot be read.
    """
    try:
        envelope = json.loads(_read_bytes(path))
        content = envelope["content"]
        intact = envelope["sha256"] == _digest(content)
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError) as error:
        raise damaged(path) from error
    if not intact:
        raise damaged(path)
    return content


class LineWriter:
    """Writes lines into a gzip file and hashes the file as it grows."""

    def __init__(self, path: Folder, file: IO[bytes]) -> None:
        self._path = path
        self._file = file
        self._hash = hashlib.sha256()
        # No time and no name in the header: equal lines make equal files.
        self._gzip = gzip.GzipFile(filename="", mode="wb", fileobj=self, compresslevel=_FASTEST, mtime=0)
        self.text = io.TextIOWrapper(io.BufferedWriter(self._gzip, 1 << 16), encoding="utf-8", newline="\n")

    def write(self, data: bytes) -> int:
        """Take compressed bytes from the gzip file."""
        self._hash.update(data)
        with _told("write", self._path):
            return self._file.write(data)

    def flush(self) -> None:
        """Pass on the gzip file's flush."""
        self._file.flush()

    @property
    def sha256(self) -> str:
        """Of the file, once it is closed."""
        return self._hash.hexdigest()


@contextmanager
def writing_lines(path: Folder) -> Iterator[LineWriter]:
    """Open a new gzip file for lines; it appears when the block ends without an error."""
    with _replacing(path) as file:
        writer = LineWriter(path, file)
        with writer.text:
            yield writer


def read_lines(path: Folder, sha256: str) -> Iterator[str]:
    """Yield the lines of a gzip file, and raise at the end of one that is not as it was written.

    Raises:
        LedgerError: The file is gone, cut short or damaged. Act on no line before the last one was read.
    """
    hashing = _HashingReader(path)
    try:
        with hashing, gzip.GzipFile(fileobj=hashing, mode="rb") as packed:  # type: ignore[call-overload]
            yield from io.TextIOWrapper(packed, encoding="utf-8", newline="\n")
            while hashing.read(1 << 16):
                pass
    except FileNotFoundError as error:
        raise gone(path) from error
    except (EOFError, gzip.BadGzipFile, ValueError, zlib.error) as error:
        raise damaged(path) from error
    if hashing.sha256 != sha256:
        raise damaged(path)


_ANEW = (
    "Restore it from a backup, or delete the ledger's folder to start anew: the next mirror then adds every member of "
    "the query and removes none."
)


def damaged(path: Folder) -> LedgerError:
    """Make the error of a file that is not as it was written."""
    return LedgerError(f"The ledger's file {path} is damaged. {_ANEW}")


def gone(path: Folder) -> LedgerError:
    """Make the error of a file that is not there."""
    return LedgerError(f"The ledger's file {path} is gone. {_ANEW}")


def remove(path: Folder) -> None:
    """Delete a file, if it is there."""
    with suppress(FileNotFoundError), _told("delete", path):
        path.unlink()


def _read_bytes(path: Folder) -> bytes:
    with _told("read", path):
        # One GET: between the two of open() and read() another run may have replaced the object.
        return path.read_bytes() if _is_local(path) else bytes(path.fs.cat_file(path.path))


@contextmanager
def _told(doing: str, path: Folder) -> Iterator[None]:
    """Turn whatever a file system or the client of an object store raises into one clear error."""
    try:
        yield
    except (FileNotFoundError, LedgerError):
        raise
    except Exception as error:  # each fsspec backend has errors of its own
        raise LedgerError(
            f"Cannot {doing} {path} ({error}). Check the state URI and the rights on it."
        ) from error


@contextmanager
def _replacing(path: Folder) -> Iterator[IO[bytes]]:
    if not _is_local(path):
        with _told("write", path):
            # Airflow's own open() wraps the file, which could then not be abandoned.
            file = path.fs.open(path.path, "wb")
        try:
            yield file
        except BaseException:
            _abandon(file)
            raise
        # An object store takes an object whole, when it is closed.
        with _told("write", path), _found("write", path):
            file.close()
        return
    draft = path.with_name(f".{path.name}.{uuid4().hex}")
    with _told("write", path), _found("write", path):
        path.parent.mkdir(parents=True, exist_ok=True)
        # IDs are personal data: for the owner's eyes alone.
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with open(descriptor, "wb") as file:  # noqa: PTH123
            yield file
            with _told("write", path):
                file.flush()
                os.fsync(file.fileno())
        with _told("write", path):
            draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)


@contextmanager
def _found(doing: str, path: Folder) -> Iterator[None]:
    """Where nothing may be missing, a missing file or bucket is an error like any other."""
    try:
        yield
    except FileNotFoundError as error:
        raise LedgerError(
            f"Cannot {doing} {path} ({error}). Check the state URI and the rights on it."
        ) from error


def _abandon(file: Any) -> None:
    """Leave an object unwritten: closing it would put half of it in place."""
    discard = getattr(file, "discard", None)
    if discard:
        discard()
    file.closed = True


def _digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


class _HashingReader:
    """Opens a file, hashes what is read, and tells of failures."""

    def __init__(self, path: Folder) -> None:
        self._path = path
        self._hash = hashlib.sha256()

    def __enter__(self) -> Self:
        with _told("read", self._path):
            if _is_local(self._path):
                self._file = self._path.open("rb")
            else:
                # Clients of object stores cache listings, and another worker may have written since.
                self._path.fs.invalidate_cache()
                self._file = self._path.fs.open(self._path.path, "rb")
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def read(self, size: int = -1) -> bytes:
        with _told("read", self._path):
            data: bytes = self._file.read(size)
        self._hash.update(data)
        return data

    @property
    def sha256(self) -> str:
        return self._hash.hexdigest()
