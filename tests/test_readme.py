"""The front page is short and its library example works; tests/test_docs.py has its commands and links."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

README = (Path(__file__).parent.parent / "README.md").read_text()


SECTIONS = [
    "Two commands",
    "The result",
    "Which machine have you?",
    "Your model and your data",
    "As a library",
    "What can be trusted",
    "Layout",
    "Documentation",
]


def test_the_front_page_is_of_one_screen_in_the_order_of_a_reader_s_questions() -> None:
    assert len(README.splitlines()) <= 110
    assert re.findall(r"^## (.+)$", README, flags=re.MULTILINE) == SECTIONS


def test_the_front_page_links_the_paper_by_its_title() -> None:
    assert "[Diffusion Models are Certifiably Robust Classifiers](https://arxiv.org/abs/2402.02316)" in README


def test_the_library_example_runs_as_printed(tiny_model: Path, tmp_path: Path) -> None:
    blocks = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    assert len(blocks) == 1
    shutil.copytree(tiny_model, tmp_path / "models/digits")
    script = blocks[0] + "\nimport sys; assert not {'ray', 'mlflow', 'pipeline'} & set(sys.modules)\n"
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(r"(None|\d) \d\.\d+\n", done.stdout)
