"""Files under a state URI: written completely or not at all, and checked when they are read."""

from __future__ import annotations

import errno
import hashlib
import json
import os
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, TypeAlias
from uuid import uuid4

from airflow_provider_talon_cdp.exceptions import LedgerError, LedgerUnavailableError

Folder: TypeAlias = Any
"""A ``pathlib.Path``, or a ``UPath``-like object such as Airflow's ``ObjectStoragePath``."""

_LOCAL = ("", "file", "local")
_FULL = (errno.ENOSPC, errno.EDQUOT)
# Errors that persist in another try of the task.
_PERSISTENT = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT, errno.ENOTDIR)
_PIECE = 1 << 16
_REPAIR = (
    "Repair the ledger from its kept versions; the command says what is lost:\n"
    "  python -m airflow_provider_talon_cdp ledger repair FOLDER_OF_THE_LEDGER\n"
    "Or restore a backup. It does not have what was acknowledged since it was made,\n"
    'so run the task once with send="all" after that.'
)


class DamagedError(LedgerError):
    """A file of a ledger is damaged or missing."""


def damaged(path: Folder) -> DamagedError:
    """Make the error of a damaged file."""
    return DamagedError(f"The ledger's file {path.name} is damaged.\n{_REPAIR}\nFile: {path}")


def missing(path: Folder) -> DamagedError:
    """Make the error of a missing file."""
    return DamagedError(f"The ledger's file {path.name} is missing.\n{_REPAIR}\nFile: {path}")


def as_folder(path: Folder) -> Folder:
    """Return a local path as a ``pathlib.Path``, which renames files atomically; others as they are."""
    return Path(path.path) if getattr(path, "protocol", None) in _LOCAL else path


def is_local(path: Folder) -> bool:
    """Whether a path is on a local disk."""
    # Before universal-pathlib 0.3 a path in an object store is a pathlib.Path too.
    return isinstance(path, Path) and not hasattr(path, "fs")


def write_bytes(path: Folder, data: bytes) -> None:
    """Write a file; readers see the complete old or the complete new one."""
    with replacing(path) as file, as_ledger_error("write", path):
        file.write(data)


def write_json(path: Folder, content: Any) -> None:
    """Write JSON and its checksum."""
    envelope = {"content": content, "sha256": _digest(content)}
    write_bytes(path, json.dumps(envelope).encode() + b"\n")


def read_json(path: Folder) -> Any:
    """Read what ``write_json`` wrote, or None if the file does not exist.

    Raises:
        DamagedError: The content does not match its checksum.
        LedgerError: The file cannot be read.
    """
    try:
        with as_ledger_error("read", path):
            # The size that S3's client asks for first only divides large objects. open() reads no more than
            # the size that it asks for, and another run may replace the object in between.
            data = path.read_bytes() if is_local(path) else bytes(path.fs.cat_file(path.path))
        envelope = json.loads(data)
        content = envelope["content"]
        intact = envelope["sha256"] == _digest(content)
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise damaged(path) from error
    if not intact:
        raise damaged(path)
    return content


def read_pieces(path: Folder) -> Iterator[bytes]:
    """Read a file in pieces of 64 KiB.

    Raises:
        FileNotFoundError: The file does not exist.
        LedgerError: The file cannot be read.
    """
    with as_ledger_error("read", path):
        if is_local(path):
            file = path.open("rb")
        else:
            # Clients of object stores cache listings, and another worker may have written meanwhile.
            path.fs.invalidate_cache()
            file = path.fs.open(path.path, "rb")
    with file:
        while True:
            with as_ledger_error("read", path):
                piece = file.read(_PIECE)
            if not piece:
                return
            yield piece


def remove(path: Folder) -> None:
    """Delete a file, if it exists."""
    with suppress(FileNotFoundError), as_ledger_error("delete", path):
        if is_local(path):
            path.unlink()
        else:
            # unlink() deletes a list of one, and S3's client does not raise errors of files in a list.
            path.fs.rm_file(path.path)


