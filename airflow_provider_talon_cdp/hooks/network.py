"""The part of a connection's extra that says how to reach a host: HttpHook's keys, checked before it takes them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from airflow_provider_talon_cdp.exceptions import InvalidInputError

# The rest of HttpHook's options do not apply here.
NETWORK_EXTRAS = {"cert", "proxies", "proxy", "trust_env", "verify", "verify_ssl"}


def network_options(extra: Mapping[str, Any]) -> dict[str, Any]:
    """Read proxies, certificates and the trust in environment variables from an extra.

    Args:
        extra: ``proxies`` (or ``proxy``): URL by scheme, or one URL for both; not used for a base URL on loopback with
            ``http``. ``verify`` (or ``verify_ssl``): true, false, or the path of a CA bundle, a file or a folder.
            ``cert``: path of a client certificate with its key, or a list of the two paths. ``trust_env``: true or false.

    Returns:
        Those that were given, as ``requests`` takes them.

    Raises:
        InvalidInputError: One of them cannot work; the text names it and never quotes a proxy, which may hold a password.
    """
    given = {
        name: value for name, value in extra.items() if name in NETWORK_EXTRAS and value not in (None, "")
    }
    options: dict[str, Any] = {}
    proxies = given.get("proxies", given.get("proxy"))
    if proxies is not None:
        options["proxies"] = _proxies(proxies)
    verify = given.get("verify", given.get("verify_ssl"))
    if verify is not None:
        options["verify"] = verify if isinstance(verify, bool) else _path("verify", verify)
    if "cert" in given:
        cert = given["cert"]
        pair = isinstance(cert, list | tuple) and len(cert) == 2  # noqa: PLR2004
        options["cert"] = tuple(_path("cert", each) for each in cert) if pair else _path("cert", cert)
    if "trust_env" in given:
        if not isinstance(given["trust_env"], bool):
            raise InvalidInputError("trust_env in the extra must be true or false.")
        options["trust_env"] = given["trust_env"]
    return options


def _proxies(value: Any) -> dict[str, str]:
    if isinstance(value, str):
        value = {"http": value, "https": value}
    if not isinstance(value, dict) or not all(isinstance(each, str) for each in [*value, *value.values()]):
        raise InvalidInputError(
            'proxies in the extra must be an object such as {"https": "http://proxy:3128"}, or one URL.'
        )
    return value


def _path(name: str, value: Any) -> str:
    if not isinstance(value, str) or not Path(value).exists():
        raise InvalidInputError(
            f"{name} in the extra must be {'true, false, or ' if name == 'verify' else ''}the path of a file on this "
            f"worker, but {value!r} is not there."
        )
    return value
