"""Attributes of profiles follow a query: from SQLite and a real PostgreSQL to the emulator."""

from __future__ import annotations

import json
from decimal import Decimal
from pathlib import Path

import pytest

from airflow_provider_talon_cdp.__main__ import main
from airflow_provider_talon_cdp.exceptions import (
    AuthenticationError,
    FatalError,
    GuardError,
    InvalidInputError,
    RejectedRecordsError,
    TransientError,
)
from airflow_provider_talon_cdp.ledger.format import zstd  # type: ignore[attr-defined]
from tests.mirror.conftest import spelt_out, task_instance
from tests.transfers.test_across_workers import ProfilesGroup, commit

ODD_IDS = [
    "...",
    "a/b?c#d",
    "a b",
    "%2F",
    "audiences",
    "Ω😀",
    "tab\t",
    "back\\",
    "new\nline",
    "'",
    '"',
    "x" * 1000,
]


def letters(summary):
    folder = Path(summary["dead_letters"].removeprefix("file://"))
    return [json.loads(line) for file in sorted(folder.iterdir()) for line in file.read_text().splitlines()]


def test_only_what_changed_is_sent(warehouse, send, talon, attributes, profiles_ledger):
    people = [("anna", "gold", 7), ("bo", "silver", None), ("cem", "gold", 1)]
    warehouse.fill_people("id text, tier text, score int", people)
    first = send()
    assert (first["read"], first["sent"], first["requests"]) == (3, 3, 3)
    wanted = {
        "anna": {"tier": "gold", "score": 7},
        "bo": {"tier": "silver"},
        "cem": {"tier": "gold", "score": 1},
    }
    assert attributes() == wanted
    second = send()
    assert (second["read"], second["unchanged"], second["sent"], second["requests"]) == (3, 3, 0, 0)
    warehouse.run(
        "UPDATE people SET tier = 'gold' WHERE id = 'bo'", "INSERT INTO people VALUES ('dee', 'new', 0)"
    )
    third = send()
    assert (third["unchanged"], third["sent"]) == (2, 2)
    assert attributes() == wanted | {"bo": {"tier": "gold"}, "dee": {"tier": "new", "score": 0}}
    assert [each for each, _ in spelt_out(profiles_ledger().known())] == ["anna", "bo", "cem", "dee"]
    assert {each["run_rule_engine"] for each in talon.requests()} == {False}


def test_all_are_sent_where_that_is_asked_for(sqlite, send, talon, attributes):
    sqlite.fill_people("id, tier", [("anna", "gold"), ("bo", "gold")])
    send()
    talon.reset()
    assert send()["sent"] == 0
    summary = send(send="all")
    assert (summary["sent"], summary["unchanged"]) == (2, 0)
    assert attributes() == {"anna": {"tier": "gold"}, "bo": {"tier": "gold"}}


def test_a_new_column_touches_the_profiles_that_have_a_value_in_it(sqlite, send, attributes):
    sqlite.fill_people("id, tier, score", [("anna", "gold", 7), ("bo", "gold", None)])
    send(attributes=["tier"])
    summary = send(attributes={"tier": "tier", "score": "Score"})
    assert (summary["sent"], summary["unchanged"]) == (1, 1)
    assert attributes() == {"anna": {"tier": "gold", "Score": 7}, "bo": {"tier": "gold"}}


def test_nulls_are_skipped_or_delete(sqlite, send, attributes):
    sqlite.fill_people("id, tier, score", [("anna", "gold", 7), ("bo", None, None)])
    summary = send()
    # Nothing can be said about bo, so nothing is sent.
    assert (summary["sent"], summary["unchanged"]) == (1, 1)
    sqlite.run("UPDATE people SET tier = NULL WHERE id = 'anna'")
    send()
    assert attributes() == {"anna": {"tier": "gold", "score": 7}}
    assert send(nulls="delete")["sent"] == 2
    assert attributes() == {"anna": {"score": 7}, "bo": {}}
    assert send(nulls="delete")["sent"] == 0


