"""The documentation fits the code: links lead somewhere, commands parse, the reference is current."""

import re
import shlex
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal

import click
import pytest
from pydantic import BaseModel, Field

from docs import environment, keys, reference
from pipeline.cli import main
from pipeline.cli.options import PRESET_OF
from pipeline.declaration.config import ConfigError, RunConfig
from pipeline.declaration.toml_files import load_config
from pipeline.sweep.file import load_sweep

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", ROOT / "clusters/README.md", *sorted(DOCS.glob("*.md"))]
PICTURES = sorted(path for path in DOCS.rglob("*") if path.suffix in (".png", ".svg"))
LARGEST_PICTURE = 160_000
MAY_CHANGE = ("force", "shard", "limit", "every")  # of a run that goes on or grows
NDC = re.compile(r"(?:^|(?<=\s))(?:\.venv/bin/)?(?:ndc|python -m pipeline\.cli) (.*)")


def named(path: Path) -> str:
    return str(path.relative_to(ROOT))


def prose(page: Path) -> str:
    """A page without its blocks of code."""
    return re.sub(r"^```.*?^```", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)


def anchors(page: Path) -> set[str]:
    return {
        keys.anchor(re.sub(r"[`*]", "", title)) for title in re.findall(r"^#+ (.+)$", prose(page), flags=re.MULTILINE)
    }


