"""Whether a plan may be sent. Pure; checked before the first request."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from airflow_provider_talon_cdp.changes.counts import Counts
from airflow_provider_talon_cdp.exceptions import GuardError

# Reasons why a row is rejected that leave unknown whose row it is.
_NAMELESS = ("profile ID null", "profile ID empty")

OnEmpty = Literal["fail", "skip", "allow"]
Verdict = Literal["send", "skip"]


@dataclass(frozen=True, kw_only=True)
class Guard:
    """Limits of what one run may change.

    Args:
        on_empty: What to do if the source has no rows: ``fail``, ``skip`` (send nothing) or ``allow``. If it
            has rows and all are rejected, that is always an error.
        max_removal_fraction: Largest share of an audience's known members that is removed, 0 to 1.
        min_removals: ``max_removal_fraction`` does not apply to fewer removals from one audience: one of four
            members is a quarter. From so many on, removals are refused beside as many rows without a profile
            ID, unless these are tolerated: they may be the rows of those that would be removed.
        max_removals: Most removals of known members, of all audiences together; None for no limit.
        max_additions: Most additions, to all audiences together; None for no limit.
    """

    on_empty: OnEmpty = "fail"
    max_removal_fraction: float = 0.2
    min_removals: int = 10
    max_removals: int | None = None
    max_additions: int | None = None

    _no_rows: ClassVar[str] = (
        "The source has no rows, and the ledger has {known:,} members. Nothing was sent.\n"
        "If that is right, pass on_empty='allow' to empty the audience,\n"
        "or on_empty='skip' to leave it as it is."
    )
    _loss: ClassVar[str] = "Audience {audience!r} would lose {removals:,} of {known:,} members"

    def check(self, counts: Counts, max_rejected: int | None = 0) -> Verdict:
        """Return whether to send a plan.

        Args:
            counts: What the plan changes.
            max_rejected: Number of rejected records that the run tolerates; None for any number.

        Raises:
            GuardError: The plan changes more than is allowed. The text has the numbers and the argument that
                would allow it.
        """
        if not counts.wanted:
            if counts.rejected:
                reasons = "\n".join(f"{count:,} x {why}" for why, count in sorted(counts.rejected.items()))
                raise GuardError(
                    f"The source has {counts.read:,} rows, and none that can be sent. Nothing was "
                    "sent; fix the query.\n"
                    f"{reasons}"
                )
            if self.on_empty == "fail":
                raise GuardError(self._no_rows.format(known=counts.known.total()), "on_empty='allow'")
            if self.on_empty == "skip":
                return "skip"
        # Members that Talon.One never acknowledged need no protection.
        acknowledged = counts.removals - counts.unacknowledged_removals
        for audience, removals in sorted(acknowledged.items()):
            known = counts.known[audience]
            if known and removals >= self.min_removals and removals / known > self.max_removal_fraction:
                loss = self._loss.format(audience=audience, removals=removals, known=known)
                allow = f"max_removal_fraction={_rounded_up(removals / known)}"
                raise GuardError(
                    f"{loss} ({removals / known:.1%}). Nothing was sent.\n"
                    f"max_removal_fraction is {self.max_removal_fraction:.1%}.\n"
                    f"If that is right, pass {allow}.",
                    allow,
                )
        nameless = sum(counts.rejected[reason] for reason in _NAMELESS)
        rejected, removed, few = counts.rejected.total(), acknowledged.total(), max(1, self.min_removals)
        if max_rejected is not None and rejected > max_rejected and min(nameless, removed) >= few:
            allow = f"max_rejected={rejected}"
            raise GuardError(
                f"Rows without a profile ID: {nameless:,}. The {removed:,} that would be removed may be\n"
                "profiles whose rows have lost it, as after a broken join. Nothing was sent.\n"
                f"Fix the query. If these rows belong to nobody, leave them out, or pass {allow}.",
                allow,
            )
        for name, change in (("max_removals", acknowledged), ("max_additions", counts.additions)):
            limit = getattr(self, name)
            if limit is not None and change.total() > limit:
                what = f"{change.total():,} {name.removeprefix('max_')}"
                allow = f"{name}={change.total()}"
                raise GuardError(
                    f"The plan has {what}, and {name} is {limit:,}. Nothing was sent.\n"
                    f"If that is right, pass {allow}.",
                    allow,
                )
        return "send"


@dataclass(frozen=True, kw_only=True)
class ProfileGuard(Guard):
    """The limits for attributes of profiles, where clearing a profile's attributes counts as a removal."""

    _no_rows = (
        "The source has no rows, and the ledger has {known:,} profiles. Nothing was sent.\n"
        "If that is right, pass on_empty='allow',\n"
        "or on_empty='skip' to leave them as they are."
    )
    _loss = "{removals:,} of {known:,} profiles would lose their attributes"


def _rounded_up(fraction: float) -> float:
    return min(1.0, int(fraction * 100 + 1) / 100)
