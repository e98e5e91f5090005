"""A Talon.One for each test, what was logged, chance, and an S3 API with faults."""

from __future__ import annotations

import logging
import random

import pytest
from upath import UPath

from tests.faults.s3_proxy import FaultyProxy


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
    server = pytest.importorskip("moto.server", reason="needs moto[server] and s3fs")
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    served = server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    served.start()
    url = "http://{}:{}".format(*served.get_host_and_port())
    UPath("s3://ledgers", endpoint_url=url, key="a", secret="b").fs.mkdirs("ledgers", exist_ok=True)
    with FaultyProxy(url, chance.random()) as proxy:
        yield proxy
    served.stop()
