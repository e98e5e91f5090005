"""An HTTP answer as a result or an error. Pure, and the one place that reads Talon.One's two error shapes.

Source: Talon.One's Third-party API reference. An error of the CDP service is
``{"StatusCode", "Error", "RequestUUID"}``; one that comes from the deployment behind it is
``{"message", "errors": [{"title", "details", "source": {"pointer"}}]}``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from functools import cache
from http import HTTPStatus
from typing import Any, cast

import orjson

from airflow_provider_talon_cdp.api.request import Audience, Operation, Request, Result
from airflow_provider_talon_cdp.api.retry import parse_retry_after
from airflow_provider_talon_cdp.exceptions import (
    AudienceExistsError,
    AuthenticationError,
    Blame,
    FatalError,
    NotFoundError,
    RejectedError,
    RequestError,
    TransientError,
    UnexpectedAnswerError,
)

_SUCCESS = {
    Operation.CREATE_AUDIENCE: 201,
    Operation.UPDATE_AUDIENCE: 200,
    Operation.DELETE_AUDIENCE: 204,
    Operation.UPDATE_PROFILE: 200,
    Operation.UPDATE_PROFILE_AUDIENCES: 200,
    # 204 alone: a 200 here means that another route took the request, and no membership changed.
    Operation.UPDATE_PROFILES_AUDIENCES: 204,
}
_LONGEST_TEXT = 500


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
        request: What was asked.
        status: HTTP status.
        headers: The answer's headers, case-insensitive.
        body: The answer's body.
        now: Seconds since the epoch; a ``Retry-After`` may be a date.
        secret: The API key, which no error may quote even where the answer does.

    Returns:
        The audience, the integration state, or None, as the request's type says.

    Raises:
        RequestError: Everything but the documented success.
    """
    if secret and (b"\\" in body or secret.encode() in body):
        body = _spellings(secret).sub(b"***", body)
    if status != _SUCCESS[request.operation]:
        raise _error(request, status, headers, body, now)
    return cast("Result", _result(request, status, body))


_WHO_ANSWERED = (
    "Something else than Talon.One may have answered: check the connection's Base URL and the proxy."
)
_CURES = {
    400: "Talon.One refuses the request's content.",
    401: (
        "The API key is missing, wrong or expired (CDP keys always expire), or is not of type Customer Data Platform. "
        "Put a valid key into the connection."
    ),
    403: "The API key may not do this. Use a third-party key of type Customer Data Platform for this deployment.",
    407: "The proxy wants authentication. Check the connection's proxies.",
    409: "Another request on the same profile is in flight.",
    429: "Too many requests, or parallel requests on one profile.",
}


def _result(request: Request[Result], status: int, body: bytes) -> Audience | dict[str, Any] | None:
    if status == HTTPStatus.NO_CONTENT:
        return None
    content = _json_object(body)
    if content is None:
        raise _fail(
            UnexpectedAnswerError, request, status, body, f"The answer is not a JSON object. {_WHO_ANSWERED}"
        )
    if request.operation not in (Operation.CREATE_AUDIENCE, Operation.UPDATE_AUDIENCE):
        # The contract has it in every answer, empty as a rule.
        if not isinstance(content.get("effects"), list):
            cure = f"The answer holds no integration state, so the profile cannot be taken as updated. {_WHO_ANSWERED}"
            raise _fail(UnexpectedAnswerError, request, status, body, cure)
        return content
    if not isinstance(content.get("id"), int):
        raise _fail(
            UnexpectedAnswerError, request, status, body, f"The answer holds no audience. {_WHO_ANSWERED}"
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
    match status:
        case 401 | 403:
            return _fail(AuthenticationError, request, status, body)
        case 404 if _json_object(body) is None:
            # Nothing says that an audience is missing: any web server answers so to a path that it does not know.
            spelling = " Or Multi-profile path is wrong." if _is_multi_profile(request) else ""
            return _fail(UnexpectedAnswerError, request, status, body, f"{_WHO_ANSWERED}{spelling}")
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
                'With if_exists="skip" or "update", CreateAudienceOperator keeps an audience that has this ID already.',
            )
        case 408 | 409 | 425 | 429:
            return _fail(TransientError, request, status, body, retry_after=_retry_after(headers, now))
        case _ if status >= HTTPStatus.INTERNAL_SERVER_ERROR:
            return _fail(TransientError, request, status, body, retry_after=_retry_after(headers, now))
        case _ if status >= HTTPStatus.BAD_REQUEST:
            if _blames_connection(request, body):
                return _fail(
                    FatalError,
                    request,
                    status,
                    body,
                    "Check Deployment host and Platform name on the connection.",
                )
            return _fail(RejectedError, request, status, body)
        case _ if status >= HTTPStatus.MULTIPLE_CHOICES:
            cure = "Redirects are not followed: they would carry the API key elsewhere. Set Base URL to where the API is."
            return _fail(UnexpectedAnswerError, request, status, body, cure)
        case _ if _is_multi_profile(request):
            cure = (
                "A membership update is answered with 204 alone, so no membership can be taken as changed. The "
                "deployment may not know this spelling of the path: check Multi-profile path on the connection."
            )
            return _fail(UnexpectedAnswerError, request, status, body, cure)
        case _:
            return _fail(UnexpectedAnswerError, request, status, body, _WHO_ANSWERED)


