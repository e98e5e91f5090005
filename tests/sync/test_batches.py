"""Records become batches: full ones, each change once among its neighbours, and every record counted."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from airflow_provider_talon_cdp.sync import batches as module
from airflow_provider_talon_cdp.sync.batches import Intake
from airflow_provider_talon_cdp.sync.changes import Change, Ids, Rejection


def batches(records, intake, in_flight=64):
    return module.batches(records, intake, in_flight=in_flight)


def spelt_out(records):
    return [
        each for record in records for each in (record.changes() if isinstance(record, Ids) else [record])
    ]


def test_ids_travel_in_their_quick_form_in_batches_of_1000():
    intake = Intake()
    found = list(
        batches(
            [Ids([str(n) for n in range(start, start + 700)], "vip", "add") for start in (0, 700, 1400)],
            intake,
        )
    )
    assert [len(batch) for batch in found] == [1000, 1000, 100]
    assert all(len(batch.groups()) == 1 for batch in found)
    assert intake == Intake(read=2100, batched=2100)


def test_a_long_list_is_cut_where_the_last_one_left_off():
    records = [Ids(["first"], "vip", "add"), Ids([str(n) for n in range(5000)], "vip", "add")]
    found = list(batches(records, Intake()))
    assert [len(batch) for batch in found] == [1000, 1000, 1000, 1000, 1000, 1]
    assert [change.profile_id for batch in found for change in batch.changes] == [
        "first",
        *map(str, range(5000)),
    ]


def test_after_a_mixed_batch_the_quick_form_is_back():
    records = [
        Ids(["a"], "vip", "add"),
        Ids([str(n) for n in range(999)], "gold", "add"),
        Ids(["b"], "gold", "add"),
    ]
    first, second = batches(records, Intake())
    assert [len(each.ids) for each in first.groups()] == [1, 999]
    assert second.groups() == [Ids(["b"], "gold", "add")]


def test_what_is_far_apart_does_not_fold():
    many = [Ids([f"{turn}-{n}" for n in range(1000)], "vip", "add") for turn in range(70)]
    intake = Intake()
    total = sum(map(len, batches([*many, many[-1], many[0]], intake)))
    assert (intake.duplicate, total) == (1000, 71_000)


def test_a_stream_that_is_left_early_closes_the_source_and_counts_what_it_held():
    closed = []

    def source():
        try:
            yield Ids([str(n) for n in range(500)], "vip", "add")
            yield Ids(["gold-1", *map(str, range(999))], "gold", "add")
            yield Ids(["last"], "vip", "add")
        finally:
            closed.append(True)

    intake = Intake()
    stream = batches(source(), intake)
    assert len(next(stream)) == 1000
    stream.close()
    assert closed == [True]
    assert (intake.read, intake.batched, intake.held) == (1500, 1000, 500)


CHANGES = st.builds(
    Change,
    st.integers(0, 50).map(str),
    st.sampled_from(["vip", "gold", 7]),
    st.sampled_from(["add", "remove"]),
    st.just(False),
)
RECORDS = st.lists(
    st.one_of(
        CHANGES,
        st.builds(Rejection, st.sampled_from(["null", "empty"])),
        st.builds(
            lambda start, size, what: Ids([str(n % 1300) for n in range(start, start + size)], *what),
            st.integers(0, 1300),
            st.integers(0, 2500),
            st.sampled_from([("vip", "add"), ("vip", "remove"), ("gold", "add")]),
        ),
    ),
    max_size=12,
)


@given(RECORDS)
def test_whatever_comes_each_change_travels_once_and_the_counts_balance(records):
    intake = Intake()
    found = list(batches(iter(records), intake))
    sent = [change for batch in found for change in batch.changes]
    wanted = [each for each in spelt_out(records) if isinstance(each, Change)]
    assert Counter(sent) == Counter(set(wanted))
    assert all(len(batch) == 1000 for batch in found[:-1])
    assert all(0 < len(batch) <= 1000 for batch in found)
    assert intake.held == 0
    assert intake.batched == len(sent)
    assert intake.read == len(sent) + intake.duplicate + intake.rejected.total() == len(spelt_out(records))
