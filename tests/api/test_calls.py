"""What each call puts on the wire, by Talon.One's Third-party API reference."""

from __future__ import annotations

import json
from urllib.parse import unquote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_provider_talon_cdp.api import calls
from airflow_provider_talon_cdp.exceptions import InvalidInputError

TEXT = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=40)
# An audience ID has no white space or invisible character at its ends.
AUDIENCE_ID = TEXT.filter(lambda text: text == text.strip().strip("\ufeff\u200b\u2060"))


@pytest.mark.parametrize(
    "request_, method, path, body",
    [
        (
            calls.create_audience("vip", "VIP"),
            "POST",
            "/cdp/audiences",
            {"audienceId": "vip", "audienceName": "VIP"},
        ),
        (
            calls.update_audience("vip", "VIP"),
            "PUT",
            "/cdp/audiences/vip",
            {"audienceId": "vip", "audienceName": "VIP"},
        ),
        (calls.delete_audience("vip"), "DELETE", "/cdp/audiences/vip", None),
        (
            calls.update_customer_profile("anna", attributes={"Tier": None}),
            "PUT",
            "/cdp/customer_profile/anna?skipNonExistingAttributes=false",
            {"attributes": {"Tier": None}, "runRuleEngine": False},
        ),
        (
            calls.update_customer_profile(
                "anna",
                run_rule_engine=True,
                add_audiences=[1],
                remove_audiences=[2, 3],
                skip_unknown_attributes=True,
            ),
            "PUT",
            "/cdp/customer_profile/anna?skipNonExistingAttributes=true",
            {"runRuleEngine": True, "audiencesChanges": {"adds": [1], "deletes": [2, 3]}},
        ),
        (
            calls.update_customer_profile_audiences("anna", add_audiences=["a"], remove_audiences=["b"]),
            "PUT",
            "/cdp/customer_profile/anna/audiences",
            {"data": {"adds": ["a"], "deletes": ["b"]}},
        ),
        (
            calls.update_customer_profiles_audiences([("anna", ["a"], []), ("bo", [], ["a", "b"])]),
            "PUT",
            "/cdp/v2/customer_profiles/audiences",
            {
                "data": [
                    {"customerProfileId": "anna", "adds": ["a"], "deletes": []},
                    {"customerProfileId": "bo", "adds": [], "deletes": ["a", "b"]},
                ]
            },
        ),
        (
            calls.update_customer_profiles_audiences([("anna", [7], [])], audience_id_type="internal"),
            "PUT",
            "/cdp/customer_profiles/audiences",
            {"data": [{"customerProfileId": "anna", "adds": [7], "deletes": []}]},
        ),
        (
            calls.update_customer_profiles_audiences([], multi_profile_path="singular"),
            "PUT",
            "/cdp/v2/customer_profile/audiences",
            {"data": []},
        ),
        (
            calls.update_customer_profiles_audiences(
                [], audience_id_type="internal", multi_profile_path="singular"
            ),
            "PUT",
            "/cdp/customer_profile/audiences",
            {"data": []},
        ),
    ],
)
def test_method_path_and_body_follow_the_reference(request_, method, path, body):
    assert (request_.method, request_.path) == (method, path)
    assert (None if request_.body is None else json.loads(request_.body)) == body


@given(AUDIENCE_ID.filter(lambda text: text not in (".", "..")))
def test_any_id_is_one_path_segment_that_decodes_to_itself(identifier):
    path = calls.delete_audience(identifier).path
    segment = path.removeprefix("/cdp/audiences/")
    assert unquote(segment) == identifier
    assert not set(segment) & set("/?#& +")
    assert segment.isascii()


@pytest.mark.parametrize("dots", [".", ".."])
@pytest.mark.parametrize(
    "call",
    [
        calls.delete_audience,
        lambda dots: calls.update_audience(dots, "VIP"),
        calls.update_customer_profile,
        lambda dots: calls.update_customer_profile(dots, attributes=b"{}"),
        calls.update_customer_profile_audiences,
    ],
)
def test_an_id_that_is_a_step_in_a_path_is_refused_with_the_reason(call, dots):
    """A proxy that normalises URLs makes another call of it, such as *Update customer profile*."""
    with pytest.raises(InvalidInputError, match="cannot be part of a request's path:\na proxy"):
        call(dots)


@pytest.mark.parametrize("dots", [".", ".."])
def test_such_an_id_is_harmless_in_a_body(dots):
    assert json.loads(calls.create_audience(dots, "VIP").body)["audienceId"] == dots
    body = json.loads(calls.update_customer_profiles_audiences([(dots, [dots], [])]).body)
    assert body["data"] == [{"customerProfileId": dots, "adds": [dots], "deletes": []}]


