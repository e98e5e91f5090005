"""Every error of this package, named by what the caller should do: docs/red.md has them in a table.

A message is a few short lines: what happened, the numbers, what to do. Airflow's UI does not wrap lines.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, TypeVar

if TYPE_CHECKING:
    from airflow_provider_talon_cdp.sync.report import Report


class TalonCdpError(Exception):
    """Base of every error of this package.

    Attributes:
        retryable: Whether another try of the task could succeed without a change by a person.
    """

    retryable: ClassVar[bool] = False
    _bases: ClassVar[tuple[type[Exception], ...]] = ()
    """The bases of a class that ``also_of`` made."""

    def __reduce__(self) -> tuple[Any, ...]:
        """Have pickle and copy keep the attributes; by default they call the constructor with the text."""
        return _without_init, (self._bases or (type(self),), self.args), vars(self)


def also_of(base: type[Exception], error: TalonCdpError) -> TalonCdpError:
    """Return a copy of an error that is also of another class, such as Airflow's for errors without retry."""
    copied = _without_init((type(error), base), error.args)
    vars(copied).update(vars(error))
    return copied


def _without_init(bases: tuple[type[Any], ...], args: tuple[Any, ...]) -> TalonCdpError:
    kind = bases[0] if len(bases) == 1 else _class_of(bases)
    error: TalonCdpError = kind.__new__(kind, *args)
    return error


@cache
def _class_of(bases: tuple[type[Any], ...]) -> type[Any]:
    return type(bases[0].__name__, bases, {"__module__": bases[0].__module__, "_bases": bases})


class InvalidInputError(TalonCdpError, ValueError):
    """A value cannot be used; no request was sent with it. Another try fails in the same way."""


def unreadable_time() -> InvalidInputError:
    """Return the value for a time that Python cannot represent, so that only its row is rejected."""
    return InvalidInputError(
        "holds a time that Python cannot represent: infinity, or before the year 1 or after 9999"
    )


class Blame(NamedTuple):
    """One fault that an answer reports.

    Args:
        pointer: JSON pointer into the request's body, e.g. ``/attributes/Language``.
        title: The fault.
        details: More about the fault; may quote the value.
    """

    pointer: str
    title: str
    details: str


Kind = TypeVar("Kind", bound="RequestError")


class RequestError(TalonCdpError):
    """A request to Talon.One that failed.

    Args:
        message: What went wrong and what to do, in short lines.
        method: HTTP method of the request.
        path: Path of the request, percent-encoded, without the host.
        status: HTTP status, or None if there was no answer.
        request_uuid: Talon.One's ``RequestUUID``, for its support.
        blames: The faults that the answer reports.

    Attributes:
        body: The answer's body as text, at most its first 1 MB.
        retry_after: Seconds that the answer asks to wait, or None.
        repeated: Whether an earlier attempt of the call got no clear answer, so that it may have had its
            effect.
        is_unclear: Whether the failed attempt may have had its effect.
    """

    is_unclear: bool = False

    def __init__(
        self,
        message: str,
        *,
        method: str,
        path: str,
        status: int | None = None,
        request_uuid: str | None = None,
        blames: tuple[Blame, ...] = (),
    ) -> None:
        super().__init__(message)
        self.method = method
        self.path = path
        self.status = status
        self.request_uuid = request_uuid
        self.blames = blames
        self.body = ""
        self.retry_after: float | None = None
        self.repeated = False

    def explain(self, more: str) -> None:
        """Add lines to the message, as notes (``add_note``) are not shown in every Airflow log."""
        self.args = (f"{self}\n{more}",)

    def become(self, kind: type[Kind], message: str) -> Kind:
        """Return an error of another class about the same answer."""
        error = kind(
            message,
            method=self.method,
            path=self.path,
            status=self.status,
            request_uuid=self.request_uuid,
            blames=self.blames,
        )
        error.body, error.retry_after, error.repeated = self.body, self.retry_after, self.repeated
        return error


class FatalError(RequestError):
    """Every other request of this run would fail too. Another try fails in the same way."""


class AuthenticationError(FatalError):
    """401 or 403: the API key is missing, wrong, expired, of another type, or not allowed here.

    Another try fails until a person changes the connection.
    """


class UnexpectedAnswerError(FatalError):
    """An answer that is not in the API's contract, so that the outcome of the call is unknown.

    Usually the connection leads to another server. Another try fails until a person changes it.

    Attributes:
        is_unclear: As in ``RequestError``; False if another server has certainly answered.
    """

    is_unclear = True


class RejectedError(RequestError):
    """400, 404 and the like: Talon.One refuses the content of this one request, and would refuse it again."""


class NotFoundError(RejectedError):
    """404: the audience, the deployment or the path does not exist. Another try fails in the same way.

    Attributes:
        audiences: IDs of the audiences in a bulk request, or empty.
    """

    audiences: Sequence[str] = ()


class AudienceExistsError(RejectedError):
    """409 on Create audience: the audience ID exists already. Another try fails in the same way."""


class UnclearError(RequestError):
    """A call that runs rules got no clear answer, and was not sent again.

    The rules may have run, so another try may give a coupon or points twice. A person has to check first.
    """

    is_unclear = True


class TransientError(RequestError):
    """429, 5xx, a conflict between requests on one profile, a reset or a timeout. Another try may succeed.

    Attributes:
        is_unclear: As in ``RequestError``; False if nothing was sent, or if the answer is below 500.
        reason: What happened in a few words, e.g. ``503`` or ``no answer (timed out)``.
    """

    retryable = True
    is_unclear = True
    reason = "no answer"


class GuardError(TalonCdpError):
    """The plan changes more than the guard allows; nothing was sent. Another try plans the same.

    Args:
        message: The numbers and what to do.
        allow: The arguments that would allow the plan, with commas between them, or None.
    """

    def __init__(self, message: str, allow: str | None = None) -> None:
        super().__init__(message)
        self.allow = allow


class LedgerError(TalonCdpError):
    """The ledger cannot be used: damaged, or of another connection. Another try fails in the same way."""


class LedgerUnavailableError(LedgerError):
    """The ledger is in use by another run, or its storage does not answer. Another try may succeed."""

    retryable = True


class LedgerBusyError(LedgerUnavailableError):
    """Another run holds the ledger's lock, and nothing was sent. Another try may succeed."""


class RejectedRecordsError(TalonCdpError):
    """More records were rejected than ``max_rejected`` allows; all others were sent.

    Another try would have the same records rejected.

    Args:
        message: The counts by reason and what to do.
        report: The report of the sync.
    """

    def __init__(self, message: str, report: Report) -> None:
        super().__init__(message)
        self.report = report


class SpoolError(TalonCdpError):
    """The worker's temporary disk is full or cannot be used. Another try may succeed on another worker."""

    retryable = True


class StoppedError(TalonCdpError):
    """The task was told to stop, e.g. as somebody marked it failed. Another try sends the rest."""

    retryable = True


class OlderRunError(TalonCdpError):
    """This run has older data than the ledger; nothing was sent. Another try has the same data."""

    allow: ClassVar[str] = "on_older_run='allow'"
