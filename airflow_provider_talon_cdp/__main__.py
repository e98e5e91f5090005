"""``python -m airflow_provider_talon_cdp ledger``: show a ledger, repair it, or adopt members."""

from __future__ import annotations

import argparse
import getpass
import os
import sys
from collections.abc import Generator, Iterator, Sequence
from pathlib import Path
from typing import TextIO, get_args

from airflow.providers.common.compat.sdk import ObjectStoragePath

from airflow_provider_talon_cdp.api.settings import DEFAULT_BASE_URL, Settings
from airflow_provider_talon_cdp.contract import AUDIENCE_ID_TYPE, AudienceIdType
from airflow_provider_talon_cdp.exceptions import InvalidInputError, LedgerError, TalonCdpError
from airflow_provider_talon_cdp.ledger.adopt import COLUMN, members_of_csv
from airflow_provider_talon_cdp.ledger.ledger import (
    Ledger,
    LedgerIdentity,
    ledger_name,
)
from airflow_provider_talon_cdp.ledger.letters import read_letters
from airflow_provider_talon_cdp.ledger.repair import DamagedLedger
from airflow_provider_talon_cdp.ledger.storage import Folder, as_folder, names_in
from airflow_provider_talon_cdp.operators._arguments import audience_id_of
from airflow_provider_talon_cdp.operators._state import common_state, storage