def test_a_profile_that_left_the_query_stays_as_it_is(warehouse, send, attributes, profiles_ledger):
    warehouse.fill_people("id text, tier text", [("anna", "gold"), ("bo", "gold")])
    send()
    warehouse.run("DELETE FROM people WHERE id = 'bo'")
    summary = send()
    assert (summary["removals"], summary["sent"], summary["unchanged"]) == (0, 0, 1)
    assert attributes()["bo"] == {"tier": "gold"}
    assert [each for each, _ in spelt_out(profiles_ledger().known())] == ["anna", "bo"]


def test_a_profile_that_left_the_query_loses_what_was_sent_and_nothing_else(
    warehouse, send, talon, attributes, profiles_ledger
):
    people = [(f"p{number}", "gold", number) for number in range(10)]
    warehouse.fill_people("id text, tier text, score int", people)
    send(attributes=["tier"])
    warehouse.run("UPDATE people SET tier = NULL WHERE id = 'p7'")
    send()
    talon.set_attributes("p7", {"by_hand": True})
    warehouse.run("DELETE FROM people WHERE id = 'p7'")
    summary = send(on_missing="clear")
    assert (summary["removals"], summary["sent"], summary["unchanged"]) == (1, 1, 9)
    assert attributes()["p7"] == {"by_hand": True}
    assert "p7" not in dict(spelt_out(profiles_ledger().known()))
    assert send(on_missing="clear")["removals"] == 0


def test_clearing_is_held_back_by_the_guard(sqlite, send, attributes, talon):
    sqlite.fill_people("id, tier", [(f"p{number}", "gold") for number in range(10)])
    send()
    before, requests = attributes(), len(talon.requests())
    sqlite.run("DELETE FROM people WHERE id > 'p5'")
    with pytest.raises(
        GuardError,
        match=r"(?s)4 of 10 profiles would lose their attributes \(40.0%\).*max_removal_fraction=0.41",
    ):
        send(on_missing="clear", min_removals=0)
    assert (attributes(), len(talon.requests())) == (before, requests)
    assert send(on_missing="clear", min_removals=0, max_removal_fraction=0.41)["removals"] == 4


def test_a_join_that_lost_its_right_side_deletes_nothing_unless_that_is_allowed(sqlite, send, attributes):
    sqlite.fill_people("id, tier", [(f"p{number}", "gold") for number in range(10)])
    send(nulls="delete")
    before = attributes()
    sqlite.run("UPDATE people SET tier = NULL")
    with pytest.raises(GuardError, match="10 of 10 profiles would lose their attributes"):
        send(nulls="delete")
    assert attributes() == before
    assert send(nulls="delete", max_removal_fraction=1.0)["sent"] == 10
    assert attributes() == {f"p{number}": {} for number in range(10)}


@pytest.mark.parametrize("on_missing", ["ignore", "clear"])
def test_an_empty_query_is_refused_skipped_or_allowed(sqlite, send, attributes, on_missing):
    sqlite.fill_people("id, tier", [("anna", "gold")])
    send()
    sqlite.run("DELETE FROM people")
    with pytest.raises(Exception, match="no rows, and the ledger has 1 profiles"):
        send(on_missing=on_missing)
    assert send(on_missing=on_missing, on_empty="skip")["sent"] == 0
    assert attributes() == {"anna": {"tier": "gold"}}
    how = {"on_missing": "clear", "max_removal_fraction": 1.0} if on_missing == "clear" else {}
    assert send(on_empty="allow", **how)["sent"] == (on_missing == "clear")


def test_two_rows_of_one_profile_stop_the_run_before_anything_is_sent(warehouse, send, talon):
    warehouse.fill_people("id text, tier text", [("anna", "gold"), ("bo", "gold"), ("anna", "silver")])
    with pytest.raises(InvalidInputError, match=r"^1 profile\(s\) have more than one row \(2 rows\)"):
        send()
    assert talon.requests() == []


def test_the_last_row_of_a_profile_wins(warehouse, send, attributes):
    rows = [("anna", "old", 1), ("anna", "new", 3), ("bo", "gold", None), ("anna", "middle", 2)]
    warehouse.fill_people("id text, tier text, at int", rows)
    summary = send(on_duplicate="last", order_by_column="at")
    assert (summary["read"], summary["sent"], summary["duplicate"]) == (4, 2, 2)
    assert attributes() == {"anna": {"tier": "new"}, "bo": {"tier": "gold"}}


