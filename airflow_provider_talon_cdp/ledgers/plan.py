"""The plan's files: sorted lines of verb, profile ID and audience ID, in parts."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import chain, islice
from typing import Any

from airflow_provider_talon_cdp.ledgers.storage import Folder, damaged, read_lines, writing_lines
from airflow_provider_talon_cdp.sync.changes import Action, Change
from airflow_provider_talon_cdp.sync.lines import from_line, to_line

_ACTIONS: dict[str, tuple[Action, bool]] = {
    "add": ("add", False),
    "remove": ("remove", False),
    "add?": ("add", True),
    "remove?": ("remove", True),
}
_VERBS = {action: verb for verb, action in _ACTIONS.items()}


def write_plan(
    folder: Folder, name_of: Callable[[int], str], changes: Iterable[Change], size: int
) -> tuple[Mapping[str, Any], ...]:
    """Write a plan, and return how the manifest names its parts.

    Args:
        folder: The ledger's folder.
        name_of: Number of a part to its file's name.
        changes: The plan.
        size: Changes in a part; the last one may have fewer.
    """
    parts: list[Mapping[str, Any]] = []
    stream = iter(changes)
    while (first := next(stream, None)) is not None:
        name = name_of(len(parts))
        written = 0
        with writing_lines(folder / name) as file:
            for change in chain([first], islice(stream, size - 1)):
                file.text.write(to_line(_VERBS[change[2:]], change.profile_id, str(change.audience_id)))
                written += 1
        parts.append({"file": name, "sha256": file.sha256, "changes": written})
    return tuple(parts)


def read_plan(folder: Folder, parts: Sequence[Mapping[str, Any]]) -> Iterator[Change]:
    """Yield the changes of a plan.

    Raises:
        LedgerError: A part is gone or damaged.
    """
    for part in parts:
        path = folder / part["file"]
        for line in read_lines(path, part["sha256"]):
            try:
                verb, profile_id, audience_id = from_line(line)
                action, uncertain = _ACTIONS[verb]
            except (ValueError, KeyError) as error:
                raise damaged(path) from error
            yield Change(profile_id, audience_id, action, uncertain)
