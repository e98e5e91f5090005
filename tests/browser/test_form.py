"""The connection form of Airflow 3, as a person fills it in."""

from __future__ import annotations

import json
import uuid
from importlib.metadata import version
from urllib.parse import urlsplit

import pytest
import requests

from airflow_provider_talon_cdp.connection_form import FIELDS, PLACEHOLDERS, RELABELING

expect = pytest.importorskip("playwright.sync_api").expect

HIDDEN = ("schema", "login")
KEY = "the-key-of-a-test-0123456789"
# Something in each part of the form.
INSIDE = {
    "Standard Fields": "[name=host]",
    "Extra Fields": "[name=element_platform_name]",
    "Extra Fields JSON": ".monaco-editor .view-line",
}


@pytest.fixture(scope="module")
def url(airflow_3):
    return airflow_3.url


def new_form(page, url):
    """The form for a new connection of our type."""
    page.goto(f"{url}/connections", wait_until="domcontentloaded")
    page.get_by_role("button", name="Add Connection").click()
    form = page.get_by_role("dialog")
    form.get_by_role("combobox").first.click()
    page.keyboard.type("Talon.One")
    form.get_by_role("option", name="Talon.One CDP").click()
    return form


@pytest.fixture(scope="module")
def blank(page, url):
    """One form for all tests that only read it. They come first: the page shows another one afterwards."""
    return new_form(page, url)


@pytest.fixture
def form(page, url):
    return new_form(page, url)


def opened(form, part):
    """Open one part of the form; the others close."""
    button = form.get_by_role("button", name=part, exact=True)
    if button.get_attribute("aria-expanded") != "true":
        button.click()
    form.locator(INSIDE[part]).first.wait_for()


def saved(form, talon, extra=None, **fields):
    """Fill the form in and save it, also with an extra that is typed as JSON; return the connection's ID."""
    name, url = f"c{uuid.uuid4().hex}", urlsplit(talon.url)
    given = {"host": f"http://{url.hostname}", "port": str(url.port), "password": KEY} | fields
    form.locator("[name=connection_id]").fill(name)
    opened(form, "Standard Fields")
    for field, value in given.items():
        form.locator(f"[name={field}]").fill(value)
    deployment = talon.connection()["extra"]["deployment_host"]
    # The form takes a field when it is left.
    if extra:
        opened(form, "Extra Fields JSON")
        form.locator(".view-lines").click()
        form.locator(".monaco-editor.focused").wait_for()
        form.page.keyboard.press("Control+A")
        form.page.keyboard.insert_text(json.dumps({"deployment_host": deployment} | extra))
        # The editor has closed the brackets, too.
        form.page.keyboard.press("Control+Shift+End")
        form.page.keyboard.press("Delete")
        form.locator("[name=connection_id]").click()
    else:
        opened(form, "Extra Fields")
        form.locator("[name=element_deployment_host]").fill(deployment)
        form.locator("[name=element_environment]").fill("live")
        form.locator("[name=element_environment]").blur()
    form.get_by_role("button", name="Save").click()
    form.wait_for(state="hidden")
    return name


def row(page, url, name):
    page.goto(f"{url}/connections?name_pattern={name}", wait_until="domcontentloaded")
    return page.get_by_role("row").filter(has_text=name)


def told(page, url, name):
    """Press Test; return what Airflow says."""
    row(page, url, name).get_by_role("button", name="Test Connection").click()
    toast = page.locator("[data-scope=toast][data-part=root]").filter(has_text="Test Connection").first
    toast.wait_for()
    return toast.inner_text()


@pytest.mark.parametrize("field", FIELDS, ids=[each.name for each in FIELDS])
def test_each_field_has_its_label_its_help_its_default_and_its_bounds(blank, field):
    opened(blank, "Extra Fields")
    found = blank.locator(f"[id=element_{field.name}], [name=element_{field.name}]").first
    root = found.locator("xpath=ancestor::*[@data-scope='field' and @data-part='root'][1]")
    # A star is a required field's.
    star = ["*"] if field.required else []
    assert root.locator("label").inner_text().split() == [*field.label.split(), *star]
    told = root.locator("[data-part=helper-text]").inner_text()
    assert told == field.description
    # Airflow 3.3 shows no placeholders of extra fields, so the help has an example or the default.
    assert found.get_attribute("placeholder") in (None, field.placeholder)
    assert ("Europe/Berlin" if field.name == "timezone" else field.placeholder) in told
    assert (field.choices[0] in root.inner_text()) if field.choices else not found.input_value()
    if field.minimum is not None:
        assert found.get_attribute("role") == "spinbutton"
        assert found.get_attribute("aria-valuemin") == str(field.minimum)


