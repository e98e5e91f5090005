"""Turns an HTTP answer, or the lack of one, into a result or an error. Pure; only this module reads bodies.

Source: Talon.One's Third-party API reference. An error of the CDP service is
``{"StatusCode", "Error", "RequestUUID"}``; an error of the deployment behind it is
``{"message", "errors": [{"title", "details", "source": {"pointer"}}]}``, where the source may also be a
``parameter``, a ``line`` or a ``resource``.
"""

from __future__ import annotations

import html
import json
import re
import socket
import ssl
import zlib
from collections.abc import Iterable, Mapping
from decimal import Decimal
from functools import cache
from http import HTTPStatus
from typing import Any, cast
from urllib.parse import quote, quote_plus, urlsplit

import orjson

from airflow_provider_talon_cdp.api.calls import Audience, IntegrationState, Operation, Request, Result
from airflow_provider_talon_cdp.api.pacing import parse_retry_after
from airflow_provider_talon_cdp.contract import MAX_LENGTH
from airflow_provider_talon_cdp.exceptions import (
    AudienceExistsError,
    AuthenticationError,
    Blame,
    FatalError,
    Kind,
    NotFoundError,
    RejectedError,
    RequestError,
    TransientError,
    UnexpectedAnswerError,
)

MAX_ANSWER = 1_000_000
"""Limit of the bytes that are read of an answer, before and after decompression."""

_SUCCESS = {
    Operation.CREATE_AUDIENCE: 201,
    Operation.UPDATE_AUDIENCE: 200,
    Operation.DELETE_AUDIENCE: 204,
    Operation.UPDATE_PROFILE: 200,
    Operation.UPDATE_PROFILE_AUDIENCES: 200,
    # Only 204: a 200 means that another path of the API answered, and no membership changed.
    Operation.UPDATE_PROFILES_AUDIENCES: 204,
}
_LONGEST_TEXT = 500
# Longest text in which IDs that were not sent are looked for. Its end may be a part of one, which is not
# masked; the 500 characters that are shown do not reach it, as a masked ID of 1000 characters and a separator
# have 4.
_LONGEST_READ = 200_000
_MULTI_PROFILE = Operation.UPDATE_PROFILES_AUDIENCES
_NAMES_AUDIENCE = (Operation.UPDATE_AUDIENCE, Operation.DELETE_AUDIENCE)


def read_answer(
    request: Request[Result],
    status: int,
    headers: Mapping[str, str],
    body: bytes,
    *,
    now: float,
    secret: str = "",
) -> Result:
    """Read the answer to a request.

    Args:
        request: The request.
        status: HTTP status.
        headers: The answer's headers, case-insensitive.
        body: The first bytes of the answer's body, not decompressed, at most ``MAX_ANSWER``.
        now: Seconds since the epoch, for a ``Retry-After`` that is a date.
        secret: The API key, which is masked in errors if the answer quotes it.

    Returns:
        The audience, the integration state, or None, by the request's type.

    Raises:
        RequestError: The answer is not the documented success.
    """
    body = _decompress(headers.get("Content-Encoding", ""), body)
    if secret and (b"\\" in body or secret.encode() in body):
        body = _spellings(secret).sub(b"***", body)
    if status != _SUCCESS[request.operation]:
        raise _error(request, status, headers, body, now)
    return cast("Result", _result(request, status, headers, body))


def connection_error(
    request: Request[Result], base_url: str, cause: BaseException | str, *, sent: bool
) -> RequestError:
    """Make the error of a request that got no answer.

    Args:
        request: The request.
        base_url: The base URL as ``Settings`` normalises it, without secrets.
        cause: What the client raised, or a description, e.g. ``timed out``.
        sent: Whether the request, or a part of it, may have been sent.
    """
    if not isinstance(cause, str) and any(_TLS_ALERT in f"{link!r} {link}" for link in _chain(cause)):
        if base_url.startswith("http:"):
            text = f"the server at {base_url} speaks TLS.\nWrite https:// in Base URL on the connection."
        else:
            text = (
                "the proxy speaks TLS.\n"
                "Write its URL with https:// in proxies on the connection, or in HTTPS_PROXY."
            )
        return _failure(FatalError, request, text)
    reason = cause if isinstance(cause, str) else _in_words(cause)
    cure = "If this persists, check Base URL and proxies on the connection, and the network."
    if base_url.startswith("http:"):
        cure += "\nIf that server speaks TLS, write https:// in Base URL."
    text = f"no answer ({reason}).\nTalon.One was called at {base_url}.\n{cure}"
    error = _failure(TransientError, request, text)
    error.is_unclear = sent
    error.reason = f"no answer ({reason})"
    return error


