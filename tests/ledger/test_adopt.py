"""Members that an audience got by other means, and the command that takes them over."""

from __future__ import annotations

import errno
import subprocess
import sys
from uuid import uuid4

import pytest
from airflow.providers.common.compat.sdk import ObjectStoragePath

from airflow_provider_talon_cdp.__main__ import main
from airflow_provider_talon_cdp.changes.change import Chunk, Rejection
from airflow_provider_talon_cdp.exceptions import (
    InvalidInputError,
    LedgerError,
    LedgerUnavailableError,
    TalonCdpError,
)
from airflow_provider_talon_cdp.ledger.adopt import members_of_csv
from airflow_provider_talon_cdp.ledger.ledger import Ledger, LedgerIdentity, ledger_name
from airflow_provider_talon_cdp.ledger.outside import OutsideChanges
from airflow_provider_talon_cdp.ledger.storage import as_folder
from airflow_provider_talon_cdp.operators import _state
from tests.ledger.conftest import members, profiles, spelt


@pytest.fixture
def csv(tmp_path):
    def write(text):
        file = tmp_path / "members.csv"
        file.write_bytes(text if isinstance(text, bytes) else text.encode())
        return file

    return write


def test_adopted_members_are_known_and_certain_whatever_their_order(open_ledger, loaded):
    records = [Chunk(["b", "ä", "a"], "vip"), Chunk(["b", "A"], "vip")]
    assert open_ledger().adopt("me", records) == 4
    assert profiles(loaded().known()) == ["A", "a", "b", "ä"]
    assert not spelt(loaded().uncertain())
    assert not spelt(loaded().unacknowledged())


def test_more_members_than_one_part_are_adopted(open_ledger, loaded, monkeypatch):
    assert open_ledger().adopt("me", [Chunk([f"{n:06}" for n in range(2001)], "vip")]) == 2001
    assert len(profiles(loaded().known())) == 2001


def test_a_ledger_that_holds_something_is_not_overwritten(open_ledger, loaded, commit, csv):
    commit(open_ledger(), "+z")
    with pytest.raises(LedgerError, match="exists already"):
        open_ledger().adopt("me", [Chunk(["a"], "vip")])
    with pytest.raises(LedgerError, match="exists already"):
        open_ledger().adopt("me", members_of_csv(csv("profileintegrationid\na\n"), "vip", "warn"))
    assert profiles(loaded().known()) == ["z"]
    assert loaded().version == 1


def test_members_are_adopted_in_one_version_with_an_empty_plan(open_ledger, loaded):
    open_ledger().adopt("me", [Chunk(["a"], "vip")])
    assert loaded().version == 1
    assert not spelt(loaded().changes())


def test_nothing_is_adopted_while_another_run_is_at_work(open_ledger, csv):
    with open_ledger().held("other"), pytest.raises(LedgerError, match="in use by other"):
        open_ledger().adopt("me", members_of_csv(csv("profileintegrationid\na\n"), "vip", "warn"))


@pytest.mark.parametrize("state", ["disk"], indirect=True)
@pytest.mark.parametrize(
    "text",
    [
        "profileintegrationid\na\nb\n",
        "\ufeffprofileintegrationid\r\nb\r\na\r\n",
        "profileintegrationid\na\n\nb\n",
        "audienceid,ProfileIntegrationId \n1,a\n2,b\n",
        'x,"profileintegrationid"\n"1,2","a"\n3,b',
    ],
)
def test_exports_in_many_shapes_are_read(open_ledger, loaded, csv, text):
    assert open_ledger().adopt("me", members_of_csv(csv(text), "vip", "warn")) == 2
    assert profiles(loaded().known()) == ["a", "b"]


@pytest.mark.parametrize("state", ["disk"], indirect=True)
def test_quoted_ids_keep_what_they_hold(open_ledger, loaded, csv):
    open_ledger().adopt(
        "me", members_of_csv(csv('profileintegrationid\n"a\nb"\n" c "\n"d""e"\n'), "vip", "warn")
    )
    assert profiles(loaded().known()) == [" c ", "a\nb", 'd"e']


