"""Every error of this package, named by what the caller should do about it.

| class | what to do |
| --- | --- |
| ``InvalidInputError`` | mend the argument, the connection or the query; nothing was sent |
| ``FatalError`` | stop: no other request of this run would fare better |
| ``RejectedError`` | mend this one request; others may go on |
| ``TransientError`` | wait and send the same request again |
| ``GuardError`` | look at the numbers; allow them with the argument that is named, or mend the query |
| ``LedgerError`` | mend the state URI, or wait for the other run; nothing was sent |
| ``RejectedRecordsError`` | everything good was sent; mend the records that were counted |
"""

from __future__ import annotations

from collections.abc import Sequence
from http import HTTPStatus
from typing import TYPE_CHECKING, ClassVar, NamedTuple

if TYPE_CHECKING:
    from airflow_provider_talon_cdp.sync.report import Report


class TalonCdpError(Exception):
    """Base of every error of this package.

    Attributes:
        retryable: Whether another try of the task could succeed without a change by a person.
    """

    retryable: ClassVar[bool] = False


class InvalidInputError(TalonCdpError, ValueError):
    """A value that cannot be sent; it was found before any request left."""


class Blame(NamedTuple):
    """What an answer blames.

    Args:
        pointer: JSON pointer into the request's body, e.g. ``/attributes/Language``.
        title: What is wrong with it.
        details: More of that; it may quote the value.
    """

    pointer: str
    title: str
    details: str


class RequestError(TalonCdpError):
    """A request to Talon.One that did not succeed.

    Args:
        message: What went wrong and what to do, one sentence or two.
        method: HTTP method of the request.
        path: Path of the request, percent-encoded, without the host.
        status: HTTP status, or None when no answer came.
        body: The answer's body as text, whole.
        request_uuid: Talon.One's ``RequestUUID``; its support asks for it.
        blames: The attributes that the answer blames.
        retry_after: Seconds that the answer asks to wait, or None.

    Attributes:
        repeated: Whether an earlier attempt of the call got no clear answer, so that it may have had its effect.
    """

    def __init__(
        self,
        message: str,
        *,
        method: str,
        path: str,
        status: int | None = None,
        body: str = "",
        request_uuid: str | None = None,
        blames: tuple[Blame, ...] = (),
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message)
        self.method = method
        self.path = path
        self.status = status
        self.body = body
        self.request_uuid = request_uuid
        self.blames = blames
        self.retry_after = retry_after
        self.repeated = False

    @property
    def is_unclear(self) -> bool:
        """Whether this attempt may have had its effect all the same."""
        return False

    def explain(self, more: str) -> None:
        """Add a sentence to the message; notes (``add_note``) are not shown in every Airflow log."""
        self.args = (f"{self} {more}",)


class FatalError(RequestError):
    """No other request of this run would fare better: stop and tell a person."""


class AuthenticationError(FatalError):
    """401 or 403: the API key is missing, wrong, expired, of another type, or not allowed here."""


class UnexpectedAnswerError(FatalError):
    """An answer that the API contract does not know, so that nothing can be concluded from it."""

    @property
    def is_unclear(self) -> bool:
        """As any answer that says nothing."""
        return True


class RejectedError(RequestError):
    """400, 404 and the like: Talon.One refuses the content of this one request."""


class NotFoundError(RejectedError):
    """404: the audience, or the path on this host, does not exist.

    Attributes:
        audiences: IDs of the audiences that a request for many changed, or none.
    """

    audiences: Sequence[str] = ()


class AudienceExistsError(RejectedError):
    """409 on Create audience: the audience ID is taken."""


class TransientError(RequestError):
    """429, 5xx, a conflict between requests on one profile, a reset or a timeout: send it again later.

    Attributes:
        sent: Whether the request, or a part of it, may have left.
    """

    retryable = True
    sent = True

    @property
    def is_unclear(self) -> bool:
        """Whether there was no answer, or one that does not rule it out."""
        return self.sent if self.status is None else self.status >= HTTPStatus.INTERNAL_SERVER_ERROR


class GuardError(TalonCdpError):
    """The plan would change more than the guard allows; nothing was sent."""


class LedgerError(TalonCdpError):
    """The ledger cannot be used: damaged, of another connection, in use, or not to be read or written."""


class LedgerUnavailableError(LedgerError):
    """The ledger is in use by another run, or its storage does not answer. Another try may succeed."""

    retryable = True


class LedgerBusyError(LedgerUnavailableError):
    """Another run has the ledger, and nothing was sent."""


class RejectedRecordsError(TalonCdpError):
    """Everything good was sent, and more records were refused than ``max_rejected`` allows.

    Args:
        message: The counts by reason and what to do.
        report: How far the sync came.
    """

    def __init__(self, message: str, report: Report) -> None:
        super().__init__(message)
        self.report = report


class SpoolError(TalonCdpError):
    """The worker's temporary disk is full or cannot be used; another worker, or this one later, may do better."""


class StoppedError(TalonCdpError):
    """The task was told to stop, for example as somebody marked it failed."""


class OlderRunError(TalonCdpError):
    """This run has older data than the ledger holds; nothing was sent."""
