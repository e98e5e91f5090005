"""Why Talon.One refused a profile, in words that count alike refusals together and hold no value. Pure."""

from __future__ import annotations

import re
from collections.abc import Collection

from airflow_provider_talon_cdp.exceptions import Blame, RejectedError

_ATTRIBUTE = re.compile(r"/attributes/([^/]+)")
# Talon.One does not publish its texts; these are the ways to say it.
_NOT_DEFINED = re.compile(
    r"unknown|undefined|not (been )?(defined|found|exist|recogni[sz]ed)|does(n't| not) exist|non-?existing",
    re.IGNORECASE,
)
_NAMED = 3
_LONGEST = 80
_MOST = 50
OTHERS = "other reasons"
UNDEFINED = "is not defined"


def reason_of(error: RejectedError) -> str:
    """Say why one profile was refused.

    Args:
        error: Talon.One's answer.

    Returns:
        Names of attributes and what is wrong with them, where the answer tells; else the status. Without an answer, what
        the error says.
    """
    if error.status is None:
        return str(error)
    faults = sorted({fault for blame in error.blames if (fault := _fault(blame))})
    if not faults:
        return f"refused by Talon.One ({error.status})"
    more = f" and {len(faults) - _NAMED} more" if len(faults) > _NAMED else ""
    return "; ".join(faults[:_NAMED]) + more


def within(reasons: Collection[str], reason: str) -> str:
    """Return a reason, or one name for all others where there are too many of them already."""
    return reason if reason in reasons or len(reasons) < _MOST else OTHERS


def _fault(blame: Blame) -> str | None:
    found = _ATTRIBUTE.match(blame.pointer)
    if not found:
        return None
    # The escapes of JSON pointers (RFC 6901).
    name = found[1].replace("~1", "/").replace("~0", "~")
    if _NOT_DEFINED.search(f"{blame.title} {blame.details}"):
        return f"attribute {name!r} {UNDEFINED}"
    title = " ".join(blame.title.split())[:_LONGEST]
    return f"attribute {name!r} was refused" + (f" ({title})" if title else "")
