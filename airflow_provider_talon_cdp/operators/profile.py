"""Update one customer profile."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar
from uuid import UUID

from airflow.providers.common.compat.sdk import Context

from airflow_provider_talon_cdp.connection_form import DEFAULT_CONN_ID
from airflow_provider_talon_cdp.contract import ON_UNCLEAR, OnUnclear, check_bools, check_choice, check_text
from airflow_provider_talon_cdp.exceptions import InvalidInputError
from airflow_provider_talon_cdp.operators._arguments import (
    as_mapping,
    as_types,
    audience_ids_of,
    check_literals,
    check_rendered,
    is_template,
)
from airflow_provider_talon_cdp.operators._fields import TextFieldsOperator, ends_retries, render_templates
from airflow_provider_talon_cdp.operators._state import (
    check_state_uri,
    explicit_state_uri,
    outside_changes,
    remote_executor,
)

if TYPE_CHECKING:
    from airflow.providers.common.compat.sdk import XComArg

    from airflow_provider_talon_cdp.api.calls import IntegrationState

# Types of attributes that may be text that looks like a number.
_TEXTS = ("string", "(list string)")


class UpdateProfileOperator(TextFieldsOperator):
    """Set attributes of one customer profile, and add it to and remove it from audiences by internal ID.

    A profile that does not exist is created. For many profiles use SqlToTalonProfilesOperator.

    Args:
        customer_profile_id: Integration ID of the profile: 1 to 1000 characters, or an integer or UUID.
        attributes: Values by attribute name. Strings, numbers, booleans, Decimals, dates, datetimes, UUIDs,
            and lists of them; None deletes the attribute. A value that is the result of another task must not
            be None. Attributes must be defined in the Campaign Manager.
        types: Talon.One's type by attribute name, as in ``SqlToTalonProfilesOperator``. It converts the text
            that a template renders.
        run_rule_engine: Run Talon.One's rules for this update; Talon.One always does if audiences change.
        add_audiences: Internal audience IDs (integers) to join.
        remove_audiences: Internal audience IDs (integers) to leave.
        skip_unknown_attributes: Ignore attributes that are not defined in Talon.One, instead of failing.
        on_unclear: What to do if the call runs rules and gets no clear answer: ``fail``, or ``retry``, with
            which the rules may run twice and give a coupon or points twice.
        state_uri: Folder of the ledgers, as in ``SqlToTalonAudienceOperator``: mirrors of these audiences and
            syncs of these attributes learn of the change, so that their next run checks the profile.
        talon_cdp_conn_id: Airflow connection.

    Returns:
        The numbers of ``attributes``, of ``added`` and ``removed`` audiences, and of the rules' ``effects``.
        ``may_have_run_twice`` is true if rules ran again after an attempt without a clear answer.
    """

    template_fields: Sequence[str] = (
        "customer_profile_id",
        # Before the attributes, whose rendering looks at it.
        "types",
        "attributes",
        "add_audiences",
        "remove_audiences",
        "state_uri",
        "talon_cdp_conn_id",
    )
    ui_color = "#d5ecff"

    def __init__(
        self,
        *,
        customer_profile_id: str | int | UUID,
        attributes: Mapping[str, Any] | XComArg | None = None,
        types: Mapping[str, str] | XComArg | None = None,
        run_rule_engine: bool = False,
        add_audiences: Sequence[int] | XComArg = (),
        remove_audiences: Sequence[int] | XComArg = (),
        skip_unknown_attributes: bool = False,
        on_unclear: OnUnclear = ON_UNCLEAR,
        state_uri: str | None = None,
        talon_cdp_conn_id: str = DEFAULT_CONN_ID,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.customer_profile_id = customer_profile_id
        self.attributes = attributes
        by_name = attributes.items() if isinstance(attributes, Mapping) else ()
        self._templates = {name for name, value in by_name if any(map(is_template, _leaves(value)))}
        self._is_template = is_template(attributes)
        self._of_nothing: list[str] = []
        self.types = types
        self.run_rule_engine = run_rule_engine
        self.add_audiences = add_audiences
        self.remove_audiences = remove_audiences
        self.skip_unknown_attributes = skip_unknown_attributes
        self.on_unclear = on_unclear
        self.state_uri = state_uri
        self.talon_cdp_conn_id = talon_cdp_conn_id
        check_literals(_profile_id, customer_profile_id=customer_profile_id)
        check_choice("on_unclear", on_unclear, OnUnclear)
        check_bools(run_rule_engine=run_rule_engine, skip_unknown_attributes=skip_unknown_attributes)
        check_literals(as_mapping, attributes=attributes)
        check_literals(as_types, types=types)
        check_ids = partial(audience_ids_of, id_type="internal")
        check_literals(check_ids, add_audiences=add_audiences, remove_audiences=remove_audiences)
        check_literals(check_state_uri, state_uri=state_uri)

    @ends_retries
    def execute(self, context: Context) -> dict[str, Any]:
        """Send the update."""
        return self._send(context)

    def _send(self, context: Context) -> dict[str, Any]:
        added = audience_ids_of("add_audiences", self.add_audiences, "internal")
        removed = audience_ids_of("remove_audiences", self.remove_audiences, "internal")
        attributes = self._read_attributes()
        profile_id = _read_profile_id(self)
        if not attributes and not added and not removed and not self.run_rule_engine:
            raise InvalidInputError(
                "There is nothing to do: no attributes, no audiences and no run_rule_engine."
            )
        # Opened before the call is marked: with an invalid connection no rules may have run.
        _ = self.hook.client
        runs_rules = bool(self.run_rule_engine or added or removed)
        with _noting_changes(
            self, context, profile_id, added, removed, attributes, runs_rules=runs_rules
        ) as was_sent:
            state = self.hook.update_customer_profile(
                profile_id,
                attributes=attributes or None,
                types=as_types("types", self.types),
                run_rule_engine=self.run_rule_engine,
                add_audiences=added,
                remove_audiences=removed,
                skip_unknown_attributes=self.skip_unknown_attributes,
                on_unclear=self.on_unclear,
            )
        return _summary(added, removed, state, was_sent=was_sent) | {"attributes": len(attributes)}

    def render_template(
        self, content: Any, context: Context, jinja_env: Any = None, seen_oids: set[int] | None = None
    ) -> Any:
        """Render a field; of the attributes only the templates, and to text if ``types`` declares text.

        Native rendering would turn the text "1.10" into the number 1.1. Attributes for which another task
        returned nothing are noted.
        """
        if (
            not isinstance(content, dict)
            or content is not self.attributes
            or id(content) in (seen_oids or ())
        ):
            return super().render_template(content, context, jinja_env, seen_oids)
        types = self.types if isinstance(self.types, Mapping) else {}
        self._of_nothing = []

        def rendered(value: Any, name: str) -> Any:
            if isinstance(value, str) and types.get(name) in _TEXTS:
                text = self.render_text(value, context, jinja_env)
                if text != "None":
                    return text
            made = super(UpdateProfileOperator, self).render_template(value, context, jinja_env, seen_oids)
            # A DAG's parameter, or an argument of a mapped task group, may be None on purpose.
            if (
                made is None
                and not isinstance(value, str)
                and type(value).__name__ not in ("DagParam", "MappedArgument")
            ):
                self._of_nothing.append(name)
            return made

        return {
            name: render_templates(value, partial(rendered, name=name)) for name, value in content.items()
        }

    def _read_attributes(self) -> dict[str, Any]:
        """Return the attributes, checked."""
        attributes = dict(as_mapping("attributes", self.attributes) or {})
        types = as_types("types", self.types)
        for name in self._of_nothing:
            raise InvalidInputError(
                f"The attribute {name!r} is null after rendering. Did the upstream task return nothing?\n"
                "Nothing was sent. To delete an attribute, write None in the mapping."
            )
        for name in attributes.keys() if self._is_template else self._templates:
            for each in _leaves(attributes.get(name)):
                check_rendered(f"The attribute {name!r}", each)
        for name in types.keys() - attributes.keys():
            raise InvalidInputError(f"types has {name!r}, which is not in attributes.")
        return attributes


class UpdateProfileAudiencesOperator(TextFieldsOperator):
    """Add one customer profile to audiences and remove it from others, by their IDs in the CDP.

    Talon.One runs its rules for this call.

    Args:
        customer_profile_id: Integration ID of the profile: 1 to 1000 characters, or an integer or UUID.
        add_audiences: External audience IDs (strings) to join.
        remove_audiences: External audience IDs (strings) to leave; at most 1000 in both lists together.
        on_unclear: What to do if there is no clear answer: as in ``UpdateProfileOperator``.
        state_uri: Folder of the ledgers, as in ``SqlToTalonAudienceOperator``: mirrors of these audiences
            learn of the change, so that their next run checks the membership.
        talon_cdp_conn_id: Airflow connection.

    Returns:
        ``added``, ``removed``, ``effects`` and ``may_have_run_twice``, as in ``UpdateProfileOperator``.
    """

    template_fields: Sequence[str] = (
        "customer_profile_id",
        "add_audiences",
        "remove_audiences",
        "state_uri",
        "talon_cdp_conn_id",
    )
    ui_color = UpdateProfileOperator.ui_color
    unrendered_lists: ClassVar[Sequence[str]] = ("add_audiences", "remove_audiences")

    def __init__(
        self,
        *,
        customer_profile_id: str | int | UUID,
        add_audiences: Sequence[str] | XComArg = (),
        remove_audiences: Sequence[str] | XComArg = (),
        on_unclear: OnUnclear = ON_UNCLEAR,
        state_uri: str | None = None,
        talon_cdp_conn_id: str = DEFAULT_CONN_ID,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.customer_profile_id = customer_profile_id
        self.add_audiences = add_audiences
        self.remove_audiences = remove_audiences
        self.on_unclear = on_unclear
        self.state_uri = state_uri
        self.talon_cdp_conn_id = talon_cdp_conn_id
        check_choice("on_unclear", on_unclear, OnUnclear)
        check_literals(_profile_id, customer_profile_id=customer_profile_id)
        check_ids = partial(audience_ids_of, id_type="external")
        check_literals(check_ids, add_audiences=add_audiences, remove_audiences=remove_audiences)
        check_literals(check_state_uri, state_uri=state_uri)

    @ends_retries
    def execute(self, context: Context) -> dict[str, Any]:
        """Send the update."""
        return self._send(context)

    def _send(self, context: Context) -> dict[str, Any]:
        added = audience_ids_of("add_audiences", self.add_audiences, "external")
        removed = audience_ids_of("remove_audiences", self.remove_audiences, "external")
        profile_id = _read_profile_id(self)
        # Before it is noted that the call is made.
        if not added and not removed:
            raise InvalidInputError(
                "add_audiences and remove_audiences are both empty: there is nothing to do."
            )
        _ = self.hook.client
        with _noting_changes(self, context, profile_id, added, removed) as was_sent:
            state = self.hook.update_customer_profile_audiences(
                profile_id, add_audiences=added, remove_audiences=removed, on_unclear=self.on_unclear
            )
        return _summary(added, removed, state, was_sent=was_sent)


def _leaves(value: Any) -> Iterator[Any]:
    """Yield the values in lists, sets and mappings, however deep."""
    if isinstance(value, dict):
        value = list(value.values())
    if not isinstance(value, list | tuple | set):
        yield value
        return
    for each in value:
        yield from _leaves(each)


def _read_profile_id(operator: UpdateProfileOperator | UpdateProfileAudiencesOperator) -> str:
    """Return the profile ID, checked; warn if it looks wrong, as it would make a new profile."""
    from airflow_provider_talon_cdp.changes.suspicious import SuspiciousIds  # noqa: PLC0415

    profile_id = _profile_id("customer_profile_id", operator.customer_profile_id)
    suspicious = SuspiciousIds()
    suspicious.add([profile_id])
    if suspicious.texts:
        operator.log.warning(
            "%s\nIt is sent unchanged. If Talon.One does not know this ID, it creates a new profile.",
            "\n".join(suspicious.texts),
        )
    return profile_id


def _profile_id(name: str, value: Any) -> str:
    """Return a profile ID as text; integers and UUIDs become text, as they do in a query's rows."""
    is_number = isinstance(value, int) and not isinstance(value, bool)
    return check_text(
        name, check_rendered(name, str(value) if is_number or isinstance(value, UUID) else value)
    )


