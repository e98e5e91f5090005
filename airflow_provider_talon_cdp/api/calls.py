"""The calls of the generic CDP API as requests. Pure; only this module knows paths and bodies.

Source: Talon.One's Third-party API reference.

The multi-profile path has two spellings. The reference says ``customer_profiles`` (plural), Talon.One's
tutorial page says ``customer_profile``. On a deployment that knows the plural, the singular is *Update
customer profile* of a profile named ``audiences``: it answers 200 and changes no membership. So the plural is
the default here, and ``answers.py`` accepts only 204 as success of a multi-profile call.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from itertools import chain
from typing import Any, Generic, Literal, TypedDict, TypeVar
from urllib.parse import quote

import orjson

from airflow_provider_talon_cdp.api.settings import DEFAULT_SPELLING, Spelling
from airflow_provider_talon_cdp.api.values import encode_json
from airflow_provider_talon_cdp.contract import (
    AUDIENCE_ID_TYPE,
    MAX_CHANGES,
    AudienceIdType,
    check_audience_id,
    check_bools,
    check_in_path,
    check_text,
)
from airflow_provider_talon_cdp.exceptions import InvalidInputError

_FIELDS_OF_ENTRY = 3


class Operation(Enum):
    """A call of the API, by its name in Talon.One's reference."""

    CREATE_AUDIENCE = "Create audience"
    UPDATE_AUDIENCE = "Update audience"
    DELETE_AUDIENCE = "Delete audience"
    UPDATE_PROFILE = "Update customer profile"
    UPDATE_PROFILE_AUDIENCES = "Update customer profile audiences"
    UPDATE_PROFILES_AUDIENCES = "Update audiences in multiple customer profiles"


@dataclass(frozen=True)
class Audience(dict[str, Any]):
    """An audience as Talon.One returns it: its attributes, which are a dictionary in XCom.

    Args:
        id: Internal ID, an integer >= 1.
        integration_id: External ID, which is the audience's ID in the CDP.
        name: Display name.
        integration: The platform's name.
        created: RFC 3339 time.
        account_id: Talon.One account, or None if the answer has none.
    """

    id: int
    integration_id: str
    name: str
    integration: str | None = None
    created: str | None = None
    account_id: int | None = None

    def __post_init__(self) -> None:
        """Hold them as items, too: from XCom, Airflow reads no class of ours without its configuration."""
        self.update(vars(self))


class IntegrationState(dict[str, Any]):
    """The answer of a profile call: ``effects``, ``createdCoupons``, ``createdReferrals`` and perhaps more.

    Attributes:
        may_have_run_twice: Whether the call ran rules, and an earlier attempt of it got no clear answer.
    """

    may_have_run_twice = False


class ProfileOptions(TypedDict, total=False):
    """Options of ``update_customer_profile``."""

    run_rule_engine: bool
    add_audiences: Iterable[int]
    remove_audiences: Iterable[int]
    skip_unknown_attributes: bool


Result = TypeVar("Result", bound=Audience | IntegrationState | None)


@dataclass(frozen=True)
class Request(Generic[Result]):
    """One HTTP request, without the connection's headers; the type parameter is the type of its result.

    Args:
        operation: The call, by which ``answers.py`` reads the answer.
        method: HTTP method.
        path: Path and query, percent-encoded, starting with ``/``.
        body: JSON in UTF-8, or None.
        changes: Number of membership changes.
        private: Returns profile IDs and attribute values, which are masked in error texts.
        runs_rules: Whether Talon.One runs its rules, so that a repetition may give a coupon or points twice.
    """

    operation: Operation
    method: str
    path: str
    # Not in the repr: bodies have profile IDs and attribute values, which must not be logged.
    body: bytes | None = field(default=None, repr=False)
    changes: int = 0
    private: Callable[[], Iterable[str]] = field(default=tuple, repr=False)
    runs_rules: bool = False


def create_audience(audience_id: str, audience_name: str) -> Request[Audience]:
    """``POST /cdp/audiences``; not idempotent."""
    body = _audience_body(audience_id, audience_name)
    return Request(Operation.CREATE_AUDIENCE, "POST", "/cdp/audiences", body)


def update_audience(audience_id: str, audience_name: str) -> Request[Audience]:
    """``PUT /cdp/audiences/{audienceId}``: rename."""
    body = _audience_body(audience_id, audience_name)
    return Request(Operation.UPDATE_AUDIENCE, "PUT", _audience_path(audience_id), body)