def code(page: Path) -> Iterator[str]:
    """The lines of blocks of code; lines that continue with a backslash are joined."""
    text = page.read_text()
    blocks = re.findall(r"^```(\w*)\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)
    fenced = [block for language, block in blocks if language in ("", "sh", "text")]
    indented = re.findall(r"^    .+$", prose(page), flags=re.MULTILINE)
    for block in [*fenced, *indented]:
        yield from re.sub(r"\\\n\s*", "", block).splitlines()


def commands(page: Path) -> Iterator[list[str]]:
    """The arguments of `ndc` in each line of code; the reference shows usages, which are none."""
    if page == reference.PAGE:
        return
    for line in code(page):
        if match := NDC.search(line.split("# ")[0] if "#" in line else line):
            yield shlex.split(match.group(1), comments=True)


COMMANDS = [(named(page), words) for page in PAGES for words in commands(page)]


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_every_link_leads_to_a_page_and_to_a_heading_in_it(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if "://" in target:
            continue
        path, _, heading = target.partition("#")
        linked = (page.parent / path).resolve() if path else page
        assert linked.exists(), target
        if heading:
            assert heading in anchors(linked), target


def test_every_page_is_in_the_index() -> None:
    linked = {(DOCS / target).resolve() for target in re.findall(r"\]\(([^)#]+)\)", (DOCS / "README.md").read_text())}
    assert set(PAGES) - {DOCS / "README.md"} <= linked


def test_every_picture_is_shown_small_and_described_in_words() -> None:
    shown = {}
    for page in PAGES:
        for words, target in re.findall(r"!\[([^\]]*)\]\(([^)]+)\)", page.read_text()):
            shown[(page.parent / target).resolve()] = words
    assert set(shown) == set(PICTURES)
    for picture, words in shown.items():
        assert len(words.split()) >= 5, picture
        assert picture.stat().st_size <= LARGEST_PICTURE, picture


def parse(words: list[str]) -> click.Context:
    """Reads the words as `ndc` would, and runs nothing."""
    name, *rest = words
    return main.commands[name].make_context(name, rest)


def test_there_are_commands_to_check() -> None:
    assert len(COMMANDS) >= 50
    assert {words[0] for _, words in COMMANDS} == set(main.commands)


@pytest.mark.parametrize(("page", "words"), COMMANDS, ids=lambda value: value if isinstance(value, str) else value[0])
def test_every_command_in_the_documentation_parses(
    page: str, words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    if "--ids" in words:
        Path(words[words.index("--ids") + 1]).write_text("")
    context = parse(words)
    known = set(all_keys())
    for assignment in context.params.get("assignments", ()):
        assert assignment.partition("=")[0] in known, assignment


def declared_runs() -> Iterator[tuple[str, str, str]]:
    """For every `ndc certify` that is shown and computes something: the page, the run's folder, what declares it."""
    inline = re.compile(r"`ndc (certify [^`]*)`")
    mentioned = [(named(page), shlex.split(words)) for page in PAGES for words in inline.findall(prose(page))]
    for page, words in [*COMMANDS, *mentioned]:
        if words[0] != "certify" or "--ids" in words or "..." in words:
            continue
        chosen = parse(words).params
        source = chosen.pop("source") or PRESET_OF[chosen["method"] or "cohen"]
        folder = chosen.pop("folder") or f"runs/{Path(source).stem}"
        if chosen.pop("dry_run") or "runs/" in source or source.isupper():
            continue  # nothing is computed, or a run goes on
        settings = {n: value for n, value in chosen.items() if value not in (None, False, ()) and n not in MAY_CHANGE}
        if set(settings) == {"assignments"} and all(item.startswith("sweep=") for item in settings["assignments"]):
            settings = {}  # a tag, not of the run's law
        yield page, str(folder), f"{Path(source).stem} {settings}"


def test_no_two_runs_that_are_shown_share_a_folder() -> None:
    """A folder holds one run, which may grow: a second would be refused."""
    first: dict[str, tuple[str, str]] = {}
    for page, folder, declared in declared_runs():
        before, where = first.setdefault(folder, (declared, page))
        assert before == declared, f"{folder}: {where} and {page}"
    assert len(first) >= 10


def test_a_command_with_a_wrong_option_would_be_noticed() -> None:
    with pytest.raises(click.UsageError):
        parse(["certify", "--no-such-option"])
    with pytest.raises(KeyError):
        parse(["no-such-command"])


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_every_program_and_test_that_is_named_exists(page: Path) -> None:
    text = page.read_text()
    for module in re.findall(r"python\s+-m\s+((?:tests|docs)[\w.]*\w)", text):
        assert (ROOT / f"{module.replace('.', '/')}.py").exists(), module
    for test in re.findall(r"\btests/[\w/]+\.py\b", text):
        assert (ROOT / test).exists(), test


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_every_configuration_that_is_shown_is_valid(page: Path, tmp_path: Path) -> None:
    for block in re.findall(r"^```toml\n(.*?)^```", page.read_text(), flags=re.DOTALL | re.MULTILINE):
        assert tomllib.loads(block)
        (tmp_path / "shown.toml").write_text(block)
        (load_sweep if block.startswith("base = ") else load_config)(str(tmp_path / "shown.toml"))


def test_the_reference_is_what_the_code_says() -> None:
    assert reference.PAGE.read_text() == reference.text(), "run `make docs`"


def test_every_option_says_what_it_means() -> None:
    for name, command in main.commands.items():
        for parameter in command.params:
            assert isinstance(parameter, click.Argument) or parameter.help, f"ndc {name}: {parameter.name}"


def test_every_environment_variable_of_the_code_says_what_it_means() -> None:
    assert set(environment.found()) == set(environment.MEANINGS)


class Plain(BaseModel):
    name: Literal["plain"]
    """A network of classes."""
    depth: int = Field(default=3, ge=1)
    """How deep."""


class Other(BaseModel):
    name: Literal["other", "another"]
    """Something else."""


class Either(BaseModel):
    classifier: Annotated[Plain | Other, Field(discriminator="name")]
    """Which of two."""
    few: tuple[float, ...] | None = None
    """Some | numbers."""


def test_each_variant_of_a_section_has_a_table_of_its_own() -> None:
    top, plain, other = keys.sections(Either)
    assert [row[0] for row in top.rows] == ["`classifier`", "`few`"]
    assert top.rows[0][1] == "section [classifier](#classifier)"
    assert top.rows[1][1:] == ["list of numbers", "", "Some | numbers."]
    assert (plain.title, plain.lead) == ("classifier", "Which of two. Where `name` is `plain`:")
    assert plain.rows[0][1] == "`plain`"
    assert plain.rows[1] == ["`depth`", "whole number, at least 1", "`3`", "How deep."]
    assert other.lead == "Which of two. Where `name` is `other`, `another`:"
    assert "Some \\| numbers." in reference.table(["a"], top.rows)


class Silent(BaseModel):
    said: int
    """What it means."""
    unsaid: int


def test_a_key_without_a_meaning_is_an_error() -> None:
    with pytest.raises(ValueError, match="Silent does not say below unsaid what it means"):
        keys.sections(Silent)


def all_keys(section: type = RunConfig, path: str = "") -> Iterator[str]:
    for name, field in keys.fields(section).items():
        yield f"{path}{name}"
        for variant in keys.sections_in(field.annotation):
            yield from all_keys(variant, f"{path}{name}.")


# Sections that the preset `fast` leaves out, and that must be given whole.
LEFT_OUT = {
    "classifier.sift.": "classifier.sift={threshold_per_dim=1.0, grid={points=5, sigma_model_max=2.0}}",
    "classifier.label_gradient.": "classifier.label_gradient={steps=2, keep=2}",
}


def bounds() -> Iterator[tuple[str, str]]:
    """Every key whose bound the reference states, with a value just outside; of variants, only the first."""
    tables = {section.title: section for section in reversed(keys.sections(RunConfig))}
    for title, section in tables.items():
        path = "" if title == "Top level" else f"{title}."
        for name, kind, _, meaning in section.rows:
            for word, bound in re.findall(r"(at least|above|below) (\d+)", f"{kind}; {meaning}"):
                yield f"{path}{name.strip('`')}", str(int(bound) - (word == "at least"))


@pytest.mark.parametrize(("key", "value"), list(bounds()))
def test_a_value_beyond_a_bound_that_the_reference_states_is_refused(key: str, value: str) -> None:
    if key == "sigma_pixel":
        value = f"[{value}]"
    sections = [assignment for prefix, assignment in LEFT_OUT.items() if key.startswith(prefix)]
    with pytest.raises(ConfigError, match=key.rpartition(".")[2]) as refused:
        load_config("fast", [*sections, f"{key}={value}"])
    assert "unknown key" not in str(refused.value)
