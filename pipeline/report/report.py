"""What a run proved, as numbers, tables, pictures and one HTML page."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from upath import UPath

from ndc_core.radius_curves import interval_of
from pipeline.certificates.attack_results import Attacked, empirical_accuracy
from pipeline.certificates.files import certificate_rows, certificate_tsv, cut_text, write_certificates
from pipeline.certificates.reduce import CertifiedImage, by_level, certify_complete_images, certify_images
from pipeline.certificates.stopping import IncompleteRunError
from pipeline.data.classes import listed
from pipeline.declaration.declaration import Declaration, refuse_undeclared_radii
from pipeline.declaration.order import are_a_sample
from pipeline.declaration.toml_files import load_config
from pipeline.locations import publish
from pipeline.progress import counting
from pipeline.report.chance import chance_warning
from pipeline.report.curves import curve_of, stopping_radii
from pipeline.report.figures import certified_accuracy_figure
from pipeline.report.gallery import MOST_IMAGES
from pipeline.report.pages import html_page
from pipeline.report.provenance import NOTHING_KNOWN, Provenance, provenance_of
from pipeline.report.tables import Table, escape_markdown, latex, latex_comments, markdown, percent
from pipeline.store.run_store import RunStore, StoredImage

CLASSES_LISTED = 1000

Empirical = Mapping[str, Attacked]  # by level


@dataclass(frozen=True)
class LevelSummary:
    """One noise level: shares are of all images; an abstention is wrong at every radius (rule S6)."""

    name: str
    images: int
    certified_accuracy: dict[float, float]
    attacked: Attacked | None
    average_radius: float
    abstained: int
    wrong: int
    votes_per_image: float
    evaluations_per_image: float
    seconds_per_image: float


@dataclass(frozen=True)
class Summary:
    """All noise levels of a run. `best_level` is chosen per radius on this very data set, as papers report it:
    no single smoothed classifier reaches it."""

    alpha: float
    method: str
    scope: str
    radii: tuple[float, ...]
    levels: tuple[LevelSummary, ...]
    best_level: dict[float, str]
    warnings: tuple[str, ...] = ()
    missing: int = 0  # images that are not complete, and in none of these numbers

    @property
    def so_far(self) -> str:
        """For a partial summary, how many images it is about; empty for a whole one."""
        images = self.levels[0].images
        return f"{images:,} of {images + self.missing:,} images" if self.missing else ""

    @property
    def best_accuracy(self) -> dict[float, float]:
        return {r: max(level.certified_accuracy[r] for level in self.levels) for r in self.radii}


def accuracy_at(items: Sequence[CertifiedImage], radius: float) -> float:
    return sum(item.holds(radius) for item in items) / len(items)


def summarise(
    levels: Mapping[str, Sequence[CertifiedImage]],
    *,
    alpha: float,
    radii: Sequence[float],
    empirical: Empirical | None = None,
    class_names: Sequence[str] | None = None,
    missing: int = 0,
    sample: bool = False,
) -> Summary:
    """Certified accuracy at the radii, average certified radius (a wrong image counts 0), abstentions, cost."""
    summaries = []
    for name, items in levels.items():
        abstained = sum(item.certificate.predicted is None for item in items)
        summaries.append(
            LevelSummary(
                name=name,
                images=len(items),
                certified_accuracy={radius: accuracy_at(items, radius) for radius in radii},
                attacked=(empirical or {}).get(name),
                average_radius=sum(item.certificate.radius for item in items if item.holds(0.0)) / len(items),
                abstained=abstained,
                wrong=len(items) - abstained - sum(item.holds(0.0) for item in items),
                votes_per_image=sum(item.certificate.votes for item in items) / len(items),
                evaluations_per_image=sum(item.evaluations for item in items) / len(items),
                seconds_per_image=sum(item.seconds for item in items) / len(items),
            )
        )
    best = {r: max(summaries, key=lambda level: level.certified_accuracy[r]).name for r in radii}
    first = next(iter(levels.values()))[0]
    guesses = {name: [(item.label, item.most_likely) for item in items] for name, items in levels.items()}
    warning = chance_warning(guesses, classes=len(first.counts), names=class_names)
    note = partial_note(summaries[0].images, missing, sample=sample) if missing else ""
    warnings = tuple(line for line in (note, warning) if line)
    terms = first.certificate
    return Summary(alpha, terms.method, terms.scope, tuple(radii), tuple(summaries), best, warnings, missing)


def partial_note(images: int, missing: int, *, sample: bool) -> str:
    low, high = interval_of(images // 2, images)
    about = (
        "are a random sample of all, the first of an order that was drawn from the seed: the 95 % interval of a share "
        f"is {100 * (high - low):.1f} points wide at most"
        if sample
        else "are no sample of all: the run takes images in their order, and those that need few votes are done first"
    )
    return (
        f"Partial: {images:,} of {images + missing:,} images are complete, {missing:,} are missing. Each certificate "
        f"is the one that the image will keep. Shares and means are of the complete images alone, which {about}."
    )


def accuracy_table(summary: Summary) -> Table:
    """Certified accuracy, with what attacks left below each level that was attacked."""
    costs = ["average radius", "abstained", "votes per image", "evaluations per image"]
    header, rows = (
        [f"sigma{summary.so_far and f', {summary.so_far}'}", *(f"r = {r:g}" for r in summary.radii), *costs],
        [],
    )
    for level in summary.levels:
        rows.append(
            [
                level.name,
                *(percent(level.certified_accuracy[r]) for r in summary.radii),
                cut_text(level.average_radius, 3 if summary.method != "lipschitz" else 5),
                f"{level.abstained} of {level.images}",
                f"{level.votes_per_image:,.0f}",
                f"{level.evaluations_per_image:,.0f}",
            ]
        )
        if level.attacked:
            left = [percent(level.attacked.accuracy.get(r), up=True) for r in summary.radii]
            images = "" if level.attacked.images == level.images else f" (first {level.attacked.images} images)"
            rows.append([f"{level.name}, {level.attacked.label}{images}", *left, *[""] * len(costs)])
    if len(summary.levels) > 1:
        best = [percent(summary.best_accuracy[r]) for r in summary.radii]
        rows.append(["best per radius, chosen on this data", *best, *[""] * len(costs)])
    return Table("Certified accuracy", header, rows)


def summary_json(summary: Summary) -> dict[str, Any]:
    """The summary for scripts; radii become strings, as JSON's keys are."""
    whole = {key: value for key, value in asdict(summary).items() if key != "missing" or summary.missing}
    return {**whole, "best_accuracy": summary.best_accuracy}