def names_in(folder: Folder) -> list[str]:
    """Names of the files and folders in a folder, sorted; none if it does not exist.

    An object store's console marks a folder with an object of the folder's name, which is left out.
    """
    try:
        with as_ledger_error("list", folder):
            if is_local(folder):
                return sorted(path.name for path in folder.iterdir())
            # Clients of object stores cache listings, and another worker may have written meanwhile.
            folder.fs.invalidate_cache()
            found = folder.fs.ls(folder.path, detail=False)
    except FileNotFoundError:
        return []
    own = folder.path.strip("/")
    return sorted(path.rstrip("/").rpartition("/")[2] for path in found if path.strip("/") != own)


def remove_folder(folder: Folder, keep: Collection[str] = ()) -> None:
    """Delete the files in a folder except those in ``keep``, and the folder if none is left."""
    names = names_in(folder)
    for name in names:
        if name not in keep:
            remove(folder / name)
    if is_local(folder) and not set(names) & set(keep):
        with suppress(FileNotFoundError), as_ledger_error("delete", folder):
            try:
                folder.rmdir()
            except OSError as error:
                # Another process has written a file meanwhile. What deleted the others will delete it later.
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                    raise


@contextmanager
def as_ledger_error(doing: str, path: Folder) -> Iterator[None]:
    """Raise an error of a file system or of an object store's client as a LedgerError."""
    try:
        yield
    except LedgerError:
        raise
    except Exception as error:  # every fsspec backend raises other errors
        # A missing file is an error only if it is to be written.
        if isinstance(error, FileNotFoundError) and doing != "write":
            raise
        number = error.errno if isinstance(error, OSError) else None
        cure = (
            "Its disk or its quota is full: free some space there, and run the task again."
            if number in _FULL
            else "Check the state URI and the permissions on it."
        )
        why = (isinstance(error, OSError) and error.strerror) or error
        folder = getattr(path, "parent", path)
        kind = LedgerError if number in _PERSISTENT else LedgerUnavailableError
        raise kind(
            f"Cannot {doing} {path.name}, a file of the ledger: {why}.\n{cure}\nFolder: {folder}"
        ) from error


@contextmanager
def replacing(path: Folder) -> Iterator[IO[bytes]]:
    """Open a file for writing; readers see the old one until the block ends without an error."""
    if not is_local(path):
        with as_ledger_error("write", path):
            # Airflow's own open() wraps the file, and _abandon needs the file itself.
            file = path.fs.open(path.path, "wb")
        try:
            yield file
        except BaseException:
            _abandon(file)
            raise
        # An object store gets the complete object when the file is closed.
        with as_ledger_error("write", path):
            file.close()
        return
    draft = path.with_name(f".{path.name}.{uuid4().hex}")
    with as_ledger_error("write", path):
        path.parent.mkdir(parents=True, exist_ok=True)
        # Only the owner may read the file, as IDs are personal data.
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        file = open(descriptor, "wb")  # noqa: PTH123, SIM115
        try:
            yield file
            with as_ledger_error("write", path):
                file.flush()
                os.fsync(file.fileno())
                file.close()
        finally:
            # After an error, close() writes the buffer again, and its error would replace the first one.
            with suppress(OSError):
                file.close()
        with as_ledger_error("write", path):
            draft.replace(path)
            _sync(path.parent)
    finally:
        with suppress(OSError):
            draft.unlink(missing_ok=True)


def _sync(folder: Path) -> None:
    """Make a new name in a folder durable, if the file system supports it."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _abandon(file: Any) -> None:
    """Discard an object that is not complete: closing its file would write it."""
    try:
        # It makes a request, whose error would replace the first one.
        with suppress(Exception):
            getattr(file, "discard", lambda: None)()
    finally:
        file.closed = True


def _digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
