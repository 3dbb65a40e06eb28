"""`ndc attack`: tries to break a run's own certificates, and measures what attacks leave of its accuracy."""

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from typing import Any

from upath import UPath

from ndc_core.checkpoints.image_classifiers import classifier_digest, describe_classifier
from pipeline.certificates.attack_results import SUMMARY, summary_of
from pipeline.certificates.files import cut
from pipeline.certificates.reduce import certify_images
from pipeline.declaration.toml_files import load_config
from pipeline.driver.attack_plan import plan_attack
from pipeline.driver.certify import tracker_of
from pipeline.driver.prepare import PreparedRun, prepare
from pipeline.driver.services import check_services
from pipeline.locations import absolute, exists, location, publish, read
from pipeline.progress import counting
from pipeline.report.report import Report, reduce_and_report
from pipeline.report.tables import percent
from pipeline.side_channel import Say, SideChannel, safely
from pipeline.store.lease import held
from pipeline.store.run_store import RunStore
from pipeline.workers.attack_actor import AttackActor
from pipeline.workers.attack_settings import (
    RIVALS,
    AttackCosts,
    AttackerSettings,
    AttackSettings,
    cell_id,
    cell_row,
    result_name,
)
from pipeline.workers.models import build_classifier, local_classifier
from pipeline.workers.ray_cluster import connect_ray, stop_on_signals
from pipeline.workers.ray_pool import map_over_actors
from pipeline.workers.vote_actor import VoterSettings


class BrokenCertificateError(RuntimeError):
    """An image within the certified radius has another class: it is named and saved."""


class AttackFailedError(RuntimeError):
    """Some attacks could not be made; the others are not made again."""


def attack_run(
    folder: UPath, settings: AttackSettings, *, limit: int | None, say: Say, budget: float = math.inf
) -> tuple[Report, dict[str, Any]]:
    """Attacks every certificate of a finished run at its radius, and every right image at the radii of the report.

    It takes the first `limit` images, but no more than it can attack for `budget` times the run's own evaluations.
    Returns the report with the empirical accuracies in it, and the attacks' summary.

    Raises:
        BrokenCertificateError: a certificate was broken beyond doubt; the images are saved.
        ValueError: the run is incomplete, its model or data have changed, the budget is not enough for one image, or
            the classifier to attack through does not fit.
    """
    stop_on_signals()
    store, say = RunStore(folder), safely(say)
    store.manifest()
    config = load_config(str(folder / "run.toml"))
    check_services([config])
    run = prepare(config, folder)
    settings = _with_source(settings, run)
    with held(folder, force=False, say=say):
        rows = _planned_rows(run, store, settings, limit, budget, say)
        results = _results(run, rows, settings, say)
        summary = summary_of(
            results,
            radii=run.config.certificate.radii,
            fingerprint=run.declaration.fingerprint,
            earlier=_earlier_results(run, rows, settings),
        )
        publish(folder / SUMMARY, (json.dumps(summary, indent=2) + "\n").encode())
        report = reduce_and_report(store, alpha=None, radii=run.config.certificate.radii, folder=folder)
        with SideChannel("MLflow", say):
            if tracker := tracker_of(run):
                tracker.attacked(report, [folder / name for name in ("report.html", "curve.svg", "curve.png", SUMMARY)])
    _raise_if_broken(folder, results)
    for line in told(summary):
        say(line)
    return report, summary


def told(summary: dict[str, Any]) -> Iterator[str]:
    """What the attacks found, in words."""
    for level, shares in summary["empirical_accuracy"].items():
        intervals = summary["interval_95"][level]
        left = [
            f"{percent(share, up=True)} [{percent(intervals[radius][0])}, {percent(intervals[radius][1], up=True)}] "
            f"at {float(radius):g}"
            for radius, share in shares.items()
        ]
        lead = f"sigma_pixel {level}, accuracy left of {summary['images']:,} images [95 % interval of all like them]"
        yield f"{lead}: {', '.join(left)}"
    yield (
        f"{summary['attacks_on_certificates']:,} attacks on {summary['certificates_attacked']:,} certificates "
        f"at their radii: none broken; {summary['attacks_beyond']:,} attacks beyond them broke "
        f"{summary['cells_broken_beyond']:,} of {summary['cells']:,} images and noise levels beyond doubt "
        f"({summary['falls_not_confirmed']:,} times fresh votes did not confirm that a class had lost), with "
        f"{summary['evaluations']:,} evaluations"
    )


