"""TLS, proxies and the environment: both ways to Talon.One reach it alike."""

from __future__ import annotations

import contextlib
import os
import socket
import ssl
import threading
import traceback

import pytest

from airflow_provider_talon_cdp.exceptions import (
    AuthenticationError,
    FatalError,
    InvalidInputError,
    RequestError,
    TransientError,
    UnexpectedAnswerError,
)


def test_a_server_with_an_unknown_certificate_is_refused_clearly(connect, tls, send, request_one):
    with pytest.raises(
        FatalError,
        match="(?s)TLS certificate of 127.0.0.1:.* was not accepted: it is signed by an authority.*verify",
    ):
        send(connect(host=f"https://{tls.authority}"), request_one)
    assert tls.seen == []


def test_a_server_is_accepted_when_verify_names_its_authority(connect, tls, send, request_one, authority):
    send(connect({"verify": str(authority.ca)}, host=f"https://{tls.authority}"), request_one)
    assert [path for path, *_ in tls.seen] == ["/cdp/v2/customer_profiles/audiences"]


def test_a_folder_of_authorities_works(connect, tls, send, request_one, authority, tmp_path):
    # OpenSSL looks an authority up by a hash of its name; any unused folder entry is ignored.
    import subprocess  # noqa: PLC0415

    from cryptography import x509  # noqa: PLC0415

    assert x509.load_pem_x509_certificate(authority.ca.read_bytes())
    digest = subprocess.run(
        ["openssl", "x509", "-noout", "-hash", "-in", authority.ca],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    (tmp_path / f"{digest}.0").write_bytes(authority.ca.read_bytes())
    assert ssl.HAS_TLSv1_2
    send(connect({"verify": str(tmp_path)}, host=f"https://{tls.authority}"), request_one)
    assert len(tls.seen) == 1


def test_a_certificate_for_another_name_is_refused(connect, tls, send, request_one, authority):
    hook = connect({"verify": str(authority.ca)}, host=f"https://localhost:{tls.port}")
    with pytest.raises(FatalError, match="TLS certificate of localhost:.* is for another host name"):
        send(hook, request_one)
    assert tls.seen == []


def test_a_certificate_for_another_address_is_refused(
    connect, wrong_address_tls, send, request_one, authority
):
    hook = connect({"verify": str(authority.ca)}, host=f"https://{wrong_address_tls.authority}")
    with pytest.raises(FatalError, match="is for another IP address"):
        send(hook, request_one)


def test_an_expired_certificate_is_refused(connect, expired_tls, send, request_one, authority):
    hook = connect({"verify": str(authority.ca)}, host=f"https://{expired_tls.authority}")
    with pytest.raises(FatalError, match="TLS certificate of 127.0.0.1:.* has expired"):
        send(hook, request_one)
    assert expired_tls.seen == []


def test_plain_http_to_a_tls_port_is_told_as_such_or_hinted_at(connect, tls, send, request_one):
    """Servers differ: some send an alert, some an answer in clear text, and some only hang up."""
    with pytest.raises(RequestError, match="https:// in Base URL"):
        send(connect(host=tls.url), request_one)


def test_a_tls_alert_in_answer_to_plain_http_is_final(connect, send, request_one, answer_raw):
    port = answer_raw(b"\x15\x03\x03\x00\x02\x02\x28")
    with pytest.raises(FatalError, match="speaks TLS.\nWrite https://"):
        send(connect(host=f"http://127.0.0.1:{port}"), request_one)


def test_a_proxy_that_speaks_tls_is_told_from_a_server_that_does(connect, send, request_one, answer_raw):
    port = answer_raw(b"\x15\x03\x03\x00\x02\x02\x28")
    proxies = {"https": f"http://127.0.0.1:{port}"}
    with pytest.raises(FatalError, match=r"the proxy speaks TLS.\n.*https:// in proxies") as error:
        send(connect({"proxies": proxies}, host="https://127.0.0.1:9"), request_one)
    assert "Base URL" not in str(error.value)


@pytest.mark.filterwarnings("ignore:Unverified HTTPS request")
def test_verification_can_be_switched_off(connect, tls, send, request_one):
    send(connect({"verify": False}, host=f"https://{tls.authority}"), request_one)
    assert len(tls.seen) == 1


@pytest.mark.parametrize("variable", ["REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"])
def test_the_environments_ca_bundle_counts(connect, tls, send, request_one, authority, monkeypatch, variable):
    monkeypatch.setenv(variable, str(authority.ca))
    send(connect(host=f"https://{tls.authority}"), request_one)
    assert len(tls.seen) == 1


def test_the_environments_ca_bundle_does_not_count_with_trust_env_off(
    connect, tls, send, request_one, authority, monkeypatch
):
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(authority.ca))
    with pytest.raises(FatalError, match="TLS certificate"):
        send(connect({"trust_env": False}, host=f"https://{tls.authority}"), request_one)


