"""The wheel in an environment that has nothing else."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

from airflow_provider_talon_cdp.assets import IS_AIRFLOW_2

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


def test_airflows_command_lists_the_providers_hook_and_its_connection_type(airflow):
    listed = rows(airflow("-m", "airflow", "providers", "hooks", "--output", "json"))
    (ours,) = (row for row in listed if row["package_name"] == "airflow-provider-talon-cdp")
    assert ours["connection_type"] == "talon_cdp"
    assert ours["class"] == "airflow_provider_talon_cdp.hooks.talon_cdp.TalonCdpHook"
    assert ours["conn_id_attribute_name"] == "talon_cdp_conn_id"


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


# One process for all of it, as each takes seconds to import Airflow.
FOUND = """
import importlib, json, pkgutil
import airflow_provider_talon_cdp as us
from airflow.plugins_manager import get_plugin_info
from airflow.providers_manager import ProvidersManager
from airflow_provider_talon_cdp.assets import IS_AIRFLOW_2

manager = ProvidersManager()
try:
    from airflow.sdk.providers_manager_runtime import ProvidersManagerTaskRuntime
except ImportError:  # Airflow 2.11 and 3.1
    runtime = manager
else:
    runtime = ProvidersManagerTaskRuntime()
kind = "asset" if hasattr(runtime, "asset_uri_handlers") else "dataset"


def ours(found, prefix):
    # The values of others may need packages that are not installed.
    named = {name: found[name] for name in found if name.startswith(prefix)}
    return {name: f"{value.__module__}.{value.__qualname__}" for name, value in named.items()}


def imported():
    # Approvals and the tab are of Airflow 3.1 and newer.
    others = (".emulator.", "._approval", ".ui.page") if IS_AIRFLOW_2 else (".emulator.",)
    names = [module.name for module in pkgutil.walk_packages(us.__path__, us.__name__ + ".")]
    for name in names:
        if not any(each in name for each in others):
            importlib.import_module(name)
            yield name


found = {
    "providers": list(manager.providers),
    "plugins": get_plugin_info(),
    "extra_links": manager.extra_links_class_names,
    "handlers": ours(getattr(runtime, f"{kind}_uri_handlers"), "talon"),
    "factories": ours(getattr(runtime, f"{kind}_factories"), "talon"),
    "converters": ours(getattr(runtime, f"{kind}_to_openlineage_converters"), "talon"),
    "decorators": ours(runtime.taskflow_decorators, "talon"),
    "imported": list(imported()),
}
print(json.dumps(found, default=str))
"""


@pytest.fixture(scope="module")
def found(airflow):
    """What Airflow itself has found in the package, with the declared dependencies alone."""
    return json.loads(airflow("-c", FOUND).strip().splitlines()[-1])


def test_airflow_finds_the_provider(found):
    assert "airflow-provider-talon-cdp" in found["providers"]


def test_all_but_the_emulator_imports_with_the_declared_dependencies_alone(found):
    parts = {name.split(".")[1] for name in found["imported"]}
    assert parts >= {"api", "changes", "decorators", "hooks", "ledger", "operators", "sync", "transfers"}


def test_airflow_finds_the_plugin(found):
    (ours,) = (each for each in found["plugins"] if each["name"] == "talon_cdp")
    assert ours["source"].startswith("airflow-provider-talon-cdp==")
    if not IS_AIRFLOW_2:
        assert [each["name"] for each in ours["external_views"]] == ["Talon.One sync"]
        assert [each["url_prefix"] for each in ours["fastapi_apps"]] == ["/talon-cdp"]


def test_airflow_finds_the_extra_links(found):
    ours = [each for each in found["extra_links"] if each.startswith("airflow_provider_talon_cdp.")]
    assert sorted(ours) == [
        "airflow_provider_talon_cdp.operators._base.CampaignManagerLink",
        "airflow_provider_talon_cdp.operators._base.DeadLettersLink",
    ]


def test_airflow_finds_what_handles_the_uris_of_assets(found):
    for kind, function in (
        ("handlers", "sanitize_uri"),
        ("factories", "create_asset"),
        ("converters", "to_openlineage"),
    ):
        assert found[kind] == {"talon-cdp": f"airflow_provider_talon_cdp.assets.{function}"}


def test_airflow_finds_the_task_decorators(found):
    assert found["decorators"] == {
        "talon_audience": "airflow_provider_talon_cdp.decorators.talon_audience_task",
        "talon_profiles": "airflow_provider_talon_cdp.decorators.talon_profiles_task",
    }
