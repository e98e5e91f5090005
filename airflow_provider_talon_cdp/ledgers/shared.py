"""A plan that several processes push: one plans, each of the others pushes some parts, and a last one looks whether all is in.

The one that plans passes ``handed_over=True`` to ``enforce`` and ``ledger.plan`` and ``ledger.parts`` to the others. They
may run at once or with pauses between them, on any machine that reaches the state URI. All have the same owner.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

from airflow_provider_talon_cdp.exceptions import InvalidInputError, LedgerError
from airflow_provider_talon_cdp.ledgers.files import FilesLedger
from airflow_provider_talon_cdp.ledgers.letters import DeadLetters
from airflow_provider_talon_cdp.ledgers.lock import Lock
from airflow_provider_talon_cdp.ledgers.pushing import Pushing
from airflow_provider_talon_cdp.ledgers.storage import Folder, names_in
from airflow_provider_talon_cdp.sync.ledger import Outcome

# Parts that an error text names.
_NAMED = 10


@contextmanager
def pushing_parts(ledger: FilesLedger, owner: str, plan: str, parts: Sequence[int]) -> Iterator[Pushing]:
    """Push some parts of a plan that another process put in force; again, where an earlier try was killed.

    Args:
        ledger: The ledger, opened by this process.
        owner: Who pushes; all processes of one sync have the same owner.
        plan: Which plan.
        parts: Numbers of the parts, from 0. Of two processes that push the same first part, the later one goes on, so each
            part must always be in the same company.

    Raises:
        LedgerError: The plan is not in force any more or does not do any more, or somebody else is at work on it. Nothing was
            sent then.
        InvalidInputError: The plan has no such part.
    """
    ledger.load_manifest()
    _refuse_other(ledger, plan)
    if not parts or not all(type(each) is int and 0 <= each < ledger.parts for each in parts):
        raise InvalidInputError(f"Parts must be numbers from 0 to {ledger.parts - 1}, but are {parts!r}.")
    # This process has no other lock than that of its parts.
    ledger.lock = Lock(ledger.folder, ledger.run, ledger.clock, ledger.sleep, part=parts[0])
    with ledger.lock.held(owner):
        ledger.load_manifest()
        _refuse_other(ledger, plan)
        _refuse_suspected(ledger)
        # Until the plan is committed, an end is a pause.
        ledger.lock.rests = True
        letters = DeadLetters(_letters(ledger), prefix=f"{parts[0]:05}-{ledger.run}-")
        yield ledger.pushing({part: ledger.acks_of(part) for part in parts}, letters)


def commit(ledger: FilesLedger, owner: str, plan: str) -> Outcome:
    """Check that all parts of a plan are in, say what became of them, and give the ledger back.

    Args:
        ledger: The ledger, opened by this process.
        owner: Who asks.
        plan: Which plan.

    Raises:
        LedgerError: Parts are not in, or the plan is not in force any more or does not do any more.
    """
    with ledger.locked(owner, waits_for_parts=True):
        _refuse_other(ledger, plan)
        _refuse_suspected(ledger)
        progress = ledger.progress()
        if left := [part for part, each in enumerate(progress) if each.open]:
            ledger.lock.rests = True
            raise LedgerError(
                f"{len(left):,} of {len(progress):,} parts of the plan are not in ({_numbers(left)}): "
                f"{sum(each.open for each in progress):,} of {ledger.manifest.plan.changes:,} changes. Push these parts again."
            )
        # From here on, a file of acknowledgements that goes missing is noticed.
        sealed = replace(ledger.manifest.plan, acks=tuple(ledger.acks_files()))
        ledger.put_in_force(replace(ledger.manifest, turn=ledger.lock.turn, run=ledger.run, plan=sealed))
        return Outcome(
            changes=ledger.manifest.plan.changes,
            acknowledged=sum(each.acknowledged for each in progress),
            refused=sum(each.refused for each in progress),
            skipped=sum(each.skipped for each in progress),
            dead_letters=str(_letters(ledger)) if names_in(_letters(ledger)) else None,
        )


def _letters(ledger: FilesLedger) -> Folder:
    return ledger.folder / "dead-letters" / ledger.manifest.letters


def _refuse_other(ledger: FilesLedger, plan: str) -> None:
    if plan != ledger.plan:
        raise LedgerError(
            f"The plan {plan} is not in force any more: another run has planned since, and the ledger in {ledger.folder} has "
            f"version {ledger.version} now. Nothing was sent. Plan again."
        )


def _refuse_suspected(ledger: FilesLedger) -> None:
    """A plan is too little for an audience that has lost its members."""
    if ledger.suspected:
        raise LedgerError(
            f"While the plan {ledger.plan} was pushed, Talon.One answered that an audience does not exist. One that was made anew "
            f"since has lost its members, and what is left of the plan in {ledger.folder} does not bring them back. Nothing more "
            "was sent. Make sure that the audience exists, and clear the task that plans (plan): it sends all of them again."
        )


def _numbers(parts: Sequence[int]) -> str:
    return ", ".join(map(str, parts[:_NAMED])) + (", ..." if len(parts) > _NAMED else "")
