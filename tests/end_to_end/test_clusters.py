"""The files of clusters/, as far as they can be checked without a cloud."""

import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal

import click
import pytest
import yaml
from pydantic import BaseModel, ConfigDict, Field

from pipeline.cli import main
from pipeline.declaration.toml_files import load_config

ROOT = Path(__file__).parents[2]
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


class Expression(Strict):
    key: str
    operator: Literal["In", "NotIn"]
    values: Annotated[list[str], Field(min_length=1)]

    def holds(self, labels: dict[str, str]) -> bool:
        """As Kubernetes has it: NotIn holds of a node without the label."""
        return (labels.get(self.key) in self.values) == (self.operator == "In")


class Term(Strict):
    matchExpressions: Annotated[list[Expression], Field(min_length=1)]  # noqa: N815


class Terms(Strict):
    nodeSelectorTerms: Annotated[list[Term], Field(min_length=1)]  # noqa: N815


class NodeAffinity(Strict):
    requiredDuringSchedulingIgnoredDuringExecution: Terms  # noqa: N815


class Affinity(Strict):
    nodeAffinity: NodeAffinity  # noqa: N815


class PodSpec(Strict):
    affinity: Affinity
    tolerations: list[Toleration] = []
    terminationGracePeriodSeconds: int = 30  # noqa: N815
    containers: Annotated[list[Container], Field(min_length=1, max_length=1)]

    def goes_to(self, labels: dict[str, str], *, taint: tuple[str, str] | None = None) -> bool:
        """Whether Kubernetes may put the pod on such a node."""
        terms = self.affinity.nodeAffinity.requiredDuringSchedulingIgnoredDuringExecution.nodeSelectorTerms
        selected = any(all(expression.holds(labels) for expression in term.matchExpressions) for term in terms)
        return selected and (taint is None or taint in {(item.key, item.value) for item in self.tolerations})


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
    assert "nvidia.com/gpu" not in head.template.spec.containers[0].resources.limits
    assert workers.minReplicas == 0 < workers.maxReplicas
    pod = workers.template.spec
    assert pod.containers[0].resources.limits["nvidia.com/gpu"] == "1"


# The label of a cloud's spot nodes, whether it is a taint of theirs too, and a label of the cloud's other nodes.
NODES = {
    "GKE": ({"cloud.google.com/gke-spot": "true"}, True, {"cloud.google.com/gke-provisioning": "standard"}),
    "EKS": ({"eks.amazonaws.com/capacityType": "SPOT"}, False, {"eks.amazonaws.com/capacityType": "ON_DEMAND"}),
    "AKS": ({"kubernetes.azure.com/scalesetpriority": "spot"}, True, {"kubernetes.azure.com/mode": "user"}),
    "Karpenter": ({"karpenter.sh/capacity-type": "spot"}, False, {"karpenter.sh/capacity-type": "on-demand"}),
    "none": (None, False, {}),
}


@pytest.mark.parametrize("cloud", NODES)
def test_on_every_cloud_the_head_goes_to_no_spot_node_and_workers_go_to_no_other(job: JobSpec, cloud: str) -> None:
    spot, tainted, on_demand = NODES[cloud]
    head = job.rayClusterSpec.headGroupSpec.template.spec
    worker = job.rayClusterSpec.workerGroupSpecs[0].template.spec
    assert head.goes_to(on_demand)
    assert not worker.goes_to(on_demand)
    if spot is not None:
        taint = next(iter(spot.items())) if tainted else None
        assert not head.goes_to(spot)
        assert worker.goes_to(spot, taint=taint)


def test_no_placeholder_is_active_that_would_end_the_first_run() -> None:
    """Names that must be put in are in capitals, and nothing works without them; all else works as it is."""
    for name in ("runtime-env.yaml", "kuberay-rayjob.yaml", "imagenet64.toml", *LAUNCHED):
        for line in (CLUSTERS / name).read_text().splitlines():
            active = line.partition("#")[0]
            assert "example" not in active, f"{name}: {line}"
            assert "internal" not in active, f"{name}: {line}"


