"""The session is HttpHook's, and there is one per hook."""

from __future__ import annotations

import copy
import json
import pickle
import socket

import pytest
import requests
from airflow.providers.common.compat.sdk import BaseHook
from airflow.providers.http.hooks.http import HttpHook

from airflow_provider_talon_cdp.hooks.talon_cdp import TalonCdpHook

# Any file will do: nothing is sent in these tests.
EXTRAS = {
    "proxies": {"https": "http://proxy.invalid:3128"},
    "verify": __file__,
    "cert": [__file__, __file__],
    "trust_env": False,
}


@pytest.fixture
def http_session(monkeypatch, connect):
    """What HttpHook itself makes of the same connection."""

    def http_session(hook):
        return HttpHook(http_conn_id=hook.talon_cdp_conn_id).get_conn()

    return http_session


def test_the_session_takes_proxies_and_certificates_from_the_connection_as_http_hook_does(
    connect, http_session
):
    hook = connect(EXTRAS)
    ours, theirs = hook.get_conn(), http_session(hook)
    for name in ("proxies", "verify", "trust_env", "stream"):
        assert getattr(ours, name) == getattr(theirs, name), name
    # A tuple, because urllib3 keys its pools by it.
    assert ours.cert == tuple(theirs.cert)
    assert ours.proxies == {"https": "http://proxy.invalid:3128"}
    assert ours.trust_env is False


@pytest.mark.parametrize("old, new", [("proxy", "proxies"), ("verify_ssl", "verify")])
def test_the_other_spelling_that_http_hook_takes_works_too(connect, old, new):
    value = {"proxy": {"https": "http://p.invalid:1"}, "verify_ssl": False}[old]
    assert getattr(connect({old: value}).get_conn(), new) == value


def test_the_session_keeps_idle_connections_alive_as_http_hook_does(connect, http_session):
    hook = connect()
    ours, theirs = hook.get_conn().get_adapter("https://x"), http_session(hook).get_adapter("https://x")
    assert type(ours) is type(theirs)
    assert (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1) in ours.poolmanager.connection_pool_kw[
        "socket_options"
    ]


def test_no_extra_and_no_secret_becomes_a_header_of_the_session(connect):
    session = connect(EXTRAS | {"timezone": "UTC", "timeout": 3, "multi_profile_path": "plural"}).get_conn()
    assert session.headers == requests.utils.default_headers()
    assert session.auth is None


def test_no_extra_travels_to_talon_one_as_a_header(connect, requests_mock):
    requests_mock.delete(
        requests.compat.urljoin("https://api.example.com", "/cdp/audiences/vip"), status_code=204
    )
    hook = connect(
        {
            "timezone": "UTC",
            "timeout": 3,
            "multi_profile_path": "plural",
            "requests_per_second": 5,
            "verify": True,
        },
        host="api.example.com",
        login="me",
    )
    hook.delete_audience("vip")
    sent = requests_mock.last_request.headers
    own = {"Authorization", "customer-data-platform-name", "destination-hostname", "Content-Type"}
    assert set(sent) == own | set(requests.utils.default_headers()) | {"Content-Length"}
    assert sent["Authorization"] == "ApiKey-v1 local-key-1234567890"


def test_headers_that_a_caller_passes_are_on_the_session(connect):
    assert connect().get_conn({"X-Trace": "1"}).headers["X-Trace"] == "1"


def test_the_timeout_of_the_connection_bounds_every_single_call(connect, requests_mock):
    requests_mock.delete("https://api.example.com/cdp/audiences/vip", status_code=204)
    connect({"timeout": "3"}, host="api.example.com").delete_audience("vip")
    assert requests_mock.last_request.timeout == (3, 3)
    connect({"timeout": 90}, host="api.example.com").delete_audience("vip")
    assert requests_mock.last_request.timeout == (10, 90)


def test_verification_is_on_by_default(connect, requests_mock):
    requests_mock.delete("https://api.example.com/cdp/audiences/vip", status_code=204)
    connect(host="api.example.com").delete_audience("vip")
    assert requests_mock.last_request.verify is True


@pytest.mark.parametrize("name", ["verify", "verify_ssl", "cert", "trust_env", "proxies", "proxy"])
@pytest.mark.parametrize("empty", ["", None])
def test_an_empty_option_is_its_default_and_turns_nothing_off(connect, name, empty):
    ours, plain = connect({name: empty}).get_conn(), connect().get_conn()
    assert (ours.verify, ours.cert, ours.trust_env, ours.proxies) == (True, None, True, {})
    assert (plain.verify, plain.cert, plain.trust_env, plain.proxies) == (True, None, True, {})


@pytest.fixture
def opened(monkeypatch):
    """The addresses to which connections were opened."""
    opened = []
    create = socket.create_connection
    monkeypatch.setattr(
        "urllib3.util.connection.create_connection",
        lambda address, *args, **options: (
            opened.append(address) or create(address, args[0] if args else None)
        ),
    )
    return opened


def test_a_hook_opens_one_connection_and_reuses_it(connect, talon, opened):
    hook = connect()
    hook.create_audience("vip", "VIP")
    for each in range(5):
        hook.update_audience("vip", f"VIP {each}")
    hook.delete_audience("vip")
    assert len(opened) == 1
    assert hook.client is hook.client


def test_a_forked_process_does_not_use_the_connection_of_its_parent(connect, talon, opened, monkeypatch):
    """Each would get answers to calls of the other."""
    hook = connect()
    hook.create_audience("vip", "VIP")
    with monkeypatch.context() as forked:
        forked.setattr("os.getpid", lambda: 1)
        hook.update_audience("vip", "Best")
        hook.update_audience("vip", "Very best")
        assert len(opened) == 2
    hook.delete_audience("vip")
    assert len(opened) == 2


@pytest.mark.parametrize("way", [lambda hook: pickle.loads(pickle.dumps(hook)), copy.deepcopy])
def test_a_used_hook_can_be_copied_to_another_process(connect, talon, way):
    hook = connect()
    hook.create_audience("vip", "VIP")
    way(hook).delete_audience("vip")
    assert talon.audiences() == {}


def test_a_pickled_hook_does_not_hold_the_key_nor_the_password_of_a_proxy(connect, talon):
    hook = connect({"proxies": {"ftp": "http://user:secret@127.0.0.1"}})
    hook.create_audience("vip", "VIP")
    pickled = pickle.dumps(hook)
    assert hook.settings.api_key.encode() not in pickled
    assert b"secret" not in pickled
    assert hook.talon_cdp_conn_id.encode() in pickled


def test_airflow_finds_the_hook_by_its_connection_type(talon):
    hook = BaseHook.get_connection("talon_cdp_default").get_hook()
    assert type(hook) is TalonCdpHook
    assert hook.talon_cdp_conn_id == "talon_cdp_default"
    hook.create_audience("vip", "VIP")
    assert list(talon.audiences()) == ["vip"]


def test_airflow_finds_the_hook_by_a_connection_id_of_its_own(talon, monkeypatch):
    monkeypatch.setenv("AIRFLOW_CONN_LOYALTY", json.dumps(talon.connection()))
    monkeypatch.delenv("AIRFLOW_CONN_TALON_CDP_DEFAULT")
    hook = BaseHook.get_connection("loyalty").get_hook()
    hook.create_audience("vip", "VIP")
    assert list(talon.audiences()) == ["vip"]
