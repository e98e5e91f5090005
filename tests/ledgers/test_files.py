"""The ledger of files, on a local disk and in an object store."""

from __future__ import annotations

import gzip
import json
import re
import shutil
import stat
import subprocess
from functools import partial

import pytest

from airflow_provider_talon_cdp.exceptions import InvalidInputError, LedgerError, TalonCdpError
from airflow_provider_talon_cdp.ledgers import acks, manifest, packed, storage
from airflow_provider_talon_cdp.ledgers.files import FilesLedger, ledger_name
from airflow_provider_talon_cdp.sync.changes import Change
from tests.ledgers.conftest import changes


def vip(*profiles):
    return [(profile, "vip") for profile in profiles]


def untokened(name):
    """Name a file without the token of the run that wrote it."""
    return re.sub(r"-[0-9a-f]{12}(?=[./])", "-RUN", name)


def names(ledger):
    """All files of a ledger, below its folder."""
    root = str(ledger.folder)
    found = [path for path in ledger.folder.rglob("*") if path.is_file()]
    return sorted(str(path).removeprefix(root).lstrip("/") for path in found)


def test_a_new_ledger_knows_nobody_and_leaves_no_trace(loaded, state):
    ledger = loaded()
    assert (ledger.version, list(ledger.known()), list(ledger.uncertain())) == (0, [], [])
    assert not state.exists() or not list(state.iterdir())


def test_members_are_those_that_were_acknowledged(open_ledger, loaded, commit):
    commit(open_ledger(), "+a", "+b", "+c", refused={0: [1]})
    assert list(loaded().known()) == vip("a", "c")
    ledger = loaded()
    commit(ledger, "-a", "+b")
    assert ledger.version == 2
    assert list(loaded().known()) == vip("b", "c")


def test_a_refused_removal_leaves_the_member_known(open_ledger, loaded, commit):
    commit(open_ledger(), "+a", "+b")
    commit(open_ledger(), "-a", "-b", refused={0: [0]})
    assert list(loaded().known()) == vip("a")


def test_what_may_have_left_without_an_answer_is_uncertain_until_it_is_acknowledged(
    open_ledger, loaded, commit
):
    opened = partial(open_ledger, batch=2, ahead=1)
    commit(opened(), "+a", "+b", "+c", "+d", "+e", "+f", landed=[0], left=2)
    ledger = loaded()
    assert list(ledger.known()) == vip("a", "b")
    assert list(ledger.uncertain()) == vip("c", "d")
    assert [change.uncertain for change in ledger.unacknowledged()] == [True, True, False, False]
    # Not sent in the next version, so as uncertain as before; its batch 1 is acknowledged.
    commit(opened(), "+c?", "-d?", "+e", "+f", landed=[1])
    ledger = loaded()
    assert list(ledger.known()) == vip("a", "b", "e", "f")
    assert list(ledger.uncertain()) == vip("c", "d")
    commit(opened(), "+c?", "-d?")
    ledger = loaded()
    assert list(ledger.known()) == vip("a", "b", "c", "e", "f")
    assert list(ledger.uncertain()) == []


@pytest.mark.parametrize("verb", ["+", "-"])
def test_a_refused_change_that_was_uncertain_stays_uncertain(open_ledger, loaded, commit, verb):
    commit(open_ledger(), f"{verb}a?", "+b", refused={0: [0]})
    assert list(loaded().known()) == vip("b")
    assert list(loaded().uncertain()) == vip("a")


def test_forgotten_audiences_are_neither_known_nor_uncertain(open_ledger, loaded):
    first = [
        Change("a", "lost", "add"),
        Change("a", "vip", "add"),
        Change("b", "lost", "add", uncertain=True),
    ]
    ledger = open_ledger()
    with ledger.locked("me"):
        ledger.enforce(ledger.stage(lambda *_: first))
        ledger.landed(0, [])
        ledger.flush()
        seen = []

        def plan(known, doubts):
            seen.extend([*known, *doubts])
            return changes("+c")

        ledger.enforce(ledger.stage(plan, forget=["lost"]))
    assert seen == vip("a")
    assert list(loaded().known()) == vip("a")


