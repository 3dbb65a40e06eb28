"""`ndc` as a user types it: in a process of its own, or in this one, where imports and Ray are paid for already."""

import os
import subprocess
import sys
from pathlib import Path

from click.testing import CliRunner

from pipeline.cli import main

NDC = [sys.executable, "-c", "from pipeline.cli import main; main()"]
Done = subprocess.CompletedProcess[str]


def environment(**variables: str) -> dict[str, str]:
    """This process's environment, without variables that lead to the user's services."""
    kept = {name: value for name, value in os.environ.items() if name not in ("MLFLOW_TRACKING_URI", "RAY_ADDRESS")}
    return kept | variables


def ndc_process(*arguments: str | Path, **variables: str) -> Done:
    command = [*NDC, *map(str, arguments)]
    return subprocess.run(command, env=environment(**variables), capture_output=True, text=True, timeout=300)


def ndc(*arguments: str | Path, **variables: str) -> Done:
    """The same arguments, exit code and output, by the same function in this process."""
    result = CliRunner(env=variables).invoke(main, [str(argument) for argument in arguments])
    escaped = result.exception if not isinstance(result.exception, SystemExit) else None
    if escaped:
        raise escaped
    return subprocess.CompletedProcess(arguments, result.exit_code, result.stdout, result.stderr)
