"""Rows of a SQL query become members of audiences."""

from __future__ import annotations

import json
import re
from types import SimpleNamespace
from uuid import UUID

import pytest

from airflow_provider_talon_cdp.changes.spool import Spool
from airflow_provider_talon_cdp.exceptions import (
    InvalidInputError,
    NotFoundError,
    RejectedRecordsError,
)
from airflow_provider_talon_cdp.operators._base import DeadLettersLink
from airflow_provider_talon_cdp.operators.audience import CreateAudienceOperator
from airflow_provider_talon_cdp.transfers.sql_to_audience import SqlToTalonAudienceOperator
from airflow_provider_talon_cdp.transfers.sql_to_profiles import SqlToTalonProfilesOperator


def transfer(sql="SELECT profile_id FROM customers", **arguments):
    arguments = {"sql_conn_id": "warehouse", "mode": "add"} | arguments
    if "audience_column" not in arguments:
        arguments = {"audience_id": "vip"} | arguments
    return SqlToTalonAudienceOperator(task_id="t", sql=sql, **arguments)


@pytest.fixture
def customers(sqlite):
    def customers(*ids):
        sqlite("INSERT INTO customers (profile_id) VALUES (?)", [(each,) for each in ids])

    return customers


def test_rows_are_added(run, talon, vip, customers):
    customers("anna", "bert")
    result = run(transfer())
    assert talon.members("vip") == {"anna", "bert"}
    assert {name: result[name] for name in ("read", "sent", "duplicate", "rejected", "unsent")} == {
        "read": 2,
        "sent": 2,
        "duplicate": 0,
        "rejected": {},
        "unsent": 0,
    }


UNREADABLE = "SELECT 'anna' AS profile_id, timestamp 'infinity' AS audience_id"


def test_a_row_whose_audience_cannot_be_read_is_rejected(run, talon, postgres):
    result = run(transfer(UNREADABLE, audience_column="audience_id", max_rejected=1))
    (reason,) = result["rejected"]
    assert reason.startswith("audience ID holds a time that Python cannot represent")


def test_a_mirror_refuses_a_row_whose_audience_cannot_be_read(run, talon, postgres, tmp_path):
    """It would remove the member from that audience."""
    many = transfer(UNREADABLE, audience_column="audience_id", mode="mirror", state_uri=str(tmp_path))
    with pytest.raises(InvalidInputError, match=r"\(column 'audience_id'\) that holds a time that Python"):
        run(many)


def test_a_row_whose_profile_id_cannot_be_read_is_rejected(run, talon, vip, postgres):
    result = run(transfer("SELECT timestamp 'infinity' AS profile_id", max_rejected=1))
    (reason,) = result["rejected"]
    assert reason.startswith("profile ID holds a time that Python cannot represent")


def test_rows_are_removed(run, talon, vip, customers):
    customers("anna", "bert", "carl")
    run(transfer())
    run(transfer("SELECT profile_id FROM customers WHERE profile_id < 'b'", mode="remove"))
    assert talon.members("vip") == {"bert", "carl"}


def test_the_audience_may_be_given_by_its_internal_id(run, talon, vip, customers):
    customers("anna")
    run(transfer(audience_id=vip, audience_id_type="internal"))
    run(transfer("SELECT 'bert' profile_id", audience_id=str(vip), audience_id_type="internal"))
    assert talon.members("vip") == {"anna", "bert"}


@pytest.mark.parametrize("id_type", ["external", "internal"])
def test_a_column_may_hold_each_rows_audience(run, talon, vip, sqlite, id_type):
    new = run(CreateAudienceOperator(task_id="c", audience_id="new", audience_name="New"))["internal_id"]
    names = {"vip": "vip", "new": "new"} if id_type == "external" else {"vip": vip, "new": new}
    rows = [("anna", names["vip"]), ("anna", names["new"]), ("bert", names["new"])]
    sqlite("INSERT INTO customers VALUES (?, ?)", rows)
    result = run(transfer("SELECT * FROM customers", audience_column="audience_id", audience_id_type=id_type))
    assert talon.members("vip") == {"anna"}
    assert talon.members("new") == {"anna", "bert"}
    assert result["sent"] == 3


