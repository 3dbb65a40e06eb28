"""The environment variables that the code reads or sets, found in the code, with what each means."""

import ast
from pathlib import Path

from pipeline.workers.ray_cluster import HANDED_ON

ROOT = Path(__file__).parent.parent
LEAD = """\
What the code itself reads. Credentials for object stores ([data.md](data.md#object-stores)) and Ray's token
([clusters/README.md](../clusters/README.md)) are read by the libraries that need them. A variable with a value under
*unless set* is given that value by `ndc`. Those that reach actors are handed on by a driver outside of a Ray job; in a
job the runtime environment does that."""
MEANINGS = {
    "AWS_DEFAULT_REGION": "region of the bucket",
    "AWS_ENDPOINT_URL": "address of an object store that is not Amazon's",
    "AWS_REGION": "region of the bucket",
    "AWS_REQUEST_CHECKSUM_CALCULATION": "stores other than Amazon's refuse uploads with the newer checksums",
    "HF_ENDPOINT": "address of a Hugging Face hub that is not huggingface.co",
    "HF_HUB_OFFLINE": "`1`: models and data of the hub come from its cache alone (`HF_HOME`)",
    "MLFLOW_ALLOW_FILE_STORE": "`true` lets MLflow write to a folder of files all the same",
    "MLFLOW_DISABLE_TELEMETRY": "MLflow sends no usage statistics",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "how often MLflow asks a server again",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "MLflow prints no links: `ndc` prints its own",
    "MLFLOW_TRACKING_URI": "MLflow's server or database; left out, `mlflow.db` in the working folder",
    "RAY_ADDRESS": "the cluster to join, `HOST:PORT` or `auto`; left out or `local`, Ray is started here, for the run",
    "RAY_AUTH_MODE": "`disabled` lets all users of this machine into a Ray that is started on it",
    "RAY_AUTH_TOKEN": "Ray's token; where home cannot be written `ndc` makes one that ends with the run",
    "RAY_BACKEND_LOG_LEVEL": "how much Ray's processes say on the driver's terminal",
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "Ray may form clusters of several machines on Windows and macOS",
    "RAY_JOB_CONFIG_JSON_ENV_VAR": "set by Ray in a job, whose runtime environment then reaches the actors by itself",
    "RAY_TMPDIR": "where a Ray that is started here keeps sockets and logs, in `ray/`; else `TMPDIR`, else `/tmp`",
    "RAY_USAGE_STATS_ENABLED": "Ray sends no usage statistics",
    "RAY_USE_TLS": "Ray's own connections are encrypted",
    "RAY_worker_niceness": "actors run with the priority of other processes",
    "TMPDIR": "where a Ray that is started here keeps sockets and logs, on Linux, unless `RAY_TMPDIR` is set",
    "TORCHINDUCTOR_CACHE_DIR": "where what `compute.compile` compiles is kept; left out, `inductor/` beside the models",
    "TRITON_CACHE_DIR": "where kernels for GPUs are kept when they are compiled; left out, `triton/` beside the models",
    "XDG_CACHE_HOME": "where models of object stores and locks are kept (`~/.cache`, in `ndc/`)",
}


def found() -> dict[str, str]:
    """Each variable that the code names, with the value that it gets unless it is set."""
    values = dict.fromkeys(HANDED_ON, "")
    for path in sorted([*(ROOT / "ndc_core").rglob("*.py"), *(ROOT / "pipeline").rglob("*.py")]):
        for node in ast.walk(ast.parse(path.read_text())):
            match node:
                case ast.Call(
                    func=ast.Attribute(value=ast.Attribute(attr="environ"), attr=method),
                    args=[ast.Constant(value=str(name)), *rest],
                ):
                    values.setdefault(name, "")
                    if method == "setdefault":
                        values[name] = ast.literal_eval(rest[0])
                case (
                    ast.Subscript(value=ast.Attribute(attr="environ"), slice=ast.Constant(value=str(name)))
                    | ast.Compare(left=ast.Constant(value=str(name)), comparators=[ast.Attribute(attr="environ")])
                ):
                    values.setdefault(name, "")
    return values


def rows() -> list[list[str]]:
    return [
        [f"`{name}`", MEANINGS[name], f"`{value}`" if value else "", "yes" if name in HANDED_ON else ""]
        for name, value in sorted(found().items())
    ]