_COMMANDS = {
    "import": "adopt the members in a CSV file into a new ledger",
    "show": "print a ledger's folder, version and size",
    "letters": "print dead letters: records that were refused, with the reason",
    "repair": "rebuild a damaged ledger from its kept versions, and say what is lost",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status."""
    return _print(_parser().parse_args(arguments), sys.stdout)


def _print(options: argparse.Namespace, output: TextIO) -> int:
    status = 0
    try:
        try:
            for line in _run(options):
                print(line, file=output)
        except TalonCdpError as error:
            print(error, file=sys.stderr)
            status = 1
        output.flush()
    except BrokenPipeError:
        # The reader, such as head, wants no more. At its end, Python would flush the rest into the pipe.
        os.dup2(os.open(os.devnull, os.O_WRONLY), output.fileno())
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m airflow_provider_talon_cdp", description="Tools of the provider."
    )
    ledger = parser.add_subparsers(required=True).add_parser("ledger", help="what Talon.One acknowledged")
    commands = ledger.add_subparsers(dest="command", required=True)
    for name, help_text in _COMMANDS.items():
        command = commands.add_parser(name, help=help_text)
        which = command.add_mutually_exclusive_group(required=True)
        if name == "import":
            command.add_argument("--csv", required=True, help=f"file with a column {COLUMN}")
        else:
            which.add_argument(
                "folder", nargs="?", help="folder of the ledger or of its dead letters, as in the log"
            )
            which.add_argument(
                "--sync", metavar="LEDGER", help="ledger of a mirror with an audience_column, or DAG.TASK"
            )
            which.add_argument(
                "--profiles", metavar="LEDGER", help="ledger of SqlToTalonProfilesOperator, or DAG.TASK"
            )
        which.add_argument("--audience-id", help="ID of the audience")
        command.add_argument(
            "--audience-id-type",
            choices=get_args(AudienceIdType),
            default=AUDIENCE_ID_TYPE,
            help="internal: the ID is Talon.One's own number, as of an audience of the Campaign Manager",
        )
        command.add_argument("--state-uri", help="folder of the ledgers, as the operator has it")
        command.add_argument("--deployment-host", help="as on the Airflow connection")
        command.add_argument("--base-url", default=DEFAULT_BASE_URL, help="as on the Airflow connection")
        command.add_argument("--environment", default="", help="as on the Airflow connection")
        command.set_defaults(folder=None, profiles=None, sync=None)
    return parser


def _run(options: argparse.Namespace) -> Iterator[str]:
    """Run the command; yield the lines of its output."""
    if options.command == "letters" and (yield from _letters(options)):
        return
    ledger = _ledger(options)
    # As the operators set it, so that tasks under other state URIs find the ledger.
    ledger.registry.common = common_state(ledger.registry.common)
    if options.command == "import":
        file = _storage("CSV file", options.csv)
        members = members_of_csv(file, options.audience_id, "warn")
        yield f"Adopted {ledger.adopt(_owner('import'), members):,} members."
    # Where there is no ledger, the lock would make its folder.
    if isinstance(ledger, DamagedLedger) and _has_manifest(ledger.folder):
        yield from ledger.repair(_owner("repair"))
    ledger.load()
    if not ledger.version:
        raise LedgerError(
            "There is no ledger here. Check the state URI, the deployment host, the base URL,\n"
            f"the environment and the ledger's name.\nFolder: {ledger.folder}"
        )
    if options.command == "letters":
        return
    size = sum(map(len, ledger.known()))
    yield f"{ledger.folder}: version {ledger.version}, {size:,} {ledger.identity.holds}"


def _has_manifest(folder: Folder) -> bool:
    return any(name.startswith("manifest-") for name in names_in(folder))


def _letters(options: argparse.Namespace) -> Generator[str, None, bool]:
    """Yield dead letters, and return whether there are some.

    The ledger is not opened: it may be damaged, and explicit adds and removes have none.
    """
    by_path = options.folder is not None
    folder = as_folder(_storage("folder", options.folder)) if by_path else _ledger(options).folder
    found = False
    for line in read_letters(folder):
        found = True
        yield line
    return found


def _ledger(options: argparse.Namespace) -> Ledger:
    kind = DamagedLedger if options.command == "repair" else Ledger
    if options.folder is not None:
        return kind.at(as_folder(_storage("folder", options.folder)))
    if not options.state_uri or not options.deployment_host:
        raise InvalidInputError("Give the folder of the ledger, or --state-uri and --deployment-host.")
    # Settings normalises the fields as it does for the operator, which names the ledger. No key is needed.
    settings = Settings(api_key="none", deployment_host=options.deployment_host, base_url=options.base_url)
    identity = LedgerIdentity(
        deployment_host=settings.deployment_host,
        base_url=settings.base_url,
        environment=options.environment.strip(),
        name=_name(options),
        holds="members" if options.profiles is None else "profiles",
    )
    return kind(_storage("state URI", options.state_uri), identity)


def _name(options: argparse.Namespace) -> str:
    if options.profiles is not None:
        return ledger_name("profiles", options.profiles)
    if options.sync is not None:
        return ledger_name("sync", options.sync, options.audience_id_type)
    audience = audience_id_of("--audience-id", options.audience_id, options.audience_id_type)
    # As the mirror spells it, also for the members of a CSV file.
    options.audience_id = str(audience)
    return ledger_name("audience", options.audience_id, options.audience_id_type)


def _owner(what: str) -> str:
    try:
        return f"{what} by {getpass.getuser()}"
    except (KeyError, OSError):
        # A container's user may have no name.
        return f"{what} by {os.getuid()}"


def _storage(name: str, place: str) -> ObjectStoragePath:
    # Airflow 2 reads a relative path as one from the root.
    uri = place if "://" in place else str(Path(place).absolute())
    try:
        return storage(name, uri)
    except TalonCdpError:
        raise
    except Exception as error:  # each backend raises other errors, also if Airflow has no such connection
        raise InvalidInputError(f"The {name} cannot be opened by Airflow: {error}.\n{uri}") from error


def _own_stdout() -> TextIO:
    """Return stdout for the command's lines, and redirect what is written to it otherwise to stderr.

    Airflow logs to stdout, and its handlers and loggers keep the stream that they got when they were made.
    """
    own = os.fdopen(os.dup(1), "w", encoding=sys.stdout.encoding, errors=sys.stdout.errors)
    os.dup2(2, 1)
    return own


if __name__ == "__main__":
    # Airflow 3 reads a state URI's connection from its database only if this variable is set.
    os.environ.setdefault("_AIRFLOW_PROCESS_CONTEXT", "server")
    # argparse prints its help to stdout.
    parsed = _parser().parse_args()
    sys.exit(_print(parsed, _own_stdout()))
