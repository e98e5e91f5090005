"""Single calls to Talon.One over a ``requests.Session``."""

from __future__ import annotations

import logging
import random
import re
import ssl
import time
from collections.abc import Callable
from typing import Any

import requests
from requests.auth import AuthBase
from urllib3.exceptions import NewConnectionError, ProxyError

from airflow_provider_talon_cdp.api.answers import read_answer
from airflow_provider_talon_cdp.api.no_answer import connection_error, tls_error
from airflow_provider_talon_cdp.api.request import Operation, Request, Result
from airflow_provider_talon_cdp.api.retry import RetryPolicy
from airflow_provider_talon_cdp.api.settings import CONNECT_TIMEOUT, Settings
from airflow_provider_talon_cdp.exceptions import (
    AudienceExistsError,
    InvalidInputError,
    NotFoundError,
    RequestError,
    TransientError,
)

log = logging.getLogger(__name__)


class _WithoutProfiles(logging.Filter):
    """Takes profile IDs out of the paths that urllib3 logs at DEBUG."""

    def filter(self, record: logging.LogRecord) -> bool:
        if isinstance(record.args, tuple):
            record.args = tuple(
                _PROFILE_PATH.sub(r"\1***", each) if isinstance(each, str) else each for each in record.args
            )
        return True


_PROFILE_PATH = re.compile(r"(/cdp/customer_profile/)[^/?\s]+")
logging.getLogger("urllib3.connectionpool").addFilter(_WithoutProfiles())


class TalonCdpClient:
    """Sends one request at a time and retries what is worth retrying.

    Args:
        settings: Whom to call.
        session: Where proxies, certificates and the connection pool come from; None makes a plain one.
        retry: How long to keep trying.
        clock: Seconds from a fixed point.
        sleep: Waits that many seconds.
        jitter: A number from 0 to 1.

    Example:
        >>> client.send(calls.create_audience("vip", "VIP customers")).id  # doctest: +SKIP
        4711
    """

    def __init__(
        self,
        settings: Settings,
        session: requests.Session | None = None,
        *,
        retry: RetryPolicy | None = None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self.settings = settings
        self._session = session or requests.Session()
        self._retry = retry or RetryPolicy()
        self._clock = clock
        self._sleep = sleep
        self._jitter = jitter

    def send(self, request: Request[Result]) -> Result:
        """Send a request from ``calls.py`` and return what its answer holds.

        Raises:
            RequestError: It failed for good; the class says what to do.
        """
        began = self._clock()
        attempt = 1
        unclear = False
        while True:
            try:
                return self._send_once(request)
            except TransientError as error:
                unclear |= error.is_unclear
                elapsed = self._clock() - began
                wait = self._retry.wait(error, attempt=attempt, elapsed=elapsed, random=self._jitter())
                if wait is None:
                    error.repeated = unclear
                    error.explain(f"Gave up after {attempt} attempt(s) in {elapsed:.0f} s.")
                    raise
                log.warning("%s Attempt %d in %.1f s.", error, attempt + 1, wait)
                self._sleep(wait)
                attempt += 1
            except RequestError as error:
                explain_repeated(error, request, unclear=unclear)
                raise

    def _send_once(self, request: Request[Result]) -> Result:
        base_url = self.settings.base_url
        prepared = self._session.prepare_request(
            requests.Request(request.method, base_url, data=request.body, auth=_KeyAuth(self.settings))
        )
        # Set afterwards: preparing a URL decodes %2E and then resolves an ID such as ".." away.
        prepared.url = base_url + request.path
        options = session_options(self._session, base_url)
        timeout = (min(CONNECT_TIMEOUT, self.settings.timeout), self.settings.timeout)
        try:
            response = self._session.send(prepared, timeout=timeout, allow_redirects=False, **options)
        except requests.RequestException as error:
            raise _no_answer(request, base_url, error) from _without_url(error)
        return read_answer(
            request,
            response.status_code,
            response.headers,
            response.content,
            now=time.time(),
            secret=self.settings.api_key,
        )


def session_options(session: requests.Session, url: str) -> dict[str, Any]:
    """Say how a session reaches a URL: by its own settings, and by environment variables where it has none.

    A plain ``http`` URL is reached without any proxy.
    """
    # Passed as a request's own they go before the environment; what is None or True may be filled in from there.
    options = dict(
        session.merge_environment_settings(
            url, dict(session.proxies), session.stream, session.verify, session.cert
        )
    )
    if url.startswith("http:"):
        # Such a URL is on loopback: a proxy elsewhere could not reach it, and would read the API key.
        options["proxies"] = {}
    return options


def explain_repeated(error: RequestError, request: Request[Any], *, unclear: bool) -> None:
    """Tell in the error of a call that an attempt without a clear answer, if there was one, may have done the work."""
    error.repeated = unclear
    if not unclear:
        return
    if isinstance(error, AudienceExistsError):
        error.explain(
            "An earlier attempt of this call got no clear answer: it may have created the audience."
        )
    elif isinstance(error, NotFoundError) and request.operation is Operation.DELETE_AUDIENCE:
        error.explain(
            "An earlier attempt of this call got no clear answer: it may have deleted the audience."
        )


class _KeyAuth(AuthBase):
    """Sets the connection's headers; as an auth object it also keeps a ``.netrc`` from replacing the key."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        request.headers.update(self._settings.headers)
        return request


def _no_answer(
    request: Request[Result], base_url: str, error: requests.RequestException
) -> RequestError | InvalidInputError:
    match error:
        # A server that hangs up in the middle has no objection to make, and may be back soon.
        case requests.exceptions.SSLError() if not isinstance(_ssl_error(error), ssl.SSLEOFError):
            return tls_error(request, base_url, _ssl_error(error))
        case requests.exceptions.InvalidURL() | requests.exceptions.InvalidSchema():
            return InvalidInputError("The connection's proxy must be a URL such as http://proxy:3128.")
        case requests.exceptions.Timeout():
            sent = not isinstance(error, requests.exceptions.ConnectTimeout)
            return connection_error(request, base_url, "timed out", sent=sent)
        case _:
            cause = _without_url(error)
            # A ProxyError is a proxy that it could not connect to.
            sent = not isinstance(cause, NewConnectionError | ProxyError)
            return connection_error(request, base_url, type(cause).__name__, sent=sent)


def _ssl_error(error: requests.RequestException) -> ssl.SSLError | None:
    """Find what OpenSSL said: urllib3 wraps it in an error of its own."""
    wrapped = _without_url(error).args
    return wrapped[0] if wrapped and isinstance(wrapped[0], ssl.SSLError) else None


def _without_url(error: requests.RequestException) -> BaseException:
    """Find the cause whose text has no URL: the path holds a profile ID, and causes are printed in logs."""
    cause: BaseException = error
    if error.args and isinstance(error.args[0], Exception):
        cause = getattr(error.args[0], "reason", None) or error.args[0]
    return cause
