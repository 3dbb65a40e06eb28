"""A run that takes more images, or more noise levels, and keeps what it has drawn.

A vote is decided by its image, its noise level and its own draw, so that further images and levels change no
vote (rules S1, S2), and each image's certificate spends an alpha of its own. Nothing else may grow: more votes
of an image that was looked at, or more levels that share a maximum or a path, would change what was declared for images
that are drawn already (rules S3, S5).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.data.datasets import ImageRecord
from pipeline.declaration.declaration import Declaration, DeclarationChangedError, refuse_changes

IMAGES = ("images", "corrupt", "sha256")  # of the declaration's `dataset`


@dataclass(frozen=True)
class Growth:
    """How many images and noise levels a run has, and how many it is to have."""

    images: tuple[int, int]
    levels: tuple[int, int]

    def __str__(self) -> str:
        grown = [
            f"from {before:,} to {after:,} {what}"
            for (before, after), what in ((self.images, "images"), (self.levels, "noise levels"))
            if before != after
        ]
        return f"grows {' and '.join(grown)}; what is drawn is kept"


def growth_of(
    declared: Declaration,
    wanted: Declaration,
    *,
    before: Sequence[ImageRecord],
    after: Sequence[ImageRecord],
    folder: str,
) -> Growth | None:
    """By what a run grows from the images `before` to those `after`; None if it stays as it is.

    Raises:
        DeclarationChangedError: it would change otherwise, or lose images or levels; says why it may not.
    """
    if declared == wanted:
        return None
    if without_what_grows(declared) != without_what_grows(wanted):
        refuse_changes(declared, wanted, folder=folder)
    levels, more_levels = set(declared.sigma_pixel), set(wanted.sigma_pixel)
    growth = Growth((len(before), len(after)), (len(levels), len(more_levels)))
    _refuse_lost_levels(sorted(levels - more_levels), sorted(levels), folder)
    _refuse_lost_images(before, after, folder)
    if levels < more_levels:
        _refuse_levels_that_share(declared, folder)
    elif len(before) == len(after):  # others were left out as corrupt, or the data have another order
        refuse_changes(declared, wanted, folder=folder)
    return growth


def stage_lines(manifest: dict[str, Any]) -> list[str]:
    """One line for each declaration of a run that has grown, with its time; none for another run."""
    if not manifest["earlier"]:
        return []
    return [
        f"{stage['law']['dataset']['images']:,} images at sigma_pixel "
        f"{', '.join(f'{sigma:g}' for sigma in stage['law']['sigma_pixel'])}: declared "
        f"{stage['declared'] or 'at a time that was not noted'}"
        for stage in (*manifest["earlier"], manifest)
    ]


def without_what_grows(declaration: Declaration) -> dict[str, Any]:
    """The part of a declaration that never changes."""
    recorded = {key: value for key, value in declaration.recorded.items() if key != "sigma_pixel"}
    dataset = {key: value for key, value in recorded["dataset"].items() if key not in IMAGES}
    return {**recorded, "dataset": dataset}


def _refuse_lost_levels(lost: Sequence[float], declared: Sequence[float], folder: str) -> None:
    if lost:
        named = " ".join(f"--sigma-pixel {sigma:g}" for sigma in declared)
        raise DeclarationChangedError(
            f"{folder} has the noise level {lost[0]:g}, and a run gives no level up: to add others, name those that it "
            f"has too ({named}), or give this run another folder with --run"
        )


def _refuse_lost_images(before: Sequence[ImageRecord], after: Sequence[ImageRecord], folder: str) -> None:
    chosen = {record.image_id: (record.label, record.sha256) for record in after}
    lost = [record.image_id for record in before if record.image_id not in chosen]
    if lost:
        raise DeclarationChangedError(
            f"{folder} has {len(before):,} images, and {len(lost):,} of them, such as {lost[0]}, are not among the "
            f"{len(after):,} chosen now: a run grows by images that are added to its own; choose more (a larger "
            "--limit, a divisor of --every, the same --offset), or give this run another folder with --run"
        )
    for record in before:
        label, sha256 = chosen[record.image_id]
        if (label, sha256) != (record.label, record.sha256):
            what = "its pixels" if label == record.label else f"its label ({record.label} -> {label})"
            raise DeclarationChangedError(
                f"{folder}: the data changed since the run was declared: image {record.image_id}, {what}; restore "
                "them, or give this run another folder with --run"
            )


def _refuse_levels_that_share(declared: Declaration, folder: str) -> None:
    if declared.maximum_over_sigmas:
        raise DeclarationChangedError(
            f"{folder} shares alpha among its {len(declared.sigma_pixel)} noise levels "
            "(certificate.maximum_over_sigmas): more levels would leave each level less alpha than its votes were "
            "declared with (rule S5); give them another folder with --run"
        )
    if declared.one_path:
        raise DeclarationChangedError(
            f"{folder} draws one path of noise for all its noise levels (classifier.one_path): other levels are other "
            "paths, and would be other votes; give them another folder with --run"
        )
