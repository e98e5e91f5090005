"""Files that are written completely or not at all."""

from __future__ import annotations

import pytest

from airflow_provider_talon_cdp.exceptions import LedgerUnavailableError
from airflow_provider_talon_cdp.ledger.storage import write_bytes
from tests.storage import Storage


class _Failing(Storage):
    """Fails while an object is uploaded, and again while its upload is discarded."""

    def open(self, name, mode):
        self.file = super().open(name, mode)
        self.file.write, self.file.discard = self.fail_to_write, self.fail_to_discard
        return self.file

    def fail_to_write(self, data):
        raise TimeoutError("no network")

    def fail_to_discard(self):
        raise PermissionError("forbidden")


def test_an_upload_that_cannot_be_discarded_does_not_hide_its_error_and_is_not_completed_later():
    storage = _Failing()
    with pytest.raises(LedgerUnavailableError, match="Cannot write members, .*: no network"):
        write_bytes(storage.folder() / "members", b"a")
    # As fsspec does at the garbage collection of a file that is not closed.
    storage.file.close()
    assert not storage.objects