@pytest.fixture
def named(sqlite, run):
    """Mirror rows of a profile, an audience and the audience's name."""
    sqlite("CREATE TABLE named (profile_id, audience_id, audience_name)")

    def named(*rows):
        sqlite("INSERT INTO named VALUES (?, ?, ?)", rows)
        columns = {"audience_column": "audience_id", "audience_name_column": "audience_name"}
        return run(transfer("SELECT * FROM named", mode="mirror", **columns))

    return named


@pytest.mark.parametrize("first, second", [("Gold", "Golden"), ("Golden", "Gold")])
def test_two_names_for_one_audience_stop_a_mirror_before_anything_is_sent(talon, named, first, second):
    with pytest.raises(InvalidInputError, match="two names for the audience 'gold': 'Gold' and 'Golden'"):
        named(("anna", "vip", "VIP"), ("bert", "gold", first), ("carl", "gold", second))
    assert talon.requests() == []


def test_a_row_without_a_name_takes_the_one_of_other_rows(talon, named):
    named(("anna", "vip", None), ("bert", "vip", "VIP"), ("carl", "vip", None))
    assert talon.audiences()["vip"]["name"] == "VIP"
    assert talon.members("vip") == {"anna", "bert", "carl"}


def test_an_audience_without_any_name_is_named_in_the_error(talon, named):
    with pytest.raises(InvalidInputError, match="The audience_name of 'vip'"):
        named(("anna", "vip", None), ("bert", "gold", "Gold"), ("carl", "vip", None))
    assert talon.requests() == []


@pytest.mark.parametrize("native", [False, True])
def test_a_literal_parameter_keeps_its_type(run, talon, vip, customers, native):
    """Native rendering makes the number 0 of the text "0", which MySQL compares with any text as equal."""
    customers("0", "anna")
    kinds = "typeof({}) = 'text' AND typeof({}) = '" + ("integer'" if native else "text'")
    ids = "SELECT profile_id FROM customers WHERE profile_id = {} AND " + kinds
    number = "{{ params.n }}"
    for sql, parameters in (
        (ids.format(":code", ":code", ":n"), {"code": "0", "n": number}),
        (ids.format("?", "?", "?"), ["0", "1_000", number]),
        (ids.format("?", "?", "?"), ("0", "1_000", number)),
    ):
        given = type(parameters)
        operator = transfer(sql, parameters=parameters)
        assert run(operator, native=native, params={"n": 5})["sent"] == 1
        assert type(operator.parameters) is given
    assert talon.members("vip") == {"0"}


def test_parameters_may_be_one_template(run, talon, vip, customers):
    customers("anna", "bert")
    sql = "SELECT profile_id FROM customers WHERE profile_id = :x"
    run(transfer(sql, parameters="{{ params.all }}"), native=True, params={"all": {"x": "anna"}})
    assert talon.members("vip") == {"anna"}


OF_MANY = {"mode": "mirror", "audience_column": "audience_id", "audience_name_column": "audience_id"}


@pytest.mark.parametrize("name", ["audiences", "audience_name_column", "ledger", "state_uri", "max_rejected"])
def test_a_template_of_none_is_not_the_default(run, talon, sqlite, name):
    """As the result of a task that returned nothing: the mirror would then manage each audience."""
    sqlite("INSERT INTO customers VALUES ('anna', 'vip')")
    operator = transfer("SELECT * FROM customers", **OF_MANY | {name: "{{ params.x }}"})
    with pytest.raises(InvalidInputError, match=f"^{name} is null after rendering. Did the upstream task"):
        run(operator, native=True, params={"x": None})
    assert talon.requests() == []


def test_an_empty_state_uri_of_a_template_is_not_the_default(run, talon, customers):
    """As of a variable that is not set in one environment: the ledger there has other members, or none."""
    customers("anna")
    operator = transfer(mode="mirror", state_uri="{{ params.x }}")
    with pytest.raises(InvalidInputError, match="^state_uri is empty after rendering"):
        run(operator, params={"x": ""})
    assert talon.requests() == []