def test_a_ledger_of_profiles_holds_the_last_fingerprint_that_was_acknowledged(open_ledger, loaded):
    def commit(*changes, landed=(0,), refused=()):
        ledger = open_ledger(one_per_profile=True)
        with ledger.locked("me"):
            ledger.enforce(ledger.stage(lambda *_: changes))
            ledger.leaving(0)
            for batch in landed:
                ledger.landed(batch, refused)
            ledger.flush()

    commit(Change("a", "1", "add"), Change("b", "1", "add"), Change("c", "1", "add"))
    commit(Change("a", "2", "add"), Change("b", "1", "remove"), Change("c", "2", "add"), refused=[2])
    assert list(loaded(one_per_profile=True).known()) == [("a", "2"), ("c", "1")]
    commit(Change("a", "3", "add"), Change("c", "2", "remove"), Change("d", "1", "add"), landed=())
    doubts = [("a", "?3"), ("c", "?2"), ("d", "?1")]
    ledger = loaded(one_per_profile=True)
    assert (list(ledger.known()), list(ledger.uncertain())) == (doubts, [])


def test_a_doubt_about_a_profile_outlives_plans_that_leave_it_out(open_ledger, loaded):
    def commit(*changes, left, landed=(), refused=()):
        ledger, seen = open_ledger(one_per_profile=True), []
        with ledger.locked("me"):

            def plan(known, uncertain):
                seen.extend(known)
                assert list(uncertain) == []
                return changes

            ledger.enforce(ledger.stage(plan))
            if left:
                ledger.leaving(0)
            for batch in landed:
                ledger.landed(batch, refused)
            ledger.flush()
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
    assert list(loaded(one_per_profile=True).known()) == [("a", "?1"), ("c", "1")]


def test_batches_have_the_size_that_was_asked_for(open_ledger, loaded):
    how = {"one_per_profile": True, "batch": 2}
    ledger = open_ledger(**how)
    with ledger.locked("me"):
        ledger.enforce(ledger.stage(lambda *_: [Change(each, "1", "add") for each in "abcde"]))
        ledger.leaving(0)
        ledger.landed(1, [1])
        ledger.landed(2, [])
        ledger.flush()
    # The plan has its own, whatever a later run asks for.
    ledger = loaded(one_per_profile=True)
    assert list(ledger.known()) == [("a", "?1"), ("b", "?1"), ("c", "1"), ("e", "1")]


def test_names_of_attributes_are_kept_with_the_plan(open_ledger, loaded):
    ledger = open_ledger(one_per_profile=True)
    assert ledger.names == ()
    with ledger.locked("me"):
        ledger.enforce(ledger.stage(lambda *_: [Change("a", "1", "add")]), names=["tier", "ü"])
    assert loaded(one_per_profile=True).names == ("tier", "ü")


def test_a_ledger_of_profiles_and_one_of_members_never_share_a_folder(open_ledger):
    assert open_ledger(one_per_profile=True).folder != open_ledger().folder


def test_the_files_are_the_documented_ones(open_ledger, commit):
    ledger = open_ledger()
    commit(ledger, "+a", "+b")
    commit(ledger, "+c", "-a")
    with ledger.locked("me"):
        ledger.suspect(["vip"])
    found = names(ledger)
    assert [untokened(name) for name in found] == [
        "00000001-RUN/acks-00000-RUN.json",
        "00000001-RUN/plan-00000.tsv.gz",
        "00000002-RUN/acks-00000-RUN.json",
        "00000002-RUN/members.tsv.gz",
        "00000002-RUN/plan-00000.tsv.gz",
        "00000002-RUN/suspects-RUN.json",
        "manifest-00000002-00000002-RUN.json",
    ]
    in_force = json.loads((ledger.folder / found[-1]).read_bytes())["content"]
    plan = in_force["plan"]
    named = [in_force["members"]["file"], plan["parts"][0]["file"], *plan["acks"]]
    assert sorted(named) == found[2:5]


def test_a_plan_in_force_has_acknowledgements_from_its_first_moment(open_ledger, loaded, state, monkeypatch):
    written = []
    write_json = storage.write_json
    for module in (acks, manifest):
        monkeypatch.setattr(
            module, "write_json", lambda path, content: (written.append(path.name), write_json(path, content))
        )
    ledger = open_ledger()
    with ledger.locked("me"):
        ledger.enforce(ledger.stage(lambda *_: changes("+a")))
    assert list(map(untokened, written)) == ["acks-00000-RUN.json", "manifest-00000001-00000001-RUN.json"]
    ledger = loaded()
    assert (list(ledger.known()), list(ledger.uncertain())) == ([], [])
    assert list(ledger.unacknowledged()) == changes("+a")


