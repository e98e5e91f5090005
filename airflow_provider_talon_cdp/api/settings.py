"""The settings of a connection, checked and normalised once, before anything is sent."""

from __future__ import annotations

import hashlib
import ipaddress
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from functools import lru_cache
from pathlib import Path
from textwrap import fill
from typing import Any, Literal, get_args
from urllib.parse import urlsplit
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from airflow_provider_talon_cdp.exceptions import InvalidInputError

DEFAULT_BASE_URL = "https://integration.talon.one"
CONNECT_TIMEOUT = 10.0
NETWORK_EXTRAS = frozenset({"cert", "proxies", "proxy", "trust_env", "verify", "verify_ssl"})
"""Keys of HttpHook in a connection's extra that apply here too."""

Spelling = Literal["plural", "singular"]
DEFAULT_SPELLING: Spelling = "plural"

_HOST_NAME = re.compile(r"(?!-)[a-z0-9-]{1,63}(?<!-)(\.(?!-)[a-z0-9-]{1,63}(?<!-))*", re.ASCII)
_DEFAULT_PORTS = {"http": 80, "https": 443}
# Width of an error's text, in characters.
_WIDTH = 90
_PORT = re.compile(r":([0-9]+)$")
_KEY_SCHEME = re.compile(r"ApiKey-v1[ \t]+", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """One connection to Talon.One. Values are normalised if their meaning is clear, and refused if not.

    Args:
        api_key: Third-party API key of type Customer Data Platform, with or without its ``ApiKey-v1`` scheme.
        deployment_host: Host of the customer's deployment, e.g. ``mycompany.europe-west1.talon.one``. A
            leading ``https://`` and a trailing slash are removed; a port or a path is refused.
        platform_name: Free text that names the CDP in Talon.One.
        base_url: URL of the API; ``https``, or ``http`` on loopback.
        requests_per_second: Limit of requests a second, for bulk syncs.
        multi_profile_path: Spelling of the multi-profile path; see ``calls.py``.
        timezone: IANA name of the time zone of naive timestamps and dates, or None to refuse them.
        timeout: Seconds to wait for an answer. Connecting may take at most 10 s.
        environment: Free text that names the environment of the key, such as ``live`` or ``sandbox``; may be
            empty.
        call_retry_seconds: Seconds for which a single call is tried; 0 for one attempt.
        bulk_retry_seconds: Seconds for which a request of a bulk sync is tried; 0 for one attempt.

    Raises:
        InvalidInputError: A value is invalid. The text names the field and how to correct it.
    """

    api_key: str = field(repr=False)
    deployment_host: str
    platform_name: str = "Apache Airflow"
    base_url: str = DEFAULT_BASE_URL
    # Not published for the CDP endpoints; the limit of the Segment endpoints is published as 60.
    requests_per_second: float = 60.0
    multi_profile_path: Spelling = DEFAULT_SPELLING
    timezone: str | None = None
    timeout: float = 30.0
    environment: str = ""
    call_retry_seconds: float = 60.0
    bulk_retry_seconds: float = 600.0

    def __post_init__(self) -> None:
        clean = {
            "api_key": _api_key(self.api_key),
            "deployment_host": _deployment_host(self.deployment_host),
            "platform_name": _platform_name(self.platform_name),
            "base_url": _base_url(self.base_url),
            "requests_per_second": _number("Requests per second", self.requests_per_second),
            "timeout": _number("Timeout", self.timeout),
            "timezone": _timezone(self.timezone),
            "environment": _environment(self.environment),
            "call_retry_seconds": _number("Retry single calls for", self.call_retry_seconds, zero=True),
            "bulk_retry_seconds": _number("Retry bulk requests for", self.bulk_retry_seconds, zero=True),
        }
        if self.multi_profile_path not in get_args(Spelling):
            raise InvalidInputError(
                f"Multi-profile path must be 'plural' or 'singular', but is {self.multi_profile_path!r}."
            )
        for name, value in clean.items():
            object.__setattr__(self, name, value)

    @property
    def headers(self) -> dict[str, str]:
        """The headers of every call. They contain the API key: never log them."""
        return {
            "Authorization": f"ApiKey-v1 {self.api_key}",
            "customer-data-platform-name": self.platform_name,
            "destination-hostname": self.deployment_host,
            "Content-Type": "application/json",
        }

    @property
    def key_fingerprint(self) -> str:
        """A short digest of the key, which shows that a key has changed and does not reveal it."""
        return _fingerprint(self.api_key, f"airflow-provider-talon-cdp {self.deployment_host}")

    @property
    def zone(self) -> ZoneInfo | None:
        """The time zone of naive timestamps."""
        return ZoneInfo(self.timezone) if self.timezone else None


# Slow by intent, so a process with several tasks computes it once.
@lru_cache(maxsize=8)
def _fingerprint(api_key: str, salt: str) -> str:
    return hashlib.pbkdf2_hmac("sha256", api_key.encode(), salt.encode(), 100_000, dklen=8).hex()


def read_settings(api_key: str, base_url: str, extra: Mapping[str, Any]) -> Settings:
    """Make settings from the fields of an Airflow connection; an empty field of the extra means its default.

    Raises:
        InvalidInputError: A field is unknown or invalid.
    """
    own = {field_.name for field_ in fields(Settings)} - {"api_key", "base_url"}
    unknown = sorted(set(extra) - own - NETWORK_EXTRAS)
    if unknown:
        known = fill(f"Known are {', '.join(sorted(own | NETWORK_EXTRAS))}.", _WIDTH)
        raise InvalidInputError(f"unknown field(s) in the extra: {', '.join(unknown)}.\n{known}")
    given = {name: extra[name] for name in own if extra.get(name) not in (None, "")}
    return Settings(**{"deployment_host": ""} | given | {"api_key": api_key, "base_url": base_url})


def join_url(host: str | None, schema: str | None, port: int | None) -> str:
    """Make a URL from the host, schema and port of an Airflow connection.

    Raises:
        InvalidInputError: The host has another port already.
    """
    host = (host or "").strip()
    if not host:
        return DEFAULT_BASE_URL
    url = host if "://" in host else f"{schema or 'https'}://{host}"
    scheme, _, rest = url.partition("://")
    authority, slash, path = rest.partition("/")
    # Airflow's Test button sends 0 for an empty port.
    if not port or authority.endswith(f":{port}"):
        return url
    if other := _PORT.search(authority):
        raise InvalidInputError(
            f"Base URL has the port {other[1]}, and the field Port has {port}.\n"
            "Leave one of them empty, or make them equal."
        )
    return f"{scheme}://{authority}:{port}{slash}{path}"


def _api_key(value: object) -> str:
    if not isinstance(value, str) or not value.strip():
        raise InvalidInputError(
            "API key is missing. Put the third-party API key into the connection's API key field\n"
            "(type Customer Data Platform, from Talon.One's Campaign Manager).\n"
            "A connection URI begins with talon-cdp://: Airflow cannot read one with talon_cdp://."
        )
    key = _KEY_SCHEME.sub("", value.strip(), count=1)
    # Visible ASCII only: a space or a control character would change the header's meaning.
    if not all("!" <= character <= "~" for character in key):
        raise InvalidInputError(
            "API key contains white space, a control character or a non-ASCII character.\nCopy it again."
        )
    return key


def _deployment_host(value: object) -> str:
    if not isinstance(value, str) or not value.strip():
        raise InvalidInputError(
            "Deployment host is missing. Put the host of your Talon.One deployment into the connection,\n"
            "e.g. mycompany.europe-west1.talon.one."
        )
    host = value.strip().lower().removeprefix("https://").removeprefix("http://").removesuffix("/")
    if not _HOST_NAME.fullmatch(host):
        raise InvalidInputError(
            "Deployment host must be a bare host such as mycompany.europe-west1.talon.one,\n"
            f"without scheme, port or path, but is {_quoted(value)}."
        )
    return host


def _platform_name(value: object) -> str:
    if not isinstance(value, str) or not value.strip():
        raise InvalidInputError("Platform name must be text that names your CDP, and must not be empty.")
    name = value.strip()
    if not name.isascii() or not name.isprintable():
        raise InvalidInputError(
            "Platform name is sent in an HTTP header, so it must be printable ASCII on one line,\n"
            f"but is {value!r}."
        )
    return name


def _base_url(value: object) -> str:
    if not isinstance(value, str) or not value.strip():
        raise InvalidInputError(f"Base URL is empty. The usual one is {DEFAULT_BASE_URL}.")
    text = value.strip()
    try:
        url = urlsplit(text if "://" in text else f"https://{text}")
        port = url.port
    except ValueError:
        # The parser's text may quote a password.
        raise InvalidInputError(
            f"Base URL must look like {DEFAULT_BASE_URL}, but its host or its port is not valid."
        ) from None
    if url.username is not None or url.password is not None:
        raise InvalidInputError(
            "Base URL must not contain a user name or password; the API key has its own field."
        )
    if (
        url.scheme not in ("http", "https")
        or not url.hostname
        or not _is_host(url.hostname)
        or url.query
        or url.fragment
        or not text.isascii()
        or not text.isprintable()
    ):
        raise InvalidInputError(f"Base URL must look like {DEFAULT_BASE_URL}, but is {_quoted(value)}.")
    if url.scheme == "http" and not _is_loopback(url.hostname):
        raise InvalidInputError(
            f"Base URL {_quoted(value)} would send the API key unencrypted.\n"
            "Use https; http is for loopback only."
        )
    host = f"[{url.hostname}]" if ":" in url.hostname else url.hostname
    is_default = port is None or port == _DEFAULT_PORTS[url.scheme]
    return f"{url.scheme}://{host}{'' if is_default else f':{port}'}{url.path.rstrip('/')}"


def _quoted(value: str) -> str:
    """Return a host or a URL as an error quotes it, unless it may be an API key in the wrong field."""
    if "." in value and not value.strip().lower().startswith("apikey"):
        return repr(value)
    return "(not quoted, as it may be the API key)"


def _is_host(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return bool(_HOST_NAME.fullmatch(host))
    return True


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _number(name: str, value: object, *, zero: bool = False) -> float:
    try:
        number = (
            float(value) if isinstance(value, int | float | str) and not isinstance(value, bool) else -1.0
        )
    except ValueError:
        number = -1.0
    if not (number > 0 or (zero and number == 0)) or number == float("inf"):
        least = "0 or more" if zero else "a number above 0"
        raise InvalidInputError(f"{name} must be {least}, but is {value!r}.")
    return number


def _environment(value: object) -> str:
    if not isinstance(value, str) or not value.strip().isprintable():
        raise InvalidInputError(
            f"Environment must be printable text on one line, such as live or sandbox, but is {value!r}."
        )
    return value.strip()


def _timezone(value: object) -> str | None:
    if value is None or value == "":
        return None
    try:
        return ZoneInfo(str(value).strip()).key
    except (ZoneInfoNotFoundError, ValueError, OSError) as error:
        raise InvalidInputError(
            f"Time zone must be an IANA name such as Europe/Berlin or UTC, but is {value!r}."
        ) from error


def network_options(extra: Mapping[str, Any]) -> dict[str, Any]:
    """Read the options for proxies, certificates and environment variables from an extra.

    Args:
        extra: ``proxies`` (or ``proxy``): URL by scheme, or one URL for both; not used for a base URL on
            loopback with ``http``. ``verify`` (or ``verify_ssl``): true, false, or the path of a CA bundle, a
            file or a folder. ``cert``: path of a client certificate with its key, or a list of the two paths.
            ``trust_env``: true or false.

    Returns:
        The options in the extra, as attributes of a ``requests.Session``.

    Raises:
        InvalidInputError: An option is invalid. The text names it and never quotes a proxy, which may have a
            password in it.
    """
    given = {
        name: _from_text(value)
        for name, value in extra.items()
        if name in NETWORK_EXTRAS and value not in (None, "")
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
        options["cert"] = tuple(_path("cert", path) for path in cert) if pair else _path("cert", cert)
    if "trust_env" in given:
        if not isinstance(given["trust_env"], bool):
            raise InvalidInputError("trust_env in the extra must be true or false.")
        options["trust_env"] = given["trust_env"]
    return options


def _from_text(value: Any) -> Any:
    """Convert text to true, false or JSON: a connection that is a URI has only text."""
    if not isinstance(value, str):
        return value
    text = value.strip()
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    try:
        return json.loads(text) if text.startswith(("{", "[")) else value
    except ValueError:
        return value


def _proxies(value: Any) -> dict[str, str]:
    if isinstance(value, str):
        value = {"http": value, "https": value}
    if not isinstance(value, dict) or not all(isinstance(text, str) for text in [*value, *value.values()]):
        raise InvalidInputError(
            'proxies in the extra must be an object such as {"https": "http://proxy:3128"}, or one URL.'
        )
    return value


def _path(name: str, value: Any) -> str:
    if not isinstance(value, str) or not Path(value).exists():
        or_else = "true, false, or " if name == "verify" else ""
        raise InvalidInputError(
            f"{name} in the extra must be {or_else}the path of a file\n"
            f"on this worker, but {value!r} does not exist."
        )
    return value
