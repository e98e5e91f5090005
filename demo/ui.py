"""``make ui``: Airflow's UI with the example DAGs and their connections, beside a local Talon.One."""

# ruff: noqa: INP001 - scripts, not a package

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import socket
import subprocess
import sys
import time
from importlib.metadata import entry_points
from pathlib import Path

from local import (
    AIRFLOW_VERSION,
    ROOT,
    DemoError,
    Talon,
    connections,
    environment,
    get,
    local_talon,
    prepare_home,
    run,
    run_main,
    say,
    shown,
    started,
    tail,
)

IS_AIRFLOW_2 = AIRFLOW_VERSION.startswith("2.")
HEALTH = "/health" if IS_AIRFLOW_2 else "/api/v2/monitor/health"
# Airflow 2 has no DAG processor of its own on the page.
PARTS = ("metadatabase", "scheduler") if IS_AIRFLOW_2 else ("metadatabase", "scheduler", "dag_processor")
PATIENCE = 240


def main() -> None:
    """Run until Ctrl-C.

    Raises:
        DemoError: A part does not start.
    """
    options = _options()
    if not [each for each in entry_points(group="apache_airflow_provider") if "talon" in each.value]:
        raise DemoError("Airflow does not know this provider here. Install it first: pip install -e .")
    for port in (options.port, options.talon_port):
        _refuse_taken(port)
    # Kept from one start to the next; a home belongs to one version of Airflow.
    home = prepare_home((options.home or ROOT / ".demo" / f"ui-{AIRFLOW_VERSION}").resolve(), fresh=False)
    url = f"http://127.0.0.1:{options.port}"
    env = environment(home, **_settings(url, options.port))
    if options.dags:
        env["AIRFLOW__CORE__DAGS_FOLDER"] = str(options.dags.resolve())
    with contextlib.ExitStack() as stack:
        talon = stack.enter_context(local_talon(home, options.talon_port))
        say(f"Starting Airflow {AIRFLOW_VERSION}; this takes a minute ...")
        run(["airflow", "db", "migrate"], env, home / "migrate.log")
        _import_connections(home, talon, env)
        log = home / "airflow.log"
        process = stack.enter_context(started(["airflow", "standalone"], env, log))
        _wait_until_healthy(process, url, log)
        say(f"\nAirflow    {url}   {_login(home)}")
        say(f"Talon.One  {talon.url}\n")
        say("Trigger talon_warehouse_to_audiences for 1998-05, then for 1998-06,")
        say("and watch the audiences change on Talon.One's page.")
        say("The connections are under Admin > Connections; Test asks Talon.One.\n")
        say(f"Log: {shown(log)}")
        say(f"Ctrl-C stops both; {shown(home)}/ keeps everything for the next start.")
        try:
            process.wait()
        except KeyboardInterrupt:
            say("\nStopping ...")
            raise
        raise DemoError(f"Airflow has stopped.\n{tail(log)}")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, default=8080, help="of Airflow (%(default)s)")
    parser.add_argument("--talon-port", type=int, default=8765, help="of the local Talon.One (%(default)s)")
    parser.add_argument("--dags", type=Path, help="folder of DAGs (example_dags)")
    parser.add_argument("--home", type=Path, help="folder to work in (.demo/ui-VERSION)")
    return parser.parse_args()


def _refuse_taken(port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            raise DemoError(
                f"Port {port} is taken ({error.strerror}). Choose others: demo/ui.py --port N --talon-port N"
            ) from error


def _settings(url: str, port: int) -> dict[str, str]:
    # On loopback alone, as nobody is asked for a password.
    server = (
        {"AIRFLOW__WEBSERVER__WEB_SERVER_HOST": "127.0.0.1", "AIRFLOW__WEBSERVER__WEB_SERVER_PORT": str(port)}
        if IS_AIRFLOW_2
        else {
            "AIRFLOW__API__HOST": "127.0.0.1",
            "AIRFLOW__API__PORT": str(port),
            "AIRFLOW__API__BASE_URL": url,
            "AIRFLOW__CORE__EXECUTION_API_SERVER_URL": f"{url}/execution/",
            "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_ALL_ADMINS": "True",
        }
    )
    return server | {
        "AIRFLOW__CORE__TEST_CONNECTION": "Enabled",
        "AIRFLOW__CORE__DAGS_ARE_PAUSED_AT_CREATION": "False",
    }


def _import_connections(home: Path, talon: Talon, env: dict[str, str]) -> None:
    file = home / "connections.json"
    file.touch(mode=0o600)
    try:
        file.write_text(json.dumps(connections(home, talon)))
        run(["airflow", "connections", "import", "--overwrite", str(file)], env, home / "connections.log")
    finally:
        file.unlink()


def _wait_until_healthy(process: subprocess.Popen[bytes], url: str, log: Path) -> None:
    deadline = time.monotonic() + PATIENCE
    while process.poll() is None and time.monotonic() < deadline:
        with contextlib.suppress(OSError, http.client.HTTPException, ValueError):
            health = json.loads(get(url, HEALTH)[1])
            if all(health.get(part, {}).get("status") == "healthy" for part in PARTS):
                return
        time.sleep(0.5)
    raise DemoError(f"Airflow does not start.\n{tail(log)}")


def _login(home: Path) -> str:
    if not IS_AIRFLOW_2:
        return "(no login)"
    password = (home / "standalone_admin_password.txt").read_text().strip()
    return f"(login: admin, password: {password})"


if __name__ == "__main__":
    sys.exit(run_main(main))
