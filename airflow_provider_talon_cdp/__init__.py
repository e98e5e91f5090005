"""Airflow provider that keeps Talon.One in step with a data warehouse.

The public names are imported when they are first used, so that importing this module takes no time.
"""

# Not imported from typing, which takes longer than this module. Type checkers know the name.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from airflow_provider_talon_cdp.hooks.talon_cdp import TalonCdpHook
    from airflow_provider_talon_cdp.operators.audience import (
        CreateAudienceOperator,
        DeleteAudienceOperator,
        UpdateAudienceOperator,
    )
    from airflow_provider_talon_cdp.operators.members import SyncAudienceMembersOperator
    from airflow_provider_talon_cdp.operators.profile import (
        UpdateProfileAudiencesOperator,
        UpdateProfileOperator,
    )
    from airflow_provider_talon_cdp.transfers.across_workers import talon_audience_sync, talon_profiles_sync
    from airflow_provider_talon_cdp.transfers.sql_to_audience import SqlToTalonAudienceOperator
    from airflow_provider_talon_cdp.transfers.sql_to_profiles import SqlToTalonProfilesOperator

__version__ = "0.1.0"
__all__ = [
    "CreateAudienceOperator",
    "DeleteAudienceOperator",
    "SqlToTalonAudienceOperator",
    "SqlToTalonProfilesOperator",
    "SyncAudienceMembersOperator",
    "TalonCdpHook",
    "UpdateAudienceOperator",
    "UpdateProfileAudiencesOperator",
    "UpdateProfileOperator",
    "__version__",
    "talon_audience_sync",
    "talon_profiles_sync",
]

_MODULES = {
    "CreateAudienceOperator": "operators.audience",
    "DeleteAudienceOperator": "operators.audience",
    "SqlToTalonAudienceOperator": "transfers.sql_to_audience",
    "SqlToTalonProfilesOperator": "transfers.sql_to_profiles",
    "SyncAudienceMembersOperator": "operators.members",
    "TalonCdpHook": "hooks.talon_cdp",
    "UpdateAudienceOperator": "operators.audience",
    "UpdateProfileAudiencesOperator": "operators.profile",
    "UpdateProfileOperator": "operators.profile",
    "talon_audience_sync": "transfers.across_workers",
    "talon_profiles_sync": "transfers.across_workers",
}


def __getattr__(name: str) -> object:
    from importlib import import_module  # noqa: PLC0415

    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value: object = getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
