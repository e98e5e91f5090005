"""Databricks' driver at the boundary of its connection and cursor, over DuckDB: its SQL in, Arrow out."""

from __future__ import annotations

import re

import duckdb
import sqlglot

# What the driver calls the types that DuckDB calls otherwise.
_TYPES = {"json": "variant", "varchar": "string"}


class Connection:
    """What ``databricks.sql.connect`` returns; once closed it is of no use, as the driver's own.

    Attributes:
        file: The file of the tables, for all connections.
    """

    file = ":memory:"

    def __init__(self, *_, **__):
        self._database = duckdb.connect(self.file)
        self._database.execute("SET TimeZone = 'UTC'; SET memory_limit = '64MB'; SET threads = 1")
        self.open = True

    def cursor(self):
        if not self.open:
            raise RuntimeError("Cannot create cursor from closed connection")
        return Cursor(self._database.cursor())

    def close(self):
        self.open = False
        self._database.close()


class Cursor:
    """A cursor of it.

    Attributes:
        rows: How many rows all cursors have given so far.
    """

    rows = 0

    def __init__(self, cursor):
        self._cursor = cursor
        self.description = None

    def execute(self, operation, parameters=None):
        for name, value in (parameters or {}).items():
            operation = re.sub(f":{name}\\b", f"'{value}'", operation)
        translated = sqlglot.transpile(operation, read="databricks", write="duckdb")[0]
        result = self._cursor.sql(translated)
        kinds = [str(kind).lower() for kind in result.types]
        self.description = [
            (name, _TYPES.get(kind, kind)) for name, kind in zip(result.columns, kinds, strict=True)
        ]
        self._schema = result.limit(0).to_arrow_table().schema
        self._reader = result.to_arrow_reader(1000)
        return self

    def fetchmany_arrow(self, size):
        import pyarrow  # noqa: PLC0415 - the driver brings it

        batches, count = [], 0
        while count < size and (batch := next(self._reader, None)) is not None:
            batches.append(batch)
            count += batch.num_rows
        Cursor.rows += count
        return pyarrow.Table.from_batches(batches, self._schema)

    def close(self):
        self._cursor.close()
