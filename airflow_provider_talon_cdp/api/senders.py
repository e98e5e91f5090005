"""The callables that send a sync's changes, each a client with one pacer and one set of counters."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from airflow_provider_talon_cdp.api import calls
from airflow_provider_talon_cdp.api.calls import Audience
from airflow_provider_talon_cdp.api.client import AsyncTalonCdpClient
from airflow_provider_talon_cdp.contract import AUDIENCE_ID_TYPE, AudienceIdType


class MembersSender(AsyncTalonCdpClient):
    """Sends membership changes, and creates and renames audiences.

    Args:
        args: As in ``AsyncTalonCdpClient``.
        audience_id_type: Whether the audience IDs of the changes are external or internal.
        options: As in ``AsyncTalonCdpClient``.
    """

    def __init__(
        self, *args: Any, audience_id_type: AudienceIdType = AUDIENCE_ID_TYPE, **options: Any
    ) -> None:
        super().__init__(*args, **options)
        self._audience_id_type = audience_id_type

    async def __call__(self, chunk: Any, /) -> None:
        """Send at most 1000 changes, a ``changes.change.Chunk``, in one request."""
        as_id: Any = int if self._audience_id_type == "internal" else str
        options: Any = {
            "audience_id_type": self._audience_id_type,
            "multi_profile_path": self.settings.multi_profile_path,
        }
        if groups := chunk.groups():
            groups = [(ids, as_id(audience), action) for ids, audience, action in groups]
            request = calls.update_audiences_of_customer_profiles(groups, **options)
        else:
            entries = [
                (profile, [*map(as_id, adds)], [*map(as_id, removes)])
                for profile, adds, removes in chunk.entries()
            ]
            request = calls.update_customer_profiles_audiences(entries, **options)
        await self.send(request)

    async def create_audience(self, audience_id: str, audience_name: str) -> Audience:
        """Create an audience, as the hook does."""
        return await self.send(calls.create_audience(audience_id, audience_name))

    async def update_audience(self, audience_id: str, audience_name: str) -> Audience:
        """Rename an audience, as the hook does; the result has its internal ID and its time of creation."""
        return await self.send(calls.update_audience(audience_id, audience_name))

    async def update_profile_audiences(
        self,
        profile_id: str,
        adds: Sequence[str],
        removes: Sequence[str],
        *,
        while_in_flight: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        """Change the audiences of one profile, which runs rules. ``send`` explains ``while_in_flight``."""
        await self.send(
            calls.update_customer_profile_audiences(profile_id, add_audiences=adds, remove_audiences=removes),
            while_in_flight=while_in_flight,
        )


class AttributesSender(AsyncTalonCdpClient):
    """Sends the attributes of one profile a request.

    Args:
        args: As in ``AsyncTalonCdpClient``.
        run_rule_engine: Whether each update runs Talon.One's rules.
        skip_unknown_attributes: Whether undefined attributes are ignored, or their profile is refused.
        options: As in ``AsyncTalonCdpClient``.
    """

    def __init__(
        self,
        *args: Any,
        run_rule_engine: bool = False,
        skip_unknown_attributes: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(*args, **options)
        self._run_rule_engine = run_rule_engine
        self._skip_unknown_attributes = skip_unknown_attributes

    async def __call__(
        self,
        profile_id: str,
        attributes: bytes,
        /,
        *,
        without_rules: bool = False,
        while_in_flight: Callable[[], AbstractContextManager[None]] = nullcontext,
    ) -> None:
        """Send attributes as JSON, on request without rules. ``send`` explains ``while_in_flight``."""
        request = calls.update_customer_profile(
            profile_id,
            attributes=attributes,
            run_rule_engine=self._run_rule_engine and not without_rules,
            skip_unknown_attributes=self._skip_unknown_attributes,
        )
        await self.send(request, while_in_flight=while_in_flight)
