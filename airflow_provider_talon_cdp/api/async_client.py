"""Bulk calls to Talon.One: many requests in flight over one aiohttp session, paced together."""

from __future__ import annotations

import asyncio
import logging
import os
import random
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

import aiohttp
import requests
from requests.utils import DEFAULT_CA_BUNDLE_PATH, prepend_scheme_if_needed, select_proxy
from yarl import URL

from airflow_provider_talon_cdp.api.answers import read_answer
from airflow_provider_talon_cdp.api.client import explain_repeated, session_options
from airflow_provider_talon_cdp.api.no_answer import connection_error, tls_error
from airflow_provider_talon_cdp.api.pacer import Pacer
from airflow_provider_talon_cdp.api.request import Request, Result
from airflow_provider_talon_cdp.api.retry import RetryPolicy
from airflow_provider_talon_cdp.api.settings import CONNECT_TIMEOUT, Settings
from airflow_provider_talon_cdp.exceptions import (
    InvalidInputError,
    RequestError,
    TransientError,
)

log = logging.getLogger(__name__)
_TOO_MANY_REQUESTS = 429
_SECONDS_TO_CLOSE_TLS = 0.1


@dataclass(frozen=True)
class Transport:
    """How to reach a host.

    Args:
        proxy: URL of the proxy, or None; it may hold a password.
        verify: True, False, or the path of a CA bundle (file or folder).
        cert: Path of a client certificate with its key, or the two paths.
    """

    proxy: str | None = None
    verify: bool | str = True
    cert: str | tuple[str, str] | None = None

    def __repr__(self) -> str:
        return f"Transport(proxy={'set' if self.proxy else None}, verify={self.verify!r})"

    @classmethod
    def of(cls, session: requests.Session, url: str) -> Transport:
        """Read off a session how it would reach a URL; environment variables fill in what it leaves open.

        Raises:
            InvalidInputError: The proxy is no URL that can be used.
        """
        options = session_options(session, url)
        proxy = select_proxy(url, options["proxies"])
        if proxy:
            try:
                proxy = str(prepend_scheme_if_needed(proxy, "http"))  # type: ignore[no-untyped-call]
                usable = URL(proxy).scheme in ("http", "https") and URL(proxy).host
            except ValueError:
                usable = None
            if not usable:
                raise InvalidInputError("The proxy must be a URL such as http://proxy:3128.")
        verify = options["verify"]
        return cls(proxy, True if verify is None else verify, options["cert"])

    def ssl_context(self) -> ssl.SSLContext:
        """Make the TLS context that ``requests`` would use."""
        bundle = DEFAULT_CA_BUNDLE_PATH if self.verify is True else self.verify or None
        is_folder = isinstance(bundle, str) and os.path.isdir(bundle)  # noqa: PTH112
        context = ssl.create_default_context(
            cafile=None if is_folder else bundle, capath=bundle if is_folder else None
        )
        if self.verify is False:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        if self.cert:
            context.load_cert_chain(*((self.cert,) if isinstance(self.cert, str) else self.cert))
        return context