def _with_source(settings: AttackSettings, run: PreparedRun) -> AttackSettings:
    """With what identifies the image classifier of a transfer attack.

    Raises:
        ValueError: it cannot be loaded, or is for other images or classes than the run.
    """
    if not settings.source:
        return settings
    described = describe_classifier(local_classifier(settings.source))
    own = run.listing.image_shape, run.num_classes
    if (described.image_shape, described.num_classes) != own:
        raise ValueError(
            f"{settings.source} knows {described.num_classes} classes of images of shape {described.image_shape}, and "
            f"the run has {own[1]} of {own[0]}; attack through a classifier of the run's own images and classes"
        )
    source = settings.source if "://" in settings.source else absolute(location(settings.source))
    return replace(settings, source=source, source_digest=classifier_digest(local_classifier(settings.source)))


def _planned_rows(
    run: PreparedRun, store: RunStore, settings: AttackSettings, limit: int | None, budget: float, say: Say
) -> list[dict[str, Any]]:
    """The cells to attack, of as many images as the budget is enough for."""
    images, evidence = store.images()[:limit], store.all_evidence(fingerprint=run.fingerprint)
    certified = certify_images(
        evidence,
        store.images(),
        declaration=run.declaration,
        num_classes=run.num_classes,
        alpha=None,
        resume_with=run.resume_command,
    )
    record_of = {record.image_id: record for record in run.records}
    rows_of_image: dict[str, list[dict[str, Any]]] = {image.image_id: [] for image in images}
    for item in certified:
        if item.image_id in rows_of_image:
            row = cell_row(item, record_of[item.image_id], run.config.certificate.radii)
            rows_of_image[item.image_id].append(row)
    classifier = build_classifier(run.config, device="cpu")
    costs = AttackCosts(
        settings, vote=classifier.most_evaluations_per_vote, scores=classifier.evaluations_of_scores(1 + RIVALS)
    )
    plan = plan_attack(
        [sum(map(costs.most_of_cell, rows)) for rows in rows_of_image.values()],
        evaluations_of_run=evidence.evaluations,
        budget=budget,
    )
    say(f"{settings}: {plan}")
    return [row for rows in list(rows_of_image.values())[: plan.images] for row in rows]


def _results(run: PreparedRun, rows: list[dict[str, Any]], settings: AttackSettings, say: Say) -> list[dict[str, Any]]:
    compute = run.config.compute
    pool = connect_ray(compute, say=say)
    for remark in pool.remarks:
        say(remark)
    voter = VoterSettings(
        run.config, absolute(run.folder), run.declaration, run.fingerprint, run.num_classes, device=pool.device
    )
    results, failed, attackers = [], [], AttackerSettings(voter, settings)
    with counting("attacked", len(rows)) as count:
        for receipt in map_over_actors(
            rows, AttackActor, attackers, pool=pool, stuck_seconds=compute.stuck_seconds, say=say
        ):
            count()
            if receipt["error"]:
                failed.append(receipt["error"])
            else:
                results.append(json.loads(receipt["result"]))
    if failed:
        listed = "\n".join(f"  {line}" for line in failed)
        raise AttackFailedError(f"{len(failed)} of {len(rows)} attacks failed, the others are kept:\n{listed}")
    return results


def _earlier_results(
    run: PreparedRun, rows: Sequence[dict[str, Any]], settings: AttackSettings
) -> list[list[dict[str, Any]]]:
    """What other attacks on this run found about the same cells. This attack's settings are kept for later ones."""
    folder, own = run.folder / "attacks", settings.folder(run.fingerprint)
    publish(folder / f"{own}.json", json.dumps({"fingerprint": run.fingerprint, "attack": asdict(settings)}).encode())
    names, earlier = {result_name(row) for row in rows}, []
    for path in sorted(folder.glob("*.json")):
        if path.stem != own and json.loads(read(path))["fingerprint"] == run.fingerprint:
            cells = (folder / path.stem).iterdir() if exists(folder / path.stem) else ()
            earlier.append([json.loads(read(cell)) for cell in cells if cell.name in names])
    return earlier


def _raise_if_broken(folder: UPath, results: list[dict[str, Any]]) -> None:
    broken = [result for result in results if result["certificate"] and result["certificate"]["confirmed"]]
    if broken:
        listed = "\n".join(
            f"  image {result['image_id']}, sigma_pixel {result['sigma_pixel']:g}: certified to "
            f"{cut(result['certified_radius']):.6f}, class {result['predicted']} lost at "
            f"{result['certificate']['distance']:.6f}: "
            f"{folder / 'attacks' / 'broken' / cell_id(result['image_id'], result['sigma_pixel'])}.png"
            for result in broken
        )
        raise BrokenCertificateError(
            f"CERTIFICATES BROKEN: {len(broken)} of {len(results)}. Each may fail with probability alpha; "
            f"more than that is a fault of the program or of the run:\n{listed}"
        )
