"""The library example of the README is what works; tests/test_docs.py has its commands and links."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

README = (Path(__file__).parent.parent / "README.md").read_text()


def test_the_library_example_runs_as_printed(tiny_model: Path, tmp_path: Path) -> None:
    blocks = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    assert len(blocks) == 1
    shutil.copytree(tiny_model, tmp_path / "models/digits")
    script = blocks[0] + "\nimport sys; assert not {'ray', 'mlflow', 'pipeline'} & set(sys.modules)\n"
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(r"(None|\d) \d\.\d+\n", done.stdout)
