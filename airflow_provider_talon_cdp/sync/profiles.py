"""Attributes of profiles: how rows are compared with a ledger, and how profiles are sent.

Talon.One takes the attributes of one profile in a request.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Collection, Generator, Iterable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from http import HTTPStatus
from itertools import islice
from typing import Any, ClassVar

from airflow_provider_talon_cdp.changes.change import Change, Chunk, Profile, Rejection
from airflow_provider_talon_cdp.changes.counts import Counts
from airflow_provider_talon_cdp.changes.diff import OutOfOrderError
from airflow_provider_talon_cdp.changes.fingerprint import (
    Names,
    cleared,
    digest_of,
    fingerprint,
    following,
    holds,
    marked_uncertain,
    mask_of,
    may_be_cleared,
    may_have_values,
    unacknowledged,
    was_acknowledged,
)
from airflow_provider_talon_cdp.changes.spool import Spool, sorted_profiles
from airflow_provider_talon_cdp.contract import OnDuplicate
from airflow_provider_talon_cdp.exceptions import (
    Blame,
    FatalError,
    InvalidInputError,
    NotFoundError,
    RejectedError,
    RequestError,
    UnclearError,
)
from airflow_provider_talon_cdp.ledger.ledger import Ledger
from airflow_provider_talon_cdp.ledger.share import Share
from airflow_provider_talon_cdp.sync.push import UNDEFINED, Flight, Push

PROFILES = "profiles"
"""The one key of a sync of attributes in counters that have audiences as keys."""

BATCH = 5
"""Profiles of one flight. They are acknowledged together, and sent again together after a kill."""

CHANGED = "changed in the source since it was planned; the next run sends it"
"""Why a planned profile is not sent by a process that reads the source after the one that planned."""

# Changes of one chunk of a plan.
_PLANNED = 1000
_ATTRIBUTE = re.compile(r"/attributes/([^/]+)")
# Talon.One's texts are not published. These are the usual ways to say it.
_NOT_DEFINED = re.compile(
    r"unknown|undefined|not (been )?(defined|found|exist|recogni[sz]ed)|does(n't| not) exist|non-?existing",
    re.IGNORECASE,
)
_NAMED = 3
_LONGEST = 80
_MOST_REASONS = 50
_OTHER_REASONS = "other reasons"
# 404s in a row after which a push stops if ``give_up_after`` is None.
_MOST_NOT_FOUND = 50


@dataclass(frozen=True, kw_only=True)
class Profiles:
    """Attributes of profiles.

    Args:
        sends_all: Whether unchanged profiles are sent too.
        clears: Whether the attributes that were ever sent are deleted from profiles that the source does not
            have.
        partial: Whether Talon.One is told to ignore unknown attributes.
        runs_rules: Whether the calls run rules. If such a call gets no clear answer, the next run sends the
            profile without rules.
        on_duplicate: If a profile has several rows: ``error``, or ``last`` to take the row with the greatest
            order.
        give_up_after: Number of profiles after which the push stops if all were refused for the same reason:
            then the configuration is wrong, not the data. None for never. Also the number of 404s in a row
            after which it stops, at whatever point; None for 50.
    """

    sends_all: bool = False
    clears: bool = False
    partial: bool = False
    runs_rules: bool = False
    on_duplicate: OnDuplicate = "error"
    give_up_after: int | None = 50

    in_request: ClassVar[int] = 1
    label: ClassVar[str] = PROFILES

    sort = staticmethod(sorted_profiles)

    def compare(self, ledger: Ledger, /) -> ProfilePlan:
        """Return a plan that compares a source with the ledger."""
        # An accepted older ledger does not know of later changes, whose rules may have run. Under another
        # key they surely have not.
        is_older = ledger.accepts_older and ledger.version < ledger.at_least
        may_have_run = (is_older or PROFILES in ledger.facts.filling) and not ledger.suspected
        return ProfilePlan(self, Names(ledger.names), rules_may_have_run=may_have_run)

    def reread(
        self, chunks: Iterator[Chunk], records: Iterable[Profile | Rejection], names: Iterable[str]
    ) -> Generator[Chunk, None, None]:
        """Add attributes from the source, as it is now, to a plan that another process made.

        Args:
            chunks: The plan's chunks or those of some parts, sorted by profile.
            records: The source, which is sorted on this worker's disk.
            names: Attribute names of the ledger.
        """
        # The process that planned has counted the records that cannot be sent, and written dead letters.
        rows = one_each(self.sort(records), Counts(), on_duplicate=self.on_duplicate)
        row = next(rows, None)
        known = Names(names)
        for chunk in chunks:
            bodies: list[bytes | None] = []
            for change in chunk.changes():
                if change.action == "remove":
                    bodies.append(_nulls(known.of(mask_of(change.key))))
                    continue
                while row is not None and row.profile_id < change.profile_id:
                    row = next(rows, None)
                # The attributes sent are the same, whether unknown ones are ignored or not.
                is_same = (
                    row is not None
                    and row.profile_id == change.profile_id
                    and not row.fault
                    and holds(change.key, digest_of(row.profile_id, row.attributes), partial=True)
                )
                bodies.append(row.attributes if row is not None and is_same else None)
            yield Chunk(chunk.ids, chunk.keys, chunk.verbs, bodies, disjoint_from_recent=True)

    def describe(self, counts: Counts) -> str:
        """Describe a plan for the log."""
        return (
            f"{counts.additions.total():,} profiles to send, {counts.removals.total():,} to clear,"
            f" {counts.unchanged:,} unchanged; the ledger has {counts.known.total():,} profiles"
        ) + (f"; rules run for {counts.rule_changes:,}" if self.runs_rules else "")

    def uncount(self, additions: Chunk, counts: Counts) -> None:
        """Take additions that are left out of a plan from its counts."""
        # Where the key has a mark of them, earlier attributes were acknowledged.
        known = sum(was_acknowledged(marked_uncertain(key)) for key in additions.each_key)
        counts.additions -= Counter({PROFILES: len(additions)})
        counts.repeated -= Counter({PROFILES: known})

    def reason(self, error: RejectedError, /) -> str:
        """Return the reason in the dead letter of a refused profile."""
        return reason_of(error)

    async def deliver(self, flight: Flight, sender: Any) -> None:
        """Send the profiles of a flight one after another. A chunk that runs rules has only one profile."""
        chunk = flight.chunk
        profiles = zip(chunk.ids, chunk.bodies or (), strict=True)
        changes = zip(profiles, chunk.each_verb, strict=True)
        for position, ((profile_id, body), verb) in enumerate(changes):
            if body is None:
                # The ledger must not record the planned attributes, and cannot record others during a push.
                flight.refused(position, RejectedError(CHANGED, method="PUT", path=""), CHANGED)
                continue
            while_in_flight = partial(flight.while_in_flight, [position]) if chunk.runs_rules else nullcontext
            try:
                await sender(profile_id, body, without_rules="!" not in verb, while_in_flight=while_in_flight)
            except RejectedError as error:
                if isinstance(error, NotFoundError) and not self._is_about_profile(error, flight, position):
                    raise error.become(
                        FatalError, f"{error}\nNo profile can be sent; check Base URL on the connection."
                    ) from error
                self._refuse(flight, position, error)
            except RequestError as error:
                if self._is_about_profile(error, flight, position):
                    self._refuse(flight, position, error.become(RejectedError, str(error)))
                    continue
                if not chunk.runs_rules or not error.is_unclear:
                    raise
                flight.count_unclear(error)
                if not isinstance(error, UnclearError):
                    raise
            else:
                flight.sent(chunk[position : position + 1], [position])

    def _is_about_profile(self, error: RequestError, flight: Flight, position: int) -> bool:
        """Whether a 404 is about one profile ID, as a proxy may answer for an encoded slash, not the path."""
        push = flight.push
        # So many in a row are an outage of the path.
        limit = max(self.give_up_after or _MOST_NOT_FOUND, (push.limits.max_rejected or 0) + 1)
        if error.status != HTTPStatus.NOT_FOUND or push.not_found_in_a_row + 1 >= limit:
            return False
        if push.sent:
            return True
        # A profile that was refused in the last run may be the only one to send, now with other attributes.
        return any(flight.chunk.ids[position] == profile_id for profile_id, _ in push.limits.refused_before)

    def _refuse(self, flight: Flight, position: int, error: RejectedError) -> None:
        reason = _within(flight.push.rejected, reason_of(error))
        flight.refused(position, error, reason)
        self._give_up(flight.push, error, reason)

    def _give_up(self, push: Push, error: RejectedError, reason: str) -> None:
        """Stop the push if the configuration is wrong, and not the data."""
        if self.give_up_after is None or push.limits.max_rejected is None:
            return
        limit = max(self.give_up_after, push.limits.max_rejected + 1)
        refused = push.rejected.total() - push.rejected_before
        if not push.sent and len(push.rejected) == 1 and refused >= limit:
            raise error.become(
                FatalError,
                f"The first {limit:,} profiles were all refused for the same reason: {reason}.\n"
                "The cause is not in single profiles. The other profiles were not sent.\n"
                "Fix the attributes in the Campaign Manager or in the query, or pass "
                "skip_unknown_attributes=True.",
            ) from error


class ProfilePlan:
    """One comparison of a source of attributes with a ledger, and the attributes to send.

    Attributes:
        names: Attribute names that the ledger knows; the plan adds new ones.
        witnesses: Empty, as no request tells whether Talon.One still has a profile's attributes.
    """

    def __init__(self, kind: Profiles, names: Names, *, rules_may_have_run: bool = False) -> None:
        self.names = names
        # For any profile: then no change runs rules.
        self._rules_may_have_run = rules_may_have_run
        self.witnesses: dict[str, str] = {}
        self._kind = kind
        # The ledger never holds attribute values, so they are kept in a temporary file.
        self._bodies = Spool()
        # Profiles of the chunk that is being planned that would lose all attributes by nulls.
        self._emptied: set[str] = set()
        self._counts = Counts()

    def changes(
        self,
        records: Iterable[Profile | Rejection],
        known: Iterable[Chunk],
        _: Iterable[Chunk],
        counts: Counts,
        on_rejected: Callable[[Rejection], None],
    ) -> Iterator[Chunk]:
        """Return a change for each profile to send, with its new fingerprint and attributes, sorted.

        ``known`` are profile IDs and fingerprints of the ledger, also the uncertain ones; the other arguments
        and errors are those of ``one_each``.
        """
        wanted = one_each(records, counts, on_duplicate=self._kind.on_duplicate, on_rejected=on_rejected)
        self._counts = counts
        compared = self._compared(known, wanted, counts)
        while some := list(islice(compared, _PLANNED)):
            chunk = Chunk.of(change for change, _ in some)
            yield Chunk(chunk.ids, chunk.keys, chunk.verbs, [body for _, body in some])
            self._emptied.clear()

    def filling(self, _: Counts) -> list[str]:
        """Return ``PROFILES`` if no change runs rules, so that the next run sends the rest without, too."""
        return [PROFILES] if self._rules_may_have_run else []

    def kept(self, changes: Iterable[Chunk]) -> Iterator[Chunk]:
        """Keep the attributes of the plan on disk, and return its chunks without them, for the ledger."""
        for chunk in changes:
            # Counted here, after the plan has left out some changes: ``uncount`` cannot tell which they are.
            if emptied := self._emptied.intersection(chunk.ids):
                self._counts.emptied[PROFILES] += len(emptied)
            for body in chunk.bodies or ():
                self._bodies.write(body or b"")
            yield Chunk(chunk.ids, chunk.keys, chunk.verbs)

    def chunks(self, share: Share) -> Generator[Chunk, None, None]:
        """Return the chunks of the current plan with their attributes, in the order of ``kept``."""
        bodies = iter(self._bodies)
        for chunk in share.batches(in_order=True):
            some = [next(bodies) for _ in chunk.ids]
            yield Chunk(chunk.ids, chunk.keys, chunk.verbs, some, disjoint_from_recent=True)

    def _compared(
        self, known: Iterable[Chunk], wanted: Iterable[Profile], counts: Counts
    ) -> Iterator[tuple[Change, bytes]]:
        lines = (line for chunk in known for line in chunk.members)
        line = next(lines, None)
        partial = self._kind.partial

        def missing(before: str | None) -> Iterator[tuple[Change, bytes]]:
            nonlocal line
            while line is not None and (before is None or line[0] < before):
                profile_id, old = line
                counts.known[PROFILES] += was_acknowledged(old)
                if self._kind.clears:
                    counts.removals[PROFILES] += 1
                    counts.unacknowledged_removals[PROFILES] += not was_acknowledged(old)
                    nulls = _nulls(self.names.of(mask_of(old)))
                    marks = self._marks(uncertain=may_be_cleared(old))
                    yield Change(profile_id, cleared(old), "remove", *marks), nulls
                line = next(lines, None)

        for profile in wanted:
            yield from missing(profile.profile_id)
            old = ""
            if line is not None and line[0] == profile.profile_id:
                old = line[1]
                counts.known[PROFILES] += was_acknowledged(old)
                line = next(lines, None)
            # A profile with a fault stays as it is.
            if profile.fault:
                continue
            counts.wanted += 1
            digest = digest_of(profile.profile_id, profile.attributes)
            is_held = holds(old, digest, partial=partial)
            if not profile.attributes or (is_held and not self._kind.sends_all):
                counts.unchanged += 1
                continue
            mask = self.names.mask(profile.names) | (mask_of(old) if old else 0)
            counts.additions[PROFILES] += 1
            counts.repeated[PROFILES] += bool(old) and was_acknowledged(old)
            if old and not is_held and _deletes_all(profile.attributes):
                nulls = digest_of(profile.profile_id, _nulls(self.names.of(mask_of(old))))
                if may_have_values(old, nulls):
                    self._emptied.add(profile.profile_id)
            line_now = following(fingerprint(digest, mask, partial=partial), old)
            uncertain = holds(unacknowledged(old), digest, partial=True)
            marks = self._marks(uncertain=uncertain, is_held=is_held)
            yield Change(profile.profile_id, line_now, "add", *marks), profile.attributes
        yield from missing(None)

    def _marks(self, *, uncertain: bool, is_held: bool = False) -> tuple[bool, bool]:
        """Return whether a change is uncertain, and whether it runs rules.

        Rules that have run for a change, or may have, do not run for it again, also if all is sent: a retry
        sends all once more. The ledger does not tell whether attributes that it holds were sent with rules.
        """
        if not self._kind.runs_rules:
            return False, False
        return uncertain, not (uncertain or is_held or self._rules_may_have_run)


def one_each(
    records: Iterable[Profile | Rejection],
    counts: Counts,
    *,
    on_duplicate: OnDuplicate,
    on_rejected: Callable[[Rejection], None] = lambda _: None,
) -> Iterator[Profile]:
    """Yield each profile of a sorted source once, also one with a fault, and count all records.

    Raises:
        OutOfOrderError: A profile ID is smaller than the one before it.
        InvalidInputError: At the end, if profiles have several rows and ``on_duplicate`` is ``error``.
    """
    ambiguous = 0
    several = False
    current: Profile | None = None

    def checked(profile: Profile) -> Profile:
        if profile.fault:
            reject(Rejection(profile.fault, profile.profile_id))
        return profile

    def reject(rejection: Rejection) -> None:
        counts.rejected[_within(counts.rejected, rejection.reason)] += 1
        on_rejected(rejection)

    for record in records:
        counts.read += 1
        if isinstance(record, Rejection):
            reject(record)
        elif current is None or record.profile_id > current.profile_id:
            if current is not None:
                yield checked(current)
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
        yield checked(current)
    if ambiguous and on_duplicate == "error":
        raise InvalidInputError(
            f"{ambiguous:,} profile(s) have more than one row ({ambiguous + counts.duplicate:,} rows), "
            "and it is not defined which row to send. Nothing was sent.\n"
            "Make the query return one row for each profile, or pass on_duplicate='last' with "
            "order_by_column."
        )


def reason_of(error: RejectedError) -> str:
    """Return why one profile was refused. Equal refusals have the same text, and it quotes no value.

    Args:
        error: The refusal.

    Returns:
        Names of attributes and what is wrong with them if the response says so, else the status. Without a
        response, the error's own text.
    """
    if error.status is None:
        return str(error)
    faults = sorted({fault for blame in error.blames if (fault := _fault(blame))})
    if not faults:
        return f"refused by Talon.One ({error.status})"
    more = f" and {len(faults) - _NAMED} more" if len(faults) > _NAMED else ""
    return "; ".join(faults[:_NAMED]) + more


def _within(reasons: Collection[str], reason: str) -> str:
    """Return a reason, or ``_OTHER_REASONS`` if there are too many different ones already."""
    return reason if reason in reasons or len(reasons) < _MOST_REASONS else _OTHER_REASONS


def _fault(blame: Blame) -> str | None:
    found = _ATTRIBUTE.match(blame.pointer)
    if not found:
        return None
    # The escapes of JSON pointers (RFC 6901).
    name = found[1].replace("~1", "/").replace("~0", "~")
    if _NOT_DEFINED.search(f"{blame.title} {blame.details}"):
        return f"attribute {name!r} {UNDEFINED}"
    title = " ".join(blame.title.split())[:_LONGEST]
    return f"attribute {name!r} was refused" + (f" ({title})" if title else "")


def _nulls(names: Iterable[str]) -> bytes:
    """Return the JSON that deletes attributes, as it is of a row that has only nulls."""
    nulls = dict.fromkeys(sorted(names))
    return json.dumps(nulls, separators=(",", ":"), ensure_ascii=False).encode()


def _deletes_all(attributes: bytes) -> bool:
    return attributes.endswith(b"null}") and all(value is None for value in json.loads(attributes).values())


def _is_later(one: Profile, other: Profile) -> bool:
    # If the order is equal, the same row of both wins in every run, whichever comes first.
    ranks = [(_rank(row.order), row.attributes, row.fault or "") for row in (one, other)]
    try:
        return ranks[0] > ranks[1]
    except TypeError as error:
        raise InvalidInputError(
            "order_by_column has values that cannot be compared, of the types"
            f" {type(one.order).__name__} and {type(other.order).__name__}. Cast it to one type in SQL."
        ) from error


def _rank(value: Any) -> tuple[int, Any]:
    # A row whose order cannot be read may be the last, so it wins, and its profile is rejected.
    if isinstance(value, InvalidInputError):
        return 2, 0
    # NaN differs from itself and cannot be compared, so it ranks as None.
    return (0, 0) if value is None or value != value else (1, value)  # noqa: PLR0124
