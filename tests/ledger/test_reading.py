"""The ranges of a source that several processes read for one plan."""

from __future__ import annotations

import pytest

from airflow_provider_talon_cdp.exceptions import LedgerError
from airflow_provider_talon_cdp.ledger import reading as module
from airflow_provider_talon_cdp.ledger import storage
from airflow_provider_talon_cdp.ledger.reading import Reading


def test_a_process_that_slept_does_not_delete_the_reading_of_the_run_that_took_over(open_ledger, monkeypatch):
    ledger, retry = open_ledger(), open_ledger()
    ledger.lock.take("me")
    other = Reading(retry.folder)

    def names_in(folder):
        retry.lock.take("me")
        other.begin(["m"])
        return storage.names_in(folder)

    monkeypatch.setattr(module, "names_in", names_in)
    with pytest.raises(LedgerError, match="has lost the ledger's lock"):
        Reading(ledger.folder).remove_others(ledger.lock.confirm)
    assert other.bounds(0) == (None, "m")
