"""The connection form of Airflow 2.11, as a person fills it in."""

from __future__ import annotations

import os
import subprocess
import uuid
from urllib.parse import urlsplit

import pytest

from airflow_provider_talon_cdp.connection_form import FIELDS, PLACEHOLDERS, RELABELING

KEY = "the-key-of-a-test-0123456789"
ENVIRONMENT = ".venv-2.11"


@pytest.fixture
def form(window, airflow_2):
    """The form for a new connection of our type."""
    window.goto(f"{airflow_2.url}/connection/add", wait_until="load")
    window.locator("#conn_type").select_option("talon_cdp", force=True)
    window.locator("[name=extra__talon_cdp__deployment_host]").wait_for()
    return window


def filled(form, talon, **fields):
    url = urlsplit(talon.url)
    host = talon.connection()["extra"]["deployment_host"]
    standard = {"host": f"http://{url.hostname}", "port": str(url.port), "password": KEY} | fields
    ours = {"deployment_host": host, "environment": "live"}
    name = f"c{uuid.uuid4().hex}"
    for field, value in {"conn_id": name, **standard}.items():
        form.fill(f"[name={field}]", value)
    for field, value in ours.items():
        form.fill(f"[name=extra__talon_cdp__{field}]", value)
    return name


def told(form):
    """Press Test; return what Airflow says."""
    form.click("#test-connection")
    # Of what is told, one hint is always there.
    alert = form.locator(".alert").filter(has_not_text="Fields that are currently populated")
    alert.first.wait_for()
    return alert.first.inner_text()


def save(form, said):
    form.click("button[type=submit]:has-text('Save')")
    form.locator(".alert").filter(has_text=said).first.wait_for()


def test_all_is_labelled_explained_and_suggested_and_nothing_else_is_shown(form):
    rows = {}
    for row in form.locator("#model_form tr").all():
        if row.is_visible() and (fields := row.locator("input[name], textarea[name]")).count():
            first, _, help_ = row.inner_text().partition("\t")
            rows[fields.first.get_attribute("name")] = (
                first.strip(),
                fields.first.get_attribute("placeholder"),
                help_.strip(),
            )
    assert rows.pop("extra")[:2] == ("Extra", PLACEHOLDERS["extra"])
    assert rows.pop("conn_id")[0] == "Connection Id *"
    assert rows.pop("description")[0] == "Description"
    assert rows == {
        "host": (RELABELING["host"], PLACEHOLDERS["host"], ""),
        "password": (RELABELING["password"], PLACEHOLDERS["password"], ""),
        "port": ("Port", "443", ""),
    } | {
        f"extra__talon_cdp__{each.name}": (each.label, each.placeholder, each.description) for each in FIELDS
    }


def test_a_saved_connection_keeps_its_key_and_hides_it(form, airflow_2, talon):
    name = filled(form, talon)
    save(form, "Added Row")
    form.goto(f"{airflow_2.url}/connection/list/?_flt_3_conn_id={name}")
    row = form.get_by_role("row").filter(has_text=name)
    form.goto(airflow_2.url + row.locator("a[href*='/connection/edit/']").first.get_attribute("href"))
    form.locator("[name=extra__talon_cdp__environment]").wait_for()
    assert form.locator("[name=extra__talon_cdp__environment]").input_value() == "live"
    assert form.locator("[name=password]").input_value() == ""
    assert KEY not in form.content()
    form.fill("textarea[name=description]", "another")
    save(form, "Changed Row")
    # The edit form tests what is typed into it, so what is stored is tested by Airflow's command.
    env = {name: value for name, value in os.environ.items() if not name.startswith("AIRFLOW")}
    env |= {"AIRFLOW_HOME": str(airflow_2.home), "AIRFLOW__CORE__TEST_CONNECTION": "Enabled"}
    command = [f"{ENVIRONMENT}/bin/python", "-m", "airflow", "connections", "test", name]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300, check=False)
    assert "Connection success!" in done.stdout, done.stdout + done.stderr


def test_a_right_key_is_told(form, talon):
    filled(form, talon)
    assert "Talon.One accepts this API key" in told(form)


def test_a_wrong_key_is_told(form, talon):
    filled(form, talon, password="wrong-key")
    assert "The API key is missing, wrong or expired" in told(form)


def test_a_wrong_host_is_told(form, talon):
    filled(form, talon, host="http://127.0.0.1", port="1")
    assert "127.0.0.1:1" in told(form)


def test_a_port_may_stay_empty(form, talon):
    filled(form, talon, host=talon.url, port="")
    assert "Talon.One accepts this API key" in told(form)
    save(form, "Added Row")


def test_another_port_than_that_in_the_base_url_is_told(form, talon):
    filled(form, talon, host=talon.url, port="443")
    said = told(form)
    assert "Base URL" in said
    assert "port" in said


def test_a_number_below_its_minimum_is_refused(form, talon):
    numbers = {each.name: each.minimum for each in FIELDS if each.minimum is not None}
    name = filled(form, talon)
    for field, minimum in numbers.items():
        form.fill(f"[name=extra__talon_cdp__{field}]", str(minimum - 1))
    with form.expect_response(lambda answer: answer.request.method == "POST") as answer:
        form.click("button[type=submit]:has-text('Save')")
    # Airflow's script then writes a warning of its own into each box with an error.
    told = answer.value.text()
    for minimum in set(numbers.values()):
        assert told.count(f"Number must be at least {minimum}.") == list(numbers.values()).count(minimum)
    for field in numbers:
        row = form.locator("tr").filter(has=form.locator(f"[name=extra__talon_cdp__{field}]"))
        row.locator(".alert").wait_for()
    assert form.locator("[name=conn_id]").input_value() == name
