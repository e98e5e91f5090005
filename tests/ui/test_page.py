"""The tab of a task instance: which file it reads, which it refuses, and what it makes of the numbers."""

from __future__ import annotations

import os
import re
import sys
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from threading import Event, Semaphore
from types import SimpleNamespace
from typing import Any

import pytest
from fsspec.implementations.dirfs import DirFileSystem  # type: ignore[import-untyped]
from fsspec.implementations.local import LocalFileSystem  # type: ignore[import-untyped]

pytest.importorskip("airflow.api_fastapi.core_api.security", reason="Airflow 2.11 has no such tab")

from airflow.sdk.io import attach
from sqlalchemy import create_engine
from sqlalchemy.orm import Session

from airflow_provider_talon_cdp.ui import TalonCdpPlugin, page

NAMES = [f"2026112{day}T200000Z-0123456{day}89abcdef.json" for day in range(9)]


def shown(place):
    """The page's text, without its tags."""
    html = page.render(*page.read(place, "sync"))
    return re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", html.partition("</style>")[2]))


class TestWhatIsRead:
    def test_the_report_that_the_task_names_and_those_of_the_runs_before(self, leave):
        places = [leave(name, ledger_version=version) for version, name in enumerate(NAMES)]
        report, reports = page.read(places[6], "sync")
        assert report.ledger_version == 6
        assert [each.ledger_version for each in reports] == [0, 1, 2, 3, 4, 5, 6]

    def test_of_a_run_with_several_reports_the_last_one_is_shown(self, leave):
        for second in range(3):
            leave(NAMES[0].replace("200000Z", f"20000{second}Z"), ledger_version=second)
        leave(NAMES[1].replace("200000Z", "195900Z"), ledger_version=5)
        _, reports = page.read(leave(NAMES[1]), "sync")
        assert [each.ledger_version for each in reports] == [2, 7]

    def test_of_other_dags_on_the_same_ledger_nothing_is_shown(self, leave):
        leave(NAMES[0], run={"dag_id": "secret"}, ledger_version=1)
        _, reports = page.read(leave(NAMES[1]), "sync")
        assert [each.ledger_version for each in reports] == [7]

    def test_an_earlier_report_that_cannot_be_read_is_left_out(self, leave, s3, tmp_path):
        for name in NAMES[:3]:
            place = leave(name, ledger_version=int(name[7]))
            below = place.removeprefix(f"{tmp_path}/")
            s3.fs.put(place, f"ledgers/archived/{below}")
        # A life-cycle rule of the bucket has moved it. S3 returns an error for it.
        key = f"archived/{below}".replace(NAMES[2], NAMES[0])
        source = {"Bucket": "ledgers", "Key": key}
        s3.fs.call_s3("copy_object", Bucket="ledgers", Key=key, CopySource=source, StorageClass="GLACIER")
        _, reports = page.read(f"{str(s3).rstrip('/')}/archived/{below}", "sync")
        assert [each.ledger_version for each in reports] == [1, 2]

    def test_a_report_that_another_dag_left_is_refused(self, leave):
        with pytest.raises(page.NoReportError, match="does not exist any more, or is not a report"):
            page.read(leave(run={"dag_id": "secret"}), "sync")

    @pytest.mark.parametrize(
        "place",
        [
            "/etc/passwd",
            "{root}/demo.talon.one/audience_vip-0123456789abcdef/manifest-1-2-3.json",
            "{root}/demo.talon.one/audience_vip-0123456789abcdef/reports/../../../x-0123456789abcdef.json",
            "{root}/../{folder}/{name}",
            "{root}/demo.talon.one/audience_vip/reports/{name}",
            "relative/{folder}/{name}",
            "{root}/{folder}/{name}\n",
            "{root}/{folder}/members.json",
            ["{root}/{folder}/{name}"],
            {"__classname__": "builtins.tuple"},
            7,
            "",
        ],
    )
    def test_a_place_that_is_none_of_a_report_is_not_looked_at(self, place, leave, tmp_path, monkeypatch):
        leave(NAMES[0])
        if isinstance(place, str):
            folder = "demo.europe-west1.talon.one/audience_vip-0123456789abcdef/reports"
            place = place.format(root=tmp_path, folder=folder, name=NAMES[0])
        monkeypatch.setattr(page, "_parsed", lambda file: pytest.fail(f"{file} was read"))
        with pytest.raises(page.NoReportError, match="is not that of a report"):
            page.read(place, "sync")

    def test_a_path_that_an_xcom_backend_keeps_elsewhere_is_explained(self):
        place = "s3://xcoms/sync/manual__2026-11-20/vip/3cdd70fd-c19e-4565-bb96-ac8dd83be1d5"
        with pytest.raises(page.NoReportError, match="xcom_objectstorage_threshold to 2000"):
            page.read(place, "sync")

    @pytest.mark.parametrize(
        "scheme", ["http://127.0.0.1:1", "ftp://127.0.0.1", "github://owner", "memory:/"]
    )
    def test_only_storage_that_airflow_knows_is_asked(self, scheme, leave):
        path = f"{scheme}/state/demo.talon.one/audience_vip-0123456789abcdef/reports/{NAMES[0]}"
        with pytest.raises(page.NoReportError, match="cannot read the folder") as error:
            page.read(path, "sync")
        assert "No filesystem registered" in str(error.value.__cause__)

    @pytest.mark.parametrize(
        "content",
        [
            b"",
            b"root:x:0:0",
            b"[]",
            b'{"content": {}}',
            b"\xff\xfe",
            b'{"run": ' * 10_000,
            b" " * (page.MAX_BYTES + 1),
        ],
    )
    def test_what_is_no_report_is_not_shown(self, content, leave, tmp_path):
        place = leave()
        (tmp_path / place).write_bytes(content)
        with pytest.raises(page.NoReportError, match="does not exist any more, or is not a report") as error:
            page.read(place, "sync")
        assert "root" not in str(error.value)

    def test_a_pipe_in_a_reports_place_keeps_nobody_waiting(self, leave, tmp_path):
        place = leave()
        (tmp_path / place).unlink()
        os.mkfifo(place)
        with pytest.raises(page.NoReportError, match="does not exist any more"):
            page.read(place, "sync")

    def test_a_report_that_was_pruned_is_said_to_be_gone(self, leave, tmp_path):
        place = leave(NAMES[0])
        leave(NAMES[1])
        (tmp_path / place).unlink()
        with pytest.raises(page.NoReportError, match="does not exist any more"):
            page.read(place, "sync")

    @pytest.mark.parametrize("is_first", [True, False])
    def test_a_task_that_is_running_or_was_killed_has_written_no_report_yet(self, is_first, leave, tmp_path):
        place = leave(NAMES[1])
        if not is_first:
            leave(NAMES[0])
        (tmp_path / place).unlink()
        with pytest.raises(
            page.NoReportError, match="(?s)no report yet.*still running,\nor its process was killed"
        ):
            page.read(place, "sync")

    def test_a_task_without_a_report_says_so(self):
        with pytest.raises(page.NoReportError, match="has left no report"):
            page.read(None, "sync")

    def test_it_is_read_from_an_object_store_too(self, leave, s3, tmp_path):
        place = leave()
        below = place.removeprefix(f"{tmp_path}/")
        s3.fs.put(place, f"ledgers/{below}")
        report, _ = page.read(f"{str(s3).rstrip('/')}/{below}", "sync")
        assert report.ledger_version == 7

    def test_storage_that_cannot_be_opened_is_said_to_be_out_of_reach(self, monkeypatch):
        monkeypatch.setattr(page, "ObjectStoragePath", Unopened)
        place = f"/state/demo.talon.one/audience_vip-0123456789abcdef/reports/{NAMES[0]}"
        with pytest.raises(page.NoReportError, match="cannot read the folder"):
            page.read(place, "sync")


