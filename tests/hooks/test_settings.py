"""The fields of the Airflow connection."""

from __future__ import annotations

import json
import traceback
from urllib.parse import urlencode
from zoneinfo import ZoneInfo

import pytest
from airflow.providers.common.compat.sdk import Connection

from airflow_provider_talon_cdp.connection_form import FIELDS
from airflow_provider_talon_cdp.exceptions import InvalidInputError
from airflow_provider_talon_cdp.hooks.talon_cdp import TalonCdpHook


def test_a_connection_with_key_and_deployment_host_alone_gets_every_default(monkeypatch):
    monkeypatch.setenv(
        "AIRFLOW_CONN_TALON_CDP_DEFAULT",
        json.dumps({"conn_type": "talon_cdp", "password": "k", "extra": {"deployment_host": "a.talon.one"}}),
    )
    settings = TalonCdpHook().settings
    assert settings.base_url == "https://integration.talon.one"
    assert settings.platform_name == "Apache Airflow"
    assert settings.requests_per_second == 60
    assert settings.timeout == 30
    assert settings.multi_profile_path == "plural"
    assert settings.zone is None


@pytest.mark.parametrize("spell", [str, float, int])
def test_numbers_of_the_form_may_be_text_or_numbers(connect, spell):
    settings = connect({"requests_per_second": spell(20), "timeout": spell(7)}).settings
    assert (settings.requests_per_second, settings.timeout) == (20, 7)


def test_text_fields_of_the_form_arrive(connect):
    settings = connect(
        {
            "deployment_host": " https://MyCompany.europe-west1.Talon.One/ ",
            "platform_name": " My CDP ",
            "multi_profile_path": "singular",
            "timezone": " Europe/Berlin ",
        }
    ).settings
    assert settings.deployment_host == "mycompany.europe-west1.talon.one"
    assert settings.platform_name == "My CDP"
    assert settings.multi_profile_path == "singular"
    assert settings.zone == ZoneInfo("Europe/Berlin")


@pytest.mark.parametrize("empty", ["", None])
def test_a_form_field_left_empty_means_its_default(monkeypatch, empty):
    """Airflow's form stores fields that were not filled in as an empty string or null."""
    extra = {each.name: empty for each in FIELDS} | {"deployment_host": "a.talon.one"}
    monkeypatch.setenv(
        "AIRFLOW_CONN_TALON_CDP_DEFAULT",
        json.dumps({"conn_type": "talon_cdp", "password": "k", "extra": extra}),
    )
    settings = TalonCdpHook().settings
    assert (settings.platform_name, settings.timeout, settings.zone) == ("Apache Airflow", 30, None)


@pytest.mark.parametrize(
    "field, value, named",
    [
        ("deployment_host", None, "Deployment host"),
        ("deployment_host", "a.talon.one:443", "Deployment host"),
        ("deployment_host", "a.talon.one/path", "Deployment host"),
        ("deployment_host", "a.talon.one\r\nX: 1", "Deployment host"),
        ("deployment_host", 7, "Deployment host"),
        ("platform_name", "  ", "Platform name"),
        ("platform_name", "Caf\u00e9", "Platform name"),
        ("platform_name", "a\nb", "Platform name"),
        ("requests_per_second", "fast", "Requests per second"),
        ("requests_per_second", 0, "Requests per second"),
        ("requests_per_second", "-1", "Requests per second"),
        ("requests_per_second", True, "Requests per second"),
        ("requests_per_second", "nan", "Requests per second"),
        ("requests_per_second", [60], "Requests per second"),
        ("timeout", "soon", "Timeout"),
        ("timeout", "inf", "Timeout"),
        ("multi_profile_path", "Plural", "Multi-profile path"),
        ("multi_profile_path", ["plural"], "Multi-profile path"),
        ("timezone", "Mars/Olympus", "Time zone"),
        ("timezone", "../../etc/localtime", "Time zone"),
        ("timezone", 1, "Time zone"),
    ],
)
def test_a_field_that_cannot_work_is_refused_by_connection_and_field(connect, field, value, named):
    hook = connect({field: value})
    with pytest.raises(InvalidInputError) as error:
        _ = hook.settings
    assert "'talon_cdp_default'" in str(error.value)
    assert named in str(error.value)


@pytest.mark.parametrize("password", ["", " ", None, "two words", "key\r\nX-Evil: 1", "schl\u00fcssel"])
def test_an_api_key_that_cannot_be_a_header_is_refused_without_quoting_it(connect, talon, password):
    hook = connect(password=password)
    with pytest.raises(InvalidInputError, match="talon_cdp_default.*API key") as error:
        hook.delete_audience("vip")
    if password and password.strip():
        assert password.strip() not in "".join(traceback.format_exception(error.value))
    assert talon.requests() == []


