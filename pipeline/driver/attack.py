"""`ndc attack`: tries to break a run's own certificates, and measures what attacks leave of its accuracy."""

import json
from typing import Any

from upath import UPath

from pipeline.certificates.attack_results import SUMMARY
from pipeline.certificates.files import cut
from pipeline.certificates.reduce import certify_images
from pipeline.declaration.toml_files import load_config
from pipeline.driver.certify import tracker_of
from pipeline.driver.prepare import PreparedRun, prepare
from pipeline.driver.services import check_services
from pipeline.locations import absolute, publish
from pipeline.progress import CountProgress
from pipeline.report.report import Report, reduce_and_report
from pipeline.side_channel import Say, SideChannel, safely
from pipeline.store.lease import held
from pipeline.store.run_store import RunStore
from pipeline.workers.attack_actor import (
    AttackActor,
    AttackerSettings,
    AttackSettings,
    BrokenCertificateError,
    cell_id,
    cell_row,
    summary_of,
)
from pipeline.workers.ray_pool import connect_ray, map_over_actors, stop_on_signals
from pipeline.workers.vote_actor import VoterSettings


class AttackFailedError(RuntimeError):
    """Some attacks could not be made; those that could are not made again."""


def attack_run(
    folder: UPath, settings: AttackSettings, *, limit: int | None, say: Say
) -> tuple[Report, dict[str, Any]]:
    """Attacks every certificate of a finished run at its radius, and every right image at the radii of the report.

    Returns the report with the empirical accuracies in it, and the attacks' summary.

    Raises:
        BrokenCertificateError: a certificate was broken beyond doubt; the images are saved.
        ValueError: the run is incomplete, or its model or data have changed.
    """
    stop_on_signals()
    store, say = RunStore(folder), safely(say)
    store.manifest()
    config = load_config(str(folder / "run.toml"))
    check_services([config])
    run = prepare(config, folder)
    with held(folder, force=False, say=say):
        results = _results(run, store, settings, limit, say)
        summary = summary_of(results, radii=run.config.certificate.radii, fingerprint=run.declaration.fingerprint)
        publish(folder / SUMMARY, (json.dumps(summary, indent=2) + "\n").encode())
        report = reduce_and_report(store, alpha=None, radii=run.config.certificate.radii, folder=folder)
        with SideChannel("MLflow", say):
            if tracker := tracker_of(run):
                tracker.attacked(report, [folder / name for name in ("report.html", "curve.svg", "curve.png", SUMMARY)])
    _raise_if_broken(folder, results)
    say(
        f"{summary['attacks_on_certificates']:,} attacks on {summary['certificates_attacked']:,} certificates "
        f"at their radii: none broken; {summary['attacks_beyond']:,} attacks beyond them broke "
        f"{summary['cells_broken_beyond']:,} of {summary['cells']:,} images and noise levels beyond doubt "
        f"({summary['falls_not_confirmed']:,} times fresh votes did not confirm that a class had lost)"
    )
    return report, summary


def _results(
    run: PreparedRun, store: RunStore, settings: AttackSettings, limit: int | None, say: Say
) -> list[dict[str, Any]]:
    images = store.images()[:limit]
    certified = certify_images(
        store.all_evidence(fingerprint=run.fingerprint),
        store.images(),
        declaration=run.declaration,
        num_classes=run.num_classes,
        alpha=None,
        resume_with=run.resume_command,
    )
    chosen = {image.image_id for image in images}
    record_of = {record.image_id: record for record in run.records}
    rows = [
        cell_row(item, record_of[item.image_id], run.config.certificate.radii)
        for item in certified
        if item.image_id in chosen
    ]
    compute = run.config.compute
    pool = connect_ray(compute, say=say)
    for remark in pool.remarks:
        say(remark)
    voter = VoterSettings(
        run.config, absolute(run.folder), run.declaration, run.fingerprint, run.num_classes, device=pool.device
    )
    progress, results, failed = CountProgress("attacked", len(rows)), [], []
    attackers, shown = AttackerSettings(voter, settings), SideChannel("the progress display", say)
    for receipt in map_over_actors(
        rows, AttackActor, attackers, pool=pool, stuck_seconds=compute.stuck_seconds, say=say
    ):
        with shown:
            progress.add()
        if receipt["error"]:
            failed.append(receipt["error"])
        else:
            results.append(json.loads(receipt["result"]))
    if failed:
        listed = "\n".join(f"  {line}" for line in failed)
        raise AttackFailedError(f"{len(failed)} of {len(rows)} attacks failed, the others are kept:\n{listed}")
    return results


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
