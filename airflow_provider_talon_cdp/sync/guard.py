"""Whether a plan may be sent. Pure; checked before the first request."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, Literal

from airflow_provider_talon_cdp.changes.counts import Counts
from airflow_provider_talon_cdp.contract import OnEmpty
from airflow_provider_talon_cdp.exceptions import GuardError

# Rejection reasons of rows that have no profile ID.
_NAMELESS = ("profile ID null", "profile ID empty")
# Most audiences in an error text.
_LISTED = 10

Verdict = Literal["send", "skip"]


@dataclass(frozen=True, kw_only=True)
class Guard:
    """Limits of what one run may change.

    Args:
        on_empty: What to do if the source has no rows: ``fail``, ``skip`` (send nothing) or ``allow``. If it
            has rows and all are rejected, that is always an error.
        max_removal_fraction: Largest share that is removed, 0 to 1: of the known members of an audience, and
            of those of all audiences together.
        min_removals: ``max_removal_fraction`` does not apply to fewer removals: a few of a small audience
            are a large share. With this many removals and this many rows without an ID, the plan is refused:
            a broken join may have lost the IDs of the members that would be removed.
        max_removals: Most removals of known members, of all audiences together; None for no limit.
        max_additions: Most additions, to all audiences together; None for no limit.
    """

    on_empty: OnEmpty = "fail"
    max_removal_fraction: float = 0.2
    min_removals: int = 10
    max_removals: int | None = None
    max_additions: int | None = None

    _no_rows: ClassVar[str] = "The source has no rows, and the ledger has {known:,} members"
    _keep: ClassVar[str] = " to empty the audience,\nor on_empty='skip' to leave it as it is."
    _loss: ClassVar[str] = "Audience {audience!r} would lose {removals:,} of {known:,} members"

    def check(self, counts: Counts, max_rejected: int | None = 0, null_texts: int = 0) -> Verdict:
        """Return whether to send a plan.

        Args:
            counts: What the plan changes.
            max_rejected: Number of rejected records that the run tolerates; None for any number.
            null_texts: Number of records whose ID is the text of a null, more than in the last run, unless
                this one ignores them.

        Raises:
            GuardError: The plan changes more than is allowed. The text has all numbers beyond a limit, and
                the arguments that would allow the plan.
        """
        is_empty = not counts.wanted
        if is_empty and counts.rejected:
            reasons = "\n".join(f"{count:,} x {why}" for why, count in sorted(counts.rejected.items()))
            raise GuardError(
                f"The source has {counts.read:,} rows, and none that can be sent. Nothing was sent; fix the "
                f"query.\n{reasons}"
            )
        if is_empty and self.on_empty == "skip":
            return "skip"
        if not (excesses := list(self._excesses(counts, max_rejected, null_texts))):
            return "send"
        texts, arguments = zip(*excesses, strict=True)
        head, *rest = "\n".join(texts).split("\n")
        allow = ", ".join(arguments)
        cure = f"If that is right, pass {allow}."
        if is_empty and self.on_empty == "fail":
            cure = f"If that is right, pass {allow}{self._keep}"
        elif any(argument.startswith(("max_rejected=", "suspicious_ids=")) for argument in arguments):
            cure = f"Fix the query. Only if these rows belong to nobody, leave them out, or pass {allow}."
        raise GuardError("\n".join([f"{head} Nothing was sent.", *rest, cure]), allow)

    def _excesses(
        self, counts: Counts, max_rejected: int | None, null_texts: int
    ) -> Iterator[tuple[str, str]]:
        """Yield what a plan changes beyond a limit, and the argument that would allow it."""
        if not counts.wanted and self.on_empty == "fail":
            yield f"{self._no_rows.format(known=counts.known.total())}.", "on_empty='allow'"
        # Members that Talon.One never acknowledged need no protection.
        acknowledged = counts.removals - counts.unacknowledged_removals + counts.emptied
        shares = {
            audience: removals / counts.known[audience]
            for audience, removals in acknowledged.items()
            if counts.known[audience] and removals >= self.min_removals
        }
        losses = sorted(
            (-share, audience) for audience, share in shares.items() if share > self.max_removal_fraction
        )
        removed, known = acknowledged.total(), counts.known.total()
        share_of_all = removed / known if known and removed >= self.min_removals else 0.0
        largest = max(shares.values(), default=0.0)
        if max(largest, share_of_all) > self.max_removal_fraction:
            lines = [
                self._loss.format(
                    audience=audience, removals=acknowledged[audience], known=counts.known[audience]
                )
                + f" ({-share:.1%})."
                for share, audience in losses[:_LISTED]
            ]
            if len(losses) > _LISTED:
                lines.append(f"... and {len(losses) - _LISTED:,} more audiences.")
            if share_of_all > largest:
                lines.append(
                    f"All audiences together would lose {removed:,} of {known:,} members"
                    f" ({share_of_all:.1%})."
                )
            lines.append(f"max_removal_fraction is {self.max_removal_fraction:.1%}.")
            yield "\n".join(lines), f"max_removal_fraction={_rounded_up(max(largest, share_of_all))}"
        rejected, nameless = counts.rejected.total(), 0
        if max_rejected is not None and rejected > max_rejected:
            nameless = sum(counts.rejected[reason] for reason in _NAMELESS)
        least = max(1, self.min_removals)
        if min(nameless + null_texts, removed) >= least:
            lines = [f"Rows without a profile ID: {nameless + null_texts:,}."]
            if null_texts:
                lines.append(f"{null_texts:,} of them have the text of a null, such as 'None' or 'nan'.")
            lines.append(
                f"The {removed:,} that would be removed may be profiles whose rows have lost it, as after a "
                "broken join."
            )
            # One alone may be enough.
            allow = {
                f"max_rejected={rejected}": nameless >= least or (nameless and null_texts < least),
                "suspicious_ids='ignore'": null_texts >= least or (null_texts and nameless < least),
            }
            yield "\n".join(lines), ", ".join(filter(allow.get, allow))
        for name, change in (("max_removals", acknowledged), ("max_additions", counts.additions)):
            limit = getattr(self, name)
            if limit is not None and change.total() > limit:
                what = f"{change.total():,} {name.removeprefix('max_')}"
                yield f"The plan has {what}, and {name} is {limit:,}.", f"{name}={change.total()}"


@dataclass(frozen=True, kw_only=True)
class ProfileGuard(Guard):
    """The limits for attributes of profiles. Deleting all attributes of a profile counts as a removal."""

    _no_rows = "The source has no rows, and the ledger has {known:,} profiles"
    _keep = ",\nor on_empty='skip' to leave them as they are."
    _loss = "{removals:,} of {known:,} profiles would lose their attributes"


def _rounded_up(fraction: float) -> float:
    return min(1.0, int(fraction * 100 + 1) / 100)
