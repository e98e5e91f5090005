"""Every type of value from a real PostgreSQL, by either driver, read back from an emulator with declared
attributes."""

from __future__ import annotations

from decimal import Decimal

import pytest
from airflow.providers.postgres.hooks import postgres as postgres_hooks

from airflow_provider_talon_cdp.exceptions import FatalError

# SQL, the type that Talon.One has, whether our task declares it, and what Talon.One then holds.
VALUES = [
    ("'gold'::text", "string", False, "gold"),
    ("'gold'::varchar(9)", "string", False, "gold"),
    ("'gold'::char(6)", "string", False, "gold  "),
    ("E'Zürich 😀 \"\\\\\\n'", "string", False, 'Zürich 😀 "\\\n'),
    ("''", "string", False, ""),
    ("'7b2e55a0-0000-4000-8000-000000000005'::uuid", "string", False, "7b2e55a0-0000-4000-8000-000000000005"),
    ("7::smallint", "number", False, 7),
    ("9223372036854775807::bigint", "number", False, 9223372036854775807),
    ("19.990::numeric", "number", False, "19.99"),
    ("19.99::numeric(12, 4)", "number", False, "19.99"),
    ("12345678901234567890.123456789::numeric", "number", False, "12345678901234567890.123456789"),
    ("-0.10::numeric", "number", False, "-0.1"),
    ("1e30::numeric", "number", False, 10**30),
    ("0.1::float8", "number", False, "0.1"),
    ("1.5::float4", "number", False, "1.5"),
    ("true", "boolean", False, True),
    ("false", "boolean", False, False),
    ("'2026-06-30 12:00:00.5+02'::timestamptz", "time", False, "2026-06-30T10:00:00.500000Z"),
    ("'2026-06-30 12:00:00'::timestamp", "time", False, "2026-06-30T10:00:00Z"),
    ("'2026-01-30'::date", "time", False, "2026-01-29T23:00:00Z"),
    ("ARRAY['a', 'b']", "(list string)", False, ["a", "b"]),
    ("ARRAY[]::text[]", "(list string)", False, []),
    ("ARRAY[1.50, 2]::numeric[]", "(list number)", False, ["1.5", 2]),
    ("ARRAY[1, 2]", "(list number)", False, [1, 2]),
    (
        "ARRAY['2026-06-30 12:00+00'::timestamptz]",
        "(list time)",
        False,
        ["2026-06-30T12:00:00Z"],
    ),
    ("ARRAY['2026-06-30'::date]", "(list time)", False, ["2026-06-29T22:00:00Z"]),
    ("ARRAY[52.5, 13.4]", "location", False, ["52.5", "13.4"]),
    ('\'{"lat": 52.50, "lng": 13}\'::jsonb', "location", False, {"lat": "52.5", "lng": 13}),
    ("'[[1, 2], [3, 4]]'::json", "(list location)", False, [[1, 2], [3, 4]]),
    ("'[1.50, 12345678901234567890.5]'::jsonb", "(list number)", False, ["1.5", "12345678901234567890.5"]),
    ("'true'::jsonb", "boolean", False, True),
    # With a declared type, other values become it.
    ("'19.990'", "number", True, "19.99"),
    ("7", "string", True, "7"),
    ("19.990::numeric", "string", True, "19.990"),
    ("true", "string", True, "true"),
    ("'2026-01-30'::date", "string", True, "2026-01-30"),
    ("'7b2e55a0-0000-4000-8000-000000000005'::uuid", "string", True, "7b2e55a0-0000-4000-8000-000000000005"),
    ("1", "boolean", True, True),
    ("'f'", "boolean", True, False),
    ("'2026-06-30T12:00:00Z'", "time", True, "2026-06-30T12:00:00Z"),
    ("'2026-06-30'", "time", True, "2026-06-29T22:00:00Z"),
    ("'{52.5,13.4}'::float8[]", "location", True, ["52.5", "13.4"]),
    ('\'["a", "b"]\'', "(list string)", True, ["a", "b"]),
    ("ARRAY['1.50', '2']", "(list number)", True, ["1.5", 2]),
]
REFUSED = [
    ("'NaN'::numeric", "number", False, "is NaN, which JSON has no number for"),
    ("'Infinity'::numeric", "number", False, "is Infinity, which JSON has no number for"),
    ("'NaN'::float8", "number", False, "is nan, which JSON has no number for"),
    ("'-Infinity'::float8", "number", False, "is -inf, which JSON has no number for"),
    ("'\\x00ff'::bytea", "string", False, "is bytes, which JSON cannot carry"),
    ("'12:00'::time", "string", False, "is of type time, which no Talon.One attribute takes"),
    ("'1 day'::interval", "string", False, "is of type timedelta, which no Talon.One attribute takes"),
    ("'NaN'::float8", "number", True, "is declared as number, but it is not a finite number"),
    ("'Infinity'::float8", "string", True, "is declared as string, but it is not a finite number"),
    ("'\\x00ff'::bytea", "string", True, "is declared as string, but it is of type"),
    ("'many'", "number", True, "is declared as number, but its text is not a number"),
    ("7", "time", True, "is declared as time, but it is of type int"),
    ("'soon'", "time", True, "is declared as time, but its text is not a date or time"),
    ("ARRAY[1, NULL]", "(list number)", True, "is declared as (list number), but it contains a null"),
    ("'{\"a\": 1}'::jsonb", "string", True, "is declared as string, but it is of type dict"),
]


