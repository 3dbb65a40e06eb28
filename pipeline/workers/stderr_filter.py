"""Standard error without the lines of a library that writes to it below Python."""

import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

STDERR = 2
SECONDS_FOR_THE_REST = 1.0


@contextmanager
def without_lines(unwanted: bytes) -> Iterator[None]:
    """While the context lasts, lines with these bytes are left out of standard error, whoever writes them; what else
    is written appears at once. Where there is no standard error nothing is done."""
    try:
        kept = os.dup(STDERR)
    except OSError:
        yield
        return
    reading, writing = os.pipe()
    with suppress(OSError, ValueError):
        sys.stderr.flush()
    os.dup2(writing, STDERR)
    os.close(writing)

    def forward() -> None:
        with os.fdopen(reading, "rb") as lines:
            for line in lines:
                if unwanted not in line:
                    with suppress(OSError):
                        os.write(kept, line)

    thread = threading.Thread(target=forward, daemon=True)
    thread.start()
    try:
        yield
    finally:
        with suppress(OSError, ValueError):
            sys.stderr.flush()
        os.dup2(kept, STDERR)
        thread.join(SECONDS_FOR_THE_REST)  # it goes on if a process that was started meanwhile may still write
        if not thread.is_alive():
            os.close(kept)
