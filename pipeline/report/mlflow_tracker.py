"""MLflow, spoken to by the driver only: one flat run for each run folder, continued on resume."""

import json
import logging
import os
import shlex
import tempfile
import time
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlparse

from filelock import FileLock
from upath import UPath

from pipeline.data.datasets import DatasetSpec
from pipeline.declaration.config import RunConfig
from pipeline.declaration.declaration import Declaration
from pipeline.declaration.toml_files import load_config
from pipeline.locations import absolute, read
from pipeline.report.mlflow_address import (
    TrackingError,
    database_of,
    explained,
    impatient,
    refuse_deleted,
    refuse_unusable,
    tracking_uri,
    without_password,
)
from pipeline.report.mlflow_values import (
    Point,
    attacked_scalars,
    caller_tags,
    curve_points,
    description,
    flatten,
    scalars,
    table_of,
    tags_of,
)
from pipeline.report.report import Report
from pipeline.store.run_store import RunStore

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Experiment

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "3")  # a quarter of a minute; MLflow's 7 take four minutes
os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")  # `ndc` prints its own

DEFAULT_ARTIFACTS = "mlartifacts"
TRAININGS = "ndc-training"
NOTE = "mlflow.note.content"
TABLE = "certified.json"
LEFT_OUT = "ndc.left_out"  # files that are larger than an artifact may be
POINTS_AT_ONCE = 1000  # as MLflow allows
MOST_ARTIFACT_BYTES = 20_000_000  # of one file
CHARTS = "workflowType=machine_learning&compareRunsMode=CHART"


class Tracker:
    """The MLflow run of one declaration and one run folder: a run that grows has one for each declaration."""

    def __init__(
        self, config: RunConfig, *, folder: UPath, declaration: Declaration, tags: Mapping[str, str] | None = None
    ) -> None:
        """`tags` are added to those of configuration and declaration."""
        self.folder = absolute(folder)
        self.uri, self.client, self.experiment_id = open_experiment(config.experiment)
        own = tags_of(config, declaration)
        run_id = find_run(self.client, self.experiment_id, self.folder, declaration.fingerprint)
        self.run_id = run_id or self._create(f"{own['method']}: {folder.name}", declaration, config.dataset)
        # Tags that are not of the declaration may have changed.
        for name, value in {**own, **caller_tags(), **(tags or {})}.items():
            self.client.set_tag(self.run_id, name, value)
        self.client.update_run(self.run_id, status="RUNNING")

    def progress(self, metrics: Mapping[str, float], *, step: int) -> None:
        """Logs how far the votes are, and what they prove so far."""
        self._log_points(
            [(name, step, value) for name, value in metrics.items()], milliseconds=round(1000 * time.time())
        )

    def _create(self, name: str, declaration: Declaration, data: DatasetSpec) -> str:
        from mlflow.entities import Dataset, DatasetInput, InputTag, Param

        identity = {"ndc.fingerprint": declaration.fingerprint, "ndc.folder": self.folder}
        tags = {**identity, NOTE: description(None, self.folder)}
        run = self.client.create_run(self.experiment_id, run_name=name, tags=tags)
        params = [Param(key, value) for key, value in flatten(declaration.to_json()).items()]
        self.client.log_batch(run.info.run_id, params=params)
        images = json.dumps({"num_rows": declaration.recorded["dataset"].get("images")})
        digest = declaration.images_sha256[:32]
        dataset = Dataset(name=data.name, digest=digest, source_type="ndc", source=data.name, profile=images)
        context = InputTag("mlflow.data.context", "certified")
        self.client.log_inputs(run.info.run_id, [DatasetInput(dataset, tags=[context])])
        return str(run.info.run_id)

    @property
    def link(self) -> str:
        return charts_link(self.uri, self.experiment_id)

    @property
    def how_to_open(self) -> str | None:
        return serving_command(self.uri)

    def stopped(self, *, failed: bool) -> None:
        """Ends the MLflow run of a run that is not finished; the next driver goes on with it."""
        self.client.set_terminated(self.run_id, status="FAILED" if failed else "KILLED")

    def finish(self, report: Report, artifacts: list[UPath]) -> None:
        """Logs figures and curves once (a second time would zigzag), and ends the MLflow run. A run that was logged
        under an earlier program's names also gets those of this one."""
        run = self.client.get_run(self.run_id)
        reported = run.data.tags.get("ndc.reported") == "true"
        points = [(name, 0, value) for name, value in scalars(report.summary).items()]
        points += curve_points(report.levels)
        if reported:
            points = [point for point in points if point[0] not in run.data.metrics]
        # All at the run's own time: if a driver is killed here, the next one logs the very same points.
        self._log_points(points, milliseconds=run.info.start_time)
        if not reported:
            self._log_files(artifacts)
            if TABLE not in {item.path for item in self.client.list_artifacts(self.run_id)}:  # a second would be added
                self.client.log_table(self.run_id, table_of(report.summary), TABLE)
            self._describe(report)
            self.client.set_tag(self.run_id, "ndc.reported", "true")
        self.client.set_terminated(self.run_id)

    def _describe(self, report: Report) -> None:
        left_out = self.client.get_run(self.run_id).data.tags.get(LEFT_OUT, "")
        text = description(report.summary, self.folder, facts=report.provenance.facts, left_out=left_out)
        self.client.set_tag(self.run_id, NOTE, text)

    def attacked(self, report: Report, artifacts: list[UPath]) -> None:
        """Adds the accuracy under attack to a run that is reported already."""
        points = [(name, 0, value) for name, value in attacked_scalars(report.summary).items()]
        self._log_points(points, milliseconds=round(1000 * time.time()))
        self._log_files(artifacts)
        self._describe(report)
        self.client.set_terminated(self.run_id)

    def _log_points(self, points: list[Point], *, milliseconds: int) -> None:
        from mlflow.entities import Metric

        metrics = [Metric(name, value, milliseconds, step) for name, step, value in points]
        for start in range(0, len(metrics), POINTS_AT_ONCE):
            self.client.log_batch(self.run_id, metrics=metrics[start : start + POINTS_AT_ONCE])

    def _log_files(self, artifacts: list[UPath]) -> None:
        left_out = []
        with tempfile.TemporaryDirectory() as scratch:  # a run folder may be in an object store
            for artifact in artifacts:
                content, copy = read(artifact), Path(scratch) / artifact.name
                if len(content) > MOST_ARTIFACT_BYTES:
                    left_out.append(f"{artifact.name} ({len(content) / 1e6:,.0f} MB)")
                    continue
                copy.write_bytes(content)
                self.client.log_artifact(self.run_id, str(copy))
        if left_out:
            self.client.set_tag(self.run_id, LEFT_OUT, ", ".join(left_out))


