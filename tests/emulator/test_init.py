"""The emulator imports no Airflow and none of the client, and says so when its extra is missing."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def python(code):
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_it_imports_neither_airflow_nor_the_client():
    result = python(
        "import sys\n"
        "import airflow_provider_talon_cdp.emulator.__main__\n"
        "from airflow_provider_talon_cdp.emulator import Emulator\n"
        "with Emulator(): pass\n"
        "names = [name for name in sys.modules if name.split('.')[0].startswith('airflow')]\n"
        "print(sorted(names))"
    )
    assert result.stderr == ""
    modules = result.stdout.strip("[]\n").replace("'", "").split(", ")
    inside = "airflow_provider_talon_cdp.emulator"
    assert [name for name in modules if not name.startswith(inside)] == ["airflow_provider_talon_cdp"]


@pytest.mark.parametrize("missing", ["starlette", "uvicorn", "jinja2"])
def test_a_missing_extra_is_one_clear_error(missing):
    hide = f"import sys; sys.modules['{missing}'] = None\n"
    imported = python(f"{hide}from airflow_provider_talon_cdp.emulator import Emulator")
    assert (
        "ImportError: The Talon.One emulator needs Starlette, uvicorn and Jinja2: pip install"
        in imported.stderr
    )
    started = python(
        f"{hide}import runpy; sys.argv = ['x']\n"
        "runpy.run_module('airflow_provider_talon_cdp.emulator', run_name='__main__')"
    )
    assert started.stderr.startswith("talon emulator: The Talon.One emulator needs")
    assert "'airflow-provider-talon-cdp[emulator]'" in started.stderr
    assert (started.returncode, started.stderr.count("\n")) == (1, 1)


def test_other_names_are_no_part_of_it():
    result = python("from airflow_provider_talon_cdp.emulator import Emulatr")
    assert "cannot import name 'Emulatr'" in result.stderr
