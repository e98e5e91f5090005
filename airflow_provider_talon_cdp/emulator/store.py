"""What the emulator remembers: audiences, profiles and memberships. No HTTP, no files.

Memberships live in their audience alone, so a request costs as much as it changes, however large
everything is, and deleting an audience is one step. Every method holds the lock, so any thread may read
while the server writes.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from types import MappingProxyType
from typing import TypedDict

from airflow_provider_talon_cdp.emulator.exact_json import Json
from airflow_provider_talon_cdp.emulator.validation import AudienceId, Change

_NO_ATTRIBUTES: Mapping[str, Json] = MappingProxyType({})


class UnknownAudienceError(LookupError):
    """An audience that does not exist."""


class AudienceExistsError(Exception):
    """The external ID is taken."""


class AudienceView(TypedDict):
    """An audience as it is read back: ``members`` is their number, ``created`` an RFC 3339 time."""

    id: int
    name: str
    created: str
    members: int


class ProfileView(TypedDict):
    """A profile as it is read back: external audience IDs, sorted."""

    attributes: dict[str, Json]
    audiences: list[str]


@dataclass(slots=True)
class Audience:
    """An audience; ``id`` is the internal ID, ``created`` is RFC 3339 in UTC, ``members`` are profile IDs."""

    id: int
    external_id: str
    name: str
    created: str
    members: set[str] = field(default_factory=set)


@dataclass(frozen=True)
class Snapshot:
    """Everything in a store at one moment."""

    audiences: tuple[Audience, ...]
    profiles: Mapping[str, Mapping[str, Json]]
    next_id: int


def utc_now() -> str:
    """The time as RFC 3339 in UTC, with milliseconds."""
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


class Store:
    """The state behind the API.

    Args:
        now: gives the time of creation of an audience.
    """

    def __init__(self, now: Callable[[], str] = utc_now) -> None:
        self._now = now
        self._lock = threading.Lock()
        self._version = 0
        self.clear()

    @property
    def version(self) -> int:
        """Grows with every change; the same number means the same content."""
        return self._version

    def clear(self) -> None:
        """Forget everything; internal IDs start at 1 again."""
        self.load(Snapshot((), {}, 1))

    def load(self, snapshot: Snapshot) -> None:
        """Replace everything."""
        with self._lock:
            self._by_id = {audience.id: audience for audience in snapshot.audiences}
            self._by_external = {audience.external_id: audience for audience in snapshot.audiences}
            self._profiles = dict(snapshot.profiles)
            self._next_id = snapshot.next_id
            self._version += 1

    def snapshot(self) -> Snapshot:
        """A copy that later changes do not touch."""
        with self._lock:
            audiences = tuple(
                Audience(a.id, a.external_id, a.name, a.created, set(a.members)) for a in self._by_id.values()
            )
            return Snapshot(audiences, dict(self._profiles), self._next_id)

    def create_audience(self, external_id: str, name: str) -> Audience:
        """Create an audience.

        Raises:
            AudienceExistsError: the external ID is taken.
        """
        with self._lock:
            if external_id in self._by_external:
                raise AudienceExistsError(external_id)
            audience = Audience(self._next_id, external_id, name, self._now())
            self._by_id[audience.id] = self._by_external[external_id] = audience
            self._next_id += 1
            self._version += 1
            return audience

    def rename_audience(self, external_id: str, name: str) -> Audience:
        """Rename an audience.

        Raises:
            UnknownAudienceError: there is none with this external ID.
        """
        with self._lock:
            audience = _find(self._by_external, external_id)
            audience.name = name
            self._version += 1
            return audience

    def delete_audience(self, external_id: str) -> None:
        """Delete an audience and every membership of it; its profiles stay.

        Raises:
            UnknownAudienceError: there is none with this external ID.
        """
        with self._lock:
            audience = _find(self._by_external, external_id)
            del self._by_external[external_id], self._by_id[audience.id]
            self._version += 1

    def change_internal(
        self, changes: Sequence[Change[int]], attributes: Mapping[str, Json] | None = None
    ) -> None:
        """Apply all changes, by internal audience IDs, or none; see :meth:`change_external`.

        Args:
            changes: which profiles join and leave which audiences.
            attributes: set on every one of these profiles; ``None`` as a value deletes.
        """
        with self._lock:
            self._change(changes, self._by_id, attributes or {})

    def change_external(self, changes: Sequence[Change[str]]) -> None:
        """Apply all changes, by external audience IDs, or none.

        A profile is created when it is first seen, also without any change. Adding a member twice and
        deleting a non-member change nothing.

        Raises:
            UnknownAudienceError: one of the audiences does not exist. Nothing has changed then; whether
                the real API applies the rest of such a request is not documented.
        """
        with self._lock:
            self._change(changes, self._by_external, {})

    def _change(
        self,
        changes: Sequence[Change[AudienceId]],
        audiences: Mapping[AudienceId, Audience],
        attributes: Mapping[str, Json],
    ) -> None:
        wanted: set[AudienceId] = set()
        for change in changes:
            wanted.update(change.adds, change.deletes)
        found = {audience: _find(audiences, audience).members for audience in wanted}
        for change in changes:
            before = self._profiles.setdefault(change.profile_id, _NO_ATTRIBUTES)
            if attributes:
                merged = {
                    name: value for name, value in {**before, **attributes}.items() if value is not None
                }
                self._profiles[change.profile_id] = merged or _NO_ATTRIBUTES
            for audience in change.adds:
                found[audience].add(change.profile_id)
            for audience in change.deletes:
                found[audience].discard(change.profile_id)
        self._version += 1

    def audiences(self) -> dict[str, AudienceView]:
        """Every audience by its external ID, oldest first."""
        with self._lock:
            return {
                a.external_id: {"id": a.id, "name": a.name, "created": a.created, "members": len(a.members)}
                for a in self._by_id.values()
            }

    def members(self, external_id: str) -> frozenset[str]:
        """The profile IDs in an audience.

        Raises:
            UnknownAudienceError: there is none with this external ID.
        """
        with self._lock:
            return frozenset(_find(self._by_external, external_id).members)

    def profile(self, profile_id: str) -> ProfileView | None:
        """A profile's attributes and audiences, or ``None`` when it has never been seen."""
        with self._lock:
            attributes = self._profiles.get(profile_id)
            if attributes is None:
                return None
            inside = sorted(a.external_id for a in self._by_id.values() if profile_id in a.members)
            return {"attributes": dict(attributes), "audiences": inside}

    def attributes(self, profile_id: str) -> dict[str, Json]:
        """A profile's attributes; empty when it has never been seen."""
        with self._lock:
            return dict(self._profiles.get(profile_id, _NO_ATTRIBUTES))

    def profiles(self) -> frozenset[str]:
        """Every profile ID."""
        with self._lock:
            return frozenset(self._profiles)

    def profile_count(self) -> int:
        """How many profiles there are."""
        return len(self._profiles)


def _find(audiences: Mapping[AudienceId, Audience], audience: AudienceId) -> Audience:
    try:
        return audiences[audience]
    except KeyError:
        raise UnknownAudienceError(audience) from None