@pytest.mark.parametrize("caller", ["markets", "t"])
def test_operators_that_a_task_calls_must_name_their_ledgers(connect, talon, sqlite, caller):
    """They have no DAG, so those with one task ID would share a ledger, and empty each other's audiences."""
    sqlite("INSERT INTO customers VALUES ('anna', 'de'), ('bert', 'fr')")
    context = {"task": SimpleNamespace(task_id=caller)}

    def call(market, **arguments):
        sql = f"SELECT * FROM customers WHERE audience_id = '{market}'"
        transfer(sql, **OF_MANY | arguments).execute(context)

    with pytest.raises(InvalidInputError, match=rf"(?s)^t is called inside the task {caller}\. .* ledger="):
        call("de")
    assert talon.requests() == []
    for _ in range(2):
        for market in ("de", "fr"):
            call(market, ledger=market)
    assert [talon.members(market) for market in ("de", "fr")] == [{"anna"}, {"bert"}]


def test_a_second_run_in_one_process_knows_nothing_of_the_first(connect, run, talon, vip, sqlite):
    """``dag.test()`` executes shallow copies of the operator."""
    run(CreateAudienceOperator(task_id="c", audience_id="gold", audience_name="Gold"))
    operator = transfer("SELECT * FROM customers", audience_column="audience_id", max_rejected=1)
    sqlite("INSERT INTO customers VALUES ('anna', 'vip'), ('bert', 'vip')")
    talon.reject_profiles(["bert"])
    first = operator.prepare_for_execution()
    first.execute({})
    sqlite("DELETE FROM customers; INSERT INTO customers VALUES ('anna', 'gold')")
    second = operator.prepare_for_execution()
    second.execute({})
    assert [list(each.asset_uris("h").values()) for each in (first, second)] == [["vip"], ["gold"]]
    assert [DeadLettersLink.key in each.links for each in (first, second)] == [True, False]


@pytest.mark.parametrize("name", ["attributes", "attributes_column", "types", "hook_params"])
def test_so_it_is_with_attributes(run, talon, sqlite, name):
    sqlite("CREATE TABLE people (profile_id, tier); INSERT INTO people VALUES ('anna', 'gold')")
    operator = SqlToTalonProfilesOperator(
        task_id="t", sql="SELECT * FROM people", sql_conn_id="warehouse", **{name: "{{ params.x }}"}
    )
    with pytest.raises(InvalidInputError, match=f"^{name} is null after rendering"):
        run(operator, native=True, params={"x": None})
    assert talon.requests() == []


def test_many_rows_travel_in_requests_of_a_thousand(run, talon, vip, sqlite):
    sqlite("INSERT INTO customers (profile_id) VALUES (?)", [(f"p{each}",) for each in range(5500)])
    assert run(transfer())["requests"] == 6
    assert talon.members("vip") == {f"p{each}" for each in range(5500)}


def test_a_profile_in_many_audiences_arrives_in_each(run, talon, sqlite):
    """The rows of one profile lie in different requests, which must not be in flight together."""
    for each in range(30):
        run(CreateAudienceOperator(task_id="c", audience_id=f"a{each}", audience_name="x"))
    sqlite("INSERT INTO customers VALUES (?, ?)", [(f"p{p}", f"a{a}") for a in range(30) for p in range(150)])
    run(transfer("SELECT * FROM customers", audience_column="audience_id"))
    for each in range(30):
        assert len(talon.members(f"a{each}")) == 150
    assert "409" not in talon.state()["requests"]["by_status"]


@pytest.mark.parametrize("configured, is_read_ahead", [(None, True), ("1", True), ("0", False)])
def test_how_much_is_read_ahead_is_configured(run, vip, customers, monkeypatch, configured, is_read_ahead):
    if configured:
        monkeypatch.setenv("AIRFLOW__TALON_CDP__READ_AHEAD", configured)
    pieces, write = [], Spool.write

    def watched(spool, piece):
        pieces.append(piece)
        write(spool, piece)

    monkeypatch.setattr(Spool, "write", watched)
    customers(*range(30_000))
    assert run(transfer(in_flight=2))["sent"] == 30_000
    assert bool(pieces) == is_read_ahead


