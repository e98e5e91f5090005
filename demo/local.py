"""What the two scripts share: an Airflow home, its settings, the local Talon.One, and processes that end."""

# ruff: noqa: INP001 - scripts, not a package

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import secrets
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

ROOT = Path(__file__).resolve().parent.parent
AIRFLOW_VERSION = version("apache-airflow")
DEPLOYMENT_HOST = "demo.europe-west1.talon.one"
_MARKER = ".talon-demo"
_TAIL = 25
_LINE = 300


class DemoError(Exception):
    """What went wrong, for a person."""


def say(text: str = "", end: str = "\n") -> None:
    """Write to the terminal at once."""
    sys.stdout.write(text + end)
    sys.stdout.flush()


def run_main(main: Any) -> int:
    """Run a script; its troubles become one message and an exit status."""
    # However it is ended, it ends what it started.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupt)
    try:
        main()
    except DemoError as error:
        sys.stderr.write(f"\n{error}\n")
        return 1
    except KeyboardInterrupt:
        say("Stopped.")
        return 130
    return 0


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def shown(path: Path) -> str:
    """A path as a person in this folder would type it."""
    with contextlib.suppress(ValueError):
        return str(path.relative_to(Path.cwd()))
    return str(path)


def prepare_home(home: Path, *, fresh: bool) -> Path:
    """Make the folder of a demo.

    Args:
        home: Where.
        fresh: Delete what an earlier demo left there.

    Raises:
        DemoError: The folder holds something that no demo made.
    """
    if home.exists() and not (home / _MARKER).exists() and (not home.is_dir() or any(home.iterdir())):
        raise DemoError(f"{home} holds files that this demo did not make. Choose another folder with --home.")
    if fresh and home.exists():
        shutil.rmtree(home)
    home.mkdir(parents=True, exist_ok=True)
    (home / _MARKER).touch()
    return home


def environment(home: Path, **settings: str) -> dict[str, str]:
    """The environment of an Airflow with this home, free of the user's own Airflow settings."""
    # Without its bytecode cache Airflow takes twice as long to start.
    unwanted = ("AIRFLOW", "PYTHONDONTWRITEBYTECODE")
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(unwanted)}
    bin_folder = str(Path(sys.executable).parent)
    return inherited | {
        "AIRFLOW_HOME": str(home),
        "AIRFLOW__CORE__DAGS_FOLDER": str(ROOT / "example_dags"),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "AIRFLOW__USAGE_DATA_COLLECTION__ENABLED": "False",
        "NO_PROXY": "127.0.0.1,localhost",
        "no_proxy": "127.0.0.1,localhost",
        "PATH": os.pathsep.join((bin_folder, os.environ.get("PATH", os.defpath))),
        **settings,
    }


def connections(home: Path, talon: Talon) -> dict[str, dict[str, Any]]:
    """The Airflow connections of the example DAGs."""
    url = urlsplit(talon.url)
    return {
        "talon_cdp_default": {
            "conn_type": "talon_cdp",
            "description": "The local Talon.One of the demo",
            # The Test button of Airflow 3.3.1 and 3.3.2 fails without a port (apache/airflow#73298).
            "host": f"{url.scheme}://{url.hostname}",
            "port": url.port,
            "password": talon.api_key,
            "extra": {
                "deployment_host": DEPLOYMENT_HOST,
                "platform_name": "Airflow demo",
                # The local one has no limit.
                "requests_per_second": 2000,
            },
        },
        "warehouse": {
            "conn_type": "sqlite",
            "description": "The warehouse of the demo",
            "host": str(home / "warehouse.db"),
        },
    }


def tail(log: Path) -> str:
    """The end of a log, and where the rest of it is."""
    lines = log.read_text(errors="replace").splitlines()[-_TAIL:]
    text = "\n".join(f"  | {line[:_LINE]}" for line in lines)
    return f"{text}\nThe whole log: {shown(log)}"


def run(arguments: Sequence[str], env: dict[str, str], log: Path, limit: float = 300) -> None:
    """Run a Python module to its end, with its output in a file.

    Raises:
        DemoError: It failed, or took too long.
    """
    with started(arguments, env, log) as process:
        try:
            status = process.wait(limit)
        except subprocess.TimeoutExpired:
            raise DemoError(f"{' '.join(arguments)} has not ended in {limit:.0f} s.\n{tail(log)}") from None
    if status:
        raise DemoError(f"{' '.join(arguments)} failed with status {status}.\n{tail(log)}")


@contextlib.contextmanager
def started(arguments: Sequence[str], env: dict[str, str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Start a Python module as a process; stop it, and what it started, in the end."""
    with log.open("wb") as output:
        process = subprocess.Popen(  # noqa: S603 - our own arguments
            [sys.executable, "-m", *arguments],
            cwd=ROOT,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            # A Ctrl-C is for this script, which then stops the others in their order.
            start_new_session=True,
        )
    try:
        yield process
    finally:
        _stop(process)


def _stop(process: subprocess.Popen[bytes]) -> None:
    for number, patience in ((signal.SIGINT, 10), (signal.SIGTERM, 5)):
        if process.poll() is None:
            process.send_signal(number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(patience)
    # Its session is its own, so this meets nothing but what it left behind.
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def get(url: str, path: str, limit: float = 10) -> tuple[int, bytes]:
    """GET from this machine, whatever proxy is set."""
    host = urlsplit(url)
    connection = http.client.HTTPConnection(str(host.hostname), host.port, timeout=limit)
    with contextlib.closing(connection):
        connection.request("GET", path)
        answer = connection.getresponse()
        return answer.status, answer.read()


@dataclass(frozen=True)
class Talon:
    """The local Talon.One: where it is, and what it holds."""

    url: str
    api_key: str = field(repr=False)

    def state(self) -> dict[str, Any]:
        """Audiences, and counters of requests."""
        return self._read("/emulator/state")

    def members(self) -> dict[str, set[str]]:
        """The members of each audience."""
        return {
            audience: set(self._read(f"/emulator/audiences/{quote(audience, safe='')}/members")["members"])
            for audience in self.state()["audiences"]
        }

    def attributes(self) -> dict[str, dict[str, Any]]:
        """The attributes of each profile."""
        profiles: dict[str, dict[str, Any]] = self._read("/emulator/profiles")["profiles"]
        return profiles

    def _read(self, path: str) -> dict[str, Any]:
        status, body = get(self.url, path)
        if status != http.client.OK:
            raise DemoError(f"The local Talon.One answers {status} to {path}.")
        answer: dict[str, Any] = json.loads(body)
        return answer


@contextlib.contextmanager
def local_talon(home: Path, port: int = 0) -> Iterator[Talon]:
    """Start the emulator, and wait until it answers.

    Args:
        home: Where its log and its state are.
        port: 0 for any that is free.

    Raises:
        DemoError: It does not start.
    """
    api_key = f"demo-{secrets.token_hex(16)}"
    log = home / "talon.log"
    arguments = ["airflow_provider_talon_cdp.emulator", "--port", str(port), "--api-key", api_key]
    arguments += ["--deployment-host", DEPLOYMENT_HOST, "--state-file", str(home / "talon.json")]
    with started(arguments, environment(home), log) as process:
        deadline = time.monotonic() + 30
        while process.poll() is None and time.monotonic() < deadline:
            # It tells its port when it answers already.
            if found := re.search(r"http://127\.0\.0\.1:\d+", log.read_text()):
                yield Talon(found[0], api_key)
                return
            time.sleep(0.05)
        raise DemoError(f"The local Talon.One does not start.\n{tail(log)}")
