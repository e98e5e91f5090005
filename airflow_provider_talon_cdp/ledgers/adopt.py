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
"""Header of the column of profile IDs, as the Campaign Manager's export has it."""


def adopt_csv(ledger: FilesLedger, owner: str, file: Any, audience_id: str) -> int:
    """Record the members in a CSV file as acknowledged.

    Args:
        ledger: The audience's ledger.
        owner: Who does this.
        file: A ``pathlib.Path`` or a ``UPath``-like object; CSV with commas and the header ``COLUMN``.
        audience_id: ID of the audience in the CDP.

    Returns:
        How many were adopted.

    Raises:
        InvalidInputError: The file cannot be read, has no such column or no members, or holds an ID that Talon.One would
            not take.
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
        found = False
        for number, row in enumerate(rows, start=2):
            if not row:
                continue
            record = read_change(
                row[position] if position < len(row) else None, audience_id, "add", "external"
            )
            if isinstance(record, Rejection):
                raise InvalidInputError(f"{file}, row {number}: {record.reason}. Nothing was adopted.")
            found = True
            yield record
        if not found:
            raise InvalidInputError(f"{file} has no members, so nothing was adopted.")


def _rows(text: io.TextIOWrapper, file: Any) -> Iterator[list[str]]:
    try:
        yield from csv.reader(text)
    except (UnicodeDecodeError, csv.Error) as error:
        raise InvalidInputError(f"{file} is no CSV file in UTF-8: {error}. Nothing was adopted.") from error


def _position(header: list[str], file: Any) -> int:
    names = [name.strip().lower() for name in header]
    if COLUMN not in names:
        raise InvalidInputError(
            f"{file} has no column {COLUMN!r} in its first line. Nothing was adopted. Separate the columns by commas, and name "
            "that of profile IDs so."
        )
    return names.index(COLUMN)