@dataclass(frozen=True)
class Report:
    summary: Summary
    levels: dict[str, list[CertifiedImage]]
    folder: UPath
    provenance: Provenance = NOTHING_KNOWN

    @property
    def page(self) -> UPath:
        return self.folder / "report.html"


def write_report(
    folder: UPath,
    certified: Sequence[CertifiedImage],
    images: Sequence[StoredImage],
    *,
    declaration: Declaration,
    alpha: float,
    radii: Sequence[float],
    title: str,
    evidence_digest: str,
    empirical: Empirical | None = None,
    provenance: Provenance = NOTHING_KNOWN,
    sample: bool = False,
) -> Report:
    """Writes certificates, tables, pictures and the page into a folder."""
    levels = by_level(certified, maximum_over_sigmas=declaration.maximum_over_sigmas)
    missing = len(images) - len({item.image_id for item in certified})
    names = provenance.class_names
    summary = summarise(
        levels, alpha=alpha, radii=radii, empirical=empirical, class_names=names, missing=missing, sample=sample
    )
    write_certificates(folder / "certificates.parquet", certificate_rows(certified), evidence_digest=evidence_digest)
    table = accuracy_table(summary)
    stops, attacked = stopping_radii(declaration), empirical or {}
    curves = [
        curve_of(summary.method, name, items, attacked.get(name), stopped_at=stops.get(name))
        for name, items in levels.items()
    ]
    figure = certified_accuracy_figure(curves, note=summary.so_far)
    classes = listed(names, most=CLASSES_LISTED) if names else ""
    notes = [*summary.warnings, *([f"Classes: {classes}"] if classes else [])]
    texts = {
        "certificates.tsv": certificate_tsv(
            certified, [image.image_id for image in images], note=f"partial: {summary.so_far}" if missing else ""
        ),
        "table.md": markdown(table) + "".join(f"\n{escape_markdown(note)}\n" for note in notes),
        "table.tex": latex_comments(notes) + latex(table),
        "summary.json": json.dumps(summary_json(summary), indent=2) + "\n",
        "curve.svg": figure.svg,
        "report.html": html_page(
            title=f"{title} ({summary.so_far})" if missing else title,
            table=table,
            figure=figure.svg,
            curves=curves,
            alpha=alpha,
            scope=summary.scope,
            certified=certified,
            levels=levels,
            radii=radii,
            images=images,
            declaration=declaration,
            warnings=summary.warnings,
            classes=classes,
            provenance=provenance,
        ),
    }
    for name, text in texts.items():
        publish(folder / name, text.encode())
    publish(folder / "curve.png", figure.png)
    return Report(summary, levels, folder, provenance)


