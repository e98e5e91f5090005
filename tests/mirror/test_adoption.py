"""Members that an audience got by other means, from a file."""

from __future__ import annotations

from pathlib import Path

import pytest

from airflow_provider_talon_cdp.__main__ import main
from airflow_provider_talon_cdp.exceptions import InvalidInputError, TalonCdpError
from airflow_provider_talon_cdp.ledger.adopt import members_of_csv
from airflow_provider_talon_cdp.ledger.ledger import Ledger
from tests.mirror.test_ledger import TEN


def export(tmp_path, ids, header="profileintegrationid", **options):
    path = tmp_path / "members.csv"
    path.write_text("\n".join([header, *ids]) + "\n", **options)
    return str(path)


def test_adopted_members_can_be_removed(sqlite, vip, mirror, agrees, tmp_path, said):
    vip.add_members("vip", TEN)
    sqlite.fill([*TEN[1:], "new"])
    summary = mirror(initial_members=export(tmp_path, TEN))
    assert (summary["unchanged"], summary["removals"], summary["sent"]) == (9, 1, 2)
    assert "Adopted 10 members into a new ledger" in said()
    agrees([*TEN[1:], "new"])


def test_members_are_adopted_once(sqlite, vip, mirror, agrees, tmp_path, said):
    sqlite.fill(TEN)
    vip.add_members("vip", TEN)
    mirror(initial_members=export(tmp_path, TEN))
    sqlite.fill([*TEN, "new"])
    assert mirror(initial_members=export(tmp_path, ["someone else"]))["sent"] == 1
    assert said().count("into a new ledger") <= 2, "once in each place where this Airflow logs"
    assert "The ledger exists already, so initial_members is not read" in said()
    agrees([*TEN, "new"])


def test_who_adopted_members_or_repaired_a_ledger_is_no_other_task(
    sqlite, vip, mirror, connect, agrees, tmp_path, state, talon, said
):
    settings = talon.connection()
    ledger = ["--state-uri", str(state), "--deployment-host", settings["extra"]["deployment_host"]]
    ledger += ["--base-url", settings["host"], "--audience-id", "vip"]
    vip.add_members("vip", TEN)
    assert main(["ledger", "import", *ledger, "--csv", export(tmp_path, TEN)]) == 0
    sqlite.fill([*TEN[1:], "new"])
    assert mirror()["sent"] == 2
    max(state.glob("*/audience*/manifest-*")).write_text("{")
    assert main(["ledger", "repair", *ledger]) == 0
    assert "is damaged: what was sent since is sent again." in said()
    mirror()
    assert "Another task changed" not in said()
    agrees([*TEN[1:], "new"])


def test_the_guard_speaks_about_adopted_members_too(sqlite, vip, mirror, tmp_path, calls):
    sqlite.fill(TEN[:2])
    with pytest.raises(TalonCdpError, match="would lose 8 of 10"):
        mirror(initial_members=export(tmp_path, TEN), min_removals=0)
    assert calls() == 0


def test_adoption_over_again_after_a_crash_of_it(
    sqlite, vip, mirror, agrees, tmp_path, ledger_of, monkeypatch
):
    """A worker that dies while it adopts must not leave a ledger that knows nobody and counts as used."""
    vip.add_members("vip", TEN)
    sqlite.fill(TEN[1:])
    file = export(tmp_path, TEN)

    def dies(self, *_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Ledger, "make_current", dies)
        with pytest.raises(KeyboardInterrupt):
            ledger_of().adopt("dag/sync/run-1/-1", members_of_csv(Path(file), "vip", "warn"))
    mirror(initial_members=file)
    agrees(TEN[1:])


@pytest.mark.parametrize(
    "content, complaint",
    [
        ("a,b\n1,2\n", "has no column 'profileintegrationid'"),
        ("profileintegrationid\n", "The file has no members, so nothing was adopted"),
        ("profileintegrationid\nanna\n" + "x" * 1001, "Row 3 of the members: profile ID longer than 1000"),
        ("profileintegrationid,name\nanna,A\n,B\n", "Row 3 of the members: profile ID empty"),
        ("name,profileintegrationid\nanna\n", "Row 2 of the members: profile ID null"),
        (b"profileintegrationid\n\xff\xfe\n", "not a CSV file in UTF-8"),
    ],
)
def test_a_file_of_members_that_cannot_be_right_is_refused(
    sqlite, vip, mirror, tmp_path, calls, content, complaint
):
    sqlite.fill(TEN)
    path = tmp_path / "members.csv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(InvalidInputError, match=complaint):
        mirror(initial_members=str(path))
    assert calls() == 0


def test_a_file_of_members_that_is_not_there(sqlite, vip, mirror, tmp_path, calls):
    sqlite.fill(TEN)
    with pytest.raises(InvalidInputError, match="cannot be read"):
        mirror(initial_members=str(tmp_path / "none.csv"))
    assert calls() == 0


def test_adopted_ids_keep_their_spaces_commas_and_line_breaks(sqlite, vip, mirror, agrees, tmp_path):
    awkward = ["a,b", 'say "hi"', "two\nlines", " led", "trail ", "ümit", "\U0001f600"]
    path = tmp_path / "members.csv"
    quoted = "".join('7,"' + each.replace('"', '""') + '"\r\n' for each in awkward)
    path.write_bytes(b"\xef\xbb\xbf" + f"id,ProfileIntegrationId\r\n{quoted}".encode())
    sqlite.fill(awkward)
    vip.add_members("vip", awkward)
    assert mirror(initial_members=str(path))["unchanged"] == len(awkward)
    agrees(awkward)
