"""The errors of requests that got no answer. Pure."""

from __future__ import annotations

import re
import ssl

from airflow_provider_talon_cdp.api.request import Request, Result
from airflow_provider_talon_cdp.exceptions import FatalError, TransientError

# Of its own checks and of the server's alerts; some servers say of a missing client certificate just that they deny access.
_OVER_CERTIFICATES = re.compile("CERTIFICATE|UNKNOWN_CA|ACCESS_DENIED")


def connection_error(request: Request[Result], base_url: str, what: str, *, sent: bool) -> TransientError:
    """Make the error of a request that got no answer.

    Args:
        request: What was asked.
        base_url: Where; without secrets, as ``Settings`` normalises it.
        what: What happened, e.g. ``timed out``.
        sent: False when no connection came about.
    """
    error = TransientError(
        f"{request.operation.value}: no answer from Talon.One at {base_url} ({what}). If this goes on, check the "
        "connection's Base URL and proxies, and the network.",
        method=request.method,
        path=request.path,
    )
    error.sent = sent
    return error


def tls_error(request: Request[Result], base_url: str, cause: ssl.SSLError | None) -> FatalError:
    """Make the error of a TLS connection that did not come about, or that the server ended over our certificate.

    Args:
        request: What was asked.
        base_url: Where; without secrets, as ``Settings`` normalises it.
        cause: What OpenSSL found.
    """
    reason = getattr(cause, "reason", None) or "no reason given"
    if _OVER_CERTIFICATES.search(reason):
        text = (
            f"a TLS certificate was not accepted, the server's or ours ({reason}). Set 'verify' in the connection's extra to "
            "the path of your CA bundle, or 'cert' to your client certificate and its key."
        )
    else:
        text = (
            f"what answers at {base_url} does not speak TLS as expected ({reason}). Check host and port of Base URL on the "
            "connection; a server on this machine may want http:// there, and one that asks for client certificates "
            "'cert' in the extra."
        )
    return FatalError(f"{request.operation.value}: {text}", method=request.method, path=request.path)
