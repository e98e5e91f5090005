"""Members in the order of ``diff``, sorted on this worker's disk, in constant memory."""

from __future__ import annotations

import heapq
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from itertools import chain, islice, starmap
from typing import IO

from airflow_provider_talon_cdp.sync.blocks import Member
from airflow_provider_talon_cdp.sync.changes import Change, Ids, Record, Rejection
from airflow_provider_talon_cdp.sync.lines import from_line, to_line

_RUN = 100_000
# Each is an open file, of which a process may often have no more than 1,024.
_MOST_RUNS = 200


def externally_sorted(records: Iterable[Record], *, run: int = _RUN) -> Iterator[Change | Rejection]:
    """Yield records sorted by member, with ``run`` of them in memory and the rest in temporary files.

    Rejections, which have no place in the order, pass through first.
    """
    with ExitStack() as files:
        # Those of one level are merged into one of the next.
        levels: list[list[IO[str]]] = [[]]
        changes: list[Change] = []
        source = _spelt_out(records)
        while chunk := list(islice(source, run)):
            changes = [record for record in chunk if isinstance(record, Change)]
            yield from (record for record in chunk if isinstance(record, Rejection))
            changes.sort(key=lambda change: (change.profile_id, str(change.audience_id)))
            lines = (to_line(change.profile_id, str(change.audience_id)) for change in changes)
            levels[0].append(_on_disk(lines, files))
            for level, runs in enumerate(levels):
                if len(runs) < _MOST_RUNS:
                    break
                if runs is levels[-1]:
                    levels.append([])
                levels[level + 1].append(_on_disk(starmap(to_line, _merged(runs)), files))
                for file in runs:
                    file.close()
                runs.clear()
        for profile_id, audience_id in _merged(chain.from_iterable(levels)):
            yield Change(profile_id, audience_id, "add")


def _on_disk(lines: Iterable[str], files: ExitStack) -> IO[str]:
    file = tempfile.TemporaryFile("w+", encoding="utf-8", newline="\n")  # noqa: SIM115 - the stack closes it
    files.enter_context(file)
    file.writelines(lines)
    file.seek(0)
    return file


def _merged(runs: Iterable[IO[str]]) -> Iterator[Member]:
    return heapq.merge(*[map(_split, file) for file in runs])


def _spelt_out(records: Iterable[Record]) -> Iterator[Change | Rejection]:
    for record in records:
        if isinstance(record, Ids):
            yield from record.changes()
        else:
            yield record


def _split(line: str) -> Member:
    profile_id, audience_id = from_line(line)
    return profile_id, audience_id
