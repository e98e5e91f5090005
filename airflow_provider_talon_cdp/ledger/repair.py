"""Rebuilds a ledger that has damaged files from the versions that are kept."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import chain

from airflow_provider_talon_cdp.changes.change import Action, Chunk
from airflow_provider_talon_cdp.changes.diff import Folded, Member
from airflow_provider_talon_cdp.exceptions import LedgerError
from airflow_provider_talon_cdp.ledger.format import (
    Acks,
    File,
    Manifest,
    Plan,
    kept_manifests,
    read_chunks,
    saved_chunks,
)
from airflow_provider_talon_cdp.ledger.ledger import MARKS, Ledger
from airflow_provider_talon_cdp.ledger.outside import NoteWriter, find_notes
from airflow_provider_talon_cdp.ledger.storage import DamagedError, names_in, read_json, remove

_SENT_AGAIN = "The next mirror sends them again."
_LOST_MEMBERS = (
    "A mirror adds those that its query has. Those that the query does not have stay in the audience:\n"
    "remove them manually, or reconcile the audience with an export."
)


class DamagedLedger(Ledger):
    """A ledger that may have damaged files; its arguments are those of ``Ledger``."""

    def repair(self, owner: str) -> list[str]:
        """Make a new version from all readable files; return messages about what was lost.

        It begins with the newest version whose members can be read, and applies the plans of later versions.
        Changes whose outcome a damaged file had are uncertain: the next plan sends them again, except those
        that run rules.

        Raises:
            LedgerError: No version can be read.
        """
        with self.lock.held(owner):
            self._owner = owner
            try:
                self._check_all()
            except DamagedError:
                return self._rebuilt()
            return ["Nothing is damaged."]

    def _check_all(self) -> None:
        self.load()
        for stream in (self.known(), self.uncertain(), self.refused(), self.changes()):
            for _ in stream:
                """Reading a damaged file raises DamagedError."""
        self._unreported()
        if bad := kept_manifests(self.folder)[1]:
            raise DamagedError(bad[0][0])

    def _rebuilt(self) -> list[str]:
        manifests, damaged = kept_manifests(self.folder)
        if not manifests:
            raise LedgerError(
                "No version of the ledger can be read, so there is nothing to rebuild it from.\n"
                'Restore a backup, or delete the folder, and run the task once with send="all": it then\n'
                f"adds all members of its query and removes none.\nFolder: {self.folder}"
            )
        messages = [f"{name} is damaged: what was sent since is sent again." for name, _ in damaged]
        newest = manifests[-1]
        # The next run deletes what is not kept: it knows how many versions its operator keeps.
        self._keep = self.letters.keep = max(self._keep, len(newest.history) + 2)
        # The new version may leave out what this one's plan covers, so it needs the notes again.
        self.manifest = replace(newest, spent=())
        self._newest = max([newest.version, *(version for _, version in damaged)])
        base, snapshot = self._base(manifests, messages)
        newer = [manifest for manifest in manifests if manifest.version >= base.version]
        plans = {plan.folder: plan for manifest in newer for plan in manifest.plans}
        notes = NoteWriter(self.folder, self.run, "", self._clock)
        withheld: dict[Member, Action] = {}
        changed = []
        for plan in plans.values():
            if plan.folder == newest.plan.folder:
                for chunk in saved_chunks(self.folder, newest.withheld) if newest.withheld else ():
                    withheld.update((change[:2], change.action) for change in chunk.changes())
            for part, file in enumerate(plan.parts):
                acks, uncertain = self._part(plan, part, file, messages)
                changed.append(self._effects_of_part(plan, part, acks))
                # What an earlier plan left open is settled by a later change of the member.
                for chunk in self._effects_of_part(plan, part, acks) if withheld else ():
                    for member in chunk.members:
                        withheld.pop(member, None)
                self._note_uncertain(uncertain, notes, withheld)
        orphans = [
            name for name in names_in(self.folder) if name[:8].isdigit() and int(name[:8]) > newest.version
        ]
        for lost in chain.from_iterable(map(self._sent_parts, orphans)):
            is_intact = self._is_intact(lost[0])
            sent = self._sent_changes(lost) if is_intact else saved_chunks(self.folder, lost[0])
            self._note_uncertain(sent, notes, withheld)
        self._drop_notes(messages)
        last_plans = [newest.plan, *(Plan(folder=orphan) for orphan in orphans)]
        self._drop_damaged_suspects(last_plans, messages)
        suspects, resends = self._marked("suspects", *last_plans), self._marked("doubts", *last_plans)
        if newest.unreported or (withheld and not newest.reported):
            messages.append(
                "Changes that got no clear answer are not sent again, and no later report has them."
            )
        if newest.refused:
            messages.append("The list of records that Talon.One refused is dropped: they are sent again.")
        members = Folded(snapshot, changed, one_per_profile=self._holds_profiles)
        self._begin_with(members, facts=self.facts, names=newest.names, withheld=withheld)
        self.suspect(suspects)
        self.note_resend(resends)
        if notes.written:
            notes.end()
        return [*messages, f"The ledger has version {self.version} now."]

    def _note_uncertain(
        self, uncertain: Iterable[Chunk], notes: NoteWriter, withheld: dict[Member, Action]
    ) -> None:
        """Write notes of changes that the next plan sends again, and withhold those that run rules."""
        for chunk in uncertain:
            # Profiles are sent again without rules.
            withholds = chunk.runs_rules and not self._holds_profiles
            if sent_again := [each for each in chunk.changes() if not (withholds and each.runs_rules)]:
                notes.write(Chunk.of(sent_again))
            if either := [change for change in sent_again if change.uncertain and not self._holds_profiles]:
                # Another request may have made the opposite change, and a note that agrees with the members
                # that are known leaves nothing uncertain.
                opposite: dict[Action, Action] = {"add": "remove", "remove": "add"}
                notes.write(Chunk.of(change._replace(action=opposite[change.action]) for change in either))
            for change in chunk.changes() if withholds else ():
                if change.runs_rules:
                    withheld[change[:2]] = change.action

    def _drop_damaged_suspects(self, plans: list[Plan], messages: list[str]) -> None:
        """Delete the files of suspects and resends that cannot be read, and begin without any."""
        names = [name for plan in plans for pattern in MARKS.values() for name in self._files(plan, pattern)]
        for name in names:
            try:
                read_json(self.folder / name)
            except DamagedError:
                remove(self.folder / name)
                messages.append(
                    f"{name} is damaged: it says which audiences may have lost their members. "
                    'Run the task once with send="all".'
                )
        self._suspects = self._resends = frozenset()

    def _base(self, manifests: list[Manifest], messages: list[str]) -> tuple[Manifest, Iterable[Chunk]]:
        """Return the version to begin with, and its members as far as they can be read."""
        for base in reversed(manifests):
            if base.members is None or self._is_intact(base.members):
                return base, read_chunks(self.folder, base.members) if base.members else ()
        base = manifests[-1]
        assert base.members  # noqa: S101 - a version without members was returned above
        saved = sum(map(len, saved_chunks(self.folder, base.members)))
        messages.append(
            f"{base.members.lines - saved:,} of {base.members.lines:,} members are lost.\n{_LOST_MEMBERS}"
        )
        return base, saved_chunks(self.folder, base.members)

    def _part(self, plan: Plan, part: int, file: File, messages: list[str]) -> tuple[Acks, Iterable[Chunk]]:
        """Return what is known of a plan's part, and its uncertain changes."""
        acks: Acks | None = None
        try:
            (acks,) = self._read_acks(plan, [part])
        except DamagedError:
            messages.append(f"It is unknown what became of the changes in {file.file}. {_SENT_AGAIN}")
        if acks and acks.is_empty:
            if not self._holds_profiles and not self._is_intact(file):
                messages.append(
                    f"{file.file} is damaged, and nothing of it was sent.\n"
                    "It may have had changes of unknown outcome that were sent before it:\n"
                    'run the task once with send="all".'
                )
            return acks, map(self._uncertain_before, saved_chunks(self.folder, file))
        if not self._is_intact(file):
            saved = sum(map(len, saved_chunks(self.folder, file)))
            messages.append(
                f"It is unknown what became of {saved:,} of {file.lines:,} changes in {file.file}. "
                f"{_SENT_AGAIN}"
            )
            if saved < file.lines:
                messages.append(f'The others are lost: run the task once with send="all".\n{_LOST_MEMBERS}')
            return Acks(), saved_chunks(self.folder, file)
        if acks is None:
            return Acks(), read_chunks(self.folder, file)
        return acks, self._open_in(plan, part, acks)

    def _open_in(self, plan: Plan, part: int, acks: Acks) -> Iterator[Chunk]:
        if not self._holds_profiles:
            for number, chunk in enumerate(plan.batches(self.folder, part)):
                if acks.is_open(number):
                    yield chunk
                elif number in acks.refused:
                    # Refused changes ran no rules.
                    yield Chunk.of(change._replace(runs_rules=False) for change in chunk.changes())
                elif number not in acks.landed:
                    yield self._uncertain_before(chunk)

    def _uncertain_before(self, chunk: Chunk) -> Chunk:
        """Return the changes of a batch that was never sent which an earlier request may have made."""
        changes = () if self._holds_profiles else chunk.changes()
        return Chunk.of(change._replace(runs_rules=False) for change in changes if change.uncertain)

    def _drop_notes(self, messages: list[str]) -> None:
        for file in find_notes(self.folder, self._clock()).owners:
            if not self._is_intact(file):
                remove(self.folder / file.file)
                messages.append(
                    "A note of changes that others made is lost: run the task once with "
                    f'send="all" ({file.file}).'
                )

    def _is_intact(self, file: File) -> bool:
        try:
            return sum(map(len, read_chunks(self.folder, file))) >= file.lines
        except DamagedError:
            return False
