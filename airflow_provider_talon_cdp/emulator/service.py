"""One CDP call from the first check to its answer, and the state that calls share."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from airflow_provider_talon_cdp.emulator import attributes, routes
from airflow_provider_talon_cdp.emulator.answers import Answer, RefusedError, error_answer, json_answer
from airflow_provider_talon_cdp.emulator.exact_json import Json
from airflow_provider_talon_cdp.emulator.faults import RESET_AFTER, RESET_BEFORE, SLOW, Fault, Faults
from airflow_provider_talon_cdp.emulator.limits import InFlight, RateLimit
from airflow_provider_talon_cdp.emulator.request_log import LoggedRequest, RequestLog
from airflow_provider_talon_cdp.emulator.store import (
    Audience,
    AudienceExistsError,
    Store,
    UnknownAudienceError,
    utc_now,
)
from airflow_provider_talon_cdp.emulator.validation import Call, check_headers, read_call

ACCOUNT_ID = 1
_LONGEST = 3600


@dataclass(frozen=True)
class Settings:
    """What an emulator was started with; see :class:`~airflow_provider_talon_cdp.emulator.Emulator`.

    Raises:
        ValueError: a setting that cannot be.
    """

    api_key: str | None = field(default=None, repr=False)
    deployment_host: str | None = None
    attributes: Mapping[str, str] = field(default_factory=dict)
    multi_profile_path: str = "plural"
    requests_per_second: float | None = None
    burst: float | None = None
    send_retry_after: bool = True
    service_time: float = 0.0
    rejected_profiles: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        if self.multi_profile_path not in routes.MULTI_PROFILE_WORDS:
            raise ValueError(f"multi_profile_path must be one of {', '.join(routes.MULTI_PROFILE_WORDS)}")
        if self.burst is not None and self.requests_per_second is None:
            raise ValueError("burst goes with requests_per_second")
        if not 0 <= self.service_time <= _LONGEST:
            raise ValueError("service_time must be 0 to 3600 seconds")


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
    call: Call | None = None
    fault: Fault | None = None


class Service:
    """Talon.One's CDP API, without the HTTP around it.

    Calls run on one event loop; everything else may be used from any thread.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.store = Store()
        self.log = RequestLog()
        self.faults = Faults()
        self.rejected_profiles = settings.rejected_profiles
        self._in_flight = InFlight()
        self._stopping = asyncio.Event()
        self._limit: RateLimit | None = None
        if settings.requests_per_second is not None:
            self._limit = RateLimit(
                settings.requests_per_second, settings.burst, send_retry_after=settings.send_retry_after
            )

    def reset(self) -> None:
        """Forget everything, faults too: as it was when it started without a state file."""
        self.clear_faults()
        self.store.clear()
        self.log.clear()
        if self._limit is not None:
            self._limit.refill()

    def clear_faults(self) -> None:
        """Forget every fault to come, and the rejected profiles that were added since the start."""
        self.faults.clear()
        self.rejected_profiles = self.settings.rejected_profiles

    def reject_profiles(self, profile_ids: Iterable[str]) -> None:
        """From now on refuse every call on these profiles, and on those given at the start."""
        self.rejected_profiles = self.settings.rejected_profiles | frozenset(profile_ids)

    def state(self) -> dict[str, Any]:
        """Sizes and counters, as ``GET /emulator/state`` shows them."""
        return {
            "deployment_host": self.settings.deployment_host,
            "multi_profile_path": self.settings.multi_profile_path,
            "audiences": self.store.audiences(),
            "profiles": self.store.profile_count(),
            "requests": self.log.counters(),
            "faults": self.faults.pending(),
            "rejected_profiles": sorted(self.rejected_profiles),
        }

    def start(self) -> None:
        """Allow waits again. Called before the event loop runs, which the event then belongs to."""
        self._stopping = asyncio.Event()

    def stop(self) -> None:
        """End every wait. Called on the event loop."""
        self._stopping.set()

    async def handle(self, request: Incoming) -> Answer | None:
        """Answer a request, and log it.

        Returns:
            ``None`` to cut the connection instead of answering.
        """
        request_uuid = str(uuid.uuid4())
        seen = _Seen()
        try:
            answer = await self._answer(request, request_uuid, seen)
        except RefusedError as refusal:
            answer = error_answer(refusal, request_uuid)
        call = seen.call
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
                run_rule_engine=call.run_rule_engine if call else None,
                fault=seen.fault.kind if seen.fault else None,
            )
        )
        return answer

    async def _answer(self, request: Incoming, request_uuid: str, seen: _Seen) -> Answer | None:
        settings = self.settings
        route = routes.find(request.method, request.path, settings.multi_profile_path)
        seen.operation = route.operation
        check_headers(request.headers, settings.api_key, settings.deployment_host)
        if self._limit is not None:
            self._limit.take()
        content_type = request.headers.get("content-type", "")
        call = seen.call = read_call(route, request.skip_unknown, content_type, request.body)
        with self._in_flight.hold(call.profiles):
            if not self.rejected_profiles.isdisjoint(call.profiles):
                raise RefusedError(400, "The request could not be processed")
            fault = seen.fault = self.faults.take(call.operation, call.profiles or (call.audience_id,))
            if fault is not None and fault.kind == RESET_BEFORE:
                return None
            if fault is not None and fault.kind not in (SLOW, RESET_AFTER):
                return fault.answer(request_uuid)
            await self._pause(settings.service_time + (fault.delay if fault else 0))
            try:
                answer = self._perform(call, request.headers["customer-data-platform-name"])
            except UnknownAudienceError as unknown:
                raise RefusedError(404, f"Audience not found: {unknown}") from None
            except AudienceExistsError as taken:
                raise RefusedError(409, f"An audience with this ID exists already: {taken}") from None
        return None if fault is not None and fault.kind == RESET_AFTER else answer

    async def _pause(self, seconds: float) -> None:
        if seconds <= 0:
            return
        try:
            await asyncio.wait_for(self._stopping.wait(), seconds)
        except TimeoutError:
            return

    def _perform(self, call: Call, platform: str) -> Answer:
        store = self.store
        if call.operation == routes.CREATE_AUDIENCE:
            return _audience(201, store.create_audience(call.audience_id, call.audience_name), platform)
        if call.operation == routes.UPDATE_AUDIENCE:
            return _audience(200, store.rename_audience(call.audience_id, call.audience_name), platform)
        if call.operation == routes.DELETE_AUDIENCE:
            store.delete_audience(call.audience_id)
            return Answer(204)
        if call.operation == routes.UPDATE_PROFILE:
            accepted = attributes.accept(
                call.attributes, self.settings.attributes, skip_unknown=call.skip_unknown
            )
            store.change_internal(call.internal, accepted)
            return self._integration_state(call.internal[0].profile_id)
        if call.operation == routes.UPDATE_PROFILES_INTERNAL:
            store.change_internal(call.internal)
            return Answer(204)
        store.change_external(call.external)
        if call.operation == routes.UPDATE_PROFILE_AUDIENCES:
            return self._integration_state(call.external[0].profile_id)
        return Answer(204)

    def _integration_state(self, profile_id: str) -> Answer:
        profile: dict[str, Json] = {
            "integrationId": profile_id,
            "attributes": self.store.attributes(profile_id),
        }
        return json_answer(
            200, {"effects": [], "createdCoupons": [], "createdReferrals": [], "customerProfile": profile}
        )


def _audience(status: int, audience: Audience, platform: str) -> Answer:
    return json_answer(
        status,
        {
            "id": audience.id,
            "created": audience.created,
            "accountId": ACCOUNT_ID,
            "name": audience.name,
            "integration": platform,
            "integrationId": audience.external_id,
        },
    )