class Unopened(type(Path())):
    """A path in an object store without a client, as of universal-pathlib before 0.3: a Path, too."""

    @property
    def fs(self):
        raise RuntimeError("The conn_id `storage` isn't defined")


class Slow(DirFileSystem):
    """An object store that answers once it may."""

    protocol = "slow"

    def __init__(self, root):
        super().__init__(str(root), LocalFileSystem(), skip_instance_cache=True)
        self.asked, self.may_answer = Semaphore(0), Event()

    def open(self, *arguments, **options):
        self.asked.release()
        assert self.may_answer.wait(20)
        return super().open(*arguments, **options)


class Metadata(Session):
    """A session whose query finds the XCom with the path of a report."""

    def __init__(self, engine, place):
        super().__init__(engine)
        self.place = place

    def scalars(self, *_, **__):
        self.connection()
        return SimpleNamespace(first=lambda: SimpleNamespace(value=self.place))


class TestSlowStorage:
    @pytest.fixture
    def slow(self, tmp_path):
        slow = Slow(tmp_path)
        # Airflow keeps what is attached for the whole process.
        attach("s3", tmp_path.name, fs=slow)
        yield slow
        slow.may_answer.set()

    @pytest.fixture
    def sessions(self):
        return []

    @pytest.fixture
    def view(self, leave, tmp_path, sessions):
        """A function that views the report, each time with a session of its own."""
        route: Any = page.app().routes[-1]
        place = f"s3://{tmp_path.name}@ledgers/{leave().removeprefix(f'{tmp_path}/')}"
        (tmp_path / "ledgers").symlink_to(tmp_path)
        engine = create_engine("sqlite://")

        def view():
            session = Metadata(engine, place)
            sessions.append(session)
            with session:
                return route.endpoint("sync", "t", "-1", "r", session).body.decode()

        return view

    def test_no_connection_to_the_metadata_database_is_held_while_the_storage_is_read(
        self, slow, view, sessions
    ):
        with ThreadPoolExecutor() as pool:
            page_of_it = pool.submit(view)
            assert slow.asked.acquire(timeout=60)
            in_transaction = sessions[0].in_transaction()
            slow.may_answer.set()
        assert "Partly rejected" in page_of_it.result()
        assert not in_transaction

    def test_the_fifth_reader_is_told_to_come_back(self, slow, view):
        with ThreadPoolExecutor() as pool:
            pages = [pool.submit(view) for _ in range(4)]
            assert all(slow.asked.acquire(timeout=60) for _ in pages)
            busy = view()
            slow.may_answer.set()
        assert "reading other reports" in busy
        assert all("Partly rejected" in each.result() for each in pages)
        assert "Partly rejected" in view()


