"""Where the ledgers are: their state URI, their storage, and the executors that reach them.

DAG files import this module, so the hook and the engine are imported only when a task runs.
"""

from __future__ import annotations

import os
import re
from itertools import chain
from typing import TYPE_CHECKING, Any

from airflow.providers.common.compat.sdk import BaseOperator, Context, ObjectStoragePath, conf

from airflow_provider_talon_cdp.contract import KEEP_VERSIONS
from airflow_provider_talon_cdp.exceptions import InvalidInputError
from airflow_provider_talon_cdp.operators._arguments import check_rendered

if TYPE_CHECKING:
    from airflow_provider_talon_cdp.hooks.talon_cdp import TalonCdpHook
    from airflow_provider_talon_cdp.ledger.ledger import Ledger, LedgerIdentity, RunFacts
    from airflow_provider_talon_cdp.ledger.outside import OutsideChanges

# Executors that run each try of a task on one machine. Any other one may not.
_LOCAL_EXECUTORS = ("LocalExecutor", "SequentialExecutor", "DebugExecutor")


def identity_of(hook: TalonCdpHook, name: str, **options: Any) -> LedgerIdentity:
    """Return the identity of a ledger for the connection's deployment, base URL and environment."""
    from airflow_provider_talon_cdp.ledger.ledger import LedgerIdentity  # noqa: PLC0415

    settings = hook.settings
    return LedgerIdentity(
        deployment_host=settings.deployment_host,
        base_url=settings.base_url,
        environment=settings.environment,
        name=name,
        **options,
    )


def open_ledger(
    folder: Any, hook: TalonCdpHook, name: str, *, keep: int = KEEP_VERSIONS, **options: Any
) -> Ledger:
    """Return a ledger, in the folder of all ledgers, with the identity that ``identity_of`` returns."""
    from airflow_provider_talon_cdp.ledger.ledger import Ledger, Sizes  # noqa: PLC0415
    from airflow_provider_talon_cdp.sync.profiles import BATCH  # noqa: PLC0415

    identity = identity_of(hook, name, **options)
    sizes = Sizes(batch=BATCH) if identity.holds == "profiles" else Sizes()
    ledger = Ledger(folder, identity, keep=keep, sizes=sizes)
    ledger.registry.common = common_state(folder)
    return ledger


def outside_changes(operator: Any, context: Context, **options: Any) -> OutsideChanges:
    """Return the journal that notes explicit changes in the ledgers under the operator's ``state_uri``."""
    from airflow_provider_talon_cdp.ledger.ledger import ledger_name  # noqa: PLC0415
    from airflow_provider_talon_cdp.ledger.outside import OutsideChanges  # noqa: PLC0415

    folder = storage("state URI", explicit_state_uri(operator.state_uri) or default_state_uri())
    identity = identity_of(operator.hook, ledger_name("calls", f"{operator.dag_id}.{operator.task_id}"))
    outside = OutsideChanges(folder, identity, operator.run_owner(context), **options)
    outside.registry.common = common_state(folder)
    return outside


def run_facts(hook: TalonCdpHook) -> RunFacts:
    """Return what a ledger remembers of a run with the connection's API key."""
    from airflow_provider_talon_cdp.ledger.ledger import RunFacts  # noqa: PLC0415

    settings = hook.settings
    return RunFacts(key_fingerprint=settings.key_fingerprint, platform_name=settings.platform_name)


def storage(name: str, uri: str) -> ObjectStoragePath:
    """Return a path in any storage that Airflow supports; ``name`` says in the error what it is for.

    Raises:
        InvalidInputError: Airflow has no file system for the URI, or the URI has a password.
    """
    _refuse_password(f"The {name}", uri)
    try:
        path = ObjectStoragePath(uri)
        # Only the attribute loads the file system.
        _ = path.fs
    except (ValueError, ImportError) as error:
        raise InvalidInputError(f"The {name} cannot be opened by Airflow: {error}.\n{uri}") from error
    return path


