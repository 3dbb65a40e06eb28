"""Ends this process from a thread, where a library keeps the main thread from hearing signals, or never returns."""

import os
import select
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

INTERRUPTED, STDERR = 130, 2
END = 0  # no signal has this number
SECONDS_FOR_A_FILTER = 0.05  # that may stand before standard error (`stderr_filter`)
GRACE_SECONDS = 1.5  # in which the main thread may stop by itself after a signal


@contextmanager
def heard(*, within_seconds: float, doing: str) -> Iterator[None]:
    """While the context lasts, SIGINT and SIGTERM end the process within seconds, with exit code 130; if it lasts
    longer than `within_seconds`, that does, with 1. A line says what it was doing.

    Only the main thread can lend its signals; in another one nothing is done.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    read_end, write_end = os.pipe()
    os.set_blocking(write_end, False)
    before, ended = signal.set_wakeup_fd(write_end), threading.Event()

    def watch() -> None:
        stop = _wait_for_signal(read_end, until=time.monotonic() + within_seconds)
        if not ended.wait(GRACE_SECONDS if stop else 0):
            reason = "stopped while" if stop else f"no end after {within_seconds:.0f} s of"
            with suppress(OSError):
                os.write(STDERR, f"{reason} {doing}\n".encode())
            time.sleep(SECONDS_FOR_A_FILTER)
            os._exit(INTERRUPTED if stop else 1)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        signal.set_wakeup_fd(before)
        os.write(write_end, bytes([END]))
        thread.join()
        os.close(read_end)
        os.close(write_end)


def _wait_for_signal(read_end: int, *, until: float) -> bool:
    """Whether a signal that stops the process, or the end of the watch, came in time; other signals are passed over."""
    while (left := until - time.monotonic()) > 0 and select.select([read_end], [], [], left)[0]:
        if os.read(read_end, 1)[0] in (END, signal.SIGINT, signal.SIGTERM):
            return True
    return False