@pytest.mark.parametrize("newest", ["infinity", "2026-01-02"])
def test_where_the_order_of_a_row_cannot_be_read_no_older_row_is_sent(postgres, send, attributes, newest):
    rows = [("anna", "old", "2026-01-01"), ("anna", "new", newest), ("bo", "gold", "2026-01-01")]
    postgres.fill_people("id text, tier text, at timestamptz", rows)
    how = {"on_duplicate": "last", "order_by_column": "at", "max_rejected": 1}
    assert sum(send(**how)["rejected"].values()) == (newest == "infinity")
    anna = {} if newest == "infinity" else {"anna": {"tier": "new"}}
    assert attributes() == {**anna, "bo": {"tier": "gold"}}


def test_rows_that_cannot_be_sent_are_counted_by_reason_and_the_others_are_sent(
    warehouse, send, attributes, said
):
    people = [("anna", "seven"), ("bo", "7.50"), ("cem", "eight"), (None, "1"), ("", "1")]
    warehouse.fill_people("id text, score text", people)
    with pytest.raises(RejectedRecordsError, match="4 of 5 records were rejected") as error:
        send(types={"score": "number"})
    reason = "Attribute 'score' is declared as number, but its text is not a number."
    summary = error.value.report.summary()
    assert summary["rejected"] == {"profile ID null": 1, "profile ID empty": 1, reason: 2}
    assert attributes() == {"bo": {"score": Decimal("7.50")}}
    found = letters(summary)
    assert [(each["profile_id"], each["reason"]) for each in found] == [("anna", reason), ("cem", reason)]
    text = said() + str(error.value) + json.dumps(summary)
    assert f"2 x {reason}" in text
    for secret in ("anna", "cem", "seven", "eight", "7.50"):
        assert secret not in text
        assert secret not in "".join(each["reason"] for each in found)


def test_a_rejected_profile_is_not_missing(sqlite, send, attributes, profiles_ledger):
    sqlite.fill_people("id, score", [("anna", 7), *((f"p{number}", number) for number in range(9))])
    send()
    sqlite.run("UPDATE people SET score = x'00' WHERE id = 'anna'")
    summary = send(on_missing="clear", max_rejected=None)
    assert (summary["removals"], summary["unchanged"], sum(summary["rejected"].values())) == (0, 9, 1)
    assert attributes()["anna"] == {"score": 7}
    assert "anna" in dict(spelt_out(profiles_ledger().known()))


def test_what_talon_one_refuses_is_counted_by_attribute(sqlite, send, declared, attributes, said):
    emulator = declared({"tier": "string", "score": "number"})
    sqlite.fill_people(
        "id, tier, score", [("anna", "gold", 1), ("bo", 5, 1), ("cem", "gold", "x"), ("dee", 6, 2)]
    )
    with pytest.raises(RejectedRecordsError) as error:
        send()
    reasons = {
        "attribute 'tier' was refused (Invalid attribute value)": 2,
        "attribute 'score' was refused (Invalid attribute value)": 1,
    }
    summary = error.value.report.summary()
    assert summary["rejected"] == reasons
    assert attributes(emulator) == {"anna": {"tier": "gold", "score": 1}}
    assert sorted((each["profile_id"], each["reason"]) for each in letters(summary)) == [
        ("bo", "attribute 'tier' was refused (Invalid attribute value)"),
        ("cem", "attribute 'score' was refused (Invalid attribute value)"),
        ("dee", "attribute 'tier' was refused (Invalid attribute value)"),
    ]
    text = said()
    for reason, count in reasons.items():
        assert f"rejected: {count} x {reason}" in text
    # A refused profile is tried again, and the others are not.
    sqlite.run("UPDATE people SET tier = 'gold' WHERE id = 'bo'")
    second = send(max_rejected=None)
    assert (second["sent"], second["unchanged"], sum(second["rejected"].values())) == (1, 1, 2)