def test_verify_on_the_connection_goes_before_the_environments_ca_bundle(
    connect, tls, send, request_one, authority, monkeypatch
):
    """Many images set REQUESTS_CA_BUNDLE; it must not make the connection's own setting void."""
    import certifi  # noqa: PLC0415

    monkeypatch.setenv("REQUESTS_CA_BUNDLE", certifi.where())
    send(connect({"verify": str(authority.ca)}, host=f"https://{tls.authority}"), request_one)
    assert len(tls.seen) == 1


@pytest.mark.parametrize("shape", [str, lambda path: [str(path), str(path)]], ids=["one file", "two files"])
def test_a_client_certificate_is_presented(connect, mutual_tls, send, request_one, authority, shape):
    extra = {"verify": str(authority.ca), "cert": shape(authority.client)}
    send(connect(extra, host=f"https://{mutual_tls.authority}"), request_one)
    assert [names for _, names, _ in mutual_tls.seen] == [["warehouse"]]


def test_a_missing_client_certificate_is_not_retried(connect, mutual_tls, send, request_one, authority):
    """The server will say the same every time, for the ten minutes that retries may take."""
    with pytest.raises(RequestError) as error:
        send(connect({"verify": str(authority.ca)}, host=f"https://{mutual_tls.authority}"), request_one)
    assert not isinstance(error.value, TransientError)
    assert "certificate was not accepted, the server's or ours" in str(error.value)
    assert "'cert'" in str(error.value)


def test_a_server_that_does_not_speak_tls_is_told_as_such(connect, talon, send, request_one):
    url = talon.url.replace("http:", "https:")
    with pytest.raises(FatalError, match=f"(?s){url} does not speak TLS.*http://") as error:
        send(connect(host=url), request_one)
    assert "certificate was not accepted" not in str(error.value)


