"""The ledger of files, on a local disk and in an object store."""

from __future__ import annotations

import json
import re
import shutil
from functools import partial

import pytest

from airflow_provider_talon_cdp.changes.change import Change, Chunk
from airflow_provider_talon_cdp.exceptions import LedgerError
from airflow_provider_talon_cdp.ledger import format as format_module
from airflow_provider_talon_cdp.ledger import storage
from airflow_provider_talon_cdp.ledger.ledger import ledger_name
from tests.ledger.conftest import (
    FACTS,
    changes,
    identified,
    members,
    names,
    plan_of,
    planned,
    profiles,
    spelt,
    uncompressed,
)


def vip(*profiles):
    return [(profile, "vip") for profile in profiles]


def untokened(name):
    """Name a file without the token of the run that wrote it."""
    return re.sub(r"-[0-9a-f]{12}(?=[./]|$)", "-RUN", name)


def test_a_new_ledger_knows_nobody_and_leaves_no_trace(loaded, state):
    ledger = loaded()
    assert (ledger.version, members(ledger.known()), members(ledger.uncertain())) == (0, [], [])
    assert not state.exists() or not list(state.iterdir())


def test_members_are_those_that_were_acknowledged(open_ledger, loaded, commit):
    commit(open_ledger(), "+a", "+b", "+c", refused={0: [1]})
    assert members(loaded().known()) == vip("a", "c")
    ledger = loaded()
    commit(ledger, "-a", "+b")
    assert ledger.version == 2
    assert members(loaded().known()) == vip("b", "c")


def test_a_refused_removal_leaves_the_member_known(open_ledger, loaded, commit):
    commit(open_ledger(), "+a", "+b")
    commit(open_ledger(), "-a", "-b", refused={0: [0]})
    assert members(loaded().known()) == vip("a")


def test_what_may_have_left_without_an_answer_is_uncertain_until_it_is_acknowledged(
    open_ledger, loaded, commit
):
    opened = partial(open_ledger, batch=2, ahead=1)
    commit(opened(), "+a", "+b", "+c", "+d", "+e", "+f", landed=[0], left=2)
    ledger = loaded()
    assert members(ledger.known()) == vip("a", "b")
    assert members(ledger.uncertain()) == vip("c", "d")
    assert [change.uncertain for change in spelt(ledger.unacknowledged())] == [True, True, False, False]
    # Not sent in the next version, so as uncertain as before; its batch 1 is acknowledged.
    commit(opened(), "+c?", "-d?", "+e", "+f", landed=[1])
    ledger = loaded()
    assert members(ledger.known()) == vip("a", "b", "e", "f")
    assert members(ledger.uncertain()) == vip("c", "d")
    commit(opened(), "+c?", "-d?")
    ledger = loaded()
    assert members(ledger.known()) == vip("a", "b", "c", "e", "f")
    assert members(ledger.uncertain()) == []


def test_a_refused_addition_that_was_uncertain_stays_uncertain(open_ledger, loaded, commit):
    commit(open_ledger(), "+a?", "+b", refused={0: [0]})
    assert members(loaded().known()) == vip("b")
    assert members(loaded().uncertain()) == vip("a")


def test_a_refused_removal_ends_the_doubt_about_a_member_that_was_never_acknowledged(
    open_ledger, loaded, commit
):
    commit(open_ledger(), "+a", "+b")
    commit(open_ledger(), "-a?", "-x?", "+y?", refused={0: [0, 1, 2]})
    ledger = loaded()
    assert members(ledger.known()) == vip("a", "b")
    # An earlier removal of a member that was acknowledged may have arrived.
    assert members(ledger.uncertain()) == vip("a", "y")
    assert members(ledger.unacknowledged()) == vip("a", "y")
    assert members(ledger.refused()) == vip("a", "x", "y")


def test_a_ledger_of_profiles_holds_the_last_fingerprint_that_was_acknowledged(open_ledger, loaded):
    def commit(*changes, landed=(0,), refused=()):
        ledger = open_ledger(holds="profiles")
        with ledger.held("me"):
            ledger.make_current(ledger.draft(planned(changes)), facts=FACTS)
            ledger.share().note_sending(0)
            for batch in landed:
                ledger.share().landed(batch, refused)
            ledger.share().flush()

    commit(Change("a", "1", "add"), Change("b", "1", "add"), Change("c", "1", "add"))
    commit(Change("a", "2", "add"), Change("b", "1", "remove"), Change("c", "2", "add"), refused=[2])
    assert members(loaded(holds="profiles").known()) == [("a", "2"), ("c", "1")]
    commit(Change("a", "3", "add"), Change("c", "2", "remove"), Change("d", "1", "add"), landed=())
    doubts = [("a", "?3"), ("c", "?2"), ("d", "?1")]
    ledger = loaded(holds="profiles")
    assert (members(ledger.known()), members(ledger.uncertain())) == (doubts, [])


