"""Whether runs and logs are about the same images."""

from collections.abc import Mapping, Sequence

from pipeline.compare.inputs import LogInput, RunInput, Seen


class OtherImagesError(ValueError):
    """Runs or logs over different images: shares of them cannot be compared."""


def ids_of_log(log: LogInput, runs: Sequence[RunInput]) -> dict[int, str]:
    """Image ids by a log's idx: a place in the data set, or, in this program's logs, among the run's images.

    Places that no run has get a name that no image has.

    Raises:
        ValueError: a run does not know the places of its images, or two runs have different images at one.
    """
    id_at: dict[int, tuple[str, RunInput]] = {}
    for run in runs:
        for place, image_id in run.places(in_data=not log.log.own).items():
            other, first = id_at.setdefault(place, (image_id, run))
            if other != image_id and place in log.labels:
                raise OtherImagesError(
                    f"{log.where}: idx {place} is image {other} in {first.where} and image {image_id} in {run.where}; "
                    "compare the log with one of them"
                )
    return {index: id_at[index][0] if index in id_at else f"idx {index}" for index in log.labels}


def shared_images(named: Sequence[tuple[str, Mapping[str, Seen]]], *, intersect: bool) -> list[str]:
    """The images that all sources are about; each comes by its name, with its images by id.

    Raises:
        OtherImagesError: an image has two labels, or other pixels; or the sets differ, unless `intersect` asks for what
            they share; or they share nothing.
    """
    refuse_other_contents(named)
    (first, images), *others = named
    shared = [image_id for image_id in images if all(image_id in seen for _, seen in others)]
    different = next(((name, seen) for name, seen in others if seen.keys() != images.keys()), None)
    if different is None:
        return shared
    name, seen = different
    only = next((image_id for image_id in images if image_id not in seen), None)
    alone = (only, first) if only else (next(image_id for image_id in seen if image_id not in images), name)
    counts = ", ".join(f"{other} has {len(contents):,}" for other, contents in named)
    message = (
        f"these are not over the same images: {counts}; all share {len(shared):,}; {alone[0]} is in {alone[1]} only"
    )
    if not shared:
        raise OtherImagesError(f"{message}; there is nothing to compare")
    if not intersect:
        raise OtherImagesError(f"{message}. --intersect compares them on what they share")
    return shared


def refuse_other_contents(named: Sequence[tuple[str, Mapping[str, Seen]]]) -> None:
    labels: dict[str, tuple[str, Seen]] = {}
    hashes: dict[str, tuple[str, Seen]] = {}
    for name, images in named:
        for image_id, seen in images.items():
            other, before = labels.setdefault(image_id, (name, seen))
            if before.label != seen.label:
                raise OtherImagesError(
                    f"image {image_id} has label {before.label} in {other}{before.place} and {seen.label} in "
                    f"{name}{seen.place}: these are not the same data, or not in the same order"
                )
            if seen.sha256 is None:
                continue
            other, before = hashes.setdefault(image_id, (name, seen))
            if before.sha256 != seen.sha256:
                raise OtherImagesError(
                    f"image {image_id} has other pixels in {other} than in {name}: other data, or another size or "
                    "resize; certify both on the same images"
                )
