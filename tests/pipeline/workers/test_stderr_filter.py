"""Lines that are left out of standard error, no matter who writes them."""

import subprocess
import sys

import pytest

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


def test_the_message_of_a_failure_is_not_lost() -> None:
    failing = "from pipeline.workers.stderr_filter import without_lines\nwith without_lines(b'x'):\n    1 / 0"
    done = subprocess.run([sys.executable, "-c", failing], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "ZeroDivisionError" in done.stderr


def test_ray_does_not_say_that_tasks_of_dead_actors_are_tried_again(capsys: pytest.CaptureFixture[str]) -> None:
    from ray._private import worker

    from pipeline.workers.ray_cluster import _keep_retries_off_the_terminal

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(worker, "print_to_stdstream", worker.print_to_stdstream)  # restored afterwards
        _keep_retries_off_the_terminal.cache_clear()
        _keep_retries_off_the_terminal()
        retry = "Task submit failed. There are infinite retries remaining, so the task will be retried."
        for lines in ([retry], [retry, "A worker was killed: the node ran low on memory"]):
            worker.print_to_stdstream({"lines": lines, "pid": "raylet", "is_err": True}, ignore_prefix=False)
    _keep_retries_off_the_terminal.cache_clear()
    said = "".join(capsys.readouterr())
    assert "low on memory" in said
    assert "retries" not in said