@pytest.mark.parametrize("configured", ["-1", "much"])
def test_a_configuration_that_is_no_number_is_named(run, vip, customers, monkeypatch, configured):
    monkeypatch.setenv("AIRFLOW__TALON_CDP__READ_AHEAD", configured)
    with pytest.raises(InvalidInputError, match=rf"\[talon_cdp\] read_ahead .* >= 0, but is '{configured}'"):
        run(transfer())


def test_duplicates_are_counted(run, talon, vip, customers):
    customers("anna", "anna", "bert", "anna")
    result = run(transfer())
    assert (result["read"], result["sent"], result["duplicate"]) == (4, 2, 2)


def test_integers_and_text_are_ids_by_their_text(run, talon, vip, customers):
    customers(5, "5", "05", -7, 2**62, " x ")
    assert run(transfer())["duplicate"] == 1
    assert talon.members("vip") == {"5", "05", "-7", str(2**62), " x "}


@pytest.mark.parametrize(
    "bad, reason",
    [(None, "null"), ("", "empty"), ("x" * 1001, "longer than 1000"), (" " * 1001, "longer than")],
)
def test_a_row_with_a_bad_id_is_counted_and_the_others_are_sent(run, talon, vip, customers, bad, reason):
    customers("anna", bad, "bert", bad)
    with pytest.raises(RejectedRecordsError, match=f"(?s)2 of 4.*max_rejected is 0.*{reason}"):
        run(transfer())
    assert talon.members("vip") == {"anna", "bert"}
    result = run(transfer(max_rejected=2))
    assert (result["sent"], sum(result["rejected"].values())) == (2, 2)


@pytest.mark.parametrize("bad, reason", [(None, "null"), ("", "empty"), ("x" * 1001, "longer than 1000")])
def test_a_row_with_a_bad_audience_is_counted_and_the_others_are_sent(run, talon, vip, sqlite, bad, reason):
    sqlite("INSERT INTO customers VALUES (?, ?)", [("anna", "vip"), ("bert", bad), ("carl", "vip")])
    with pytest.raises(RejectedRecordsError, match=f"(?s)1 of 3.*audience ID {reason}"):
        run(transfer("SELECT * FROM customers", audience_column="audience_id"))
    assert talon.members("vip") == {"anna", "carl"}


@pytest.mark.parametrize("bad", [1.5, 1e20, b"anna"])
def test_a_type_that_no_id_has_fails_and_is_named(run, talon, vip, customers, bad):
    """1e20 has no one spelling, and bytes no text: the query is wrong, and not a row of it."""
    customers(bad)
    with pytest.raises(InvalidInputError, match=f"(?s){type(bad).__name__}.*Convert it to .*with CAST in"):
        run(transfer())
    assert talon.members("vip") == frozenset()


def test_an_external_audience_column_of_integers_fails_with_the_cure(run, talon, vip, sqlite):
    sqlite("INSERT INTO customers VALUES (?, ?)", [("anna", 5)])
    with pytest.raises(InvalidInputError, match="(?s)cast the column to text in SQL.*internal"):
        run(transfer("SELECT * FROM customers", audience_column="audience_id"))


def test_a_missing_column_fails_and_the_columns_are_listed(run, talon, vip, customers):
    customers("anna")
    with pytest.raises(InvalidInputError, match="(?s)no column 'customer'.*profile_id, audience_id"):
        run(transfer("SELECT * FROM customers", profile_id_column="customer"))
    with pytest.raises(InvalidInputError, match="no column 'segment'"):
        run(transfer("SELECT * FROM customers", audience_column="segment"))
    with pytest.raises(InvalidInputError, match="no column 'profile_id'"):
        run(transfer("SELECT profile_id AS x FROM customers WHERE 0"))


