"""The emulator as an object: starts a server, reads its state back, switches faults, stops it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from airflow_provider_talon_cdp.emulator.app import App
from airflow_provider_talon_cdp.emulator.attributes import declare
from airflow_provider_talon_cdp.emulator.exact_json import Json
from airflow_provider_talon_cdp.emulator.faults import Fault
from airflow_provider_talon_cdp.emulator.service import Service, Settings
from airflow_provider_talon_cdp.emulator.serving import ServerThread, is_loopback
from airflow_provider_talon_cdp.emulator.state_file import StateFile
from airflow_provider_talon_cdp.emulator.store import AudienceView, ProfileView

DEFAULT_KEY = "local-key-1234567890"
DEFAULT_DEPLOYMENT_HOST = "demo.europe-west1.talon.one"


class Emulator:
    """A Talon.One CDP API on this machine, for the length of a ``with`` block.

    Args:
        port: 0 for any that is free.
        api_key: the only key that is accepted; ``None`` accepts any.
        deployment_host: the only ``destination-hostname`` that is accepted; ``None`` accepts any bare
            host name.
        state_file: a JSON file to start from, if it exists, and to write to within about a second of a
            change.
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
        host: the address to listen on.
        allow_remote: allow an address that other machines can reach. There is no key on the page and on
            reading back.

    Raises:
        ValueError: a setting that cannot be.
    """

    def __init__(
        self,
        *,
        port: int = 0,
        api_key: str | None = DEFAULT_KEY,
        deployment_host: str | None = DEFAULT_DEPLOYMENT_HOST,
        state_file: str | Path | None = None,
        attributes: Mapping[str, str] | None = None,
        multi_profile_path: str = "plural",
        requests_per_second: float | None = None,
        burst: float | None = None,
        send_retry_after: bool = True,
        service_time: float = 0.0,
        reject_profiles: Iterable[str] = (),
        host: str = "127.0.0.1",
        allow_remote: bool = False,
    ) -> None:
        if not allow_remote and not is_loopback(host):
            raise ValueError(
                f"{host} can be reached from other machines; allow_remote=True if that is wanted"
            )
        self._address = (host, port)
        self._service = Service(
            Settings(
                api_key=api_key,
                deployment_host=deployment_host,
                attributes=declare({} if attributes is None else attributes),
                multi_profile_path=multi_profile_path,
                requests_per_second=requests_per_second,
                burst=burst,
                send_retry_after=send_retry_after,
                service_time=service_time,
                rejected_profiles=frozenset(reject_profiles),
            )
        )
        self._state_file = None if state_file is None else StateFile(Path(state_file), self._service.store)
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

    def connection(self) -> dict[str, Any]:
        """The fields of an Airflow connection to it; ``extra`` is a dict."""
        settings = self._service.settings
        return {
            "conn_type": "talon_cdp",
            "host": self.url,
            "password": settings.api_key or DEFAULT_KEY,
            "extra": {
                "deployment_host": settings.deployment_host or DEFAULT_DEPLOYMENT_HOST,
                "platform_name": "Local emulator",
            },
        }

    def audiences(self) -> dict[str, AudienceView]:
        """Every audience by its external ID: ``id``, ``name``, ``created``, and ``members``, their number."""
        return self._service.store.audiences()

    def members(self, audience_id: str) -> frozenset[str]:
        """The profile IDs in an audience, by its external ID.

        Raises:
            UnknownAudienceError: there is none.
        """
        return self._service.store.members(audience_id)

    def profile(self, profile_id: str) -> ProfileView | None:
        """A profile's ``attributes`` and ``audiences``, or ``None`` when it has never been seen.

        Integers come as ``int``, other numbers as ``Decimal``.
        """
        return self._service.store.profile(profile_id)

    def profiles(self) -> frozenset[str]:
        """Every profile ID that was ever seen."""
        return self._service.store.profiles()

    def requests(self) -> list[dict[str, Any]]:
        """The last thousand requests, oldest first; the fields are those of ``LoggedRequest``."""
        return [entry.as_dict() for entry in self._service.log.last()]

    def state(self) -> dict[str, Any]:
        """Sizes, waiting faults, and under ``requests`` the counters over all of them.

        The counters are ``total``, ``by_status`` (``"none"`` where no answer was sent) and ``by_operation``.
        """
        return self._service.state()

    def fail_next(
        self,
        kind: str,
        times: int | None = 1,
        after: int = 0,
        only: str | None = None,
        *,
        status: int | None = None,
        retry_after: int | str | None = None,
        body: Json = None,
        html: str | None = None,
        seconds: float | None = None,
    ) -> None:
        """Let something go wrong with the next calls; the parameters are those of ``Fault``.

        Faults wait in a queue. A call that would have been served meets the first one that is meant for
        it; a call that is refused anyway, or is no call of the API, meets none.

        Raises:
            ValueError: a kind or an option that does not exist or does not fit.
        """
        self._service.faults.add(Fault(kind, times, after, only, status, retry_after, body, html, seconds))

    def reject_profiles(self, profile_ids: Iterable[str]) -> None:
        """From now on refuse these profiles and those given at the start: a 400 that does not say which."""
        self._service.reject_profiles(profile_ids)

    def clear_faults(self) -> None:
        """Forget every fault that is still to come, and what :meth:`reject_profiles` was told."""
        self._service.clear_faults()

    def reset(self) -> None:
        """Forget audiences, profiles, requests and faults; the settings stay."""
        self._service.reset()