class TrainingRun:
    """The MLflow run of one training, which goes on when the training does."""

    def __init__(self, name: str, *, folder: UPath, fingerprint: str, parameters: dict[str, Any]) -> None:
        _, self.client, experiment_id = open_experiment(TRAININGS)
        where = absolute(folder)
        existing = find_run(self.client, experiment_id, where, fingerprint)
        self.run_id = existing or self._created(experiment_id, name, where, fingerprint, parameters)
        self.client.update_run(self.run_id, status="RUNNING")

    def _created(self, experiment_id: str, name: str, folder: str, fingerprint: str, parameters: dict[str, Any]) -> str:
        from mlflow.entities import Param

        tags = {"ndc.fingerprint": fingerprint, "ndc.folder": folder, **caller_tags()}
        run = self.client.create_run(experiment_id, run_name=name, tags=tags)
        params = [Param(key, value) for key, value in flatten(parameters).items()]
        self.client.log_batch(run.info.run_id, params=params)
        return str(run.info.run_id)

    def points(self, metrics: Mapping[str, float], *, step: int) -> None:
        for name, value in metrics.items():
            self.client.log_metric(self.run_id, name, value, step=step)

    def ended(self, status: str) -> None:
        self.client.set_terminated(self.run_id, status=status)


def open_experiment(name: str) -> "tuple[str, MlflowClient, str]":
    """The tracking address, a client of it, and the id of the experiment, which is made if there is none.

    Raises:
        TrackingError: as `connect`.
    """
    database = database_of(tracking_uri())
    with FileLock(f"{database}.lock") if database else nullcontext():  # the first initialisation races
        uri, client, experiment = connect(name)
        if experiment:
            return uri, client, str(experiment.experiment_id)
        location = Path(DEFAULT_ARTIFACTS).absolute().as_uri() if uri.startswith("sqlite:") else None
        return uri, client, str(client.create_experiment(name, artifact_location=location))


def connect(experiment: str) -> "tuple[str, MlflowClient, Experiment | None]":
    """The tracking address, a client of it, and the experiment, if there is one of that name.

    Raises:
        TrackingError: the address cannot be used, or the experiment was deleted.
    """
    uri = tracking_uri()
    refuse_unusable(uri)
    from mlflow import MlflowClient

    logging.getLogger("mlflow").setLevel(logging.WARNING)  # it logs every table that it makes
    try:
        with impatient():
            client = MlflowClient(tracking_uri=uri)
            existing = client.get_experiment_by_name(experiment)
    except Exception as error:  # of many kinds, with many lines
        raise explained(error, uri) from error
    if existing is not None and existing.lifecycle_stage == "deleted":
        raise refuse_deleted(experiment, existing.experiment_id, uri)
    return uri, client, existing


def check_tracking(config: RunConfig) -> None:
    """Whether a run can be tracked as it asks to be; creates nothing.

    Raises:
        TrackingError: it cannot, with the remedy.
    """
    if config.tracking == "none":
        return
    database = database_of(tracking_uri())
    if database and not database.exists():  # MLflow would make it
        refuse_unusable(tracking_uri())
    else:
        connect(config.experiment)


def find_run(client: "MlflowClient", experiment_id: str, folder: str, fingerprint: str) -> str | None:
    for run in client.search_runs([experiment_id], f"tags.`ndc.fingerprint` = '{fingerprint}'"):
        if _resolved(run.data.tags.get("ndc.folder", "")) == _resolved(folder):
            return str(run.info.run_id)
    return None


def _resolved(folder: str) -> str:
    """One name for a folder that can be reached by several paths; a URI stays as it is."""
    return folder if "://" in folder else os.path.realpath(folder)


def link_of_run(folder: UPath) -> tuple[str, str | None]:
    """Where the experiment of a logged run opens on its charts, and the command that serves it if that is a database
    of this machine. Nothing is created.

    Raises:
        TrackingError: this run was never logged at this tracking address.
        ValueError: the folder holds no run.
    """
    fingerprint = RunStore(folder).declaration().fingerprint
    experiment = load_config(str(folder / "run.toml")).experiment
    uri = tracking_uri()
    database = database_of(uri)
    if not database or database.is_file():  # MLflow would make the database
        uri, client, existing = connect(experiment)
        if existing is not None and find_run(client, existing.experiment_id, absolute(folder), fingerprint):
            return charts_link(uri, existing.experiment_id), serving_command(uri)
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
