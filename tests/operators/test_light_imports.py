"""What a DAG file pays for the import of an operator for single calls."""

from __future__ import annotations

import subprocess
import sys

import pytest


@pytest.mark.parametrize("module", ["audience", "profile"])
def test_an_operators_module_brings_neither_the_hook_nor_an_http_client(module):
    code = (
        "import sys; from airflow.providers.common.compat.sdk import BaseOperator, Context; "
        "before = set(sys.modules); "
        f"import airflow_provider_talon_cdp.operators.{module}; print(*sorted(set(sys.modules) - before))"
    )
    run = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    loaded = set(run.stdout.splitlines()[-1].split())
    assert {"requests", "aiohttp", "orjson"} & loaded == set()
    assert {each for each in loaded if ".hooks" in each or ".api" in each} == set()


def test_the_default_connection_is_the_hooks():
    from airflow_provider_talon_cdp.hooks.talon_cdp import TalonCdpHook  # noqa: PLC0415
    from airflow_provider_talon_cdp.operators.audience import DeleteAudienceOperator  # noqa: PLC0415

    operator = DeleteAudienceOperator(task_id="t", audience_id="vip")
    assert operator.talon_cdp_conn_id == TalonCdpHook().talon_cdp_conn_id == "talon_cdp_default"