@pytest.mark.parametrize("spelt", ["{}", " {} ", "ApiKey-v1 {}", "apikey-v1  {}\n"])
def test_a_key_pasted_with_its_scheme_or_white_space_works(connect, talon, spelt):
    connect(password=spelt.format("local-key-1234567890")).create_audience("vip", "VIP")
    assert talon.audiences()["vip"]["name"] == "VIP"


def test_an_unknown_extra_is_refused_and_the_known_ones_are_listed(connect):
    hook = connect({"deployment": "a.talon.one", "X-Header": "1"})
    with pytest.raises(InvalidInputError) as error:
        _ = hook.settings
    assert "talon_cdp_default" in str(error.value)
    assert "X-Header, deployment." in str(error.value)
    for name in ("deployment_host", "timeout", "verify", "proxies", "cert", "trust_env", "timezone"):
        assert name in str(error.value)


@pytest.mark.parametrize(
    "fields, base_url",
    [
        ({"host": ""}, "https://integration.talon.one"),
        ({"host": None, "schema": "http", "port": 80}, "https://integration.talon.one"),
        ({"host": " https://api.example.com ", "port": 8443}, "https://api.example.com:8443"),
        ({"host": "api.example.com ", "port": 8443}, "https://api.example.com:8443"),
        ({"host": " "}, "https://integration.talon.one"),
        ({"host": "api.example.com"}, "https://api.example.com"),
        ({"host": "api.example.com/"}, "https://api.example.com"),
        ({"host": "https://api.example.com"}, "https://api.example.com"),
        ({"host": "HTTPS://API.example.com/"}, "https://api.example.com"),
        ({"host": "api.example.com", "schema": "https", "port": 8443}, "https://api.example.com:8443"),
        ({"host": "https://api.example.com", "port": 8443}, "https://api.example.com:8443"),
        ({"host": "https://api.example.com/", "port": 8443}, "https://api.example.com:8443"),
        ({"host": "https://api.example.com/gateway/"}, "https://api.example.com/gateway"),
        ({"host": "https://api.example.com/gateway", "port": 8443}, "https://api.example.com:8443/gateway"),
        ({"host": "api.example.com", "port": 443}, "https://api.example.com"),
        ({"host": "api.example.com", "port": 0}, "https://api.example.com"),
        ({"host": "", "port": 443}, "https://integration.talon.one"),
        ({"host": "", "port": 0}, "https://integration.talon.one"),
        ({"host": "https://api.example.com:8443", "port": 8443}, "https://api.example.com:8443"),
        ({"host": "https://api.example.com:8443", "port": 0}, "https://api.example.com:8443"),
        ({"host": "http://[::1]", "port": 8080}, "http://[::1]:8080"),
        ({"host": "localhost", "schema": "http", "port": 8080}, "http://localhost:8080"),
        ({"host": "http://127.0.0.1:8080"}, "http://127.0.0.1:8080"),
        ({"host": "http://[::1]:8080"}, "http://[::1]:8080"),
    ],
)
def test_host_schema_and_port_make_the_base_url(connect, fields, base_url):
    assert connect(**fields).settings.base_url == base_url


@pytest.mark.parametrize(
    "fields",
    [
        {"host": "http://integration.talon.one"},
        {"host": "integration.talon.one", "schema": "http"},
        {"host": "http://127.0.0.1.example.com"},
        {"host": "http://localhost.example.com"},
        {"host": "http://10.0.0.1"},
        {"host": "http://0.0.0.0"},
        {"host": "ftp://127.0.0.1"},
        {"host": "https://user:secret@api.example.com"},
        {"host": "https://api.example.com?x=1"},
        {"host": "https://api.example.com#x"},
        {"host": "https://"},
        {"host": "https://api.example.com:port"},
        {"host": "https://api.example.com:1", "port": 2},
        {"host": "https://api example.com"},
        {"host": "https://.example.com"},
        {"host": "https://*.example.com"},
        {"host": "::1"},
    ],
    ids=lambda fields: fields["host"],
)
def test_a_base_url_that_would_leak_the_key_or_cannot_work_is_refused(connect, fields):
    """Before a request is tried, as our own error, which names the connection and the field."""
    hook = connect(**fields)
    with pytest.raises(InvalidInputError, match="talon_cdp_default.*Base URL") as error:
        _ = hook.settings
    assert "secret" not in "".join(traceback.format_exception(error.value))


def test_a_port_that_is_not_the_one_of_the_base_url_is_told(connect):
    hook = connect(host="https://api.example.com:8443", port=443)
    with pytest.raises(InvalidInputError, match="Base URL has the port 8443, and the field Port has 443"):
        _ = hook.settings


