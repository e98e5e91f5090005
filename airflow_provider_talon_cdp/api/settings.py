"""Where and as whom to call Talon.One: checked and normalised once, before anything is sent."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass, field
from typing import Literal, get_args
from urllib.parse import urlsplit
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from airflow_provider_talon_cdp.exceptions import InvalidInputError

DEFAULT_BASE_URL = "https://integration.talon.one"
DEFAULT_PLATFORM_NAME = "Apache Airflow"
# Not published for the CDP endpoints; their Segment twins publish 60.
DEFAULT_REQUESTS_PER_SECOND = 60.0
DEFAULT_TIMEOUT = 30.0
CONNECT_TIMEOUT = 10.0

Spelling = Literal["plural", "singular"]

_HOST_NAME = re.compile(r"(?!-)[a-z0-9-]{1,63}(?<!-)(\.(?!-)[a-z0-9-]{1,63}(?<!-))*", re.ASCII)
_KEY_SCHEME = re.compile(r"ApiKey-v1[ \t]+", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """One connection to Talon.One, normalised where the meaning is plain and refused where it is not.

    Args:
        api_key: Third-party API key of type Customer Data Platform, with or without its ``ApiKey-v1`` scheme.
        deployment_host: Host of the customer's deployment, e.g. ``mycompany.europe-west1.talon.one``. An
            ``https://`` in front and a slash behind are taken off; a port or a path is refused.
        platform_name: Free text that names the CDP in Talon.One.
        base_url: Where the API is served; ``https``, or ``http`` on loopback.
        requests_per_second: Ceiling for bulk work.
        multi_profile_path: Spelling of the multi-profile path; see ``calls.py``.
        timezone: IANA name of the time zone of naive timestamps and dates, or None to refuse them.
        timeout: Seconds to wait for an answer; connecting may take ten of them at most.

    Raises:
        InvalidInputError: A value that cannot work; the text names the field and the cure.
    """

    api_key: str = field(repr=False)
    deployment_host: str
    platform_name: str = DEFAULT_PLATFORM_NAME
    base_url: str = DEFAULT_BASE_URL
    requests_per_second: float = DEFAULT_REQUESTS_PER_SECOND
    multi_profile_path: Spelling = "plural"
    timezone: str | None = None
    timeout: float = DEFAULT_TIMEOUT

    def __post_init__(self) -> None:
        clean = {
            "api_key": _api_key(self.api_key),
            "deployment_host": _deployment_host(self.deployment_host),
            "platform_name": _platform_name(self.platform_name),
            "base_url": _base_url(self.base_url),
            "requests_per_second": _positive("Requests per second", self.requests_per_second),
            "timeout": _positive("Timeout", self.timeout),
            "timezone": _timezone(self.timezone),
        }
        if self.multi_profile_path not in get_args(Spelling):
            raise InvalidInputError(
                f"Multi-profile path must be 'plural' or 'singular', but is {self.multi_profile_path!r}."
            )
        for name, value in clean.items():
            object.__setattr__(self, name, value)

    @property
    def headers(self) -> dict[str, str]:
        """The headers that every call carries. They hold the API key: never log them."""
        return {
            "Authorization": f"ApiKey-v1 {self.api_key}",
            "customer-data-platform-name": self.platform_name,
            "destination-hostname": self.deployment_host,
            "Content-Type": "application/json",
        }

    @property
    def zone(self) -> ZoneInfo | None:
        """The time zone of naive timestamps."""
        return ZoneInfo(self.timezone) if self.timezone else None


def _api_key(value: object) -> str:
    if not isinstance(value, str) or not value.strip():
        raise InvalidInputError(
            "API key is missing. Put the third-party API key (type Customer Data Platform, from Talon.One's "
            "Campaign Manager) into the connection's API key field."
        )
    key = _KEY_SCHEME.sub("", value.strip(), count=1)
    # Visible ASCII alone: a space or a control character would change the header's meaning.
    if not all("!" <= character <= "~" for character in key):
        raise InvalidInputError(
            "API key contains white space, a control character or a non-ASCII character. Copy it again."
        )
    return key


def _deployment_host(value: object) -> str:
    if not isinstance(value, str) or not value.strip():
        raise InvalidInputError(
            "Deployment host is missing. Put the host of your Talon.One deployment into the connection, "
            "e.g. mycompany.europe-west1.talon.one."
        )
    host = value.strip().lower().removeprefix("https://").removeprefix("http://").removesuffix("/")
    if not _HOST_NAME.fullmatch(host):
        raise InvalidInputError(
            f"Deployment host must be a bare host such as mycompany.europe-west1.talon.one, without scheme, "
            f"port or path, but is {value!r}."
        )
    return host


def _platform_name(value: object) -> str:
    if not isinstance(value, str) or not value.strip():
        raise InvalidInputError("Platform name is empty. Any text that names your CDP will do.")
    name = value.strip()
    if not name.isascii() or not name.isprintable():
        raise InvalidInputError(
            f"Platform name travels in an HTTP header, so it must be printable ASCII on one line, but is {value!r}."
        )
    return name


def _base_url(value: object) -> str:
    if not isinstance(value, str) or not value.strip():
        raise InvalidInputError(f"Base URL is empty. The usual one is {DEFAULT_BASE_URL}.")
    text = value.strip()
    try:
        url = urlsplit(text if "://" in text else f"https://{text}")
        port = url.port
    except ValueError as error:
        raise InvalidInputError(f"Base URL must look like {DEFAULT_BASE_URL}: {error}.") from error
    if url.username is not None or url.password is not None:
        raise InvalidInputError(
            "Base URL must not carry a user name or password; the API key has its own field."
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
        raise InvalidInputError(f"Base URL must look like {DEFAULT_BASE_URL}, but is {value!r}.")
    if url.scheme == "http" and not _is_loopback(url.hostname):
        raise InvalidInputError(
            f"Base URL {value!r} would send the API key unencrypted. Use https; http is for loopback alone."
        )
    host = f"[{url.hostname}]" if ":" in url.hostname else url.hostname
    return f"{url.scheme}://{host}{f':{port}' if port is not None else ''}{url.path.rstrip('/')}"


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


def _positive(name: str, value: object) -> float:
    try:
        number = float(value) if isinstance(value, int | float | str) and not isinstance(value, bool) else 0.0
    except ValueError:
        number = 0.0
    if not 0 < number < float("inf"):
        raise InvalidInputError(f"{name} must be a number above 0, but is {value!r}.")
    return number


def _timezone(value: object) -> str | None:
    if value is None or value == "":
        return None
    try:
        return ZoneInfo(str(value).strip()).key
    except (ZoneInfoNotFoundError, ValueError, OSError) as error:
        raise InvalidInputError(
            f"Time zone must be an IANA name such as Europe/Berlin or UTC, but is {value!r}."
        ) from error
