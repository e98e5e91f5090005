"""A Talon.One for each test, and what was logged."""

from __future__ import annotations

import pytest


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