@pytest.fixture(params=["psycopg2", "psycopg3"])
def driver(request, monkeypatch):
    """Either driver that Airflow may choose."""
    if request.param == "psycopg3" and not postgres_hooks.USE_PSYCOPG3:
        pytest.skip("Airflow's Postgres provider uses psycopg 3 with SQLAlchemy 2 alone")
    monkeypatch.setattr(postgres_hooks, "USE_PSYCOPG3", request.param == "psycopg3")
    return request.param


def spelt(value):
    """Numbers with a fraction as their text: ``19.990`` is not ``19.99``."""
    match value:
        case Decimal():
            return str(value)
        case list():
            return [spelt(each) for each in value]
        case dict():
            return {name: spelt(each) for name, each in value.items()}
    return value


def test_every_value_arrives_as_the_attribute_that_talon_one_has(
    postgres, driver, send, declared, attributes
):
    names = [f"a{number:02}" for number in range(len(VALUES))]
    emulator = declared(
        {name: kind for name, (_, kind, _, _) in zip(names, VALUES, strict=True)}, "Europe/Berlin"
    )
    columns = ", ".join(f"{sql} AS {name}" for name, (sql, *_) in zip(names, VALUES, strict=True))
    postgres.run("ALTER DATABASE postgres SET timezone TO 'UTC'")
    types = {name: kind for name, (_, kind, is_declared, _) in zip(names, VALUES, strict=True) if is_declared}
    summary = send(sql=f"SELECT 'anna' AS id, {columns}", types=types)
    assert (summary["sent"], summary["rejected"]) == (1, {})
    held = attributes(emulator)["anna"]
    assert {name: spelt(held[name]) for name in names} == {
        name: value for name, (*_, value) in zip(names, VALUES, strict=True)
    }
    assert send(sql=f"SELECT 'anna' AS id, {columns}", types=types)["unchanged"] == 1


@pytest.mark.parametrize("sql, kind, is_declared, says", REFUSED)
def test_what_no_attribute_can_hold_is_the_fault_of_its_row_alone(
    postgres, driver, send, declared, attributes, sql, kind, is_declared, says
):
    emulator = declared({"value": kind})
    summary = send(
        sql=f"SELECT 'anna' AS id, {sql} AS value UNION ALL SELECT 'bo', NULL UNION ALL SELECT 'cem', NULL",
        types={"value": kind} if is_declared else None,
        nulls="delete",
        max_rejected=1,
    )
    assert summary["sent"] == 2
    ((reason, count),) = summary["rejected"].items()
    assert count == 1
    assert reason.startswith("Attribute 'value' ")
    assert says in reason
    assert attributes(emulator) == {"bo": {}, "cem": {}}


def test_times_without_an_offset_need_the_connections_zone(postgres, driver, send, declared, talon):
    declared({"at": "time"})
    with pytest.raises(Exception, match="(?s)none that can be sent.*1 x Attribute .at..*without a time zone"):
        send(sql="SELECT 'anna' AS id, '2026-06-30'::date AS at")


def test_a_value_of_another_type_is_refused_by_talon_one(postgres, driver, send, declared):
    declared({"score": "number"})
    with pytest.raises(FatalError, match=r"attribute 'score' was refused \(Invalid attribute value\)"):
        send(sql="SELECT n::text AS id, 'x' AS score FROM generate_series(1, 60) AS n")
