"""The calls as an OpenAPI 3.1 document, in our own words. Pure.

Served at ``/openapi.json``. It says what this emulator does, which is Talon.One's Third-party API reference plus the
choices that the reference leaves open.
"""

from __future__ import annotations

from typing import Any

from airflow_provider_talon_cdp.emulator import routes
from airflow_provider_talon_cdp.emulator.service import Settings
from airflow_provider_talon_cdp.emulator.validation import MAX_CHANGES, MAX_TEXT

_SCHEMAS = "#/components/schemas/"
_ID = {"type": "string", "minLength": 1, "maxLength": MAX_TEXT}
_INTERNAL = {"type": "integer", "format": "int64"}
_WORDS = {
    400: "Invalid path, header, query or body, or an attribute that does not exist or has another type.",
    401: "The API key is missing or wrong.",
    404: "An audience does not exist. Nothing of the request took effect.",
    409: "Another request on the same customer profile is in flight.",
    429: "Too many requests.",
}


def document(settings: Settings, url: str) -> dict[str, Any]:
    """The OpenAPI document of an emulator.

    Args:
        settings: decide how the multi-profile calls are spelled.
        url: where it listens.
    """
    word = routes.MULTI_PROFILE_WORDS[settings.multi_profile_path]
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Talon.One CDP API, emulated",
            "version": "1",
            "description": "The generic CDP calls of Talon.One as a local emulator answers them.",
        },
        "servers": [{"url": url}],
        "security": [{"ApiKey": []}],
        "paths": _paths(word),
        "components": {
            "securitySchemes": {
                "ApiKey": {
                    "type": "apiKey",
                    "in": "header",
                    "name": "Authorization",
                    "description": "The word ApiKey-v1, a space, and the key.",
                }
            },
            "parameters": _parameters(settings.deployment_host),
            "schemas": _schemas(),
        },
    }


def _paths(word: str) -> dict[str, Any]:
    audience = ("AudienceId",)
    profile = ("ProfileId",)
    return {
        "/cdp/audiences": {
            "post": _call(
                routes.CREATE_AUDIENCE, "Create an audience", body="AudienceBody", success=(201, "Audience")
            )
        },
        "/cdp/audiences/{audienceId}": {
            "put": _call(
                routes.UPDATE_AUDIENCE,
                "Rename an audience",
                *audience,
                body="AudienceBody",
                success=(200, "Audience"),
            ),
            "delete": _call(
                routes.DELETE_AUDIENCE,
                "Delete an audience and its memberships",
                *audience,
                success=(204, None),
            ),
        },
        "/cdp/customer_profile/{customerProfileId}": {
            "put": _call(
                routes.UPDATE_PROFILE,
                "Set attributes of a profile, and its audiences by internal ID",
                *profile,
                "SkipNonExistingAttributes",
                body="ProfileBody",
                success=(200, "IntegrationState"),
            )
        },
        "/cdp/customer_profile/{customerProfileId}/audiences": {
            "put": _call(
                routes.UPDATE_PROFILE_AUDIENCES,
                "Change the audiences of a profile by external ID",
                *profile,
                body="ProfileAudiencesBody",
                success=(200, "IntegrationState"),
            )
        },
        f"/cdp/{word}/audiences": {
            "put": _call(
                routes.UPDATE_PROFILES_INTERNAL,
                "Change the audiences of many profiles by internal ID",
                body="ProfilesInternalBody",
                success=(204, None),
            )
        },
        f"/cdp/v2/{word}/audiences": {
            "put": _call(
                routes.UPDATE_PROFILES_EXTERNAL,
                "Change the audiences of many profiles by external ID",
                body="ProfilesExternalBody",
                success=(204, None),
            )
        },
    }


def _call(
    operation: str, summary: str, *parameters: str, success: tuple[int, str | None], body: str | None = None
) -> dict[str, Any]:
    status, answer = success
    responses: dict[str, Any] = {str(status): {"description": "Done."}}
    if answer is not None:
        responses[str(status)]["content"] = _json(answer)
    for code, words in _WORDS.items():
        either = code == 400 and operation == routes.UPDATE_PROFILE  # noqa: PLR2004 - an HTTP status
        responses[str(code)] = {"description": words, "content": _json("AnyError" if either else "Error")}
    if operation == routes.CREATE_AUDIENCE:
        del responses["404"]
        responses["409"]["description"] = "The audience ID is taken."
    elif "profile" not in operation:
        del responses["409"]
    responses["429"]["headers"] = {
        "Retry-After": {"description": "Seconds to wait, when it says so.", "schema": {"type": "string"}}
    }
    names = (*parameters, "PlatformName", "DestinationHostname")
    call: dict[str, Any] = {
        "operationId": operation,
        "summary": summary,
        "parameters": [{"$ref": f"#/components/parameters/{name}"} for name in names],
        "responses": responses,
    }
    if body is not None:
        call["requestBody"] = {"required": True, "content": _json(body)}
    return call


