"""The hook for Talon.One's generic CDP API."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from dataclasses import replace
from functools import cached_property, partial
from http import HTTPStatus
from http.cookiejar import DefaultCookiePolicy
from typing import Any, Unpack

import requests
from airflow.providers.common.compat.sdk import AirflowFailException, Connection
from airflow.providers.http.hooks.http import HttpHook
from requests.utils import default_headers

from airflow_provider_talon_cdp import connection_form
from airflow_provider_talon_cdp.api import calls
from airflow_provider_talon_cdp.api.calls import Audience, IntegrationState, ProfileOptions
from airflow_provider_talon_cdp.api.client import S, TalonCdpClient, Transport, open_client
from airflow_provider_talon_cdp.api.senders import AttributesSender, MembersSender
from airflow_provider_talon_cdp.api.settings import (
    DEFAULT_BASE_URL,
    Settings,
    join_url,
    network_options,
    read_settings,
)
from airflow_provider_talon_cdp.api.values import AttributesEncoder, attribute_values
from airflow_provider_talon_cdp.contract import (
    AUDIENCE_ID_TYPE,
    IN_FLIGHT,
    ON_UNCLEAR,
    AttributeType,
    AudienceIdType,
    OnUnclear,
    check_choice,
)
from airflow_provider_talon_cdp.exceptions import (
    InvalidInputError,
    RejectedError,
    TalonCdpError,
    also_of,
)


@contextmanager
def _ending_retries() -> Iterator[None]:
    """End the retries of a ``@task`` that calls the hook, as operators do, if another try would not help.

    A call that runs rules would otherwise be made again in the next try.
    """
    try:
        yield
    except TalonCdpError as error:
        if error.retryable or isinstance(error, AirflowFailException):
            raise
        failing = also_of(AirflowFailException, error).with_traceback(error.__traceback__)
        # The frames stand once in the log, at its end.
        raise failing from error.with_traceback(None)


class TalonCdpHook(HttpHook):
    """Talon.One's generic CDP API through an Airflow connection of type ``talon_cdp``.

    The connection's password is the API key, its host the base URL (the default if empty), and its
    extra has ``deployment_host`` (required), the other fields of ``connection_form.py``, and HttpHook's
    ``proxies``, ``verify``, ``cert`` and ``trust_env``. A base URL on loopback with ``http`` is called
    without a proxy, as the API key would be sent in clear text.

    An error that another try cannot get past is an ``AirflowFailException`` too: it ends the task's retries.

    Args:
        talon_cdp_conn_id: The connection.

    Raises:
        InvalidInputError: From any method, if a field of the connection or an argument is missing or invalid.
        AuthenticationError: From a call, if Talon.One refuses the key.
        RejectedError: From a call, if Talon.One refuses its content.
        TransientError: From a call that still fails after *Retry single calls for* seconds.
    """

    conn_name_attr = "talon_cdp_conn_id"
    default_conn_name = connection_form.DEFAULT_CONN_ID
    conn_type = connection_form.CONN_TYPE
    hook_name = "Talon.One CDP"
    default_host = DEFAULT_BASE_URL

    def __init__(self, talon_cdp_conn_id: str = default_conn_name) -> None:
        super().__init__(http_conn_id=talon_cdp_conn_id)
        self.talon_cdp_conn_id = talon_cdp_conn_id
        self._clients: dict[int, TalonCdpClient] = {}

    def __getstate__(self) -> dict[str, Any]:
        """Leave out connections, and the API key: another process reads it from Airflow itself."""
        left_out = ("settings", "keep_alive_adapter")
        # HttpHook keeps the extra, in which a proxy may have a password. get_conn sets it again.
        emptied: dict[str, Any] = {"_clients": {}, "merged_extra": {}}
        return {name: value for name, value in vars(self).items() if name not in left_out} | emptied

    @staticmethod
    def get_connection_form_widgets() -> dict[str, Any]:
        """Custom fields of the connection form, for Airflow before 3.2."""
        return connection_form.widgets()

    @staticmethod
    def get_ui_field_behaviour() -> dict[str, Any]:
        """Labels, placeholders and hidden fields of the connection form, for Airflow before 3.2."""
        return connection_form.field_behaviour()

    @cached_property
    @_ending_retries()
    def settings(self) -> Settings:
        """The connection's fields, checked and normalised."""
        connection = self.get_connection(self.talon_cdp_conn_id)
        with self._named():
            base_url = join_url(connection.host, connection.schema, connection.port)
            return read_settings(connection.password or "", base_url, self._extra(connection))

    def _extra(self, connection: Connection) -> dict[str, Any]:
        extra = connection.extra_dejson
        if not isinstance(extra, dict):
            raise InvalidInputError("the extra must be a JSON object.")
        # Airflow 2.11's Test button sends the form's fields under longer names.
        prefix = f"extra__{self.conn_type}__"
        return {name.removeprefix(prefix): value for name, value in extra.items()}

    @contextmanager
    def _named(self) -> Iterator[None]:
        """Add the connection's ID to an error."""
        try:
            yield
        except InvalidInputError as error:
            raise InvalidInputError(f"{self._name}{error}") from None

    @property
    def _name(self) -> str:
        return f"Connection {self.talon_cdp_conn_id!r}: "

    @_ending_retries()
    def get_conn(
        self, headers: dict[Any, Any] | None = None, extra_options: dict[str, Any] | None = None
    ) -> requests.Session:
        """Return a new session with the connection's proxies and certificates, but without the API key.

        Args:
            headers: Headers to send with every request of the session.
            extra_options: As in ``HttpHook``.
        """
        with self._named():
            extra = self._extra(self.get_connection(self.talon_cdp_conn_id))
            network = network_options(extra | (extra_options or {}))
        # Otherwise all sessions of the hook would share connections, also those of forked processes.
        self.keep_alive_adapter = HttpHook().keep_alive_adapter
        session = super().get_conn(None, (extra_options or {}) | network)
        # HttpHook takes empty values as they are: an empty verify would turn off the check of certificates.
        for name, value in (
            {"proxies": {}, "verify": True, "cert": None, "trust_env": True} | network
        ).items():
            setattr(session, name, value)
        # HttpHook turns every extra that it does not know into a header.
        session.headers.clear()
        session.headers.update({**default_headers(), **(headers or {})})
        session.auth = None
        # No cookies, as no request depends on another.
        session.cookies.set_policy(DefaultCookiePolicy(allowed_domains=[]))
        self.base_url = self.settings.base_url
        return session

    @property
    def client(self) -> TalonCdpClient:
        """The client for single calls. It has one session with pooled connections.

        Its own errors do not end a task's retries, as those of the hook's methods do.
        """
        # A forked process that shared a connection could read the answer to another process's call. The
        # parent's client is kept there, as closing it could end the parent's connection.
        process = os.getpid()
        if process not in self._clients:
            self._clients[process] = TalonCdpClient(self.settings, self.get_conn())
        return self._clients[process]

    @_ending_retries()
    def create_audience(self, audience_id: str, audience_name: str) -> Audience:
        """Create an audience.

        Since Talon.One 26.13 an audience is connected to Applications, which this API cannot do: connect a
        new audience in the Campaign Manager.

        Args:
            audience_id: ID of the audience in the CDP, 1 to 1000 characters.
            audience_name: Name in the Campaign Manager, 1 to 1000 characters.

        Returns:
            The audience, with Talon.One's own number as ``id``.

        Raises:
            AudienceExistsError: The ID exists already.
        """
        return self.client.send(calls.create_audience(audience_id, audience_name))

    @_ending_retries()
    def update_audience(self, audience_id: str, audience_name: str) -> Audience:
        """Rename an audience in the Campaign Manager.

        Args:
            audience_id: ID of the audience in the CDP.
            audience_name: The new name, 1 to 1000 characters.

        Returns:
            The audience, as in ``create_audience``.

        Raises:
            NotFoundError: The audience does not exist.
        """
        return self.client.send(calls.update_audience(audience_id, audience_name))

    @_ending_retries()
    def delete_audience(self, audience_id: str) -> None:
        """Delete an audience and its memberships.

        Args:
            audience_id: ID of the audience in the CDP.

        Raises:
            NotFoundError: The audience does not exist.
        """
        self.client.send(calls.delete_audience(audience_id))

    @_ending_retries()
    def update_customer_profile(
        self,
        customer_profile_id: str,
        *,
        attributes: Mapping[str, Any] | None = None,
        types: Mapping[str, AttributeType] | None = None,
        on_unclear: OnUnclear = ON_UNCLEAR,
        **options: Unpack[ProfileOptions],
    ) -> IntegrationState:
        """Set attributes of a profile, and join or leave audiences by internal ID; creates a missing profile.

        Args:
            customer_profile_id: Integration ID of the profile.
            attributes: Values by attribute name, as a database driver returns them; None deletes one.
            types: Talon.One's type by attribute name. A value is converted to it if nothing is lost.
            on_unclear: If the call runs rules and gets no clear answer: ``fail``, or ``retry``, with which
                they may run twice.
            options: ``run_rule_engine`` (always on if audiences change), ``add_audiences`` and
                ``remove_audiences`` (internal IDs), ``skip_unknown_attributes``.

        Returns:
            Talon.One's answer, a mapping with ``effects``. Its attribute ``may_have_run_twice`` is true if
            rules may have run in an earlier attempt, too.

        Raises:
            UnclearError: There was no clear answer, so the rules may have run.
        """
        check_choice("on_unclear", on_unclear, OnUnclear)
        types = types or {}
        _check_types(types)
        values = (
            None if attributes is None else attribute_values(attributes, types=types, zone=self.settings.zone)
        )
        request = calls.update_customer_profile(customer_profile_id, attributes=values, **options)
        return self.client.send(request, on_unclear=on_unclear)

    @_ending_retries()
    def update_customer_profile_audiences(
        self,
        customer_profile_id: str,
        *,
        add_audiences: Iterable[str] = (),
        remove_audiences: Iterable[str] = (),
        on_unclear: OnUnclear = ON_UNCLEAR,
    ) -> IntegrationState:
        """Add one profile to audiences and remove it from others, at most 1000; Talon.One runs its rules.

        Args:
            customer_profile_id: Integration ID of the profile.
            add_audiences: External audience IDs to join.
            remove_audiences: External audience IDs to leave.
            on_unclear: If there is no clear answer: ``fail``, or ``retry``, with which the rules may run
                twice.

        Returns:
            As in ``update_customer_profile``.

        Raises:
            UnclearError: There was no clear answer, so the rules may have run.
        """
        check_choice("on_unclear", on_unclear, OnUnclear)
        request = calls.update_customer_profile_audiences(
            customer_profile_id, add_audiences=add_audiences, remove_audiences=remove_audiences
        )
        return self.client.send(request, on_unclear=on_unclear)

    @_ending_retries()
    def update_customer_profiles_audiences(
        self,
        entries: Iterable[tuple[str, Sequence[str | int], Sequence[str | int]]],
        *,
        audience_id_type: AudienceIdType = AUDIENCE_ID_TYPE,
    ) -> None:
        """Add many profiles to audiences and remove them, in one request of at most 1000 changes.

        Unlike a change by an operator, this change is not noted for mirrors of these audiences.

        Args:
            entries: ``(customer profile ID, audience IDs to join, audience IDs to leave)`` of each profile.
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
        self,
        *,
        audience_id_type: AudienceIdType = AUDIENCE_ID_TYPE,
        in_flight: int = IN_FLIGHT,
        senders: int = 1,
    ) -> AbstractAsyncContextManager[MembersSender]:
        """Open a paced sender for bulk membership changes.

        Args:
            audience_id_type: ``external`` (strings) or ``internal`` (integers).
            in_flight: Most requests in flight.
            senders: Number of processes that send at once; each gets an equal part of the connection's rate.
        """
        return self._opened(partial(MembersSender, audience_id_type=audience_id_type), in_flight, senders)

    def attributes_sender(
        self,
        *,
        run_rule_engine: bool = False,
        skip_unknown_attributes: bool = False,
        in_flight: int = IN_FLIGHT,
        senders: int = 1,
    ) -> AbstractAsyncContextManager[AttributesSender]:
        """Open a paced sender for attributes of many profiles.

        Args:
            run_rule_engine: Whether each update runs Talon.One's rules.
            skip_unknown_attributes: Whether undefined attributes are ignored, or their profile is refused.
            in_flight: Most requests in flight.
            senders: Number of processes that send at once; each gets an equal part of the connection's rate.
        """
        make = partial(
            AttributesSender,
            run_rule_engine=run_rule_engine,
            skip_unknown_attributes=skip_unknown_attributes,
        )
        return self._opened(make, in_flight, senders)

    @_ending_retries()
    def attributes_encoder(
        self, types: Mapping[str, AttributeType], *, skip_nulls: bool
    ) -> AttributesEncoder:
        """Return the encoder of profiles' attributes, with the connection's time zone.

        Args:
            types: Declared types by attribute name.
            skip_nulls: Leave nulls out. Otherwise a null deletes the attribute.
        """
        _check_types(types)
        return AttributesEncoder(types=types, zone=self.settings.zone, skip_nulls=skip_nulls)

    @_ending_retries()
    def _opened(self, make: Callable[..., S], in_flight: int, senders: int) -> AbstractAsyncContextManager[S]:
        # The connection is read here, as Airflow cannot read it in an event loop.
        settings = replace(self.settings, requests_per_second=self.settings.requests_per_second / senders)
        with self.get_conn() as session:
            transport = Transport.of(session, settings.base_url)

        @asynccontextmanager
        async def opened() -> AsyncIterator[S]:
            with _ending_retries():
                async with open_client(settings, transport, make, in_flight=in_flight) as client:
                    yield client

        return opened()

    @_ending_retries()
    def check_deployment(self) -> None:
        """Ask Talon.One whether it knows the deployment: a 404 about an audience may mean that it does not.

        Raises:
            NotFoundError: It does not, or the Multi-profile path on the connection is wrong.
            RequestError: There was no clear answer.
        """
        self._ask(self.client)

    def _ask(self, client: TalonCdpClient) -> None:
        """Send an update of no profile at all, which changes nothing.

        The call with external audience IDs is used, because its path never matches *Update customer profile*:
        with a wrong spelling it gets a 404 and changes nothing.
        """
        path = self.settings.multi_profile_path
        try:
            client.send(calls.update_customer_profiles_audiences([], multi_profile_path=path))
        except RejectedError as error:
            # A 400 of the API, whose errors are JSON: the key and the path are right, and only the empty list
            # was refused.
            if error.status != HTTPStatus.BAD_REQUEST or not error.body.startswith("{"):
                raise

    def test_connection(self) -> tuple[bool, str]:
        """Ask Talon.One with an update that changes nothing."""
        try:
            self._ask(TalonCdpClient(replace(self.settings, call_retry_seconds=0), self.get_conn()))
        except TalonCdpError as error:
            # Airflow tests a copy of the connection, whose ID the user does not know.
            return False, str(error).removeprefix(self._name)
        return True, f"Talon.One accepts this API key for {self.settings.deployment_host}."


def _check_types(types: Mapping[str, object]) -> None:
    for attribute, kind in types.items():
        check_choice(f"The type of the attribute {attribute!r}", kind, AttributeType)
