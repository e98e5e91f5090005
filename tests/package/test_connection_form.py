"""The connection form as Airflow builds it: from metadata since 3.2, from the hook's methods before."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest

from airflow_provider_talon_cdp import connection_form
from airflow_provider_talon_cdp.api.settings import Settings
from airflow_provider_talon_cdp.hooks.talon_cdp import TalonCdpHook
from airflow_provider_talon_cdp.provider_info import get_provider_info

BUILD = Path(__file__).with_name("build_connection_form.py")


@pytest.fixture(scope="module")
def form():
    """Built in a process of its own: Airflow 3 puts mocks of its old web server in ``sys.modules``."""
    command = [sys.executable, "-W", "ignore", BUILD]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout.splitlines()[-1])


def test_every_field_is_shown_with_its_label_and_description(form):
    shown = {name: (field["label"], field["description"]) for name, field in form["fields"].items()}
    assert shown == {each.name: (each.label, each.description) for each in connection_form.FIELDS}


def test_a_field_takes_what_the_hook_reads(form):
    assert form["fields"]["requests_per_second"]["type"] == "integer"
    assert form["fields"]["timeout"]["type"] == "integer"
    assert form["fields"]["deployment_host"]["type"] == "string"
    assert form["fields"]["multi_profile_path"]["choices"] == ["plural", "singular"]


def test_fields_that_mean_nothing_to_talon_one_are_hidden(form):
    assert sorted(form["hidden"]) == ["login", "schema"]


def test_password_and_host_say_what_they_are(form):
    assert form["relabeling"] == {"password": "API key", "host": "Base URL"}


def test_password_and_host_say_what_to_enter(form):
    assert form["placeholders"]["password"] == connection_form.PLACEHOLDERS["password"]
    assert form["placeholders"]["host"] == connection_form.PLACEHOLDERS["host"]


def test_the_port_is_shown_with_the_usual_one(form):
    """Without it a user of Airflow 3.3.1 and 3.3.2 cannot press Test."""
    assert form["placeholders"]["port"] == "443"


def test_only_the_deployment_host_must_be_filled_in():
    """Airflow 3 shows a red star where null is not a type, and offers null where it is a choice."""
    schemas = {name: field["schema"] for name, field in connection_form.conn_fields().items()}
    assert [name for name, schema in schemas.items() if "null" not in schema["type"]] == ["deployment_host"]
    assert schemas["multi_profile_path"]["enum"] == ["plural", "singular"]


@pytest.mark.parametrize(
    "name, minimum",
    [("requests_per_second", 1), ("timeout", 1), ("call_retry_seconds", 0), ("bulk_retry_seconds", 0)],
)
def test_a_number_has_its_minimum(name, minimum):
    assert connection_form.conn_fields()[name]["schema"]["minimum"] == minimum


def test_the_form_has_the_fields_that_the_hook_reads():
    read = {each.name for each in fields(Settings)} - {"api_key", "base_url"}
    assert {each.name for each in connection_form.FIELDS} == read


def test_a_default_that_the_form_names_is_the_hooks():
    for each in connection_form.FIELDS:
        default = each.description.partition("Default: ")[2].partition(";")[0]
        if default:
            assert default == str(Settings.__dataclass_fields__[each.name].default).removesuffix(".0")


def test_the_hooks_method_and_the_metadata_say_the_same():
    """So the form does not change with an upgrade of Airflow from 3.1 to 3.2."""
    (entry,) = get_provider_info()["connection-types"]
    behaviour = TalonCdpHook.get_ui_field_behaviour()
    assert {key.replace("_", "-"): value for key, value in behaviour.items()} == entry["ui-field-behaviour"]