@pytest.mark.parametrize(
    "alert",
    [b"", b"\x15\x03\x03\x00\x02\x01\x00", b"\x15\x03\x03\x00\x02\x02\x50"],
    ids=["no alert", "close_notify", "internal_error"],
)
def test_a_tls_server_that_hangs_up_is_a_broken_connection_and_not_a_refusal(
    connect, send, request_one, alert
):
    """Load balancers that are shut down end handshakes so, and the next one works."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def hang_up():
            client, _ = server.accept()
            with client:
                client.recv(65536)
                client.sendall(alert)

        thread = threading.Thread(target=hang_up, daemon=True)
        thread.start()
        with pytest.raises(TransientError, match="no answer") as error:
            send(connect(host=f"https://127.0.0.1:{server.getsockname()[1]}"), request_one)
        assert not error.value.is_unclear
        thread.join(5)


@pytest.mark.parametrize("status, kind", [(407, FatalError), (503, TransientError)])
def test_a_proxy_that_refuses_has_sent_nothing(connect, send, request_one, answer_raw, status, kind):
    """So a call that runs rules may be made again, and a wrong password is not tried again."""
    port = answer_raw(b"HTTP/1.1 %d No\r\nContent-Length: 0\r\nConnection: close\r\n\r\n" % status)
    extra = {
        "proxies": {"https": f"http://127.0.0.1:{port}"},
        "call_retry_seconds": 0,
        "bulk_retry_seconds": 0,
    }
    with pytest.raises(kind, match=str(status)) as error:
        send(connect(extra, host="https://127.0.0.1:9"), request_one)
    assert not error.value.is_unclear


@pytest.mark.parametrize(
    "says, pause",
    [(b"", 30), (b"hello\r\n\r\n", 0), (b"", 0)],
    ids=["is silent", "does not speak HTTP", "hangs up"],
)
def test_a_proxy_that_does_not_answer_connect_has_sent_nothing(
    connect, send, request_one, answer_raw, says, pause
):
    """So a call that runs rules is made again."""
    port = answer_raw(says, pause=pause)
    extra = {"proxies": {"https": f"http://127.0.0.1:{port}"}, "timeout": 0.4}
    with pytest.raises(TransientError, match="no answer") as error:
        send(connect(extra, host="https://127.0.0.1:9"), request_one)
    assert not error.value.is_unclear


@pytest.mark.parametrize("variable", ["http_proxy", "HTTP_PROXY", "all_proxy", None])
def test_plain_http_on_loopback_goes_through_no_proxy(
    connect, talon, proxy, send, request_one, monkeypatch, variable
):
    """A proxy would read the API key, which is meant not to leave this machine unencrypted."""
    url = f"http://{proxy.authority}"
    if variable:
        monkeypatch.setenv(variable, url)
    talon_audience(connect)
    send(connect({} if variable else {"proxies": {"http": url, "all": url}}), request_one)
    assert proxy.seen == []
    assert talon.members("vip") == {"anna"}


def test_the_connections_proxy_tunnels_to_a_tls_server(connect, tls, proxy, send, request_one, authority):
    extra = {"proxies": {"https": f"http://{proxy.authority}"}, "verify": str(authority.ca)}
    send(connect(extra, host=f"https://{tls.authority}"), request_one)
    assert [line for line, _ in proxy.seen] == [f"CONNECT {tls.authority}"]
    assert "local-key" not in proxy.seen[0][1]
    assert len(tls.seen) == 1


def test_a_certificate_behind_a_tunnel_is_checked(connect, tls, proxy, send, request_one):
    with pytest.raises(FatalError, match="TLS certificate"):
        send(
            connect({"proxies": {"https": f"http://{proxy.authority}"}}, host=f"https://{tls.authority}"),
            request_one,
        )
    assert tls.seen == []


def test_a_proxys_password_is_sent_to_the_proxy(connect, tls, proxy, send, request_one, authority):
    import base64  # noqa: PLC0415

    extra = {"proxies": {"https": f"http://me:p%40ss@{proxy.authority}"}, "verify": str(authority.ca)}
    send(connect(extra, host=f"https://{tls.authority}"), request_one)
    assert f"Basic {base64.b64encode(b'me:p@ss').decode()}" in proxy.seen[0][1]


def test_odd_ids_pass_a_proxy_unchanged(connect, tls, proxy, send, authority):
    from airflow_provider_talon_cdp.api import calls  # noqa: PLC0415

    extra = {"proxies": {"https": f"http://{proxy.authority}"}, "verify": str(authority.ca)}
    hook = connect(extra, host=f"https://{tls.authority}")
    for each in ("...", "a/../b", "a b?c#d%41", "\u00fc\U0001f600"):
        with pytest.raises(UnexpectedAnswerError, match="204"):
            send(hook, calls.update_customer_profile(each))
    assert [path.split("?")[0].removeprefix("/cdp/customer_profile/") for path, *_ in tls.seen] == [
        "...",
        "a%2F..%2Fb",
        "a%20b%3Fc%23d%2541",
        "%C3%BC%F0%9F%98%80",
    ]


@pytest.mark.parametrize("variable", ["https_proxy", "HTTPS_PROXY", "all_proxy"])
def test_the_environments_proxy_is_used(
    connect, tls, proxy, send, request_one, authority, monkeypatch, variable
):
    monkeypatch.setenv(variable, f"http://{proxy.authority}")
    send(connect({"verify": str(authority.ca)}, host=f"https://{tls.authority}"), request_one)
    assert len(proxy.seen) == 1
    assert len(tls.seen) == 1


def test_the_environments_proxy_may_be_spelt_without_a_scheme(
    connect, tls, proxy, send, request_one, authority, monkeypatch
):
    """``HTTPS_PROXY=proxy:3128`` is common, and the other tools on the machine take it."""
    monkeypatch.setenv("https_proxy", proxy.authority)
    send(connect({"verify": str(authority.ca)}, host=f"https://{tls.authority}"), request_one)
    assert len(proxy.seen) == 1


def test_no_proxy_of_the_environment_counts(connect, tls, proxy, send, request_one, authority, monkeypatch):
    monkeypatch.setenv("https_proxy", f"http://{proxy.authority}")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    send(connect({"verify": str(authority.ca)}, host=f"https://{tls.authority}"), request_one)
    assert proxy.seen == []
    assert len(tls.seen) == 1


def test_the_environments_proxy_is_ignored_with_trust_env_off(
    connect, tls, proxy, send, request_one, authority, monkeypatch
):
    monkeypatch.setenv("https_proxy", f"http://{proxy.authority}")
    extra = {"trust_env": False, "verify": str(authority.ca)}
    send(connect(extra, host=f"https://{tls.authority}"), request_one)
    assert proxy.seen == []


def test_the_connections_proxy_goes_before_the_environments(
    connect, tls, proxy, send, request_one, authority, monkeypatch, closed_port
):
    monkeypatch.setenv("https_proxy", f"http://127.0.0.1:{closed_port}")
    extra = {"proxies": {"https": f"http://{proxy.authority}"}, "verify": str(authority.ca)}
    send(connect(extra, host=f"https://{tls.authority}"), request_one)
    assert len(proxy.seen) == 1


def test_a_proxy_that_does_not_listen_is_a_failure_to_connect(connect, tls, send, request_one, closed_port):
    extra = {"proxies": {"https": f"http://127.0.0.1:{closed_port}"}}
    with pytest.raises(TransientError, match="(?s)no answer.*prox") as error:
        send(connect(extra, host=f"https://{tls.authority}"), request_one)
    assert not error.value.is_unclear
    assert tls.seen == []


@pytest.mark.parametrize("host", ["127.0.0.1", "no-such-host.invalid"])
def test_a_request_that_found_no_server_has_had_no_effect(connect, send, request_one, closed_port, host):
    with pytest.raises(
        TransientError, match=rf"no answer \(.*\).\nTalon.One was called at https://{host}:{closed_port}\.\n"
    ) as error:
        send(connect(host=f"https://{host}:{closed_port}/"), request_one)
    assert not error.value.is_unclear


def test_a_request_without_an_answer_may_have_had_its_effect(connect, talon, send, request_one):
    talon_audience(connect)
    talon.fail_next("reset_after")
    with pytest.raises(
        TransientError, match=rf"no answer \(.*\).\nTalon.One was called at {talon.url}\.\n"
    ) as error:
        send(connect(), request_one)
    assert error.value.is_unclear
    assert talon.members("vip") == {"anna"}


def test_a_connection_that_broke_behind_a_proxy_may_have_had_its_effect(
    connect, send, request_one, authority, answer_raw, proxy
):
    """urllib3 calls it an error of the proxy. A call that runs rules must not be made again."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(authority.server)
    host = f"https://127.0.0.1:{answer_raw(tls=context)}"
    extra = {"verify": str(authority.ca), "proxies": {"https": proxy.url}}
    with pytest.raises(TransientError, match="no answer") as error:
        send(connect(extra, host=host), request_one)
    assert error.value.is_unclear
    assert len(proxy.seen) == 1


