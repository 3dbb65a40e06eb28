"""Forward passes of one fixed shape, gathered from all tasks that ask for rows (rule S1).

Votes are generators: they yield an `Ask` for rows and are sent the denoiser's outputs for them. Several run at a time,
each at its own point, and their rows share passes, so passes stay full while classes and draws drop out. A pass is
padded only when no task can go on without an answer.

On a GPU several passes are in flight: a pass is only launched, and what votes read of it is copied to the host
asynchronously. While rows wait for the next passes, the host waits only for the oldest launched pass.
"""

from collections import defaultdict, deque
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Generic, Literal, TypeVar, cast

import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ndc_core.models.denoiser import Denoiser, EveryClass, EveryLoss
from ndc_core.models.image_classifier import ImageClassifier
from ndc_core.models.transfers import OnItsWay, to_host

# z, sigma_model and labels; for `every_loss` targets (rows, targets, c, h, w) instead of labels.
Inputs = tuple[Float[Tensor, "rows c h w"], Float[Tensor, " rows"], Float[Tensor, "rows ..."]]
Kind = Literal["forward", "every_class", "every_loss", "label_gradient", "classify"]
# A backward pass to the label costs about as much as a forward one: the weights need no gradient.
EVALUATIONS_OF_A_ROW: dict[Kind, int] = {
    "forward": 1,
    "every_class": 1,
    "every_loss": 1,
    "label_gradient": 2,
    "classify": 1,
}
# The most passes to launch before waiting for the answers of the first, and the number of passes whose rows should be
# waiting. A CPU computes each pass when it is launched.
PASSES_AHEAD = {"cuda": 3}


@dataclass(frozen=True)
class Ask:
    """Rows to be evaluated. `inputs` gives z, sigma_model and label of a window of them, `read` keeps what is wanted of
    the network's output for the window: one row of the answer for each.

    `forward` is the denoiser at the given labels, `every_class` all classes of a network with class heads (labels are
    ignored), `every_loss` the squared distances of all classes to each of the row's `targets`, `label_gradient` the
    derivative of what `read` keeps, one number per row, with respect to the label.
    """

    kind: Kind
    network: Denoiser | ImageClassifier
    rows: int
    inputs: Callable[[slice], Inputs]
    read: Callable[[Tensor, slice], Tensor]
    on_host: bool = False
    targets: int = 0

    @property
    def evaluations_per_row(self) -> int:
        return EVALUATIONS_OF_A_ROW[self.kind]


Name = TypeVar("Name")
Result = TypeVar("Result")
Task = Generator[Ask, Tensor, Result]
NextTask = Callable[[], tuple[Name, Task[Result]] | None]
Item = TypeVar("Item")


@dataclass(eq=False)
class _Running(Generic[Name, Result]):
    name: Name
    task: Task[Result]
    rows_left: int = 0  # rows of its ask that are in no pass yet
    ask: Ask | None = None
    answer: list[Tensor] = field(default_factory=list)


def gather(
    next_task: NextTask[Name, Result],
    *,
    rows_per_pass: int,
    device: torch.device,
    passes_ahead: int | None = None,
) -> Iterator[tuple[Name, Result | Exception]]:
    """Runs tasks and yields each one's name and result, or the exception that ended it, as soon as it has ended.

    Tasks are begun as long as fewer rows wait than `passes_ahead` passes take (left out, what suits the device).
    `next_task` gives None when there is none at present; it is called again as long as rows are few.
    """
    ahead = passes_ahead or PASSES_AHEAD.get(device.type, 1)
    return _Gatherer(next_task, rows_per_pass=rows_per_pass, passes_ahead=ahead).run()


def in_turn(items: Iterable[Item]) -> Callable[[], Item | None]:
    """Gives one item after another, then None: tasks or requests that are all known beforehand."""
    iterator = iter(items)
    return lambda: next(iterator, None)


def answer(task: Task[Result], *, rows_per_pass: int, device: torch.device) -> Result:
    """The result of one task."""
    ((_, result),) = gather(in_turn([(None, task)]), rows_per_pass=rows_per_pass, device=device)
    if isinstance(result, Exception):
        raise result
    return result


def answer_differentiably(task: Task[Result], *, rows_at_once: int) -> Result:
    """The result of one task in the caller's autograd: passes have as many rows as are asked for: not for votes.

    For more rows than `rows_at_once`, what autograd needs of a pass is computed again when it is needed, so memory does
    not grow with the rows.
    """
    answer: Tensor | None = None
    while True:
        try:
            ask = task.send(cast(Tensor, answer))  # a generator's first `send` takes None
        except StopIteration as stop:
            return cast(Result, stop.value)
        windows = [slice(first, min(first + rows_at_once, ask.rows)) for first in range(0, ask.rows, rows_at_once)]
        if len(windows) == 1:
            answer = _read_of(ask, windows[0])
        else:
            answer = torch.cat([checkpoint(_read_of, ask, window, use_reentrant=False) for window in windows])


_Part = tuple[_Running[Name, Result], OnItsWay]


