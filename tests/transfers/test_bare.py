"""What is taken off a statement; that the rest still means the same is tested against databases."""

from __future__ import annotations

import pytest

from airflow_provider_talon_cdp.transfers._rows import bare

LITERALS = ", ".join(f"'m{each}'" for each in range(50_000))
MANY = f"SELECT id FROM t WHERE id IN ({LITERALS})"
DEEP = f"SELECT id FROM {'(SELECT id FROM ' * 500}t{')' * 500}"
TAIL = " ; -- all; of them\n/* ; */\n;"


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT id FROM t",
        "-- all; of them\nSELECT id /* ; */\nFROM t",
        "SELECT ';' AS id",
        "SELECT '--' AS id",
        'SELECT id AS "/*" FROM t',
        pytest.param(MANY, id="many literals", marks=pytest.mark.slow),
        pytest.param(DEEP, id="many levels"),
    ],
)
def test_semicolons_and_comments_go_from_the_end_alone(sql):
    assert bare(sql + TAIL) == sql
    assert bare(sql) == sql


@pytest.mark.parametrize(
    "end",
    [
        "= flags # 3",  # of Postgres: exclusive or
        "> 5--3",  # of MySQL: minus minus 3
        "/*! AND is_active */",  # of MySQL: part of the statement
        r"= '\' AND n <> '--'",  # of standard SQL: two literals
        "= 1 -- a comment",
    ],
)
def test_what_may_be_more_than_a_comment_stays(end):
    sql = f"SELECT id FROM t WHERE 8 {end}"
    assert bare(f"{sql}\n ") == sql
    assert bare(f"{sql};\n") == sql


def test_a_byte_order_mark_goes_from_the_front():
    assert bare("\ufeffSELECT '\ufeff' AS id;") == "SELECT '\ufeff' AS id"
