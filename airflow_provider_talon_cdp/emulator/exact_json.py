"""JSON in and out that loses no digit of a number. Pure functions."""

from __future__ import annotations

import json
import re
from decimal import Decimal, InvalidOperation
from typing import NoReturn, Self, TypeAlias

Json: TypeAlias = "bool | int | Decimal | str | list[Json] | dict[str, Json] | None"

# Half of a surrogate pair can only come in as an escape: UTF-8 itself cannot spell it.
_MAYBE_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")


class JsonError(ValueError):
    """The bytes are not a JSON text. The message says why and where, and quotes none of it."""


class Number(Decimal):
    """A JSON number with a fraction or an exponent.

    It compares as a Decimal and is written as it came: ``19.990`` stays ``19.990``.
    """

    text: str

    def __new__(cls, text: str) -> Self:
        """Keep the text beside the value.

        :raises decimal.InvalidOperation: it is no number, or its exponent is out of range.
        """
        self = super().__new__(cls, text)
        self.text = str(text)
        return self


def loads(body: bytes) -> Json:
    """Parse a JSON text; integers become ``int``, other numbers :class:`Number`.

    Stricter than most parsers, because what it refuses is a mistake of the client: a name that occurs
    twice in one object, ``NaN`` and ``Infinity``, half of a surrogate pair.

    Raises:
        JsonError: not UTF-8, not JSON, or one of those.
    """
    try:
        value: Json = json.loads(
            body.decode("utf-8"),
            parse_float=Number,
            parse_constant=_no_constant,
            object_pairs_hook=_unique,
        )
        if _MAYBE_SURROGATE.search(body):
            json.dumps(value, ensure_ascii=False, default=str).encode("utf-8")
    except json.JSONDecodeError as error:
        raise JsonError(f"{error.msg} at character {error.pos}") from None
    except UnicodeDecodeError as error:
        raise JsonError(f"not UTF-8 at byte {error.start}") from None
    except UnicodeEncodeError:
        raise JsonError("half of a surrogate pair in a string") from None
    except InvalidOperation:
        raise JsonError("a number with an exponent that is out of range") from None
    except RecursionError:
        raise JsonError("nested too deeply") from None
    except JsonError:
        raise
    except ValueError:
        # CPython refuses to turn more than 4300 digits into an int.
        raise JsonError("a number with too many digits") from None
    return value


def dumps(value: Json) -> str:
    """Write a JSON text in ASCII, every number as it came in."""
    if isinstance(value, Number):
        return value.text
    if isinstance(value, Decimal):
        return str(value)
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(name)}: {dumps(item)}" for name, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(dumps(item) for item in value) + "]"
    return json.dumps(value)


def depth(value: Json, limit: int) -> int:
    """How deeply lists and objects are nested (0 for a plain value), counting no further than ``limit``."""
    if limit == 0 or not isinstance(value, (list, dict)):
        return 0
    inner = value.values() if isinstance(value, dict) else value
    return 1 + max((depth(item, limit - 1) for item in inner), default=0)


def _unique(pairs: list[tuple[str, Json]]) -> dict[str, Json]:
    unique = dict(pairs)
    if len(unique) != len(pairs):
        raise JsonError("a name occurs twice in one object")
    return unique


def _no_constant(name: str) -> NoReturn:
    raise JsonError(f"{name} is not a JSON number")
