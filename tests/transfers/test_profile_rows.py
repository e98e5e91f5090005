"""Rows of a query as profiles with their attributes."""

from __future__ import annotations

import sys
from contextlib import closing

import pytest

from airflow_provider_talon_cdp.api.values import AttributesEncoder
from airflow_provider_talon_cdp.changes.change import Profile, Rejection
from airflow_provider_talon_cdp.exceptions import InvalidInputError
from airflow_provider_talon_cdp.transfers._rows import ProfileColumns, read_profiles, sql_hook
from airflow_provider_talon_cdp.transfers.sql_to_profiles import SqlToTalonProfilesOperator


def profiles(sql, parameters=None, encode=None, profile_id="id", **columns):
    chosen = ProfileColumns(profile_id=profile_id, **columns)
    with closing(
        read_profiles(sql_hook("warehouse"), sql, chosen, encode or AttributesEncoder(), parameters)
    ) as rows:
        return list(rows)


def bodies(sql, **arguments):
    return {each.profile_id: each.attributes.decode() for each in profiles(sql, **arguments)}


@pytest.fixture
def customers(sqlite):
    sqlite(
        "CREATE TABLE people (id TEXT, tier TEXT, score INT, at INT, extra TEXT);"
        "INSERT INTO people VALUES ('bo', 'gold', 7, 2, NULL), "
        "('anna', NULL, 5, 1, '{\"vip\": true, \"spent\": 19.990}')"
    )


def test_each_other_column_is_an_attribute_under_its_own_name(customers):
    assert profiles("SELECT id, tier, score AS Score FROM people") == [
        Profile("anna", b'{"Score":5}', ("Score",)),
        Profile("bo", b'{"Score":7,"tier":"gold"}', ("tier", "Score")),
    ]


def test_columns_are_named_and_renamed_by_a_mapping(customers):
    found = bodies("SELECT * FROM people", attributes={"TIER": "Tier", "score": "points", "id": "customer"})
    assert found == {
        "anna": '{"customer":"anna","points":5}',
        "bo": '{"Tier":"gold","customer":"bo","points":7}',
    }


def test_the_order_column_is_no_attribute_unless_it_is_named(customers):
    assert bodies("SELECT id, at, score FROM people", order_by="at") == {
        "anna": '{"score":5}',
        "bo": '{"score":7}',
    }
    assert bodies("SELECT id, at FROM people", order_by="at", attributes={"at": "At"})["bo"] == '{"At":2}'
    assert [each.order for each in profiles("SELECT * FROM people", order_by="at")] == [1, 2]


def test_a_json_column_is_a_whole_object_of_attributes(customers):
    assert bodies("SELECT * FROM people", attributes_column="extra") == {
        "anna": '{"spent":19.99,"vip":true}',
        "bo": "",
    }
    assert bodies("SELECT * FROM people", attributes_column="extra", attributes={"score": "score"}) == {
        "anna": '{"score":5,"spent":19.99,"vip":true}',
        "bo": '{"score":7}',
    }


@pytest.mark.parametrize(
    "text, says",
    [
        ("[1]", "holds JSON that is not an object"),
        ("{", "holds JSON that is not valid"),
        ('"x"', "holds JSON that is not an object"),
        ('{"tier": 1}', "Attribute 'tier' is in attributes_column and in another column"),
        ('{"": 1}', "An attribute name must be a non-empty string"),
        ('{"a": NaN}', "Attribute 'a' is nan"),
        pytest.param(f'{{"a": {"[" * 600}{"]" * 600}}}', "Attribute 'a' is nested more than", id="nested"),
        pytest.param(f'{{"a": {"[" * 100_000}{"]" * 100_000}}}', "is nested too deep", id="nested deeper"),
        pytest.param(f'{{"a": {"1" * 5000}}}', "too many digits", id="long number"),
        ('{"a": 1E99999999999999999999}', "too many digits"),
    ],
)
def test_a_bad_json_column_is_the_fault_of_its_row_alone(sqlite, text, says):
    sqlite("CREATE TABLE people (id TEXT, tier TEXT, extra TEXT)")
    sqlite("INSERT INTO people VALUES (?, 'gold', ?)", [("anna", text), ("bo", "{}")])
    anna, bo = profiles("SELECT * FROM people", attributes_column="extra", attributes={"tier": "tier"})
    assert says in anna.fault
    assert anna.attributes == b""
    assert bo.attributes == b'{"tier":"gold"}'


@pytest.mark.parametrize(
    "attributes", [{"tier": "{{ params.x }}"}, ["{{ params.x }}"]], ids=["name", "column"]
)
def test_none_that_a_template_made_text_of_does_not_become_an_attribute(run, talon, sqlite, attributes):
    sqlite('CREATE TABLE people (profile_id, tier, "None")')
    sqlite("INSERT INTO people VALUES ('anna', 'x', 'y')")
    operator = SqlToTalonProfilesOperator(
        task_id="t", sql="SELECT * FROM people", sql_conn_id="warehouse", attributes=attributes
    )
    with pytest.raises(InvalidInputError, match="^attributes is the text 'None'"):
        run(operator, params={"x": None})
    assert talon.requests() == []


def test_rows_without_a_usable_id_are_rejections(sqlite):
    sqlite("CREATE TABLE people (id, tier TEXT)")
    sqlite("INSERT INTO people VALUES (?, 'gold')", [(None,), ("",), ("x" * 1001,), (7,)])
    found = profiles("SELECT * FROM people")
    assert sorted(each.reason for each in found if isinstance(each, Rejection)) == [
        "profile ID empty",
        "profile ID longer than 1000 characters",
        "profile ID null",
    ]
    assert [each.profile_id for each in found if isinstance(each, Profile)] == ["7"]