def delete_audience(audience_id: str) -> Request[None]:
    """``DELETE /cdp/audiences/{audienceId}``; deletes its memberships too."""
    check_audience_id("audience_id", audience_id, "external")
    return Request(Operation.DELETE_AUDIENCE, "DELETE", _audience_path(audience_id))


def update_customer_profile(
    customer_profile_id: str,
    *,
    attributes: Mapping[str, Any] | bytes | None = None,
    run_rule_engine: bool = False,
    add_audiences: Iterable[int] = (),
    remove_audiences: Iterable[int] = (),
    skip_unknown_attributes: bool = False,
) -> Request[IntegrationState]:
    """``PUT /cdp/customer_profile/{customerProfileId}``; audiences by internal ID.

    The arguments are those of the hook's method, but attributes are JSON-ready values (see ``values.py``), or
    a JSON object in UTF-8.
    """
    # The text "False", as a template renders it, would count as true.
    check_bools(run_rule_engine=run_rule_engine, skip_unknown_attributes=skip_unknown_attributes)
    body: dict[str, Any] = {"runRuleEngine": run_rule_engine}
    # Encoded here, so that the values to mask are those that are sent: 1234.50 is sent as 1234.5.
    encoded = attributes if attributes is None or isinstance(attributes, bytes) else encode_json(attributes)
    if encoded is not None:
        body["attributes"] = orjson.Fragment(encoded)
    adds, deletes = _changes(add_audiences, remove_audiences, "internal")
    if adds or deletes:
        body["audiencesChanges"] = {"adds": adds, "deletes": deletes}
    skip = "true" if skip_unknown_attributes else "false"
    return Request(
        Operation.UPDATE_PROFILE,
        "PUT",
        f"{_profile_segment(customer_profile_id)}?skipNonExistingAttributes={skip}",
        encode_json(body),
        len(adds) + len(deletes),
        lambda: (customer_profile_id, *_scalars(encoded)),
        runs_rules=run_rule_engine or bool(adds or deletes),
    )


def update_customer_profile_audiences(
    customer_profile_id: str, *, add_audiences: Iterable[str] = (), remove_audiences: Iterable[str] = ()
) -> Request[IntegrationState]:
    """``PUT /cdp/customer_profile/{customerProfileId}/audiences``; audiences by external ID, 1000 at most."""
    path = _profile_segment(customer_profile_id)
    adds, deletes = _changes(add_audiences, remove_audiences, "external")
    if not adds and not deletes:
        raise InvalidInputError("add_audiences and remove_audiences are both empty: there is nothing to do.")
    _check_size(len(adds) + len(deletes))
    return Request(
        Operation.UPDATE_PROFILE_AUDIENCES,
        "PUT",
        f"{path}/audiences",
        encode_json({"data": {"adds": adds, "deletes": deletes}}),
        len(adds) + len(deletes),
        lambda: (customer_profile_id,),
        runs_rules=True,
    )


def update_customer_profiles_audiences(
    entries: Iterable[tuple[str, Sequence[str | int], Sequence[str | int]]],
    *,
    audience_id_type: AudienceIdType = AUDIENCE_ID_TYPE,
    multi_profile_path: Spelling = DEFAULT_SPELLING,
) -> Request[None]:
    """``PUT /cdp[/v2]/customer_profiles/audiences``: many profiles, at most 1000 changes together.

    The arguments are those of the hook's method, and the spelling that this deployment knows. External IDs go
    to the ``v2`` path, internal ones to the path without it.
    """
    data: list[dict[str, Any]] = []
    changes = 0
    for entry in entries if isinstance(entries, Iterable) else (entries,):
        if not isinstance(entry, tuple | list) or len(entry) != _FIELDS_OF_ENTRY:
            raise InvalidInputError(
                "Each entry must be a tuple of a customer profile ID, the audience IDs to join,\n"
                f"and the audience IDs to leave, not {type(entry).__name__}."
            )
        customer_profile_id, joins, leaves = entry
        check_text("customer_profile_id", customer_profile_id)
        adds, deletes = _changes(joins, leaves, audience_id_type)
        changes += len(adds) + len(deletes)
        data.append({"customerProfileId": customer_profile_id, "adds": adds, "deletes": deletes})
    body = encode_json({"data": data})
    ids = [entry["customerProfileId"] for entry in data]
    return _multi_profile(body, changes, lambda: ids, audience_id_type, multi_profile_path)