@pytest.mark.parametrize(
    "status, kind", [(400, RejectedRecordsError), (500, TransientError), (401, AuthenticationError)]
)
def test_what_an_answer_quotes_goes_nowhere(sqlite, send, talon, said, status, kind):
    sqlite.fill_people("id, tier, score, note", [("anna@example.com", "goldish", 19.5, 'a "note"\n')])
    quoted = r"anna@example.com anna%40example.com goldish 19.5 a \"note\"\n"
    fault = {"title": f"no tier: {quoted}", "details": quoted, "source": {"pointer": "/attributes/tier"}}
    talon.fail_next(
        "status", status=status, times=None, body={"message": quoted, "errors": [fault]}, retry_after=10_000
    )
    with pytest.raises(kind) as error:
        send(types={"score": "number"})
    text = said() + str(error.value)
    if kind is RejectedRecordsError:
        summary = error.value.report.summary()
        assert list(summary["rejected"]) == ["attribute 'tier' was refused (no tier: *** *** *** *** ***)"]
        text += json.dumps(summary) + letters(summary)[0]["reason"]
    assert "***" in text
    for secret in ("anna", "goldish", "19.5", "note"):
        assert secret not in text


def test_when_all_are_refused_for_one_reason_the_run_stops_early(sqlite, send, declared, attributes, said):
    emulator = declared({"tier": "string"})
    sqlite.fill_people("id, tier, level", [(f"p{number:04}", "gold", 1) for number in range(2000)])
    reason = "The first 50 profiles were all refused for the same reason: attribute 'level' is not defined"
    with pytest.raises(FatalError, match=reason):
        send(max_rejected=49)
    assert 50 <= len(emulator.requests()) < 200
    assert attributes(emulator) == {}
    assert "p00" not in said()
    summary = send(skip_unknown_attributes=True)
    assert summary["sent"] == 2000
    assert attributes(emulator)["p0007"] == {"tier": "gold"}
    # Talon.One may have ignored some of it, so without the switch they are sent again.
    assert send(skip_unknown_attributes=True)["sent"] == 0
    with pytest.raises(FatalError, match="The first 7 profiles"):
        send(give_up_after=7, in_flight=1)


def test_one_that_is_accepted_shows_that_the_configuration_is_right(sqlite, send, declared):
    declared({"tier": "string"})
    sqlite.fill_people("id, tier", [("a", "gold"), *((f"p{number:03}", 5) for number in range(200))])
    summary = send(max_rejected=None, in_flight=1)
    assert (summary["sent"], sum(summary["rejected"].values())) == (1, 200)


def test_the_rule_engine_runs_where_that_is_asked_for(sqlite, send, talon):
    sqlite.fill_people("id, tier", [("anna", "gold")])
    send(run_rule_engine=True)
    assert [each["run_rule_engine"] for each in talon.requests()] == [True]


def test_a_dry_run_plans_and_sends_nothing(warehouse, send, talon, state, said, connect):
    connect(talon, requests_per_second=60)
    warehouse.fill_people("id text, tier text", [(f"p{number}", "gold") for number in range(120)])
    summary = send(dry_run=True)
    assert (summary["read"], summary["unsent"], summary["requests"]) == (120, 120, 120)
    assert summary["verdict"] == "would be sent"
    assert talon.requests() == []
    assert not state.exists()
    assert "It takes 120 requests: 2.0 s at 60 a second." in said()


@pytest.mark.parametrize("kind", ["throttled", "unavailable", "conflict", "reset", "lost answer"])
def test_passing_troubles_lose_nothing(sqlite, send, talon, attributes, kind):
    people = [(f"p{number:03}", number) for number in range(120)]
    sqlite.fill_people("id, score", people)
    fault = {
        "throttled": {"kind": "status", "status": 429, "retry_after": 0},
        "unavailable": {"kind": "status", "status": 503, "retry_after": 0},
        "conflict": {"kind": "status", "status": 409, "retry_after": 0},
        "reset": {"kind": "reset_before"},
        "lost answer": {"kind": "reset_after"},
    }[kind]
    talon.fail_next(**fault, times=5, after=10)
    summary = send()
    assert (summary["sent"], summary["retries"]) == (120, 5)
    assert attributes() == {profile_id: {"score": score} for profile_id, score in people}


