"""A Talon.One for each test, what was logged, chance, and an S3 API with faults."""

from __future__ import annotations

import random

import pytest
from upath import UPath

from tests.faults.s3_proxy import FaultyProxy
from tests.storage import s3_served


@pytest.fixture
def talon(own_talon, no_ledgers):
    return own_talon


@pytest.fixture
def logged(caplog, capfd):
    """What was logged so far: in Airflow 3 an operator's own log goes past ``logging`` to the terminal."""
    caplog.set_level("DEBUG")

    def text():
        out, err = capfd.readouterr()
        return caplog.text + out + err

    return text


@pytest.fixture
def is_long(request):
    return request.config.getoption("--faults-long")


@pytest.fixture
def chance(request):
    return random.Random(f"{request.config.getoption('--faults-seed')} {request.node.name}")


@pytest.fixture
def faulty_s3(chance):
    with s3_served() as url:
        UPath("s3://ledgers", endpoint_url=url, key="a", secret="b").fs.mkdirs("ledgers", exist_ok=True)
        with FaultyProxy(url, chance.random()) as proxy:
            yield proxy
