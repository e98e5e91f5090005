"""Members, and the chunks in which they may come."""

from __future__ import annotations

from hypothesis import strategies as st

from airflow_provider_talon_cdp.changes.change import Chunk, one_or_all

IDS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=3)
IDS |= st.text("\\\t\n\r\0\u2028\x85 aA\uffff😀", min_size=1, max_size=3)
KEYS = st.sampled_from(["vip", "VIP", "x\ty", "😀"])
MEMBERS = st.sets(st.tuples(IDS, KEYS), max_size=15) | st.sets(st.tuples(IDS, st.just("vip")), max_size=15)
CUTS = st.lists(st.tuples(st.integers(1, 6), st.booleans()), min_size=1, max_size=6)
"""How long the chunks are, one after another, and whether each says once what all of it has in common."""


def chunks_of(members, cuts=((3, True), (2, False)), verbs=None):
    """Put sorted members into chunks of such lengths.

    Args:
        members: Pairs of profile ID and key, in any order; sorted here.
        cuts: As in ``CUTS``.
        verbs: The verb of each member; None for ``add``.
    """
    members = sorted(members)
    at, number = 0, 0
    while at < len(members):
        length, is_short = cuts[number % len(cuts)]
        some = members[at : at + length]
        keys = [key for _, key in some]
        of_some = [verbs[each] if verbs else "add" for each in some]
        yield Chunk(
            [profile for profile, _ in some],
            one_or_all(keys) if is_short else keys,
            one_or_all(of_some) if is_short else of_some,
        )
        at += length
        number += 1


def spelt_out(chunks):
    """Return the members of chunks, in their order."""
    return [change[:2] for chunk in chunks for change in chunk.changes()]
