"""What several processes know of a part of a plan, joined."""

from __future__ import annotations

import json

from hypothesis import given
from hypothesis import strategies as st

from airflow_provider_talon_cdp.changes.change import Change
from airflow_provider_talon_cdp.ledger.format import Acks
from tests.ledger.conftest import FACTS, plan_of, profiles, spelt

BATCHES = range(6)
REFUSED = st.dictionaries(
    st.sampled_from(BATCHES), st.lists(st.integers(0, 3), unique=True, max_size=4), max_size=6
)


def acks(landed, left=0):
    made = Acks(may_have_left=left)
    for batch, refused in landed.items():
        # Talon.One was not asked about the first ones.
        made.land(batch, refused, {at for at in refused if at < 2})
    return made


@given(REFUSED)
def test_what_is_written_is_read(tmp_path_factory, landed):
    path = tmp_path_factory.mktemp("acks") / "acks.json"
    written = acks(landed, left=5)
    written.write(path)
    read = Acks.read(path)
    assert (read.landed.pairs, read.refused, read.skipped, read.may_have_left) == (
        written.landed.pairs,
        {batch: sorted(refused) for batch, refused in landed.items() if refused},
        written.skipped,
        5,
    )


def test_the_acknowledgements_are_ranges(open_ledger, commit):
    ledger = open_ledger()
    commit(ledger, *[f"+{n:05}" for n in range(6001)], landed=[0, 1, 2, 4, 6], refused={4: [7, 3]}, left=7)
    (path,) = [each for each in (ledger.folder / ledger.plan).iterdir() if each.name.startswith("acks")]
    content = json.loads(path.read_bytes())["content"]
    assert content["landed"] == [[0, 2], [4, 4], [6, 6]]
    assert content["refused"] == {"4": [3, 7]}
    assert content["may_have_left"] >= 7


@given(st.lists(st.tuples(REFUSED, st.integers(0, 6)), max_size=4))
def test_a_change_was_refused_only_if_it_was_refused_each_time_it_was_sent(files):
    joined = Acks.merged([acks(landed, left) for landed, left in files])
    for batch in BATCHES:
        sent = [set(landed[batch]) for landed, _ in files if batch in landed]
        assert (batch in joined.landed) == bool(sent)
        refused = set.intersection(*sent) if sent else set()
        assert set(joined.refused.get(batch, ())) == refused
        assert set(joined.skipped.get(batch, ())) == {at for at in refused if at < 2}
    assert joined.may_have_left == max((left for _, left in files), default=0)


def test_a_refusal_is_doubtful_where_another_process_may_have_sent_the_batch():
    killed, after = acks({0: []}, left=2), acks({1: [3], 2: [0]}, left=3)
    joined = Acks.merged([killed, after])
    assert joined.refused == {1: [3], 2: [0]}
    assert joined.uncertain_refusals == {1}


def test_a_refusal_after_an_attempt_without_an_answer_is_doubtful(open_ledger, loaded):
    ledger = open_ledger()
    with ledger.held("me"):
        ledger.make_current(ledger.draft(plan_of("+a", "+b")), facts=FACTS)
        share = ledger.share()
        share.note_sending(0)
        share.landed(0, [1], had_unclear_attempt=True)
        share.end()
    assert profiles(loaded().known()) == ["a"]
    assert spelt(loaded().uncertain()) == [Change("b", "vip", "add")]


def test_a_change_that_was_given_up_and_has_landed_counts_once():
    given_up, after = Acks(), acks({1: []}, left=2)
    given_up.withheld.add(0, 2)
    joined = Acks.merged([given_up, after])
    assert (joined.landed.pairs, joined.withheld.pairs) == ([[1, 1]], [[0, 0], [2, 2]])
    assert joined.counts(3, 1) == (1, 0, 0, 2)
