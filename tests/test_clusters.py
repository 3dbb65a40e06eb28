"""The files of clusters/, as far as they can be checked without a cloud."""

import re
import shlex
from pathlib import Path
from typing import Annotated, Any, Literal

import click
import pytest
import yaml
from pydantic import BaseModel, ConfigDict, Field

from pipeline.cli import main
from pipeline.config import load_config

ROOT = Path(__file__).parent.parent
CLUSTERS = ROOT / "clusters"
LAUNCHED = ["ray-aws-spot.yaml", "ray-gcp.yaml"]
# Of EC2's RunInstances and of Compute Engine's instances.insert, what these files use.
NODE_KEYS = {
    "aws": {"InstanceType", "ImageId", "InstanceMarketOptions", "IamInstanceProfile", "BlockDeviceMappings"},
    "gcp": {"machineType", "disks", "guestAccelerators", "scheduling", "metadata", "serviceAccounts"},
}
SPOT = {
    "aws": ("InstanceMarketOptions", {"MarketType": "spot"}),
    "gcp": (
        "scheduling",
        {"provisioningModel": "SPOT", "onHostMaintenance": "TERMINATE", "instanceTerminationAction": "DELETE"},
    ),
}


def read(name: str) -> Any:
    return yaml.safe_load((CLUSTERS / name).read_text())


@pytest.mark.parametrize("name", LAUNCHED)
def test_the_launcher_takes_the_file_and_fills_in_nothing_that_installs(name: str) -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    config = prepare_config(read(name))
    validate_config(config)
    assert config["setup_commands"] == config["head_setup_commands"] == config["worker_setup_commands"] == []


@pytest.mark.parametrize("name", LAUNCHED)
def test_the_head_is_on_demand_and_holds_no_actor_and_workers_are_spot_machines_with_a_gpu(name: str) -> None:
    config = read(name)
    cloud = config["provider"]["type"]
    head, gpu = (config["available_node_types"][kind] for kind in (config["head_node_type"], "gpu"))
    for node in (head, gpu):
        assert set(node["node_config"]) <= NODE_KEYS[cloud]
    key, spot = SPOT[cloud]
    assert key not in head["node_config"]
    assert gpu["node_config"][key] == spot
    assert (head["resources"], head["max_workers"]) == ({"CPU": 0}, 0)
    assert gpu["resources"]["GPU"] == 1
    assert (gpu["min_workers"], gpu["max_workers"]) == (0, config["max_workers"])


@pytest.mark.parametrize("name", LAUNCHED)
def test_nodes_ask_for_a_token_and_the_dashboard_is_on_loopback(name: str) -> None:
    config = read(name)
    head, worker = (config[f"{kind}_start_ray_commands"][-1] for kind in ("head", "worker"))
    assert all("RAY_AUTH_MODE=token ray start" in command for command in (head, worker))
    assert "--dashboard-host=127.0.0.1" in head
    assert "--num-cpus=0" in head
    assert config["file_mounts"] == {"/home/ndc/.ray/auth_token": "~/.ray/auth_token"}
    for command in (head, worker):
        accepts(ray_command("start"), shlex.split(command.split("ray start", 1)[1]))


class Strict(BaseModel):
    """Of KubeRay's RayJob v1 and of a pod, what the file uses; any other key is a mistake of spelling or of place."""

    model_config = ConfigDict(extra="forbid")


class Metadata(Strict):
    name: str


class SecretRef(Strict):
    name: str


class EnvFrom(Strict):
    secretRef: SecretRef  # noqa: N815


class Resources(Strict):
    requests: dict[str, str]
    limits: dict[str, str]


class Exec(Strict):
    command: list[str]


class Handler(Strict):
    exec: Exec


class Lifecycle(Strict):
    preStop: Handler  # noqa: N815


class Container(Strict):
    name: str
    image: str
    envFrom: list[EnvFrom]  # noqa: N815
    resources: Resources
    lifecycle: Lifecycle | None = None


class Toleration(Strict):
    key: str
    operator: Literal["Equal", "Exists"]
    value: str | None = None
    effect: Literal["NoSchedule", "NoExecute", "PreferNoSchedule"]


class PodSpec(Strict):
    nodeSelector: dict[str, str]  # noqa: N815
    tolerations: list[Toleration] = []
    terminationGracePeriodSeconds: int = 30  # noqa: N815
    containers: Annotated[list[Container], Field(min_length=1, max_length=1)]


class Template(Strict):
    spec: PodSpec


class HeadGroup(Strict):
    rayStartParams: dict[str, str]  # noqa: N815
    template: Template


class WorkerGroup(HeadGroup):
    groupName: str  # noqa: N815
    replicas: int
    minReplicas: int  # noqa: N815
    maxReplicas: int  # noqa: N815


class AutoscalerOptions(Strict):
    idleTimeoutSeconds: int  # noqa: N815


class AuthOptions(Strict):
    mode: Literal["token", "disabled"]


class ClusterSpec(Strict):
    rayVersion: str  # noqa: N815
    enableInTreeAutoscaling: bool  # noqa: N815
    autoscalerOptions: AutoscalerOptions  # noqa: N815
    authOptions: AuthOptions  # noqa: N815
    headGroupSpec: HeadGroup  # noqa: N815
    workerGroupSpecs: Annotated[list[WorkerGroup], Field(min_length=1, max_length=1)]  # noqa: N815