def test_common_tools_read_the_lines(open_ledger, commit, tmp_path):
    ledger = open_ledger()
    commit(ledger, "+a\tb\n\\", "+z", "+ü")
    commit(ledger, "-z")

    def zcat(name):
        (path,) = [each for each in ledger.folder.rglob("*.gz") if re.search(name, str(each))]
        copy = tmp_path / "copy.gz"
        copy.write_bytes(path.read_bytes())
        return subprocess.run(["zcat", copy], capture_output=True, check=True).stdout.decode()

    assert zcat("1-.*/plan") == "add\ta\\tb\\n\\\\\nadd\tz\nadd\tü\n"
    assert zcat("2-.*/members") == "a\\tb\\n\\\\\nz\nü\n"
    assert zcat("2-.*/plan") == "remove\tz\n"


def test_a_plan_is_written_in_parts_that_make_one_stream(open_ledger, loaded, commit, monkeypatch):
    texts = [f"+{number:02}" for number in range(11)]
    ledger = open_ledger(batch=3, part=4)
    commit(ledger, *texts, landed=[0, 2])
    assert [part.lines for part in ledger.manifest.plan.parts] == [6, 5]
    assert list(loaded().changes()) == changes(*texts)
    assert [each for each, _ in loaded().known()] == ["00", "01", "02", "06", "07", "08"]


def test_old_versions_go_and_files_in_use_stay(open_ledger, loaded, commit):
    commit(open_ledger(keep=2), "+a", "+b")
    commit(open_ledger(keep=2), "+c", landed=[])  # writes members that the next versions start from
    for text in ("+d", "+e", "+f", "+g"):
        commit(open_ledger(keep=2), text, landed=[])
    ledger = loaded(keep=2)
    assert ledger.version == 6
    assert list(ledger.known()) == vip("a", "b")
    folders = {name.split("-")[0] for name in names(ledger)} - {"manifest"}
    assert folders == {"00000002", "00000005", "00000006"}


def test_a_plan_that_never_came_into_force_goes_with_the_next(open_ledger, loaded, commit, monkeypatch):
    commit(open_ledger(), "+a")
    killed = open_ledger(batch=1, part=1)
    killed.load()
    killed.stage(lambda *_: changes("+b", "+c", "+d"))
    assert list(loaded().known()) == vip("a")
    commit(open_ledger(), "+e")
    assert list(loaded().known()) == vip("a", "e")
    assert len([name for name in names(loaded()) if re.match("00000002-.*/plan", name)]) == 1


def test_a_discarded_plan_leaves_nothing(open_ledger, loaded, commit):
    commit(open_ledger(), "+a")
    ledger = open_ledger()
    with ledger.locked("me"):
        before = names(ledger)
        ledger.discard(ledger.stage(lambda *_: changes("+b")))
        assert names(ledger) == before
    commit(open_ledger(), "+c", landed=[])
    ledger = open_ledger()
    with ledger.locked("me"):
        ledger.discard(ledger.stage(lambda *_: changes("+b")))
    assert list(loaded().known()) == vip("a")


def test_a_plan_need_not_ask_for_all_members(open_ledger, loaded, commit):
    commit(open_ledger(), "+a", "+b")
    commit(open_ledger(), "+c")
    assert list(loaded().known()) == vip("a", "b", "c")


@pytest.mark.parametrize("keep", [0, -1, 1.5, True, "3", None])
def test_versions_to_keep_are_a_positive_integer(open_ledger, keep):
    with pytest.raises(InvalidInputError, match="keep"):
        open_ledger(keep=keep)


