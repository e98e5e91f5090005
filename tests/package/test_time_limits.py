"""A test that hangs is named and ended, and the run goes on."""

from __future__ import annotations

import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SETTINGS = ROOT / "pyproject.toml"
HANGING = {
    "in_python": "while True: pass",
    "in_a_lock": "import threading; threading.Semaphore(0).acquire()",
    # Keeps the interpreter's lock, so that no Python thread can end it.
    "in_c_code": "import ctypes; ctypes.PyDLL(None).sleep(60)",
}


def workers_of_make():
    """How make calls pytest, with two processes on any machine."""
    (call,) = re.findall(r"^PYTEST = python -m pytest (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    return ["-pxdist", *call.replace("logical", "2").split()]


@pytest.mark.slow
@pytest.mark.parametrize("where", HANGING)
@pytest.mark.parametrize("processes", [(), workers_of_make()], ids=["one", "workers"])
def test_a_test_that_hangs_is_named_and_ended(tmp_path, monkeypatch, where, processes):
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    monkeypatch.delenv("PYTEST_ADDOPTS", raising=False)
    tests = f"""
        def test_before(): pass
        def test_hangs():
            {HANGING[where]}
        def test_after(): pass
    """
    (tmp_path / "test_them.py").write_text(textwrap.dedent(tests))
    (tmp_path / "test_others.py").write_text("def test_one(): pass\ndef test_two(): pass\n")
    command = [sys.executable, "-m", "pytest", "-c", SETTINGS, "--rootdir", tmp_path, "-ppytest_timeout"]
    command += [*processes, "--timeout=1", "-ofaulthandler_timeout=3", "-pno:cacheprovider", "."]
    ran = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
    assert ran.returncode != 0
    if processes:
        assert "crashed while running 'test_them.py::test_hangs'" in ran.stdout
        # Once: no other process is given it.
        assert "1 failed, 3 passed" in ran.stdout
    else:
        # The stacks of all threads: where it hangs, and in which test.
        assert "in test_hangs" in ran.stdout + ran.stderr


@pytest.mark.own_process
def test_a_test_with_its_own_process_has_no_tracer():
    assert sys.gettrace() is None
    assert "coverage" not in sys.modules
    assert "xdist" not in sys.modules
