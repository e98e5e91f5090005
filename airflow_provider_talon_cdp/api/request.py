"""A request, and what its answer holds. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Generic, TypeAlias, TypeVar


class Operation(Enum):
    """A call of the API, by its name in Talon.One's reference."""

    CREATE_AUDIENCE = "Create audience"
    UPDATE_AUDIENCE = "Update audience"
    DELETE_AUDIENCE = "Delete audience"
    UPDATE_PROFILE = "Update customer profile"
    UPDATE_PROFILE_AUDIENCES = "Update customer profile audiences"
    UPDATE_PROFILES_AUDIENCES = "Update audiences in multiple customer profiles"


@dataclass(frozen=True)
class Audience:
    """An audience as Talon.One answers it.

    Args:
        id: Internal ID, an integer >= 1.
        integration_id: External ID, the one in the CDP.
        name: Display name.
        integration: The platform's name.
        created: RFC 3339 time.
        account_id: Talon.One account, or None where the answer has none.
    """

    id: int
    integration_id: str
    name: str
    integration: str | None = None
    created: str | None = None
    account_id: int | None = None


IntegrationState: TypeAlias = dict[str, Any]
"""What a profile call answers: ``effects``, ``createdCoupons``, ``createdReferrals`` and perhaps more."""

Result = TypeVar("Result", bound=Audience | IntegrationState | None)


@dataclass(frozen=True)
class Request(Generic[Result]):
    """One HTTP request, without the connection's headers; the type parameter is what its answer holds.

    Args:
        operation: Which call it is; ``answers.py`` reads the answer by it.
        method: HTTP method.
        path: Path and query, percent-encoded, starting with ``/``.
        body: JSON in UTF-8, or None.
        changes: Membership changes in it.
        private: Profile IDs and attribute values in it, which are masked in error texts; or what returns them, as few
            requests ever need them.
    """

    operation: Operation
    method: str
    path: str
    # Bodies hold profile IDs and attribute values, which do not belong in a log.
    body: bytes | None = field(default=None, repr=False)
    changes: int = 0
    private: tuple[str, ...] | Callable[[], Iterable[str]] = field(default=(), repr=False)
