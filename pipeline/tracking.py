"""MLflow, spoken to by the driver only: one flat run for each run folder, continued on resume."""

import logging
import os
import shlex
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.error import HTTPError, URLError
from urllib.parse import urlparse
from urllib.request import urlopen

from filelock import FileLock
from upath import UPath

from pipeline.config import RunConfig, load_config
from pipeline.datasets import DatasetSpec
from pipeline.locations import absolute, read
from pipeline.logged import Point, attacked_scalars, curve_points, description, flatten, scalars, table_of, tags_of
from pipeline.report import Report
from pipeline.store import RunStore

if TYPE_CHECKING:
    from mlflow import MlflowClient

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")  # `ndc` prints its own

DEFAULT_DATABASE = "mlflow.db"
DEFAULT_ARTIFACTS = "mlartifacts"
NOTE = "mlflow.note.content"
TABLE = "certified.json"
POINTS_AT_ONCE = 1000  # as MLflow allows
CHARTS = "workflowType=machine_learning&compareRunsMode=CHART"


class TrackingError(ValueError):
    """The tracking server cannot be used: what, where, remedy."""


def tracking_uri() -> str:
    # Absolute: MLflow keeps one connection for each address, whatever the working folder is by then.
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{Path(DEFAULT_DATABASE).absolute()}"


def without_password(uri: str) -> str:
    """The address as it may be shown."""
    place = urlparse(uri)
    if "@" not in place.netloc:
        return uri  # put together again, sqlite's would lack slashes
    return place._replace(netloc=place.netloc.rpartition("@")[2]).geturl()


def check_server(uri: str) -> None:
    """Asks an HTTP server once: MLflow itself would go on asking for minutes."""
    if urlparse(uri).scheme not in ("http", "https"):
        return
    try:
        urlopen(without_password(uri).rstrip("/") + "/health", timeout=5).close()
    except HTTPError as error:
        if error.code not in (401, 403):  # it answers, and MLflow has the name and the password
            raise TrackingError(f"the MLflow server {without_password(uri)} answers with {error}") from error
    except (URLError, TimeoutError) as error:
        raise TrackingError(
            f"the MLflow server {without_password(uri)} does not answer ({error}); start it, or unset "
            f"MLFLOW_TRACKING_URI to use {DEFAULT_DATABASE} in this folder"
        ) from error


class Tracker:
    """The MLflow run that belongs to one law and one run folder."""

    def __init__(self, config: RunConfig, *, folder: UPath, law: dict[str, Any], fingerprint: str) -> None:
        self.folder = absolute(folder)
        with FileLock(f"{DEFAULT_DATABASE}.lock"):  # the first initialisation races between processes
            self.uri, self.client = connect()
            self.experiment_id = self._experiment(config.experiment)
        tags, found = tags_of(config, law), find_run(self.client, self.experiment_id, self.folder, fingerprint)
        self.run_id = found or self._create(f"{tags['method']}: {folder.name}", law, fingerprint, config.dataset)
        for name, value in tags.items():  # those that are not of the law may have changed
            self.client.set_tag(self.run_id, name, value)
        self.client.update_run(self.run_id, status="RUNNING")

    def _experiment(self, name: str) -> str:
        found = self.client.get_experiment_by_name(name)
        if found is not None:
            return str(found.experiment_id)
        local = self.uri.startswith("sqlite:")
        location = Path(DEFAULT_ARTIFACTS).absolute().as_uri() if local else None
        return str(self.client.create_experiment(name, artifact_location=location))

    def _create(self, name: str, law: dict[str, Any], fingerprint: str, data: DatasetSpec) -> str:
        from mlflow.entities import Dataset, DatasetInput, Param

        tags = {"ndc.fingerprint": fingerprint, "ndc.folder": self.folder, NOTE: description(None, self.folder)}
        run = self.client.create_run(self.experiment_id, run_name=name, tags=tags)
        self.client.log_batch(run.info.run_id, params=[Param(key, value) for key, value in flatten(law).items()])
        dataset = Dataset(name=data.name, digest=law["dataset"]["sha256"][:32], source_type="ndc", source=data.name)
        self.client.log_inputs(run.info.run_id, [DatasetInput(dataset)])
        return str(run.info.run_id)

    @property
    def link(self) -> str:
        return charts_link(self.uri, self.experiment_id)

    @property
    def how_to_open(self) -> str | None:
        return serving_command(self.uri)

    def stopped(self, *, failed: bool) -> None:
        self.client.set_terminated(self.run_id, status="FAILED" if failed else "KILLED")

    def finish(self, report: Report, artifacts: list[UPath]) -> None:
        """Logs figures and curves once (a second time would zigzag), and ends the MLflow run."""
        run = self.client.get_run(self.run_id)
        if run.data.tags.get("ndc.reported") != "true":
            points = [(name, 0, value) for name, value in scalars(report.summary).items()]
            # All at the run's own time: if a driver is killed here, the next one logs the very same points.
            self._log_points([*points, *curve_points(report.levels)], milliseconds=run.info.start_time)
            self._log_files(artifacts)
            if TABLE not in {item.path for item in self.client.list_artifacts(self.run_id)}:  # it would be added to
                self.client.log_table(self.run_id, table_of(report.summary), TABLE)
            self.client.set_tag(self.run_id, NOTE, description(report.summary, self.folder))
            self.client.set_tag(self.run_id, "ndc.reported", "true")
        self.client.set_terminated(self.run_id)

    def attacked(self, report: Report, artifacts: list[UPath]) -> None:
        """Adds what attacks left standing to a run that is reported already."""
        points = [(name, 0, value) for name, value in attacked_scalars(report.summary).items()]
        self._log_points(points, milliseconds=round(1000 * time.time()))
        self._log_files(artifacts)
        self.client.set_tag(self.run_id, NOTE, description(report.summary, self.folder))
        self.client.set_terminated(self.run_id)

    def _log_points(self, points: list[Point], *, milliseconds: int) -> None:
        from mlflow.entities import Metric

        metrics = [Metric(name, value, milliseconds, step) for name, step, value in points]
        for start in range(0, len(metrics), POINTS_AT_ONCE):
            self.client.log_batch(self.run_id, metrics=metrics[start : start + POINTS_AT_ONCE])

    def _log_files(self, artifacts: list[UPath]) -> None:
        with tempfile.TemporaryDirectory() as scratch:  # a run folder may be in an object store
            for artifact in artifacts:
                copy = Path(scratch) / artifact.name
                copy.write_bytes(read(artifact))
                self.client.log_artifact(self.run_id, str(copy))


