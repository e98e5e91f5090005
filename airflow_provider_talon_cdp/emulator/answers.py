"""What the emulator answers: plain values, and Talon.One's two shapes of an error body. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus

from airflow_provider_talon_cdp.emulator.exact_json import Json, dumps

JSON = "application/json"
TEXTS = {401: "Missing Session Token", 404: "Not Found", 429: "Too many requests"}
"""The documented error texts, as far as they are the same for every call."""


@dataclass(frozen=True)
class EmulatorAnswer:
    """One HTTP answer.

    ``media_type`` is ``None`` when there is no body. ``pieces`` is a body that is made while it is sent.
    """

    status: int
    body: bytes = b""
    media_type: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    pieces: Iterable[bytes] | None = None


@dataclass(frozen=True)
class FieldError:
    """One entry of the deployment's error body: what is wrong with the attribute of that name."""

    title: str
    details: str
    attribute: str

    def as_json(self) -> dict[str, Json]:
        """The entry as Talon.One spells it; the pointer is a JSON pointer (RFC 6901)."""
        name = self.attribute.replace("~", "~0").replace("/", "~1")
        return {"title": self.title, "details": self.details, "source": {"pointer": f"/attributes/{name}"}}


class RefusedError(Exception):
    """The request is answered with an error status, and none of it takes effect.

    Args:
        status: HTTP status, 400 or above.
        message: what the error body says.
        errors: when given, the body has the shape that comes from the deployment itself.
        headers: extra answer headers, such as ``Retry-After``.
    """

    def __init__(
        self,
        status: int,
        message: str,
        errors: tuple[FieldError, ...] = (),
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.message = message
        self.errors = errors
        self.headers = dict(headers or {})


def json_answer(status: int, value: Json, headers: Mapping[str, str] | None = None) -> EmulatorAnswer:
    """An answer with a JSON body."""
    return EmulatorAnswer(status, dumps(value).encode("ascii"), JSON, dict(headers or {}))


def error_answer(refusal: RefusedError, request_uuid: str) -> EmulatorAnswer:
    """The answer to a refused request, in the shape that fits it (Talon.One Third-party API reference).

    Only the first shape has a place for the RequestUUID; for the other the emulator's request log keeps
    it.
    """
    if refusal.errors:
        body: dict[str, Json] = {"message": refusal.message, "errors": [e.as_json() for e in refusal.errors]}
    else:
        body = {"StatusCode": refusal.status, "Error": refusal.message, "RequestUUID": request_uuid}
    return json_answer(refusal.status, body, refusal.headers)


def phrase(status: int) -> str:
    """What Talon.One says with an HTTP status where that is documented, else the standard words."""
    if status in TEXTS:
        return TEXTS[status]
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return f"Status {status}"