class TestNumbers:
    def test_a_green_run(self, leave):
        text = shown(leave(counts={"rejected": {}}))
        assert "In step" in text
        assert "1,000 records read" in text
        for numbers in ("900 unchanged", "5 duplicate", "110 to change", "80 added", "30 removed"):
            assert numbers in text
        assert "Rejected, by reason" not in text

    def test_a_run_that_finished_an_earlier_plan_and_skipped_its_own_is_not_in_step(self, leave):
        guard = {"verdict": "skipped: The source has no rows", "allow": None}
        text = shown(leave(counts={"rejected": {}, "unsent": 3000}, guard=guard))
        assert "An earlier plan was finished, the new one skipped" in text
        assert "In step" not in text

    def test_a_run_with_unclear_calls_is_not_in_step_and_says_what_to_check(self, leave):
        counts = {"unchanged": 890, "rejected": {}, "unclear": 25}
        place = leave(counts=counts, dead_letters="s3://bucket/letters")
        text = shown(place)
        assert "Partly unclear" in text
        assert "In step" not in text
        assert "25 unclear These changes got no clear answer" in text
        assert "Dead letters s3://bucket/letters" in text
        report, _ = page.read(place, "sync")
        bars = page.funnel(report)
        assert {each["name"]: each["count"] for each in bars["changes"]} == {
            "added": 80,
            "removed": 30,
            "unclear": 25,
        }
        assert sum(each["count"] for each in bars["records"]) == 1030

    def test_a_run_with_rejections_shows_reasons_the_most_first_and_the_dead_letters(self, leave):
        text = shown(leave(dead_letters="s3://bucket/letters"))
        assert "Partly rejected" in text
        assert "15 rejected" in text
        assert text.index("the profile ID is empty 12") < text.index("Talon.One refused it 3")
        assert "Dead letters s3://bucket/letters" in text

    def test_a_run_that_the_guard_refused_shows_its_words_and_the_argument(self, leave):
        guard = {
            "verdict": "Audience 'vip' would lose 41 of 98.\nNothing was sent.\nIf so, pass max_removals=41.",
            "allow": "max_removals=41",
        }
        counts = {"added": 0, "removed": 0, "sent": 0, "unsent": 110, "rejected": {}}
        text = shown(leave(state="refused", guard=guard, counts=counts, throughput=[]))
        assert "Refused, nothing sent" in text
        assert "Audience &#39;vip&#39; would lose 41 of 98. Nothing was sent. What" in text
        assert text.count("max_removals=41") == 1
        assert "80 to add" in text
        assert "30 to remove" in text
        assert "What it would change audience to add to remove members then vip 80 30 980" in text
        assert "Changes acknowledged a second" not in text
        assert "Members after the last runs" not in text

    def test_a_run_that_stopped_shows_what_is_unsent(self, leave):
        text = shown(leave(state="stopped", counts={"added": 10, "unsent": 70}))
        assert "Stopped early" in text
        assert "10 added" in text
        assert "70 unsent" in text

    def test_an_empty_run(self, leave):
        counts = dict.fromkeys(("read", "unchanged", "added", "removed", "duplicate", "requests"), 0)
        text = shown(
            leave(counts=counts | {"rejected": {}}, audiences={}, throughput=[], ledger_version=None)
        )
        assert "There was nothing to compare." in text

    def test_no_text_of_a_report_becomes_markup(self, leave):
        evil = "<script>alert(1)</script><img src=x onerror=y>\"'"
        html = page.render(
            *page.read(
                leave(
                    counts={"rejected": {evil: 1}},
                    audiences={
                        evil: {"added": 1, "removed": 1, "members": 2},
                        "b": {"added": 0} | dict.fromkeys(("removed", "members"), 0),
                    },
                    guard={"verdict": evil, "allow": evil},
                    dead_letters=evil,
                ),
                "sync",
            )
        )
        assert "<script" not in html
        assert "<img" not in html
        assert html.count("&lt;script&gt;alert(1)") >= 5

    def test_nothing_is_loaded(self, leave):
        html = page.render(*page.read(leave(), "sync"))
        assert not re.search(r"(src|href|url)\s*[=(]|https?:|@import|<link", html)

    def test_a_bar_is_as_wide_as_its_share_and_never_invisible(self, leave):
        report, _ = page.read(leave(counts={"unchanged": 10**9, "rejected": {}}), "sync")
        first = page.funnel(report)["records"]
        assert [each["name"] for each in first] == ["unchanged", "duplicate", "to change"]
        assert sum(each["width"] for each in first) == pytest.approx(page.WIDTH)
        assert min(each["width"] for each in first) > 5
        assert all(after["x"] == pytest.approx(each["x"] + each["width"]) for each, after in pairwise(first))

    def test_throughput_is_a_second_and_shows_where_429s_came(self):
        chart = page.throughput([(1.0, 50, 0), (3.0, 150, 2), (4.0, 150, 2)])
        assert [bar["rate"] for bar in chart["bars"]] == [50, 50, 0]
        assert chart["marks"] == [{"at": 2.0, "count": 2}]
        assert chart["seconds"] == 4.0

    def test_throughput_begins_with_the_first_request_and_not_with_the_plan(self):
        chart = page.throughput([(10.0, 0, 0), (11.0, 30, 0), (12.0, 40, 1)])
        assert [bar["rate"] for bar in chart["bars"]] == [30, 10]
        assert chart["marks"] == [{"at": 1.5, "count": 1}]
        assert chart["seconds"] == 2.0

    def test_throughput_of_a_sync_that_took_no_measurable_time_is_shown(self):
        assert page.throughput([(0.01, 0, 0), (0.01, 1, 0)])["seconds"] > 0

    def test_throughput_of_nothing_is_no_chart(self):
        assert page.throughput([]) is None
        assert page.throughput([(1.0, 0, 1)]) is None

    @pytest.mark.parametrize("value, top", [(0, 1), (0.4, 1), (7, 7), (99, 99), (101, 110), (98_200, 99_000)])
    def test_an_axis_ends_at_a_round_number(self, value, top):
        assert page._rounded(value) == top

    def test_sizes_are_of_runs_that_sent_the_largest_audience_first(self, leave):
        for name, members in zip(NAMES[:3], (10, 20, 30), strict=True):
            audiences = {
                "small": {"added": 0, "removed": 0, "members": members},
                "large": {"added": 0, "removed": 0, "members": 100},
                "unknown": {"added": 0, "removed": 0, "members": None},
            }
            leave(name, audiences=audiences, state="refused" if members == 20 else "done")
        place = leave(NAMES[3], audiences={"small": {"added": 0, "removed": 0, "members": 40}})
        charts = page.sizes(page.read(place, "sync")[1])
        assert [(each["audience"], [dot["members"] for dot in each["dots"]]) for each in charts] == [
            ("large", [100, 100]),
            ("small", [10, 30, 40]),
        ]

    def test_of_many_audiences_the_largest_have_charts_and_only_those_are_kept(self, leave):
        for run, name in enumerate(NAMES):
            audiences = {f"a{n:02}": {"added": 0, "removed": 0, "members": 10 * n + run} for n in range(50)}
            place = leave(name, audiences=audiences | {"new": {"added": 0, "removed": 0, "members": None}})
        report, reports = page.read(place, "sync")
        assert len(report.audiences) == 51
        assert [len(each.audiences) for each in reports] == [page.CHARTS_SHOWN] * len(NAMES)
        charts = page.sizes(reports)
        assert [each["audience"] for each in charts] == ["a49", "a48", "a47", "a46", "a45", "a44"]
        assert [dot["members"] for dot in charts[0]["dots"]] == list(range(490, 490 + len(NAMES)))
        assert "... and 44 more audiences" in shown(place)
        assert "... and 31 more" in shown(place)

    def test_a_run_that_counted_no_members_shows_those_of_the_run_before(self, leave):
        for name, members in zip(NAMES[:2], (10, 20), strict=True):
            leave(name, audiences={"vip": {"added": 0, "removed": 0, "members": members}})
        place = leave(NAMES[2], audiences={}, state="stopped")
        (chart,) = page.sizes(page.read(place, "sync")[1])
        assert [dot["members"] for dot in chart["dots"]] == [10, 20]


def test_a_release_of_airflow_that_has_moved_something_has_no_tab(monkeypatch, caplog):
    """Airflow's API server would not start."""
    monkeypatch.setitem(sys.modules, "airflow_provider_talon_cdp.ui.page", None)
    assert TalonCdpPlugin().fastapi_apps == []
    assert "The tab Talon.One sync does not work" in caplog.text