def _what_is_missing(request: Request[Result]) -> str:
    names_audience = request.changes or request.operation in (
        Operation.UPDATE_AUDIENCE,
        Operation.DELETE_AUDIENCE,
    )
    missing = "The audience does not exist in Talon.One, or" if names_audience else "There is no such path:"
    spelling = " or Multi-profile path" if _is_multi_profile(request) else ""
    return f"{missing} Base URL{spelling} on the connection is wrong."


def _is_multi_profile(request: Request[Result]) -> bool:
    return request.operation is Operation.UPDATE_PROFILES_AUDIENCES


def _retry_after(headers: Mapping[str, str], now: float) -> float | None:
    return parse_retry_after(headers.get("Retry-After"), now)


def _fail(
    kind: type[RequestError],
    request: Request[Result],
    status: int,
    body: bytes,
    cure: str | None = None,
    retry_after: float | None = None,
) -> RequestError:
    text = body.decode(errors="replace")
    said, uuid, blames = _read_error_body(body)
    message = f"{request.operation.value}: Talon.One answered {status}"
    if said:
        private = _private(request)
        blames = tuple(Blame(each.pointer, *(_mask(text, private) for text in each[1:])) for each in blames)
        message += f" ({_shorten(_mask(said, private))})"
    elif text.lstrip().startswith("<"):
        message += " (an HTML page, so not from Talon.One's API)"
    message += f". {cure or _CURES.get(status, '')}".rstrip()
    if uuid:
        message += f" RequestUUID {uuid}."
    return kind(
        message,
        method=request.method,
        path=request.path,
        status=status,
        body=text,
        request_uuid=uuid,
        blames=blames,
        retry_after=retry_after,
    )


def _read_error_body(body: bytes) -> tuple[str, str | None, tuple[Blame, ...]]:
    content = _json_object(body) or {}
    uuid = content.get("RequestUUID")
    said = [str(content[key]) for key in ("Error", "message") if content.get(key)]
    blames = []
    errors = content.get("errors")
    for each in errors if isinstance(errors, list) else []:
        if not isinstance(each, dict):
            continue
        source = each.get("source")
        pointer = source.get("pointer") if isinstance(source, dict) else None
        title, details = (str(each.get(key) or "") for key in ("title", "details"))
        if pointer:
            blames.append(Blame(str(pointer), title, details))
        said.append(" ".join(part for part in (title, details, f"at {pointer}" if pointer else "") if part))
    return "; ".join(part for part in said if part), str(uuid) if uuid else None, tuple(blames)


def _blames_connection(request: Request[Result], body: bytes) -> bool:
    content = _json_object(body) or {}
    # Without what was sent: a profile ID may hold such a word.
    said = _mask(str(content.get("Error", "")), _private(request))
    words = r"deployment|customer-data-platform-name|destination-hostname"
    return bool(re.search(words, said, re.IGNORECASE))


def _private(request: Request[Result]) -> list[str]:
    return list(request.private() if callable(request.private) else request.private)


@cache
def _spellings(secret: str) -> re.Pattern[bytes]:
    r"""Match a key also where JSON, or JSON within JSON, escapes some of it: ``\/``, ``\u002b``, ``\\u002b``."""
    # A bounded number of backslashes: a long run of them in an answer must not cost its square.
    spelt = (rf"\\{{0,3}}(?:{re.escape(each)}|u00{ord(each):02x})" for each in secret)
    return re.compile("".join(spelt).encode(), re.IGNORECASE)


def _mask(text: str, private: Iterable[str]) -> str:
    """Take profile IDs and attribute values that were sent out of a text that goes to logs."""
    # An answer may quote an ID as it stands in JSON.
    spellings = {
        spelling
        for each in private
        for spelling in (each, json.dumps(each)[1:-1], json.dumps(each, ensure_ascii=False)[1:-1])
    }
    for each in sorted((each for each in spellings if each and each in text), key=len, reverse=True):
        text = re.sub(rf"(?<!\w){re.escape(each)}(?!\w)", "***", text)
    return text


def _shorten(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= _LONGEST_TEXT else text[:_LONGEST_TEXT] + " ..."


def _json_object(body: bytes) -> dict[str, Any] | None:
    try:
        content = orjson.loads(body)
    except ValueError:
        try:
            # It reads numbers beyond a double, which a profile may have and an answer repeat.
            content = json.loads(body)
        except (ValueError, RecursionError):
            return None
    return content if isinstance(content, dict) else None
