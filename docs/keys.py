"""The sections and keys of a configuration class, as tables: type and range, default, meaning."""

import ast
import inspect
import json
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt, MinLen
from pydantic.fields import FieldInfo

from ndc_core.classifiers.formulas import CLASSIFIERS
from pipeline.declaration.config import NAMES_OF
from pipeline.declaration.keys import fields, is_section, sections_in

NAMES = {**NAMES_OF, "classifier.name": CLASSIFIERS}

WORDS = {str: "string", int: "whole number", float: "number", bool: "`true` or `false`"}


@dataclass(frozen=True)
class SectionTable:
    """One section, or one variant of it; without rows where its keys are those of an earlier section."""

    title: str
    lead: str
    rows: list[list[str]]


def sections(root: type) -> list[SectionTable]:
    return list(_sections(root, "", "Keys outside of any section.", {}))


def _sections(section: type, path: str, lead: str, seen: dict[type, str]) -> Iterator[SectionTable]:
    title = path or "Top level"
    if section in seen:
        yield SectionTable(title, f"{lead} Its keys are those of [{seen[section]}](#{anchor(seen[section])}).", [])
        return
    seen[section] = title
    says = meanings(section)
    yield SectionTable(title, lead, [_row(path, name, field, says[name]) for name, field in fields(section).items()])
    for name, field in fields(section).items():
        inner = f"{path}.{name}".lstrip(".")
        variants = sections_in(field.annotation)
        for variant in variants:
            which = f" Where `name` is {names_of(variant)}:" if len(variants) > 1 else ""
            yield from _sections(variant, inner, says[name] + which, seen)


def anchor(title: str) -> str:
    """As GitHub makes it from a heading."""
    kept = (letter for letter in title.lower().replace(" ", "-") if letter.isalnum() or letter in "-_")
    return "".join(kept)


def meanings(section: type) -> dict[str, str]:
    """The string below each field, in the class itself or in one of its base classes.

    Raises:
        ValueError: a field without one.
    """
    meaning_of: dict[str, str] = {}
    for base in reversed(section.__mro__[:-1]):
        (definition,) = ast.parse(textwrap.dedent(inspect.getsource(base))).body
        assert isinstance(definition, ast.ClassDef)
        for field, below in pairwise(definition.body):
            match field, below:
                case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(said))):
                    meaning_of[name] = " ".join(said.split())
    if missing := [name for name in fields(section) if name not in meaning_of]:
        raise ValueError(f"{section.__name__} does not say below {', '.join(missing)} what it means")
    return meaning_of


def names_of(variant: type) -> str:
    named = type_name(fields(variant)["name"].annotation)
    return ", ".join(f"`{name}`" for name in CLASSIFIERS) if named == "string" else named


def _row(path: str, name: str, field: FieldInfo, meaning: str) -> list[str]:
    key = f"{path}.{name}".lstrip(".")
    if sections_in(field.annotation):
        kind = f"section [{key}](#{anchor(key)})"
    elif key in NAMES and type_name(field.annotation) == "string":  # a variant may say its names itself
        kind = ", ".join(f"`{known}`" for known in NAMES[key])
    else:
        kind = ", ".join([type_name(field.annotation), *ranges(field.metadata)])
    return [f"`{name}`", kind, default_of(field), meaning]


def type_name(annotation: Any) -> str:
    origin, parts = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return ", ".join([type_name(parts[0]), *ranges(parts[1:])])
    if origin is Literal:
        return ", ".join(f"`{part}`" for part in parts)
    if origin in (Union, UnionType):
        return ", or ".join(type_name(part) for part in parts if part is not NoneType)
    if origin is dict:
        return "table"
    if annotation is Any:
        return "any value"
    if origin is tuple:
        return f"list of {type_name(parts[0])}s" if parts[-1] is ... else f"list of {len(parts)}: {type_name(parts[0])}"
    return WORDS[annotation]


def ranges(rules: Any) -> list[str]:
    said = []
    for rule in rules:
        match rule:
            case FieldInfo():
                said += ranges(rule.metadata)
            case Ge(ge=bound):
                said.append(f"at least {bound}")
            case Gt(gt=bound):
                said.append(f"above {bound}")
            case Le(le=bound):
                said.append(f"at most {bound}")
            case Lt(lt=bound):
                said.append(f"below {bound}")
            case MinLen(min_length=1):
                said.append("not empty")
            case _:
                raise ValueError(f"the reference has no words for {rule!r}")
    return said


def default_of(field: FieldInfo) -> str:
    """In TOML; empty for a key that is left out, or for a section, whose keys have their own."""
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
    return "" if value is None or is_section(type(value)) else f"`{json.dumps(value)}`"