def test_a_run_that_stops_is_gone_on_with_and_nothing_is_forgotten(
    sqlite, send, talon, attributes, profiles_ledger
):
    people = [(f"p{number:03}", number) for number in range(400)]
    sqlite.fill_people("id, score", people)
    talon.fail_next("status", status=401, after=250)
    with pytest.raises(AuthenticationError):
        send(in_flight=3)
    assert len(attributes()) >= 250
    known = spelt_out(profiles_ledger().known())
    certain = {each for each, line in known if not line.startswith("?")}
    assert 180 <= len(certain) <= 250
    assert certain <= attributes().keys() <= {each for each, _ in known}
    summary = send(context={"ti": task_instance("run-2")})
    assert summary["unchanged"] == len(certain)
    assert attributes() == {profile_id: {"score": score} for profile_id, score in people}
    assert not [line for _, line in spelt_out(profiles_ledger().known()) if line.startswith("?")]


def test_what_may_have_been_sent_is_sent_again_though_the_query_went_back(sqlite, send, talon, attributes):
    sqlite.fill_people("id, tier", [("anna", "gold"), ("bo", "gold")])
    send()
    sqlite.run("UPDATE people SET tier = 'silver' WHERE id = 'anna'")
    # It arrives, and the key is gone before anybody hears of that.
    talon.fail_next("reset_after")
    talon.fail_next("status", status=401, times=None)
    with pytest.raises(AuthenticationError):
        send()
    assert attributes()["anna"] == {"tier": "silver"}
    talon.clear_faults()
    sqlite.run("UPDATE people SET tier = 'gold' WHERE id = 'anna'")
    assert send()["sent"] == 1
    assert attributes()["anna"] == {"tier": "gold"}


def test_the_ledger_holds_no_values(warehouse, send, profiles_ledger):
    warehouse.fill_people("id text, tier text, email text", [("anna", "goldish", "anna@example.com")])
    send()
    folder = Path(str(profiles_ledger().folder))
    files = [file for file in folder.rglob("*") if file.is_file()]
    texts = [
        zstd.decompress(data) if each.suffix == ".zst" else data
        for each in files
        for data in [each.read_bytes()]
    ]
    assert len(files) >= 3
    assert any(b"anna" in text for text in texts)
    assert any(b"tier" in text for text in texts)
    for text in texts:
        assert b"goldish" not in text
        assert b"example.com" not in text


def test_each_task_has_a_ledger_of_its_own_unless_it_is_named(sqlite, send):
    sqlite.fill_people("id, tier", [("anna", "gold")])

    def sent(task, ledger=None):
        return send({"ti": task_instance(task_id=task)}, ledger=ledger, task_id=task)["sent"]

    assert [sent(each) for each in ("one", "two", "one")] == [1, 1, 0]
    assert [sent(each, "people") for each in ("one", "two")] == [1, 0]


def test_the_command_shows_a_ledger_of_profiles(sqlite, send, talon, state, capsys):
    sqlite.fill_people("id, tier", [("anna", "gold"), ("bo", "gold")])
    send()
    connection = talon.connection()
    place = ["--state-uri", str(state), "--base-url", connection["host"]]
    place += ["--deployment-host", connection["extra"]["deployment_host"]]
    assert main(["ledger", "show", *place, "--profiles", "people"]) == 0
    assert "version 1, 2 profiles" in capsys.readouterr().out


def test_odd_profile_ids_arrive(warehouse, send, attributes):
    warehouse.fill_people("id text, tier text", [(each, "gold") for each in ODD_IDS])
    assert send()["sent"] == len(ODD_IDS)
    assert attributes() == {each: {"tier": "gold"} for each in sorted(ODD_IDS)}
    assert send()["sent"] == 0


@pytest.mark.parametrize("dots", [".", ".."])
def test_an_id_that_a_proxy_would_resolve_away_is_the_fault_of_its_row_alone(
    warehouse, send, attributes, dots
):
    warehouse.fill_people("id text, tier text", [(dots, "gold"), ("anna", "gold")])
    summary = send(max_rejected=1)
    ((reason, count),) = summary["rejected"].items()
    assert (count, summary["sent"]) == (1, 1)
    assert "does not survive in the path of a URL" in reason
    assert attributes() == {"anna": {"tier": "gold"}}


