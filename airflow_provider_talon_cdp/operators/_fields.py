"""The fields of all operators: how they are rendered, and which errors end a task's retries.

DAG files import this module, so the hook is imported only when a task runs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property, partial, wraps
from itertools import chain
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, Concatenate, ParamSpec, TypeVar, cast
from uuid import uuid4

from airflow.providers.common.compat.sdk import AirflowFailException, BaseOperator, Context, XComArg

from airflow_provider_talon_cdp.exceptions import InvalidInputError, TalonCdpError, also_of
from airflow_provider_talon_cdp.operators._arguments import is_literal, is_template

if TYPE_CHECKING:
    from airflow_provider_talon_cdp.hooks.talon_cdp import TalonCdpHook

T = TypeVar("T")
P = ParamSpec("P")
Op = TypeVar("Op", bound=BaseOperator)

# Template fields whose text stays text, also if it looks like a number and the DAG renders native objects.
_TEXT_FIELDS = ("audience_id", "audience_name", "customer_profile_id", "ledger")
_TEXT_PREFIX = "text:"
# Template fields that may be rendered to None: no limit, or nothing was pushed. as_bool refuses it itself.
_MAY_BE_NONE = ("max_removals", "max_additions", "pushed", "is_dry_run")


def ends_retries(execute: Callable[Concatenate[Op, P], T]) -> Callable[Concatenate[Op, P], T]:
    """Decorate ``execute`` so that an error that no retry can fix ends the task's retries.

    Such an error is raised as an ``AirflowFailException`` that is also of the error's own class, with the
    error as its cause.
    """

    @wraps(execute)
    def executed(self: Op, /, *args: P.args, **kwargs: P.kwargs) -> T:
        try:
            if isinstance(self, TextFieldsOperator):
                self.refuse_none()
            return execute(self, *args, **kwargs)
        except TalonCdpError as error:
            # Logged before Airflow's traceback, which the UI folds.
            self.log.error("%s", error)  # noqa: TRY400
            self.log.debug("Where it was raised:", exc_info=error)
            # The UI scrolls to the end of a log, and the traceback's frames would hide the text.
            error.with_traceback(None)
            if error.retryable or isinstance(error, AirflowFailException):
                raise
            raise also_of(AirflowFailException, error) from error

    return executed


def _of_mapped(init: Callable[..., None]) -> Callable[..., None]:
    """Have the operator that Airflow makes of a mapped one, in each try of the task, know its arguments.

    If they are invalid, the task's retries end.
    """

    @wraps(init)
    def initialised(self: TextFieldsOperator, **kwargs: Any) -> None:
        is_mapped = getattr(self, "_BaseOperator__from_mapped", False)
        if is_mapped and not self.mapped_arguments:
            # Those of the outermost class: it may make templates of them for its base class.
            self.mapped_arguments = kwargs
        try:
            init(self, **kwargs)
        except InvalidInputError as error:
            if not is_mapped or isinstance(error, AirflowFailException):
                raise
            raise also_of(AirflowFailException, error) from error

    return initialised


def render_templates(data: Any, render: Callable[[Any], Any]) -> Any:
    """Return data in which ``render`` has rendered the templates and references, however deep they are.

    Other text stays as it is: native rendering would make a number of the text "0".
    """
    if isinstance(data, dict):
        return {key: render_templates(each, render) for key, each in data.items()}
    if isinstance(data, list | tuple | set | frozenset):
        rendered = (render_templates(each, render) for each in data)
        # For drivers, a tuple is another type than a list.
        return tuple(rendered) if isinstance(data, tuple) else list(rendered)
    return data if is_literal(data) else render(data)


class TextFieldsOperator(BaseOperator):
    """Base of the operators with IDs and names that are rendered to text, never to a number."""

    talon_cdp_conn_id: str
    unrendered_lists: ClassVar[Sequence[str]] = ()
    """Fields with lists of data: only elements that are templates are rendered, and always to text."""
    mapped_arguments: Mapping[str, Any] = MappingProxyType({})
    """Arguments of an operator that Airflow made of a mapped one."""
    rendered_to_nothing: Sequence[str] = ()
    """Fields whose template was rendered to nothing, or whose upstream task returned nothing."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Wrap the constructor for mapped tasks."""
        super().__init_subclass__(**kwargs)
        if "__init__" in vars(cls):
            cls.__init__ = _of_mapped(cls.__init__)  # type: ignore[method-assign]

    @cached_property
    def hook(self) -> TalonCdpHook:
        """The hook of the Talon.One connection. Each try of a task has its own copy of the operator."""
        return open_hook(self.talon_cdp_conn_id)

    def bind_parameters(self) -> Any:
        """Return the bind parameters of a query, of which only templates are rendered."""
        return None

    def render_template(
        self, content: Any, context: Context, jinja_env: Any = None, seen_oids: set[int] | None = None
    ) -> Any:
        """Render a field; of bind parameters and of a list in ``unrendered_lists``, only the templates."""
        render = partial(super().render_template, context=context, jinja_env=jinja_env, seen_oids=seen_oids)
        if id(content) in (seen_oids or ()):
            return content
        if content is self.bind_parameters():
            return render_templates(content, render)
        if not isinstance(content, list | tuple | set | frozenset) or not any(
            content is getattr(self, name) for name in self.unrendered_lists
        ):
            return render(content)

        def rendered(element: Any) -> Any:
            if isinstance(element, str):
                return self.render_text(element, context, jinja_env)
            return element.resolve(context)

        return list(render_templates(content, rendered))

    def render_text(self, template: str, context: Context, jinja_env: Any) -> str:
        """Render a template to text, also if the DAG renders native objects."""
        # With the prefix, native rendering cannot turn the text into a number.
        text: str = super().render_template(_TEXT_PREFIX + template, context, jinja_env)
        return text.removeprefix(_TEXT_PREFIX)

    def _do_render_template_fields(
        self,
        parent: Any,
        template_fields: Iterable[str],
        context: Context,
        jinja_env: Any,
        seen_oids: set[int],
        **more: Any,
    ) -> None:
        """Render all fields. Airflow calls this for mapped tasks too, so it is the method to extend."""
        if parent is not self:
            super()._do_render_template_fields(parent, template_fields, context, jinja_env, seen_oids, **more)
            return
        seen_oids.update(map(id, self._values_of_rows(context)))
        given = [name for name in self._own_fields() if _may_become_none(getattr(self, name, None))]
        values = {name: getattr(self, name, None) for name in _TEXT_FIELDS}
        # Airflow has resolved those in seen_oids from another task's result, and they are no templates.
        texts = [name for name, each in values.items() if isinstance(each, str) and id(each) not in seen_oids]
        for name in texts:
            # With the prefix, native rendering cannot turn the text into a number.
            setattr(self, name, f"{_TEXT_PREFIX}{values[name]}")
        try:
            super()._do_render_template_fields(parent, template_fields, context, jinja_env, seen_oids, **more)
        finally:
            for name in texts:
                setattr(self, name, getattr(self, name).removeprefix(_TEXT_PREFIX))
        for name in texts:
            if getattr(self, name) == "None":
                # Native rendering makes None of it, which stays a missing value.
                setattr(self, name, self.render_template(values[name], context, jinja_env))
        # An empty state_uri would mean the default, where the ledger of earlier runs is not.
        self.rendered_to_nothing = [
            name
            for name in given
            if (value := getattr(self, name)) is None or (name == "state_uri" and not value)
        ]

    def _own_fields(self) -> set[str]:
        """Return the template fields of this package. A DAG author's subclass may have others."""
        package = __name__.partition(".")[0]
        ours = [kind for kind in type(self).__mro__ if kind.__module__.startswith(f"{package}.")]
        return set(chain.from_iterable(vars(kind).get("template_fields", ()) for kind in ours))

    def refuse_none(self) -> None:
        """Refuse None of a template or an upstream task: it is often no limit, or the default for all."""
        if names := [name for name in self.rendered_to_nothing if name not in _MAY_BE_NONE]:
            what = "null" if getattr(self, names[0]) is None else "empty"
            raise InvalidInputError(
                f"{names[0]} is {what} after rendering. Did the upstream task return nothing?\n"
                "Nothing was sent. If its default is meant, remove the argument."
            )

    def run_owner(self, context: Context) -> str:
        """Return a name of the task instance, which is the same in a retry."""
        instance = context.get("ti")
        if instance is None:
            return f"{self.task_id}/{uuid4().hex}"
        return f"{instance.dag_id}/{instance.task_id}/{instance.run_id}/{instance.map_index}"

    def _values_of_rows(self, context: Context) -> Iterator[Any]:
        """Yield the values that ``expand_kwargs`` took from an upstream task's result.

        Airflow renders them, unlike those of ``expand``: a value could read a connection's password. Only
        ``sql`` is left to Airflow, as it may be the path of a ``.sql`` file.
        """
        dag, instance = self.get_dag(), cast("Any", context.get("ti"))
        mapped: Any = dag.task_dict.get(self.task_id) if dag else None
        # A decorated function is mapped over its arguments.
        expanded = getattr(mapped, "op_kwargs_expand_input", None) or getattr(mapped, "expand_input", None)
        rows = getattr(expanded, "value", None)
        if isinstance(rows, list | tuple):
            rows = rows[instance.map_index]
        if dag is None or not isinstance(rows, XComArg):
            return
        group = mapped.task_group.default_args if mapped.task_group else {}
        written = [mapped.partial_kwargs, mapped.partial_kwargs.get("op_kwargs", {}), dag.default_args, group]
        left_out = ("sql", "op_args", "op_kwargs")
        given = [value for name, value in self.mapped_arguments.items() if name not in left_out]
        given += getattr(self, "op_kwargs", {}).values()
        literals = set(map(id, chain.from_iterable(each.values() for each in written)))
        yield from (value for value in given if id(value) not in literals)


def _may_become_none(value: Any) -> bool:
    # Results of other tasks, and arguments of a mapped task group. A DAG's parameter may be None on purpose.
    refers = hasattr(value, "resolve") and type(value).__name__ != "DagParam"
    return is_template(value) or refers


def open_hook(talon_cdp_conn_id: str) -> TalonCdpHook:
    """Return the hook of a connection. Its module imports HTTP clients, so it is imported here."""
    from airflow_provider_talon_cdp.hooks.talon_cdp import TalonCdpHook  # noqa: PLC0415

    return TalonCdpHook(talon_cdp_conn_id)
