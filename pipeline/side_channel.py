"""What a run tells while it works: a terminal, logs, metrics, MLflow. Nothing that goes wrong there ends the run."""

import threading
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, Generic, Protocol, Self, TypeVar

Say = Callable[[str], None]
Message = TypeVar("Message")
Heard = TypeVar("Heard", contravariant=True)


class SideChannel:
    """A context that swallows whatever is raised in it, and reports the first error; only Ctrl-C and SIGTERM pass.

    It may be entered again and again.
    """

    def __init__(self, what: str, say: Say) -> None:
        self.what, self.say, self.failed = what, say, False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        if error is None or isinstance(error, KeyboardInterrupt):
            return False
        if not self.failed:
            self.failed = True
            # Saying it is a side channel, too.
            safely(self.say)(f"{self.what} failed, and the run goes on without: {in_one_line(error)}")
        return True


def in_one_line(error: BaseException) -> str:
    """What an error says, without the lines that libraries add below."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def safely(say: Say) -> Say:
    """Says what can be said: a terminal may be gone, or what it is redirected to full."""
    channel = SideChannel("the terminal", lambda line: None)

    def tell(line: str) -> None:
        with channel:
            say(line)

    return tell


def in_time(tell: Callable[[], None], *, seconds: float = 1.0) -> None:
    """Calls `tell` in a thread of its own and waits at most `seconds`, so that stopping a run never hangs.

    Raises:
        TimeoutError: it has not ended yet; it may, if the process lasts.
        BaseException: as it is raised.
    """
    errors: list[BaseException | None] = []

    def work() -> None:
        try:
            tell()
            errors.append(None)
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(seconds)
    if not errors:
        raise TimeoutError(f"no answer in {seconds:g} s")
    if errors[0]:
        raise errors[0]


class Listener(Protocol[Heard]):
    """Follows a run from message to message."""

    def __enter__(self) -> Any: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> Any: ...

    def add(self, message: Heard) -> None: ...


class Listeners(Generic[Message]):
    """Makes listeners, each by its name behind a side channel, and tells them every message."""

    def __init__(self, makers: Mapping[str, Callable[[], Listener[Message]]], *, say: Say) -> None:
        self.makers, self.say = makers, say
        self.heard: list[tuple[SideChannel, Listener[Message]]] = []

    def __enter__(self) -> Self:
        for what, make in self.makers.items():
            with SideChannel(what, self.say) as channel:
                listener = make()
                listener.__enter__()
                self.heard.append((channel, listener))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for channel, listener in self.heard:
            with channel:
                listener.__exit__(kind, error, trace)

    def add(self, message: Message) -> None:
        for channel, listener in self.heard:
            with channel:
                listener.add(message)
