"""What one environment holds: audiences, profiles and memberships. No HTTP, no files.

Memberships are stored in their audience only, so a request costs as much as it changes, and deleting
an audience is one step. Every method holds the lock, so any thread may read while the server writes.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import NamedTuple, TypeAlias, TypedDict

from airflow_provider_talon_cdp.emulator.exact_json import Json

AudienceKey: TypeAlias = str | int
"""What names an audience: its external ID (``str``) or its internal ID (``int``)."""

# Most profiles have none.
_NO_ATTRIBUTES: dict[str, Json] = {}


class UnknownAudienceError(LookupError):
    """An audience that does not exist."""


class ExternalIdTakenError(Exception):
    """Another audience has this external ID."""


class MembershipChange(NamedTuple):
    """One profile and the audiences that it joins and leaves."""

    profile_id: str
    adds: tuple[AudienceKey, ...] = ()
    deletes: tuple[AudienceKey, ...] = ()


class AudienceView(TypedDict):
    """An audience as it is read back: ``members`` is their number, ``created`` an RFC 3339 time."""

    id: int
    name: str
    created: str
    members: int


class ProfileView(TypedDict):
    """A profile as it is read back.

    Audiences have their external ID, those made in the Campaign Manager their internal one, after the others.
    """

    attributes: dict[str, Json]
    audiences: list[AudienceKey]


@dataclass(slots=True)
class StoredAudience:
    """An audience.

    ``external_id`` is ``None`` for one made in the Campaign Manager, ``integration`` is the platform
    that created it, ``members`` are profile IDs.
    """

    id: int
    external_id: str | None
    name: str
    integration: str
    created: str
    members: set[str] = field(default_factory=set)


@dataclass(slots=True)
class StoredProfile:
    """A profile; ``rule_runs`` counts the calls on it that ran the Rule Builder.

    ``attributes`` are replaced and never changed.
    """

    id: int
    created: str
    last_activity: str
    rule_runs: int
    attributes: dict[str, Json]


def utc_now() -> str:
    """The time as RFC 3339 in UTC, with milliseconds."""
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


class Store:
    """The state behind the API.

    Args:
        now: gives the times of creation and of activity.
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
        self.load((), {}, 1)

    def load(
        self, audiences: Iterable[StoredAudience], profiles: Mapping[str, StoredProfile], next_id: int
    ) -> None:
        """Replace everything; ``next_id`` is the internal ID of the next new audience."""
        with self._lock:
            self._by_id = {each.id: each for each in audiences}
            self._by_external = {
                each.external_id: each for each in self._by_id.values() if each.external_id is not None
            }
            self._profiles = dict(profiles)
            self._next_id = next_id
            self._version += 1

    def create_audience(
        self, external_id: str | None, name: str, integration: str = "Local emulator"
    ) -> StoredAudience:
        """Create an audience; without an external ID it is one of the Campaign Manager's.

        Raises:
            ExternalIdTakenError: the external ID is taken.
        """
        with self._lock:
            if external_id in self._by_external:
                raise ExternalIdTakenError(external_id)
            audience = StoredAudience(self._next_id, external_id, name, integration, self._now())
            self._by_id[audience.id] = audience
            if external_id is not None:
                self._by_external[external_id] = audience
            self._next_id += 1
            self._version += 1
            return audience

    def rename_audience(self, key: AudienceKey, name: str) -> StoredAudience:
        """Rename an audience.

        Raises:
            UnknownAudienceError: it does not exist.
        """
        with self._lock:
            audience = self._find(key)
            audience.name = name
            self._version += 1
            return audience

    def delete_audience(self, key: AudienceKey) -> None:
        """Delete an audience and every membership of it; its profiles stay.

        Raises:
            UnknownAudienceError: it does not exist.
        """
        with self._lock:
            audience = self._find(key)
            del self._by_id[audience.id]
            if audience.external_id is not None:
                del self._by_external[audience.external_id]
            self._version += 1

    def change(
        self,
        changes: Sequence[MembershipChange],
        attributes: Mapping[str, Json] | None = None,
        *,
        run_rules: bool = False,
    ) -> None:
        """Apply all changes or none.

        A profile is created when it is first seen, also without any change. Adding a member twice and
        deleting a non-member change nothing.

        Args:
            changes: which profiles join and leave which audiences.
            attributes: set on every one of these profiles; ``None`` as a value deletes.
            run_rules: count a run of the Rule Builder for every one of these profiles.

        Raises:
            UnknownAudienceError: one of the audiences does not exist. Nothing has changed then; whether
                the real API applies the rest of such a request is not documented.
        """
        with self._lock:
            keys: set[AudienceKey] = set()
            for change in changes:
                keys.update(change.adds, change.deletes)
            members = {key: self._find(key).members for key in keys}
            now = self._now()
            for change in changes:
                profile = self._profiles.get(change.profile_id)
                if profile is None:
                    profile = StoredProfile(len(self._profiles) + 1, now, now, 0, _NO_ATTRIBUTES)
                    self._profiles[change.profile_id] = profile
                profile.last_activity = now
                profile.rule_runs += run_rules
                if attributes:
                    merged = {**profile.attributes, **attributes}
                    profile.attributes = {name: value for name, value in merged.items() if value is not None}
                for key in change.adds:
                    members[key].add(change.profile_id)
                for key in change.deletes:
                    members[key].discard(change.profile_id)
            self._version += 1

    def snapshot(self) -> tuple[list[StoredAudience], dict[str, StoredProfile], int]:
        """What :meth:`load` takes, as a copy that later changes do not touch."""
        with self._lock:
            audiences = [
                StoredAudience(a.id, a.external_id, a.name, a.integration, a.created, set(a.members))
                for a in self._by_id.values()
            ]
            profiles = {
                name: StoredProfile(p.id, p.created, p.last_activity, p.rule_runs, p.attributes)
                for name, p in self._profiles.items()
            }
            return audiences, profiles, self._next_id

    def audiences(self) -> dict[str, AudienceView]:
        """Every audience with an external ID, by that, oldest first."""
        with self._lock:
            return {key: _view(audience) for key, audience in self._by_external.items()}

    def campaign_manager_audiences(self) -> dict[int, AudienceView]:
        """Every audience without an external ID, by its internal one, oldest first."""
        with self._lock:
            return {key: _view(each) for key, each in self._by_id.items() if each.external_id is None}

    def audience(self, key: AudienceKey) -> AudienceView:
        """An audience.

        Raises:
            UnknownAudienceError: it does not exist.
        """
        with self._lock:
            return _view(self._find(key))

    def members(self, key: AudienceKey) -> frozenset[str]:
        """The profile IDs in an audience.

        Raises:
            UnknownAudienceError: it does not exist.
        """
        with self._lock:
            return frozenset(self._find(key).members)

    def profile(self, profile_id: str) -> ProfileView | None:
        """A profile's attributes and audiences, or ``None`` when it has never been seen."""
        with self._lock:
            profile = self._profiles.get(profile_id)
            if profile is None:
                return None
            inside = [each for each in self._by_id.values() if profile_id in each.members]
            external = sorted(each.external_id for each in inside if each.external_id is not None)
            internal = [each.id for each in inside if each.external_id is None]
            return {"attributes": dict(profile.attributes), "audiences": [*external, *internal]}

    def stored_profile(self, profile_id: str) -> StoredProfile | None:
        """A profile with all that is stored of it, or ``None`` when it has never been seen."""
        return self._profiles.get(profile_id)

    def attributes(self) -> dict[str, dict[str, Json]]:
        """The attributes of every profile, by its ID."""
        with self._lock:
            return {name: dict(profile.attributes) for name, profile in self._profiles.items()}

    def profiles(self) -> frozenset[str]:
        """Every profile ID."""
        with self._lock:
            return frozenset(self._profiles)

    def profile_count(self) -> int:
        """How many profiles there are."""
        return len(self._profiles)

    def _find(self, key: AudienceKey) -> StoredAudience:
        found = self._by_external.get(key) if isinstance(key, str) else self._by_id.get(key)
        if found is None:
            raise UnknownAudienceError(key)
        return found


def _view(audience: StoredAudience) -> AudienceView:
    return {
        "id": audience.id,
        "name": audience.name,
        "created": audience.created,
        "members": len(audience.members),
    }
