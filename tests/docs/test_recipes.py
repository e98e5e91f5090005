"""The recipes do what their text says."""

from __future__ import annotations

import json
import re
import sqlite3
from collections.abc import Callable
from contextlib import closing
from datetime import datetime
from pathlib import Path
from typing import Any

import pendulum
import pytest
from airflow.providers.common.compat.sdk import DAG
from airflow.timetables.base import TimeRestriction
from airflow.timetables.interval import CronDataIntervalTimetable
from airflow.timetables.trigger import CronTriggerTimetable

from airflow_provider_talon_cdp.emulator import Emulator
from airflow_provider_talon_cdp.exceptions import GuardError
from tests.docs.test_pages import PUBLIC, sections

RECIPES = sections("recipes.md")


@pytest.mark.parametrize(
    ("timetable", "days"),
    [
        # The default of [scheduler] create_cron_data_intervals is false since Airflow 3.
        pytest.param(CronTriggerTimetable, r"--from-date (\S+)\s+--to-date (\S+)", id="Airflow 3"),
        pytest.param(CronDataIntervalTimetable, r"-s (\S+) -e (\S+)", id="Airflow 2.11"),
    ],
)
def test_the_backfill_corrects_the_day_that_the_recipe_names(timetable: Any, days: str) -> None:
    (given,) = re.findall(days, RECIPES["Backfills"])
    first, last = (pendulum.parse(day) for day in given)
    within = TimeRestriction(earliest=first, latest=last, catchup=True)
    run = timetable("@daily", timezone="UTC").next_dagrun_info(
        last_automated_data_interval=None, restriction=within
    )
    assert f"of {run.data_interval.end.date()}" in RECIPES["Backfills"]


@pytest.fixture
def customers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A warehouse with three customers who spend much."""
    file = tmp_path / "warehouse.db"
    with closing(sqlite3.connect(file)) as database, database:
        database.execute("CREATE TABLE customers (customer_id text, lifetime_value int)")
        database.executemany("INSERT INTO customers VALUES (?, 5000)", [("anna",), ("bert",), ("carl",)])
    monkeypatch.setenv("AIRFLOW_CONN_WAREHOUSE", json.dumps({"conn_type": "sqlite", "host": str(file)}))


@pytest.mark.usefixtures("customers")
def test_the_first_run_of_a_mirror_that_runs_rules_is_triggered_with_the_size_of_the_audience(
    connect: Callable[..., None], talon: Emulator
) -> None:
    def run(max_additions: int) -> None:
        (block,) = re.findall(
            r"```python\n(.*?)```", RECIPES["Campaigns on Has joined an audience"], re.DOTALL
        )
        names: dict[str, Any] = {**PUBLIC, "DAG": DAG, "datetime": datetime}
        # The recipe does not name its DAG.
        exec(compile(block.replace("\n):\n", "\n) as dag:\n"), "docs", "exec"), names)
        context: Any = {"params": dict(names["dag"].params) | {"max_additions": max_additions}}
        task = names["dag"].get_task("vip")
        task.render_template_fields(context, jinja_env=names["dag"].get_template_env())
        task.execute(context)

    with pytest.raises(GuardError, match="3 additions, and max_additions is 2"):
        run(max_additions=2)
    run(max_additions=3)
    assert talon.members("vip") == {"anna", "bert", "carl"}
