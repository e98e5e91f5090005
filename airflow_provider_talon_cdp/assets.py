"""Talon.One's audiences and profiles as assets of Airflow, and as datasets of OpenLineage.

| what | URI |
| --- | --- |
| an audience, by its ID in the CDP | ``talon-cdp://<deployment host>/audiences/<audience ID>`` |
| an audience, by Talon.One's own number | ``talon-cdp://<deployment host>/audiences/internal:<number>`` |
| the profiles of one sync         | ``talon-cdp://<deployment host>/profiles/<name of the ledger>`` |

IDs and names are percent-encoded. The operators emit these assets through an asset alias, as only the
connection has the host. Schedule a DAG on ``audience_asset(...)`` or ``profiles_asset(...)``
to run it after a sync.
"""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any
from urllib.parse import SplitResult, quote, unquote, urlsplit

from airflow.providers.common.compat.sdk import Asset, AssetAlias, BaseOperator, Context

from airflow_provider_talon_cdp.exceptions import InvalidInputError

log = logging.getLogger(__name__)
SCHEME = "talon-cdp"
IS_AIRFLOW_2 = Asset.__name__ == "Dataset"
_KINDS = ("audiences", "profiles")
# Of a name. Airflow allows 1500 characters for a URI.
_LONGEST = 1000


def audience_uri(deployment_host: str, audience_id: str | int) -> str:
    """Return the URI of an audience.

    Args:
        deployment_host: As on the connection.
        audience_id: Its ID in the CDP (a string), or Talon.One's own number (an integer).
    """
    name = f"internal:{audience_id}" if isinstance(audience_id, int) else _encoded(audience_id)
    return f"{SCHEME}://{deployment_host.lower()}/audiences/{name}"


def profiles_uri(deployment_host: str, sync: str) -> str:
    """Return the URI of the profiles of a sync.

    Args:
        deployment_host: As on the connection.
        sync: The operator's ``ledger``, or the DAG's and the task's ID with a full stop between.
    """
    return f"{SCHEME}://{deployment_host.lower()}/profiles/{_encoded(sync)}"


def audience_asset(deployment_host: str, audience_id: str | int) -> Asset:
    """Return an audience as an asset; see ``audience_uri``."""
    return Asset(uri=audience_uri(deployment_host, audience_id))


def profiles_asset(deployment_host: str, sync: str) -> Asset:
    """Return the profiles of a sync as an asset; see ``profiles_uri``."""
    return Asset(uri=profiles_uri(deployment_host, sync))


def create_asset(
    *,
    deployment_host: str,
    audience_id: str | int | None = None,
    sync: str | None = None,
    extra: dict[str, Any] | None = None,
) -> Asset:
    """Make an asset for Airflow's lineage collector: of an audience, or of the profiles of a sync."""
    if (audience_id is None) == (sync is None):
        raise InvalidInputError("Give either audience_id (an audience) or sync (profiles).")
    uri = (
        audience_uri(deployment_host, audience_id)
        if audience_id is not None
        else profiles_uri(deployment_host, str(sync))
    )
    return Asset(uri=uri, extra=extra or {})


def sanitize_uri(uri: SplitResult) -> SplitResult:
    """Normalise a URI, so that it equals the one that the operators emit.

    Raises:
        ValueError: It is not a URI of an audience or of profiles.
    """
    kind, _, name = uri.path.removeprefix("/").partition("/")
    if not uri.hostname or uri.port is not None or kind not in _KINDS or not name or "/" in name:
        raise ValueError(
            f"A {SCHEME} URI is {SCHEME}://<deployment host>/audiences/<audience ID> or .../profiles/<sync>, "
            "with the ID percent-encoded."
        )
    is_internal = kind == "audiences" and name.startswith("internal:")
    name = name if is_internal else _encoded(unquote(name))
    return uri._replace(netloc=uri.hostname.lower(), path=f"/{kind}/{name}", query="", fragment="")


def to_openlineage(asset: Asset, lineage_context: Any) -> Any:  # noqa: ARG001 - Airflow's signature
    """Convert an asset to a dataset of OpenLineage."""
    # Airflow's OpenLineage provider is optional.
    from airflow.providers.common.compat.openlineage.facet import Dataset  # noqa: PLC0415

    return Dataset(*_namespace_and_name(asset.uri))


