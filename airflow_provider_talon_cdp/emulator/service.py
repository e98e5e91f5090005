"""One CDP call from the first check to its answer, and the state that calls share."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from airflow_provider_talon_cdp.emulator import attributes, calls
from airflow_provider_talon_cdp.emulator.answers import (
    TEXTS,
    EmulatorAnswer,
    RefusedError,
    error_answer,
    json_answer,
)
from airflow_provider_talon_cdp.emulator.faults import RESET_AFTER, RESET_BEFORE, SLOW, Fault, Faults
from airflow_provider_talon_cdp.emulator.store import (
    ExternalIdTakenError,
    Store,
    StoredAudience,
    UnknownAudienceError,
    utc_now,
)
from airflow_provider_talon_cdp.emulator.traffic import InFlight, LoggedRequest, RateLimit, RequestLog

ACCOUNT_ID = 1
DEFAULT_KEY = "local-key-1234567890"
DEFAULT_DEPLOYMENT_HOST = "demo.europe-west1.talon.one"
_LONGEST = 3600


@dataclass(frozen=True)
class EmulatorSettings:
    """How an emulator behaves; the fields are the options of :class:`~.server.Emulator`.

    Raises:
        TypeError: ``attributes`` or ``environments`` is not a mapping.
        ValueError: a setting that cannot be.
    """

    api_key: str | None = field(default=DEFAULT_KEY, repr=False)
    environments: Mapping[str, str] = field(default_factory=dict, repr=False)
    deployment_host: str | None = DEFAULT_DEPLOYMENT_HOST
    attributes: Mapping[str, str] | None = None
    multi_profile_path: str = "plural"
    requests_per_second: float | None = None
    burst: float | None = None
    send_retry_after: bool = True
    service_time: float = 0.0
    reject_profiles: Iterable[str] = ()

    def __post_init__(self) -> None:
        if self.multi_profile_path not in calls.MULTI_PROFILE_WORDS:
            raise ValueError(f"multi_profile_path must be one of {', '.join(calls.MULTI_PROFILE_WORDS)}")
        if self.burst is not None and self.requests_per_second is None:
            raise ValueError("burst goes with requests_per_second")
        if not 0 <= self.service_time <= _LONGEST:
            raise ValueError("service_time must be 0 to 3600 seconds")
        if self.environments and self.api_key != DEFAULT_KEY:
            raise ValueError("api_key does not go with environments: each of them has its own key")
        if not all(name and key for name, key in self.environments.items()):
            raise ValueError("an environment has a name and a key")
        if len(set(self.environments.values())) != len(self.environments):
            raise ValueError("two environments have the same key")


@dataclass
class EmulatedEnvironment:
    """What is behind one key: audiences and profiles, and the limits of its requests."""

    name: str
    key: str | None = field(repr=False)
    limit: RateLimit | None
    store: Store = field(default_factory=Store)
    in_flight: InFlight = field(default_factory=InFlight)


@dataclass(frozen=True)
class Incoming:
    """A request as it came over the wire; ``path`` and ``query`` are still percent-encoded."""

    method: str
    path: bytes
    query: str
    headers: Mapping[str, str]
    skip_unknown: Sequence[str]
    body: bytes


@dataclass
class _Seen:
    """What is known of a request so far, for the log, whichever way it ends."""

    operation: str = ""
    environment: str | None = None
    call: calls.CheckedCall | None = None
    fault: Fault | None = None


class Service:
    """Talon.One's CDP API, without the HTTP around it.

    Calls run on one event loop; everything else may be used from any thread.
    """

    def __init__(self, settings: EmulatorSettings) -> None:
        self.settings = settings
        self.attributes = attributes.declare({} if settings.attributes is None else settings.attributes)
        keys: Mapping[str, str | None] = settings.environments or {"": settings.api_key}
        self.environments = {
            name: EmulatedEnvironment(name, key, self._limit()) for name, key in keys.items()
        }
        self.log = RequestLog()
        self.faults = Faults()
        self._always_rejected = frozenset(settings.reject_profiles)
        self.rejected_profiles = self._always_rejected
        self.stopping = asyncio.Event()
        self._resets = 0

    def _limit(self) -> RateLimit | None:
        settings = self.settings
        if settings.requests_per_second is None:
            return None
        return RateLimit(
            settings.requests_per_second, settings.burst, send_retry_after=settings.send_retry_after
        )

    def environment(self, name: str | None = None) -> EmulatedEnvironment:
        """An environment by its name, the first one for ``None``.

        Raises:
            LookupError: there is none of this name.
        """
        if name is None:
            return next(iter(self.environments.values()))
        try:
            return self.environments[name]
        except KeyError:
            known = ", ".join(self.environments) or "none"
            raise LookupError(f"there is no environment {name!r}, but {known}") from None

    def reset(self) -> None:
        """Forget everything, faults and requests under way too: as after a start without a state file."""
        self._resets += 1
        self.clear_faults()
        self.log.clear()
        for environment in self.environments.values():
            environment.store.clear()
            if environment.limit is not None:
                environment.limit.refill()

    def clear_faults(self) -> None:
        """Forget every fault to come, and the rejected profiles that were added since the start."""
        self.faults.clear()
        self.rejected_profiles = self._always_rejected

    def reject_profiles(self, profile_ids: Iterable[str]) -> None:
        """From now on refuse every call on these profiles, and on those given at the start."""
        self.rejected_profiles = self._always_rejected | frozenset(profile_ids)

    def state(self, environment: str | None = None) -> dict[str, Any]:
        """Sizes of an environment, and counters over all, as ``GET /emulator/state`` shows them."""
        store = self.environment(environment).store
        return {
            "deployment_host": self.settings.deployment_host,
            "multi_profile_path": self.settings.multi_profile_path,
            "environments": [name for name in self.environments if name],
            "audiences": store.audiences(),
            "campaign_manager_audiences": list(store.campaign_manager_audiences().values()),
            "profiles": store.profile_count(),
            "requests": self.log.counters(),
            "faults": self.faults.pending(),
            "rejected_profiles": sorted(self.rejected_profiles),
        }

    def start(self) -> None:
        """Allow waits again. Called before the event loop runs, which the event then belongs to."""
        self.stopping = asyncio.Event()

    def stop(self) -> None:
        """End every wait. Called on the event loop."""
        self.stopping.set()

    async def pause(self, seconds: float) -> None:
        """Wait, but not past the end of the emulator."""
        if seconds <= 0:
            return
        try:
            await asyncio.wait_for(self.stopping.wait(), seconds)
        except TimeoutError:
            return

    async def handle(self, request: Incoming) -> tuple[EmulatorAnswer | None, Fault | None]:
        """Answer a request, and log it.

        Returns:
            The answer, ``None`` to reset the connection, and the fault that the request met.
        """
        request_uuid = str(uuid.uuid4())
        seen, resets = _Seen(), self._resets
        try:
            answer = await self._answer(request, request_uuid, seen)
        except RefusedError as refusal:
            answer = error_answer(refusal, request_uuid)
        call = seen.call
        if resets != self._resets:
            return None, seen.fault
        self.log.add(
            LoggedRequest(
                time=utc_now(),
                method=request.method,
                path=request.path.decode("latin-1"),
                query=request.query,
                operation=seen.operation,
                status=answer.status if answer else None,
                request_uuid=request_uuid,
                changes=call.size if call else 0,
                run_rule_engine=call.run_rules if call else None,
                environment=seen.environment,
                fault=seen.fault.kind if seen.fault else None,
            )
        )
        return answer, seen.fault

    async def _answer(self, request: Incoming, request_uuid: str, seen: _Seen) -> EmulatorAnswer | None:
        settings, resets = self.settings, self._resets
        route = calls.find_route(request.method, request.path, settings.multi_profile_path)
        seen.operation = route.operation
        keys = {name: each.key for name, each in self.environments.items()}
        seen.environment = calls.check_headers(request.headers, keys, settings.deployment_host)
        environment = self.environments[seen.environment]
        if environment.limit is not None:
            environment.limit.take()
        content_type = request.headers.get("content-type", "")
        call = seen.call = calls.read_call(route, request.skip_unknown, content_type, request.body)
        with environment.in_flight.hold(call.profiles):
            if not self.rejected_profiles.isdisjoint(call.profiles):
                raise RefusedError(400, "The request could not be processed")
            fault = seen.fault = self.faults.take(call.operation, call.profiles or (call.audience_id,))
            instead = None if fault is None else fault.answer(request_uuid)
            if fault is not None and not fault.takes_effect:
                return None if fault.kind == RESET_BEFORE else instead
            late = fault.pause if fault is not None and fault.kind == SLOW else 0
            await self.pause(settings.service_time + late)
            if resets != self._resets:
                return None
            try:
                own = self._perform(call, environment.store, request.headers["customer-data-platform-name"])
            except UnknownAudienceError:
                raise RefusedError(404, TEXTS[404]) from None
            except ExternalIdTakenError as taken:
                raise RefusedError(409, f"The audience with the ID '{taken}' already exists") from None
        return None if fault is not None and fault.kind == RESET_AFTER else instead or own

    def _perform(self, call: calls.CheckedCall, store: Store, platform: str) -> EmulatorAnswer:
        if call.operation == calls.CREATE_AUDIENCE:
            return _audience(201, store.create_audience(call.audience_id, call.audience_name, platform))
        if call.operation == calls.UPDATE_AUDIENCE:
            return _audience(200, store.rename_audience(call.audience_id, call.audience_name))
        if call.operation == calls.DELETE_AUDIENCE:
            store.delete_audience(call.audience_id)
            return EmulatorAnswer(204)
        accepted = attributes.accept(call.attributes, self.attributes, skip_unknown=call.skip_unknown)
        store.change(call.changes, accepted, run_rules=call.run_rules)
        if call.operation in (calls.UPDATE_PROFILE, calls.UPDATE_PROFILE_AUDIENCES):
            return _integration_state(store, call.changes[0].profile_id)
        return EmulatorAnswer(204)


def _integration_state(store: Store, profile_id: str) -> EmulatorAnswer:
    profile = store.stored_profile(profile_id)
    if profile is None:  # reset() came in between
        raise RefusedError(404, TEXTS[404])
    return json_answer(
        200,
        {
            "effects": [],
            "createdCoupons": [],
            "createdReferrals": [],
            "customerProfile": {
                "id": profile.id,
                "created": profile.created,
                "accountId": ACCOUNT_ID,
                "integrationId": profile_id,
                "attributes": profile.attributes,
                # A CDP key can open no sessions.
                "closedSessions": 0,
                "totalSales": 0,
                "lastActivity": profile.last_activity,
            },
        },
    )


def _audience(status: int, audience: StoredAudience) -> EmulatorAnswer:
    return json_answer(
        status,
        {
            "id": audience.id,
            "created": audience.created,
            "accountId": ACCOUNT_ID,
            "name": audience.name,
            "integration": audience.integration,
            "integrationId": audience.external_id,
        },
    )
