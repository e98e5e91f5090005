"""Paths: an ID may hold anything, and the two spellings of the multi-profile calls."""

from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_provider_talon_cdp.emulator import routes
from airflow_provider_talon_cdp.emulator.answers import RefusedError

ids = st.text(st.characters(exclude_categories=["Cs"]), min_size=1)


def status(method, path, spelling="plural"):
    with pytest.raises(RefusedError) as caught:
        routes.find(method, path, spelling)
    return caught.value.status


@given(ids)
def test_any_id_survives_the_path(value):
    path = f"/cdp/customer_profile/{quote(value, safe='')}/audiences".encode()
    for spelling in ("plural", "singular"):
        assert routes.find("PUT", path, spelling) == routes.Route(routes.UPDATE_PROFILE_AUDIENCES, value)


@pytest.mark.parametrize(
    ("raw", "value"),
    [
        (b"a%2Fb", "a/b"),
        (b"%2E%2E", ".."),
        (b"..", ".."),
        (b"%3F%23%25", "?#%"),
        (b"a+b", "a+b"),
        (b"%C3%BC", "ü"),
    ],
)
def test_a_segment_is_decoded_once_and_not_tidied(raw, value):
    assert routes.find("PUT", b"/cdp/customer_profile/" + raw, "plural").path_id == value


@pytest.mark.parametrize("raw", [b"%", b"%2", b"%zz", b"%FF", b"%C3%28", b"%ED%A0%80"])
def test_a_segment_that_cannot_be_decoded_is_a_400(raw):
    assert status("PUT", b"/cdp/customer_profile/" + raw) == 400


@pytest.mark.parametrize(
    ("spelling", "path", "operation", "path_id"),
    [
        ("plural", b"/cdp/customer_profiles/audiences", routes.UPDATE_PROFILES_INTERNAL, ""),
        ("plural", b"/cdp/v2/customer_profiles/audiences", routes.UPDATE_PROFILES_EXTERNAL, ""),
        ("plural", b"/cdp/customer_profile/audiences", routes.UPDATE_PROFILE, "audiences"),
        ("singular", b"/cdp/customer_profile/audiences", routes.UPDATE_PROFILES_INTERNAL, ""),
        ("singular", b"/cdp/v2/customer_profile/audiences", routes.UPDATE_PROFILES_EXTERNAL, ""),
        (
            "plural",
            b"/cdp/customer_profile/audiences/audiences",
            routes.UPDATE_PROFILE_AUDIENCES,
            "audiences",
        ),
        (
            "singular",
            b"/cdp/customer_profile/audiences/audiences",
            routes.UPDATE_PROFILE_AUDIENCES,
            "audiences",
        ),
    ],
)
def test_the_spelling_decides_what_is_a_multi_profile_call(spelling, path, operation, path_id):
    assert routes.find("PUT", path, spelling) == routes.Route(operation, path_id)


@pytest.mark.parametrize(
    ("spelling", "path"),
    [
        ("plural", b"/cdp/v2/customer_profile/audiences"),
        ("singular", b"/cdp/customer_profiles/audiences"),
        ("singular", b"/cdp/v2/customer_profiles/audiences"),
        ("plural", b"/cdp/customer_profile/a/b"),
        ("plural", b"/cdp"),
        ("plural", b"/CDP/audiences"),
        ("plural", b"//cdp/audiences"),
        ("plural", b"/cdp/audiences/a/b"),
        ("plural", b""),
    ],
)
def test_other_paths_are_a_404(spelling, path):
    assert status("PUT", path, spelling) == 404


@pytest.mark.parametrize("method", ["GET", "PATCH", "POST"])
def test_a_wrong_method_is_a_405_that_names_the_right_ones(method):
    with pytest.raises(RefusedError) as caught:
        routes.find(method, b"/cdp/audiences/vip", "plural")
    assert (caught.value.status, caught.value.headers) == (405, {"Allow": "DELETE, PUT"})
