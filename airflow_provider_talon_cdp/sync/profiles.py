"""Profiles with their attributes as a source gives them, sorted by profile ID and each once. In constant memory."""

from __future__ import annotations

import heapq
import pickle
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from operator import attrgetter
from typing import IO, Any, Literal, NamedTuple, TypeAlias

from airflow_provider_talon_cdp.exceptions import InvalidInputError
from airflow_provider_talon_cdp.sync.changes import Rejection
from airflow_provider_talon_cdp.sync.diff import OutOfOrderError, PlanCounts
from airflow_provider_talon_cdp.sync.reasons import within

OnDuplicate: TypeAlias = Literal["error", "last"]

_RUN = 32 * 2**20
_OVERHEAD = 400
_by_id = attrgetter("profile_id")


class Profile(NamedTuple):
    """One row: a profile and the attributes that it should have.

    Args:
        profile_id: Integration ID of the profile.
        attributes: JSON object of what is to be sent, always spelt the same; empty when there is nothing.
        names: Names of the attributes in it.
        order: Which of two rows of one profile is the last: the one where this is greater. None is the smallest.
        fault: Why the row cannot be sent, instead of attributes; it holds no value.
    """

    profile_id: str
    attributes: bytes = b""
    names: tuple[str, ...] = ()
    order: Any = None
    fault: str | None = None


def one_each(
    records: Iterable[Profile | Rejection],
    counts: PlanCounts,
    *,
    on_duplicate: OnDuplicate = "error",
    on_rejected: Callable[[Rejection], None] = lambda _: None,
) -> Iterator[Profile]:
    """Yield each profile of a sorted source once, those with a fault too, and count all records.

    Args:
        records: Sorted by profile ID, but for rejections.
        counts: Kept up while this runs.
        on_duplicate: When a profile has several rows: ``error``, or ``last`` to keep the one whose order is greatest.
        on_rejected: Called for each record that cannot be sent.

    Raises:
        OutOfOrderError: A profile ID is smaller than the one before it.
        InvalidInputError: At the end, when profiles have several rows and that is an error.
    """
    ambiguous = 0
    several = False
    current: Profile | None = None

    def fate(profile: Profile) -> Profile:
        if profile.fault:
            reject(Rejection(profile.fault, profile.profile_id))
        return profile

    def reject(rejection: Rejection) -> None:
        counts.rejected[within(counts.rejected, rejection.reason)] += 1
        on_rejected(rejection)

    for record in records:
        counts.read += 1
        if isinstance(record, Rejection):
            reject(record)
        elif current is None or record.profile_id > current.profile_id:
            if current is not None:
                yield fate(current)
            current, several = record, False
        elif record.profile_id == current.profile_id:
            counts.duplicate += 1
            ambiguous += not several
            several = True
            if on_duplicate == "last" and _is_later(record, current):
                current = record
        else:
            raise OutOfOrderError
    if current is not None:
        yield fate(current)
    if ambiguous and on_duplicate == "error":
        raise InvalidInputError(
            f"{ambiguous:,} profile(s) have more than one row ({ambiguous + counts.duplicate:,} rows), and which one holds is "
            "not said. Nothing was sent. Make the query return one row for each profile, or pass on_duplicate='last' with "
            "order_by_column."
        )


def _is_later(one: Profile, other: Profile) -> bool:
    # Where the order does not tell, the same row of both wins in each run, whichever comes first.
    by_order = (
        (_rank(one.order), one.attributes, one.fault or ""),
        (
            _rank(other.order),
            other.attributes,
            other.fault or "",
        ),
    )
    try:
        return by_order[0] > by_order[1]
    except TypeError as error:
        raise InvalidInputError(
            f"order_by_column has values that cannot be compared, of the types {type(one.order).__name__} and "
            f"{type(other.order).__name__}. Cast it to one type in SQL."
        ) from error


def _rank(value: Any) -> tuple[bool, Any]:
    # NaN differs from itself, and is neither greater nor smaller than anything.
    return (False, 0) if value is None or value != value else (True, value)  # noqa: PLR0124


def sorted_on_disk(
    records: Iterable[Profile | Rejection], *, run: int = _RUN
) -> Iterator[Profile | Rejection]:
    """Yield records sorted by profile ID, with about ``run`` bytes in memory and the rest in temporary files.

    Rejections, which have no place in the order, pass through first.
    """
    with ExitStack() as files:
        runs: list[IO[bytes]] = []
        profiles: list[Profile] = []
        size = 0

        def write() -> None:
            # Deleted already, so that nobody but this process can read or change it.
            file = files.enter_context(tempfile.TemporaryFile())
            for profile in sorted(profiles, key=_by_id):
                pickle.dump(tuple(profile), file)
            file.seek(0)
            runs.append(file)

        for record in records:
            if isinstance(record, Rejection):
                yield record
                continue
            profiles.append(record)
            size += _OVERHEAD + len(record.attributes)
            if size >= run:
                write()
                profiles, size = [], 0
        write()
        profiles = []
        yield from heapq.merge(*map(_read, runs), key=_by_id)


def _read(file: IO[bytes]) -> Iterator[Profile]:
    while True:
        try:
            yield Profile(*pickle.load(file))  # noqa: S301 - written by this process, and nobody else can reach it
        except EOFError:
            return
