from __future__ import annotations

import pytest

from tests.sync.syncing import Sync


@pytest.fixture
def sync():
    return Sync()
