"""HTTP clients: single calls on ``requests``, bulk on ``aiohttp``, with the same decisions about retries."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import logging
import os
import random
import re
import socket
import ssl
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

import aiohttp
import requests
from requests.adapters import HTTPAdapter
from requests.utils import DEFAULT_CA_BUNDLE_PATH, prepend_scheme_if_needed, select_proxy
from urllib3.exceptions import (
    HTTPError,
    LocationValueError,
    NewConnectionError,
    ReadTimeoutError,
)
from yarl import URL

from airflow_provider_talon_cdp.api.answers import (
    MAX_ANSWER,
    connection_error,
    is_refusal,
    proxy_error,
    read_answer,
    tls_error,
)
from airflow_provider_talon_cdp.api.calls import Request, Result
from airflow_provider_talon_cdp.api.pacing import Attempts, Pacer, RepeatedLines
from airflow_provider_talon_cdp.api.settings import CONNECT_TIMEOUT, Settings
from airflow_provider_talon_cdp.contract import IN_FLIGHT, ON_UNCLEAR, OnUnclear
from airflow_provider_talon_cdp.exceptions import InvalidInputError, RequestError, TransientError

S = TypeVar("S", bound="AsyncTalonCdpClient")
log = logging.getLogger(__name__)
_TOO_MANY_REQUESTS = 429
_CHUNK = 8192
# How Python's HTTP client says that a proxy refused CONNECT.
_TUNNEL_REFUSED = re.compile(r"Tunnel connection failed: (\d{3})")
_SECONDS_TO_CLOSE_TLS = 0.1
# A push is reported as waiting only if its failures last longer than this.
_SECONDS_UNTIL_WAITING = 1.0
# A timer that is so late says that the event loop was blocked; answers then get more time.
_LATE = 0.1
_SECONDS_AFTER_BLOCK = 1.0


def _mask_profiles(record: logging.LogRecord) -> bool:
    """Mask profile IDs in the paths that urllib3 logs: of requests, and of answers that it cannot parse."""
    record.msg, record.args = _PROFILE_PATH.sub(r"\1***", record.getMessage()), ()
    # Its text is in the message too.
    record.exc_info = None
    return True


_PROFILE_PATH = re.compile(r"(/cdp/customer_profile/)[^/?\s]+")
for _name in ("urllib3.connectionpool", "urllib3.connection"):
    logging.getLogger(_name).addFilter(_mask_profiles)


class _Client:
    """The base of both clients."""

    def __init__(
        self, settings: Settings, budget: float, clock: Callable[[], float], jitter: Callable[[], float]
    ) -> None:
        self.settings = settings
        self._budget = budget
        self._clock = clock
        self._jitter = jitter
        self._lines = RepeatedLines()
        # Neither client decompresses answers: answers.py does, which limits their decompressed size.
        self._headers = {**settings.headers, "Accept-Encoding": "gzip, deflate"}

    def _read(self, request: Request[Result], status: int, headers: Mapping[str, str], body: bytes) -> Result:
        secret = self.settings.api_key
        return read_answer(request, status, headers, body, now=time.time(), secret=secret)

    def _wait_after(self, error: RequestError, attempts: Attempts, *, routine: bool = False) -> float:
        """Return the seconds until the next attempt and log the failure; raise the error if there is none."""
        now = self._clock()
        wait = attempts.failed(error, now, self._jitter())
        reason = error.reason if isinstance(error, TransientError) else ""
        what = str(error).partition("\n")[0]
        line = self._lines.line(reason, f"{what} Attempt {attempts.made} in {wait:.1f} s.", now)
        if line:
            log.log(logging.DEBUG if routine else logging.WARNING, "%s", line)
        return wait


class TalonCdpClient(_Client):
    """Sends one request at a time and retries transient failures.

    Args:
        settings: The connection.
        session: Has the proxies, certificates and connection pool; None makes a plain session.
        clock: Returns seconds since a fixed time.
        sleep: Waits for a number of seconds.
        jitter: Returns a random number from 0 to 1.

    Example:
        >>> client.send(calls.create_audience("vip", "VIP customers")).id  # doctest: +SKIP
        4711
    """

    def __init__(
        self,
        settings: Settings,
        session: requests.Session | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        super().__init__(settings, settings.call_retry_seconds, clock, jitter)
        self._session = session or requests.Session()
        self._sleep = sleep

    def send(self, request: Request[Result], *, on_unclear: OnUnclear = ON_UNCLEAR) -> Result:
        """Send a request from ``calls.py`` and return its result.

        Args:
            request: The request.
            on_unclear: What to do if it runs rules and gets no clear answer: ``fail`` or ``retry``.

        Raises:
            RequestError: The last attempt failed; the class says what to do.
        """
        attempts = Attempts(request, self.settings.base_url, self._budget, self._clock(), on_unclear)
        while True:
            try:
                return attempts.succeeded(self._send_once(request))
            except RequestError as error:
                wait = self._wait_after(error, attempts)
            self._sleep(wait)

    def _send_once(self, request: Request[Result]) -> Result:
        base_url = self.settings.base_url
        prepared = self._session.prepare_request(
            requests.Request(request.method, base_url, data=request.body, auth=self._authorised)
        )
        # Set afterwards, as preparing a URL changes some of its characters.
        prepared.url = base_url + request.path
        options = session_options(self._session, base_url)
        connect = min(CONNECT_TIMEOUT, self.settings.timeout)
        deadline = _Deadline(connect + self.settings.timeout)
        try:
            _watch_connections(self._session, prepared, options)
            with (
                deadline,
                self._session.send(
                    prepared,
                    timeout=(connect, self.settings.timeout),
                    allow_redirects=False,
                    **options | {"stream": True},
                ) as response,
            ):
                body = _beginning(response)
        except (requests.RequestException, HTTPError) as error:
            if deadline.has_passed:
                raise connection_error(request, base_url, "timed out", sent=deadline.may_have_sent) from None
            failure = _no_answer(request, base_url, error, deadline)
            # The cause of a wrong proxy has its password in its text.
            raise failure from (None if isinstance(failure, InvalidInputError) else _without_url(error))
        except OSError as error:
            # requests looks for the files before it connects.
            raise _unreadable_certificates(error) from None
        return self._read(request, response.status_code, response.headers, body)

    def _authorised(self, prepared: requests.PreparedRequest) -> requests.PreparedRequest:
        """Set the connection's headers; as an ``auth`` it also keeps a ``.netrc`` from replacing the key."""
        prepared.headers.update(self._headers)
        return prepared


