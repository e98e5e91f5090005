"""The page for people: shows what there is, escapes all of it, and needs nothing from elsewhere."""

import json
import re
import shlex
from html import unescape
from html.parser import HTMLParser
from urllib.parse import urlencode

import pytest
import requests

from airflow_provider_talon_cdp.emulator import Emulator

EVIL = "\"'><script>alert(1)</script>&amp;"


class Tags(HTMLParser):
    """Collects the tags of a page, its text and its links."""

    def __init__(self):
        super().__init__()
        self.names, self.text, self.links = [], "", []

    def handle_starttag(self, tag, attrs):
        self.names.append(tag)
        self.links += [value for name, value in attrs if name in ("href", "src", "action")]

    def handle_data(self, data):
        self.text += data


def see(emulator, path="/", **query):
    answer = requests.get(emulator.url + path, query, timeout=5)
    page = Tags()
    page.feed(answer.text)
    assert answer.headers["Content-Type"] == "text/html; charset=utf-8"
    assert "script" not in page.names
    assert all(link.startswith("/") and not link.startswith("//") for link in page.links)
    assert "local-key" not in answer.text
    return answer.status_code, page


def test_an_empty_emulator_has_a_page(emulator):
    status, page = see(emulator)
    assert status == 200
    assert emulator.url in page.text
    assert "AIRFLOW_CONN_TALON_CDP_DEFAULT" in page.text


@pytest.mark.parametrize("deployment_host", ["a.talon.one", "it's"])
def test_the_connection_block_can_be_pasted_into_a_shell(deployment_host):
    with Emulator(deployment_host=deployment_host) as emulator:
        block = re.search(
            r"export AIRFLOW_CONN_\w+=.*?\}'\n?$", see(emulator)[1].text, re.MULTILINE | re.DOTALL
        )
        command, setting = shlex.split(block[0])
        name, _, value = setting.partition("=")
        assert (command, name) == ("export", "AIRFLOW_CONN_TALON_CDP_DEFAULT")
        shown, wanted = json.loads(value), emulator.connection()
        assert {**shown, "password": ""} == {**wanted, "password": ""}


def test_each_environment_has_its_page(caller):
    with Emulator(environments={"sandbox": "one", "live": "two"}) as emulator:
        caller(emulator, Authorization="ApiKey-v1 one").create("first")
        caller(emulator, Authorization="ApiKey-v1 two").create("second")
        emulator.add_members("second", ["anna"], environment="live")
        _, sandbox = see(emulator)
        assert "first" in sandbox.text
        assert "second" not in sandbox.text
        assert "/?environment=live" in sandbox.links
        _, live = see(emulator, environment="live")
        assert '"environment": "live"' in live.text
        assert "first" not in live.text
        assert "/audience?environment=live&id=second" in live.links
        _, audience = see(emulator, "/audience", environment="live", id="second")
        assert "/profile?environment=live&id=anna" in audience.links
        assert see(emulator, "/audience", id="second")[0] == 404
        assert see(emulator, environment="none")[1].text == sandbox.text


def test_an_audience_without_an_external_id_has_its_page(emulator):
    internal = emulator.create_campaign_manager_audience(EVIL)
    emulator.add_members(internal, ["anna"])
    _, overview = see(emulator)
    assert f"/audience?internal={internal}" in overview.links
    _, audience = see(emulator, "/audience", internal=internal)
    assert "anna" in audience.text
    assert "Without an external ID" in audience.text
    assert f"/audience?internal={internal}" in see(emulator, "/profile", id="anna")[1].links
    assert see(emulator, "/audience", internal="9" * 400)[0] == 404


def test_a_profile_shows_how_often_rules_ran(emulator, call):
    call.profile("anna", runRuleEngine=True)
    assert "rules ran 1 time\n" in see(emulator, "/profile", id="anna")[1].text