def connect() -> "tuple[str, MlflowClient]":
    """The tracking address and a client of it.

    Raises:
        TrackingError: a server does not answer.
    """
    uri = tracking_uri()
    check_server(uri)
    from mlflow import MlflowClient

    logging.getLogger("mlflow").setLevel(logging.WARNING)  # it tells of every table that it makes
    return uri, MlflowClient(tracking_uri=uri)


def find_run(client: "MlflowClient", experiment_id: str, folder: str, fingerprint: str) -> str | None:
    for run in client.search_runs([experiment_id], f"tags.`ndc.fingerprint` = '{fingerprint}'"):
        if _resolved(run.data.tags.get("ndc.folder", "")) == _resolved(folder):
            return str(run.info.run_id)
    return None


def _resolved(folder: str) -> str:
    """One name for a folder that can be reached by several paths; a URI is its own."""
    return folder if "://" in folder else os.path.realpath(folder)


def link_of_run(folder: UPath) -> tuple[str, str | None]:
    """Where the experiment of a logged run opens on its charts, and the command that serves it if that is a database
    of this machine. Nothing is created.

    Raises:
        TrackingError: this run was never logged at this tracking address.
        ValueError: the folder holds no run.
    """
    fingerprint = RunStore(folder).manifest()["fingerprint"]
    experiment = load_config(str(folder / "run.toml")).experiment
    uri = tracking_uri()
    if not uri.startswith("sqlite:") or Path(urlparse(uri).path[1:]).is_file():  # MLflow would make the database
        uri, client = connect()
        found = client.get_experiment_by_name(experiment)
        if found is not None and find_run(client, found.experiment_id, absolute(folder), fingerprint):
            return charts_link(uri, found.experiment_id), serving_command(uri)
    raise TrackingError(
        f"{folder} was never logged to the experiment {experiment!r} at {without_password(uri)}; set "
        f"MLFLOW_TRACKING_URI to where it was, or log it there: `ndc certify {folder}`"
    )


def charts_link(uri: str, experiment_id: str) -> str:
    """Where the experiment opens on its charts."""
    served = urlparse(uri).scheme in ("http", "https")
    place = without_password(uri).rstrip("/") if served else "http://127.0.0.1:5000"
    return f"{place}/#/experiments/{experiment_id}/runs?{CHARTS}"


def serving_command(uri: str) -> str | None:
    """The command that serves a local database; None where a server is running."""
    return f"mlflow ui --backend-store-uri {shlex.quote(uri)}" if uri.startswith("sqlite:") else None