def lineage(inputs: Iterable[Any], outputs: Mapping[str, int | None]) -> Any:
    """Return a sync's lineage for OpenLineage, or None if its provider is not installed.

    ``outputs`` has the number of changes that Talon.One acknowledged, or None if unknown, by the asset's URI.
    """
    try:
        from airflow.providers.openlineage.extractors import OperatorLineage  # noqa: PLC0415
    except ImportError:
        return None
    from airflow.providers.common.compat.openlineage.facet import (  # noqa: PLC0415
        OutputDataset,
        OutputStatisticsOutputDatasetFacet,
    )

    def output(uri: str, rows: int | None) -> Any:
        facets: dict[str, Any] = {}
        if rows is not None:
            facets = {"outputStatistics": OutputStatisticsOutputDatasetFacet(rowCount=rows)}
        return OutputDataset(*_namespace_and_name(uri), outputFacets=facets)

    return OperatorLineage(inputs=list(inputs), outputs=[output(*each) for each in outputs.items()])


def sql_inputs(hook: Callable[[], Any], conn_id: str, sql: str) -> list[Any]:
    """Return the datasets that a query reads, as far as Airflow's OpenLineage provider can tell.

    The query is parsed and not run, but some hooks query the database's default schema.
    """
    try:
        from airflow.providers.openlineage.sqlparser import get_openlineage_facets_with_sql  # noqa: PLC0415
    except ImportError:
        return []
    try:
        found = get_openlineage_facets_with_sql(
            hook=hook(), sql=sql, conn_id=conn_id, database=None, use_connection=False
        )
    except Exception as error:  # noqa: BLE001 - drivers raise other errors; the outputs are reported anyway
        log.info("OpenLineage gets no inputs, as the query cannot be analysed: %s", error)
        return []
    return found.inputs if found else []


def input_names(inputs: Callable[[], Iterable[Any]]) -> list[list[str]]:
    """Return namespaces and names of datasets as plain data; none if OpenLineage is not used."""
    try:
        from airflow.providers.openlineage.conf import is_disabled  # noqa: PLC0415

        # To find the datasets takes a query in some databases.
        is_used = not is_disabled()
    except Exception as error:  # noqa: BLE001 - not installed or not configured well, which fails no task
        log.debug("OpenLineage is not used: %s", error)
        return []
    return [[each.namespace, each.name] for each in inputs()] if is_used else []


def named_inputs(names: Iterable[Iterable[str]]) -> list[Any]:
    """Return the datasets of which ``input_names`` has the names."""
    from airflow.providers.common.compat.openlineage.facet import Dataset  # noqa: PLC0415

    return [Dataset(*each) for each in names]


def alias_of(name: str) -> AssetAlias | None:
    """Return the asset alias to which ``emit`` adds assets, an outlet of the task; None on Airflow 2."""
    # On MySQL, Airflow refuses letters that are not ASCII, which the IDs of DAGs and tasks may have.
    return None if IS_AIRFLOW_2 else AssetAlias(f"{SCHEME}:{name if name.isascii() else _encoded(name)}")


def emit(
    context: Context,
    task: BaseOperator,
    alias: AssetAlias | None,
    extras: Mapping[str, Mapping[str, Any]],
) -> None:
    """Add asset events that Airflow registers when the task succeeds; ``extras`` are by the asset's URI."""
    events = context.get("outlet_events")
    if events is None:
        return
    outlets = {outlet.uri: outlet for outlet in task.outlets if isinstance(outlet, Asset)}
    for uri, extra in extras.items():
        asset = outlets.get(uri)
        if asset is None and alias is not None:
            events[alias].add(Asset(uri=uri), extra=dict(extra))
            continue
        if asset is None:
            # Airflow 2 registers assets that are outlets when the task ends, and does not know the alias.
            asset = Asset(uri=uri)
            task.outlets = [*task.outlets, asset]
        events[asset].extra.update(extra)


def _namespace_and_name(uri: str) -> tuple[str, str]:
    parts = urlsplit(uri)
    return f"{SCHEME}://{parts.netloc}", unquote(parts.path.removeprefix("/"))


def _encoded(name: str) -> str:
    encoded = quote(name, safe="")
    if len(encoded) <= _LONGEST:
        return encoded
    readable = re.sub(r"[^A-Za-z0-9._-]", "_", name)[: _LONGEST // 2]
    return f"{readable}-{hashlib.sha256(name.encode()).hexdigest()}"