@pytest.mark.parametrize("how", [{}, {"run_rule_engine": True}], ids=["without rules", "with rules"])
@pytest.mark.parametrize("answer", [{"html": "<h1>Not Found</h1>"}, {}], ids=["a page", "JSON"])
def test_an_id_whose_path_a_proxy_does_not_find_is_the_fault_of_its_row_alone(
    sqlite, send, talon, attributes, answer, how
):
    sqlite.fill_people("id, tier", [(each, "gold") for each in ("anna", "bo/1", "cem")])
    talon.fail_next("status", status=404, times=None, only="bo/1", **answer)
    for sent in (2, 0):
        summary = send(max_rejected=1, in_flight=1, **how)
        assert (summary["sent"], summary["rejected"]) == (sent, {"refused by Talon.One (404)": 1})
        assert [each["profile_id"] for each in letters(summary)] == ["bo/1"]
    assert attributes() == {"anna": {"tier": "gold"}, "cem": {"tier": "gold"}}


IDS = ["a", "B", "á", "Z", "ﬀ", "😀", "a b", "ab", "_"]


def test_rows_that_do_not_come_in_the_order_of_bytes_are_sorted_here(sqlite_utf16, send, attributes, said):
    sqlite_utf16.fill_people("id text, tier text", [(each, f"tier of {each}") for each in IDS])
    assert send()["sent"] == len(IDS)
    assert attributes() == {each: {"tier": f"tier of {each}"} for each in sorted(IDS)}
    assert send()["unchanged"] == len(IDS)
    assert "sorted on this worker's disk" in said()


def test_a_database_with_a_language_is_asked_for_the_order_of_bytes(language_database, send, said):
    language_database.fill_people("id text, tier text", [(each, "gold") for each in IDS])
    assert [send()["sent"] for _ in range(2)] == [len(IDS), 0]
    assert "sorted on this worker's disk" not in said()


def test_many_requests_are_in_flight(sqlite, send, declared):
    emulator = declared({}, service_time=0.2)
    sqlite.fill_people("id, tier", [(f"p{number:04}", "gold") for number in range(640)])
    summary = send(in_flight=32)
    # One after another they would take 128 s.
    assert summary["sent"] == 640
    assert summary["seconds"] < 640 * 0.2 / 32 * 2.5
    assert len(emulator.profiles()) == 640


def test_memberships_of_the_profiles_stay(sqlite, send, vip):
    vip.add_members("vip", ["anna"])
    sqlite.fill_people("id, tier", [("anna", "gold")])
    send()
    assert vip.profile("anna") == {"attributes": {"tier": "gold"}, "audiences": ["vip"]}


def test_instances_of_a_mapped_task_must_name_their_ledgers(sqlite, send, talon):
    sqlite.fill_people("id, tier", [("anna", "gold")])
    mapped = {"ti": task_instance(map_index=0)}
    with pytest.raises(InvalidInputError, match=r"(?s)sync is mapped.*Name a ledger= for each"):
        send(mapped, ledger=None)
    assert talon.requests() == []
    assert send(mapped)["sent"] == 1
    assert send(ledger=None)["sent"] == 1


def test_operators_that_a_task_calls_must_name_their_ledgers(sqlite, send, talon):
    sqlite.fill_people("id, tier", [("anna", "gold")])
    inside = {"task": task_instance(task_id="markets")}
    with pytest.raises(InvalidInputError, match=r"(?s)sync is called inside the task markets.* ledger="):
        send(inside, dag=None, ledger=None)
    assert talon.requests() == []
    assert send(inside, dag=None)["sent"] == 1


@pytest.mark.parametrize("of_earlier_version", [False, True])
def test_attributes_that_talon_one_may_ignore_are_pushed_only_from_a_plan_that_says_so(
    sqlite, declared, attributes, state, of_earlier_version
):
    """The ledger would have attributes that Talon.One has not, and no run would send them again."""
    emulator = declared({"tier": "string"})
    sqlite.fill_people("profile_id text, tier text, level int", [("anna", "gold", 3)])
    group = ProfilesGroup(state_uri=str(state))
    shares, planned = group.plan()
    group.how["skip_unknown_attributes"] = True
    if of_earlier_version:
        del shares[0]["plan"]["partial"]
    else:
        with pytest.raises(InvalidInputError, match=r"(?s)skip_unknown_attributes has.*Clear the task"):
            group.push(shares)
        assert attributes(emulator) == {}
        shares, planned = group.plan()
    assert commit(planned, group.push(shares))["sent"] == 1
    assert attributes(emulator) == {"anna": {"tier": "gold"}}
