"""``@task.talon_audience`` and ``@task.talon_profiles`` send a function's result to Talon.One."""

from __future__ import annotations

import inspect
import pickle
from collections.abc import AsyncIterator, Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from itertools import islice
from typing import TYPE_CHECKING, Any

from airflow.providers.common.compat.sdk import (
    Context,
    DecoratedOperator,
    TaskDecorator,
    context_merge,
    determine_kwargs,
    task_decorator_factory,
)

from airflow_provider_talon_cdp.contract import check_choice
from airflow_provider_talon_cdp.exceptions import InvalidInputError
from airflow_provider_talon_cdp.operators._arguments import as_columns, as_list, as_types
from airflow_provider_talon_cdp.operators._base import MembershipOperator
from airflow_provider_talon_cdp.operators._fields import ends_retries
from airflow_provider_talon_cdp.transfers.sql_to_audience import Mode
from airflow_provider_talon_cdp.transfers.sql_to_profiles import ProfilesOperator

if TYPE_CHECKING:
    from airflow_provider_talon_cdp.changes.change import Record
    from airflow_provider_talon_cdp.sync.mirror import Mirror
    from airflow_provider_talon_cdp.sync.report import Report

_BLOCK = 5000


class _FunctionOperator(DecoratedOperator):
    """Base of the operators that the decorators make of a function."""

    @ends_retries
    def execute(self, context: Context) -> dict[str, Any]:
        """Call the function, and send its result."""
        context_merge(context, self.op_kwargs)
        self._arguments = determine_kwargs(self.python_callable, self.op_args, context)
        return self.deliver(context).summary()

    def deliver(self, context: Context) -> Report:
        """Send the function's result."""
        raise NotImplementedError

    def results(self, wanted: str) -> Iterator[Any]:
        """Call the function, which may be asynchronous, and return what it returns or yields.

        Args:
            wanted: What the function must return or yield, for the error.

        Raises:
            InvalidInputError: The function returned something else than a list or an iterator.
        """
        from airflow_provider_talon_cdp.sync.loop import run_in_loop_thread  # noqa: PLC0415

        result = self.python_callable(*self.op_args, **self._arguments)
        if inspect.iscoroutine(coroutine := result):
            result = run_in_loop_thread(lambda _: coroutine)
        if isinstance(result, AsyncIterator):
            return _awaited(result)
        if isinstance(result, Iterator):
            return result
        try:
            return iter(as_list("The function's result", result))
        except InvalidInputError as error:
            raise InvalidInputError(
                f"The function must return or yield {wanted},\nbut it returned a {type(result).__name__}."
            ) from error


class TalonAudienceTask(_FunctionOperator, MembershipOperator):
    """``@task.talon_audience``: the profile IDs that a function returns or yields become an audience.

    A function that yields is streamed in constant memory, and each try of the task calls it once: a mirror
    keeps the sorted IDs on the worker's disk, also for a second plan.

    Args:
        audience_id: The audience.
        mode: ``mirror`` makes the audience equal to the result; ``add`` and ``remove`` send all of it.
        kwargs: As in ``MembershipOperator``.

    Returns:
        The counts of the sync, as in ``SqlToTalonAudienceOperator``; no member IDs.
    """

    template_fields: Sequence[str] = (
        *DecoratedOperator.template_fields,
        *MembershipOperator.template_fields,
    )
    custom_operator_name = "@task.talon_audience"
    # The function may have been corrected since the earlier try.
    resumes_plans = False

    def __init__(self, *, audience_id: str | int, mode: Mode = "mirror", **kwargs: Any) -> None:
        super().__init__(audience_id=audience_id, **kwargs)
        self.mode = mode
        check_choice("mode", mode, Mode)
        self.check_mode(mode)

    def deliver(self, context: Context) -> Report:
        """Send the members."""
        if self.mode == "mirror":
            return self.run_mirror(context)
        return self.send_changes(context, self._records(self.mode))

    def mirror(self, context: Context) -> Mirror:  # noqa: ARG002 - mirrors with a ledger= look at it
        """Return the mirror that makes the audience equal to the result."""
        from airflow_provider_talon_cdp.changes.spool import sorted_members  # noqa: PLC0415

        return self.audience_mirror(_read_once(lambda: sorted_members(self._records("add"))))

    def _records(self, verb: str) -> Generator[Record, None, None]:
        from airflow_provider_talon_cdp.changes.change import read_members  # noqa: PLC0415

        ids = self.results("profile IDs, such as a list or df['customer_id'].tolist()")
        while block := list(islice(ids, _BLOCK)):
            yield from read_members(block, self.one_audience(), verb)


