"""``python -m airflow_provider_talon_cdp.emulator``: the emulator for a terminal."""

from __future__ import annotations

import argparse
import json
import signal
import sys
import threading
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from airflow_provider_talon_cdp.emulator.server import Emulator, EmulatorOptions

DEFAULT_PORT = 8765


class _Mistake(Exception):  # noqa: N818 - of the user, not of the program
    """What to tell the user instead of starting."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run until Ctrl-C or SIGTERM.

    Args:
        arguments: of the command line; ``None`` for those of the process.

    Returns:
        The exit status: 0 after Ctrl-C or SIGTERM, 1 when it cannot start or cannot write its state
        file, 2 for arguments that do not fit.
    """
    options = _parser().parse_args(arguments)
    try:
        return _run(options)
    except _Mistake as mistake:
        print(f"talon emulator: {mistake}", file=sys.stderr)
        return 1


def _run(options: argparse.Namespace) -> int:
    # Before the server starts: a signal that comes while it does is kept, not lost.
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    emulator = _emulator(options)
    from airflow_provider_talon_cdp.emulator.state_file import StateFileError  # noqa: PLC0415 - as below

    try:
        with ExitStack() as running:
            try:
                running.enter_context(emulator)
            except (OSError, OverflowError) as error:
                text = error.strerror if isinstance(error, OSError) else str(error)
                raise _Mistake(f"cannot listen on {options.host}:{options.port}: {text}") from error
            print(_greeting(emulator, options), flush=True)
            stop.wait()
    except StateFileError as error:
        raise _Mistake(str(error)) from error
    return 0


def _emulator(options: argparse.Namespace) -> Emulator:
    # Imported late: a missing extra is a sentence for the user, not a traceback.
    try:
        from airflow_provider_talon_cdp.emulator import Emulator  # noqa: PLC0415 - see above
    except ImportError as error:
        raise _Mistake(str(error)) from error
    try:
        return Emulator(
            host=options.host,
            port=options.port,
            state_file=options.state_file,
            allow_remote=options.allow_remote,
            **_behaviour(options),
        )
    except (TypeError, ValueError) as error:
        raise _Mistake(str(error)) from error


def _behaviour(options: argparse.Namespace) -> EmulatorOptions:
    """What was given; the rest has its default in the emulator."""
    behaviour: EmulatorOptions = {
        "attributes": _attributes(options.attributes),
        "multi_profile_path": options.multi_profile_path,
        "requests_per_second": options.requests_per_second,
        "burst": options.burst,
        "send_retry_after": not options.no_retry_after,
        "service_time": options.service_time,
    }
    if options.api_key:
        behaviour["api_key"] = options.api_key
    if options.deployment_host:
        behaviour["deployment_host"] = options.deployment_host
    if options.environment:
        pairs = [each.partition("=") for each in options.environment]
        behaviour["environments"] = {name: key for name, _, key in pairs}
    return behaviour


def _attributes(path: Path | None) -> Mapping[str, Any]:
    if path is None:
        return {}
    try:
        declared: Mapping[str, Any] = json.loads(path.read_bytes())
    except OSError as error:
        raise _Mistake(f"cannot read the attributes file {path}: {error.strerror}") from error
    except ValueError as error:
        raise _Mistake(f"the attributes file {path} is not valid JSON: {error}") from error
    return declared


def _greeting(emulator: Emulator, options: argparse.Namespace) -> str:
    connection = emulator.connection()
    key = "the one you gave" if options.api_key or options.environment else connection["password"]
    return (
        f"Talon.One emulator: {emulator.url} (page and API; Ctrl-C stops it)\n"
        "Airflow connection of the type talon_cdp:\n"
        f"  Base URL         {connection['host']}\n"
        f"  API key          {key}\n"
        f"  Deployment host  {connection['extra']['deployment_host']}"
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m airflow_provider_talon_cdp.emulator",
        description="A local Talon.One CDP API, to try and to test DAGs without Talon.One.",
    )
    add = parser.add_argument
    add("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    add("--port", type=int, default=DEFAULT_PORT, help="port, 0 for any that is free (default: %(default)s)")
    add(
        "--allow-remote",
        action="store_true",
        help="allow a --host that other machines can reach; there is no key on the page and on reading back",
    )
    add("--api-key", help="the only key to accept (default: a constant, which is printed)")
    add(
        "--environment",
        action="append",
        metavar="NAME=KEY",
        help="an environment and its only key, such as sandbox=KEY; once for each, in place of --api-key",
    )
    add(
        "--deployment-host",
        help="the only destination-hostname to accept (default: demo.europe-west1.talon.one)",
    )
    add(
        "--attributes",
        type=Path,
        metavar="FILE",
        help="the profile attributes that exist, as a JSON object of name to type, such as "
        '{"Tier": "string", "birthday": "time", "scores": "(list number)"}; without it every one is accepted',
    )
    add(
        "--state-file",
        type=Path,
        metavar="FILE",
        help="start from this file, if it exists, and keep it up to date",
    )
    add(
        "--multi-profile-path",
        choices=("plural", "singular"),
        default="plural",
        help="how the multi-profile calls are spelled (default: %(default)s)",
    )
    add("--requests-per-second", type=float, metavar="RATE", help="rate limit (default: none)")
    add(
        "--burst",
        type=float,
        metavar="N",
        help="requests at once under the rate limit (default: one second's worth)",
    )
    add("--no-retry-after", action="store_true", help="send a 429 without Retry-After")
    add(
        "--service-time",
        type=float,
        default=0.0,
        metavar="SECONDS",
        help="how long every call takes (default: 0)",
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
