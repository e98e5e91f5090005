"""What sends bulk changes over one open client."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal, Protocol

from airflow_provider_talon_cdp.api import calls
from airflow_provider_talon_cdp.api.async_client import AsyncTalonCdpClient
from airflow_provider_talon_cdp.contract import AudienceIdType


class _MeteredSender:
    """A sender that counts what its client sends.

    Args:
        client: An open client.
    """

    def __init__(self, client: AsyncTalonCdpClient) -> None:
        self.client = client

    @property
    def requests(self) -> int:
        """HTTP requests that left."""
        return self.client.requests

    @property
    def retries(self) -> int:
        """Those of them that repeated a failed one."""
        return self.client.retries

    @property
    def throttled(self) -> int:
        """Answers 429."""
        return self.client.throttled


class MembershipChanges(Protocol):
    """At most 1000 membership changes."""

    @property
    def groups(self) -> Iterable[tuple[Sequence[str], str | int, Literal["add", "remove"]]] | None:
        """Profile IDs, audience ID and action of each audience and action, or None where a profile has several changes."""
        ...

    @property
    def entries(self) -> Iterable[tuple[str, Sequence[str | int], Sequence[str | int]]]:
        """``(customer profile ID, adds, deletes)`` of each profile."""
        ...


class MembersSender(_MeteredSender):
    """Sends membership changes of many profiles in one request each.

    Args:
        client: An open client.
        audience_id_type: Which audience IDs the changes carry.
    """

    def __init__(self, client: AsyncTalonCdpClient, audience_id_type: AudienceIdType) -> None:
        super().__init__(client)
        self._audience_id_type = audience_id_type

    async def __call__(self, batch: MembershipChanges, /) -> None:
        """Send a batch.

        Raises:
            RequestError: The request failed for good.
        """
        if groups := batch.groups:
            request = calls.update_audiences_of_customer_profiles(
                groups,
                audience_id_type=self._audience_id_type,
                multi_profile_path=self.client.settings.multi_profile_path,
            )
        else:
            request = calls.update_customer_profiles_audiences(
                batch.entries,
                audience_id_type=self._audience_id_type,
                multi_profile_path=self.client.settings.multi_profile_path,
            )
        await self.client.send(request)


class AttributesSender(_MeteredSender):
    """Sends attributes of one profile in each request.

    Args:
        client: An open client.
        run_rule_engine: Run Talon.One's rules for each profile.
        skip_unknown_attributes: Have Talon.One ignore attributes that are not defined there.
    """

    def __init__(
        self, client: AsyncTalonCdpClient, *, run_rule_engine: bool, skip_unknown_attributes: bool
    ) -> None:
        super().__init__(client)
        self._how = {"run_rule_engine": run_rule_engine, "skip_unknown_attributes": skip_unknown_attributes}

    async def __call__(self, profile_id: str, attributes: bytes, /) -> None:
        """Send a JSON object of attributes.

        Raises:
            RequestError: The request failed for good.
        """
        await self.client.send(calls.update_customer_profile_attributes(profile_id, attributes, **self._how))
