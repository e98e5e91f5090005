"""Tests that run in a Python process of their own: those whose signal handlers raise.

Such an exception lands wherever the interpreter is. In a test process that may be inside coverage's tracer or
pytest's own code, whose locks then stay held, and the process hangs. The process that is started here has
neither a tracer nor xdist, nor a conftest.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# The inner limit names the test and shows where it hangs; the outer one is for a process that does not even
# do that.
SECONDS = 60
SECONDS_TO_KILL = 90


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem):
    """Run a test that is marked ``own_process`` there; its outcome and output become this one's."""
    if pyfuncitem.get_closest_marker("own_process") is None:
        return None
    command = [sys.executable, "-m", "pytest", "-q", "-ppytest_timeout", "--noconftest"]
    command += ["--timeout", str(SECONDS), f"{pyfuncitem.path}::{pyfuncitem.nodeid.partition('::')[2]}"]
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(("COV", "PYTEST_"))
    }
    # Without every other plugin that is installed: it starts in a tenth of the time.
    environment["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
    try:
        ran = subprocess.run(
            command,
            cwd=ROOT,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=SECONDS_TO_KILL,
            check=False,
        )
    except subprocess.TimeoutExpired as hung:
        pytest.fail(f"killed after {SECONDS_TO_KILL} s:\n{(hung.output or b'').decode()}", pytrace=False)
    if ran.returncode != 0 or "1 passed" not in ran.stdout:
        pytest.fail(ran.stdout, pytrace=False)
    return True