def test_a_doubt_about_a_profile_outlives_plans_that_leave_it_out(open_ledger, loaded):
    def commit(*changes, left, landed=(), refused=()):
        ledger, seen = open_ledger(holds="profiles"), []
        with ledger.held("me"):

            def plan(known, uncertain, carry):
                seen.extend(members(known))
                assert list(uncertain) == []
                return [Chunk.of(changes)]

            ledger.make_current(ledger.draft(plan), facts=FACTS)
            if left:
                ledger.share().note_sending(0)
            for batch in landed:
                ledger.share().landed(batch, refused)
            ledger.share().flush()
        return seen

    commit(Change("a", "1", "add"), Change("b", "1", "add"), left=True)
    doubts = [("a", "?1"), ("b", "?1")]
    assert commit(Change("c", "1", "add"), left=False) == doubts
    assert commit(Change("c", "1", "add"), left=True, landed=[0]) == doubts
    known = [*doubts, ("c", "1")]
    # A refusal says nothing about what an earlier request did.
    assert (
        commit(Change("a", "1", "add"), Change("b", "?1", "remove"), left=True, landed=[0], refused=[0])
        == known
    )
    assert commit(Change("a", "?1", "remove"), left=True) == [("a", "?1"), ("c", "1")]
    assert members(loaded(holds="profiles").known()) == [("a", "?1"), ("c", "1")]


def test_batches_have_the_size_that_was_asked_for(open_ledger, loaded):
    how = {"holds": "profiles", "batch": 2}
    ledger = open_ledger(**how)
    with ledger.held("me"):
        ledger.make_current(
            ledger.draft(planned([Change(each, "1", "add") for each in "abcde"])), facts=FACTS
        )
        ledger.share().note_sending(0)
        ledger.share().landed(1, [1])
        ledger.share().landed(2, [])
        ledger.share().flush()
    # The plan has its own, whatever a later run asks for.
    ledger = loaded(holds="profiles")
    assert members(ledger.known()) == [("a", "?1"), ("b", "?1"), ("c", "1"), ("e", "1")]


def test_names_of_attributes_are_kept_with_the_plan(open_ledger, loaded):
    ledger = open_ledger(holds="profiles")
    assert ledger.names == ()
    with ledger.held("me"):
        ledger.make_current(
            ledger.draft(planned([Change("a", "1", "add")])), facts=FACTS, names=["tier", "ü"]
        )
    assert loaded(holds="profiles").names == ("tier", "ü")


def test_a_ledger_of_profiles_and_one_of_members_never_share_a_folder(open_ledger):
    assert open_ledger(holds="profiles").folder != open_ledger().folder


def test_the_files_are_the_documented_ones(open_ledger, commit):
    ledger = open_ledger()
    commit(ledger, "+a", "+b")
    commit(ledger, "+c", "-a")
    with ledger.held("me"):
        ledger.suspect(["vip"])
    found = names(ledger)
    assert [untokened(name) for name in found] == [
        "00000001-RUN/acks-00000-RUN.json",
        "00000001-RUN/plan-00000.tsv.zst",
        "00000002-RUN/acks-00000-RUN.json",
        "00000002-RUN/members.tsv.zst",
        "00000002-RUN/plan-00000.tsv.zst",
        "00000002-RUN/suspects-RUN.json",
        "manifest-00000001-00000001-0000-RUN.json",
        "manifest-00000002-00000002-0001-RUN.json",
    ]
    in_force = json.loads((ledger.folder / found[-1]).read_bytes())["content"]
    plan = in_force["plan"]
    named = [in_force["members"]["file"], plan["parts"][0]["file"], *plan["acks"]]
    assert sorted(named) == found[2:5]


def test_a_plan_in_force_has_acknowledgements_from_its_first_moment(open_ledger, loaded, monkeypatch):
    written = []
    write_json = storage.write_json
    monkeypatch.setattr(
        format_module,
        "write_json",
        lambda path, content: (written.append(path.name), write_json(path, content)),
    )
    ledger = open_ledger()
    with ledger.held("me"):
        ledger.make_current(ledger.draft(plan_of("+a")), facts=FACTS)
    assert list(map(untokened, written)) == [
        "acks-00000-RUN.json",
        "manifest-00000001-00000001-0000-RUN.json",
    ]
    ledger = loaded()
    assert (members(ledger.known()), members(ledger.uncertain())) == ([], [])
    assert spelt(ledger.unacknowledged()) == changes("+a")


def test_the_lines_are_the_documented_ones(open_ledger, commit):
    ledger = open_ledger()
    commit(ledger, "+a\tb\n\\", "+z", "+ü")
    commit(ledger, "-z")

    def text(name):
        (path,) = [each for each in ledger.folder.rglob("*.zst") if re.search(name, str(each))]
        return uncompressed(path.read_bytes())

    assert text("1-.*/plan") == "a\\tb\\n\\\\\tvip\nz\tvip\nü\tvip\n"
    assert text("2-.*/members") == "a\\tb\\n\\\\\tvip\nz\tvip\nü\tvip\n"
    assert text("2-.*/plan") == "z\tvip\tremove\n"