@pytest.mark.parametrize("state", ["disk"], indirect=True)
def test_ids_that_look_wrong_are_told(open_ledger, loaded, csv, caplog):
    """A member whom Talon.One knows by another ID would stay for ever."""
    file = csv("profileintegrationid\na \nNone\nb\n")
    with pytest.raises(
        InvalidInputError, match=r"(?s)1 of 3 profile IDs have white space.*Nothing was adopt"
    ):
        open_ledger().adopt("me", members_of_csv(file, "vip", "fail"))
    assert not loaded().version
    open_ledger().adopt("me", members_of_csv(file, "vip", "ignore"))
    assert not caplog.text


@pytest.mark.parametrize("state", ["disk"], indirect=True)
def test_ids_that_look_wrong_are_adopted_with_a_warning(open_ledger, loaded, csv, caplog):
    open_ledger().adopt("me", members_of_csv(csv("profileintegrationid\n12.0\n13.0\n"), "vip", "warn"))
    assert profiles(loaded().known()) == ["12.0", "13.0"]
    assert "2 of 2 profile IDs end with '.0'" in caplog.text
    assert "never removed" in caplog.text


@pytest.mark.parametrize("state", ["disk"], indirect=True)
@pytest.mark.parametrize(
    "text, error",
    [
        ("a,b\n1,2\n", r"first line of the file has no column 'profileintegrationid'\. Nothing was adopted"),
        ("", r"has no column 'profileintegrationid'"),
        ("a\nb\n", r"has no column 'profileintegrationid'"),
        ("profileintegrationid;audienceid\na;1\n", r"has no column 'profileintegrationid'.*\n.*by commas"),
        ("profileintegrationid\n", r"has no members, so nothing was adopted.\nFile: .*members\.csv"),
        ("profileintegrationid,x\n\n\n", r"has no members"),
        ("x,profileintegrationid\n1\n", r"Row 2 of the members: profile ID null\. Nothing was adopted"),
        (
            "profileintegrationid\na\n" + "x" * 1001 + "\n",
            r"Row 3 of the members: profile ID longer than 1000",
        ),
        (b"profileintegrationid\n\xff\xfe\n", r"not a CSV file in UTF-8.*\n.*members\.csv"),
        ('profileintegrationid,name\na,"Anna\nb,Berta\n', r"not a CSV file in UTF-8: unexpected end of data"),
        ('profileintegrationid,name\na,"An"na\nb,Berta\n', r"not a CSV file in UTF-8: .* expected after"),
        (
            "profileintegrationid,ProfileIntegrationID\n1,a\n",
            r"has more than one column 'profileintegrationid'",
        ),
        (b"profileintegrationid\n" + b"x" * 200_000 + b"\n", r"members\.csv"),
    ],
)
def test_a_file_that_holds_no_members_is_refused_and_the_ledger_stays_new(
    open_ledger, loaded, csv, text, error
):
    with pytest.raises(InvalidInputError, match=error):
        open_ledger().adopt("me", members_of_csv(csv(text), "vip", "warn"))
    assert loaded().version == 0
    assert open_ledger().adopt("me", members_of_csv(csv("profileintegrationid\na\n"), "vip", "warn")) == 1


def test_a_file_that_is_not_there_is_refused(open_ledger, tmp_path):
    with pytest.raises(InvalidInputError, match=r"cannot be read"):
        open_ledger().adopt("me", members_of_csv(tmp_path / "none.csv", "vip", "warn"))


class _Unopened:
    """A file whose opening fails."""

    def __init__(self, error):
        self.error = error

    def __str__(self):
        return "s3://bucket/members.csv"

    def open(self, mode):
        raise self.error


@pytest.mark.parametrize("state", ["disk"], indirect=True)
@pytest.mark.parametrize(
    "error, retryable",
    [
        (OSError(errno.EBUSY, "SlowDown"), True),
        (TimeoutError("RequestTimeout"), True),
        (FileNotFoundError("bucket/members.csv"), False),
        (IsADirectoryError(errno.EISDIR, "Is a directory"), False),
        (PermissionError("Forbidden"), False),
    ],
    ids=repr,
)
def test_a_passing_error_of_the_storage_of_the_members_does_not_end_the_retries(
    open_ledger, error, retryable
):
    with pytest.raises(TalonCdpError, match=r"cannot be read: .*\nFile: s3://bucket/members\.csv") as raised:
        open_ledger().adopt("me", members_of_csv(_Unopened(error), "vip", "warn"))
    assert raised.value.retryable is retryable
    assert isinstance(raised.value, LedgerUnavailableError if retryable else InvalidInputError)