class AsyncTalonCdpClient:
    """Sends requests concurrently; each attempt waits for the one pacer, and transient failures are retried.

    Args:
        settings: Whom to call.
        session: An aiohttp session; ``open_client`` makes a fitting one.
        proxy: URL of the proxy, or None.
        retry: How long to keep trying one request.
        clock: Seconds from a fixed point.
        sleep: Waits that many seconds.
        jitter: A number from 0 to 1.

    Attributes:
        requests: Attempts that left.
        retries: Attempts that left because an earlier one failed.
        throttled: Answers 429.
    """

    def __init__(
        self,
        settings: Settings,
        session: aiohttp.ClientSession,
        *,
        proxy: str | None = None,
        retry: RetryPolicy | None = None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self.settings = settings
        self.requests = 0
        self.retries = 0
        self.throttled = 0
        self._session = session
        self._proxy = proxy
        self._retry = retry or RetryPolicy()
        self._clock = clock
        self._sleep = sleep
        self._jitter = jitter
        self._pacer = Pacer(settings.requests_per_second)
        self._gate = asyncio.Lock()

    async def send(self, request: Request[Result]) -> Result:
        """Send a request from ``calls.py`` and return what its answer holds.

        Raises:
            RequestError: It failed for good; the class says what to do.
        """
        began = self._clock()
        attempt = 1
        unclear = False
        while True:
            left_at = await self._pace()
            self.requests += 1
            self.retries += attempt > 1
            try:
                return await self._send_once(request)
            except TransientError as error:
                unclear |= error.is_unclear
                now = self._clock()
                if error.status == _TOO_MANY_REQUESTS:
                    self.throttled += 1
                    self._pacer.throttled(now, left_at=left_at, retry_after=error.retry_after)
                wait = self._retry.wait(error, attempt=attempt, elapsed=now - began, random=self._jitter())
                if wait is None:
                    error.repeated = unclear
                    error.explain(f"Gave up after {attempt} attempt(s) in {now - began:.0f} s.")
                    raise
                # A 429 is the pacer's daily bread; the rest a person may want to see.
                level = logging.DEBUG if error.status == _TOO_MANY_REQUESTS else logging.WARNING
                log.log(level, "%s Attempt %d in %.1f s.", error, attempt + 1, wait)
                await self._sleep(wait)
                attempt += 1
            except RequestError as error:
                explain_repeated(error, request, unclear=unclear)
                raise

    async def _pace(self) -> float:
        # One waits at the gate and the others behind it, so that a slower rate holds for all of them at once.
        async with self._gate:
            while (wait := self._pacer.wait(self._clock())) > 0:
                await self._sleep(wait)
            now = self._clock()
            self._pacer.left(now)
            return now

    async def _send_once(self, request: Request[Result]) -> Result:
        base_url = self.settings.base_url
        # encoded=True: an ID such as ".." must stay percent-encoded.
        url = URL(base_url + request.path, encoded=True)
        failure: RequestError
        try:
            # Headers of the session would go to a proxy too, in clear text; those of the request do not.
            async with self._session.request(
                request.method,
                url,
                data=request.body,
                headers=self.settings.headers,
                proxy=self._proxy,
                allow_redirects=False,
            ) as response:
                body = await response.read()
        except TimeoutError as error:
            sent = not isinstance(error, aiohttp.ConnectionTimeoutError)
            failure = connection_error(request, base_url, "timed out", sent=sent)
        except aiohttp.ClientError as error:
            # A server may refuse our certificate after the handshake, when aiohttp sees a broken connection.
            reasons = (error.__cause__, error.__context__, error)
            refusal = next((each for each in reasons if isinstance(each, ssl.SSLError)), None)
            sent = not isinstance(error, aiohttp.ClientConnectorError)
            failure = (
                tls_error(request, base_url, refusal)
                if refusal
                else connection_error(request, base_url, type(error).__name__, sent=sent)
            )
        else:
            return read_answer(
                request,
                response.status,
                response.headers,
                body,
                now=time.time(),
                secret=self.settings.api_key,
            )
        # Without its cause: aiohttp's texts hold the URL with a profile ID in it, and the proxy's password.
        raise failure


@asynccontextmanager
async def open_client(
    settings: Settings, transport: Transport, *, in_flight: int = 64, retry: RetryPolicy | None = None
) -> AsyncIterator[AsyncTalonCdpClient]:
    """Open a client with its own aiohttp session, and close both at the end.

    Args:
        settings: Whom to call.
        transport: Proxy and certificates.
        in_flight: Connections at the most.
        retry: How long to keep trying one request.
    """
    # Reading the CA bundle takes longer than a few requests, and loopback needs none.
    needs_tls = any(url and url.startswith("https") for url in (settings.base_url, transport.proxy))
    connector = aiohttp.TCPConnector(limit=in_flight, ssl=transport.ssl_context() if needs_tls else True)
    timeout = aiohttp.ClientTimeout(
        total=CONNECT_TIMEOUT + settings.timeout,
        sock_connect=min(CONNECT_TIMEOUT, settings.timeout),
        sock_read=settings.timeout,
    )
    # trust_env stays off: the transport has read the environment, and a .netrc must not replace the API key.
    # Cookies are not kept, as each request stands alone.
    try:
        async with aiohttp.ClientSession(
            connector=connector, timeout=timeout, cookie_jar=aiohttp.DummyCookieJar()
        ) as session:
            # aiohttp would send some requests a second time by itself, unpaced and uncounted; retries are ours.
            session._retry_connection = False  # noqa: SLF001
            yield AsyncTalonCdpClient(settings, session, proxy=transport.proxy, retry=retry)
    finally:
        if needs_tls:
            # TLS inside a proxy's connection is closed later than the session, and the loop must not end before that.
            await asyncio.sleep(_SECONDS_TO_CLOSE_TLS)