@pytest.mark.parametrize(
    "head", [b"", b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n"], ids=["", "in the body"]
)
def test_a_tls_connection_that_breaks_after_the_request_may_have_had_its_effect(
    connect, send, request_one, authority, head
):
    """A bad record is no wrong configuration: another try may get an answer."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(authority.server)
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer():
            client, _ = server.accept()
            with context.wrap_socket(client, server_side=True) as spoken:
                spoken.recv(65536)
                spoken.sendall(head)
                # An encrypted record that cannot be decrypted.
                os.write(spoken.fileno(), b"\x17\x03\x03\x00\x20" + bytes(32))
                with contextlib.suppress(OSError):
                    spoken.recv(65536)

        thread = threading.Thread(target=answer, daemon=True)
        thread.start()
        host = f"https://127.0.0.1:{server.getsockname()[1]}"
        with pytest.raises(TransientError) as error:
            send(connect({"verify": str(authority.ca)}, host=host), request_one)
        assert error.value.is_unclear
        thread.join(5)


@pytest.mark.parametrize(
    "url", ["http://me:pa/ss@proxy:3128", "http://me:pa#ss@[", "http://me:pass@proxy:99999"]
)
def test_the_password_of_a_wrong_proxy_is_in_no_traceback(connect, tls, send, request_one, url):
    with pytest.raises((InvalidInputError, RequestError)) as error:
        send(connect({"proxies": {"https": url}}, host=f"https://{tls.authority}"), request_one)
    told = "".join(traceback.format_exception(error.value))
    assert "me:" not in told
    assert "ss@" not in told


@pytest.mark.parametrize("variable", ["REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"])
def test_a_ca_bundle_of_the_environment_that_is_not_there_is_told_before_a_request(
    connect, tls, send, request_one, monkeypatch, variable
):
    monkeypatch.setenv(variable, "/no/such/bundle.pem")
    with pytest.raises(InvalidInputError, match=f"(?s)cannot be read .*{variable}"):
        send(connect(host=f"https://{tls.authority}"), request_one)
    assert tls.seen == []


@pytest.mark.parametrize("url", ["ftp://127.0.0.1:1", "http://", "http://[", "://"])
def test_a_proxy_that_is_no_url_is_refused_by_name(connect, tls, send, request_one, url):
    with pytest.raises(InvalidInputError, match="prox"):
        send(connect({"proxies": {"https": url}}, host=f"https://{tls.authority}"), request_one)
    assert tls.seen == []


def test_proxies_may_be_one_url_for_both_schemes(connect):
    url = "http://proxy:3128"
    assert connect({"proxies": url}).get_conn().proxies == {"http": url, "https": url}


@pytest.mark.parametrize("value", [["http://proxy:3128"], 5, {"https": 5}])
def test_proxies_that_are_no_object_are_refused_by_name(connect, talon, send, request_one, value):
    with pytest.raises(InvalidInputError, match="talon_cdp_default.*prox"):
        send(connect({"proxies": value}), request_one)
    assert talon.requests() == []


def test_a_netrc_does_not_replace_the_api_key(connect, talon, send, request_one, tmp_path, monkeypatch):
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login me password secret\ndefault login me password secret\n")
    netrc.chmod(0o600)
    monkeypatch.setenv("NETRC", str(netrc))
    talon_audience(connect)
    send(connect(), request_one)
    assert talon.members("vip") == {"anna"}


def test_a_user_name_in_the_login_field_does_not_replace_the_api_key(connect, talon, send, request_one):
    talon_audience(connect)
    send(connect(login="me"), request_one)
    assert talon.members("vip") == {"anna"}


def test_the_headers_are_the_same_either_way(connect, send, request_one, echo):
    send(connect({"platform_name": "My CDP"}, host=echo.url), request_one)
    sent = {name.lower(): value for name, value in echo.seen[0].items()}
    assert sent["authorization"] == "ApiKey-v1 local-key-1234567890"
    assert sent["customer-data-platform-name"] == "My CDP"
    assert sent["destination-hostname"] == "demo.europe-west1.talon.one"
    assert sent["content-type"] == "application/json"
    assert "cookie" not in sent


def test_a_wrong_key_is_told_either_way(connect, talon, send, request_one):
    with pytest.raises(AuthenticationError, match="expire"):
        send(connect(password="wrong"), request_one)


def talon_audience(connect):
    connect().create_audience("vip", "VIP")
