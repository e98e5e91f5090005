"""Take over an audience that was filled by other means: its exported members become a new ledger."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from typing import Any

from airflow_provider_talon_cdp.exceptions import InvalidInputError
from airflow_provider_talon_cdp.ledgers.files import FilesLedger
from airflow_provider_talon_cdp.sync.changes import Change, Rejection, read_change

COLUMN = "profileintegrationid"
"""Header of the Campaign Manager's export; a file with one column may have any header."""


def adopt_csv(ledger: FilesLedger, owner: str, file: Any, audience_id: str) -> int:
    """Record the members in a CSV file as acknowledged.

    Args:
        ledger: The audience's ledger.
        owner: Who does this.
        file: A ``pathlib.Path`` or a ``UPath``-like object.
        audience_id: ID of the audience in the CDP.

    Returns:
        How many were adopted.

    Raises:
        InvalidInputError: The file cannot be read, or holds an ID that Talon.One would not take.
        LedgerError: The ledger is not new.
    """
    return ledger.adopt(owner, _members(file, audience_id))


def _members(file: Any, audience_id: str) -> Iterator[Change]:
    try:
        opened = file.open("rb")
    except OSError as error:
        raise InvalidInputError(f"The members in {file} cannot be read: {error}.") from error
    # The BOM is what spreadsheets put in front.
    with opened, io.TextIOWrapper(opened, encoding="utf-8-sig", newline="") as text:
        rows = _rows(text, file)
        header = next(rows, [])
        position = _position(header, file)
        for number, row in enumerate(rows, start=2):
            if not row:
                continue
            record = read_change(
                row[position] if position < len(row) else None, audience_id, "add", "external"
            )
            if isinstance(record, Rejection):
                raise InvalidInputError(f"{file}, row {number}: {record.reason}. Nothing was adopted.")
            yield record


def _rows(text: io.TextIOWrapper, file: Any) -> Iterator[list[str]]:
    try:
        yield from csv.reader(text)
    except (UnicodeDecodeError, csv.Error) as error:
        raise InvalidInputError(f"{file} is no CSV file in UTF-8: {error}. Nothing was adopted.") from error


def _position(header: list[str], file: Any) -> int:
    if len(header) == 1:
        return 0
    names = [name.strip().lower() for name in header]
    if COLUMN not in names:
        raise InvalidInputError(
            f"{file} has no column {COLUMN!r}, but {', '.join(header) or 'nothing'}. Rename the column of profile IDs."
        )
    return names.index(COLUMN)