def test_a_plan_is_written_in_parts_that_make_one_stream(open_ledger, loaded, commit, monkeypatch):
    texts = [f"+{number:02}" for number in range(11)]
    ledger = open_ledger(batch=3, part=4)
    commit(ledger, *texts, landed=[0, 2])
    assert [part.lines for part in ledger.manifest.plan.parts] == [6, 5]
    assert spelt(loaded().changes()) == changes(*texts)
    assert profiles(loaded().known()) == ["00", "01", "02", "06", "07", "08"]


def test_old_versions_go_and_files_in_use_stay(open_ledger, loaded, commit):
    commit(open_ledger(keep=2), "+a", "+b")
    commit(open_ledger(keep=2), "+c", landed=[])  # writes members that the next versions start from
    for text in ("+d", "+e", "+f", "+g"):
        commit(open_ledger(keep=2), text, landed=[])
    ledger = loaded(keep=2)
    assert ledger.version == 6
    assert members(ledger.known()) == vip("a", "b")
    folders = {name.split("-")[0] for name in names(ledger)} - {"manifest"}
    assert folders == {"00000002", "00000005", "00000006"}


def test_a_plan_that_never_came_into_force_goes_with_the_next(open_ledger, loaded, commit, monkeypatch):
    commit(open_ledger(), "+a")
    killed = open_ledger(batch=1, part=1)
    killed.load()
    killed.draft(plan_of("+b", "+c", "+d"))
    assert members(loaded().known()) == vip("a")
    commit(open_ledger(), "+e")
    assert members(loaded().known()) == vip("a", "e")
    assert len([name for name in names(loaded()) if re.match("00000002-.*/plan", name)]) == 1


def test_a_discarded_plan_leaves_nothing(open_ledger, loaded, commit):
    commit(open_ledger(), "+a")
    ledger = open_ledger()
    with ledger.held("me"):
        before = names(ledger)
        ledger.discard(ledger.draft(plan_of("+b")))
        assert names(ledger) == before
    commit(open_ledger(), "+c", landed=[])
    ledger = open_ledger()
    with ledger.held("me"):
        ledger.discard(ledger.draft(plan_of("+b")))
    assert members(loaded().known()) == vip("a")


def test_a_plan_need_not_ask_for_all_members(open_ledger, loaded, commit):
    commit(open_ledger(), "+a", "+b")
    commit(open_ledger(), "+c")
    assert members(loaded().known()) == vip("a", "b", "c")


@pytest.mark.parametrize(
    "other",
    [
        {"deployment_host": "beta.talon.one"},
        {"base_url": "http://localhost:8080"},
        {"name": "audience:VIP"},
        {"name": "vip"},
        {"environment": "live"},
    ],
)
def test_another_deployment_base_or_audience_has_another_ledger(open_ledger, loaded, commit, other):
    commit(open_ledger(), "+a")
    assert loaded(**other).version == 0
    assert loaded(**other).folder != open_ledger().folder


@pytest.mark.parametrize("state", ["disk"], indirect=True)
def test_a_ledger_that_was_copied_to_another_audience_is_refused(open_ledger, loaded, commit):
    commit(open_ledger(), "+a")
    shutil.copytree(open_ledger().folder, open_ledger(name="other").folder)
    with pytest.raises(LedgerError, match="belongs to another deployment, environment or audience"):
        loaded(name="other")


ODD = [
    "x" * 1000,
    "😀" * 1000,
    "../..",
    "..",
    ".",
    "/etc/passwd",
    "a/b",
    "a%2Fb",
    " ",
    "\n",
    "a\0b",
    "CON",
    "*?",
    "",
    "ä",
    "ä",
]


def test_odd_names_have_folders_of_their_own_below_the_deployment(tmp_path):
    folders = {identified(name=ledger_name("audience", each)).folder(tmp_path) for each in ODD}
    assert len(folders) == len(set(ODD))
    assert {folder.parent for folder in folders} == {tmp_path / "acme.talon.one"}
    assert all(len(folder.name) < 100 and folder.name.isascii() for folder in folders)


@pytest.mark.parametrize("name", ODD[:5], ids=range(5))
def test_odd_names_can_be_written(open_ledger, loaded, commit, name):
    commit(open_ledger(name=name), "+a")
    assert members(loaded(name=name).known()) == vip("a")


def test_a_newer_format_asks_for_an_upgrade(open_ledger, loaded, commit):
    commit(open_ledger(), "+a")
    (path,) = [each for each in open_ledger().folder.iterdir() if each.name.startswith("manifest")]
    content = json.loads(path.read_bytes())["content"]
    storage.write_json(path, content | {"format": 3})
    with pytest.raises(LedgerError, match=r"has format 3; .* knows 2\.\nUpgrade airflow-provider-talon-cdp"):
        loaded()
