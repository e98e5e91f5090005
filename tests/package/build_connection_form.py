"""Print the connection form of ``talon_cdp`` that the running Airflow builds, as one line of JSON."""

from __future__ import annotations

import json
from importlib.metadata import version


def from_the_api_server():
    """Airflow 3: what ``GET /ui/connections/hook_meta`` answers."""
    from airflow.api_fastapi.core_api.services.ui.connections import HookMetaService  # noqa: PLC0415

    (meta,) = (each for each in HookMetaService.hook_meta_data() if each.connection_type == "talon_cdp")
    standard = {
        "schema" if name == "url_schema" else name: behaviour
        for name, behaviour in meta.standard_fields.model_dump().items()
        if behaviour
    }
    return {
        "fields": {
            name: {
                "label": field["schema"]["title"],
                "description": field["description"],
                "type": field["schema"]["type"]
                if isinstance(field["schema"]["type"], str)
                else field["schema"]["type"][0],
                # Airflow offers an empty choice as null.
                "choices": [each for each in field["schema"].get("enum", ()) if each is not None],
            }
            for name, field in meta.extra_fields.items()
        },
        "hidden": [name for name, each in standard.items() if each["hidden"]],
        "relabeling": {name: each["title"] for name, each in standard.items() if each["title"]},
        "placeholders": {name: each["placeholder"] for name, each in standard.items()},
    }


def from_the_web_server():
    """Airflow 2: the widgets and the behaviour that its Flask views render."""
    from airflow.providers_manager import ProvidersManager  # noqa: PLC0415

    manager = ProvidersManager()
    ours = [each for each in manager.connection_form_widgets.values() if each.package_name == PROVIDER]
    behaviour = manager.field_behaviours["talon_cdp"]
    return {
        "fields": {
            each.field_name: {
                "label": str(each.field.args[0]),
                "description": each.field.kwargs["description"],
                "type": each.field.field_class.__name__.removesuffix("Field").lower(),
                "choices": [
                    choice
                    for validator in each.field.kwargs["validators"]
                    for choice in getattr(validator, "values", ())
                ],
            }
            for each in ours
        },
        "hidden": behaviour["hidden_fields"],
        "relabeling": behaviour["relabeling"],
        "placeholders": behaviour["placeholders"],
    }


PROVIDER = "airflow-provider-talon-cdp"
build = from_the_web_server if version("apache-airflow").startswith("2.") else from_the_api_server
print(json.dumps(build()))  # noqa: T201
