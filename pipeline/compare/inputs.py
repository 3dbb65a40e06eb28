"""What a comparison is given: runs' folders and logs of other tools, and the certificates that they hold."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import PurePosixPath

from upath import UPath

from pipeline.certificates.attack_results import empirical_accuracy
from pipeline.certificates.reduce import LARGEST, CertifiedImage, by_level, certify_images
from pipeline.certificates.stopping import IncompleteRunError
from pipeline.compare.method_tables import MethodAtLevel, Outcome
from pipeline.compare.tsv_logs import Log, LogError, LogRow, read_log
from pipeline.data.datasets import ImageRecord, Listing
from pipeline.declaration.config import DenoiseConfig, RunConfig
from pipeline.declaration.declaration import Declaration
from pipeline.declaration.toml_files import load_config
from pipeline.locations import exists, location
from pipeline.report.curves import stopping_radii
from pipeline.store.evidence import EvidenceTable
from pipeline.store.run_store import RunStore, StoreError


@dataclass(frozen=True)
class Argument:
    """`NAME@LEVEL=PLACE`; only the place is required."""

    where: UPath
    name: str | None
    level: float | None


def parse_argument(text: str) -> Argument:
    """What is before the first `=` is a name, unless there is a slash in it."""
    before, separator, place = text.partition("=")
    if not separator or "/" in before:
        before, place = "", text
    name, _, level = before.rpartition("@")
    try:
        sigma_pixel = float(level) if "@" in before else None
    except ValueError:
        sigma_pixel = None
    if sigma_pixel is None or not math.isfinite(sigma_pixel):
        name, sigma_pixel = before, None
    return Argument(location(place), name or None, sigma_pixel)


@dataclass(frozen=True)
class Seen:
    """What a run or log says of an image before any method looks at it."""

    label: int
    sha256: str | None = None  # of the pixels, as certified; a log does not tell
    place: str = ""


@dataclass(frozen=True)
class RunInput:
    """A run whose declaration and images are read, but not yet its evidence."""

    argument: Argument
    declaration: Declaration
    fingerprint: str
    num_classes: int
    config: RunConfig
    records: list[ImageRecord]

    @property
    def where(self) -> UPath:
        return self.argument.where

    @property
    def default_name(self) -> str:
        return self.declaration.method_name

    @property
    def images(self) -> dict[str, Seen]:
        return {record.image_id: Seen(record.label, record.sha256) for record in self.records}

    def places(self, *, in_data: bool) -> dict[int, str]:
        """Image ids by their place in the data set, or else among the run's images.

        Raises:
            ValueError: the run does not know the places in the data set.
        """
        data = self.config.dataset
        if in_data and (data.ids is not None or self.declaration.corrupt_images):
            chosen = "chose its images by id" if data.ids is not None else "left out corrupt images"
            raise ValueError(
                f"{self.where} {chosen}, so that their places in the data are unknown and a log's idx tells nothing; "
                "compare the log with a run that took its images by --offset, --every and --limit"
            )
        first, step = (data.offset, data.every) if in_data else (0, 1)
        return {first + step * place: record.image_id for place, record in enumerate(self.records)}

    def entries(self, method: str, *, alpha: float | None) -> list[MethodAtLevel]:
        """Certificates of each noise level, from the evidence; alpha None is the declared one.

        Raises:
            IncompleteRunError: votes are missing; names the image, and says how to go on.
        """
        store = RunStore(self.where)
        evidence = store.all_evidence(fingerprint=self.fingerprint)
        try:
            certified = certify_images(
                evidence,
                store.images(),
                declaration=self.declaration,
                num_classes=self.num_classes,
                alpha=alpha,
                resume_with=f"ndc certify {self.where}",
            )
        except IncompleteRunError as error:
            raise IncompleteRunError(f"{self.where} cannot be compared: {error}") from error
        empirical = empirical_accuracy(self.where, fingerprint=self.declaration.fingerprint)
        levels = by_level(certified, maximum_over_sigmas=self.declaration.maximum_over_sigmas)
        stops = stopping_radii(self.declaration)
        return [
            MethodAtLevel(
                method,
                level,
                str(self.where),
                {item.image_id: outcome_of(item, None if level == LARGEST else evidence) for item in items},
                scope=items[0].certificate.scope,
                network=self.network,
                devices=tuple(sorted({record.name or record.kind for record, _ in evidence.devices})),
                attacked=empirical.get(level),
                stopped_at=stops.get(level),
            )
            for level, items in levels.items()
        ]

    @property
    def network(self) -> str:
        """The folders of the checkpoints that are evaluated, and the beginnings of their digests."""
        digests = {self.config.model: self.declaration.digest("model_sha256")}
        if isinstance(self.config.classifier, DenoiseConfig):
            digests[self.config.classifier.network] = self.declaration.digest("network_sha256")
        return " + ".join(f"{PurePosixPath(where).name} ({digest[:8]})" for where, digest in digests.items())


def outcome_of(item: CertifiedImage, evidence: EvidenceTable | None) -> Outcome:
    """Classifying once costs as much as a selection vote: an estimation vote may end when its candidate has lost."""
    certificate = item.certificate
    outcome = Outcome(
        label=item.label,
        predicted=certificate.predicted,
        radius=certificate.radius,
        seconds=item.seconds,
        votes=certificate.votes,
        evaluations=item.evaluations,
    )
    if evidence is None:
        return outcome
    evaluations, seconds = evidence.cost_of_a_selection_draw((certificate.sigma_pixel, item.image_id))
    return replace(outcome, evaluations_to_classify=evaluations, seconds_to_classify=seconds)


@dataclass(frozen=True)
class LogInput:
    """A log of one noise level, or, if this program wrote it, of several. Its images have no ids, only places."""

    argument: Argument
    log: Log
    levels: Mapping[str, list[LogRow]]

    @property
    def where(self) -> UPath:
        return self.argument.where

    @property
    def default_name(self) -> str:
        return self.where.stem

    @cached_property
    def labels(self) -> dict[int, int]:
        return {row.index: row.label for rows in self.levels.values() for row in rows}

    def images(self, id_of: Mapping[int, str]) -> dict[str, Seen]:
        return {id_of[index]: Seen(label, place=f" (idx {index})") for index, label in self.labels.items()}

    def entries(self, method: str, id_of: Mapping[int, str]) -> list[MethodAtLevel]:
        return [
            MethodAtLevel(
                method,
                level,
                str(self.where),
                {id_of[row.index]: Outcome(row.label, row.predicted, row.radius, row.seconds) for row in rows},
            )
            for level, rows in self.levels.items()
        ]


def open_input(argument: Argument, *, alpha: float | None) -> RunInput | LogInput:
    """A folder with a run, or a file with a log.

    Raises:
        ValueError: it is neither; a log of unknown noise level; a run that cannot be certified at this alpha, or whose
            list of images was changed.
    """
    where = argument.where
    if exists(where / "run.json"):
        return open_run(argument, alpha=alpha)
    if where.is_dir() or not exists(where):
        raise StoreError(
            f"{where} is neither a run's folder (no run.json) nor a log; give runs and logs as RUN, NAME=RUN or "
            "NAME@SIGMA=LOG"
        )
    return open_log(argument)


def open_run(argument: Argument, *, alpha: float | None) -> RunInput:
    where = argument.where
    if argument.level is not None:
        raise StoreError(f"{where} is a run, and knows its noise levels; leave out @{argument.level:g}")
    store = RunStore(where)
    manifest, records = store.manifest(), store.records()
    declaration = Declaration.from_json(manifest["law"])
    if Listing(records, declaration.image_shape).digest != declaration.images_sha256:
        raise StoreError(f"{where}/images.parquet is not what the run was declared with; restore it")
    config = load_config(f"{where}/run.toml", [] if alpha is None else [f"certificate.alpha={alpha}"])
    return RunInput(argument, declaration, manifest["fingerprint"], manifest["plan"]["classes"], config, records)


def open_log(argument: Argument) -> LogInput:
    where, log = argument.where, read_log(argument.where)
    if log.own and argument.level is not None:
        raise LogError(f"{where} has a column sigma_pixel; leave out @{argument.level:g}")
    if not log.own and argument.level is None:
        name = argument.name or where.stem
        raise LogError(f"{where} does not say its noise level; add it, as {name}@0.25={where}")
    levels = {f"{(argument.level if level is None else level):g}": rows for level, rows in log.levels.items()}
    opened = LogInput(argument, log, levels)
    for level, rows in levels.items():
        for row in rows:
            if row.label != opened.labels[row.index]:
                raise LogError(f"{where}: idx {row.index} has two labels, {row.label} and {opened.labels[row.index]}")
        if missing := opened.labels.keys() - {row.index for row in rows}:
            raise LogError(
                f"{where}: sigma_pixel {level} has no row of idx {min(missing)}, other levels have; finish it"
            )
    return opened
