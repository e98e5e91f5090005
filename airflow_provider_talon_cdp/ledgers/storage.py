"""Files under a state URI: written whole or not at all, and checked when they are read."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, TypeAlias
from uuid import uuid4

from airflow_provider_talon_cdp.exceptions import LedgerError

Folder: TypeAlias = Any
"""A ``pathlib.Path``, or a ``UPath``-like object such as Airflow's ``ObjectStoragePath``."""

_LOCAL = ("", "file", "local")


def as_folder(path: Folder) -> Folder:
    """Use the local file system directly, where renaming a file is atomic."""
    return Path(path.path) if getattr(path, "protocol", None) in _LOCAL else path


def is_local(path: Folder) -> bool:
    """Whether it is on a local disk."""
    # Before universal-pathlib 0.3 a path in an object store is a pathlib.Path too.
    return isinstance(path, Path) and not hasattr(path, "fs")


def write_bytes(path: Folder, data: bytes) -> None:
    """Write a file; readers see the old one or the new one, whole."""
    with replacing(path) as file, told("write", path):
        file.write(data)


def write_json(path: Folder, content: Any) -> None:
    """Write JSON and its checksum."""
    envelope = {"content": content, "sha256": _digest(content)}
    write_bytes(path, json.dumps(envelope).encode() + b"\n")


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
    with suppress(FileNotFoundError), told("delete", path):
        path.unlink()


def names_in(folder: Folder) -> list[str]:
    """Names of the files and folders in a folder; none where it does not exist."""
    try:
        with told("list", folder):
            if is_local(folder):
                return sorted(each.name for each in folder.iterdir())
            # Clients of object stores cache listings, and another worker may have written since.
            folder.fs.invalidate_cache()
            found = folder.fs.ls(folder.path, detail=False)
    except FileNotFoundError:
        return []
    return sorted(each.rstrip("/").rpartition("/")[2] for each in found)


def remove_folder(folder: Folder, keep: Collection[str] = ()) -> None:
    """Delete the files in a folder but for some, and the folder where none is left."""
    names = names_in(folder)
    for name in names:
        if name not in keep:
            remove(folder / name)
    if is_local(folder) and not set(names) & set(keep):
        with suppress(FileNotFoundError), told("delete", folder):
            folder.rmdir()


def _read_bytes(path: Folder) -> bytes:
    with told("read", path):
        # One GET: between the two of open() and read() another run may have replaced the object.
        return path.read_bytes() if is_local(path) else bytes(path.fs.cat_file(path.path))


@contextmanager
def told(doing: str, path: Folder) -> Iterator[None]:
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
def replacing(path: Folder) -> Iterator[IO[bytes]]:
    """Open a file for writing; readers see the old one or the new one, whole, once the block ends without an error."""
    if not is_local(path):
        with told("write", path):
            # Airflow's own open() wraps the file, which could then not be abandoned.
            file = path.fs.open(path.path, "wb")
        try:
            yield file
        except BaseException:
            _abandon(file)
            raise
        # An object store takes an object whole, when it is closed.
        with told("write", path), _found("write", path):
            file.close()
        return
    draft = path.with_name(f".{path.name}.{uuid4().hex}")
    with told("write", path), _found("write", path):
        path.parent.mkdir(parents=True, exist_ok=True)
        # IDs are personal data: for the owner's eyes alone.
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with open(descriptor, "wb") as file:  # noqa: PTH123
            yield file
            with told("write", path):
                file.flush()
                os.fsync(file.fileno())
        with told("write", path):
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
