"""``python -m airflow_provider_talon_cdp ledger``: look into a ledger, or adopt an audience's members into a new one."""

from __future__ import annotations

import argparse
import getpass
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from airflow.providers.common.compat.sdk import ObjectStoragePath

from airflow_provider_talon_cdp.api.settings import DEFAULT_BASE_URL, Settings
from airflow_provider_talon_cdp.exceptions import LedgerError, TalonCdpError
from airflow_provider_talon_cdp.ledgers.adopt import COLUMN, adopt_csv
from airflow_provider_talon_cdp.ledgers.files import FilesLedger, ledger_name
from airflow_provider_talon_cdp.ledgers.naming import profiles_ledger_name, sync_ledger_name
from airflow_provider_talon_cdp.operators._base import storage


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status."""
    options = _parser().parse_args(arguments)
    try:
        _run(options)
    except TalonCdpError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m airflow_provider_talon_cdp", description="Tools of the provider."
    )
    ledger = parser.add_subparsers(required=True).add_parser("ledger", help="what mirrors remember")
    commands = ledger.add_subparsers(dest="command", required=True)
    for name, help_text in (
        ("import", "adopt the members in a CSV file into a new ledger"),
        ("show", "print a ledger's place, version and size"),
    ):
        command = commands.add_parser(name, help=help_text)
        command.add_argument(
            "--state-uri", required=True, help="folder of the ledgers, as the operator has it"
        )
        command.add_argument("--deployment-host", required=True, help="as on the Airflow connection")
        command.add_argument("--base-url", default=DEFAULT_BASE_URL, help="as on the Airflow connection")
        which = command.add_mutually_exclusive_group(required=True)
        which.add_argument("--audience-id", help="ID of the audience in the CDP")
        if name == "show":
            which.add_argument(
                "--sync", metavar="LEDGER", help="ledger of a mirror with an audience_column, or DAG.TASK"
            )
            which.add_argument(
                "--profiles", metavar="LEDGER", help="ledger of SqlToTalonProfilesOperator, or DAG.TASK"
            )
        else:
            command.set_defaults(profiles=None, sync=None)
            command.add_argument("--csv", required=True, help=f"file with a column {COLUMN}")
    return parser


def _run(options: argparse.Namespace) -> None:
    # Spelt as the connection's fields are, or the operator would look for another ledger. No key is needed.
    settings = Settings(api_key="none", deployment_host=options.deployment_host, base_url=options.base_url)
    ledger = FilesLedger(
        _storage("state URI", options.state_uri),
        deployment_host=settings.deployment_host,
        base_url=settings.base_url,
        name=_name(options),
        one_per_profile=options.profiles is not None,
    )
    if options.command == "import":
        file = _storage("CSV file", options.csv)
        adopted = adopt_csv(ledger, f"import by {getpass.getuser()}", file, options.audience_id)
        print(f"Adopted {adopted:,} members.")
    ledger.load()
    if not ledger.version:
        raise LedgerError(
            f"There is no ledger in {ledger.folder}. Check the state URI, the deployment host, the base URL and the ledger's name."
        )
    what = "profiles" if ledger.one_per_profile else "members"
    print(f"{ledger.folder}: version {ledger.version}, {sum(1 for _ in ledger.known()):,} {what}")


def _storage(name: str, place: str) -> ObjectStoragePath:
    # Airflow 2 takes a path that is not absolute as one from the root.
    return storage(name, place if "://" in place else str(Path(place).absolute()))


def _name(options: argparse.Namespace) -> str:
    if options.profiles is not None:
        return profiles_ledger_name(options.profiles)
    return ledger_name(options.audience_id) if options.sync is None else sync_ledger_name(options.sync)


if __name__ == "__main__":
    # Airflow 3 looks into its database for the connections of a state URI only where a process says so.
    os.environ.setdefault("_AIRFLOW_PROCESS_CONTEXT", "server")
    sys.exit(main())
