"""Which program makes a run: its version, the commit of its source, and the command by which it was called."""

import getpass
import importlib.metadata
import json
import re
import shlex
import subprocess
import sys
from functools import cache
from pathlib import Path

SOURCE = Path(__file__).resolve().parents[1]
GIT_SECONDS = 5.0
LONGEST_COMMAND = 2000
PASSWORD = re.compile(r"(?<=://)[^/@\s]+@")


@cache
def commit() -> str:
    """The commit of ndc's own source, with `-dirty` where it was changed since; empty where that is unknown."""
    try:
        # An environment may lie in a repository of something else.
        if Path(_git("rev-parse", "--show-toplevel")).resolve() == SOURCE:
            return _git("describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")
    except (OSError, subprocess.SubprocessError):  # no git, or no repository
        pass
    return _installed_commit()


def _git(*arguments: str) -> str:
    command = ["git", "-C", str(SOURCE), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=GIT_SECONDS, check=True)
    return done.stdout.strip()


def _installed_commit() -> str:
    """Of a package that pip installed from a repository (PEP 610)."""
    try:
        origin = importlib.metadata.distribution("ndc").read_text("direct_url.json")
        return str(json.loads(origin or "{}").get("vcs_info", {}).get("commit_id", ""))
    except (importlib.metadata.PackageNotFoundError, ValueError):
        return ""


def version() -> str:
    """Empty where ndc runs from a folder that is not installed."""
    try:
        return importlib.metadata.version("ndc")
    except importlib.metadata.PackageNotFoundError:
        return ""


def command() -> str:
    """The command as it may be shown, without passwords of URIs; empty where ndc is used as a library."""
    called = Path(sys.argv[0])
    if called.stem != "ndc" and called.parts[-3:] != ("pipeline", "cli", "__main__.py"):
        return ""
    shown = PASSWORD.sub("", shlex.join(["ndc", *sys.argv[1:]]))
    return shown if len(shown) <= LONGEST_COMMAND else f"{shown[: LONGEST_COMMAND - 4]} ..."


def user() -> str:
    """Who calls; empty where the system has no name for them, as in some containers."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return ""


def program_facts() -> dict[str, str]:
    """What a run keeps in mind of the program that declared it."""
    return {"ndc": version(), "commit": commit(), "command": command()}
