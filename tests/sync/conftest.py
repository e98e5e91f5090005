from __future__ import annotations

import pytest


@pytest.fixture
def sync():
    from tests.sync.syncing import Sync  # noqa: PLC0415

    return Sync()
