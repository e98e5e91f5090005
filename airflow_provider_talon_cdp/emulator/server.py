"""The emulator as an object: starts a server, reads its state back, switches faults, stops it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypedDict, Unpack

from airflow_provider_talon_cdp.emulator.exact_json import Json
from airflow_provider_talon_cdp.emulator.faults import Fault, FaultOptions
from airflow_provider_talon_cdp.emulator.service import (
    DEFAULT_DEPLOYMENT_HOST,
    DEFAULT_KEY,
    EmulatorSettings,
    Service,
)
from airflow_provider_talon_cdp.emulator.serving import App, ServerThread, is_loopback
from airflow_provider_talon_cdp.emulator.state_file import StateFile
from airflow_provider_talon_cdp.emulator.store import (
    AudienceKey,
    AudienceView,
    MembershipChange,
    ProfileView,
    Store,
)


class EmulatorOptions(TypedDict, total=False):
    """How an emulator behaves; see :class:`Emulator`."""

    api_key: str | None
    environments: Mapping[str, str]
    deployment_host: str | None
    attributes: Mapping[str, str] | None
    multi_profile_path: str
    requests_per_second: float | None
    burst: float | None
    send_retry_after: bool
    service_time: float
    reject_profiles: Iterable[str]


class Emulator:
    """A Talon.One CDP API on this machine, for the length of a ``with`` block.

    What is set up or read by hand (:meth:`create_audience`, :meth:`members` and so on) takes the name of an
    environment; without one it is the first. An audience that does not exist is an ``UnknownAudienceError``,
    an environment that does not exist a ``LookupError``.

    Args:
        port: 0 for any that is free.
        host: the address to listen on.
        allow_remote: allow an address that other machines can reach. There is no key on the page and on
            reading back.
        state_file: a JSON file to start from, if it exists, and to write to within about a second of a
            change.
        api_key: the only key that is accepted; ``None`` accepts any.
        environments: several environments behind one deployment host, name to key, in place of
            ``api_key``: each has its own audiences, profiles and rate limit.
        deployment_host: the only ``destination-hostname`` that is accepted; ``None`` accepts any bare
            host name.
        attributes: the customer-profile attributes that exist, name to type (see
            :mod:`~airflow_provider_talon_cdp.emulator.attributes`); with none, every attribute is
            accepted.
        multi_profile_path: ``plural`` or ``singular``: how the multi-profile calls are spelled here.
        requests_per_second: the rate limit; ``None`` for none.
        burst: how many requests may come at once under the rate limit; ``None`` for one second's worth,
            at least 1.
        send_retry_after: whether a 429 of the rate limit has ``Retry-After``.
        service_time: seconds that every call takes.
        reject_profiles: profile IDs that are refused: every request that has one is a 400 that does not
            say which.

    Raises:
        ValueError: a setting that cannot be.
    """

    def __init__(
        self,
        *,
        port: int = 0,
        host: str = "127.0.0.1",
        allow_remote: bool = False,
        state_file: str | Path | None = None,
        **options: Unpack[EmulatorOptions],
    ) -> None:
        if not allow_remote and not is_loopback(host):
            raise ValueError(
                f"{host} can be reached from other machines; allow_remote=True if that is wanted"
            )
        self._address = (host, port)
        self._service = Service(EmulatorSettings(**options))
        self._state_file: StateFile | None = None
        if state_file is not None:
            stores = {name: each.store for name, each in self._service.environments.items()}
            self._state_file = StateFile(Path(state_file), stores)
        self._server: ServerThread | None = None

    def __enter__(self) -> Self:
        """Start it.

        Raises:
            OSError: the port is in use, or the address is not of this machine.
            StateFileError: the state file cannot be read.
            RuntimeError: it is running, or it did not start in time.
        """
        if self._server is not None:
            raise RuntimeError("this emulator is running already")
        if self._state_file is not None:
            self._state_file.load()
        self._service.start()
        server = ServerThread(*self._address)
        server.start(App(self._service, server.url))
        self._server = server
        if self._state_file is not None:
            self._state_file.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop it: answer what is in flight at once, close every connection, write the state file.

        Raises:
            StateFileError: the state file cannot be written.
        """
        if self._server is None:
            return
        self._server.stop(self._service.stop)
        self._server = None
        if self._state_file is not None:
            self._state_file.stop()

    @property
    def url(self) -> str:
        """``http://127.0.0.1:PORT``.

        Raises:
            RuntimeError: it does not run.
        """
        if self._server is None:
            raise RuntimeError("the emulator has a URL only while it runs")
        return self._server.url

    def connection(self, environment: str | None = None) -> dict[str, Any]:
        """The fields of an Airflow connection to it; ``extra`` is a dict, with the environment's name if any.

        Raises:
            LookupError: there is no such environment.
        """
        found = self._service.environment(environment)
        extra = {
            "deployment_host": self._service.settings.deployment_host or DEFAULT_DEPLOYMENT_HOST,
            "platform_name": "Local emulator",
        }
        if found.name:
            extra["environment"] = found.name
        return {
            "conn_type": "talon_cdp",
            "host": self.url,
            "password": found.key or DEFAULT_KEY,
            "extra": extra,
        }

    def replace_key(self, key: str, environment: str | None = None) -> None:
        """Give an environment another key, as when one has expired: the old one is refused from now on."""
        self._service.environment(environment).key = key

    def audiences(self, environment: str | None = None) -> dict[str, AudienceView]:
        """Every audience by its external ID: ``id``, ``name``, ``created``, and ``members``, their number."""
        return self._store(environment).audiences()

    def campaign_manager_audiences(self, environment: str | None = None) -> dict[int, AudienceView]:
        """Every audience without an external ID, by its internal one."""
        return self._store(environment).campaign_manager_audiences()

    def members(self, audience_id: AudienceKey, environment: str | None = None) -> frozenset[str]:
        """The profile IDs in an audience, by its external ID (``str``) or its internal one (``int``)."""
        return self._store(environment).members(audience_id)

    def profile(self, profile_id: str, environment: str | None = None) -> ProfileView | None:
        """A profile's ``attributes`` and ``audiences``, or ``None`` when it has never been seen.

        Integers come as ``int``, other numbers as ``Decimal``.
        """
        return self._store(environment).profile(profile_id)

    def profiles(self, environment: str | None = None) -> frozenset[str]:
        """Every profile ID that was ever seen."""
        return self._store(environment).profiles()

    def rule_runs(self, profile_id: str, environment: str | None = None) -> int:
        """How many calls on a profile have run the Rule Builder.

        Those are *Update customer profile* with ``runRuleEngine`` or with changes of audiences, and
        every *Update one profile's audiences*. The multi-profile calls run no rules.
        """
        profile = self._store(environment).stored_profile(profile_id)
        return 0 if profile is None else profile.rule_runs

    def create_audience(self, external_id: str, name: str, environment: str | None = None) -> int:
        """Create an audience by hand; returns its internal ID.

        Raises:
            ExternalIdTakenError: the external ID is taken.
        """
        return self._store(environment).create_audience(external_id, name).id

    def create_campaign_manager_audience(self, name: str, environment: str | None = None) -> int:
        """Create an audience as the Campaign Manager does, without an external ID.

        Returns:
            Its internal ID, by which :meth:`members` and the membership calls reach it.
        """
        return self._store(environment).create_audience(None, name, "").id

    def delete_audience(self, audience_id: AudienceKey, environment: str | None = None) -> None:
        """Delete an audience by hand, with its memberships. Created again it has another internal ID."""
        self._store(environment).delete_audience(audience_id)

    def add_members(
        self, audience_id: AudienceKey, profile_ids: Iterable[str], environment: str | None = None
    ) -> None:
        """Put profiles into an audience by hand; no rules run."""
        self._store(environment).change([MembershipChange(each, (audience_id,)) for each in profile_ids])

    def remove_members(
        self, audience_id: AudienceKey, profile_ids: Iterable[str], environment: str | None = None
    ) -> None:
        """Take profiles out of an audience by hand; no rules run."""
        self._store(environment).change([MembershipChange(each, (), (audience_id,)) for each in profile_ids])

    def set_attributes(
        self, profile_id: str, attributes: Mapping[str, Json], environment: str | None = None
    ) -> None:
        """Set attributes of a profile by hand, whatever is declared; ``None`` deletes one. No rules run."""
        self._store(environment).change([MembershipChange(profile_id)], attributes)

    def requests(self) -> list[dict[str, Any]]:
        """The last thousand requests, oldest first; the fields are those of ``LoggedRequest``."""
        return [entry.as_dict() for entry in self._service.log.last()]

    def state(self, environment: str | None = None) -> dict[str, Any]:
        """Sizes, waiting faults, and under ``requests`` the counters over all of them.

        The counters are ``total``, ``by_status`` (``"none"`` where no answer was sent) and ``by_operation``.
        """
        return self._service.state(environment)

    def fail_next(
        self,
        kind: str,
        times: int | None = 1,
        after: int = 0,
        only: str | None = None,
        **options: Unpack[FaultOptions],
    ) -> None:
        """Let something go wrong with the next calls; kinds and options are those of ``Fault``.

        Faults wait in a queue. A call that would have been served meets the first one that is meant for
        it; a call that is refused anyway, or is no call of the API, meets none.

        Raises:
            ValueError: a kind or an option that does not exist or does not fit.
        """
        self._service.faults.add(Fault(kind, times, after, only, **options))

    def reject_profiles(self, profile_ids: Iterable[str]) -> None:
        """From now on refuse these profiles and those given at the start: a 400 that does not say which."""
        self._service.reject_profiles(profile_ids)

    def clear_faults(self) -> None:
        """Forget every fault that is still to come, and what :meth:`reject_profiles` was told."""
        self._service.clear_faults()

    def reset(self) -> None:
        """Forget audiences, profiles, requests and faults; the settings stay."""
        self._service.reset()

    def _store(self, environment: str | None) -> Store:
        return self._service.environment(environment).store
