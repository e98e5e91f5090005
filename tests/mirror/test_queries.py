"""The user's SQL stands in a subquery, and still means what it says."""

from __future__ import annotations

import logging

import pytest

from airflow_provider_talon_cdp.exceptions import InvalidInputError

STATEMENTS = {
    "plain": "SELECT profile_id FROM customers",
    "semicolon": "SELECT profile_id FROM customers;",
    "semicolons and blank lines": "\n\n  SELECT profile_id FROM customers ;  \n;\n",
    "trailing comment": "SELECT profile_id FROM customers -- all of them",
    "semicolon and trailing comment": "SELECT profile_id FROM customers; -- all of them",
    "semicolon in a trailing comment": "SELECT profile_id FROM customers -- all; of them;",
    "block comment after the semicolon": "SELECT profile_id FROM customers; /* all */",
    "leading comment": "-- customers\n/* ; */ SELECT profile_id FROM customers",
    "common table expression": "WITH everyone AS (SELECT profile_id FROM customers) SELECT * FROM everyone",
    "recursive": "WITH RECURSIVE r(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM r WHERE n < 3) "
    "SELECT profile_id FROM customers, r",
    "inner order and limit": "SELECT profile_id FROM customers ORDER BY profile_id DESC LIMIT 100",
    "union": "SELECT profile_id FROM customers UNION ALL SELECT 'B' AS profile_id",
    "more columns": "SELECT 1 AS x, profile_id, 'b' AS y FROM customers",
    "percent": "SELECT profile_id FROM customers WHERE profile_id NOT LIKE '%nobody%' AND 7 % 2 = 1",
    "semicolon in a string": "SELECT profile_id FROM customers WHERE profile_id <> ';'",
    "talon's own alias": "SELECT profile_id FROM customers AS talon_cdp_source",
    "upper case": 'SELECT profile_id AS "PROFILE_ID" FROM customers',
    "group": "SELECT profile_id FROM customers GROUP BY profile_id HAVING count(*) >= 1",
}
IDS = ["a", "B", "c", "10", "9"]


@pytest.mark.parametrize("form", STATEMENTS)
def test_forms_of_a_query(warehouse, vip, mirror, agrees, caplog, form):
    caplog.set_level(logging.INFO)
    warehouse.fill(IDS)
    mirror(sql=STATEMENTS[form])
    agrees(IDS)
    assert "not sorted by bytes" not in caplog.text


@pytest.mark.parametrize("mode", ["add", "mirror"])
@pytest.mark.parametrize("form", ["semicolon and trailing comment", "block comment after the semicolon"])
def test_what_add_takes_mirror_takes_too(warehouse, vip, mirror, form, mode):
    warehouse.fill(IDS)
    mirror(
        sql=STATEMENTS[form], **({"mode": mode} if mode == "mirror" else {"mode": mode, "state_uri": None})
    )
    assert vip.members("vip") == set(IDS)


def test_a_limit_with_an_order_of_its_own_is_kept(warehouse, vip, mirror, agrees):
    warehouse.fill(range(100), column_type="integer")
    mirror(sql="SELECT profile_id FROM customers ORDER BY profile_id DESC LIMIT 3")
    agrees(["97", "98", "99"])


def test_parameters_in_the_style_of_the_driver(warehouse, vip, mirror, agrees):
    warehouse.fill(IDS)
    by_kind = {
        "sqlite": "<> ? AND profile_id NOT LIKE '%x'",
        "postgres": "<> %s AND profile_id NOT LIKE '%%x'",
    }
    mirror(
        sql=f"SELECT profile_id FROM customers WHERE profile_id {by_kind[warehouse.kind]}", parameters=("c",)
    )
    agrees([each for each in IDS if each != "c"])


def test_named_parameters(warehouse, vip, mirror, agrees):
    warehouse.fill(IDS)
    place = {"sqlite": ":left_out", "postgres": "%(left_out)s"}[warehouse.kind]
    mirror(sql=f"SELECT profile_id FROM customers WHERE profile_id <> {place}", parameters={"left_out": "c"})
    agrees([each for each in IDS if each != "c"])


@pytest.mark.parametrize("column", ["profile_id", "Profile_ID", "PROFILE_ID"])
def test_the_name_of_a_column_may_differ_in_case(warehouse, vip, mirror, agrees, column):
    warehouse.fill(IDS)
    mirror(profile_id_column=column)
    agrees(IDS)


@pytest.mark.parametrize("column", ["Customer ID", 'the "ID"', "Größe", "select", "id;", "a.b", "100%"])
def test_quoted_columns_of_any_name(warehouse, vip, mirror, agrees, column):
    quoted = '"' + column.replace('"', '""') + '"'
    warehouse.run(f"CREATE TABLE customers ({quoted} text)")
    warehouse.insert("customers", [(each,) for each in IDS])
    mirror(sql="SELECT * FROM customers", profile_id_column=column)
    agrees(IDS)


def test_a_column_with_a_percent_sign_beside_parameters(warehouse, vip, mirror, agrees):
    warehouse.fill(IDS)
    name, place = {"sqlite": ("id%", "?"), "postgres": ("id%%", "%s")}[warehouse.kind]
    sql = f'SELECT profile_id AS "{name}" FROM customers WHERE profile_id <> {place}'
    mirror(sql=sql, parameters=("c",), profile_id_column="id%")
    agrees([each for each in IDS if each != "c"])


def test_two_columns_that_differ_in_case_alone_are_told_apart(warehouse, vip, mirror, agrees):
    warehouse.fill(IDS)
    mirror(sql="""SELECT 'wrong' AS "ID", profile_id AS "id" FROM customers""", profile_id_column="id")
    agrees(IDS)


def test_a_missing_column_names_those_that_are_there(warehouse, vip, mirror, calls):
    warehouse.fill(IDS)
    with pytest.raises(InvalidInputError, match=r"(?s)no column 'customer'.*It has: profile_id"):
        mirror(profile_id_column="customer")
    assert calls() == 0


def test_a_column_that_is_there_twice_is_refused(warehouse, vip, mirror, calls):
    warehouse.fill(IDS)
    with pytest.raises(InvalidInputError, match="more than one column 'profile_id'"):
        mirror(sql="SELECT a.profile_id, b.profile_id FROM customers a, customers b")
    assert calls() == 0


def test_a_statement_that_the_database_refuses_sends_nothing(warehouse, vip, mirror, calls):
    with pytest.raises(Exception, match="no_such_table"):
        mirror(sql="SELECT profile_id FROM no_such_table")
    assert calls() == 0


@pytest.mark.slow
def test_a_server_that_ends_idle_transactions_ends_no_slow_add(postgres, vip, mirror, connect, monkeypatch):
    """The query is read ahead of the requests; read at their speed, its cursor would be idle for too long."""
    connect(vip, requests_per_second=20)
    postgres.run(
        "CREATE TABLE customers AS SELECT 'c' || n AS profile_id FROM generate_series(1, 100000) AS n",
        "ALTER ROLE postgres SET idle_in_transaction_session_timeout = 2000",
    )
    try:
        assert mirror(mode="add", in_flight=1)["sent"] == 100_000
        monkeypatch.setenv("AIRFLOW__TALON_CDP__READ_AHEAD", "0")
        with pytest.raises(Exception, match="(?i)idle-in-transaction|closed"):
            mirror(mode="add", in_flight=1)
    finally:
        postgres.run("ALTER ROLE postgres RESET idle_in_transaction_session_timeout")