def _parameters(deployment_host: str | None) -> dict[str, Any]:
    host: dict[str, Any] = {"type": "string", "pattern": "^[a-z0-9]([a-z0-9.-]*[a-z0-9])?$"}
    if deployment_host is not None:
        host = {"type": "string", "enum": [deployment_host]}
    return {
        "AudienceId": _parameter("audienceId", "path", _ID, "The audience's external ID."),
        "ProfileId": _parameter("customerProfileId", "path", _ID, "Any characters; created when it is new."),
        "PlatformName": _parameter(
            "customer-data-platform-name",
            "header",
            {"type": "string", "pattern": "^[!-~]([ -~]*[!-~])?$"},
            "Free text that names the CDP.",
        ),
        "DestinationHostname": _parameter(
            "destination-hostname", "header", host, "The Talon.One deployment: a bare host name."
        ),
        "SkipNonExistingAttributes": {
            "name": "skipNonExistingAttributes",
            "in": "query",
            "required": False,
            "description": "Leave out unknown attributes, where otherwise they are an error.",
            "schema": {"type": "boolean", "default": False},
        },
    }


def _parameter(name: str, place: str, schema: dict[str, Any], words: str) -> dict[str, Any]:
    return {"name": name, "in": place, "required": True, "description": words, "schema": schema}


def _schemas() -> dict[str, Any]:
    changes = f"Adds and deletes of one request, over all its profiles, are at most {MAX_CHANGES} together."
    internal, external = _membership(_INTERNAL), _membership(_ID)
    array, text = {"type": "array"}, {"type": "string"}
    field_error = _object({"title": text, "details": text, "source": _object({"pointer": text}, "pointer")})
    return {
        "AudienceBody": _object({"audienceId": _ID, "audienceName": _ID}, "audienceId", "audienceName"),
        "ProfileBody": _object(
            {
                "attributes": {"type": "object", "description": "null deletes an attribute."},
                "runRuleEngine": {"type": "boolean", "default": False},
                "audiencesChanges": _object(internal),
            }
        ),
        "ProfileAudiencesBody": _object({"data": {**_object(external), "description": changes}}, "data"),
        "ProfilesInternalBody": _many(internal, changes),
        "ProfilesExternalBody": _many(external, changes),
        "Audience": _object(
            {
                "id": {**_INTERNAL, "minimum": 1},
                "created": {"type": "string", "format": "date-time"},
                "accountId": {"type": "integer"},
                "name": _ID,
                "integration": {**text, "description": "The name of the CDP."},
                "integrationId": {**_ID, "description": "The external ID."},
            },
            *("id", "created", "accountId", "name", "integration", "integrationId"),
        ),
        "IntegrationState": _object(
            {
                "effects": array,
                "createdCoupons": array,
                "createdReferrals": array,
                "customerProfile": _object({"integrationId": _ID, "attributes": {"type": "object"}}),
            },
            *("effects", "createdCoupons", "createdReferrals"),
        ),
        "Error": _object(
            {
                "StatusCode": {"type": "integer"},
                "Error": text,
                "RequestUUID": {"type": "string", "format": "uuid"},
            },
            *("StatusCode", "Error", "RequestUUID"),
        ),
        "DeploymentError": _object(
            {"message": text, "errors": {"type": "array", "items": field_error}}, "message", "errors"
        ),
        "AnyError": {"anyOf": [{"$ref": f"{_SCHEMAS}Error"}, {"$ref": f"{_SCHEMAS}DeploymentError"}]},
    }


def _many(membership: dict[str, Any], words: str) -> dict[str, Any]:
    entry = _object({"customerProfileId": _ID, **membership}, "customerProfileId")
    return _object({"data": {"type": "array", "items": entry, "description": words}}, "data")


def _membership(audience: dict[str, Any]) -> dict[str, Any]:
    ids = {"type": "array", "items": audience, "maxItems": MAX_CHANGES}
    return {"adds": ids, "deletes": ids}


def _object(properties: dict[str, Any], *required: str) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "object", "properties": properties}
    return {**schema, "required": list(required)} if required else schema


def _json(name: str) -> dict[str, Any]:
    return {"application/json": {"schema": {"$ref": _SCHEMAS + name}}}