class AsyncTalonCdpClient(_Client):
    """Sends requests concurrently. All attempts wait for one pacer, and transient failures are retried.

    Args:
        settings: The connection.
        session: An aiohttp session, as ``open_client`` makes it.
        proxy: URL of the proxy, or None.
        clock: Returns seconds since a fixed time.
        sleep: Waits for a number of seconds.
        jitter: Returns a random number from 0 to 1.

    Attributes:
        requests: Number of attempts that were sent.
        retries: Number of attempts that were sent because an earlier one failed.
        throttled: Number of responses with status 429.
        before_attempt: Called before every attempt is sent, also a retry; raises if it must not be sent.
    """

    def __init__(
        self,
        settings: Settings,
        session: aiohttp.ClientSession,
        *,
        proxy: str | None = None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        super().__init__(settings, settings.bulk_retry_seconds, clock, jitter)
        self.requests = 0
        self.retries = 0
        self.throttled = 0
        self.before_attempt: Callable[[], None] = lambda: None
        self._session = session
        self._proxy = proxy
        self._sleep = sleep
        self._pacer = Pacer(settings.requests_per_second)
        self._gate = asyncio.Lock()
        # Not left to the connection pool: the time to connect includes the wait for a free connection.
        limit = session.connector.limit if session.connector else 0
        self._places = asyncio.Semaphore(limit or IN_FLIGHT)
        self._failing_since: float | None = None
        self._failing_with = ""
        # A 429 that asks to wait longer than requests are tried.
        self._refused: RequestError | None = None

    @property
    def waiting(self) -> str | None:
        """Why requests fail at present, and for how long; None while they succeed."""
        if self._failing_since is None:
            return None
        seconds = self._clock() - self._failing_since
        if seconds < _SECONDS_UNTIL_WAITING:
            return None
        what = self._failing_with
        subject = "Talon.One has given" if what.startswith("no answer") else "Talon.One has answered"
        return f"{subject} {what} for {seconds:,.0f} s"

    async def send(
        self,
        request: Request[Result],
        *,
        while_in_flight: Callable[[], contextlib.AbstractContextManager[None]] = contextlib.nullcontext,
    ) -> Result:
        """Send a request from ``calls.py`` and return its result.

        Args:
            request: The request.
            while_in_flight: Makes a context manager, in which an attempt is sent and its response awaited.

        Raises:
            RequestError: The last attempt failed; the class says what to do.
        """
        attempts: Attempts | None = None
        while True:
            async with self._places:
                left_at = await self._pace(request, attempts)
                # The time in the queue before the first attempt does not count.
                attempts = attempts or Attempts(request, self.settings.base_url, self._budget, self._clock())
                self.before_attempt()
                try:
                    with while_in_flight():
                        self.requests += 1
                        self.retries += attempts.made > 1
                        result = await self._send_once(request)
                except RequestError as error:
                    is_throttled = error.status == _TOO_MANY_REQUESTS
                    if is_throttled:
                        self.throttled += 1
                        self._pacer.throttled(self._clock(), left_at=left_at, retry_after=error.retry_after)
                        if (error.retry_after or 0) > self._budget:
                            self._refused = copy.copy(error)
                    self._note(error)
                    # A 429 now and then is part of pacing; other failures are logged as warnings.
                    wait = self._wait_after(error, attempts, routine=is_throttled)
                else:
                    self._failing_since = None
                    return attempts.succeeded(result)
            await self._sleep(wait)

    def _note(self, error: RequestError) -> None:
        if not isinstance(error, TransientError):
            self._failing_since = None
            return
        if self._failing_since is None:
            self._failing_since = self._clock()
        self._failing_with = error.reason

    async def _pace(self, request: Request[Any], attempts: Attempts | None) -> float:
        # One request waits for the pacer and the others for the lock: a lower rate applies to all at once.
        async with self._gate:
            while (wait := self._pacer.wait(self._clock())) > 0:
                if self._refused and wait > self._budget:
                    refused = copy.copy(self._refused)
                    refused.method, refused.path = request.method, request.path
                    refused.repeated = attempts is not None and attempts.unclear
                    refused.explain(f"An earlier request got this answer, which asks to wait {wait:,.0f} s.")
                    raise refused
                await self._sleep(wait)
            self._refused = None
            now = self._clock()
            self._pacer.left(now)
            return now

    async def _send_once(self, request: Request[Result]) -> Result:
        base_url = self.settings.base_url
        # encoded=True keeps the percent-encoded characters of an ID as they are.
        url = URL(base_url + request.path, encoded=True)
        failure: RequestError
        seconds = min(CONNECT_TIMEOUT, self.settings.timeout) + self.settings.timeout
        try:
            # Headers of the session would also be sent to a proxy, in clear text; a request's own are not.
            async with (
                _time_limit(seconds),
                self._session.request(
                    request.method,
                    url,
                    data=request.body,
                    headers=self._headers,
                    proxy=self._proxy,
                    allow_redirects=False,
                ) as response,
            ):
                body = await _beginning_of(response)
        except TimeoutError as error:
            sent = not isinstance(error, aiohttp.ConnectionTimeoutError)
            failure = connection_error(request, base_url, "timed out", sent=sent)
        except aiohttp.ClientError as error:
            # If a server refuses our certificate after the handshake, aiohttp reports a broken connection.
            reasons = (error.__cause__, error.__context__, error)
            refusal = next((reason for reason in reasons if isinstance(reason, ssl.SSLError)), None)
            sent = not isinstance(error, aiohttp.ClientConnectorError | ProxyConnectError)
            if isinstance(error, aiohttp.ClientHttpProxyError):
                failure = proxy_error(request, base_url, error.status)
            elif refusal and is_refusal(refusal, sent=sent):
                failure = tls_error(request, base_url, refusal)
            else:
                failure = connection_error(request, base_url, error, sent=sent)
        else:
            return self._read(request, response.status, response.headers, body)
        # Without the cause: aiohttp's texts have the URL with a profile ID in it, and the proxy's password.
        raise failure


@contextlib.asynccontextmanager
async def _time_limit(seconds: float) -> AsyncIterator[None]:
    """Raise TimeoutError after a time; later if the event loop was blocked, for example by a slow storage.

    Otherwise an answer that arrived in the meantime would not be read any more.
    """
    due = asyncio.get_running_loop().time() + seconds
    timer: list[asyncio.TimerHandle] = []
    async with asyncio.timeout(None) as limit:
        _call_at(due, limit, timer)
        try:
            yield
        finally:
            timer.pop().cancel()


def _call_at(due: float, limit: asyncio.Timeout, timer: list[asyncio.TimerHandle]) -> None:
    # Not a closure that names itself: each request would leave a cycle of references behind.
    timer[:] = [asyncio.get_running_loop().call_at(due, _end, due, limit, timer)]


def _end(due: float, limit: asyncio.Timeout, timer: list[asyncio.TimerHandle]) -> None:
    now = asyncio.get_running_loop().time()
    if now - due < _LATE:
        limit.reschedule(now)
    else:
        _call_at(now + _SECONDS_AFTER_BLOCK, limit, timer)


class ProxyConnectError(aiohttp.ClientConnectionError):
    """A proxy broke off a CONNECT, or its answer is not HTTP: the request was not sent."""


class _Connector(aiohttp.TCPConnector):
    """Tells a failed CONNECT from a failed request, for which aiohttp raises the same errors."""

    async def connect(self, *args: Any, **options: Any) -> aiohttp.connector.Connection:
        try:
            return await super().connect(*args, **options)
        except (aiohttp.ClientConnectorError, aiohttp.ClientHttpProxyError):
            raise
        except aiohttp.ClientError as error:
            raise ProxyConnectError from error


@contextlib.asynccontextmanager
async def open_client(
    settings: Settings, transport: Transport, make: Callable[..., S], *, in_flight: int = IN_FLIGHT
) -> AsyncIterator[S]:
    """Open a client with its own aiohttp session, and close the session at the end."""
    # Reading the CA bundle takes longer than a few requests, and is not needed without TLS.
    needs_tls = any(url and url.startswith("https") for url in (settings.base_url, transport.proxy))
    connector = _Connector(limit=in_flight, ssl=transport.ssl_context() if needs_tls else True)
    connect = min(CONNECT_TIMEOUT, settings.timeout)
    # The client limits the total time itself.
    timeout = aiohttp.ClientTimeout(total=None, connect=connect, sock_read=settings.timeout)
    # trust_env is off: the transport has read the environment, and a .netrc must not replace the API key.
    # Cookies are discarded: no request depends on another.
    try:
        async with aiohttp.ClientSession(
            connector=connector,
            timeout=timeout,
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
        ) as session:
            # aiohttp would repeat some requests by itself, which the pacer and the counters would not see.
            session._retry_connection = False  # noqa: SLF001
            yield make(settings, session, proxy=transport.proxy)
    finally:
        if needs_tls:
            # TLS inside a proxy's connection is closed after the session, and the loop must run until then.
            await asyncio.sleep(_SECONDS_TO_CLOSE_TLS)


@dataclass(frozen=True)
class Transport:
    """How to reach a host.

    Args:
        proxy: URL of the proxy, which may have a password in it, or None.
        verify: True, False, or the path of a CA bundle (file or folder).
        cert: Path of a client certificate with its key, or the paths of both, or None.
    """

    proxy: str | None = field(default=None, repr=False)
    verify: bool | str = True
    cert: str | tuple[str, str] | None = field(default=None, repr=False)

    @classmethod
    def of(cls, session: requests.Session, url: str) -> Transport:
        """Return how a session reaches a URL; environment variables apply where the session has no setting.

        Raises:
            InvalidInputError: The proxy is not a valid URL.
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
        """Make a TLS context like that of ``requests``."""
        bundle = DEFAULT_CA_BUNDLE_PATH if self.verify is True else self.verify or None
        is_folder = isinstance(bundle, str) and os.path.isdir(bundle)  # noqa: PTH112
        try:
            context = ssl.create_default_context(
                cafile=None if is_folder else bundle, capath=bundle if is_folder else None
            )
            if self.verify is False:
                context.check_hostname = False
                context.verify_mode = ssl.CERT_NONE
            if self.cert:
                context.load_cert_chain(*((self.cert,) if isinstance(self.cert, str) else self.cert))
        except OSError as error:
            raise _unreadable_certificates(error) from None
        return context


def session_options(session: requests.Session, url: str) -> dict[str, Any]:
    """Return the options of a request to a URL: the session's settings, else those of environment variables.

    A plain ``http`` URL is reached without a proxy.
    """
    # Passed as a request's options, the session's settings take precedence over the environment.
    options = dict(
        session.merge_environment_settings(
            url, dict(session.proxies), session.stream, session.verify, session.cert
        )
    )
    if url.startswith("http:"):
        # Such a URL is on loopback: a proxy on another host could not reach it, and would see the API key.
        options["proxies"] = {}
    return options


class _Deadline:
    """Closes the connection of one attempt when its time is over.

    The timeout of ``requests`` applies to each piece of an answer, and a slow answer may take hours.

    Args:
        seconds: How long the attempt may take.
    """

    _of_thread = threading.local()

    def __init__(self, seconds: float) -> None:
        # A longer time would be an error in Timer.
        self._timer = threading.Timer(min(seconds, threading.TIMEOUT_MAX), self._cut)
        self._timer.daemon = True
        self.connection: Any = None
        self.has_begun = False
        self.has_passed = False

    def __enter__(self) -> None:
        self._of_thread.deadline = self
        self._timer.start()

    def __exit__(self, *_: object) -> None:
        self._timer.cancel()
        del self._of_thread.deadline

    @property
    def may_have_sent(self) -> bool:
        """Whether the request may have left. If no connection was watched, nobody knows."""
        return self.has_begun or self.connection is None

    @classmethod
    def watch(cls, connection: Any, *, has_begun: bool = False) -> None:
        """Note the connection that this thread's attempt uses, and whether it begins to send the request."""
        deadline = getattr(cls._of_thread, "deadline", None)
        if deadline is not None:
            deadline.connection = connection
            deadline.has_begun = deadline.has_begun or has_begun

    def _cut(self) -> None:
        self.has_passed = True
        sock = getattr(self.connection, "sock", None)
        if sock is not None:
            with contextlib.suppress(OSError):
                # Not SSLSocket.shutdown, which drops the TLS session while another thread reads.
                socket.socket.shutdown(sock, socket.SHUT_RDWR)


class _WatchedConnection:
    """A mixin for connections of urllib3, which registers them with the deadline of the attempt."""

    def connect(self) -> None:
        _Deadline.watch(self)
        super().connect()  # type: ignore[misc]

    def putrequest(self, *args: Any, **options: Any) -> None:
        # A CONNECT to a proxy does not come here.
        _Deadline.watch(self, has_begun=True)
        super().putrequest(*args, **options)  # type: ignore[misc]


def _watch_connections(
    session: requests.Session, request: requests.PreparedRequest, options: dict[str, Any]
) -> None:
    """Make the pool's connections for a request register with the deadline."""
    adapter = session.get_adapter(str(request.url))
    if not isinstance(adapter, HTTPAdapter):
        return
    how = {name: options[name] for name in ("verify", "cert")}
    pool: Any = adapter.get_connection_with_tls_context(request, proxies=options["proxies"], **how)
    plain = pool.ConnectionCls
    if not issubclass(plain, _WatchedConnection):
        pool.ConnectionCls = type(plain.__name__, (_WatchedConnection, plain), {})


def _beginning(response: requests.Response) -> bytes:
    """Read the first ``MAX_ANSWER`` bytes of an answer; the caller closes it."""
    body = bytearray()
    for chunk in response.raw.stream(_CHUNK, decode_content=False):
        body += chunk
        if len(body) >= MAX_ANSWER:
            break
    else:
        response.raw.release_conn()
    return bytes(body[:MAX_ANSWER])


async def _beginning_of(response: aiohttp.ClientResponse) -> bytes:
    body = bytearray()
    async for chunk in response.content.iter_any():
        body += chunk
        if len(body) >= MAX_ANSWER:
            # Otherwise the rest would be read before the connection is used again.
            response.close()
            break
    return bytes(body[:MAX_ANSWER])


def _unreadable_certificates(error: OSError) -> InvalidInputError:
    reason = error.strerror or getattr(error, "reason", None) or error
    return InvalidInputError(
        f"The CA bundle or the client certificate cannot be read ({reason}).\n"
        "Check 'verify' and 'cert' in the connection's extra, and REQUESTS_CA_BUNDLE and CURL_CA_BUNDLE."
    )


def _no_answer(
    request: Request[Result],
    base_url: str,
    error: requests.RequestException | HTTPError,
    deadline: _Deadline,
) -> RequestError | InvalidInputError:
    match error:
        case requests.exceptions.SSLError() if is_refusal(_ssl_error(error), sent=deadline.has_begun):
            return tls_error(request, base_url, _ssl_error(error))
        case requests.exceptions.InvalidURL() | requests.exceptions.InvalidSchema() | LocationValueError():
            return InvalidInputError("The connection's proxy must be a URL such as http://proxy:3128.")
        case requests.exceptions.Timeout() | ReadTimeoutError():
            # A timeout of the TLS handshake is a ReadTimeout, too.
            sent = deadline.may_have_sent and not isinstance(error, requests.exceptions.ConnectTimeout)
            return connection_error(request, base_url, "timed out", sent=sent)
        case _:
            cause = _without_url(error)
            if refusal := _TUNNEL_REFUSED.search(str(cause)):
                return proxy_error(request, base_url, int(refusal[1]))
            # Without TLS, urllib3 connects when it has begun to send.
            sent = deadline.may_have_sent and not isinstance(cause, NewConnectionError)
            return connection_error(request, base_url, cause, sent=sent)


def _ssl_error(error: requests.RequestException) -> ssl.SSLError | None:
    """Return OpenSSL's error, which urllib3 wraps in its own."""
    wrapped = _without_url(error).args
    return wrapped[0] if wrapped and isinstance(wrapped[0], ssl.SSLError) else None


def _without_url(error: Exception) -> BaseException:
    """Return the cause whose text has no URL: the path has a profile ID, and causes are printed in logs."""
    cause: BaseException = error
    if error.args and isinstance(error.args[0], Exception):
        # The reason of OpenSSL's error is a text.
        reason = getattr(error.args[0], "reason", None)
        cause = reason if isinstance(reason, BaseException) else error.args[0]
    return cause
