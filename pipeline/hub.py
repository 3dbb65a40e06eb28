"""Repositories of the Hugging Face hub by name: `hf://ORG/NAME[@REVISION][/PATH]`, `hf://datasets/ORG/NAME...`.

huggingface_hub fetches them into its own cache: it reads HF_HOME, HF_ENDPOINT, HF_HUB_OFFLINE and tokens, and lets one
process of a node fetch a file while the others wait. What is used is a commit, never a branch that may move.
"""

import logging
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any, Literal
from urllib.parse import unquote

NAME = re.compile(
    r"hf://(?P<datasets>datasets/)?(?P<repo>[\w.-]+/[\w.-]+)"
    r"(?:@(?P<revision>refs/(?:convert|pr)/[^/]+|[^/]+))?(?:/(?P<path>.+?))?/?"
)
COMMIT = re.compile(r"[0-9a-f]{40}")
BRANCH = "main"
NOTHING = ("no file is called so/",)  # the commit alone is asked for


class HubError(ValueError):
    """A repository that cannot be used: which, why, remedy."""


@dataclass(frozen=True)
class HubName:
    """A repository, at a revision, and what of it is meant: all, a folder, a file or a pattern."""

    kind: Literal["model", "dataset"]
    repo: str
    revision: str = BRANCH
    path: str = ""

    @classmethod
    def parse(cls, where: str) -> "HubName":
        """Raises HubError for a name that is not valid."""
        named = NAME.fullmatch(where)
        if named is None or named["repo"].startswith("datasets/"):
            raise HubError(
                f"{where} names no repository; write hf://ORG/NAME or hf://datasets/ORG/NAME, with @REVISION and a "
                "/PATH in it after the name, if needed"
            )
        kind: Literal["model", "dataset"] = "dataset" if named["datasets"] else "model"
        return cls(kind, named["repo"], unquote(named["revision"] or BRANCH), named["path"] or "")

    def __str__(self) -> str:
        repo = f"{'datasets/' * (self.kind == 'dataset')}{self.repo}"
        return f"hf://{repo}@{self.revision.replace('/', '%2F')}{self.path and f'/{self.path}'}"


def is_hub(where: str) -> bool:
    return where.startswith("hf://")


def at_commit(name: HubName) -> HubName:
    """The same at the commit that its revision is now; without the hub, at the one that the cache knows.

    Raises:
        HubError: there is no such repository or revision, or it may not be read.
    """
    if COMMIT.fullmatch(name.revision):
        return name
    return replace(name, revision=_downloaded(name, NOTHING, (), quiet=True).name)


def pinned(where: str) -> str:
    """A name of the hub with the commit that it means now; any other name as it is."""
    return str(at_commit(HubName.parse(where))) if is_hub(where) else where


def local_copy(name: HubName, patterns: Sequence[str], *, without: Sequence[str] = ()) -> tuple[Path, HubName]:
    """The folder on this node with the repository's files that fit a pattern, and the commit that they are of.

    Raises:
        HubError: they cannot be fetched, and are not all in the cache.
    """
    exact = at_commit(name)
    return _snapshot(exact, tuple(patterns), tuple(without)), exact


@cache  # a commit stays what it is
def _snapshot(name: HubName, patterns: tuple[str, ...], without: tuple[str, ...]) -> Path:
    return _downloaded(name, patterns, without, quiet=not sys.stderr.isatty())


def _downloaded(name: HubName, patterns: tuple[str, ...], without: tuple[str, ...], *, quiet: bool) -> Path:
    """The folder of the commit that a revision is, with at least these files in it; or as the cache has them."""
    hub = _library()

    class Bar(hub.utils.tqdm):  # type: ignore[name-defined]
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **{**options, "disable": quiet})

    with _reaching(name):
        folder = hub.snapshot_download(
            name.repo,
            repo_type=name.kind,
            revision=name.revision,
            allow_patterns=list(patterns),
            ignore_patterns=list(without),
            tqdm_class=Bar,
        )
    return Path(folder)


def card(folder: Path) -> dict[str, Any]:
    """What the head of a repository's README declares."""
    path = folder / "README.md"
    try:
        return (_library().metadata_load(path) or {}) if path.is_file() else {}
    except Exception as error:  # YAML's own, of what somebody wrote
        raise HubError(f"{path}: its head is no YAML ({type(error).__name__}); mend it, or leave it out") from error


def _library() -> ModuleType:
    try:
        import huggingface_hub
        import huggingface_hub.constants
        import huggingface_hub.errors
        import huggingface_hub.utils
    except ImportError as error:
        raise HubError("names that begin with hf:// need huggingface_hub: pip install 'ndc[hub]'") from error
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # its doubts are errors here, or none
    return huggingface_hub


@contextmanager
def _reaching(name: HubName) -> Iterator[None]:
    """Turns what huggingface_hub raises into a sentence."""
    errors = _library().errors
    try:
        yield
    except errors.GatedRepoError as error:
        raise HubError(
            f"{name} is gated: accept its terms on its page, and log in with `hf auth login`, or set HF_TOKEN"
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise HubError(
            f"{name} does not exist, or is private; check the name (data sets are hf://datasets/ORG/NAME), or log in "
            "with `hf auth login`, or set HF_TOKEN"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise HubError(f"{name}: the repository has no revision {name.revision}") from error
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled) as error:
        constants = _library().constants
        why = "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else f"{constants.ENDPOINT} does not answer"
        raise HubError(
            f"{name} is incomplete in the cache at {constants.HF_HUB_CACHE}, and {why}; fetch it where the hub "
            "can be reached"
        ) from error
    except Exception as error:  # those of its HTTP client, which it changes, and of the file system
        first = next(iter(str(error).splitlines()), "")
        raise HubError(f"{name} cannot be fetched ({type(error).__name__}: {first}); try again") from error