def test_a_column_that_stands_twice_fails(run, vip, customers):
    customers("anna")
    with pytest.raises(InvalidInputError, match="more than one column 'profile_id'"):
        run(transfer("SELECT profile_id, audience_id AS profile_id FROM customers"))
    with pytest.raises(InvalidInputError, match="more than one column 'profile_id'"):
        run(transfer("SELECT profile_id AS Profile_ID, audience_id AS PROFILE_ID FROM customers"))


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT profile_id AS PROFILE_ID FROM customers",
        "SELECT audience_id, profile_id AS Profile_Id FROM customers",
    ],
)
def test_the_case_of_a_column_does_not_matter(run, talon, vip, customers, sql):
    """Snowflake and Oracle answer in upper case."""
    customers("anna")
    run(transfer(sql))
    assert talon.members("vip") == {"anna"}


def test_the_exact_case_wins_where_both_exist(run, talon, vip, sqlite):
    sqlite("INSERT INTO customers VALUES (?, ?)", [("right", "wrong")])
    run(transfer('SELECT audience_id AS "PROFILE_ID", profile_id AS "profile_id" FROM customers'))
    assert talon.members("vip") == {"right"}


@pytest.mark.parametrize("parameters", [{"least": "b"}, ["b"], ("b",)])
def test_parameters_are_bound(run, talon, vip, customers, parameters):
    customers("anna", "bert")
    mark = ":least" if isinstance(parameters, dict) else "?"
    run(transfer(f"SELECT profile_id FROM customers WHERE profile_id >= {mark}", parameters=parameters))
    assert talon.members("vip") == {"bert"}


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT profile_id FROM customers;",
        "\n SELECT profile_id FROM customers ; \n",
        "SELECT profile_id FROM customers;;\n",
        "SELECT profile_id FROM customers -- all",
        "SELECT profile_id FROM customers; -- all",
        "/* all */ SELECT profile_id FROM customers",
        "WITH c AS (SELECT * FROM customers) SELECT profile_id FROM c",
        "SELECT profile_id FROM customers WHERE profile_id LIKE 'a%'",
        "SELECT profile_id FROM customers WHERE profile_id <> ':x' AND profile_id <> '%s' AND profile_id <> '?'",  # noqa: E501
        "SELECT profile_id FROM customers UNION SELECT profile_id FROM customers",
        "VALUES ('anna')",
    ],
)
def test_sql_as_people_write_it_works(run, talon, vip, customers, sql):
    customers("anna")
    column = "column1" if sql.startswith("VALUES") else "profile_id"
    run(transfer(sql, profile_id_column=column))
    assert talon.members("vip") == {"anna"}


def test_a_sql_file_is_a_template(run, talon, vip, customers, tmp_path):
    customers("anna", "bert")
    (tmp_path / "members.sql").write_text("SELECT profile_id FROM customers WHERE profile_id > '{{ ds }}'")
    run(transfer("members.sql"), searchpath=str(tmp_path), ds="b")
    assert talon.members("vip") == {"bert"}


def test_fields_are_templates(run, talon, vip, customers):
    customers("anna", "bert")
    operator = transfer(
        "SELECT profile_id AS {{ params.column }} FROM customers WHERE profile_id > :least",
        sql_conn_id="{{ 'warehouse' }}",
        audience_id="{{ params.audience }}",
        profile_id_column="{{ params.column }}",
        parameters={"least": "{{ params.least }}"},
        talon_cdp_conn_id="talon_cdp_{{ 'default' }}",
    )
    run(operator, params={"column": "id", "audience": "vip", "least": "b"})
    assert talon.members("vip") == {"bert"}


def test_an_audience_column_is_a_template(run, talon, vip, sqlite):
    sqlite("INSERT INTO customers VALUES (?, ?)", [("anna", "vip")])
    run(transfer("SELECT * FROM customers", audience_column="{{ params.x }}"), params={"x": "audience_id"})
    assert talon.members("vip") == {"anna"}


def test_an_empty_result_sends_nothing_and_is_said(run, talon, vip, sqlite, caplog, capfd):
    result = run(transfer())
    assert (result["read"], result["requests"]) == (0, 0)
    assert "no rows" in caplog.text + capfd.readouterr().out


