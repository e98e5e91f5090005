"""What is said of a request without an answer."""

from __future__ import annotations

import ssl

import pytest

from airflow_provider_talon_cdp.api import calls
from airflow_provider_talon_cdp.api.no_answer import tls_error

URL = "https://api.example.com"


@pytest.mark.parametrize(
    "reason, over_certificates",
    [
        ("CERTIFICATE_VERIFY_FAILED", True),
        ("TLSV13_ALERT_CERTIFICATE_REQUIRED", True),
        ("SSLV3_ALERT_CERTIFICATE_EXPIRED", True),
        ("TLSV1_ALERT_UNKNOWN_CA", True),
        ("WRONG_VERSION_NUMBER", False),
        ("TLSV1_ALERT_PROTOCOL_VERSION", False),
        ("SSLV3_ALERT_HANDSHAKE_FAILURE", False),
        (None, False),
    ],
)
def test_certificates_are_blamed_for_their_own_errors_alone(reason, over_certificates):
    cause = ssl.SSLError()
    cause.reason = reason
    text = str(tls_error(calls.delete_audience("vip"), URL, cause))
    assert ("certificate was not accepted" in text) is over_certificates
    assert ("http://" in text) is not over_certificates
    assert (reason or "no reason") in text