def test_the_file_for_google_says_what_the_launcher_needs_besides() -> None:
    from ray.autoscaler._private import providers

    package = re.findall(r"pip install ([\w-]+)", Path(providers.__file__).read_text())[1]
    assert package == "google-api-python-client"
    for name in ("ray-gcp.yaml", "README.md", "Dockerfile"):
        assert package in (CLUSTERS / name).read_text(), name


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


def test_the_image_copies_what_there_is() -> None:
    lines = (CLUSTERS / "Dockerfile").read_text().splitlines()
    copied = [source for line in lines if line.startswith("COPY ") for source in line.split()[1:-1]]
    let_in = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert set(copied) == let_in
    for source in copied:
        assert (ROOT / source).exists(), source
    assert "ndc --version" in "\n".join(lines)


def test_the_image_installs_what_the_package_needs_with_mlflows_client_alone(tmp_path: Path) -> None:
    text = (CLUSTERS / "Dockerfile").read_text().replace("\\\n", "")
    (lists,) = re.findall(r"^RUN (.* > requirements.txt)$", text, flags=re.MULTILINE)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    subprocess.run(lists.replace("python", sys.executable, 1), shell=True, cwd=tmp_path, check=True)
    listed = (tmp_path / "requirements.txt").read_text().splitlines()
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    assert set(declared) - set(listed) == {"mlflow>=3.1"}
    assert set(listed) - set(declared) == {"mlflow-skinny"}
    assert "--requirement requirements.txt" in text
    assert "pip install --no-cache-dir --no-deps ." in text


def test_the_image_has_what_the_launcher_runs_in_it_and_a_numeric_user_with_a_home() -> None:
    text = (CLUSTERS / "Dockerfile").read_text()
    (installed,) = re.findall(r"apt-get install ([^&]*?)[ \\\n]*&&", text)
    assert {"openssh-client", "rsync"} <= set(installed.split())
    (user,) = re.findall(r"^USER (.*)$", text, flags=re.MULTILINE)
    uid, gid = user.split(":")
    assert uid.isdigit()
    assert int(uid) > 0
    assert f"--uid {uid} --gid {gid} ndc" in text
    (home,) = re.findall(r"^ENV HOME=(.*)$", text, flags=re.MULTILINE)
    assert text.rstrip().endswith(f"WORKDIR {home}")
    for name in LAUNCHED:  # `~` of files that are mounted is the home that the image says
        assert all(target.startswith(f"{home}/") for target in read(name)["file_mounts"])


def ray_command(name: str) -> click.Command:
    from ray.scripts.scripts import cli

    return cli.commands[name]


def accepts(command: click.Command, words: list[str]) -> None:
    """Raises click's UsageError if the command does not know an option, or lacks an argument."""
    command.make_context(command.name, list(words), resilient_parsing=False)


def command_lines() -> list[str]:
    """Every `ndc ...` that the files tell of."""
    commands = [read("kuberay-rayjob.yaml")["spec"]["entrypoint"]]
    for block in re.findall(r"```sh\n(.*?)```", (CLUSTERS / "README.md").read_text(), flags=re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            command = line.split(" #")[0].split(" -- ")[-1].strip()
            commands += [command] if re.match(r"ndc |python -m pipeline\.cli ", command) else []
    return commands


def test_every_command_line_for_ndc_is_one_that_it_takes() -> None:
    lines = command_lines()
    assert len(lines) >= 9
    for line in lines:
        name, *words = shlex.split(line.removeprefix("python -m pipeline.cli").removeprefix("ndc"))
        assert name in main.commands, line
        accepts(main.commands[name], words)


def test_every_link_leads_somewhere() -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", (CLUSTERS / "README.md").read_text()):
        assert (CLUSTERS / target).exists(), target
