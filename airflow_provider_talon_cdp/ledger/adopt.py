"""Adopts an audience that was filled by other means: its exported members become a new ledger."""

from __future__ import annotations

import csv
import io
import logging
from collections.abc import Iterator
from itertools import islice
from typing import Any

from airflow_provider_talon_cdp.changes.change import Chunk, Rejection, read_profile_id
from airflow_provider_talon_cdp.changes.suspicious import SuspiciousIds
from airflow_provider_talon_cdp.contract import SuspiciousIdsRule
from airflow_provider_talon_cdp.exceptions import InvalidInputError, LedgerUnavailableError

log = logging.getLogger(__name__)

COLUMN = "profileintegrationid"
"""Header of the column of profile IDs, as the Campaign Manager's export has it."""

_ROWS = 1000
_PERSISTENT = (FileNotFoundError, IsADirectoryError, NotADirectoryError, PermissionError)


def members_of_csv(file: Any, audience_id: str, suspicious_ids: SuspiciousIdsRule) -> Iterator[Chunk]:
    """Yield the members in a CSV file, for ``Ledger.adopt``.

    Args:
        file: A ``pathlib.Path`` or a ``UPath``-like object; CSV with commas and the header ``COLUMN``.
        audience_id: ID of the audience in the CDP.
        suspicious_ids: What to do at the end of the file if IDs look wrong.

    Raises:
        InvalidInputError: The file cannot be read, has no such column or no members, or has an invalid ID, or
            IDs look wrong and ``suspicious_ids`` is ``fail``.
        LedgerUnavailableError: The file cannot be read at present.
    """
    suspicious = SuspiciousIds()
    try:
        opened = file.open("rb")
    except OSError as error:
        # Other errors may pass, such as the request of an object store to slow down.
        kind = InvalidInputError if isinstance(error, _PERSISTENT) else LedgerUnavailableError
        raise kind(f"The file of members cannot be read: {error}.\nFile: {file}") from error
    # utf-8-sig, as spreadsheets write a BOM.
    with opened, io.TextIOWrapper(opened, encoding="utf-8-sig", newline="") as text:
        rows = _rows(text, file)
        position = _position(next(rows, []), file)
        found = False
        numbered = ((number, row) for number, row in enumerate(rows, start=2) if row)
        while some := list(islice(numbered, _ROWS)):
            found = True
            ids: list[str] = []
            for number, row in some:
                read = read_profile_id(row[position] if position < len(row) else None)
                if isinstance(read, Rejection):
                    raise InvalidInputError(
                        f"Row {number} of the members: {read.reason}. Nothing was adopted.\nFile: {file}"
                    )
                ids.append(read)
            suspicious.add(ids)
            yield Chunk(ids, audience_id)
        if not found:
            raise InvalidInputError(f"The file has no members, so nothing was adopted.\nFile: {file}")
    texts = "\n".join(suspicious.texts)
    if texts and suspicious_ids == "fail":
        raise InvalidInputError(
            f"{texts}\nNothing was adopted. Correct the file, or pass suspicious_ids='warn'.\nFile: {file}"
        )
    if texts and suspicious_ids == "warn":
        log.warning(
            "%s\nThey are adopted unchanged. A member that has another ID in Talon.One is never removed.\n"
            "File: %s",
            texts,
            file,
        )


def _rows(text: io.TextIOWrapper, file: Any) -> Iterator[list[str]]:
    try:
        # strict=True, as an unclosed quote would otherwise hide all rows that follow.
        yield from csv.reader(text, strict=True)
    except (UnicodeDecodeError, csv.Error) as error:
        raise InvalidInputError(
            f"The file of members is not a CSV file in UTF-8: {error}. Nothing was adopted.\nFile: {file}"
        ) from error


def _position(header: list[str], file: Any) -> int:
    names = [name.strip().lower() for name in header]
    if names.count(COLUMN) != 1:
        has = "has no column" if COLUMN not in names else "has more than one column"
        raise InvalidInputError(
            f"The first line of the file {has} {COLUMN!r}. Nothing was adopted.\n"
            f"Separate the columns by commas, and give the column of profile IDs this name.\nFile: {file}"
        )
    return names.index(COLUMN)
