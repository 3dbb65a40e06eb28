"""Votes that several runs have in common: drawn once, and kept by each among its own evidence.

A vote of an image at a noise level does not depend on all that a run declares: the number of votes, the alpha at which
they are judged and the other levels do not matter. Runs that agree in the rest draw the same votes, so one may take
them over from another instead of drawing them again.
"""

from collections.abc import Iterator, Sequence
from typing import Any

from upath import UPath

from ndc_core.noise.draw_generators import Phase
from pipeline.certificates.stopping import Cell, Cells, cells_of
from pipeline.data.datasets import ImageRecord
from pipeline.declaration.declaration import Declaration, fingerprint_of
from pipeline.declaration.units import draw_ranges
from pipeline.store.evidence import Evidence, EvidenceTable, checked_rows
from pipeline.store.run_store import RunStore, StoreError

OF_THE_RUN = ("sigma_pixel", "votes", "certificate")


def is_about_candidate(declaration: Declaration) -> bool:
    """Whether an estimation vote may end when the selected class is beaten: then it is about that class."""
    return declaration.has_race


def vote_key(declaration: Declaration) -> str:
    """One value for all that decides a vote of an image at a noise level, except the class that it may be about.

    What is declared is taken to decide votes unless it is known not to. On a shared path the levels share outputs, so
    all levels must be the same; the scores of each draw are kept for one certificate only.
    """
    decides = {key: value for key, value in declaration.recorded.items() if key not in OF_THE_RUN}
    decides["keeps_scores"] = declaration.certificate == "lipschitz"
    if declaration.one_path:
        decides["levels"] = declaration.sigma_pixel
    return fingerprint_of(decides)


def ends_of(declarations: Sequence[Declaration]) -> tuple[int, ...]:
    """Draws at which units of runs that share votes must end, so that the units of a run with few draws are also units
    of a run with many: the last selection draw and every look of each run. Empty if these are the same for all."""
    of_each = {
        frozenset(
            {
                declaration.selection_votes,
                *(end for s in declaration.sigma_pixel for end in declaration.procedure(s).looks),
            }
        )
        for declaration in declarations
    }
    return tuple(sorted(frozenset().union(*of_each))) if len(of_each) > 1 else ()


def reuse_votes(
    store: RunStore,
    declaration: Declaration,
    evidence: EvidenceTable,
    records: Sequence[ImageRecord],
    *,
    num_classes: int,
    donor: UPath,
) -> tuple[int, int]:
    """Copies votes that a run lacks and another has into the run's own evidence; only for a driver that holds the run.

    Returns the votes and evaluations that were taken over. They are what the run itself would draw, bit for bit, and
    nothing beyond what its procedure asks for. Their recorded cost is what it took to draw them.

    Raises:
        StoreError: the donor's evidence is not sound.
    """
    other = RunStore(donor)
    if not other.is_declared():
        return 0, 0
    manifest = other.manifest()
    donated = Declaration.from_json(manifest["law"])
    shared = set(declaration.sigma_pixel) & set(donated.sigma_pixel)
    if vote_key(donated) != vote_key(declaration) or not shared:
        return 0, 0
    donor_cells = cells_of(donated, records, _checked(other, manifest["fingerprint"]), num_classes=num_classes)
    own_cells = cells_of(declaration, records, evidence, num_classes=num_classes)
    items = list(_reusable(declaration, own_cells, donor_cells, [record.image_id for record in records]))
    if items:
        store.publish_many(items, fingerprint=store.manifest()["fingerprint"])
    return sum(item.unit.draws for item in items), sum(item.evaluations for item in items)


def _checked(donor: RunStore, fingerprint: str) -> list[Evidence]:
    """Checked row by row: what is copied gets a new checksum, which must not hide damage."""
    try:
        return list(checked_rows(donor.all_evidence(fingerprint=fingerprint).table, fingerprint=fingerprint))
    except StoreError:
        raise
    except ValueError as error:
        raise StoreError(f"{donor.folder}: {error}; `ndc verify {donor.folder}` names the file") from error


def _reusable(
    declaration: Declaration, own_cells: Cells, donor_cells: Cells, images: Sequence[str]
) -> Iterator[Evidence]:
    levels = [sigma for sigma in declaration.sigma_pixel if sigma in donor_cells.methods]
    groups = [levels] if declaration.one_path else [[sigma] for sigma in levels]
    for sigmas in groups:
        pieces = list(draw_ranges(declaration, sigmas[0]))
        for image_id in images:
            pairs = [(own_cells[sigma, image_id], donor_cells[sigma, image_id]) for sigma in sigmas]
            yield from _reusable_of_image(pairs, pieces, about_candidate=is_about_candidate(declaration))


def _reusable_of_image(
    pairs: Sequence[tuple[Cell, Cell]], pieces: Sequence[tuple[Phase, int, int]], *, about_candidate: bool
) -> Iterator[Evidence]:
    """What the first of each pair needs and lacks and the second has; selection first, as it may name the candidate."""
    may_differ = about_candidate
    for phase, start, stop in pieces:
        if phase == "estimation" and may_differ:
            if not all(cell.candidate is not None and cell.candidate == other.candidate for cell, other in pairs):
                return
            may_differ = False
        for cell, other in pairs:
            item = other.evidence[phase].get(start)
            if item is None or item.unit.draw_stop != stop or start in cell.evidence[phase]:
                continue
            if phase == "selection" or stop <= cell.state().needed:
                cell.take(item)
                yield item


def drawn_once(runs: Sequence[tuple[Declaration, EvidenceTable]]) -> tuple[int, int]:
    """Votes and evaluations of several runs, given by declaration and evidence; what they share counts once.

    Evidence that was taken over is recognised by the time at which it was drawn.
    """
    seen: dict[tuple[Any, ...], tuple[int, int]] = {}
    for declaration, evidence in runs:
        key = vote_key(declaration)
        names = ("sigma_pixel", "image_id", "phase", "draw_start", "finished_unix", "draw_stop", "evaluations")
        for *draw, stop, evaluations in zip(*(evidence.table[name].to_pylist() for name in names), strict=True):
            seen[(key, *draw)] = (stop - draw[3], evaluations)
    return sum(votes for votes, _ in seen.values()), sum(evaluations for _, evaluations in seen.values())