def test_a_query_that_fails_midway_fails_the_task_with_counts(run, talon, vip, sqlite, caplog):
    """``abs`` of the smallest integer is an error, in SQLite, of that one row."""
    sqlite("INSERT INTO customers (profile_id) VALUES (?)", [(each,) for each in range(12_000)])
    sqlite(f"INSERT INTO customers (profile_id) VALUES ({-(2**63)})")
    caplog.set_level("INFO")
    with pytest.raises(Exception, match="integer overflow"):
        run(transfer("SELECT abs(profile_id) AS profile_id FROM customers"))
    counts = re.search(
        r"([\d,]+) read \+ 0 to remove \+ 0 resumed\n= 0 unchanged \+ ([\d,]+) sent \+ (\d+) duplicate"
        r" \+ (\d+) rejected \+ ([\d,]+) unsent",
        caplog.text,
    )
    read, *parts = (int(each.replace(",", "")) for each in counts.groups())
    assert read == sum(parts)
    assert read <= 12_000
    assert len(talon.members("vip")) >= parts[0]


def test_a_query_that_cannot_run_fails_before_anything_is_sent(run, talon, vip, sqlite):
    with pytest.raises(Exception, match="no such table"):
        run(transfer("SELECT profile_id FROM nowhere"))
    assert len(talon.requests()) == 1


def test_a_missing_audience_fails_the_task(run, talon, customers):
    customers("anna")
    with pytest.raises(NotFoundError, match="vip"):
        run(transfer())


def test_a_connection_that_is_no_database_is_named(run, talon, vip, monkeypatch):
    monkeypatch.setenv("AIRFLOW_CONN_WEB", json.dumps({"conn_type": "http", "host": "example.com"}))
    with pytest.raises(InvalidInputError, match="'web'.*HttpHook.*not a SQL hook"):
        run(transfer(sql_conn_id="web"))


def test_a_wrong_talon_connection_fails_before_the_query_runs(run, connect, sqlite):
    connect({"timeout": "soon"})
    with pytest.raises(InvalidInputError, match="Timeout"):
        run(transfer("SELECT profile_id FROM nowhere"))


@pytest.mark.parametrize(
    "arguments",
    [
        {"sql": ""},
        {"sql": " ; "},
        {"sql": None},
        {"sql": ["SELECT 1"]},
        {"mode": "replace"},
        {"mode": None},
        {"audience_id": ""},
        {"audience_id": 5},
        {"audience_id": None},
        {"audience_id": "vip", "audience_column": "x"},
        {"audience_id": "vip", "audience_id_type": "internal"},
        {"audience_id_type": "other"},
        {"max_rejected": -1},
        {"in_flight": 0},
    ],
    ids=str,
)
def test_a_bad_literal_fails_when_the_dag_is_parsed(arguments):
    with pytest.raises(InvalidInputError):
        transfer(**arguments)


@pytest.mark.parametrize(
    "arguments",
    [
        {"sql": "{{ params.x }}"},
        {"audience_id": "{{ params.x }}"},
        {"profile_id_column": "{{ params.x }}"},
        {"audience_column": "{{ params.x }}"},
    ],
    ids=str,
)
@pytest.mark.parametrize("native", [True, False])
def test_a_template_that_renders_to_nothing_fails_before_anything_is_sent(
    run, talon, customers, arguments, native
):
    customers("anna")
    with pytest.raises(InvalidInputError):
        run(transfer(**arguments), native=native, params={"x": None if native else ""})
    assert talon.requests() == []


def test_uuids_are_ids_by_their_text(run, talon, vip, postgres):
    run(transfer(f"SELECT '{UUID(int=7)}'::uuid AS profile_id"))
    assert talon.members("vip") == {str(UUID(int=7))}


@pytest.mark.parametrize("kind", ["numeric", "float8", "bytea", "boolean", "timestamp"])
def test_postgres_types_that_no_id_has_fail(run, talon, vip, postgres, kind):
    value = {"bytea": "'x'", "boolean": "true", "timestamp": "now()"}.get(kind, "1.5")
    with pytest.raises(InvalidInputError, match="Convert it to (an integer and then to )?text"):
        run(transfer(f"SELECT {value}::{kind} AS profile_id"))


