"""The Test button of the connection form."""

from __future__ import annotations

import json
import socket

import pytest
from airflow.providers.common.compat.sdk import Connection

from airflow_provider_talon_cdp.emulator import Emulator
from airflow_provider_talon_cdp.hooks.talon_cdp import TalonCdpHook


@pytest.fixture(params=["plural", "singular"])
def deployment(request):
    with Emulator(multi_profile_path=request.param) as emulator:
        yield emulator


@pytest.mark.parametrize("spelling", ["plural", "singular"])
def test_it_changes_nothing_in_either_spelling(connect, deployment, spelling):
    """Above all it does not create a profile named ``audiences``."""
    ok, message = connect({"multi_profile_path": spelling}, host=deployment.url).test_connection()
    right = deployment.state()["multi_profile_path"] == spelling
    assert ok is right
    assert ("accepts" if right else "404") in message
    assert deployment.profiles() == frozenset()
    assert deployment.audiences() == {}
    assert deployment.state()["requests"]["total"] == 1


def test_a_wrong_spelling_is_named(connect, deployment):
    """Nothing else is wrong with such a connection, so the answer must not blame the audience."""
    other = {"plural": "singular", "singular": "plural"}[deployment.state()["multi_profile_path"]]
    _, message = connect({"multi_profile_path": other}, host=deployment.url).test_connection()
    assert "Multi-profile path" in message
    assert "audience does not exist" not in message


def test_a_wrong_key_is_told(connect, talon):
    ok, message = connect(password="wrong-key").test_connection()
    assert not ok
    assert "API key" in message
    assert "wrong-key" not in message


def test_a_wrong_deployment_host_is_told(connect, talon):
    ok, message = connect({"deployment_host": "other.talon.one"}).test_connection()
    assert not ok
    assert "Deployment host" in message
    assert "API key" not in message


def test_an_unreachable_host_is_told_at_once(connect, closed_port):
    ok, message = connect(host=f"http://127.0.0.1:{closed_port}").test_connection()
    assert not ok
    assert "no answer" in message
    assert "Base URL" in message


def test_a_host_that_does_not_exist_is_told(connect):
    ok, message = connect(host="https://no-such-host.invalid").test_connection()
    assert not ok
    assert "Base URL" in message


@pytest.mark.parametrize("fault", [{"kind": "html"}, {"kind": "status", "status": 404, "html": "<p>nothing"}])
def test_an_html_page_is_told(connect, talon, fault):
    talon.fail_next(fault.pop("kind"), **fault)
    ok, message = connect().test_connection()
    assert not ok
    assert "HTML" in message


@pytest.mark.parametrize("status", [429, 500, 503])
def test_an_overloaded_service_is_told_after_one_attempt(connect, talon, status):
    talon.fail_next("status", times=None, status=status)
    ok, message = connect().test_connection()
    assert not ok
    assert str(status) in message
    assert len(talon.requests()) == 1


def test_a_service_that_says_nothing_is_told_after_the_timeout(connect):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        hook = connect({"timeout": 0.3}, host=f"http://127.0.0.1:{silent.getsockname()[1]}")
        ok, message = hook.test_connection()
    assert not ok
    assert "timed out" in message


def test_an_incomplete_connection_is_told(connect):
    ok, message = connect(password="").test_connection()
    assert not ok
    assert message.startswith("API key is missing")


@pytest.mark.parametrize(
    "fields", [{"password": ""}, {"extra": {"deployment_host": ""}}, {"extra": {"verify": "/no/such/ca.pem"}}]
)
def test_the_id_of_the_copy_that_airflow_tests_is_not_shown(talon, monkeypatch, fields):
    """Its Test button makes a connection of the form's values, under an ID of random letters."""
    connection = talon.connection() | {name: value for name, value in fields.items() if name != "extra"}
    connection["extra"] = connection["extra"] | fields.get("extra", {})
    monkeypatch.setenv("AIRFLOW_CONN_QWERTZ", json.dumps(connection))
    ok, message = TalonCdpHook("qwertz").test_connection()
    assert not ok
    assert "qwertz" not in message


def test_port_0_of_the_test_button_means_no_port(talon, monkeypatch):
    host = talon.url.removeprefix("http://")
    connection = Connection(
        conn_id="copy",
        conn_type="talon_cdp",
        password=talon.connection()["password"],
        host=f"http://{host}",
        port=0,
        extra=json.dumps(talon.connection()["extra"]),
    )
    monkeypatch.setattr(TalonCdpHook, "get_connection", classmethod(lambda cls, conn_id: connection))
    assert TalonCdpHook("copy").test_connection()[0]


@pytest.mark.parametrize(
    "extra", [{"verify": "/no/such/ca.pem"}, {"cert": "/no/such/cert.pem"}, {"timeout": 1e300}]
)
def test_no_field_of_the_connection_makes_it_raise(connect, tls, extra):
    ok, message = connect(extra, host=f"https://{tls.authority}").test_connection()
    assert not ok
    assert message


@pytest.mark.parametrize("status, accepted", [(400, True), (405, False)])
def test_an_answer_that_refuses_only_the_empty_list_accepts_the_key(connect, talon, status, accepted):
    talon.fail_next("status", status=status)
    ok, _ = connect().test_connection()
    assert ok is accepted


def test_a_page_that_refuses_the_request_is_not_talon_one(connect, talon):
    talon.fail_next("status", status=400, html="<html>no</html>")
    ok, _ = connect().test_connection()
    assert not ok
