"""What the README shows is what works."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

from click.testing import CliRunner

from pipeline.cli import main

README = (Path(__file__).parent.parent / "README.md").read_text()


def test_the_library_example_runs_as_printed(tiny_model: Path, tmp_path: Path) -> None:
    blocks = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    assert len(blocks) == 1
    shutil.copytree(tiny_model, tmp_path / "models/digits")
    script = blocks[0] + "\nimport sys; assert not {'ray', 'mlflow', 'pipeline'} & set(sys.modules)\n"
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(r"(None|\d) \d\.\d+\n", done.stdout)


def test_every_command_and_option_in_the_readme_exists() -> None:
    lines = re.findall(r"^\.venv/bin/ndc (.+)$", README, flags=re.MULTILINE)
    assert len(lines) >= 4
    for line in lines:
        command, *words = line.split("#")[0].split()
        shown = CliRunner().invoke(main, [command, "--help"])
        assert shown.exit_code == 0, command
        for option in (word for word in words if word.startswith("--")):
            assert option in shown.output, f"ndc {command} has no {option}"


def test_every_link_in_the_readme_leads_somewhere() -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert (Path(__file__).parent.parent / target).exists(), target