def test_a_user_name_left_in_the_login_field_changes_nothing(connect, talon):
    connect(login="me").create_audience("vip", "VIP")
    assert list(talon.audiences()) == ["vip"]


def test_a_connection_given_as_a_uri_works(talon, monkeypatch):
    monkeypatch.setenv(
        "AIRFLOW_CONN_TALON_CDP_DEFAULT",
        f"talon-cdp://:local-key-1234567890@127.0.0.1:{talon.url.rsplit(':', 1)[1]}/http"
        "?deployment_host=demo.europe-west1.talon.one&timeout=5",
    )
    TalonCdpHook().create_audience("vip", "VIP")
    assert list(talon.audiences()) == ["vip"]


URI = "talon-cdp://:local-key-1234567890@?deployment_host=my.eu.talon.one&"


@pytest.mark.parametrize(
    "text, value", [("true", True), ("False", False), ("TRUE", True), ("false%20", False)]
)
@pytest.mark.parametrize("name", ["verify", "verify_ssl", "trust_env"])
def test_true_and_false_of_a_uri_are_texts_and_mean_what_they_say(monkeypatch, name, text, value):
    monkeypatch.setenv("AIRFLOW_CONN_TALON_CDP_DEFAULT", f"{URI}{name}={text}")
    session = TalonCdpHook().get_conn()
    assert getattr(session, "trust_env" if name == "trust_env" else "verify") is value


def test_objects_and_lists_of_a_uri_are_json(monkeypatch):
    monkeypatch.setenv(
        "AIRFLOW_CONN_TALON_CDP_DEFAULT",
        URI
        + urlencode(
            {
                "proxies": json.dumps({"https": "http://proxy:3128"}),
                "cert": json.dumps([__file__, __file__]),
                "timeout": "5",
                "requests_per_second": "7",
                "environment": "live",
            }
        ),
    )
    hook = TalonCdpHook()
    session = hook.get_conn()
    assert session.proxies == {"https": "http://proxy:3128"}
    assert session.cert == (__file__, __file__)
    assert (hook.settings.timeout, hook.settings.requests_per_second) == (5, 7)
    assert hook.settings.environment == "live"


@pytest.mark.parametrize("rest", ["@?deployment_host=a.talon.one", "@api.example.com:443/https", "@"])
def test_a_uri_with_an_underscore_says_how_to_write_it(monkeypatch, rest):
    """Airflow reads neither type nor key from it, as a scheme has no underscore."""
    monkeypatch.setenv("AIRFLOW_CONN_TALON_CDP_DEFAULT", f"talon_cdp://:local-key-1234567890{rest}")
    with pytest.raises(
        InvalidInputError, match="(?s)talon_cdp_default.*API key is missing.*begins with talon-cdp://"
    ):
        _ = TalonCdpHook().settings


def test_another_connection_is_chosen_by_its_id(talon, monkeypatch):
    monkeypatch.setenv("AIRFLOW_CONN_OTHER", json.dumps(talon.connection()))
    monkeypatch.delenv("AIRFLOW_CONN_TALON_CDP_DEFAULT")
    TalonCdpHook("other").create_audience("vip", "VIP")
    TalonCdpHook(talon_cdp_conn_id="other").update_audience("vip", "Best")
    assert talon.audiences()["vip"]["name"] == "Best"


@pytest.mark.parametrize(
    "field, value", [("verify", "/no/such/ca.pem"), ("cert", "/no/such/cert.pem"), ("verify", "no")]
)
def test_a_certificate_path_that_does_not_exist_is_named(connect, tls, send, request_one, field, value):
    """Not an ``[Errno 2]`` that does not say which file of which connection."""
    hook = connect({field: value}, host=f"https://{tls.authority}")
    with pytest.raises(InvalidInputError, match=f"(?s)(talon_cdp_default.*{field}|{field}.*{value})"):
        send(hook, request_one)
    assert tls.seen == []


# 2.11 warns of it. From the metadata database it arrives as it stands; from a variable, each Airflow has its
# own error.
@pytest.mark.filterwarnings("ignore:Encountered JSON value in")
def test_extras_that_are_no_json_object_are_refused(monkeypatch):
    stored = Connection(conn_id="talon_cdp_default", conn_type="talon_cdp", password="k", extra="[1, 2]")
    monkeypatch.setattr(TalonCdpHook, "get_connection", classmethod(lambda cls, conn_id: stored))
    with pytest.raises(InvalidInputError, match="the extra must be a JSON object"):
        _ = TalonCdpHook().settings


def test_the_names_under_which_airflow_2s_test_button_sends_the_fields_are_known(connect):
    hook = connect({"extra__talon_cdp__deployment_host": "acme.talon.one", "extra__talon_cdp__timeout": "5"})
    assert (hook.settings.deployment_host, hook.settings.timeout) == ("acme.talon.one", 5)
