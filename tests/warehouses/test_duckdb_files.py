"""DuckDB as the reader of Parquet and CSV files, which are in no database."""

from __future__ import annotations

import json
import logging
from contextlib import closing
from decimal import Decimal

import pytest

from airflow_provider_talon_cdp.transfers._rows import sql_hook, stream_rows
from airflow_provider_talon_cdp.transfers.sql_to_audience import SqlToTalonAudienceOperator
from airflow_provider_talon_cdp.transfers.sql_to_profiles import SqlToTalonProfilesOperator
from tests.warehouses.conftest import CONNECTION, IDS, spelt
from tests.warehouses.test_warehouses import rows_of

pytestmark = pytest.mark.xdist_group("duckdb")

ROWS = 200_000
KINDS = ["parquet", "csv"]


@pytest.fixture
def write(duckdb, tmp_path, monkeypatch):
    """Write a query's rows to a file; what is returned reads it, by a connection to no database."""
    import duckdb as engine  # noqa: PLC0415 - it may not be installed

    fields = {"conn_type": "duckdb", "extra": duckdb.connection["extra"]}
    monkeypatch.setenv(CONNECTION, json.dumps(fields))
    options = {"parquet": ", ROW_GROUP_SIZE 10000", "csv": ", HEADER"}

    def write(kind, sql, columns="*", name="file", **how):
        with closing(engine.connect()) as database:
            path = tmp_path / f"{name}.{kind}"
            database.execute(f"COPY ({sql}) TO '{path}' (FORMAT {kind}{options[kind]})")
        arguments = "".join(f", {option} = {value}" for option, value in how.items())
        return f"SELECT {columns} FROM read_{kind}('{tmp_path}/*.{kind}'{arguments})"

    return write


@pytest.mark.parametrize("kind", KINDS)
def test_ids_of_files_come_sorted_by_their_bytes(write, duckdb, kind, caplog):
    half = len(IDS) // 2
    write(kind, duckdb.of_ids(IDS[:half]), name="first")
    sql = write(kind, duckdb.of_ids([*IDS[half:], "007"]), "profile_id", name="second")
    found = rows_of(sql_hook("warehouse"), sql, order_by=1)
    assert [row[0] for row in found] == sorted([*IDS, "007"], key=str.encode)
    assert "did not sort" not in caplog.text


@pytest.mark.parametrize("order_by", [0, 1])
@pytest.mark.parametrize("kind", KINDS)
def test_an_early_end_does_not_read_the_rest_of_a_file(write, duckdb, kind, order_by):
    sql = write(kind, duckdb.many.format(ROWS), "profile_id")
    taken = duckdb.count()
    with closing(stream_rows(sql_hook("warehouse"), sql, ["profile_id"], order_by=order_by)) as blocks:
        first = len(next(blocks))
    assert 100 < first <= taken() < 10_000


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_is_mirrored(write, duckdb, run, talon, kind, caplog):
    caplog.set_level(logging.INFO)
    talon.create_audience("vip", "VIP")

    def mirror():
        return run(
            SqlToTalonAudienceOperator(
                task_id="t", sql=sql, sql_conn_id="warehouse", mode="mirror", audience_id="vip"
            )
        )

    sql = write(kind, duckdb.many.format(6_000))
    assert mirror()["sent"] == 6_000
    assert talon.members("vip") == {f"customer-{each:019}" for each in range(6_000)}
    write(kind, duckdb.many.format(5_999))
    summary = mirror()
    assert (summary["unchanged"], summary["added"], summary["removed"]) == (5_999, 0, 1)
    assert talon.members("vip") == {f"customer-{each:019}" for each in range(5_999)}
    assert "sorted on this worker" not in caplog.text


# SQL of a value, its type in a CSV file if DuckDB does not guess it, and what Talon.One has.
VALUES = {
    "exact": ("19.990::DECIMAL(12, 4)", "DECIMAL(12, 4)", Decimal("19.99")),
    "long": (
        "1234567890123456789.12345::DECIMAL(38, 9)",
        "DECIMAL(38, 9)",
        Decimal("1234567890123456789.12345"),
    ),
    "float": ("1.5::DOUBLE", None, Decimal("1.5")),
    "whole": ("9223372036854775807::BIGINT", None, 9223372036854775807),
    "truth": ("true", None, True),
    "moment": ("TIMESTAMPTZ '2026-06-30 12:00:00.5+02'", None, "2026-06-30T10:00:00.500000Z"),
    "local": ("TIMESTAMP '2026-06-30 12:00:00'", None, "2026-06-30T10:00:00Z"),
    "born": ("DATE '2026-06-30'", None, "2026-06-29T22:00:00Z"),
    "name": ("'Zürich, \"😀\"'", None, 'Zürich, "😀"'),
    "tags": ("['a', 'b']", "VARCHAR[]", ["a", "b"]),
    "place": (
        "{'lat': 52.5::DOUBLE, 'lng': 13}",
        "STRUCT(lat DOUBLE, lng INTEGER)",
        {"lat": Decimal("52.5"), "lng": 13},
    ),
}


@pytest.mark.parametrize("kind", KINDS)
def test_values_of_a_file_are_the_attributes_that_talon_one_has(write, run, talon, connect, kind):
    connect({"timezone": "Europe/Berlin"})
    columns = ", ".join(f"{sql} AS {name}" for name, (sql, *_) in VALUES.items())
    types = {name: told for name, (_, told, _) in VALUES.items() if told}
    how = {"types": types} if kind == "csv" else {}
    sql = write(kind, f"SELECT '007' AS profile_id, {columns}, NULL::VARCHAR AS nothing", **how)
    talon.set_attributes("007", {"nothing": "from before"})
    operator = SqlToTalonProfilesOperator(task_id="t", sql=sql, sql_conn_id="warehouse", nulls="delete")
    assert run(operator)["sent"] == 1
    assert spelt(talon.profile("007")["attributes"]) == spelt(
        {name: value for name, (*_, value) in VALUES.items()}
    )