def test_a_rejection_is_no_member(open_ledger):
    assert open_ledger().adopt("me", [Rejection("x"), Chunk(["a"], "vip")]) == 1


# The command


def arguments(command, tmp_path, *more):
    place = [
        "--state-uri",
        str(tmp_path / "state"),
        "--deployment-host",
        "acme.talon.one",
        "--audience-id",
        "vip",
    ]
    return ["ledger", command, *place, *more]


@pytest.mark.parametrize("uri", ["{}", "file://{}"])
def test_the_command_adopts_and_shows(tmp_path, csv, capsys, uri):
    file = csv("profileintegrationid\nb\na\n")
    state = ["--state-uri", uri.format(tmp_path / "state")]
    assert main([*arguments("import", tmp_path), *state, "--csv", str(file)]) == 0
    assert "Adopted 2 members." in capsys.readouterr().out
    assert main([*arguments("show", tmp_path), *state]) == 0
    assert "version 1, 2 members" in capsys.readouterr().out


def test_the_command_adopts_once(tmp_path, csv, capsys):
    file = csv("profileintegrationid\na\n")
    assert main(arguments("import", tmp_path, "--csv", str(file))) == 0
    assert main(arguments("import", tmp_path, "--csv", str(file))) == 1
    (folder,) = (tmp_path / "state" / "acme.talon.one").glob("audience*")
    told = capsys.readouterr().err
    assert "The ledger exists already." in told
    assert "To adopt again, delete its folder" in told
    assert told.endswith(f"Folder: {folder}\n")


def test_the_command_shows_no_ledger_that_is_not_there(tmp_path, capsys):
    assert main(arguments("show", tmp_path)) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert "There is no ledger here. Check the state URI, the deployment host, the base URL" in err
    assert f"Folder: {tmp_path}/state/acme.talon.one/audience_3Avip-" in err


def test_the_command_reaches_whatever_storage_airflow_does(tmp_path, csv, capsys, s3):
    """The conn_id in a URI is Airflow's own, and no bucket's name."""
    state = ["--state-uri", f"s3://storage@ledgers/{uuid4().hex}"]
    file = csv("profileintegrationid\nb\na\n")
    assert main([*arguments("import", tmp_path), *state, "--csv", str(file)]) == 0
    assert main([*arguments("show", tmp_path), *state]) == 0
    assert "version 1, 2 members" in capsys.readouterr().out.splitlines()[-1]
    assert not (tmp_path / "state").exists()


def test_tasks_without_a_state_uri_find_a_ledger_that_was_adopted_under_another_one(
    tmp_path, csv, no_ledgers, clock
):
    file = csv("profileintegrationid\na\n")
    assert main([*arguments("import", tmp_path), "--csv", str(file)]) == 0
    identity = LedgerIdentity(
        deployment_host="acme.talon.one", base_url="https://integration.talon.one", name="calls:d.t"
    )
    calls = OutsideChanges(ObjectStoragePath(str(tmp_path / "ledgers")), identity, "d/t/r", clock=clock)
    calls.note(Chunk(["a"], "vip", "remove"))
    assert list((tmp_path / "state").glob("acme.talon.one/audience*/outside/*.tsv.zst"))


def test_the_command_reads_a_file_beside_it(tmp_path, csv, capsys, monkeypatch):
    monkeypatch.chdir(csv("profileintegrationid\na\n").parent)
    assert main(arguments("import", tmp_path, "--csv", "members.csv")) == 0
    assert "Adopted 1 members." in capsys.readouterr().out


def test_the_command_tells_errors_without_a_traceback(tmp_path, csv, capsys):
    assert main(arguments("import", tmp_path, "--csv", str(csv("a,b\n1,2\n")))) == 1
    told = capsys.readouterr().err
    assert told.startswith("The first line of the file has no column")


@pytest.mark.parametrize("option", ["--state-uri", "--csv"])
def test_the_command_does_not_quote_a_password_in_a_uri(tmp_path, csv, capsys, option):
    file = csv("profileintegrationid\na\n")
    uri = [option, "s3://AKIA1:SECRET@bucket/talon_cdp"]
    assert main([*arguments("import", tmp_path), "--csv", str(file), *uri]) == 1
    out, told = capsys.readouterr()
    assert "holds a user name and a password" in told
    assert "SECRET" not in out + told


