"""What Airflow is told about this provider, held against Airflow and against the code."""

from __future__ import annotations

import importlib
import json
import pkgutil
from importlib.metadata import entry_points
from importlib.resources import files

import jsonschema
import pytest
from airflow.providers.common.compat.sdk import BaseHook, BaseOperator

import airflow_provider_talon_cdp
from airflow_provider_talon_cdp import operators, transfers
from airflow_provider_talon_cdp.provider_info import get_provider_info

INFO = get_provider_info()


def texts(value):
    """All strings in nested lists and dictionaries."""
    if isinstance(value, dict):
        value = value.values()
    if isinstance(value, str):
        yield value
    elif not isinstance(value, int | None):
        for each in value:
            yield from texts(each)


def resolve(path):
    """A module, or an attribute of one."""
    try:
        return importlib.import_module(path)
    except ModuleNotFoundError:
        module, _, name = path.rpartition(".")
        return getattr(importlib.import_module(module), name)


def modules_with_operators(package):
    """Modules of a package that define an operator; helpers beside them define none."""
    return {
        name
        for _, name, _ in pkgutil.iter_modules(package.__path__, f"{package.__name__}.")
        if not name.rpartition(".")[2].startswith("_")
        and any(
            isinstance(value, type) and issubclass(value, BaseOperator) and value.__module__ == name
            for value in vars(importlib.import_module(name)).values()
        )
    }


PATHS = sorted({text for text in texts(INFO) if text.startswith(f"{airflow_provider_talon_cdp.__name__}.")})


def test_airflow_finds_this_function_by_its_entry_point():
    (entry_point,) = (
        each
        for each in entry_points(group="apache_airflow_provider")
        if each.dist.name == INFO["package-name"]
    )
    assert entry_point.load() is get_provider_info


def test_the_metadata_satisfies_airflows_schema():
    schema = json.loads(files("airflow").joinpath("provider_info.schema.json").read_text())
    jsonschema.Draft7Validator(schema).validate(INFO)


@pytest.mark.parametrize("path", PATHS)
def test_a_dotted_path_resolves(path):
    assert resolve(path)


def test_every_module_with_an_operator_is_listed():
    listed = {module for entry in INFO["operators"] for module in entry["python-modules"]}
    assert listed == modules_with_operators(operators)


def test_every_module_with_a_transfer_is_listed():
    assert {entry["python-module"] for entry in INFO["transfers"]} == modules_with_operators(transfers)


def test_the_connection_type_names_the_hook_that_serves_it():
    (entry,) = INFO["connection-types"]
    hook = resolve(entry["hook-class-name"])
    assert issubclass(hook, BaseHook)
    assert (hook.conn_type, hook.hook_name) == (entry["connection-type"], entry["hook-name"])


def test_operators_and_transfers_name_integrations_that_are_declared():
    declared = {entry["integration-name"] for entry in INFO["integrations"]}
    named = {
        text
        for kind in ("hooks", "operators", "transfers")
        for entry in INFO[kind]
        for key, text in entry.items()
        if key.endswith("integration-name")
    }
    assert named <= declared