def test_a_profile_id_of_an_impossible_type_stops_it_all(sqlite):
    sqlite("CREATE TABLE people (id, tier TEXT); INSERT INTO people VALUES (1.5, 'gold')")
    with pytest.raises(InvalidInputError, match="A profile ID is of type float"):
        profiles("SELECT * FROM people")


@pytest.mark.parametrize(
    "sql, columns, says",
    [
        ("SELECT id FROM people", {}, "no column for attributes"),
        ("SELECT id, id AS tier FROM people", {"profile_id": "customer"}, "no column 'customer'"),
        ("SELECT id, tier, score AS tier FROM people", {}, "more than one column 'tier'"),
        ("SELECT * FROM people", {"attributes": {"Level": "level"}}, "no column 'Level'"),
        ("SELECT * FROM people", {"attributes_column": "json"}, "no column 'json'"),
        ("SELECT * FROM people", {"order_by": "updated"}, "no column 'updated'"),
    ],
)
def test_columns_that_are_not_there_are_named(customers, sql, columns, says):
    with pytest.raises(InvalidInputError, match=says):
        profiles(sql, **columns)


def test_postgres_sorts_by_bytes_and_gives_every_column(postgres):
    rows = "VALUES ('b', 1, 10), ('B', 2, 20), ('á', 3, 30), ('a', 4, 40)"
    found = profiles(
        f'SELECT * FROM ({rows}) AS t (id, "Score", at) WHERE "Score" < %(most)s', {"most": 9}, order_by="at"
    )
    assert [(each.profile_id, each.attributes, each.order) for each in found] == [
        ("B", b'{"Score":2}', 20),
        ("a", b'{"Score":4}', 40),
        ("b", b'{"Score":1}', 10),
        ("á", b'{"Score":3}', 30),
    ]


def test_postgres_columns_may_differ_in_case_alone(postgres):
    assert bodies('SELECT 1 AS id, 2 AS "ID", 3 AS "Id"') == {"1": '{"ID":2,"Id":3}'}


def test_numbers_in_a_json_column_of_postgres_keep_their_digits(postgres):
    exact = "12345678901234567890.1"
    sql = f"SELECT 'a' AS id, '{{\"x\": {exact}}}'::jsonb AS extra, '{{\"y\": [{exact}]}}'::json AS other"
    assert bodies(sql, attributes_column="extra", attributes={"other": "z"}) == {
        "a": f'{{"x":{exact},"z":{{"y":[{exact}]}}}}'
    }


@pytest.mark.parametrize("kind", ["json", "jsonb"])
def test_json_of_postgres_that_python_cannot_read_is_the_fault_of_its_row_alone(postgres, kind):
    deep = f"(repeat('[', 1500) || repeat(']', 1500))::{kind}"
    sql = f"SELECT 'a' AS id, {deep} AS extra, '1'::{kind} AS y UNION ALL SELECT 'b', '{{}}'::{kind}, {deep}"
    one, other = profiles(sql, attributes_column="extra", attributes={"y": "y"})
    if sys.version_info < (3, 13):
        assert "is nested too deep" in one.fault
        assert "Attribute 'y' holds JSON that is not valid, or is nested too deep" in other.fault
    else:
        # It reads some ten thousand levels, more than PostgreSQL holds.
        assert one.fault == "attributes_column holds JSON that is not an object."
        assert other.fault == "Attribute 'y' is nested more than 200 levels deep."


def test_an_array_of_uuids_of_postgres_is_a_list(postgres):
    one = "7b2e55a0-0000-4000-8000-000000000005"
    sql = f"SELECT 'a' AS id, ARRAY['{one}', NULL]::uuid[] AS x, ARRAY[]::uuid[] AS y, NULL::uuid[] AS z"
    assert bodies(sql) == {"a": f'{{"x":["{one}",null],"y":[]}}'}


TIMES = ["timestamp 'infinity'", "timestamptz '-infinity'", "date 'infinity'", "timestamp '0044-03-15 BC'"]
TIMES += ["ARRAY[timestamp 'infinity']", "date '294276-01-01'"]


@pytest.mark.parametrize("time", TIMES)
def test_a_time_of_postgres_that_python_has_not_is_the_fault_of_its_row_alone(postgres, time):
    kind = "timestamp[]" if "ARRAY" in time else time.split()[0]
    sql = f"SELECT 'a' AS id, {time} AS at, 1 AS x UNION ALL SELECT 'b', NULL::{kind}, 2"
    one, other = profiles(sql)
    assert "Attribute 'at' holds a time that Python cannot represent" in one.fault
    assert other.attributes == b'{"x":2}'
    if "ARRAY" not in time:
        ordered, _ = profiles(sql, order_by="at")
        assert "order_by_column holds a time that Python cannot represent" in ordered.fault


def test_ids_that_do_not_survive_in_a_path_are_rejections(sqlite):
    sqlite(
        "CREATE TABLE people (id, tier TEXT); INSERT INTO people VALUES ('.', 'x'), ('..', 'x'), ('...', 'x')"
    )
    found = profiles("SELECT * FROM people")
    assert [each for each in found if isinstance(each, Rejection)] == [
        Rejection("profile ID '.' or '..', which does not survive in the path of a URL", profile_id)
        for profile_id in (".", "..")
    ]
    assert [each.profile_id for each in found if isinstance(each, Profile)] == ["..."]
