"""A Talon.One for each test."""

from __future__ import annotations

import pytest


@pytest.fixture
def talon(own_talon):
    return own_talon
