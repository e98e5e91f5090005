from __future__ import annotations

import re

import pytest

from airflow_provider_talon_cdp.api.settings import Settings
from airflow_provider_talon_cdp.exceptions import InvalidInputError

HOST = "mycompany.europe-west1.talon.one"


def settings(**changes):
    return Settings(**{"api_key": "0123456789abcdef", "deployment_host": HOST} | changes)


def test_the_defaults_are_talon_ones_shared_host_and_the_published_rate_of_its_siblings():
    plain = settings()
    assert plain.base_url == "https://integration.talon.one"
    assert plain.requests_per_second == 60
    assert plain.multi_profile_path == "plural"
    assert plain.timeout == 30
    assert plain.zone is None


def test_the_headers_are_the_contracts():
    assert settings(platform_name="My CDP").headers == {
        "Authorization": "ApiKey-v1 0123456789abcdef",
        "customer-data-platform-name": "My CDP",
        "destination-hostname": HOST,
        "Content-Type": "application/json",
    }


@pytest.mark.parametrize(
    "field, given, kept",
    [
        ("api_key", "  0123456789abcdef\n", "0123456789abcdef"),
        ("api_key", "ApiKey-v1 0123456789abcdef", "0123456789abcdef"),
        ("deployment_host", f" https://{HOST}/ ", HOST),
        ("deployment_host", f"http://{HOST}", HOST),
        ("deployment_host", HOST.upper(), HOST),
        ("platform_name", " My CDP ", "My CDP"),
        ("base_url", "integration.talon.one/", "https://integration.talon.one"),
        ("base_url", "HTTPS://Gateway.example.com:8443/talon/", "https://gateway.example.com:8443/talon"),
        ("base_url", "http://localhost:8000", "http://localhost:8000"),
        ("base_url", "http://127.0.0.1:8000", "http://127.0.0.1:8000"),
        ("base_url", "http://[::1]:8000", "http://[::1]:8000"),
        ("base_url", "https://integration.talon.one:443", "https://integration.talon.one"),
        ("base_url", "https://integration.talon.one:443/gateway/", "https://integration.talon.one/gateway"),
        ("base_url", "https://integration.talon.one:80", "https://integration.talon.one:80"),
        ("base_url", "http://localhost:80", "http://localhost"),
        ("base_url", "http://[::1]:443", "http://[::1]:443"),
        ("environment", " live\n", "live"),
        ("environment", "Sandbox 2 \u2013 EU", "Sandbox 2 \u2013 EU"),
        ("environment", "  ", ""),
        ("call_retry_seconds", "0", 0.0),
        ("bulk_retry_seconds", "90", 90.0),
        ("requests_per_second", "12.5", 12.5),
        ("timeout", "5", 5.0),
        ("timezone", " Europe/Berlin ", "Europe/Berlin"),
        ("timezone", "", None),
    ],
)
def test_a_plain_meaning_is_normalised(field, given, kept):
    assert getattr(settings(**{field: given}), field) == kept


