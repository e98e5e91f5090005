"""An Airflow connection as a client of Talon.One's generic CDP API."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import replace
from functools import cached_property
from http.cookiejar import DefaultCookiePolicy
from typing import Any, TypeVar

import requests
from airflow.providers.common.compat.sdk import Connection
from airflow.providers.http.hooks.http import HttpHook
from requests.utils import default_headers

from airflow_provider_talon_cdp import connection_form
from airflow_provider_talon_cdp.api import calls
from airflow_provider_talon_cdp.api.async_client import AsyncTalonCdpClient, Transport, open_client
from airflow_provider_talon_cdp.api.client import TalonCdpClient
from airflow_provider_talon_cdp.api.request import Audience, IntegrationState
from airflow_provider_talon_cdp.api.retry import RetryPolicy
from airflow_provider_talon_cdp.api.settings import DEFAULT_BASE_URL, Settings
from airflow_provider_talon_cdp.api.values import AttributesEncoder, attribute_values
from airflow_provider_talon_cdp.contract import AttributeType, AudienceIdType
from airflow_provider_talon_cdp.exceptions import InvalidInputError, TalonCdpError
from airflow_provider_talon_cdp.hooks.network import NETWORK_EXTRAS, network_options
from airflow_provider_talon_cdp.hooks.senders import AttributesSender, MembersSender

S = TypeVar("S")
_OWN_EXTRAS = {each.name for each in connection_form.FIELDS}


class TalonCdpHook(HttpHook):
    """Talon.One's generic CDP API through an Airflow connection of type ``talon_cdp``.

    The connection's password is the API key, its host the base URL (empty: the usual one), and its extra holds
    ``deployment_host`` (required), ``platform_name``, ``requests_per_second``, ``multi_profile_path``, ``timezone``,
    ``timeout``, and HttpHook's ``proxies``, ``verify``, ``cert`` and ``trust_env``. A base URL on loopback with ``http``
    is called without any proxy, as the API key would travel in clear text.

    Args:
        talon_cdp_conn_id: The connection.

    Raises:
        InvalidInputError: From any method, when the connection lacks a field or has one that cannot work.
    """

    conn_name_attr = "talon_cdp_conn_id"
    default_conn_name = "talon_cdp_default"
    conn_type = connection_form.CONN_TYPE
    hook_name = "Talon.One CDP"
    default_host = DEFAULT_BASE_URL

    def __init__(self, talon_cdp_conn_id: str = default_conn_name) -> None:
        super().__init__(http_conn_id=talon_cdp_conn_id)
        self.talon_cdp_conn_id = talon_cdp_conn_id

    @staticmethod
    def get_connection_form_widgets() -> dict[str, Any]:
        """Custom fields of the connection form, for Airflow before 3.2."""
        return connection_form.widgets()

    @staticmethod
    def get_ui_field_behaviour() -> dict[str, Any]:
        """Labels, placeholders and hidden fields of the connection form, for Airflow before 3.2."""
        return connection_form.field_behaviour()

    @cached_property
    def settings(self) -> Settings:
        """The connection's fields, checked and normalised."""
        connection = self.get_connection(self.talon_cdp_conn_id)
        extra = self._extra(connection)
        unknown = sorted(set(extra) - _OWN_EXTRAS - NETWORK_EXTRAS)
        if unknown:
            raise InvalidInputError(
                f"Connection {self.talon_cdp_conn_id!r}: unknown field(s) in the extra: {', '.join(unknown)}. "
                f"Known are {', '.join(sorted(_OWN_EXTRAS | NETWORK_EXTRAS))}."
            )
        given = {name: extra[name] for name in _OWN_EXTRAS if extra.get(name) not in (None, "")}
        try:
            return Settings(
                api_key=connection.password or "",
                base_url=_base_url(connection.host, connection.schema, connection.port),
                deployment_host=given.pop("deployment_host", ""),
                **given,
            )
        except InvalidInputError as error:
            raise self._named(error) from None

    @cached_property
    def _network(self) -> dict[str, Any]:
        """How the connection's extra says to reach Talon.One, checked."""
        try:
            return network_options(self._extra(self.get_connection(self.talon_cdp_conn_id)))
        except InvalidInputError as error:
            raise self._named(error) from None

    def _extra(self, connection: Connection) -> dict[str, Any]:
        extra = connection.extra_dejson
        if not isinstance(extra, dict):
            raise self._named(InvalidInputError("the extra must be a JSON object."))
        # Airflow 2.11's Test button sends the form's fields under longer names.
        prefix = f"extra__{self.conn_type}__"
        return {name.removeprefix(prefix): value for name, value in extra.items()}

    def _named(self, error: InvalidInputError) -> InvalidInputError:
        return InvalidInputError(f"Connection {self.talon_cdp_conn_id!r}: {error}")

    def get_conn(
        self, headers: dict[Any, Any] | None = None, extra_options: dict[str, Any] | None = None
    ) -> requests.Session:
        """Return a new session with the connection's proxies, certificates and keep-alive, but without the API key.

        Args:
            headers: Headers to send with every request of the session.
            extra_options: As in ``HttpHook``.
        """
        session = super().get_conn(None, self._network | (extra_options or {}))
        # HttpHook turns every extra that it does not know into a header.
        session.headers.clear()
        session.headers.update({**default_headers(), **(headers or {})})
        session.auth = None
        # Each request stands alone.
        session.cookies.set_policy(DefaultCookiePolicy(allowed_domains=[]))
        self.base_url = self.settings.base_url
        return session

    @cached_property
    def client(self) -> TalonCdpClient:
        """The client for single calls; its session is pooled and lives as long as the hook."""
        return TalonCdpClient(self.settings, self.get_conn())

    def create_audience(self, audience_id: str, audience_name: str) -> Audience:
        """Create an audience.

        Since Talon.One 26.13 an audience is connected to Applications, which this API cannot do: connect a new
        audience in the Campaign Manager.

        Args:
            audience_id: ID of the audience in the CDP, 1 to 1000 characters.
            audience_name: Name in the Campaign Manager, 1 to 1000 characters.

        Raises:
            AudienceExistsError: The ID is taken.
        """
        return self.client.send(calls.create_audience(audience_id, audience_name))

    def update_audience(self, audience_id: str, audience_name: str) -> Audience:
        """Rename an audience.

        Args:
            audience_id: ID of the audience in the CDP.
            audience_name: New name in the Campaign Manager.

        Raises:
            NotFoundError: There is no such audience.
        """
        return self.client.send(calls.update_audience(audience_id, audience_name))

    def delete_audience(self, audience_id: str) -> None:
        """Delete an audience and every membership of it.

        Args:
            audience_id: ID of the audience in the CDP.

        Raises:
            NotFoundError: There is no such audience.
        """
        self.client.send(calls.delete_audience(audience_id))

    def update_customer_profile(
        self,
        customer_profile_id: str,
        *,
        attributes: Mapping[str, Any] | None = None,
        run_rule_engine: bool = False,
        add_audiences: Iterable[int] = (),
        remove_audiences: Iterable[int] = (),
        skip_unknown_attributes: bool = False,
    ) -> IntegrationState:
        """Set attributes of a profile, and join or leave audiences by internal ID; creates a missing profile.

        Args:
            customer_profile_id: Integration ID of the profile.
            attributes: Values by attribute name, as a database driver gives them; None deletes an attribute.
            run_rule_engine: Run Talon.One's rules; forced by Talon.One when audiences change.
            add_audiences: Internal audience IDs.
            remove_audiences: Internal audience IDs.
            skip_unknown_attributes: Have Talon.One ignore attributes that are not defined there.
        """
        values = None if attributes is None else attribute_values(attributes, zone=self.settings.zone)
        return self.client.send(
            calls.update_customer_profile(
                customer_profile_id,
                attributes=values,
                run_rule_engine=run_rule_engine,
                add_audiences=add_audiences,
                remove_audiences=remove_audiences,
                skip_unknown_attributes=skip_unknown_attributes,
            )
        )

    def update_customer_profile_audiences(
        self,
        customer_profile_id: str,
        *,
        add_audiences: Iterable[str] = (),
        remove_audiences: Iterable[str] = (),
    ) -> IntegrationState:
        """Let one profile join and leave audiences by external ID, at most 1000 in all.

        Args:
            customer_profile_id: Integration ID of the profile.
            add_audiences: External audience IDs to join.
            remove_audiences: External audience IDs to leave.
        """
        return self.client.send(
            calls.update_customer_profile_audiences(
                customer_profile_id, add_audiences=add_audiences, remove_audiences=remove_audiences
            )
        )

    def update_customer_profiles_audiences(
        self,
        entries: Iterable[tuple[str, Sequence[str | int], Sequence[str | int]]],
        *,
        audience_id_type: AudienceIdType = "external",
    ) -> None:
        """Let many profiles join and leave audiences in one request of at most 1000 changes.

        Args:
            entries: ``(customer profile ID, adds, deletes)``.
            audience_id_type: ``external`` (strings) or ``internal`` (integers).
        """
        self.client.send(
            calls.update_customer_profiles_audiences(
                entries,
                audience_id_type=audience_id_type,
                multi_profile_path=self.settings.multi_profile_path,
            )
        )

    def members_sender(
        self, *, audience_id_type: AudienceIdType = "external", in_flight: int = 64, senders: int = 1
    ) -> AbstractAsyncContextManager[MembersSender]:
        """Open a paced sender for bulk membership changes.

        Args:
            audience_id_type: ``external`` (strings) or ``internal`` (integers).
            in_flight: Requests in flight at the most.
            senders: How many send at once, each at its share of the connection's rate.
        """
        return self._opened(lambda client: MembersSender(client, audience_id_type), in_flight, senders)

    def attributes_sender(
        self,
        *,
        run_rule_engine: bool = False,
        skip_unknown_attributes: bool = False,
        in_flight: int = 64,
        senders: int = 1,
    ) -> AbstractAsyncContextManager[AttributesSender]:
        """Open a paced sender for attributes of many profiles.

        Args:
            run_rule_engine: Run Talon.One's rules for each profile.
            skip_unknown_attributes: Have Talon.One ignore attributes that are not defined there.
            in_flight: Requests in flight at the most.
            senders: How many send at once, each at its share of the connection's rate.
        """
        how = {"run_rule_engine": run_rule_engine, "skip_unknown_attributes": skip_unknown_attributes}
        return self._opened(lambda client: AttributesSender(client, **how), in_flight, senders)

    def attributes_encoder(
        self, types: Mapping[str, AttributeType], *, skip_nulls: bool
    ) -> AttributesEncoder:
        """Return what makes JSON of a profile's attributes, with the connection's time zone.

        Args:
            types: Declared types by attribute name.
            skip_nulls: Leave nulls out, where otherwise they delete.
        """
        return AttributesEncoder(types=types, zone=self.settings.zone, skip_nulls=skip_nulls)

    def _opened(
        self, make: Callable[[AsyncTalonCdpClient], S], in_flight: int, senders: int = 1
    ) -> AbstractAsyncContextManager[S]:
        # Airflow looks connections up here, before any event loop runs.
        settings = replace(self.settings, requests_per_second=self.settings.requests_per_second / senders)
        with self.get_conn() as session:
            transport = Transport.of(session, settings.base_url)

        @asynccontextmanager
        async def opened() -> AsyncIterator[S]:
            async with open_client(settings, transport, in_flight=in_flight) as client:
                yield make(client)

        return opened()

    def test_connection(self) -> tuple[bool, str]:
        """Ask Talon.One with an update of no profile at all, which changes nothing.

        The external form of the call is used whatever the connection's spelling: on no deployment does its path match
        *Update customer profile*, so a wrong spelling answers 404 and leaves no trace.
        """
        try:
            request = calls.update_customer_profiles_audiences(
                [], multi_profile_path=self.settings.multi_profile_path
            )
            TalonCdpClient(self.settings, self.get_conn(), retry=RetryPolicy(attempts=1)).send(request)
        except TalonCdpError as error:
            return False, str(error)
        return True, f"Talon.One accepts this API key for {self.settings.deployment_host}."


def _base_url(host: str | None, schema: str | None, port: int | None) -> str:
    """Join the fields that an Airflow connection spreads a URL over."""
    if not host:
        return DEFAULT_BASE_URL
    url = host if "://" in host else f"{schema or 'https'}://{host}"
    if not port:
        return url
    scheme, _, rest = url.partition("://")
    authority, slash, path = rest.partition("/")
    return f"{scheme}://{authority}:{port}{slash}{path}"
