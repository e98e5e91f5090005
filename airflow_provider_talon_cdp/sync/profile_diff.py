"""Which profiles to send, from two streams sorted by profile ID. In constant memory."""

from __future__ import annotations

import json
import tempfile
import weakref
from collections.abc import Callable, Iterable, Iterator

from airflow_provider_talon_cdp.sync.changes import Change
from airflow_provider_talon_cdp.sync.diff import Member, PlanCounts
from airflow_provider_talon_cdp.sync.fingerprints import Names, digest_of, fingerprint, holds, mask_of
from airflow_provider_talon_cdp.sync.profiles import Profile

PROFILES = "profiles"
"""What a plan of profiles counts by, where one of members counts by audience."""


def diff_profiles(
    known: Iterable[Member],
    wanted: Iterable[Profile],
    counts: PlanCounts,
    *,
    names: Names,
    write: Callable[[bytes], object],
    sends_all: bool = False,
    clears: bool = False,
    partial: bool = False,
) -> Iterator[Change]:
    """Yield a change for each profile that must be sent, with its new fingerprint, in the order of profile IDs.

    Args:
        known: Profile ID and fingerprint of the ledger, sorted by ID.
        wanted: Profiles of the source, each once, sorted by ID. One with a fault stays as it is.
        counts: Kept up while this runs.
        names: Attribute names that the ledger knows; new ones are added.
        write: Takes the attributes of each change, in the same order.
        sends_all: Send those that are as they were too.
        clears: Take their attributes from profiles that the source does not have.
        partial: Whether Talon.One is told to ignore unknown attributes.
    """
    lines = iter(known)
    line = next(lines, None)

    def missing(before: str | None) -> Iterator[Change]:
        nonlocal line
        while line is not None and (before is None or line[0] < before):
            counts.known[PROFILES] += 1
            if clears:
                counts.removals[PROFILES] += 1
                write(nulls(names.of(mask_of(line[1]))))
                yield Change(*line, "remove")
            line = next(lines, None)

    for profile in wanted:
        yield from missing(profile.profile_id)
        old = ""
        if line is not None and line[0] == profile.profile_id:
            counts.known[PROFILES] += 1
            old = line[1]
            line = next(lines, None)
        if profile.fault:
            continue
        digest = digest_of(profile.profile_id, profile.attributes)
        if not profile.attributes or (not sends_all and holds(old, digest, partial=partial)):
            counts.unchanged += 1
            continue
        mask = names.mask(profile.names) | (mask_of(old) if old else 0)
        counts.additions[PROFILES] += 1
        write(profile.attributes)
        yield Change(profile.profile_id, fingerprint(digest, mask, partial=partial), "add")
    yield from missing(None)


def nulls(names: Iterable[str]) -> bytes:
    """Write what deletes attributes."""
    return json.dumps(dict.fromkeys(names)).encode()


class Bodies:
    """What must be sent, in a temporary file on the worker's disk that ends with this process: it may not fit in memory.

    A ledger has no place for it, as it holds values.
    """

    def __init__(self) -> None:
        self._file = tempfile.TemporaryFile()  # noqa: SIM115 - closed with this object
        # Not by __del__, before which the garbage collector may have taken the file.
        weakref.finalize(self, self._file.close)

    def write(self, body: bytes) -> None:
        """Add one; JSON as it is written here has no newline in it."""
        self._file.write(body + b"\n")

    def __iter__(self) -> Iterator[bytes]:
        """Read all of them from the start."""
        self._file.seek(0)
        return (line.removesuffix(b"\n") for line in self._file)