class _WithoutConnection:
    """A path whose connection Airflow does not know."""

    def __init__(self, uri):
        pass

    @property
    def fs(self):
        raise RuntimeError("The conn_id `nope` isn't defined")


def test_the_command_says_in_a_line_that_a_storage_cannot_be_opened(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(_state, "ObjectStoragePath", _WithoutConnection)
    for command in ([*arguments("show", tmp_path)], ["ledger", "show", "gs://nope@bucket/ledger"]):
        assert main(command) == 1
        first, place = capsys.readouterr().err.splitlines()
        assert first.endswith(" cannot be opened by Airflow: The conn_id `nope` isn't defined.")
        assert place in {f"{tmp_path}/state", "gs://nope@bucket/ledger"}


# What a hook logs while the command runs: that of S3 does, with a logger of its own.
SCRIPT = """
import getpass, runpy
from airflow.providers.common.compat.sdk import BaseHook

def getuser():
    BaseHook().log.warning("line of a hook")
    return "me"

getpass.getuser = getuser
runpy.run_module("airflow_provider_talon_cdp", run_name="__main__")
"""


def test_the_log_is_not_between_the_lines_of_the_command(tmp_path, csv):
    file = csv("profileintegrationid\na\nNone\n")
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, *arguments("import", tmp_path, "--csv", str(file))],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    adopted, shown = done.stdout.splitlines()
    assert adopted == "Adopted 2 members."
    assert shown.endswith("version 1, 2 members")
    assert "1 of 2 profile IDs" in done.stderr
    assert "line of a hook" in done.stderr


def test_the_help_of_the_command_is_its_output():
    command = [sys.executable, "-m", "airflow_provider_talon_cdp", "ledger", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert "dead letters" in done.stdout


@pytest.mark.parametrize(
    "spelt",
    [
        ["--deployment-host", "https://ACME.talon.one/"],
        ["--deployment-host", " acme.talon.one"],
        ["--base-url", "https://integration.talon.one/"],
    ],
)
def test_the_command_finds_the_ledger_that_the_connection_would(tmp_path, csv, capsys, spelt):
    """A connection's host and base URL are brought to one spelling; so must these be."""
    assert main([*arguments("import", tmp_path), *spelt, "--csv", str(csv("profileintegrationid\na\n"))]) == 0
    assert main(arguments("show", tmp_path)) == 0
    assert "version 1, 1 members" in capsys.readouterr().out.splitlines()[-1]


def test_an_audience_of_the_campaign_manager_is_adopted_by_its_number(tmp_path, csv, capsys):
    """Into the ledger of a mirror with internal IDs; an equal external ID is another audience."""
    internal = ["--audience-id", "4711", "--audience-id-type", "internal"]
    file = csv("profileintegrationid\na\n")
    spelt = [*internal, "--audience-id", "04711"]
    assert main([*arguments("import", tmp_path), *spelt, "--csv", str(file)]) == 0
    assert main([*arguments("show", tmp_path), *internal]) == 0
    identity = LedgerIdentity(
        deployment_host="acme.talon.one",
        base_url="https://integration.talon.one",
        name=ledger_name("audience", "4711", "internal"),
    )
    ledger = Ledger(as_folder(ObjectStoragePath(str(tmp_path / "state"))), identity)
    ledger.load()
    assert members(ledger.known()) == [("a", "4711")]
    assert main([*arguments("show", tmp_path), "--audience-id", "4711"]) == 1
    capsys.readouterr()
    assert main([*arguments("import", tmp_path), *internal, "--audience-id", "vip", "--csv", str(file)]) == 1
    assert "--audience-id" in capsys.readouterr().err


def test_a_user_without_a_name_may_adopt_too(tmp_path, csv, monkeypatch):
    """As in a container with any number as its user."""

    def unknown():
        raise KeyError("getpwuid(): uid not found: 1000")

    monkeypatch.setattr("getpass.getuser", unknown)
    assert main(arguments("import", tmp_path, "--csv", str(csv("profileintegrationid\na\n")))) == 0