class TalonProfilesTask(_FunctionOperator, ProfilesOperator):
    """``@task.talon_profiles``: the rows that a function returns or yields become attributes of profiles.

    A row is a mapping with the profile's ID under ``profile_id_column``; its other keys are attributes,
    or only those that ``attributes`` names. A function that yields is streamed, and each try of the task
    calls it once, as the rows are sorted on the worker's disk.

    Args:
        kwargs: As in ``ProfilesOperator``.

    Returns:
        The counts of the sync, as in ``SqlToTalonProfilesOperator``; no profile IDs.
    """

    template_fields: Sequence[str] = (
        *DecoratedOperator.template_fields,
        *ProfilesOperator.template_fields,
    )
    custom_operator_name = "@task.talon_profiles"

    def deliver(self, context: Context) -> Report:
        """Send the profiles."""
        return self.run_mirror(context)

    def source(self) -> Callable[[], Iterable[Any]]:
        """Return a function that calls the decorated one and sorts its rows."""
        kind = self.kind()
        return lambda: kind.sort(self._profiles())

    def _profiles(self) -> Generator[Any, None, None]:
        from airflow_provider_talon_cdp.transfers._rows import (  # noqa: PLC0415
            read_profile,
            with_json_attributes,
        )

        encode, columns = self.encoder(), as_columns("attributes", self.attributes)
        special = {self.profile_id_column, self.order_by_column, self.attributes_column}
        in_every_row = {name for name in (self.profile_id_column, self.order_by_column) if name}
        named = {name for name in (*(columns or ()), self.attributes_column) if name}
        unseen, untyped = set(named), set(as_types("types", self.types))

        def attributes_of(row: Mapping[str, Any]) -> dict[str, Any]:
            if columns is not None or self.attributes_column is not None:
                values = {name: row[key] for key, name in (columns or {}).items() if key in row}
            else:
                values = {key: value for key, value in row.items() if key not in special}
            if self.attributes_column is not None:
                values = with_json_attributes(values, row.get(self.attributes_column))
            untyped.difference_update(values)
            return values

        has_rows = has_attributes = False
        for row in self.results("rows, such as a list of mappings or df.to_dict('records')"):
            if not isinstance(row, Mapping) or not in_every_row <= row.keys():
                missing = min(in_every_row - set(row if isinstance(row, Mapping) else ()))
                raise InvalidInputError(
                    f"Each row of the function must be a mapping with the key {missing!r},\n"
                    f'such as {{"{self.profile_id_column}": "c1", "Tier": "gold"}}, but one is a '
                    f"{type(row).__name__}{' without that key' if isinstance(row, Mapping) else ''}."
                )
            unseen.difference_update(row)
            has_attributes = has_attributes or bool(named) or not row.keys() <= special
            order = row.get(self.order_by_column) if self.order_by_column else None
            has_rows = True
            yield read_profile(row, row[self.profile_id_column], order, attributes_of, encode)
        if has_rows and named and unseen == named:
            raise InvalidInputError(
                f"No row of the function has the key {min(unseen)!r}, or another one\n"
                "that the task's arguments name for attributes. Nothing was sent."
            )
        if has_rows and not has_attributes:
            raise InvalidInputError(
                f"No row of the function has a key for an attribute, beside {self.profile_id_column!r}.\n"
                "Nothing was sent."
            )
        if has_rows and (unseen or untyped):
            self.log.warning(
                "No row of the function has what the task's arguments name: %s.",
                ", ".join(sorted(unseen | untyped)),
            )


def _awaited(items: AsyncIterator[Any]) -> Iterator[Any]:
    """Read an asynchronous iterator to its end, onto this worker's disk, and yield its items."""
    from airflow_provider_talon_cdp.changes.spool import Spool  # noqa: PLC0415
    from airflow_provider_talon_cdp.sync.loop import run_in_loop_thread  # noqa: PLC0415

    spool = Spool()

    async def read(_: object) -> None:
        block: list[Any] = []
        async for item in items:
            block.append(item)
            if len(block) == _BLOCK:
                spool.write(pickle.dumps(block))
                block.clear()
        spool.write(pickle.dumps(block))

    with closing(spool):
        run_in_loop_thread(read)
        for piece in spool:
            # As in _read_once.
            yield from pickle.loads(piece)  # noqa: S301


def _read_once(read: Callable[[], Iterable[Record]]) -> Callable[[], Generator[Record, None, None]]:
    """Return a source that reads once, and keeps the records on this worker's disk for a second plan.

    A function that takes its result out of a queue would give that plan only the rest.
    """
    from airflow_provider_talon_cdp.changes.spool import Spool  # noqa: PLC0415

    kept: list[Spool] = []

    def records() -> Generator[Record, None, None]:
        if not kept:
            spool = Spool()
            for record in read():
                spool.write(pickle.dumps(record))
            kept.append(spool)
        for piece in kept[0]:
            # This process wrote it, and no other process can reach it.
            yield pickle.loads(piece)  # noqa: S301

    return records


def talon_audience_task(python_callable: Callable[..., Any] | None = None, **kwargs: Any) -> TaskDecorator:
    """Make ``@task.talon_audience`` of a function; the arguments are those of ``TalonAudienceTask``."""
    return task_decorator_factory(python_callable, decorated_operator_class=TalonAudienceTask, **kwargs)


def talon_profiles_task(python_callable: Callable[..., Any] | None = None, **kwargs: Any) -> TaskDecorator:
    """Make ``@task.talon_profiles`` of a function; the arguments are those of ``TalonProfilesTask``."""
    return task_decorator_factory(python_callable, decorated_operator_class=TalonProfilesTask, **kwargs)
