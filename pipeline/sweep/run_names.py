"""The names of a sweep's runs, which are those of their folders."""

import re
from collections.abc import Mapping
from typing import Any

from pipeline.declaration.config import ConfigError

LONGEST_NAME = 100
ALLOWED = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]*")


def name_of_values(values: Mapping[str, Any], *, origin: str) -> str:
    """Each key with its value. Several keys are cut to their last parts where these tell them apart.

    Raises:
        ConfigError: it would be too long.
    """
    last = [key.rpartition(".")[2] for key in values]
    short = len(values) > 1 and len(set(last)) == len(last)
    name = "--".join(
        f"{end if short else key}-{as_name(value)}" for end, (key, value) in zip(last, values.items(), strict=True)
    )
    if len(name) > LONGEST_NAME:
        raise ConfigError(f"{origin} has a value too long for a name; name it below [points.NAME]")
    return name


def refuse_name(name: str, source: str) -> None:
    """Raises ConfigError for a name that could not be a folder's everywhere."""
    if not ALLOWED.fullmatch(name):
        raise ConfigError(f"{source}: the point {name!r} cannot name a folder; use letters, digits and any of . _ + -")


def as_name(value: Any) -> str:
    """A value as part of a name."""
    match value:
        case bool():
            return str(value).lower()
        case int():
            return str(value)
        case float():
            return f"{value:g}"
        case list():
            return "_".join(map(as_name, value))
        case dict():
            return "_".join(f"{key}-{as_name(inner)}" for key, inner in value.items())
    return re.sub(r"[^A-Za-z0-9._+-]+", "-", str(value)).strip("-.")
