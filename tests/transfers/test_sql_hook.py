"""Which database an Airflow connection leads to."""

from __future__ import annotations

import json
from contextlib import closing
from pathlib import Path

import pytest

from airflow_provider_talon_cdp.exceptions import InvalidInputError
from airflow_provider_talon_cdp.transfers._databases import DATABASES
from airflow_provider_talon_cdp.transfers._rows import sql_hook, stream_rows

DOCS = Path(__file__).parents[2] / "docs" / "warehouses.md"


@pytest.fixture
def connection(monkeypatch):
    def connection(**fields):
        monkeypatch.setenv("AIRFLOW_CONN_WAREHOUSE", json.dumps(fields))

    return connection


def test_an_aws_connection_needs_to_be_told_which_database(connection):
    connection(conn_type="aws")
    says = r"(?s)type 'aws'.*hook_params=\{'sql_hook': 'AthenaSQLHook'\} or .*'RedshiftSQLHook'"
    for given in ({}, None, {"sql_hook": "Athena"}):
        with pytest.raises(InvalidInputError, match=says):
            sql_hook("warehouse", given)


@pytest.mark.parametrize("conn_type", ["generic", "", "no_such_database"])
def test_a_connection_type_without_a_hook_is_said_with_what_to_do(connection, conn_type):
    connection(conn_type=conn_type)
    with pytest.raises(
        InvalidInputError, match="(?s)Connection 'warehouse' is of the type.*Set the type of its"
    ):
        sql_hook("warehouse")


def test_druid_is_refused_as_its_client_does_not_notice_a_response_that_is_cut_off(connection):
    connection(conn_type="druid", host="127.0.0.1")
    with pytest.raises(InvalidInputError, match="(?s)is of the type 'druid'.*rows could be missing"):
        sql_hook("warehouse")


def test_hook_params_reach_the_hook(connection, tmp_path):
    connection(conn_type="sqlite", host=str(tmp_path / "a.db"))
    assert sql_hook("warehouse", {"log_sql": False}).hook().log_sql is False
    with pytest.raises(TypeError):
        sql_hook("warehouse", {"log_sql": False, "sqlite_conn_id": "other"})


def test_each_reading_has_a_hook_of_its_own(connection, tmp_path):
    connection(conn_type="sqlite", host=str(tmp_path / "a.db"))
    source = sql_hook("warehouse")
    assert source.hook() is not source.hook()
    for _ in range(2):
        with closing(stream_rows(source, "SELECT 'a' AS id", ["id"], order_by=1)) as blocks:
            assert list(blocks) == [[("a",)]]


def test_what_a_database_cannot_sort_is_tried_once_and_said_once(connection, tmp_path, monkeypatch, caplog):
    connection(conn_type="sqlite", host=str(tmp_path / "a.db"))
    source = sql_hook("warehouse")
    monkeypatch.setitem(source.database.__dict__, "sort_key", lambda *_: "no_such_function('secret')")
    for _ in range(2):
        with closing(
            stream_rows(source, "SELECT 'b' AS id UNION ALL SELECT 'a'", ["id"], order_by=1)
        ) as blocks:
            assert list(blocks) == [[("b",), ("a",)]]
    assert caplog.text.count("did not sort the query by bytes (OperationalError)") == 1
    assert "secret" not in caplog.text
    assert not source.sorts


def test_each_connection_type_that_is_known_stands_in_the_docs():
    text = DOCS.read_text()
    known = {conn_type for each in DATABASES for conn_type in each.connection_types} - {"mariadb"}
    assert {each for each in known if f"`{each}`" not in text} == set()
