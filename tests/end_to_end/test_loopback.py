"""A run on this machine is to be reached from this machine only, and can be interrupted."""

import re
import signal
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from tests.support.drivers import TAG, Driver, published

LONGER = ["dataset.limit=20", "votes.estimation=400", "votes.per_unit=100", "compute.actors=2"]
LISTENING = "0A"
# 127.0.0.1, the same as a kind of IPv6, and ::1, in the words of the kernel.
LOOPBACK = ("0100007F", "0000000000000000FFFF00000100007F", "00000000000000000000000001000000")


def processes_of(tag: str) -> list[Path]:
    """Ray's processes of a driver, and the driver."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # gone, or not ours to read
            if f"{TAG}={tag}".encode() in (folder / "environ").read_bytes():
                found.append(folder)
    return found


def sockets_of(process: Path) -> Iterator[str]:
    """The inodes of a process's sockets."""
    with suppress(OSError):
        for descriptor in (process / "fd").iterdir():
            with suppress(OSError):
                yield from re.findall(r"socket:\[(\d+)\]", str(descriptor.readlink()))


def listening() -> dict[str, str]:
    """The address, as the kernel writes it, of every socket that listens, by inode."""
    lines = [
        line.split() for table in ("tcp", "tcp6") for line in Path("/proc/net", table).read_text().splitlines()[1:]
    ]
    return {fields[9]: fields[1].partition(":")[0] for fields in lines if fields[3] == LISTENING}


def test_a_run_of_this_machine_listens_on_loopback_only_and_ctrl_c_leaves_it_to_be_resumed(
    tiny_model: Path, workplace: Path
) -> None:
    driver = Driver(workplace, tiny_model, "run", LONGER)
    while driver.process.poll() is None and len(published(workplace / "run")) < 5:
        time.sleep(0.1)
    assert driver.process.poll() is None, driver.log
    sockets = listening()
    found = {
        (process.name, sockets[inode])
        for process in processes_of(driver.tag)
        for inode in sockets_of(process)
        if inode in sockets
    }
    driver.process.send_signal(signal.SIGINT)
    assert driver.process.wait(60) == 130, driver.log
    assert "Run `ndc certify run` to go on." in driver.log
    assert "Traceback" not in driver.log
    assert len({process for process, _ in found}) >= 4, "the store of names, the raylet and two actors at the least"
    assert [address for _, address in found if address not in LOOPBACK] == []