def summary_so_far(store: RunStore, *, radii: Sequence[float]) -> Summary | None:
    """What the complete images of a run prove, without attacks; None as long as no image is complete."""
    manifest, images = store.manifest(), store.images()
    declaration = Declaration.from_json(manifest["law"])
    evidence = store.all_evidence(fingerprint=manifest["fingerprint"])
    certified = certify_complete_images(
        evidence,
        images,
        declaration=declaration,
        num_classes=manifest["plan"]["classes"],
        alpha=None,
        resume_with=f"ndc certify {store.folder}",
    )
    if not certified:
        return None
    levels = by_level(certified, maximum_over_sigmas=declaration.maximum_over_sigmas)
    complete = {item.image_id for item in certified}
    sample = are_a_sample(complete, evidence.images, images, store.order(), seed=declaration.seed)
    return summarise(levels, alpha=declaration.alpha, radii=radii, missing=len(images) - len(complete), sample=sample)


def reduce_and_report(
    store: RunStore, *, alpha: float | None, radii: Sequence[float], folder: UPath, partial: bool = False
) -> Report:
    """Derives certificates and report from a run's evidence alone; another alpha needs no model and no votes.

    A `partial` report is of the images that are complete, and says how many are missing.

    Raises:
        ValueError: the run is incomplete, or for a partial report has no complete image; or a sequential run did not
            declare a radius.
    """
    manifest, images = store.manifest(), store.images(shown=MOST_IMAGES)
    declaration, fingerprint = Declaration.from_json(manifest["law"]), manifest["fingerprint"]
    refuse_undeclared_radii(declaration, radii)
    evidence, spent = store.all_evidence(fingerprint=fingerprint), declaration.alpha if alpha is None else alpha
    with counting("certificates", len(images) * len(declaration.sigma_pixel)) as count:
        certified = (certify_complete_images if partial else certify_images)(
            evidence,
            images,
            declaration=declaration,
            num_classes=manifest["plan"]["classes"],
            alpha=alpha,
            resume_with=f"ndc certify {store.folder}",
            on_cell=count,
        )
    if not certified:
        raise IncompleteRunError(
            f"{store.folder}: no image is complete at all noise levels yet; `ndc status {store.folder}` says how far "
            "it is"
        )
    config = load_config(str(store.folder / "run.toml"))
    return write_report(
        folder,
        certified,
        images,
        declaration=declaration,
        alpha=spent,
        radii=radii,
        title=f"Certified robustness: {store.folder.name}",
        evidence_digest=evidence.digest,
        empirical=empirical_accuracy(store.folder, fingerprint=declaration.fingerprint),
        provenance=provenance_of(config, manifest, declaration, evidence, alpha=spent),
        sample=are_a_sample(
            {item.image_id for item in certified}, evidence.images, images, store.order(), seed=declaration.seed
        ),
    )
