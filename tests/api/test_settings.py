from __future__ import annotations

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
        ("platform_name", "  ", "Platform name is empty"),
        ("platform_name", "a\r\nX-Evil: 1", "printable ASCII"),
        ("platform_name", "Plattform für CDP", "printable ASCII"),
        ("base_url", " ", "Base URL is empty"),
        ("base_url", "http://integration.talon.one", "unencrypted"),
        ("base_url", "http://127.0.0.1.evil.example", "unencrypted"),
        ("base_url", "ftp://integration.talon.one", "Base URL must look like"),
        ("base_url", "https://", "Base URL must look like"),
        ("base_url", "https://host?x=1", "Base URL must look like"),
        ("base_url", "https://host:99999", "Base URL must look like"),
        ("base_url", "https://[::1", "Base URL must look like"),
        ("base_url", "https://me:secret@host", "must not carry a user name"),
        ("requests_per_second", 0, "Requests per second must be a number above 0"),
        ("requests_per_second", "fast", "Requests per second must be a number above 0"),
        ("requests_per_second", float("nan"), "above 0"),
        ("requests_per_second", True, "above 0"),
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


def test_the_repr_has_no_key():
    assert "0123456789abcdef" not in repr(settings())
