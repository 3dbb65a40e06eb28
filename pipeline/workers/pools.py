"""On which device actors vote, how many there are, and what each takes of a Ray node. Nothing here knows Ray."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from pipeline.declaration.config import ComputeConfig, Device
from pipeline.store.devices import DeviceRecord


@dataclass(frozen=True)
class Node:
    """What a Ray node says that it has."""

    cpus: float
    gpus: float


@dataclass(frozen=True)
class Pool:
    """The actors of a run. `remarks` say what was decided without being asked, and which GPUs stay idle, and why."""

    device: Device  # "cpu" or "cuda"
    gpus_per_actor: float
    cpus_per_actor: float
    fewest: int
    most: int
    remarks: tuple[str, ...] = ()


class NoGpuError(ValueError):
    """A GPU is asked for, and there is none and none will come, or none that torch can use."""


def pool_of(compute: ComputeConfig, nodes: Sequence[Node], *, why_no_cuda: Callable[[float], str]) -> Pool:
    """The pool on the nodes that are there now.

    `why_no_cuda` is called at most once, where an actor is to vote on a GPU that is there: it says why torch cannot use
    so much of one, or nothing.

    Raises:
        NoGpuError: see the class.
    """
    gpus = sum(node.gpus for node in nodes)
    asked_for = compute.gpus_per_actor if compute.device != "cuda" else compute.gpus_per_actor or 1
    each, unusable = asked_for or 0.0, ""
    if compute.device == "auto" and asked_for is None and gpus:
        unusable = why_no_cuda(1)
        each = 0.0 if unusable else 1.0
    elif each and not gpus and not compute.grows:
        raise NoGpuError(_nowhere(compute))
    elif each and gpus and compute.device != "cpu" and (why := why_no_cuda(each)):
        raise NoGpuError(
            f"{_who_asks(compute)}, but {why}; install a build of torch for its GPU there, or {_remedy(compute)}"
        )
    if not each:
        return _on_cpus(compute, nodes, remarks=_idle(compute, gpus, unusable))
    return _on_gpus(compute, nodes, each, device="cpu" if compute.device == "cpu" else "cuda")


def _who_asks(compute: ComputeConfig) -> str:
    return "compute.device is 'cuda'" if compute.device == "cuda" else "compute.gpus_per_actor is above 0"


def _remedy(compute: ComputeConfig) -> str:
    return "set it to 'cpu'" if compute.device == "cuda" else "set it to 0"


def _nowhere(compute: ComputeConfig) -> str:
    return (
        f"{_who_asks(compute)}, but Ray sees no GPU here; {_remedy(compute)}, or on a cluster that starts GPU nodes "
        "when asked set compute.actors to the fewest and the most actors, as [1, 64]"
    )


def _idle(compute: ComputeConfig, gpus: float, unusable: str) -> tuple[str, ...]:
    """Why GPUs that are there are not used."""
    if not gpus:
        return ()
    if unusable:
        return (f"{_gpus(gpus)} idle, the actors take CPUs: {unusable}; install a build of torch for it",)
    if compute.device == "cpu":
        return (f"{_gpus(gpus)} idle: compute.device is 'cpu'",)
    return (f"{_gpus(gpus)} idle: compute.gpus_per_actor is 0; leave it out to use them",)


def _on_cpus(compute: ComputeConfig, nodes: Sequence[Node], *, remarks: tuple[str, ...]) -> Pool:
    # One CPU is left: without a free one, Ray Data's own tasks never start.
    room = max(1, int((sum(node.cpus for node in nodes) - 1) / compute.threads_per_actor))
    fewest, most = compute.bounds(room)
    return Pool("cpu", 0.0, compute.threads_per_actor, fewest, most, remarks)


def _on_gpus(compute: ComputeConfig, nodes: Sequence[Node], each: float, *, device: Device) -> Pool:
    room = sum(_fitting(node, each) for node in nodes)
    fewest, most = compute.bounds(room)
    if not room:  # GPU nodes are to come, and nobody knows with how many CPUs
        return Pool(device, each, compute.threads_per_actor, fewest, most, ("no GPU yet: waiting for nodes with one",))
    remarks = [f"{_gpus(gpus := sum(node.gpus for node in nodes))}, {_actors(min(most, room))}{_share(each)}"]
    if device == "cpu":
        remarks.append("GPUs are only counted, and votes drawn on CPUs: compute.device is 'cpu'")
    if not compute.grows and most > room:
        remarks.append(f"compute.actors asks for {most}: the others have no GPU")
        fewest, most = room, room
    if (idle := gpus - most * each) >= 1:
        remarks.append(f"{_gpus(idle)} idle: compute.actors is {most}")
    cpus = min(
        _cpus_of_each(compute, node, min(_fitting(node, each), most), spare=len(nodes) == 1)
        for node in nodes
        if node.gpus
    )
    if cpus < compute.threads_per_actor:
        remarks.append(
            f"too few CPUs for compute.threads_per_actor = {compute.threads_per_actor} of each actor: they share what "
            "there is, and may wait for it"
        )
    return Pool(device, each, cpus, fewest, most, tuple(remarks))


def _fitting(node: Node, each: float) -> int:
    """A fraction of a GPU lies on one GPU."""
    return int(node.gpus) * int(1 / each + 1e-9)


def _cpus_of_each(compute: ComputeConfig, node: Node, actors: int, *, spare: bool) -> float:
    """No GPU waits for CPUs, which Ray only counts: actors take less where there are few."""
    share = max(0.0, node.cpus - spare) / actors if actors else float(compute.threads_per_actor)
    if share >= compute.threads_per_actor:
        return compute.threads_per_actor
    return int(share) if share >= 1 else int(100 * share) / 100


def _gpus(count: float) -> str:
    return f"{count:g} GPU{'s' * (count != 1)}"


def _actors(count: int) -> str:
    return f"{count} actor{'s' * (count != 1)}"


def _share(each: float) -> str:
    return f", {each:g} of a GPU each" if each != 1 else ""


def kinds_of(devices: Iterable[tuple[DeviceRecord, int]]) -> tuple[str, ...]:
    """The kinds among the devices that made evidence, as it counts them."""
    return tuple(sorted({record.kind for record, _ in devices}))


def as_begun(compute: ComputeConfig, begun: Sequence[str]) -> ComputeConfig:
    """`auto` goes on with the kind of device that drew all votes so far: another one rounds otherwise."""
    if compute.device != "auto" or compute.gpus_per_actor is not None or len(begun) != 1:
        return compute
    return compute.model_copy(update={"device": begun[0]})
