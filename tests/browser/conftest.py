"""Airflow's own web UI in headless Chromium, beside a local Talon.One: ``make test-browser``."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import time
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from airflow_provider_talon_cdp.emulator import Emulator
from tests.ports import free_port

sync_api = pytest.importorskip(
    "playwright.sync_api", reason="needs playwright: make test-browser installs it"
)

ROOT = Path(__file__).parents[2]
DAGS = Path(__file__).with_name("dags")
PATIENCE = 300
# Of one step in the page, in milliseconds; a machine with two cores may be busy.
STEP = 180_000
LINKS = ("Talon.One Campaign Manager", "Dead letters")


@dataclass(frozen=True)
class Served:
    """A running Airflow."""

    url: str
    talon_url: str
    home: Path
    password: str | None = None


@dataclass(frozen=True)
class Tab:
    """The tab *Talon.One sync* of a task instance: its text, its HTML, and what was loaded for the window."""

    text: str
    html: str
    hosts: set[str]
    loaded: list[str]


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
def airflow_2(served):
    """The oldest release."""
    return served(".venv-2.11")


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
    ports = [str(free_port()) for _ in range(2)]
    command = [python, str(ROOT / "demo" / "ui.py"), "--home", str(home), "--dags", str(DAGS)]
    command += ["--port", ports[0], "--talon-port", ports[1]]
    log = home.with_suffix(".log")
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            # A test that reads Airflow's log is not to wait until its buffer is full.
            env=os.environ | {"PYTHONUNBUFFERED": "1"},
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
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


@pytest.fixture(scope="module")
def page(browser):
    """A window of its own for a module: a browser caches what a page needs, and the UI is large."""
    context = browser.new_context(viewport={"width": 1300, "height": 1800}, locale="en-US")
    context.set_default_timeout(STEP)
    yield context.new_page()
    context.close()


@pytest.fixture(scope="module")
def window(page, airflow_2):
    """A page of somebody who is logged in to Airflow 2.11."""
    page.goto(f"{airflow_2.url}/login/", wait_until="domcontentloaded")
    page.fill("#username", "admin")
    page.fill("#password", airflow_2.password)
    page.click("input[type=submit]")
    page.wait_for_url("**/home")
    return page


@pytest.fixture
def tab(page):
    """A function that opens the tab of a task instance, whose URL it takes."""

    def opened(task):
        asked = []

        def note(request):
            asked.append(request)

        page.on("request", note)
        page.goto(f"{task}/plugin/talon-cdp-sync", wait_until="domcontentloaded")
        frame = page.wait_for_selector("iframe[title='Talon.One sync']").content_frame()
        frame.wait_for_selector("main section")
        frame.wait_for_load_state("load")
        page.remove_listener("request", note)
        return Tab(
            " ".join(frame.inner_text("body").split()),
            frame.content(),
            {urlsplit(each.url).netloc for each in asked if each.url.startswith("http")},
            [each.url for each in asked if each.frame == frame],
        )

    return opened


@pytest.fixture
def links(page):
    """A function that opens a page of a task instance and returns where its links lead."""

    def opened(url):
        page.goto(url, wait_until="domcontentloaded")
        page.get_by_role("link", name=LINKS[0]).wait_for()
        shown = {name: page.get_by_role("link", name=name, exact=True) for name in LINKS}
        return {name: each.get_attribute("href") for name, each in shown.items() if each.count()}

    return opened


@pytest.fixture
def talon():
    """A local Talon.One of its own with one key, to be named in the form."""
    with Emulator(api_key="the-key-of-a-test-0123456789") as emulator:
        yield emulator
