"""Lines that are left out of standard error, whoever writes them."""

import subprocess
import sys

SCRIPT = """
import os, sys
from pipeline.workers.stderr_filter import without_lines
print("before", file=sys.stderr)
with without_lines(b"logging.cc:"):
    os.write(2, b"[now] logging.cc:303: Set ray log level\\nkept\\n")
    print("said", file=sys.stderr)
    os.system("echo from a child logging.cc: >&2; echo a child >&2")
    os.write(2, b"no end of line")
print(" after", file=sys.stderr)
os.close(2)
with without_lines(b"x"):
    pass
"""


def test_only_lines_with_the_bytes_are_left_out() -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True)
    assert done.stderr == "before\nkept\nsaid\na child\nno end of line after\n"


def test_what_a_failure_says_is_not_lost() -> None:
    failing = "from pipeline.workers.stderr_filter import without_lines\nwith without_lines(b'x'):\n    1 / 0"
    done = subprocess.run([sys.executable, "-c", failing], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "ZeroDivisionError" in done.stderr