@pytest.mark.parametrize("name", ["host", "password", "port"])
def test_a_standard_field_has_its_placeholder(blank, name):
    opened(blank, "Standard Fields")
    assert blank.locator(f"[name={name}]").get_attribute("placeholder") == PLACEHOLDERS[name]


def test_standard_fields_are_called_as_talon_one_calls_them_and_those_without_a_use_are_hidden(blank):
    opened(blank, "Standard Fields")
    labels = {each.split("*")[0].strip() for each in blank.locator("label").all_inner_texts()}
    assert {*RELABELING.values(), "Port"} <= labels
    assert not {"Schema", "Login", "Host", "Password"} & labels
    assert blank.locator("[name=password]").get_attribute("type") == "password"
    assert all(not blank.locator(f"[name={name}]").count() for name in HIDDEN)


def test_without_a_deployment_host_nothing_can_be_saved(form):
    form.locator("[name=connection_id]").fill("incomplete")
    opened(form, "Extra Fields")
    assert "This field is required" in form.inner_text()
    assert form.get_by_role("button", name="Save").is_disabled()


def test_a_number_below_its_minimum_becomes_the_minimum(form, url, talon):
    numbers = {each.name: each.minimum for each in FIELDS if each.minimum is not None}
    opened(form, "Extra Fields")
    for name, minimum in numbers.items():
        field = form.locator(f"[name=element_{name}]")
        field.fill(str(minimum - 1))
        field.blur()
        expect(field).to_have_value(str(minimum))
    connection = requests.get(f"{url}/api/v2/connections/{saved(form, talon)}", timeout=60).json()
    assert numbers.items() <= json.loads(connection["extra"]).items()


def test_a_number_in_the_extra_that_the_form_does_not_check_is_told(form, page, url, talon):
    said = told(page, url, saved(form, talon, extra={"timeout": 0}))
    assert said == "Test Connection Failed\nTimeout must be a number above 0, but is 0."


def test_a_port_may_stay_empty_but_not_be_another_one_than_in_the_base_url(form, page, url, talon):
    name = saved(form, talon, host=talon.url, port="")
    works = "Test Connection Successful\nTalon.One accepts this API key"
    # docs/connection.md says so.
    fails = version("apache-airflow") in ("3.3.1", "3.3.2")
    assert told(page, url, name).startswith("Test Connection Failed\nBad Request" if fails else works)
    row(page, url, name).get_by_role("button", name="Edit Connection").click()
    again = page.get_by_role("dialog")
    opened(again, "Standard Fields")
    again.locator("[name=port]").fill("443")
    again.get_by_role("button", name="Save").click()
    again.wait_for(state="hidden")
    said = told(page, url, name)
    assert said.startswith("Test Connection Failed\nBase URL")
    assert "port" in said


def test_a_saved_connection_keeps_its_key_and_hides_it(form, page, url, talon):
    name = saved(form, talon)
    assert told(page, url, name).startswith("Test Connection Successful")
    row(page, url, name).get_by_role("button", name="Edit Connection").click()
    again = page.get_by_role("dialog")
    opened(again, "Standard Fields")
    assert again.locator("[name=password]").input_value() == "***"
    assert KEY not in page.content()
    again.locator("[name=description]").fill("another")
    opened(again, "Extra Fields")
    assert again.locator("[name=element_environment]").input_value() == "live"
    assert again.locator("[name=element_timeout]").input_value() == ""
    again.get_by_role("button", name="Save").click()
    again.wait_for(state="hidden")
    assert told(page, url, name).startswith("Test Connection Successful")


def test_a_wrong_key_is_told(form, page, url, talon):
    said = told(page, url, saved(form, talon, password="wrong-key"))
    assert said.startswith("Test Connection Failed")
    assert "The API key is missing, wrong or expired" in said
    assert "wrong-key" not in page.content()


def test_a_wrong_host_is_told(form, page, url, talon):
    said = told(page, url, saved(form, talon, host="http://127.0.0.1", port="1"))
    assert said.startswith("Test Connection Failed")
    assert "127.0.0.1:1" in said