def test_postgres_rows_stream_to_audiences(run, talon, vip, postgres):
    result = run(transfer("SELECT 'p' || n AS profile_id FROM generate_series(1, 12000) n"))
    assert result["sent"] == 12_000
    assert talon.members("vip") == {f"p{each}" for each in range(1, 12_001)}


@pytest.mark.parametrize(
    "sql, parameters",
    [
        ("SELECT 'anna' AS profile_id WHERE 'x%' LIKE '%\\%'", None),
        ("SELECT 'anna' AS profile_id WHERE 5 % 3 = 2;", None),
        ("SELECT %s::text AS profile_id", ["anna"]),
        ("SELECT %(x)s::text AS profile_id", {"x": "anna"}),
        ("SELECT 'anna'::varchar AS profile_id -- %s :x", None),
        ("SELECT 'anna' AS profile_id; -- all", None),
        ("WITH c AS (SELECT 'anna' AS profile_id) SELECT * FROM c;", None),
        ("TABLE pg_am", None),
        ("SELECT 'anna' AS profile_id WHERE 'x%' LIKE '%\\%'", {}),
        ("SELECT 'anna' AS profile_id WHERE 5 % 3 = 2", []),
        ("SELECT 'anna' AS profile_id WHERE 5 % 3 = 2", ()),
    ],
)
def test_postgres_sql_as_people_write_it_works(run, talon, vip, postgres, sql, parameters):
    column = "amname" if sql.startswith("TABLE") else "profile_id"
    run(transfer(sql, parameters=parameters, profile_id_column=column))
    assert talon.members("vip") == {"anna"} or "btree" in talon.members("vip")


@pytest.mark.parametrize("cursor", ["dictcursor", "namedtuplecursor", "realdictcursor"])
def test_the_cursor_that_a_postgres_connection_asks_for_works(run, talon, vip, postgres, request, cursor):
    if cursor == "realdictcursor" and "psycopg3" in request.node.name:
        pytest.skip("Airflow's Postgres provider has no such cursor with psycopg 3")
    postgres(cursor=cursor)
    run(transfer("SELECT 'wrong' AS x, 'anna' AS profile_id, 'vip' AS audience", audience_column="audience"))
    assert talon.members("vip") == {"anna"}
    with pytest.raises(InvalidInputError, match="no column 'nothing'"):
        run(transfer("SELECT 'anna' AS profile_id", profile_id_column="nothing"))


def test_a_postgres_query_that_fails_midway_tells_its_own_error(run, talon, vip, postgres):
    """And not what closing the cursor says after it."""
    with pytest.raises(Exception, match="division by zero"):
        run(transfer("SELECT (1 / (n - 15000))::text || n AS profile_id FROM generate_series(1, 20000) n"))


def test_an_empty_postgres_result_sends_nothing(run, talon, vip, postgres):
    assert run(transfer("SELECT 'x' AS profile_id WHERE false"))["read"] == 0
    with pytest.raises(InvalidInputError, match="no column"):
        run(transfer("SELECT 'x' AS y WHERE false"))


def test_openlineage_is_told_which_tables_a_query_reads(postgres):
    pytest.importorskip("airflow.providers.openlineage")
    sql = "SELECT c.profile_id FROM customers c JOIN crm.orders o ON o.customer = c.profile_id"
    for operator in (
        transfer(sql),
        SqlToTalonProfilesOperator(task_id="t", sql=sql, sql_conn_id="warehouse"),
    ):
        found = operator.get_openlineage_facets_on_start()
        assert {each.name for each in found.inputs} == {"postgres.crm.orders", "postgres.public.customers"}
        assert found.outputs == []


def test_arguments_of_the_hook_reach_it(run, talon, vip, postgres):
    """A PostgresHook takes the database that it reads as an argument."""
    params = {"database": "{{ params.database }}"}
    operator = transfer("SELECT current_database() AS profile_id", hook_params=params)
    run(operator, params={"database": "template1"})
    assert talon.members("vip") == {"template1"}
