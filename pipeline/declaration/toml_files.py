"""TOML to a validated configuration: presets and files, overrides, and errors in plain words."""

import tomllib
from importlib import resources
from itertools import takewhile
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from pipeline.data.classes import class_order
from pipeline.declaration.config import ConfigError, RunConfig
from pipeline.declaration.keys import keys_of
from pipeline.locations import LocationError, location, read_text
from pipeline.near_names import did_you_mean

FOLDERS = {"certify": "presets", "sweep": "presets/sweeps"}  # of each command's packaged files


def packaged_names(folder: str) -> list[str]:
    files = (resources.files("pipeline") / folder).iterdir()
    return sorted(Path(item.name).stem for item in files if item.name.endswith(".toml"))


def preset_names() -> list[str]:
    return packaged_names("presets")


def packaged_text(name: str) -> str:
    """A preset's file, of a run or of a sweep.

    Raises:
        ConfigError: there is none of that name.
    """
    known = {preset: folder for folder in FOLDERS.values() for preset in packaged_names(folder)}
    if name not in known:
        raise ConfigError(f"there is no preset {name!r}{did_you_mean(name, known)}; `ndc presets` lists them")
    return (resources.files("pipeline") / known[name] / f"{name}.toml").read_text("utf-8")


def first_words(name: str) -> str:
    """The first sentence of a packaged file's comment."""
    comment = takewhile(lambda line: line.startswith("#"), packaged_text(name).splitlines())
    return " ".join(line.strip("# ") for line in comment).split(". ")[0].rstrip(".")


def read_source(source: str) -> dict[str, Any]:
    """The raw TOML of a preset's name, or of a file's path or URI."""
    return read_toml(source, "presets", what="a preset")


def read_toml(source: str, folder: str, *, what: str) -> dict[str, Any]:
    """The raw TOML of a packaged name, or of a file's path or URI.

    Raises:
        ConfigError: there is no such name or file, or it is not TOML.
    """
    if source in packaged_names(folder):
        text = (resources.files("pipeline") / folder / f"{source}.toml").read_text("utf-8")
    else:
        try:
            text = read_text(location(source))
        except UnicodeDecodeError as error:
            raise ConfigError(f"{source} is not TOML: it is no text in UTF-8 ({error})") from error
        except (FileNotFoundError, LocationError) as error:
            if isinstance(error, LocationError) and "://" in source:
                raise
            raise ConfigError(
                f"{source!r} is neither {what} ({', '.join(packaged_names(folder))}) nor the path of a TOML file"
                f"{did_you_mean(source, packaged_names(folder))}"
            ) from error
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{source} is not TOML: {error}") from error


def override(raw: dict[str, Any], assignment: str) -> None:
    """Applies one `section.key=value`; the value is TOML, or else a plain string."""
    path, separator, text = assignment.partition("=")
    if not separator:
        raise ConfigError(f"--set {assignment!r} is not of the form key=value")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text
    assign(raw, path.strip(), value, origin=f"--set {assignment!r}")


def assign(raw: dict[str, Any], path: str, value: Any, *, origin: str) -> None:
    """Sets one `section.key`, instead of all that was there; `origin` is who asks for it."""
    *sections, key = path.split(".")
    for section in sections:
        raw = raw.setdefault(section, {})
        if not isinstance(raw, dict):
            raise ConfigError(f"{origin}: {section!r} is a value, not a section")
    raw[key] = value


def load_config(source: str, assignments: list[str] | None = None) -> RunConfig:
    """The validated configuration of a preset or TOML file, with overrides applied in order.

    Raises:
        ConfigError: an unknown preset or key, a value out of range, or a setting that can certify nothing.
    """
    raw = read_source(source)
    for assignment in assignments or []:
        override(raw, assignment)
    return validated(raw, source=source)


def validated(raw: dict[str, Any], *, source: str) -> RunConfig:
    """The configuration that raw TOML describes.

    Raises:
        ConfigError: naming the source, and all that is wrong.
    """
    try:
        return RunConfig.model_validate(with_class_names(raw))
    except ValidationError as error:
        raise ConfigError(f"{source}: " + "; ".join(sentence(problem) for problem in error.errors())) from error


def with_class_names(raw: dict[str, Any]) -> dict[str, Any]:
    """The same with the lines of the file that `dataset.classes` names, so that a run keeps them.

    Raises:
        DataError: it cannot be read.
    """
    dataset = raw.get("dataset")
    if not isinstance(dataset, dict) or not isinstance(dataset.get("classes"), str):
        return raw
    return raw | {"dataset": dataset | {"classes": class_order(dataset["classes"])}}


def sentence(problem: Any) -> str:
    place = [str(part) for part in problem["loc"]]
    if place[:1] == ["classifier"]:
        del place[1:2]  # the variant's name
    key = ".".join(place)
    if problem["type"] in ("extra_forbidden", "unexpected_keyword_argument"):
        return f"unknown key {key}{did_you_mean(key, keys_of(RunConfig))}"
    if problem["type"] == "missing":
        return f"key {key} is missing"
    message = problem["msg"].removeprefix("Value error, ")
    return f"{key}: {message} (it is {problem['input']!r})" if key and problem["type"] != "value_error" else message
