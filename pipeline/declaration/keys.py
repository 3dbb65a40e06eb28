"""The keys of a configuration, as `--set` takes them."""

from collections.abc import Iterator
from dataclasses import is_dataclass
from typing import Any, get_args

from pydantic import BaseModel
from pydantic.fields import FieldInfo


def fields(section: type) -> dict[str, FieldInfo]:
    """The fields of a pydantic model or dataclass."""
    own: dict[str, FieldInfo] = getattr(section, "model_fields", None) or vars(section)["__pydantic_fields__"]
    return own


def is_section(annotation: Any) -> bool:
    return isinstance(annotation, type) and (issubclass(annotation, BaseModel) or is_dataclass(annotation))


def sections_in(annotation: Any) -> list[type]:
    """The section of a key, or its variants."""
    if is_section(annotation):
        return [annotation]
    return [section for part in get_args(annotation) for section in sections_in(part)]


def keys_of(section: type, path: str = "") -> Iterator[str]:
    """All keys, with the sections that they are in before them, as `votes.estimation`."""
    for name, field in fields(section).items():
        key = f"{path}{name}"
        yield key
        for inner in sections_in(field.annotation):
            yield from keys_of(inner, f"{key}.")
