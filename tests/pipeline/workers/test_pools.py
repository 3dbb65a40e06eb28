"""The device that votes and the number of actors: chosen by what Ray's nodes have, and reported."""

import pytest

from pipeline.declaration.config import ComputeConfig
from pipeline.store.devices import DeviceRecord
from pipeline.workers.pools import Node, NoGpuError, Pool, as_begun, kinds_of, pool_of


def pool_on(nodes: list[Node], *, why: str = "", **compute) -> Pool:
    looked: list[float] = []

    def why_no_cuda(gpus: float) -> str:
        looked.append(gpus)
        return why

    pool = pool_of(ComputeConfig(**compute), nodes, why_no_cuda=why_no_cuda)
    assert len(looked) <= 1
    return pool


def test_without_gpus_every_cpu_but_one_has_an_actor_without_a_remark() -> None:
    assert pool_on([Node(3, 0)]) == Pool("cpu", 0.0, 1, 2, 2)
    assert pool_on([Node(5, 0)], threads_per_actor=2) == Pool("cpu", 0.0, 2, 2, 2)
    assert pool_on([Node(1, 0)]).most == 1
    assert pool_on([Node(3, 0)], actors=(1, 64)) == Pool("cpu", 0.0, 1, 1, 64)


def test_auto_takes_the_gpus_that_ray_sees_and_says_so() -> None:
    assert pool_on([Node(3, 1)]) == Pool("cuda", 1.0, 1, 1, 1, ("1 GPU, 1 actor",))
    pool = pool_on([Node(9, 4), Node(9, 4), Node(4, 0)])
    assert (pool.device, pool.most, pool.remarks) == ("cuda", 8, ("8 GPUs, 8 actors",))


def test_actors_may_share_a_gpu_and_none_lies_on_two() -> None:
    pool = pool_on([Node(9, 2)], gpus_per_actor=0.5)
    assert (pool.most, pool.remarks) == (4, ("2 GPUs, 4 actors, 0.5 of a GPU each",))
    assert pool_on([Node(9, 2)], gpus_per_actor=0.4).most == 4
    assert pool_on([Node(9, 2)], gpus_per_actor=0.7).most == 2
    assert pool_on([Node(30, 1)], gpus_per_actor=0.1).most == 10
    with pytest.raises(ValueError, match="less than or equal to 1"):
        ComputeConfig(gpus_per_actor=2)


def test_no_gpu_waits_for_cpus_which_are_shared_with_a_remark() -> None:
    pool = pool_on([Node(3, 8)])
    assert (pool.most, pool.cpus_per_actor) == (8, 0.25)
    assert 8 * pool.cpus_per_actor <= 2
    assert pool.remarks[0] == "8 GPUs, 8 actors"
    assert pool.remarks[1].startswith("too few CPUs for compute.threads_per_actor = 1 of each actor: they share")
    assert pool_on([Node(9, 2)], threads_per_actor=8).cpus_per_actor == 4
    assert pool_on([Node(1, 1)]).cpus_per_actor == 0
    assert pool_on([Node(8, 0), Node(4, 1)], threads_per_actor=4).remarks == ("1 GPU, 1 actor",)


@pytest.mark.parametrize(
    ("compute", "said"),
    [
        ({"gpus_per_actor": 0}, "2 GPUs idle: compute.gpus_per_actor is 0; leave it out to use them"),
        ({"device": "cpu"}, "2 GPUs idle: compute.device is 'cpu'"),
        ({"actors": 1}, "1 GPU idle: compute.actors is 1"),
        ({"actors": 4}, "compute.actors asks for 4: the others have no GPU"),
        ({"why": "torch 2 sees no CUDA device"}, "2 GPUs idle, the actors take CPUs: torch 2 sees no CUDA device"),
    ],
)
def test_no_gpu_is_idle_without_a_remark(compute: dict, said: str) -> None:
    assert any(remark.startswith(said) for remark in pool_on([Node(5, 2)], **compute).remarks)


def test_on_cpus_gpus_are_only_counted_where_actors_are_to_hold_some() -> None:
    pool = pool_on([Node(3, 2)], device="cpu", gpus_per_actor=1, why="never asked")
    assert (pool.device, pool.gpus_per_actor, pool.most) == ("cpu", 1, 2)
    assert pool.remarks[1] == "GPUs are only counted, and votes drawn on CPUs: compute.device is 'cpu'"


@pytest.mark.parametrize(
    ("compute", "nodes", "problem"),
    [
        (
            {"device": "cuda"},
            [Node(3, 0)],
            r"compute.device is 'cuda', but Ray sees no GPU here; set it to 'cpu', or on",
        ),
        ({"gpus_per_actor": 1}, [Node(3, 0)], r"compute.gpus_per_actor is above 0, but Ray sees no GPU .* \[1, 64\]"),
        ({"device": "cpu", "gpus_per_actor": 1}, [Node(3, 0)], "Ray sees no GPU here; set it to 0"),
        ({"device": "cuda", "why": "it is AMD"}, [Node(3, 1)], "'cuda', but it is AMD; install .* or set it to 'cpu'"),
        ({"gpus_per_actor": 0.5, "why": "it is AMD"}, [Node(3, 1)], "above 0, but it is AMD; .* or set it to 0"),
    ],
)
def test_an_unavailable_gpu_is_an_error_in_a_line(compute: dict, nodes: list[Node], problem: str) -> None:
    with pytest.raises(NoGpuError, match=problem) as caught:
        pool_on(nodes, **compute)
    assert "\n" not in str(caught.value)


def test_gpu_nodes_that_will_come_are_waited_for() -> None:
    pool = pool_on([Node(2, 0)], gpus_per_actor=1, actors=(1, 64))
    assert (pool.device, pool.fewest, pool.most) == ("cuda", 1, 64)
    assert pool.remarks == ("no GPU yet: waiting for nodes with one",)
    assert pool_on([Node(2, 1)], device="cuda", actors=(1, 64)).most == 64


def test_cuda_without_gpus_for_actors_is_a_contradiction() -> None:
    with pytest.raises(ValueError, match="device 'cuda' needs GPUs, and gpus_per_actor is 0"):
        ComputeConfig(device="cuda", gpus_per_actor=0)


def test_a_run_goes_on_with_the_kind_of_device_that_it_began_on_unless_another_is_asked_for() -> None:
    h100 = DeviceRecord("cuda", "NVIDIA H100")
    assert kinds_of([(h100, 3), (DeviceRecord.parse("cuda"), 1), (DeviceRecord("cpu"), 2)]) == ("cpu", "cuda")
    assert as_begun(ComputeConfig(), ["cuda"]).device == "cuda"
    assert as_begun(ComputeConfig(), ["cpu"]).device == "cpu"
    for asked_for in (ComputeConfig(device="cpu"), ComputeConfig(gpus_per_actor=1), ComputeConfig(gpus_per_actor=0)):
        assert as_begun(asked_for, ["cuda"]) == asked_for
    for begun in ((), ("cpu", "cuda")):
        assert as_begun(ComputeConfig(), begun) == ComputeConfig()
