"""Airflow's own web UI in headless Chromium, beside a local Talon.One: ``make test-browser``."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import time
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

from airflow_provider_talon_cdp.emulator import Emulator

sync_api = pytest.importorskip(
    "playwright.sync_api", reason="needs playwright: make test-browser installs it"
)

ROOT = Path(__file__).parents[2]
DAGS = Path(__file__).with_name("dags")
PATIENCE = 300
# Of one step in the page; a machine with two cores may be busy.
STEP = 60_000


@dataclass(frozen=True)
class Served:
    """A running Airflow."""

    url: str
    talon_url: str
    home: Path
    password: str | None = None


@pytest.fixture(scope="session")
def browser():
    """Debian's Chromium."""
    executable = shutil.which("chromium") or shutil.which("chromium-browser")
    if executable is None:
        pytest.skip("needs chromium (Debian: apt install chromium)")
    # As root, which CI may be, Chromium has no sandbox. It sees nothing but loopback here.
    arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
    with sync_api.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=executable, args=arguments)
        yield chromium
        chromium.close()


@pytest.fixture(scope="session")
def airflow_3(served):
    """The main release."""
    return served(".venv-browser")


@pytest.fixture(scope="session")
def served(tmp_path_factory, browser):
    """A function that starts ``demo/ui.py`` of an environment."""
    with contextlib.ExitStack() as stack:

        @cache
        def serve(environment: str) -> Served:
            python = ROOT / environment / "bin" / "python"
            if not python.exists():
                pytest.skip(f"needs {environment}: make {environment}/.ready")
            return stack.enter_context(_served(str(python), tmp_path_factory.mktemp("airflow") / "home"))

        yield serve


@contextlib.contextmanager
def _served(python, home):
    ports = [str(_free_port()) for _ in range(2)]
    command = [python, str(ROOT / "demo" / "ui.py"), "--home", str(home), "--dags", str(DAGS)]
    command += ["--port", ports[0], "--talon-port", ports[1]]
    log = home.with_suffix(".log")
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, start_new_session=True)
    try:
        deadline = time.monotonic() + PATIENCE
        while "Ctrl-C stops both" not in log.read_text():
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.5)
        password = re.search(r"password: (\S+)\)", log.read_text())
        url, talon_url = (f"http://127.0.0.1:{port}" for port in ports)
        yield Served(url, talon_url, home, password and password[1])
    finally:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(40)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="module")
def page(browser):
    """A window of its own for a module: a browser caches what a page needs, and the UI is large."""
    context = browser.new_context(viewport={"width": 1300, "height": 1800}, locale="en-US")
    context.set_default_timeout(STEP)
    yield context.new_page()
    context.close()


@pytest.fixture
def talon():
    """A local Talon.One of its own with one key, to be named in the form."""
    with Emulator(api_key="the-key-of-a-test-0123456789") as emulator:
        yield emulator