@pytest.mark.parametrize(
    "other",
    [
        {"deployment_host": "beta.talon.one"},
        {"base_url": "http://localhost:8080"},
        {"name": "audience:VIP"},
        {"name": "vip"},
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
    with pytest.raises(LedgerError, match="belongs to another deployment or audience"):
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
    folders = {
        FilesLedger(tmp_path, deployment_host="acme.talon.one", base_url="u", name=ledger_name(each)).folder
        for each in ODD
    }
    assert len(folders) == len(set(ODD))
    assert {folder.parent for folder in folders} == {tmp_path / "acme.talon.one"}
    assert all(len(folder.name) < 100 and folder.name.isascii() for folder in folders)


@pytest.mark.parametrize("name", ODD[:5], ids=range(5))
def test_odd_names_can_be_written(open_ledger, loaded, commit, name):
    commit(open_ledger(name=name), "+a")
    assert list(loaded(name=name).known()) == vip("a")


def test_a_newer_format_asks_for_an_upgrade(open_ledger, loaded, commit):
    commit(open_ledger(), "+a")
    (path,) = [each for each in open_ledger().folder.iterdir() if each.name.startswith("manifest")]
    content = json.loads(path.read_bytes())["content"]
    storage.write_json(path, content | {"format": 2})
    with pytest.raises(LedgerError, match=r"has format 2, .* knows 1\. Upgrade airflow-provider-talon-cdp"):
        loaded()


# Damage


@pytest.fixture
def worn(open_ledger, commit, tmp_path):
    """A ledger on disk with one file of each kind, and all that it says."""
    commit(open_ledger(tmp_path / "worn"), "+a", "+b", "+c")
    commit(open_ledger(tmp_path / "worn"), "+d", "-a", left=1)

    def read():
        ledger = open_ledger(tmp_path / "worn")
        ledger.load()
        return list(ledger.known()), list(ledger.uncertain()), list(ledger.changes())

    return open_ledger(tmp_path / "worn").folder, read


IN_FORCE = ["manifest-*.json", "00000002-*/acks-*.json", "00000002-*/members*.gz", "00000002-*/plan-*.gz"]


@pytest.mark.parametrize("pattern", IN_FORCE)
@pytest.mark.parametrize("state", ["disk"], indirect=True)
def test_a_file_with_one_byte_changed_is_an_error_or_says_the_same(worn, pattern):
    folder, read = worn
    truth = read()
    (path,) = folder.glob(pattern)
    whole = path.read_bytes()
    noticed = 0
    for position in range(len(whole)):
        for bits in (0x01, 0x20, 0xFF):
            path.write_bytes(whole[:position] + bytes([whole[position] ^ bits]) + whole[position + 1 :])
            try:
                said = read()
            except LedgerError as error:
                noticed += str(path) in str(error)
            else:
                assert said == truth, f"byte {position}"
    assert noticed > len(whole)


@pytest.mark.parametrize("pattern", IN_FORCE)
@pytest.mark.parametrize("state", ["disk"], indirect=True)
def test_a_file_cut_short_or_grown_is_damaged(worn, pattern):
    folder, read = worn
    (path,) = folder.glob(pattern)
    whole = path.read_bytes()
    cuts = [whole[:size] for size in range(len(whole.rstrip()))]
    for damaged in [*cuts, whole + b"x", whole + whole]:
        path.write_bytes(damaged)
        with pytest.raises(LedgerError, match="is damaged"):
            read()


@pytest.mark.parametrize("pattern", IN_FORCE[1:])
@pytest.mark.parametrize("state", ["disk"], indirect=True)
def test_a_file_that_is_gone_is_an_error_and_not_an_empty_audience(worn, pattern):
    folder, read = worn
    (path,) = folder.glob(pattern)
    path.unlink()
    with pytest.raises(LedgerError, match="is gone"):
        read()


@pytest.mark.parametrize("state", ["disk"], indirect=True)
def test_lines_that_are_none_in_a_file_with_a_fitting_checksum_are_damage(worn):
    """Garbage is met while it is read, long before the checksum can be compared."""
    folder, read = worn
    for pattern in IN_FORCE[2:]:
        (path,) = folder.glob(pattern)
        whole = path.read_bytes()
        for text in (
            b"one\n",
            b"add\ta\tb\tc\td\n",
            b"what\ta\tvip\n",
            b"add\t\\x\tvip\n",
            b"\xff\xfe\n",
            b"\n",
        ):
            path.write_bytes(gzip.compress(text))
            with pytest.raises(LedgerError, match="is damaged"):
                read()
        path.write_bytes(whole)


@pytest.mark.parametrize("text", [b"", b"[]", b"null", b"{}", b"\xff", b'{"content": 1}', b'"x"', b"0"])
def test_json_of_another_shape_is_damaged(tmp_path, text):
    (tmp_path / "x.json").write_bytes(text)
    with pytest.raises(LedgerError, match=r"x\.json is damaged.*start anew"):
        storage.read_json(tmp_path / "x.json")


# Writing whole or not at all


def interrupt(_):
    raise KeyboardInterrupt


def test_an_interrupted_write_leaves_what_was_there(state):
    path = state / "folder" / "file"
    storage.write_bytes(path, b"old")
    with pytest.raises(KeyboardInterrupt), storage.replacing(path) as file:
        interrupt(file.write(b"n" * 100_000))
    with pytest.raises(KeyboardInterrupt), packed.writing_lines(state / "folder" / "new") as writer:
        interrupt(writer.write("line\n" * 100_000))
    assert path.read_bytes() == b"old"
    assert [each.name for each in (state / "folder").iterdir()] == ["file"]


def test_an_interrupted_upload_in_parts_leaves_nothing(s3):
    path = s3 / "parts"
    path.fs.default_block_size = 5 << 20
    with pytest.raises(KeyboardInterrupt), storage.replacing(path) as file:
        interrupt([file.write(b"x" * (5 << 20)) for _ in range(4)])
    assert not path.exists()
    assert not path.fs.call_s3("list_multipart_uploads", Bucket="ledgers").get("Uploads")


@pytest.mark.parametrize("state", ["disk"], indirect=True)
def test_files_are_for_the_owners_eyes_alone(open_ledger, commit):
    ledger = open_ledger()
    ledger.reject({"profile_id": "a"})
    commit(ledger, "+a")
    commit(ledger, "+b")
    for path in (each for each in ledger.folder.rglob("*") if each.is_file()):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_dead_letters_are_lines_of_json_in_the_folder_that_is_named(open_ledger):
    ledger = open_ledger()
    with ledger.locked("me"):
        assert ledger.dead_letters is None
        ledger.reject({"profile_id": "ü\n\u2028", "reason": "x"})
        ledger.reject({"profile_id": "\udcff", "reason": "y"})
        ledger.flush()
        ledger.reject({"profile_id": "z"})
        ledger.flush()
        ledger.flush()
    folder = ledger.folder / "dead-letters" / ledger.dead_letters.rpartition("/")[2]
    assert str(folder) == ledger.dead_letters
    texts = {path.name: path.read_bytes().decode() for path in folder.iterdir()}
    assert sorted(texts) == ["00000.ndjson", "00001.ndjson"]
    first = [json.loads(line) for line in texts["00000.ndjson"].removesuffix("\n").split("\n")]
    assert first == [{"profile_id": "ü\n\u2028", "reason": "x"}, {"profile_id": "\udcff", "reason": "y"}]


# A state URI that does not work


@pytest.mark.parametrize("state", ["disk"], indirect=True)
def test_a_state_folder_below_a_file_is_one_clear_error(open_ledger, commit, tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(LedgerError, match="Check the state URI"):
        commit(open_ledger(tmp_path / "file" / "state"), "+a")


@pytest.mark.parametrize("state", ["disk"], indirect=True)
@pytest.mark.parametrize("step", ["fsync", "open"])
def test_a_full_disk_is_one_clear_error_and_leaves_no_draft(open_ledger, commit, monkeypatch, step):
    commit(open_ledger(), "+a")

    def full(*_):
        raise OSError(28, "No space left on device")

    ledger = open_ledger()
    before = names(ledger)
    with ledger.locked("me"), monkeypatch.context() as patch:
        patch.setattr(storage.os, step, full)
        with pytest.raises(LedgerError, match=r"No space left on device.*Check the state URI"):
            ledger.stage(lambda *_: changes("+b"))
    assert names(ledger) == before


@pytest.mark.parametrize("state", ["disk"], indirect=True)
def test_a_bucket_that_does_not_exist_is_one_clear_error(s3, open_ledger, commit):
    with pytest.raises(LedgerError, match=r"bucket does not exist.*Check the state URI"):
        commit(open_ledger(type(s3)("s3://storage@nowhere")), "+a")


@pytest.mark.parametrize("state", ["disk"], indirect=True)
def test_an_object_store_that_cannot_be_reached_is_one_clear_error(bucket, open_ledger, commit):
    once = {"retries": {"max_attempts": 1}, "connect_timeout": 1}
    unreachable = bucket("unreachable", "http://127.0.0.1:9", config_kwargs=once)
    with pytest.raises(LedgerError, match=r"Could not connect.*Check the state URI"):
        commit(open_ledger(unreachable), "+a")


def test_every_error_of_a_ledger_is_one_of_ours():
    assert issubclass(LedgerError, TalonCdpError)
