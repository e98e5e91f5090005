"""The command beside a real Airflow."""

from __future__ import annotations

import subprocess
import sys

from airflow.models.connection import Connection
from airflow.utils.session import create_session

# An object store whose client asks Airflow for its connection, as that of S3 does.
SCRIPT = """
import runpy
from airflow.providers.common.compat import sdk

def storage(uri):
    print("reached", sdk.BaseHook.get_connection("store").host)
    raise SystemExit

sdk.ObjectStoragePath = storage
runpy.run_module("airflow_provider_talon_cdp", run_name="__main__")
"""


def python(*arguments):
    done = subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    # Only the command's own lines are in stdout.
    return done.stderr


def test_the_command_finds_the_connections_in_airflows_database():
    with create_session() as session:
        session.add(Connection("store", "generic", host="bucket.test"))
    place = ["--state-uri", "x://store@y", "--deployment-host", "acme.talon.one", "--audience-id", "vip"]
    assert "reached bucket.test" in python("-c", SCRIPT, "ledger", "show", *place)