@pytest.mark.parametrize(
    "field, bad, says",
    [
        ("api_key", "", "API key is missing"),
        ("api_key", None, "API key is missing"),
        ("api_key", "two words", "API key contains white space"),
        ("api_key", "line\r\nX-Evil: 1", "API key contains"),
        ("api_key", "schlüssel", "API key contains"),
        ("api_key", "tab\tkey", "API key contains"),
        ("deployment_host", "", "Deployment host is missing"),
        ("deployment_host", None, "Deployment host is missing"),
        ("deployment_host", f"{HOST}:443", "without scheme, port or path"),
        ("deployment_host", f"https://{HOST}/v1", "without scheme, port or path"),
        ("deployment_host", f"{HOST}\r\nX-Evil: 1", "Deployment host must be"),
        ("deployment_host", "ftp://" + HOST, "Deployment host must be"),
        ("deployment_host", "under_score.talon.one", "Deployment host must be"),
        ("platform_name", "  ", "Platform name must be text"),
        ("platform_name", 123, "Platform name must be text"),
        ("platform_name", "a\r\nX-Evil: 1", "printable ASCII"),
        ("platform_name", "Plattform für CDP", "printable ASCII"),
        ("base_url", " ", "Base URL is empty"),
        ("base_url", "http://integration.talon.one", "unencrypted"),
        ("base_url", "http://127.0.0.1.evil.example", "unencrypted"),
        ("base_url", "ftp://integration.talon.one", "Base URL must look like"),
        ("base_url", "https://", "Base URL must look like"),
        ("base_url", "https://host?x=1", "Base URL must look like"),
        ("base_url", "https://host:99999", "its host or its port is not valid"),
        ("base_url", "https://user:secret/", "its host or its port is not valid.$"),
        ("base_url", "https://[::1", "Base URL must look like"),
        ("base_url", "https://me:secret@host", "must not contain a user name"),
        ("requests_per_second", 0, "Requests per second must be a number above 0"),
        ("requests_per_second", "fast", "Requests per second must be a number above 0"),
        ("requests_per_second", float("nan"), "above 0"),
        ("requests_per_second", True, "above 0"),
        ("environment", "a\nb", "Environment must be printable text on one line"),
        ("environment", 5, "Environment must be printable text on one line"),
        ("call_retry_seconds", -1, "Retry single calls for must be 0 or more"),
        ("call_retry_seconds", "inf", "Retry single calls for must be 0 or more"),
        ("bulk_retry_seconds", "long", "Retry bulk requests for must be 0 or more"),
        ("bulk_retry_seconds", True, "Retry bulk requests for must be 0 or more"),
        ("timeout", -1, "Timeout must be"),
        ("timeout", float("inf"), "Timeout must be"),
        ("timezone", "Berlin", "IANA name"),
        ("timezone", "../../etc/passwd", "IANA name"),
        ("multi_profile_path", "both", "'plural' or 'singular'"),
    ],
)
def test_what_cannot_work_is_refused_by_its_name_in_the_form(field, bad, says):
    with pytest.raises(InvalidInputError, match=says) as refusal:
        settings(**{field: bad})
    if field == "api_key" and bad:
        assert bad not in str(refusal.value)
    assert "secret" not in str(refusal.value)


KEY = "0123456789abcdef" * 4


@pytest.mark.parametrize(
    "field, key",
    [
        ("deployment_host", KEY),
        ("deployment_host", f"ApiKey-v1 {KEY}"),
        ("deployment_host", f" apikey-v1 {KEY[:20]}.{KEY[20:]}"),
        ("base_url", KEY),
        ("base_url", f"ApiKey-v1 {KEY}"),
        ("base_url", f"http://{KEY[:32]}"),
    ],
)
def test_a_key_in_the_field_of_a_host_is_not_quoted(field, key):
    with pytest.raises(InvalidInputError) as refusal:
        settings(**{"api_key": HOST, field: key})
    assert "not quoted, as it may be the API key" in str(refusal.value)
    assert KEY[:20] not in str(refusal.value)


@pytest.mark.parametrize(
    "field, bad",
    [("deployment_host", f"{HOST}/v1"), ("base_url", "ftp://talon.one"), ("base_url", "http://a.b")],
)
def test_what_looks_like_a_host_is_quoted(field, bad):
    with pytest.raises(InvalidInputError, match=re.escape(repr(bad))):
        settings(**{field: bad})


def test_the_repr_has_no_key():
    assert "0123456789abcdef" not in repr(settings())


def test_a_changed_key_has_another_fingerprint_that_does_not_show_it():
    first = settings().key_fingerprint
    assert re.fullmatch("[0-9a-f]{16}", first)
    assert settings(api_key="ApiKey-v1 0123456789abcdef").key_fingerprint == first
    assert settings(environment="live", platform_name="x").key_fingerprint == first
    assert settings(api_key="0123456789abcdeg").key_fingerprint != first
    assert settings(deployment_host="other.talon.one").key_fingerprint != first
    assert first not in repr(settings())


def test_the_environment_is_empty_by_default_and_the_times_are_bounded():
    plain = settings()
    assert (plain.environment, plain.call_retry_seconds, plain.bulk_retry_seconds) == ("", 60, 600)
