"""A process that runs one task of ``talon_audience_sync``, to be killed; forked, as Airflow forks tasks."""

from __future__ import annotations

import os

from upath import UPath

from airflow_provider_talon_cdp.transfers import across_workers
from tests.conftest import attach
from tests.transfers.test_across_workers import execute


def run_task(environment, s3, operator, arguments, run_id, sender):
    """Execute a task, and send its result and its XCom ``planned``.

    Args:
        environment: Environment variables.
        s3: URL of the S3 API of ``s3://ledgers``, or None.
        operator: Name of the operator's class.
        arguments: Its arguments.
        run_id: ID of the DAG run.
        sender: Gets the result.
    """
    os.environ.update(environment)
    if s3:
        attach("s3", "ledgers", fs=UPath("s3://ledgers", endpoint_url=s3, key="a", secret="b").fs)
    sender.send(execute(getattr(across_workers, operator)(**arguments), run_id))