def test_more_dots_than_two_are_an_id_like_any_other():
    assert calls.delete_audience("...").path == "/cdp/audiences/..."


@pytest.mark.parametrize(
    "request_, runs",
    [
        (calls.update_customer_profile("anna", attributes={"x": 1}), False),
        (calls.update_customer_profile("anna", run_rule_engine=True), True),
        (calls.update_customer_profile("anna", add_audiences=[1]), True),
        (calls.update_customer_profile("anna", remove_audiences=[1]), True),
        (calls.update_customer_profile("anna", attributes=b"{}"), False),
        (calls.update_customer_profile("anna", attributes=b"{}", run_rule_engine=True), True),
        (calls.update_customer_profile_audiences("anna", add_audiences=["vip"]), True),
        (calls.update_customer_profiles_audiences([("anna", ["vip"], [])]), False),
        (calls.update_audiences_of_customer_profiles([(["anna"], "vip", "add")]), False),
        (calls.create_audience("vip", "VIP"), False),
        (calls.delete_audience("vip"), False),
    ],
)
def test_a_request_knows_whether_talon_one_runs_rules_for_it(request_, runs):
    assert request_.runs_rules is runs


@given(AUDIENCE_ID, TEXT)
def test_bodies_hold_ids_and_names_unchanged(identifier, name):
    assert json.loads(calls.create_audience(identifier, name).body or b"") == {
        "audienceId": identifier,
        "audienceName": name,
    }


def test_an_id_of_1000_non_ascii_characters_fits():
    assert unquote(calls.delete_audience("ü" * 1000).path).endswith("/" + "ü" * 1000)


@pytest.mark.parametrize("bad", ["", "x" * 1001, None, 7, ["vip"], "\ud800"])
def test_what_is_no_id_is_refused_and_not_quoted(bad):
    with pytest.raises(InvalidInputError, match="audience_id") as refusal:
        calls.delete_audience(bad)
    assert "xx" not in str(refusal.value)


@pytest.mark.parametrize(
    "odd", ["vip\n", " vip", "vip\t", "vip\r\n", "vip\u00a0", "\ufeffvip", "vip\u200b", "\n", " \ufeffvip"]
)
@pytest.mark.parametrize(
    "call",
    [
        calls.delete_audience,
        lambda odd: calls.create_audience(odd, "VIP"),
        lambda odd: calls.update_audience(odd, "VIP"),
        lambda odd: calls.update_customer_profile_audiences("anna", remove_audiences=[odd]),
        lambda odd: calls.update_customer_profiles_audiences([("anna", [odd], [])]),
        lambda odd: calls.update_audiences_of_customer_profiles([(["anna"], odd, "add")]),
    ],
)
def test_an_audience_id_with_white_space_at_an_end_is_refused(call, odd):
    """It comes from a file or a variable that ends with a newline, and would be a second audience."""
    with pytest.raises(InvalidInputError, match="begins or ends with white space"):
        call(odd)


def test_white_space_inside_an_audience_id_and_around_a_profile_id_stays():
    assert json.loads(calls.create_audience("my vip", " VIP ").body)["audienceId"] == "my vip"
    assert calls.update_customer_profile(" anna ").path.startswith("/cdp/customer_profile/%20anna%20?")


def test_an_integer_for_an_external_audience_says_what_to_do():
    with pytest.raises(InvalidInputError, match=r"quotes, or cast the column to text in SQL\.\nUse internal"):
        calls.update_customer_profile_audiences("anna", add_audiences=[17])  # type: ignore[list-item]


@pytest.mark.parametrize("bad", ["17", 0, -1, True, 1.0, None])
def test_what_is_no_internal_audience_id_is_refused(bad):
    with pytest.raises(InvalidInputError, match="internal audience ID"):
        calls.update_customer_profile("anna", add_audiences=[bad])


@pytest.mark.parametrize("odd", ["vip", b"vip", None, 5, {"vip": True}])
def test_what_is_no_list_of_audiences_is_refused(odd):
    for call in (
        lambda: calls.update_customer_profile("anna", add_audiences=odd),
        lambda: calls.update_customer_profile_audiences("anna", remove_audiences=odd),
        lambda: calls.update_customer_profiles_audiences([("anna", odd, [])]),
    ):
        with pytest.raises(InvalidInputError, match="must be a list, not (str|bytes|NoneType|int|dict)"):
            call()


@pytest.mark.parametrize(
    "odd", [None, 5, "anna", ["anna"], [("anna", ["vip"])], [None], {"anna": ["vip"]}, [{"anna": 1}]]
)
def test_what_is_no_entry_of_a_profile_is_refused(odd):
    with pytest.raises(InvalidInputError, match="Each entry must be a tuple of a customer profile ID"):
        calls.update_customer_profiles_audiences(odd)