@contextmanager
def _noting_changes(
    operator: UpdateProfileOperator | UpdateProfileAudiencesOperator,
    context: Context,
    profile_id: str,
    added: Sequence[int | str],
    removed: Sequence[int | str],
    attributes: Collection[str] = (),
    *,
    runs_rules: bool = True,
) -> Iterator[bool]:
    """Note the change in the ledgers of the audiences and of the attributes, while the block sends it.

    Yields:
        Whether an earlier try may have run the call's rules.
    """
    from airflow_provider_talon_cdp.changes.change import Chunk  # noqa: PLC0415
    from airflow_provider_talon_cdp.ledger.outside import ATTRIBUTES  # noqa: PLC0415

    keys = [*map(str, (*added, *removed)), *([ATTRIBUTES] if attributes else ())]
    verbs = ["add"] * len(added) + ["remove"] * len(removed) + ["add"] * bool(attributes)
    id_type = "internal" if isinstance(operator, UpdateProfileOperator) else "external"
    outside = outside_changes(operator, context, id_type=id_type)
    outside.attributes = attributes
    again = operator.on_unclear == "retry"
    if runs_rules:
        _warn_of_unknown_try(operator, context)
    with (
        outside.noting(Chunk([profile_id] * len(verbs), keys, verbs)) if keys else nullcontext(),
        outside.calling_with_rules(again=again)
        if runs_rules
        else nullcontext(enter_result=False) as was_sent,
    ):
        yield was_sent


def _warn_of_unknown_try(
    operator: UpdateProfileOperator | UpdateProfileAudiencesOperator, context: Context
) -> None:
    """Warn if an earlier try's mark of a call that runs rules may be on another worker's disk."""
    is_retry = getattr(context.get("ti"), "try_number", 1) > 1
    if is_retry and not explicit_state_uri(operator.state_uri) and (executor := remote_executor(operator)):
        operator.log.warning(
            "The rules of this call may run twice: %s may have run the earlier try elsewhere, and whether\n"
            "that try made the call is on its worker's disk. Look at the profile in the Campaign Manager.\n"
            "Set [talon_cdp] state_uri in Airflow's configuration, or state_uri= of this task, to a place\n"
            "that all workers reach.",
            executor,
        )


def _summary(
    added: Sequence[object], removed: Sequence[object], state: IntegrationState, *, was_sent: bool
) -> dict[str, Any]:
    return {
        "added": len(added),
        "removed": len(removed),
        "effects": len(state.get("effects") or ()),
        "may_have_run_twice": state.may_have_run_twice or was_sent,
    }
