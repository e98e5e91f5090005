"""The errors of requests that got no answer. Pure."""

from __future__ import annotations

from airflow_provider_talon_cdp.api.request import Request, Result
from airflow_provider_talon_cdp.exceptions import FatalError, TransientError


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


def tls_error(request: Request[Result]) -> FatalError:
    """Make the error of a connection that failed over certificates."""
    return FatalError(
        f"{request.operation.value}: a TLS certificate was not accepted, the server's or ours. Set 'verify' in the "
        "connection's extra to the path of your CA bundle, or 'cert' to your client certificate and its key.",
        method=request.method,
        path=request.path,
    )
