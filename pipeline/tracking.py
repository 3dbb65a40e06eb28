"""MLflow, spoken to by the driver only: one flat run for each run folder, continued on resume."""

import logging
import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import urlparse
from urllib.request import urlopen

from filelock import FileLock
from upath import UPath

from pipeline.datasets import DatasetSpec
from pipeline.locations import absolute, read
from pipeline.reduce import CertifiedImage
from pipeline.report import Report, Summary, accuracy_at

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")

DEFAULT_DATABASE = "mlflow.db"
DEFAULT_ARTIFACTS = "mlartifacts"
CURVE_STEP = 0.01
CHARTS = "workflowType=machine_learning&compareRunsMode=CHART"


class TrackingError(ValueError):
    """The tracking server cannot be used: what, where, remedy."""


def tracking_uri() -> str:
    # Absolute: MLflow keeps one connection for each address, whatever the working folder is by then.
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{Path(DEFAULT_DATABASE).absolute()}"


def without_password(uri: str) -> str:
    """The address as it may be shown."""
    place = urlparse(uri)
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

    def __init__(
        self, *, experiment: str, folder: UPath, law: dict[str, Any], fingerprint: str, data: DatasetSpec
    ) -> None:
        self.uri = tracking_uri()
        check_server(self.uri)
        from mlflow import MlflowClient

        logging.getLogger("mlflow").setLevel(logging.WARNING)  # it tells of every table that it makes
        with FileLock(f"{DEFAULT_DATABASE}.lock"):  # the first initialisation races between processes
            self.client = MlflowClient(tracking_uri=self.uri)
            self.experiment_id = self._experiment(experiment)
        self.run_id = self._find(folder, fingerprint) or self._create(folder, law, fingerprint, data)
        self.client.update_run(self.run_id, status="RUNNING")

    def _experiment(self, name: str) -> str:
        found = self.client.get_experiment_by_name(name)
        if found is not None:
            return str(found.experiment_id)
        local = self.uri.startswith("sqlite:")
        location = Path(DEFAULT_ARTIFACTS).absolute().as_uri() if local else None
        return str(self.client.create_experiment(name, artifact_location=location))

    def _find(self, folder: UPath, fingerprint: str) -> str | None:
        query = f"tags.`ndc.fingerprint` = '{fingerprint}'"
        for run in self.client.search_runs([self.experiment_id], query):
            if run.data.tags.get("ndc.folder") == absolute(folder):
                return str(run.info.run_id)
        return None

    def _create(self, folder: UPath, law: dict[str, Any], fingerprint: str, data: DatasetSpec) -> str:
        from mlflow.entities import Dataset, DatasetInput

        tags = {"ndc.fingerprint": fingerprint, "ndc.folder": absolute(folder)}
        run = self.client.create_run(self.experiment_id, run_name=folder.name, tags=tags)
        for key, value in flatten(law).items():
            self.client.log_param(run.info.run_id, key, value)
        dataset = Dataset(name=data.name, digest=law["dataset"]["sha256"][:32], source_type="ndc", source=data.name)
        self.client.log_inputs(run.info.run_id, [DatasetInput(dataset)])
        return str(run.info.run_id)

    @property
    def link(self) -> str:
        """Where the experiment opens on its charts."""
        page = f"#/experiments/{self.experiment_id}/runs?{CHARTS}"
        if urlparse(self.uri).scheme in ("http", "https"):
            return f"{without_password(self.uri).rstrip('/')}/{page}"
        return f"http://127.0.0.1:5000/{page}"

    @property
    def how_to_open(self) -> str | None:
        """The command that serves a local database; None where a server is running."""
        return f"mlflow ui --backend-store-uri {self.uri}" if self.uri.startswith("sqlite:") else None

    def stopped(self, *, failed: bool) -> None:
        self.client.set_terminated(self.run_id, status="FAILED" if failed else "KILLED")

    def finish(self, report: Report, artifacts: list[UPath]) -> None:
        """Logs figures and curve once (a second time would zigzag), and ends the MLflow run."""
        if self.client.get_run(self.run_id).data.tags.get("ndc.reported") != "true":
            for name, value in scalars(report.summary).items():
                self.client.log_metric(self.run_id, name, value)
            for name, step, value in curve_points(report.levels):
                self.client.log_metric(self.run_id, name, value, step=step)
            self._log(artifacts)
            self.client.set_tag(self.run_id, "ndc.reported", "true")
        self.client.set_terminated(self.run_id)

    def attacked(self, report: Report, artifacts: list[UPath]) -> None:
        """Adds what attacks left standing to a run that is reported already."""
        for name, value in scalars(report.summary).items():
            if name.startswith("attacked_"):
                self.client.log_metric(self.run_id, name, value)
        self._log(artifacts)
        self.client.set_terminated(self.run_id)

    def _log(self, artifacts: list[UPath]) -> None:
        with tempfile.TemporaryDirectory() as scratch:  # a run folder may be in an object store
            for artifact in artifacts:
                copy = Path(scratch) / artifact.name
                copy.write_bytes(read(artifact))
                self.client.log_artifact(self.run_id, str(copy))


def flatten(values: dict[str, Any], prefix: str = "") -> dict[str, str]:
    flat: dict[str, str] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = str(value)
    return flat


def scalars(summary: Summary) -> dict[str, float]:
    """One number each; a name's part before the slash is its section among MLflow's charts."""
    found: dict[str, float] = {}
    for level in summary.levels:
        sigma = metric_name(level.name)
        found |= {f"cert_{sigma}/r_{r:g}": value for r, value in level.certified_accuracy.items()}
        if level.attacked:
            found |= {f"attacked_{sigma}/r_{r:g}": value for r, value in level.attacked.accuracy.items()}
        found[f"summary/average_radius_{sigma}"] = level.average_radius
        found[f"summary/abstained_{sigma}"] = level.abstained
        found[f"cost/votes_per_image_{sigma}"] = level.votes_per_image
        found[f"cost/evaluations_per_image_{sigma}"] = level.evaluations_per_image
        found[f"cost/seconds_per_image_{sigma}"] = level.seconds_per_image
    return found


def metric_name(level: str) -> str:
    return f"sigma_{level}" if level[0].isdigit() else level.replace(" ", "_")


def curve_points(levels: Mapping[str, Sequence[CertifiedImage]]) -> list[tuple[str, int, float]]:
    """Certified accuracy as a metric over steps: MLflow's steps are integers, so step = 1000 * radius."""
    points = []
    for name, items in levels.items():
        largest = max(item.certificate.radius for item in items)
        for index in range(int(largest / CURVE_STEP) + 2):
            radius = index * CURVE_STEP
            points.append((f"curve/certified_{metric_name(name)}", round(1000 * radius), accuracy_at(items, radius)))
    return points
