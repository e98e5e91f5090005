"""A local Talon.One CDP API: for demos, for this provider's tests, and for the tests of your own DAGs.

Talon.One has no sandbox for its generic CDP API. This package answers the same seven calls on your
machine, keeps what they did, and lets you look at it: over Python (:class:`Emulator`), over HTTP and on
a page for people.

    with Emulator() as talon:
        connection = Connection(**talon.connection())
        ...
        assert talon.members("vip") == {"anna", "bert"}

It needs Starlette, uvicorn and Jinja2 (``pip install 'airflow-provider-talon-cdp[emulator]'``) and nothing of
Airflow. It shares no code with the client, on purpose: it is a second reading of the contract, so a
wrong path in one shows.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from airflow_provider_talon_cdp.emulator.server import Emulator as Emulator

__all__ = ["Emulator"]

MISSING_PARTS = (
    "The Talon.One emulator needs Starlette, uvicorn and Jinja2: "
    "pip install 'airflow-provider-talon-cdp[emulator]'"
)


def __getattr__(name: str) -> object:
    """Import :class:`Emulator` when it is asked for, so that a missing extra gives one clear error.

    Raises:
        ImportError: Starlette, uvicorn or Jinja2 is not installed.
    """
    if name != "Emulator":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        from airflow_provider_talon_cdp.emulator.server import Emulator  # noqa: PLC0415 - see above
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] not in {"starlette", "uvicorn", "jinja2"}:
            raise
        raise ImportError(MISSING_PARTS) from error
    return Emulator
