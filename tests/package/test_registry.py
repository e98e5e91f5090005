"""What Airflow's provider registry shows is what the package has."""

from __future__ import annotations

import importlib
import inspect
from pathlib import Path

import pytest
import yaml
from airflow.providers.common.compat.sdk import BaseHook, BaseOperator

from airflow_provider_talon_cdp.provider_info import get_provider_info

ROOT = Path(__file__).parents[2]
LISTED = yaml.safe_load((ROOT / ".airflow-registry.yaml").read_text())
MODULES = [entry["module"] for kind in ("hooks", "operators", "transfers", "other") for entry in LISTED[kind]]


@pytest.mark.parametrize("path", MODULES)
def test_what_is_listed_is_there(path):
    module, _, name = path.rpartition(".")
    assert getattr(importlib.import_module(module), name).__module__ == module


@pytest.mark.parametrize(
    "folder, files, base",
    [
        ("hooks", "[!_]*.py", BaseHook),
        ("operators", "[!_]*.py", BaseOperator),
        # The others are the tasks inside a TaskGroup.
        ("transfers", "sql_to_*.py", BaseOperator),
    ],
)
def test_every_public_hook_and_operator_is_listed(folder, files, base):
    found = set()
    for path in (ROOT / "airflow_provider_talon_cdp" / folder).glob(files):
        name = f"airflow_provider_talon_cdp.{folder}.{path.stem}"
        module = importlib.import_module(name)
        found |= {
            f"{name}.{member.__name__}"
            for member in vars(module).values()
            if inspect.isclass(member)
            and issubclass(member, base)
            and member.__module__ == name
            and not member.__name__.startswith("_")
        }
    assert found == {entry["module"] for entry in LISTED[folder]}


def test_the_registry_and_the_metadata_name_the_same_package():
    info = get_provider_info()
    assert LISTED["package-name"] == info["package-name"]
    assert LISTED["description"].rstrip(".") in info["description"]