def remote_executor(operator: BaseOperator) -> str | None:
    """Return the executor of a task if it may run each try on another machine."""
    if os.environ.get("AIRFLOW_IS_K8S_EXECUTOR_POD"):
        # The configuration in the pod names another executor.
        return "KubernetesExecutor"
    by_team = _configured_executors()
    team = os.environ.get("AIRFLOW_CTX_TEAM_NAME")
    # Without a name, the task may be of any team: Airflow tells it since 3.3.
    lists = list(by_team.values()) if team is None else [by_team.get(team) or by_team.get("", [])]
    executors = [each[0] for each in lists if each]
    if wanted := operator.executor:
        every = [*chain.from_iterable([*lists, *by_team.values()]), wanted]
        executors = [next(each for each in every if wanted in (each, *each.split(":"), _class(each)))]
    return next((name for name in map(_class, executors) if name not in _LOCAL_EXECUTORS), None)


def _configured_executors() -> dict[str, list[str]]:
    """Return the configured executors by team, "" for all teams; the first one of each is the default.

    The setting is such as ``LocalExecutor,alias:my.module.MyExecutor;team1=CeleryExecutor``.
    """
    by_team: dict[str, list[str]] = {}
    has_teams = conf.getboolean("core", "multi_team", fallback=False)
    for entry in conf.get("core", "executor", fallback="LocalExecutor").split(";"):
        team, _, names = entry.rpartition("=")
        if not team or has_teams:
            by_team[team.strip()] = [name.strip() for name in names.split(",")]
    return by_team


def _class(executor: str) -> str:
    """Return the name of an executor's class: it is configured with its module, and may have an alias."""
    return executor.rpartition(":")[2].rpartition(".")[2]


def explicit_state_uri(given: str | None) -> str:
    """Return the URI of the folder of the ledgers, given or configured; empty for the default."""
    configured: str | None = conf.get("talon_cdp", "state_uri", fallback=None)
    return check_state_uri("state_uri", given) or check_state_uri(
        "[talon_cdp] state_uri in Airflow's configuration", configured
    )


def default_state_uri() -> str:
    """Return the URI of the folder of the ledgers if none is given or configured."""
    home = os.environ.get("AIRFLOW_HOME") or os.path.expanduser("~/airflow")  # noqa: PTH111
    return f"file://{home}/talon_cdp"


def common_state(own: Any) -> Any:
    """Return the folder of the ledgers of tasks without a state URI, or ``own`` if that URI is invalid.

    An error of the storage is raised only when the folder is read.
    """
    try:
        return ObjectStoragePath(explicit_state_uri(None) or default_state_uri())
    except (InvalidInputError, ValueError, ImportError):
        return own


def check_state_uri(name: str, uri: Any) -> str:
    """Return a URI, or "" for none; refuse a relative path: the next worker may have another folder there.

    A URI with a password is refused, too.
    """
    if not uri:
        return ""
    text = str(check_rendered(name, uri))
    _refuse_password(name, text)
    if not text.startswith("/") and "://" not in text:
        raise InvalidInputError(
            f"{name} must be an absolute path or a URI, such as s3://aws_default@bucket/talon_cdp, "
            f"but is {text!r}.\n"
            "A relative path depends on the worker's folder: another worker would not find the ledger."
        )
    return text


def _refuse_password(name: str, uri: str) -> None:
    """Refuse a URI with a password, which it would take into logs and XComs; the error does not quote it."""
    # A password may have any character, also those that end the host. An IPv6 address begins with "[", and
    # S3 has access points whose names are ARNs.
    if re.match(r"[^/]*://(?!arn:)[^@/?#[]*:(?!\d+([/?#]|$))", uri):
        raise InvalidInputError(
            f"{name} holds a user name and a password, or a port that is not a number.\n"
            "Put them into an Airflow connection, and write its ID before the @ instead, such as\n"
            "s3://aws_default@bucket/talon_cdp."
        )