def update_audiences_of_customer_profiles(
    groups: Iterable[tuple[Sequence[str], str | int, Literal["add", "remove"]]],
    *,
    audience_id_type: AudienceIdType = AUDIENCE_ID_TYPE,
    multi_profile_path: Spelling = DEFAULT_SPELLING,
) -> Request[None]:
    """As ``update_customer_profiles_audiences``, for at most 1000 profiles that have one change each.

    Nearly all requests of a sync are like this. An object for each profile would take most of their time.

    Args:
        groups: Integration IDs of profiles that join or leave an audience, the audience ID, and ``add`` or
            ``remove``. No profile is in them twice, and every ID has been checked to have 1 to 1000
            characters.
        audience_id_type: As in ``update_customer_profiles_audiences``.
        multi_profile_path: As in ``update_customer_profiles_audiences``.
    """
    groups = [group for group in groups if group[0]]
    # Joined once, as a copy of a body takes much memory.
    body = [b'{"data":[']
    for ids, audience_id, action in groups:
        check_audience_id(f"audience ID to {action}", audience_id, audience_id_type)
        key, other = ("adds", "deletes") if action == "add" else ("deletes", "adds")
        body += [b"," * (len(body) > 1), *_entries(ids, {key: [audience_id], other: []})]
    return _multi_profile(
        b"".join([*body, b"]}"]),
        sum(len(ids) for ids, *_ in groups),
        lambda: chain.from_iterable(ids for ids, *_ in groups),
        audience_id_type,
        multi_profile_path,
    )


def _entries(ids: Sequence[str], change: dict[str, Any]) -> list[bytes]:
    """Encode the entries of profiles with the same change; without objects if no ID needs JSON's escapes."""
    joined = "".join(ids)
    if len(encode_json(joined)) != len(joined.encode()) + 2:
        return [encode_json([{"customerProfileId": profile_id, **change} for profile_id in ids])[1:-1]]
    opening = '{"customerProfileId":"'
    closing = f'",{encode_json(change).decode()[1:]}'
    return [opening.encode(), f"{closing},{opening}".join(ids).encode(), closing.encode()]


def _multi_profile(
    body: bytes,
    changes: int,
    private: Callable[[], Iterable[str]],
    audience_id_type: AudienceIdType,
    spelling: Spelling,
) -> Request[None]:
    _check_size(changes)
    version = "/v2" if audience_id_type == "external" else ""
    noun = "customer_profiles" if spelling == "plural" else "customer_profile"
    path = f"/cdp{version}/{noun}/audiences"
    return Request(Operation.UPDATE_PROFILES_AUDIENCES, "PUT", path, body, changes, private)


def _audience_body(audience_id: str, audience_name: str) -> bytes:
    check_audience_id("audience_id", audience_id, "external")
    check_text("audience_name", audience_name)
    return encode_json({"audienceId": audience_id, "audienceName": audience_name})


def _changes(
    adds: Iterable[str | int], deletes: Iterable[str | int], id_type: AudienceIdType
) -> tuple[list[str | int], list[str | int]]:
    for ids in (adds, deletes):
        if isinstance(ids, str | bytes | Mapping) or not isinstance(ids, Iterable):
            raise InvalidInputError(
                f"Audience IDs to add or remove must be a list, not {type(ids).__name__}."
            )
    joined = [check_audience_id("audience ID to add", audience, id_type) for audience in adds]
    left = [check_audience_id("audience ID to remove", audience, id_type) for audience in deletes]
    both = set(joined) & set(left)
    if both:
        raise InvalidInputError(
            f"{len(both)} audience(s) are in both the adds and the removes of one profile.\n"
            "Leave each audience in one list."
        )
    return joined, left


def _check_size(changes: int) -> None:
    if changes > MAX_CHANGES:
        raise InvalidInputError(
            f"One request takes at most {MAX_CHANGES} adds and removes together,\n"
            f"but this one has {changes}. Split it."
        )


def _segment(name: str, identifier: str) -> str:
    check_in_path(name, identifier)
    return quote(identifier, safe="")


def _audience_path(audience_id: str) -> str:
    return f"/cdp/audiences/{_segment('audience_id', audience_id)}"


def _profile_segment(customer_profile_id: str) -> str:
    check_text("customer_profile_id", customer_profile_id)
    return f"/cdp/customer_profile/{_segment('customer_profile_id', customer_profile_id)}"


def _scalars(value: Any) -> Iterable[str]:
    if isinstance(value, bytes):
        value = json.loads(value, parse_float=str, parse_int=str)
    if isinstance(value, dict):
        for part in value.values():
            yield from _scalars(part)
    elif isinstance(value, list):
        for part in value:
            yield from _scalars(part)
    elif isinstance(value, str):
        yield value