class JobSpec(Strict):
    entrypoint: str
    backoffLimit: int  # noqa: N815
    shutdownAfterJobFinishes: bool  # noqa: N815
    ttlSecondsAfterFinished: int  # noqa: N815
    runtimeEnvYAML: str  # noqa: N815
    rayClusterSpec: ClusterSpec  # noqa: N815


class RayJob(Strict):
    apiVersion: Literal["ray.io/v1"]  # noqa: N815
    kind: Literal["RayJob"]
    metadata: Metadata
    spec: JobSpec


@pytest.fixture
def job() -> JobSpec:
    return RayJob.model_validate(read("kuberay-rayjob.yaml"), strict=True).spec


def test_the_rayjob_retries_in_a_new_cluster_and_ends_with_its_run(job: JobSpec) -> None:
    assert job.backoffLimit > 0
    assert job.shutdownAfterJobFinishes
    assert job.rayClusterSpec.enableInTreeAutoscaling
    assert job.rayClusterSpec.authOptions.mode == "token"
    assert f"ray=={job.rayClusterSpec.rayVersion}\n" in (ROOT / "constraints.txt").read_text()
    assert yaml.safe_load(job.runtimeEnvYAML) == read("runtime-env.yaml")


def test_the_rayjobs_head_is_on_demand_and_holds_no_actor_and_its_workers_scale_on_spot(job: JobSpec) -> None:
    head, (workers,) = job.rayClusterSpec.headGroupSpec, job.rayClusterSpec.workerGroupSpecs
    assert head.rayStartParams["num-cpus"] == "0"
    assert not any("spot" in text for item in head.template.spec.nodeSelector.items() for text in item)
    assert "nvidia.com/gpu" not in head.template.spec.containers[0].resources.limits
    assert workers.minReplicas == 0 < workers.maxReplicas
    pod = workers.template.spec
    assert pod.containers[0].resources.limits["nvidia.com/gpu"] == "1"
    for label, value in pod.nodeSelector.items():
        assert any((taint.key, taint.value) == (label, value) for taint in pod.tolerations)


def test_a_pod_that_goes_drains_its_node_first_and_has_the_time_for_it(job: JobSpec) -> None:
    pod = job.rayClusterSpec.workerGroupSpecs[0].template.spec
    hook = pod.containers[0].lifecycle
    assert hook is not None
    drain, wait = (shlex.split(part) for part in hook.preStop.exec.command[-1].split(";"))
    assert drain[:2] == ["ray", "drain-node"]
    assert wait[0] == "sleep"
    accepts(ray_command("drain-node"), drain[2:])
    deadline = drain[drain.index("--deadline-remaining-seconds") + 1]
    assert int(deadline) <= int(wait[1]) < pod.terminationGracePeriodSeconds


def test_most_actors_are_as_many_as_there_can_be_workers(job: JobSpec) -> None:
    config = load_config(str(CLUSTERS / "imagenet64.toml"))
    workers = {read(name)["max_workers"] for name in LAUNCHED} | {job.rayClusterSpec.workerGroupSpecs[0].maxReplicas}
    assert config.compute.gpus_per_actor == 1
    assert isinstance(config.compute.actors, tuple)
    assert {config.compute.actors[1]} == workers


def test_the_runtime_environment_has_no_secret() -> None:
    assert set(read("runtime-env.yaml")) == {"env_vars"}
    for name in read("runtime-env.yaml")["env_vars"]:
        assert not re.search("KEY|SECRET|TOKEN|PASSWORD|CREDENTIAL", name)


def test_the_image_copies_what_there_is_and_runs_as_no_root() -> None:
    lines = (CLUSTERS / "Dockerfile").read_text().splitlines()
    copied = [source for line in lines if line.startswith("COPY ") for source in line.split()[1:-1]]
    let_in = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert set(copied) == let_in
    for source in copied:
        assert (ROOT / source).exists(), source
    assert [line for line in lines if line.startswith("USER ")] == ["USER ndc"]
    assert "ndc --version" in "\n".join(lines)


def ray_command(name: str) -> click.Command:
    from ray.scripts.scripts import cli

    return cli.commands[name]


def accepts(command: click.Command, words: list[str]) -> None:
    """Raises click's UsageError if the command does not know an option, or lacks an argument."""
    command.make_context(command.name, list(words), resilient_parsing=False)


def command_lines() -> list[str]:
    """Every `ndc ...` that the files tell of."""
    found = [read("kuberay-rayjob.yaml")["spec"]["entrypoint"]]
    for block in re.findall(r"```sh\n(.*?)```", (CLUSTERS / "README.md").read_text(), flags=re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            command = line.split(" #")[0].split(" -- ")[-1]
            found += [command] if re.match(r"ndc |python -m pipeline\.cli ", command) else []
    return found


def test_every_command_line_for_ndc_is_one_that_it_takes() -> None:
    lines = command_lines()
    assert len(lines) >= 6
    for line in lines:
        name, *words = shlex.split(line.removeprefix("python -m pipeline.cli").removeprefix("ndc"))
        assert name in main.commands, line
        accepts(main.commands[name], words)


def test_every_link_leads_somewhere() -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", (CLUSTERS / "README.md").read_text()):
        assert (CLUSTERS / target).exists(), target
