"""Which Ray a run joins or starts, and whether it can: found out from sockets and folders, without Ray.

Ray itself waits a quarter of an hour for a cluster that is not there, and hears no signal meanwhile.
"""

import os
import secrets
import socket
import sys
import tempfile
import threading
from pathlib import Path

HERE = ("", "local")
CONNECTING_SECONDS = 5.0
ANSWERING_SECONDS = 8.0  # in all: a name may have several addresses, and looking it up may take long
# What a client of HTTP/2, and so of gRPC, sends first, and the kind of frame that its server sends first.
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])
SETTINGS = 4
# What Ray puts below its folder, and how long a socket's path may be: 108 bytes with a zero, 104 on macOS.
SOCKET = "/session_2026-01-01_00-00-00_000000_{process}/sockets/plasma_store"
MOST_BYTES = (104 if sys.platform == "darwin" else 108) - 1
LARGEST_PROCESS = 2**22


class RayAddressError(ValueError):
    """Ray cannot be joined or started: what, where, remedy."""


def cluster_address() -> str | None:
    """The cluster of RAY_ADDRESS, without spaces; None where a run starts a Ray of its own."""
    address = os.environ.get("RAY_ADDRESS", "").strip()
    return None if address in HERE else address


def check_ray() -> None:
    """Whether the Ray of a run can be joined or started. Starts and keeps nothing, and takes seconds at most.

    Raises:
        RayAddressError: naming what is in the way, and the remedy.
    """
    address = cluster_address()
    if address is None:
        check_folder()
    else:
        check_cluster(address)


def check_cluster(address: str) -> None:
    """Raises RayAddressError unless the head of a cluster answers at `HOST:PORT`, or at what `auto` means here."""
    if "://" in address:
        kind = "a Ray Client's address" if address.startswith("ray://") else "a URL, as `ray job` takes it"
        raise RayAddressError(
            f"RAY_ADDRESS={address} is {kind}, and runs are driven from within a cluster: submit this one, `ray job "
            f"submit --address http://HOST:8265 -- ndc certify ...`, or set RAY_ADDRESS=auto on a node of the cluster"
        )
    stated = f"RAY_ADDRESS={address}"
    if address == "auto":
        kept = ray_folder() / "ray_current_cluster"
        if not kept.is_file():  # Ray looks for one among this machine's processes, and says so if there is none
            return
        address = kept.read_text().strip()
        stated += f" means {address} by {kept}, and"
    host, separator, port = address.rpartition(":")
    if not (separator and host and port.isdecimal()):
        raise RayAddressError(f"{stated} is not of the form HOST:PORT, as 10.0.0.1:6379; nor is it `auto` or `local`")
    if problem := _problem(host.strip("[]"), int(port)):
        raise RayAddressError(
            f"{stated} {problem}; check that the cluster runs and its head is reached from here, or unset RAY_ADDRESS "
            "to start Ray on this machine"
        )


def _problem(host: str, port: int) -> str:
    """Why no Ray is reached; empty if one is."""
    answers: list[str] = []
    # A thread, since looking up a name may take long and hears no signal.
    asking = threading.Thread(target=lambda: answers.append(_asked(host, port)), daemon=True)
    asking.start()
    asking.join(ANSWERING_SECONDS)
    return answers[0] if answers else f"gives no answer in {ANSWERING_SECONDS:.0f} s"


def _asked(host: str, port: int) -> str:
    try:
        with socket.create_connection((host, port), timeout=CONNECTING_SECONDS) as link:
            if os.environ.get("RAY_USE_TLS", "0").lower() in ("1", "true"):  # TLS speaks first
                return ""
            link.sendall(PREFACE)
            return "" if link.recv(4)[3:] == bytes([SETTINGS]) else "answers, but not as the head of a Ray cluster does"
    except (OSError, OverflowError) as error:
        return f"does not answer ({error})"


def ray_folder() -> Path:
    """Where a Ray that is started here keeps its sockets and logs, as Ray itself decides it."""
    on_linux = os.environ.get("TMPDIR") if sys.platform.startswith("linux") else None
    return Path(os.environ.get("RAY_TMPDIR") or on_linux or "/tmp") / "ray"


def check_folder() -> None:
    """Raises RayAddressError unless Ray can put its sockets where it wants to."""
    folder = ray_folder()
    safe = MOST_BYTES - len("/ray") - len(SOCKET.format(process=LARGEST_PROCESS))
    remedy = f"set RAY_TMPDIR to a folder of yours on this machine whose path is at most {safe} bytes long, as /tmp/me"
    if len(os.fsencode(folder)) + len(SOCKET.format(process=os.getpid())) > MOST_BYTES:
        raise RayAddressError(
            f"{folder.parent} (by RAY_TMPDIR or TMPDIR) is too long a path for Ray's sockets; {remedy}"
        )
    nearest = next(path for path in (folder, *folder.parents) if os.path.exists(path))  # noqa: PTH110
    try:
        tempfile.TemporaryDirectory(dir=nearest).cleanup()
    except OSError as error:
        raise RayAddressError(
            f"Ray cannot write to {nearest} ({error.strerror}), where it keeps its sockets; {remedy}"
        ) from error


def lend_token() -> str:
    """If Ray would write a token and cannot, gives it one in the environment: its processes inherit that, and end with
    the run. Returns what was done, in a line; empty if nothing was.
    """
    given = any(name in os.environ for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"))
    if given or os.environ.get("RAY_AUTH_MODE", "token").lower() != "token":
        return ""
    try:
        folder = Path.home() / ".ray"
        token = folder / "auth_token"
        if token.is_file():
            token.read_text()
        else:
            folder.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryDirectory(dir=folder).cleanup()
        return ""
    except (OSError, RuntimeError) as error:  # or there is no home at all
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
        return f"Ray's token is for this run only: it cannot be kept at home ({error})"
