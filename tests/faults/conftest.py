"""The connection to an emulator with other fields, and operators rendered as Airflow renders them."""

from __future__ import annotations

import datetime as dt
import json

import pytest
from airflow.providers.common.compat.sdk import DAG

from airflow_provider_talon_cdp.emulator import Emulator


@pytest.fixture
def talon():
    """A local Talon.One for each test: a request that one test gave up must not count in the next."""
    with Emulator() as emulator:
        yield emulator


@pytest.fixture
def connect(talon, monkeypatch):
    """Set the Airflow connection: the emulator's, with other fields; fast, as rates do not matter here."""

    def connect(extra=None, emulator=talon, **fields):
        connection = emulator.connection() | fields
        connection["extra"] = connection["extra"] | {"requests_per_second": 5000} | (extra or {})
        monkeypatch.setenv("AIRFLOW_CONN_TALON_CDP_DEFAULT", json.dumps(connection))

    connect()
    return connect


@pytest.fixture
def run(connect):
    """Render an operator's templates in a DAG and execute it; check that XCom could hold the result."""

    def run(operator, *, native=False, **context):
        dag = DAG(
            "dag",
            schedule=None,
            start_date=dt.datetime(2026, 1, 1, tzinfo=dt.UTC),
            render_template_as_native_obj=native,
        )
        dag.add_task(operator)
        operator.render_template_fields(context, jinja_env=dag.get_template_env())
        result = operator.execute(context)
        assert len(json.dumps(result)) < 3000
        return result

    return run


@pytest.fixture
def logged(caplog, capfd):
    """What was logged so far: in Airflow 3 an operator's own log goes past ``logging`` to the terminal."""
    caplog.set_level("DEBUG")

    def text():
        out, err = capfd.readouterr()
        return caplog.text + out + err

    return text
