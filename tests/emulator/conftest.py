"""An emulator on a real loopback socket, and a plain HTTP client for it that knows nothing of ours."""

from __future__ import annotations

import http.client
import json
from dataclasses import dataclass, field
from urllib.parse import quote, urlsplit

import pytest
import requests

from airflow_provider_talon_cdp.emulator import Emulator

HEADERS = {
    "Authorization": "ApiKey-v1 local-key-1234567890",
    "customer-data-platform-name": "Tests",
    "destination-hostname": "demo.europe-west1.talon.one",
    "Content-Type": "application/json",
}


@dataclass
class Caller:
    """Calls an emulator's API; every method gives the answer as it came."""

    url: str
    session: requests.Session
    headers: dict[str, str] = field(default_factory=lambda: dict(HEADERS))

    def send(self, method, path, body=None, *, headers=None, timeout=5):
        data = body if isinstance(body, (bytes, type(None))) else json.dumps(body).encode()
        merged = {
            name: value for name, value in {**self.headers, **(headers or {})}.items() if value is not None
        }
        return self.session.request(method, self.url + path, data=data, headers=merged, timeout=timeout)

    def raw(self, method, path, body=b"{}"):
        """Send a path exactly as it is: requests would tidy it up."""
        connection = http.client.HTTPConnection(urlsplit(self.url).netloc, timeout=5)
        try:
            connection.request(method, path, body, self.headers)
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()

    def create(self, audience_id, name="A name"):
        return self.send("POST", "/cdp/audiences", {"audienceId": audience_id, "audienceName": name})

    def profile(self, profile_id, query="", **body):
        return self.send("PUT", f"/cdp/customer_profile/{quote(profile_id, safe='')}{query}", body)

    def profile_audiences(self, profile_id, **data):
        return self.send(
            "PUT", f"/cdp/customer_profile/{quote(profile_id, safe='')}/audiences", {"data": data}
        )

    def external(self, *entries):
        return self.send(
            "PUT", "/cdp/v2/customer_profiles/audiences", {"data": [entry(*each) for each in entries]}
        )

    def internal(self, *entries):
        return self.send(
            "PUT", "/cdp/customer_profiles/audiences", {"data": [entry(*each) for each in entries]}
        )


def entry(profile_id, adds=None, deletes=None):
    """One entry of a multi-profile body; a list that is None is left out."""
    lists = {"adds": adds, "deletes": deletes}
    return {"customerProfileId": profile_id, **{name: ids for name, ids in lists.items() if ids is not None}}


@pytest.fixture(scope="session")
def _shared():
    with Emulator() as emulator:
        yield emulator


@pytest.fixture
def emulator(_shared):
    """An empty emulator with the default settings."""
    _shared.reset()
    return _shared


@pytest.fixture
def caller():
    """Make a client for an emulator."""
    with requests.Session() as session:
        yield lambda emulator, **headers: Caller(emulator.url, session, {**HEADERS, **headers})


@pytest.fixture
def call(emulator, caller):
    """A client for the shared emulator."""
    return caller(emulator)
