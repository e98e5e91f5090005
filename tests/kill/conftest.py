"""Sums up at the end of the test run what the kills cost."""

from __future__ import annotations

import pytest

KILLS = pytest.StashKey[list[tuple[str, int, int]]]()


def pytest_configure(config):
    config.stash[KILLS] = []


def pytest_terminal_summary(terminalreporter, config):
    kills = config.stash.get(KILLS, [])
    if not kills:
        return
    terminalreporter.section("SIGKILL of the worker, and the retry")
    for name, arrived, twice in kills:
        terminalreporter.line(f"{name}: killed at {arrived:,} changes; {twice:,} changes were sent twice")


@pytest.fixture
def report_kill(request, record_property):
    """Note how many changes had arrived when a worker was killed, and how many were sent twice in the end."""

    def note(arrived, twice):
        record_property("changes that had arrived at the kill", arrived)
        record_property("changes sent twice", twice)
        request.config.stash[KILLS].append((request.node.callspec.id, arrived, twice))

    return note