class _Gatherer(Generic[Name, Result]):
    def __init__(self, next_task: NextTask[Name, Result], *, rows_per_pass: int, passes_ahead: int) -> None:
        self.next_task, self.rows_per_pass, self.passes_ahead = next_task, rows_per_pass, passes_ahead
        self.running = 0
        # Rows of different kinds, for different networks, or with different numbers of targets cannot share a pass.
        self.queues: dict[tuple[Kind, int, int], deque[_Running[Name, Result]]] = defaultdict(deque)
        self.ended: deque[tuple[Name, Result | Exception]] = deque()

    def run(self) -> Iterator[tuple[Name, Result | Exception]]:
        launched: deque[list[_Part[Name, Result]]] = deque()
        while True:
            self._start_tasks()
            if self.ended:
                yield from self._drain()
                continue  # the caller may have a next task now
            full = self._queue_with(self.rows_per_pass)
            if full is not None and len(launched) < self.passes_ahead:
                launched.append(self._launch(full))
            elif launched:
                self._deliver(launched.popleft())
                yield from self._drain()
            elif (part := self._queue_with(1)) is not None:
                launched.append(self._launch(part))
            elif not self.running:
                return

    def _drain(self) -> Iterator[tuple[Name, Result | Exception]]:
        while self.ended:
            yield self.ended.popleft()

    def _start_tasks(self) -> None:
        while self._queue_with(self.passes_ahead * self.rows_per_pass) is None:
            named = self.next_task()
            if named is None:
                return
            self.running += 1
            self._go_on(_Running(*named), None)

    def _go_on(self, running: _Running[Name, Result], answer: Tensor | None) -> None:
        """Lets a task go on to its next ask, or to its end."""
        try:
            ask = running.task.send(cast(Tensor, answer))  # a generator's first `send` takes None
        except StopIteration as stop:
            self._end(running, stop.value)
        except Exception as error:  # it ends this task: the others go on
            self._end(running, error)
        else:
            assert ask.rows > 0
            running.ask, running.rows_left, running.answer = ask, ask.rows, []
            self.queues[ask.kind, id(ask.network), ask.targets].append(running)

    def _end(self, running: _Running[Name, Result], result: Result | Exception) -> None:
        self.running -= 1
        running.ask = None
        self.ended.append((running.name, result))

    def _queue_with(self, rows: int) -> deque[_Running[Name, Result]] | None:
        """The fullest queue, if it holds at least this many rows."""
        fullest = max(self.queues.values(), key=_rows_of, default=None)
        return fullest if fullest and _rows_of(fullest) >= rows else None

    def _launch(self, queue: deque[_Running[Name, Result]]) -> list[_Part[Name, Result]]:
        """Evaluates the first rows of a queue; gives the parts of the answer that go to the host. Askers that want
        theirs on the device, where later work runs after it, get it at once."""
        room, askers, parts = self.rows_per_pass, [], []
        for running in queue:
            assert running.ask is not None
            start, taken = running.ask.rows - running.rows_left, min(room, running.rows_left)
            askers.append(running)
            parts.append((running.ask, slice(start, start + taken)))
            running.rows_left -= taken
            room -= taken
            if not room:
                break
        while queue and not queue[0].rows_left:
            queue.popleft()
        try:
            answers = self._evaluate(parts)
            coming = [
                to_host(answer) if ask.on_host else OnItsWay(answer)
                for answer, (ask, _) in zip(answers, parts, strict=True)
            ]
        except Exception as error:  # a pass that fails ends all tasks with rows in it
            for running in askers:
                if running in queue:
                    queue.remove(running)
                running.task.close()
                self._end(running, error)
            return []
        answered = list(zip(askers, coming, strict=True))
        self._deliver(part for part, (ask, _) in zip(answered, parts, strict=True) if not ask.on_host)
        return [part for part, (ask, _) in zip(answered, parts, strict=True) if ask.on_host]

    def _evaluate(self, parts: list[tuple[Ask, slice]]) -> list[Tensor]:
        kind, network = parts[0][0].kind, parts[0][0].network
        with torch.inference_mode(kind != "label_gradient"):
            columns = zip(*(ask.inputs(window) for ask, window in parts), strict=True)
            z, sigma_model, label = (_padded(torch.cat(column), self.rows_per_pass) for column in columns)
            if kind == "label_gradient":
                with torch.enable_grad():
                    label.requires_grad_()
                    kept = self._read(cast(Denoiser, network)(z, sigma_model, label), parts)
                    gradient: Tensor = torch.autograd.grad(torch.cat(kept).sum(), label)[0]
                return list(gradient[: sum(len(rows) for rows in kept)].split([len(rows) for rows in kept]))
            return self._read(_outputs(kind, network, z, sigma_model, label), parts)

    def _read(self, outputs: Tensor, parts: list[tuple[Ask, slice]]) -> list[Tensor]:
        sizes = [window.stop - window.start for _, window in parts]
        pieces = outputs[: sum(sizes)].split(sizes)
        return [ask.read(piece, window) for (ask, window), piece in zip(parts, pieces, strict=True)]

    def _deliver(self, parts: Iterable[_Part[Name, Result]]) -> None:
        for running, coming in parts:
            if running.ask is None:  # another pass with rows of the same ask has failed
                continue
            running.answer.append(coming.wait())
            if sum(len(piece) for piece in running.answer) == running.ask.rows:
                self._go_on(running, torch.cat(running.answer))


def _read_of(ask: Ask, window: slice) -> Tensor:
    return ask.read(_outputs(ask.kind, ask.network, *ask.inputs(window)), window)


def _outputs(kind: Kind, network: Denoiser | ImageClassifier, z: Tensor, sigma_model: Tensor, label: Tensor) -> Tensor:
    if kind == "classify":
        return cast(ImageClassifier, network)(z)
    if kind == "every_class":
        return cast(EveryClass, network).every_class(z, sigma_model)
    if kind == "every_loss":
        return cast(EveryLoss, network).every_loss(z, sigma_model, label)
    return cast(Denoiser, network)(z, sigma_model, label)


def _rows_of(queue: deque[Any]) -> int:
    return sum(running.rows_left for running in queue)


def _padded(rows: Tensor, count: int) -> Tensor:
    """Repeats the last row up to the count."""
    missing = count - len(rows)
    return torch.cat([rows, rows[-1:].expand(missing, *rows.shape[1:])]) if missing else rows