def proxy_error(request: Request[Result], base_url: str, status: int) -> RequestError:
    """Make the error of a request that a proxy did not let through, so that Talon.One did not get it."""
    if status != HTTPStatus.PROXY_AUTHENTICATION_REQUIRED:
        return connection_error(request, base_url, f"the proxy answered {status}", sent=False)
    return _failure(FatalError, request, f"HTTP {status}.\n{_CURES[status]}", status=status)


def _failure(kind: type[Kind], request: Request[Result], text: str, **facts: Any) -> Kind:
    """Make an error whose text begins with the call's name."""
    text = f"{request.operation.value}: {text}"
    return kind(text, method=request.method, path=request.path, **facts)


# The start of a TLS alert, as Python quotes it in the error if a client reads it as an HTTP status line.
_TLS_ALERT = r"\x15\x03"


def _chain(error: BaseException | None) -> Iterable[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _in_words(error: BaseException) -> str:
    for link in _chain(error):
        match link:
            case TimeoutError():
                return "timed out"
            case ConnectionRefusedError():
                return "connection refused"
            case ConnectionResetError() | BrokenPipeError():
                return "connection reset"
            case socket.gaierror():
                return "host name not found"
    return type(error).__name__


# In OpenSSL's reasons for its own checks and for the server's alerts. Some servers report a missing client
# certificate only as denied access.
_OVER_CERTIFICATES = re.compile("CERTIFICATE|UNKNOWN_CA|ACCESS_DENIED")
# A server that shuts down may send it in place of an answer.
_SERVER_FAULT = "INTERNAL_ERROR"
_CA_CURE = "Set 'verify' in the connection's extra to the path of your CA bundle."
_CHECK_HOST = "Check the host in Base URL on the connection, and whether a proxy answers instead."
# By OpenSSL's code of the verification error.
_BAD_CERTIFICATES = {
    9: ("is not valid yet", "Check the clock of this worker, and the server's certificate."),
    10: ("has expired", "Its operator has to renew it. Check the clock of this worker too."),
    62: ("is for another host name", _CHECK_HOST),
    64: ("is for another IP address", _CHECK_HOST),
}


def is_refusal(cause: ssl.SSLError | None, *, sent: bool) -> bool:
    """Whether an error of OpenSSL means that TLS cannot work, and not that a connection broke.

    Args:
        cause: The error.
        sent: Whether the request was sent: then only errors about certificates are refusals, which TLS 1.3
            reports after the handshake.
    """
    reason = getattr(cause, "reason", None) or ""
    if sent and not _OVER_CERTIFICATES.search(reason):
        return False
    return not isinstance(cause, ssl.SSLEOFError | ssl.SSLZeroReturnError) and _SERVER_FAULT not in reason


def tls_error(request: Request[Result], base_url: str, cause: ssl.SSLError | None) -> FatalError:
    """Make the error of a TLS connection that failed, or that the server closed due to our certificate."""
    reason = getattr(cause, "reason", None) or "no reason given"
    host = urlsplit(base_url).netloc
    if isinstance(cause, ssl.SSLCertVerificationError):
        unknown = ("is signed by an authority that this worker does not know", _CA_CURE)
        fault, cure = _BAD_CERTIFICATES.get(cause.verify_code, unknown)
        text = f"The TLS certificate of {host} was not accepted: it {fault}.\n{cure}"
    elif _OVER_CERTIFICATES.search(reason):
        text = (
            "A TLS certificate was not accepted, the server's or ours.\n"
            "If the server requires a client certificate, set 'cert' in the extra to yours and its key.\n"
            f"{_CA_CURE}"
        )
    else:
        text = (
            f"The server at {base_url} does not speak TLS as expected.\n"
            "Check host and port of Base URL. A server on this machine may need http:// there.\n"
            "If the server requires a client certificate, set 'cert' in the extra."
        )
    return _failure(FatalError, request, f"TLS failed ({reason}).\n{text}")


_WHO_ANSWERED = "The answer may not come from Talon.One.\nCheck Base URL and proxies on the connection."
_CHECK_DEPLOYMENT = "Check Deployment host on the connection first: a typo there is the most likely cause."
_CURES = {
    400: "Talon.One refuses the content of the request.",
    401: (
        "The API key is missing, wrong or expired (CDP keys always expire),\n"
        "or is not of type Customer Data Platform. Put a valid key into the connection."
    ),
    403: (
        "The API key has no permission for this call.\n"
        "Use a third-party key of type Customer Data Platform for this deployment."
    ),
    407: "The proxy requires authentication. Check the connection's proxies.",
    409: "Another request on the same profile is in flight.",
    429: "Too many requests, or parallel requests on one profile.",
}
# The texts of servers differ, e.g. "The plain HTTP request was sent to HTTPS port".
_REQUIRES_TLS = re.compile(r"http request .{0,20}to (an )?https", re.IGNORECASE)
_BLAMES_CONNECTION = re.compile(r"deployment|customer-data-platform-name|destination-hostname", re.IGNORECASE)


def _result(
    request: Request[Result], status: int, headers: Mapping[str, str], body: bytes
) -> Audience | IntegrationState | None:
    if status == HTTPStatus.NO_CONTENT:
        return None
    content = _json_object(body)
    if content is None and _is_cut_off(headers, body):
        text = f"The answer was cut off: the connection ended.\nIf this persists: {_WHO_ANSWERED}"
        error = _fail(TransientError, request, status, body, text)
        error.reason = "the answer was cut off"
        raise error
    if content is None:
        size = (
            f" of 1 MB or more, of which {MAX_ANSWER:,} bytes were read," if len(body) >= MAX_ANSWER else ""
        )
        text = f"The answer{size} is not a JSON object.\n{_WHO_ANSWERED}"
        raise _fail(UnexpectedAnswerError, request, status, body, text)
    if request.operation not in (Operation.CREATE_AUDIENCE, Operation.UPDATE_AUDIENCE):
        # By the contract every answer has effects, usually an empty list.
        if not isinstance(content.get("effects"), list):
            text = "The answer has no integration state, so the profile may not have been updated.\n"
            raise _fail(UnexpectedAnswerError, request, status, body, text + _WHO_ANSWERED)
        return IntegrationState(content)
    if not isinstance(content.get("id"), int):
        raise _fail(
            UnexpectedAnswerError, request, status, body, f"The answer has no audience.\n{_WHO_ANSWERED}"
        )
    return Audience(
        id=content["id"],
        integration_id=str(content.get("integrationId", "")),
        name=str(content.get("name", "")),
        integration=content.get("integration"),
        created=content.get("created"),
        account_id=content.get("accountId"),
    )


def _error(
    request: Request[Result], status: int, headers: Mapping[str, str], body: bytes, now: float
) -> RequestError:
    content = _json_object(body)
    match status:
        case 401 | 403:
            return _fail(AuthenticationError, request, status, body)
        case 404 if content is None:
            # Without an error's JSON this need not mean a missing audience: web servers answer unknown paths
            # like this.
            spelling = " Or Multi-profile path is wrong." if request.operation is _MULTI_PROFILE else ""
            return _elsewhere(request, status, body, f"{_WHO_ANSWERED}{spelling}\n{_CHECK_DEPLOYMENT}")
        case 404:
            return _fail(NotFoundError, request, status, body, _what_is_missing(request))
        case 407:
            return _fail(FatalError, request, status, body)
        case 409 if request.operation is Operation.CREATE_AUDIENCE:
            return _fail(
                AudienceExistsError,
                request,
                status,
                body,
                'With if_exists="skip" or "update", CreateAudienceOperator keeps the existing audience.',
            )
        case _ if status in (408, 409, 423, 425, 429) or status >= HTTPStatus.INTERNAL_SERVER_ERROR:
            return _transient(request, status, headers, body, now)
        case _ if status >= HTTPStatus.BAD_REQUEST:
            return _refused(request, status, body, str((content or {}).get("Error", "")))
        case _ if status >= HTTPStatus.MULTIPLE_CHOICES:
            text = "Redirects are not followed: they would send the API key elsewhere.\nCorrect Base URL."
            return _elsewhere(request, status, body, text)
        case _ if request.operation is _MULTI_PROFILE:
            text = (
                "Only 204 means that memberships were changed.\n"
                "The deployment may not know this path: check Multi-profile path on the connection."
            )
            if "effects" in (content or {}) or _is_page(body):
                return _elsewhere(request, status, body, text)
            return _fail(UnexpectedAnswerError, request, status, body, text)
        case _:
            return _fail(UnexpectedAnswerError, request, status, body, _WHO_ANSWERED)


def _refused(request: Request[Result], status: int, body: bytes, said: str) -> RequestError:
    if _REQUIRES_TLS.search(body[:_LONGEST_TEXT].decode(errors="replace")):
        text = "That port requires TLS. Write https:// in Base URL on the connection."
        return _fail(FatalError, request, status, body, text)
    # Profile IDs and values may contain such a word.
    if _BLAMES_CONNECTION.search(said) and _BLAMES_CONNECTION.search(
        _mask(said, _spellings_of(request.private()))
    ):
        text = "Check Deployment host and Platform name on the connection."
        return _fail(FatalError, request, status, body, text)
    return _fail(RejectedError, request, status, body)


def _elsewhere(request: Request[Result], status: int, body: bytes, text: str) -> UnexpectedAnswerError:
    """Make the error of an answer which shows that the call had no effect."""
    error = _fail(UnexpectedAnswerError, request, status, body, text)
    error.is_unclear = False
    return error


def _transient(
    request: Request[Result], status: int, headers: Mapping[str, str], body: bytes, now: float
) -> TransientError:
    is_server = status >= HTTPStatus.INTERNAL_SERVER_ERROR
    text = f"If this persists: {_CHECK_DEPLOYMENT}" if is_server else None
    error = _fail(TransientError, request, status, body, text)
    error.is_unclear = is_server
    error.retry_after = parse_retry_after(headers.get("Retry-After"), now)
    error.reason = f"{status} (too many requests)" if status == HTTPStatus.TOO_MANY_REQUESTS else str(status)
    return error


def _what_is_missing(request: Request[Result]) -> str:
    spelling = ", Multi-profile path" if request.operation is _MULTI_PROFILE else ""
    connection = f"Deployment host (most likely){spelling} or Base URL on the connection is wrong."
    if request.changes or request.operation in _NAMES_AUDIENCE:
        return f"The audience does not exist in Talon.One,\nor {connection}"
    return f"The path does not exist: {connection}"


def _fail(
    kind: type[Kind], request: Request[Result], status: int, body: bytes, cure: str | None = None
) -> Kind:
    said, uuid, blames = _read_error_body(body)
    private = _spellings_of(request.private()) if said else ()

    def masked(text: str) -> str:
        return _mask_others(_mask(text, private)[:_LONGEST_READ], request.operation)

    page = " (an HTML page, which is not from Talon.One's API)" if not said and _is_page(body) else ""
    lines = [
        f"Talon.One answered {status}{page}.",
        f"It says: {_shorten(masked(said))}" if said else "",
        cure or _CURES.get(status, ""),
        f"RequestUUID {uuid}." if uuid else "",
    ]
    error = _failure(
        kind,
        request,
        "\n".join(line for line in lines if line),
        status=status,
        request_uuid=uuid,
        blames=tuple(Blame(blame.pointer, masked(blame.title), masked(blame.details)) for blame in blames),
    )
    error.body = body.decode(errors="replace")
    return error


def _read_error_body(body: bytes) -> tuple[str, str | None, tuple[Blame, ...]]:
    content = _json_object(body) or {}
    uuid = content.get("RequestUUID")
    said = [str(content[key]) for key in ("Error", "message") if content.get(key)]
    blames = []
    errors = content.get("errors")
    for error in errors if isinstance(errors, list) else []:
        if not isinstance(error, dict):
            continue
        given = error.get("source")
        source = given if isinstance(given, dict) else {}
        title, details = (str(error.get(key) or "") for key in ("title", "details"))
        if source.get("pointer"):
            blames.append(Blame(str(source["pointer"]), title, details))
        at = f"at {source['pointer']}" if source.get("pointer") else ""
        for key in ("parameter", "line", "resource"):
            if source.get(key) is not None:
                at = f"at {key} {source[key]}"
        said.append(" ".join(part for part in (title, details, at) if part))
    return "; ".join(part for part in said if part), str(uuid) if uuid else None, tuple(blames)


@cache
def _spellings(secret: str) -> re.Pattern[bytes]:
    r"""Match a key, also if JSON escapes characters of it once or twice: ``\/``, ``\u002b``, ``\\u002b``."""
    # The number of backslashes is bounded, so that a long run of them does not take quadratic time.
    patterns = (rf"\\{{0,3}}(?:{re.escape(char)}|u00{ord(char):02x})" for char in secret)
    return re.compile("".join(patterns).encode(), re.IGNORECASE)


# What the percent-encodings of Python, Go and JavaScript leave as it is.
_NOT_ENCODED = ("", "/", "$&+=:@", "!'()*")
_GOS_JSON = str.maketrans({"&": r"\u0026", "<": r"\u003c", ">": r"\u003e"})


def _spellings_of(private: Iterable[str]) -> set[str]:
    """Return profile IDs and attribute values that were sent, as an answer may quote them."""
    found = set()
    for value in private:
        entities, quoted = html.escape(value), json.dumps(value, ensure_ascii=False)[1:-1]
        found |= {
            value,
            quoted,
            quoted.translate(_GOS_JSON),
            json.dumps(value)[1:-1],
            quote_plus(value),
            *(quote(value, safe=safe) for safe in _NOT_ENCODED),
            entities,
            entities.replace("&#x27;", "&#39;").replace("&quot;", "&#34;"),
            _as_go_prints(value),
        }
    return found - {""}


def _as_go_prints(value: str) -> str:
    """Return a number as Go prints it from a million on, as in ``1.5e+06``; other text as it is."""
    try:
        number = Decimal(repr(float(value)))
    except ValueError:
        return value
    mantissa, _, exponent = f"{number.normalize():e}".partition("e")
    return f"{mantissa}e{int(exponent):+03d}" if exponent else value


def _mask(text: str, private: Iterable[str]) -> str:
    """Mask what ``_spellings_of`` returned, in a text for logs."""
    lower = text.lower()
    # A plain word only as it was sent: the value "Unknown" must not hide the answer's "unknown".
    found = [each for each in private if each in text or (not each.isalpha() and each.lower() in lower)]
    for spelling in sorted(found, key=len, reverse=True):
        flags = re.NOFLAG if spelling.isalpha() else re.IGNORECASE
        text = re.sub(rf"(?<!\w){re.escape(spelling)}(?!\w)", "***", text, flags=flags)
    return text


# They begin where a word begins, and a quotation has the length of an ID at most: otherwise a long text would
# take quadratic time.
_EMAIL = re.compile(r"(?<![^\s'\"<>(),;:])[^\s'\"<>(),;:]+@[^\s'\"<>(),;]+")
_QUOTED = re.compile(rf"(?<!\w)(['\"`])(?=\S)(.{{1,{MAX_LENGTH}}}?)\1(?!\w)")
# A word with a digit and a letter in it, or a long number.
_LIKE_AN_ID = re.compile(r"(?<![\w.+-])(?=[\w.+-]*\d)(?=[\w.+-]*[^\W\d_])[\w.+-]+|(?<!\w)\d{5,}(?!\w)")


def _mask_others(text: str, operation: Operation) -> str:
    """Mask e-mail addresses; in the text of a call for many profiles, everything that may be an ID."""
    text = _EMAIL.sub("***", text)
    if operation is _MULTI_PROFILE:
        text = _LIKE_AN_ID.sub("***", _QUOTED.sub(r"\1***\1", text))
    return text


def _shorten(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= _LONGEST_TEXT else text[:_LONGEST_TEXT] + " ..."


def _is_cut_off(headers: Mapping[str, str], body: bytes) -> bool:
    """Whether an answer that is not JSON is the beginning of it. Without a length no client notices that."""
    if len(body) >= MAX_ANSWER or "Content-Length" in headers or "Transfer-Encoding" in headers:
        return False
    # Nothing can be read of the first bytes of a compressed answer.
    return not body or body.lstrip().startswith(b"{")


def _is_page(body: bytes) -> bool:
    return body.lstrip().startswith(b"<")


def _decompress(encoding: str, body: bytes) -> bytes:
    """Decompress the beginning of a body; return it as it is if not compressed, and empty if that fails."""
    if encoding.strip().lower() not in ("gzip", "x-gzip", "deflate"):
        return body
    # zlib with a header, gzip, and deflate without a header, which some servers send.
    for window in (32 + zlib.MAX_WBITS, -zlib.MAX_WBITS):
        try:
            return zlib.decompressobj(window).decompress(body, MAX_ANSWER)
        except zlib.error:
            continue
    return b""


def _json_object(body: bytes) -> dict[str, Any] | None:
    try:
        content = orjson.loads(body)
    except ValueError:
        try:
            # Unlike orjson it reads numbers outside the range of a double, which an answer may quote.
            content = json.loads(body)
        except (ValueError, RecursionError):
            return None
    return content if isinstance(content, dict) else None