@pytest.mark.parametrize("name", ["run_rule_engine", "skip_unknown_attributes"])
@pytest.mark.parametrize("odd", ["False", "", None, 0])
def test_the_text_of_a_boolean_is_refused(name, odd):
    """A template renders it, and the text "False" would count as true."""
    with pytest.raises(InvalidInputError, match=f"{name} must be True or False"):
        calls.update_customer_profile("anna", attributes={"x": 1}, **{name: odd})


def test_a_change_of_no_audience_is_refused():
    """Talon.One would run its rules for nothing."""
    with pytest.raises(InvalidInputError, match="both empty"):
        calls.update_customer_profile_audiences("anna")


def test_an_audience_in_adds_and_removes_of_one_profile_is_refused():
    with pytest.raises(InvalidInputError, match="both the adds and the removes"):
        calls.update_customer_profiles_audiences([("anna", ["a", "b"], ["b"])])


def test_a_request_holds_1000_changes_over_all_profiles_and_not_one_more():
    full = [(f"p{number}", ["a", "b"], []) for number in range(500)]
    assert calls.update_customer_profiles_audiences(full).changes == 1000
    with pytest.raises(InvalidInputError, match="at most 1000"):
        calls.update_customer_profiles_audiences([*full, ("anna", [], ["a"])])
    with pytest.raises(InvalidInputError, match="at most 1000"):
        calls.update_customer_profile_audiences("anna", add_audiences=map(str, range(1001)))


def test_the_repr_of_a_request_has_no_body():
    assert "Tier" not in repr(calls.update_customer_profile("anna", attributes={"Tier": "gold"}))


ODD = st.sampled_from(
    ['"', "\\", "\x00", "\x1f", "\x7f", "\u2028", "/", '","adds":["evil"],"x":"', "é", "😀"]
)


@given(
    ids=st.lists(TEXT | ODD | st.builds("{}{}".format, TEXT, ODD), min_size=1, max_size=6, unique=True),
    audiences=st.lists(AUDIENCE_ID | ODD.filter(lambda text: text == text.strip()), min_size=1, max_size=3)
    | st.lists(st.integers(1, 2**63 - 1), min_size=1, max_size=3),
    actions=st.lists(st.sampled_from(["add", "remove"]), min_size=3, max_size=3),
    spelling=st.sampled_from(["plural", "singular"]),
)
def test_the_quick_form_of_a_batch_is_the_same_request_as_the_plain_one(ids, audiences, actions, spelling):
    kind = {"audience_id_type": "internal" if isinstance(audiences[0], int) else "external"}
    kind["multi_profile_path"] = spelling
    count = len(audiences)
    groups = [
        (share, audience, action)
        for at, (audience, action) in enumerate(zip(audiences, actions, strict=False))
        if (share := ids[at::count])
    ]
    entries = [
        (each, [audience] * (action == "add"), [audience] * (action == "remove"))
        for share, audience, action in groups
        for each in share
    ]
    quick = calls.update_audiences_of_customer_profiles(groups, **kind)
    plain = calls.update_customer_profiles_audiences(entries, **kind)
    assert json.loads(quick.body) == json.loads(plain.body)
    assert tuple(quick.private()) == tuple(plain.private())
    for name in ("operation", "method", "path", "changes"):
        assert getattr(quick, name) == getattr(plain, name)


def test_the_quick_form_refuses_what_is_no_json():
    with pytest.raises(InvalidInputError, match="not JSON"):
        calls.update_audiences_of_customer_profiles([(["anna", "\udcff"], "vip", "add")])


def test_the_quick_form_holds_1000_profiles_and_not_one_more():
    ids = [str(number) for number in range(1001)]
    groups = [(ids[:400], "vip", "add"), (ids[400:1000], "vip", "remove")]
    assert calls.update_audiences_of_customer_profiles(groups).changes == 1000
    with pytest.raises(InvalidInputError, match="at most 1000"):
        calls.update_audiences_of_customer_profiles([(ids, "vip", "add")])


@pytest.mark.parametrize(
    "groups", [[], [([], "vip", "add")], [([], "vip", "add"), (["anna"], "vip", "remove")]]
)
def test_a_group_of_nobody_adds_no_entry(groups):
    request = calls.update_audiences_of_customer_profiles(groups)
    entries = [
        {"customerProfileId": each, "adds": [], "deletes": ["vip"]} for ids, *_ in groups for each in ids
    ]
    assert (json.loads(request.body), request.changes) == ({"data": entries}, len(entries))