def test_audiences_and_requests_are_shown(emulator, call):
    call.create("vip", "Very important")
    call.external(*((f"p{n}", ["vip"]) for n in range(1000)))
    error = call.send("PUT", "/cdp/audiences/none", {"audienceId": "none", "audienceName": "x"}).json()
    _, page = see(emulator)
    for expected in ("Very important", "vip", "1,000", "/cdp/v2/customer_profiles/audiences", "404"):
        assert expected in page.text
    assert error["RequestUUID"] in page.text


def test_the_trap_in_the_path_is_pointed_out(emulator, call):
    call.send("PUT", "/cdp/customer_profile/audiences", {"data": []})
    assert "the profile named audiences" in see(emulator)[1].text


def test_faults_are_shown(emulator, call):
    emulator.fail_next("reset_before")
    emulator.fail_next("html", html=EVIL)
    with pytest.raises(requests.ConnectionError):
        call.profile("anna")
    text = see(emulator)[1].text
    assert "no answer" in text
    assert "fault: reset_before" in text
    assert "Faults to come" in text


def test_nothing_that_came_over_the_wire_is_taken_for_html(emulator, call):
    call.create(EVIL, EVIL)
    call.profile(EVIL, attributes={EVIL: EVIL}, audiencesChanges={"adds": [1]})
    call.send("GET", "/cdp/x?<b>")
    assert EVIL in see(emulator)[1].text
    assert EVIL in see(emulator, "/audience", id=EVIL, q="script")[1].text
    profile = see(emulator, "/profile", id=EVIL)[1].text
    assert profile.count("<script>") == 5  # title, heading, audience, name and value
    assert see(emulator, "/profile", id=EVIL + "x")[0] == see(emulator, "/audience", id=EVIL + "x")[0] == 404


def test_members_are_paged_and_searched(emulator, call):
    call.create("vip")
    call.external(*((f"p&{n:03}", ["vip"]) for n in range(250)))
    seen, query = [], {"id": "vip"}
    for _ in range(3):
        _, page = see(emulator, "/audience", **query)
        seen += re.findall(r"p&\d{3}", page.text)
        query = {"id": "vip", "after": seen[-1]}
    assert seen == [f"p&{n:03}" for n in range(250)]
    assert f"/audience?{urlencode({'id': 'vip', 'q': ''})}" in page.links
    assert re.findall(r"p&\d{3}", see(emulator, "/audience", id="vip", q="&24")[1].text) == [
        f"p&24{n}" for n in range(10)
    ]
    assert "No member here" in see(emulator, "/audience", id="vip", q="zzz")[1].text


def test_a_page_links_to_members_and_profiles_with_odd_ids(emulator, call):
    odd = "a/b ?#%&+ü"
    call.create(odd)
    call.profile_audiences(odd, adds=[odd])
    _, audience = see(emulator, "/audience", id=odd)
    link = next(link for link in audience.links if link.startswith("/profile?"))
    profile = requests.get(emulator.url + link, timeout=5)
    assert profile.status_code == 200
    assert odd in unescape(profile.text)


def test_a_profiles_attributes_are_shown_as_they_came(caller):
    with Emulator(attributes={"spend": "number"}) as emulator:
        caller(emulator).send("PUT", "/cdp/customer_profile/anna", b'{"attributes": {"spend": 19.990}}')
        text = see(emulator, "/profile", id="anna")[1].text
        assert "19.990" in text
        assert "number" in text


def test_a_long_path_is_cut_short(emulator, call):
    call.profile("x" * 900)
    text = see(emulator)[1].text
    assert "x" * 250 in text
    assert "x" * 300 not in text


def test_many_audiences_do_not_make_an_endless_page(emulator, call):
    for number in range(502):
        emulator.create_audience(f"a{number}", "n")
    assert "The first 500 of 502" in see(emulator)[1].text


def test_a_browser_finds_no_icon_and_is_told_to_run_nothing(emulator):
    assert requests.get(f"{emulator.url}/favicon.ico", timeout=5).status_code == 204
    policy = requests.get(emulator.url, timeout=5).headers["Content-Security-Policy"]
    assert policy.startswith("default-src 'none'")
    assert emulator.requests() == []
