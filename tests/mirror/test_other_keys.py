"""A connection that leads elsewhere: another API key, or another platform name."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from airflow_provider_talon_cdp.emulator import Emulator
from airflow_provider_talon_cdp.exceptions import AuthenticationError
from airflow_provider_talon_cdp.hooks.talon_cdp import TalonCdpHook

MANY = [f"customer-{each:03}" for each in range(100)]


@pytest.fixture
def use(connect):
    """Two environments of one deployment, and a function that puts the key of one on the connection."""
    keys = {"sandbox": "sandbox-key-0000000001", "live": "live-key-000000000002"}
    with Emulator(environments=keys) as emulator:

        def use(name, **extra):
            connection = emulator.connection(name)
            connection["extra"] = connection["extra"] | extra
            connect(SimpleNamespace(connection=lambda: connection))
            return emulator

        yield use


def test_a_first_name_beside_another_key_fills_the_audience_of_that_key(sqlite, use, mirror):
    sqlite.fill(MANY)
    for name, audience_name in (("sandbox", None), ("live", "VIP")):
        emulator = use(name)
        TalonCdpHook().create_audience("vip", "VIP")
        assert mirror(audience_name=audience_name)["sent"] == len(MANY)
        assert emulator.members("vip", name) == set(MANY)
    assert mirror(audience_name="VIP")["sent"] == 0


@pytest.mark.parametrize("audience_name, again", [("VIP", 0), (None, len(MANY))])
def test_members_are_sent_again_under_another_platform_name_though_the_environment_is_named(
    sqlite, use, mirror, said, audience_name, again
):
    """An audience of the same ID may be another one there; only the answer to an update tells."""
    sqlite.fill(MANY)
    use("live", environment="live", platform_name="segment")
    TalonCdpHook().create_audience("vip", "VIP")
    mirror(audience_name=audience_name)
    use("live", environment="live", platform_name="warehouse")
    assert mirror(audience_name=audience_name)["sent"] == again
    assert "With another platform name, the same IDs may mean other audiences" in said()
    assert mirror(audience_name=audience_name)["sent"] == 0


@pytest.mark.parametrize("audience_name", ["VIP", None])
def test_a_dry_run_with_another_key_says_that_members_may_be_sent_again(sqlite, use, mirror, audience_name):
    """It asks nothing, so its numbers do not have them."""
    sqlite.fill(MANY)
    use("sandbox", environment="")
    TalonCdpHook().create_audience("vip", "VIP")
    mirror(audience_name=audience_name)
    assert mirror(audience_name=audience_name, dry_run=True)["verdict"] == "would be sent"
    use("live", environment="")
    # The audience has another internal ID there.
    TalonCdpHook().create_audience("other", "Other")
    TalonCdpHook().create_audience("vip", "VIP")
    dry = mirror(audience_name=audience_name, dry_run=True)
    assert (dry["requests"], dry["unsent"]) == (0, 0)
    assert dry["verdict"].startswith("would be sent; known members are sent again, too, unless Talon.One")
    assert mirror(audience_name=audience_name)["sent"] == len(MANY)


def test_a_retry_of_an_addition_with_another_key_begins_at_the_first_row(sqlite, use, mirror, context):
    many = [f"customer-{each:04}" for each in range(3000)]
    sqlite.fill(many)
    context["ti"].max_tries = 1
    use("live").create_audience("vip", "VIP", "live")
    context["ti"].try_number = 1
    emulator = use("sandbox")
    emulator.create_audience("vip", "VIP", "sandbox")
    emulator.fail_next("status", status=401, after=2, times=None)
    with pytest.raises(AuthenticationError):
        mirror(mode="add", in_flight=1, retries=1)
    emulator.clear_faults()
    use("live")
    context["ti"].try_number = 2
    assert mirror(mode="add", retries=1)["read"] == 3000
    assert emulator.members("vip", "live") == set(many)
