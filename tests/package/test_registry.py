"""What Airflow's provider registry shows is what the package has."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest
import yaml

import airflow_provider_talon_cdp
from airflow_provider_talon_cdp.provider_info import get_provider_info

ROOT = Path(__file__).parents[2]
LISTED = yaml.safe_load((ROOT / ".airflow-registry.yaml").read_text())
MODULES = [entry["module"] for kind in ("hooks", "operators", "transfers", "other") for entry in LISTED[kind]]


@pytest.mark.parametrize("path", MODULES)
def test_what_is_listed_is_there(path):
    module, _, name = path.rpartition(".")
    assert getattr(importlib.import_module(module), name).__module__ == module


def test_every_public_name_is_listed():
    names = set(airflow_provider_talon_cdp.__all__) - {"__version__"}
    assert names == {path.rpartition(".")[2] for path in MODULES}


def test_the_registry_and_the_metadata_name_the_same_package():
    info = get_provider_info()
    assert LISTED["package-name"] == info["package-name"]
    assert LISTED["description"].rstrip(".") in info["description"]


def test_the_registry_shows_durable_execution_of_the_operators_that_resume_their_plan():
    """The registry reads the mark from a class's own body, where Python adds the class's name to it."""
    operators = [
        getattr(airflow_provider_talon_cdp, name)
        for name in airflow_provider_talon_cdp.__all__
        if name.endswith("Operator")
    ]
    marks = {
        name: value
        for each in operators
        for name, value in vars(each).items()
        if name.endswith("supports_durable_execution")
    }
    assert marks == {
        "_SyncAudienceMembersOperator__supports_durable_execution": True,
        "_SqlToTalonAudienceOperator__supports_durable_execution": True,
    }
