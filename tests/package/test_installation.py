"""The wheel in an environment that has nothing else."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def run(*command, **options):
    """Run a command and return its output; a failure shows all of it."""
    done = subprocess.run(command, capture_output=True, text=True, check=False, **options)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def airflow(wheel, tmp_path_factory):
    """A command line of Airflow, where the wheel was installed with the pins of the running Airflow."""
    folder = tmp_path_factory.mktemp("empty")
    python = folder / "venv/bin/python"
    minor = ".".join(version("apache-airflow").split(".")[:2])
    uv = [sys.executable, "-m", "uv", "--quiet"]
    run(*uv, "venv", "--python", sys.executable, folder / "venv")
    pins = ROOT / f"constraints/airflow-{minor}.txt"
    run(*uv, "pip", "install", "--python", python, "--constraint", pins, wheel)
    settings = {name: value for name, value in os.environ.items() if not name.startswith("AIRFLOW")}
    settings |= {"AIRFLOW_HOME": str(folder / "home"), "AIRFLOW__CORE__LOAD_EXAMPLES": "False"}

    def call(*arguments):
        return run(python, "-W", "ignore", *arguments, env=settings, cwd=folder)

    return call


def rows(text):
    """The JSON list in a command's output, which older releases print log lines around."""
    return json.loads(text[text.index("[{") : text.rindex("}]") + 2])


def test_airflow_lists_the_provider(airflow):
    listed = rows(airflow("-m", "airflow", "providers", "list", "--output", "json"))
    assert "airflow-provider-talon-cdp" in [row["package_name"] for row in listed]


def test_airflow_lists_the_hook_and_its_connection_type(airflow):
    listed = rows(airflow("-m", "airflow", "providers", "hooks", "--output", "json"))
    (ours,) = (row for row in listed if row["package_name"] == "airflow-provider-talon-cdp")
    assert ours["connection_type"] == "talon_cdp"
    assert ours["class"] == "airflow_provider_talon_cdp.hooks.talon_cdp.TalonCdpHook"
    assert ours["conn_id_attribute_name"] == "talon_cdp_conn_id"


def test_all_but_the_emulator_imports_with_the_declared_dependencies_alone(airflow):
    airflow(
        "-c",
        "import importlib, pkgutil, airflow_provider_talon_cdp as us\n"
        "from airflow_provider_talon_cdp.assets import IS_AIRFLOW_2\n"
        "for module in pkgutil.walk_packages(us.__path__, us.__name__ + '.'):\n"
        # Approvals and the tab are of Airflow 3.1 and newer.
        "    others = ('.emulator.', '._approval', '.ui.page') if IS_AIRFLOW_2 else ('.emulator.',)\n"
        "    if not any(each in module.name for each in others):\n"
        "        importlib.import_module(module.name)\n",
    )


def test_the_emulator_without_its_extra_says_what_to_install(airflow):
    """Airflow 3 brings the emulator's dependencies by itself, so there it just works."""
    code = (
        "try:\n"
        "    from airflow_provider_talon_cdp.emulator import Emulator\n"
        "except ImportError as error:\n"
        "    print(error)\n"
        "else:\n"
        "    print('works')\n"
    )
    answer = airflow("-c", code).strip()
    assert answer == "works" or "airflow-provider-talon-cdp[emulator]" in answer
